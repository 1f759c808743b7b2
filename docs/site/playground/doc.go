// Package playground answers the questions of the page on which filters can be tried: what is wrong with a filter, what it
// compiles to, and which packets of a capture it matches. It runs in the browser (docs/site/playground/wasm), so it asks no
// server and no network.
package playground
