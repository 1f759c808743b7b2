package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// browserVariable is the browser for TestWebBrowser: chromium, or one with its flags. Without it the test is skipped.
const browserVariable = "DIVERT_TEST_BROWSER"

// TestWebBrowser has a real browser visit a blocked site: over HTTP it shows the page, over TLS it fails at once, and
// where only QUIC is judged it falls back to TCP.
func TestWebBrowser(t *testing.T) {
	name := os.Getenv(browserVariable)
	if name == "" {
		t.Skipf("slow: only with %s=chromium", browserVariable)
	}
	browser, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needTUN(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"www.blocked.test"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	var fallback time.Duration // from the page to its script, which uses its own connection
	var page time.Time
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Alt-Svc", `h3=":443"; ma=3600`)
			if r.URL.Path == "/script.js" {
				fallback = time.Since(page)
				fmt.Fprint(w, `document.body.append("by TCP")`)
				return
			}
			w.Header().Set("Content-Type", "text/html")
			page = time.Now()
			fmt.Fprint(w, `<!DOCTYPE html><body>a site <script src="/script.js"></script></body>`)
		}),
		TLSConfig:    &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     log.New(io.Discard, "", 0),
	}
	s.SetKeepAlivesEnabled(false)
	t.Cleanup(func() { s.Close() })
	plain, err := pair.B.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := pair.B.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(plain)
	go s.ServeTLS(encrypted, "", "")
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	show := func(url string, flags ...string) (string, time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, browser, append([]string{
			"--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--user-data-dir=" + t.TempDir(), "--enable-quic",
			"--disable-background-networking", "--disable-features=HttpsUpgrades", "--host-resolver-rules=MAP * " + pair.B.Addr4().String(),
			"--ignore-certificate-errors-spki-list=" + base64.StdEncoding.EncodeToString(spki[:]), "--dump-dom"}, append(flags, url)...)...)
		var out strings.Builder
		cmd.Stdout = &out
		begun := time.Now()
		if err := pair.A.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		return out.String(), time.Since(begun)
	}
	list := blockList(t, "blocked.test")
	p := start(t, pair.A, "web", list)
	if text, _ := show("http://www.blocked.test/"); !strings.Contains(text, "<b>www.blocked.test</b> is blocked") {
		t.Errorf("HTTP: %s", text)
	}
	// An error page has no text.
	text, took := show("https://www.blocked.test/")
	t.Logf("TLS: the browser gave up within %v, its start included", took)
	if text != "" || took > 30*time.Second {
		t.Errorf("TLS: %s", text)
	}
	text, took = show("https://www.blocked.test/", "--origin-to-force-quic-on=www.blocked.test:443")
	t.Logf("QUIC alone: the browser gave up within %v, its start included", took)
	if text != "" || took > 30*time.Second {
		t.Errorf("QUIC: %s", text)
	}
	if out, status := p.end(t, os.Interrupt); status != exitOK || !strings.Contains(out, "blocked quic ") {
		t.Errorf("status %d: %s", status, out)
	}
	p = start(t, pair.A, "web", list, "udp")
	if text, _ := show("https://www.blocked.test/"); !strings.Contains(text, "by TCP") {
		t.Errorf("fallback: %s", text)
	}
	if out, status := p.end(t, os.Interrupt); status != exitOK || !strings.Contains(out, "blocked quic ") {
		t.Errorf("status %d: %s", status, out)
	}
	t.Logf("QUIC refused: the browser came by TCP after %v", fallback)
	if fallback > 2*time.Second {
		t.Errorf("the fallback took %v", fallback)
	}
}
