// Package playground answers the requests of the page for trying filters: a filter's errors, the program it compiles
// to, and its matches in a capture. It runs in the browser (docs/site/playground/wasm), without a server or network.
package playground
