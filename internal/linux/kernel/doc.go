// Package kernel identifies the running kernel and its features.
package kernel
