// Package rights reads the capabilities of the process (capabilities(7)).
package rights
