// Package kernel says what the running kernel is and can.
package kernel
