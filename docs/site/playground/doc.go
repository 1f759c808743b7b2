// Package playground answers the questions of the page on which filters can be tried: a filter's errors, the program it
// compiles to, and the packets of a capture that it matches. It runs in the browser (docs/site/playground/wasm), so it asks no
// server and no network.
package playground
