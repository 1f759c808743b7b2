// Package examples holds small programs that use package divert, one in each folder.
package examples
