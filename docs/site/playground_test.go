package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser returns a Chromium, or skips the test.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium (Debian: apt-get install chromium)")
	return ""
}

// TestPlayground opens the page in a browser, without a server, and checks its content.
func TestPlayground(t *testing.T) {
	if testing.Short() {
		t.Skip("builds for the browser and starts one; not with -short")
	}
	chromium := browser(t)
	out := t.TempDir()
	if err := makeSite(root(t), out); err != nil {
		t.Fatal(err)
	}
	if err := writeCompiler(root(t), out); err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, name := range []string{"index.html", "playground.js", "divert.js", "wasm_exec.js"} {
		b, err := os.ReadFile(filepath.Join(out, playground, name))
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		size += packed.Len()
	}
	if size > 5_000_000 {
		t.Errorf("the playground takes %d bytes, compressed", size)
	}
	t.Logf("the playground takes %d bytes, compressed", size)
	// A capture with two Ethernet frames, the second of which holds an IP packet.
	capture := "\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00\x00\x00" +
		"\x01\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00\x00\x0e\x00\x00\x00" + "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x06" +
		"\x02\x00\x00\x00\x00\x00\x00\x00\x2a\x00\x00\x00\x2a\x00\x00\x00" + "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x00" +
		"\x45\x00\x00\x1c\x00\x00\x00\x00\x40\x11\x00\x00\xc0\x00\x02\x01\xc6\x33\x64\x01" + "\x14\xe9\x00\x35\x00\x08\x00\x00"
	for _, test := range []struct {
		name, filter, capture string
		want                  []string
	}{
		{"samples", "outbound and tcp.DstPort == 80 and tcp.Syn", "", []string{
			"It compiles.", "1 of 18 packets match.", "192.0.2.10:50001 > 198.51.100.7:80 TCP SYN, payload 0", "NETWORK", "@WinDiv_", "takes it",
			"outbound and tcp dst port 80 and (tcp[tcpflags] & tcp-syn != 0 or (ip6[6] = 6 and ip6[53] & 0x2 != 0))", "files do not tell tcpdump the direction"}},
		{"no neighbour", "processId == 4711", "", []string{"None: processId: tcpdump has nothing of the kind"}},
		{"error", "tcp.dstport == 80", "", []string{"^^^^^^^^^^^", "hint: did you mean tcp.DstPort?"}},
		{"capture", "udp.DstPort == 53", capture, []string{"the link's capture", "1 of 1 packets match. 1 of 2 frames have no IP packet", "192.0.2.1:5353 > 198.51.100.1:53 UDP"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := url.Values{"filter": {test.filter}}
			condition := `!document.getElementById("state").textContent.startsWith("loading")`
			if test.capture != "" {
				condition = `/link.s capture/.test(document.getElementById("drop").textContent + document.getElementById("notes").textContent)`
				v.Set("capture", base64.StdEncoding.EncodeToString([]byte(test.capture)))
			}
			page := visible(t, chromium, filepath.Join(out, playground, "index.html"), "#"+v.Encode(), condition)
			for _, want := range test.want {
				if !strings.Contains(page, want) {
					t.Errorf("the page does not show %q:\n%s", want, page)
				}
			}
		})
	}
	page := visible(t, chromium, filepath.Join(out, "linux.html"), "?q=superpacket", `!document.getElementById("found").hidden`)
	if !strings.Contains(page, "Divert on Linux › Superpackets") {
		t.Errorf("the search finds nothing:\n%s", page)
	}
}

var (
	tag    = regexp.MustCompile(`<[^>]*>`)
	script = regexp.MustCompile(`(?s)<script.*?</script>`)
)

// visible returns the text of a page, opened from a file, once a condition holds in it. The browser prints a page when
// everything in it is loaded; so the page gets an image that appears only then.
func visible(t *testing.T, chromium, file, suffix, condition string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	shown := make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/shown" {
			once.Do(func() { close(shown) })
			return
		}
		select {
		case <-shown:
		case <-ctx.Done():
		}
	}))
	defer server.Close()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	copied := strings.TrimSuffix(file, ".html") + "-test.html"
	wait := fmt.Sprintf(`<img src="%s/wait"><script>const watch = setInterval(() => {
		if (%s) { clearInterval(watch); new Image().src = "%s/shown"; }
	}, 10);</script></body>`, server.URL, condition, server.URL)
	if err := os.WriteFile(copied, []byte(strings.Replace(string(text), "</body>", wait, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--user-data-dir="+t.TempDir(), "--dump-dom", "file://"+copied+suffix)
	var errout bytes.Buffer
	c.Stderr = &errout
	page, err := c.Output()
	if err != nil {
		t.Fatalf("chromium: %v\n%s", err, &errout)
	}
	return html.UnescapeString(tag.ReplaceAllString(script.ReplaceAllString(string(page), ""), " "))
}
