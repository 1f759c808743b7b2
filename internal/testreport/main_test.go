package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const in = `{"Action":"start","Package":"m/p"}
{"Action":"run","Package":"m/p","Test":"TestA"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"    a_test.go:3: fine\n"}
{"Action":"pass","Package":"m/p","Test":"TestA"}
{"Action":"output","Package":"m/p","Test":"TestB","Output":"    b_test.go:4: wrong\n"}
{"Action":"output","Package":"m/p","Test":"TestB","Output":"--- FAIL: TestB (0.00s)\n"}
{"Action":"fail","Package":"m/p","Test":"TestB"}
{"Action":"output","Package":"m/p","Test":"TestC/v6","Output":"    c_test.go:5: no IPv6 here\n"}
{"Action":"output","Package":"m/p","Test":"TestC/v6","Output":"--- SKIP: TestC/v6 (0.00s)\n"}
{"Action":"skip","Package":"m/p","Test":"TestC/v6"}
{"Action":"output","Package":"m/p","Output":"PASS\n"}
{"Action":"output","Package":"m/p","Output":"FAIL\tm/p\t0.1s\n"}
{"Action":"fail","Package":"m/p"}
m/q: no Go files
{"Action":"output","Package":"m/r","Test":"TestD","Output":"panic: lost\n"}
`
	const want = `    b_test.go:4: wrong
--- FAIL: TestB (0.00s)
FAIL	m/p	0.1s
m/q: no Go files
m/r TestD did not end
panic: lost

1 tests were skipped:
    1  no IPv6 here (p TestC/v6)
`
	var out strings.Builder
	if err := report(strings.NewReader(in), &out); err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func FuzzReport(f *testing.F) {
	f.Add(`{"Action":"skip","Package":"p","Test":"T"}`)
	f.Add("{\"Action\":\"output\",\"Test\":\"T\",\"Output\":\" a.go:1: x\"}\n{\"Action\":\"skip\",\"Test\":\"T\"}")
	f.Fuzz(func(t *testing.T, in string) {
		var out strings.Builder
		if err := report(strings.NewReader(in), &out); err != nil {
			t.Error(err)
		}
	})
}
