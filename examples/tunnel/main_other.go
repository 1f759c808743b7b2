//go:build !linux

package main

import "log"

func main() {
	log.Fatal("tunnel: it runs on Linux alone: elsewhere packets can't be handed to applications over the loopback interface")
}
