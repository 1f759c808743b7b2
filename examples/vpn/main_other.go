//go:build !linux

package main

import "log"

func main() {
	log.Fatal("vpn: it runs on Linux alone: elsewhere packets can't be handed to applications over the loopback interface")
}
