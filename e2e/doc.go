// Package e2e tests whole paths: handles opened by package divert in their own network namespaces, real traffic through
// the kernel, and the packets that arrive. Tests of a single package stand beside it.
package e2e
