// Package rights says what the process may do: capabilities(7).
package rights
