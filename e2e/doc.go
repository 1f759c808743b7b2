// Package e2e has no code but the tests of whole paths: handles opened by package divert in network namespaces of the
// tests' own, real traffic through the kernel, and what arrives. Tests of one package stand beside it.
package e2e
