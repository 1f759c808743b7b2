// Command wasm is package playground for the browser: it gives the page the functions ask, load, match and explain, and
// runs as long as the page is open.
package main

import (
	"encoding/json"
	"syscall/js"

	"github.com/opendivert/divert/docs/site/playground"
	"github.com/opendivert/divert/packet"
)

// mostRows limits the packets that the page shows.
const mostRows = 500

func main() {
	capture, err := playground.Samples()
	if err != nil {
		panic(err)
	}
	var answer playground.Answer
	// ask(text, layer, strict) describes a filter.
	export("ask", func(args []js.Value) any {
		answer = playground.Ask(args[0].String(), packet.Layer(args[1].Int()), args[2].Bool())
		return answer
	})
	// load(bytes) loads a capture file or, without an argument, the samples.
	export("load", func(args []js.Value) any {
		var err error
		loaded := capture
		if len(args) == 0 {
			loaded, err = playground.Samples()
		} else {
			file := make([]byte, args[0].Get("length").Int())
			js.CopyBytesToGo(file, args[0])
			loaded, err = playground.Read(file)
		}
		if err != nil {
			return err.Error()
		}
		capture = loaded
		return ""
	})
	// match() applies the last filter to the capture.
	export("match", func([]js.Value) any { return capture.Match(&answer, mostRows) })
	// explain(number) returns the steps of a packet.
	export("explain", func(args []js.Value) any { return capture.Explain(&answer, args[0].Int()) })
	js.Global().Get("ready").Invoke()
	select {}
}

// export makes a function that the page can call and that returns JSON.
func export(name string, f func(args []js.Value) any) {
	js.Global().Set(name, js.FuncOf(func(_ js.Value, args []js.Value) any {
		text, err := json.Marshal(f(args))
		if err != nil {
			return "null"
		}
		return string(text)
	}))
}
