package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestTokensAreMadeListedAndRevoked(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	var token protocol.NewToken
	g.run(exitOK, &token, "bridge", "token", "create", "--name", "laptop", "--output", "json")
	if !strings.HasPrefix(token.Text, "gb_") || token.User != operatorUser || token.Name != "laptop" {
		t.Fatalf("made %+v", token)
	}
	host, port, err := net.SplitHostPort(g.ready.Beam)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := g.run(exitOK, nil, "bridge", "token", "create", "--user", "bob", "--scope", "invoke")
	for _, want := range []string{"bob", "scope invoke", "shown this once", "export BETA9_GATEWAY_HOST=" + host + "\n", "export BETA9_GATEWAY_PORT=" + port + "\n", "export BETA9_TOKEN=gb_"} {
		if !strings.Contains(text, want) {
			t.Errorf("a user of Beam is not told %q:\n%s", want, text)
		}
	}
	list, _ := g.run(exitOK, nil, "bridge", "token", "list")
	if !strings.Contains(list, token.ID) || !strings.Contains(list, "laptop") || !strings.Contains(list, "bob") || strings.Contains(list, "gb_") {
		t.Errorf("the list is:\n%s", list)
	}

	// What a token may not, it is told.
	as := func(token string, code int, want string, args ...string) {
		t.Helper()
		got, _, errs := gridbeam(t, append(append([]string{"bridge", "token"}, args...), "--token", token, "--config-dir", g.config())...)
		if got != code || !strings.Contains(errs, want) || strings.Count(strings.TrimSpace(errs), "\n") > 0 {
			t.Errorf("%v: exit code %d, %q; want %d with %q", args, got, errs, code, want)
		}
	}
	as(token.Text, exitFailed, "admin", "create", "--scope", "admin")
	as(token.Text, exitFailed, "carol", "create", "--user", "carol")
	as(token.Text, exitUsage, "all", "create", "--scope", "all")
	as(token.Text, exitUsage, "12 hex digits", "revoke", token.Text)
	as(token.Text, exitNoMatch, "0123456789ab", "revoke", "0123456789ab")
	as("gb_stranger", exitFailed, "token", "list")

	if out, _ := g.run(exitOK, nil, "bridge", "token", "revoke", token.ID); !strings.Contains(out, token.ID+" is revoked") {
		t.Errorf("revoking says %q", out)
	}
	as(token.Text, exitFailed, "revoked", "list")
	if _, errs := g.run(exitFailed, nil, "bridge", "token", "revoke", token.ID); !strings.Contains(errs, token.ID+" was revoked already") {
		t.Errorf("revoked twice: %s", errs)
	}
	var all []protocol.Token
	g.run(exitOK, &all, "bridge", "token", "list", "--output", "json")
	for _, x := range all {
		if (x.ID == token.ID) == x.Revoked.IsZero() {
			t.Errorf("%+v is listed", x)
		}
	}
}

func TestATokenIsMadeWhileTheBridgeIsStopped(t *testing.T) {
	g := newGrid(t)
	data := filepath.Join(g.dir, "bridge")
	create := []string{"bridge", "token", "create", "--data", data, "--name", "early"}
	if _, errs := g.run(exitUsage, nil, create...); !strings.Contains(errs, data) {
		t.Errorf("without a data directory: %s", errs)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	var token protocol.NewToken
	g.run(exitOK, &token, append(create, "--output", "json")...)
	if token.User != operatorUser || len(token.Scopes) != 1 || token.Scopes[0] != "jobs" {
		t.Errorf("made %+v", token)
	}
	g.run(exitUsage, nil, append(create, "--scope", "all")...)
	if text, _ := g.run(exitOK, nil, create...); !strings.Contains(text, "export BETA9_GATEWAY_PORT=1993\n") {
		t.Errorf("printed\n%s", text)
	}
	g.startBridge()
	g.run(exitOK, nil, "bridge", "token", "list", "--token", token.Text)
	if list, _ := g.run(exitOK, nil, "bridge", "token", "list"); strings.Count(list, "early") != 2 {
		t.Errorf("one is not listed before its first use:\n%s", list)
	}
}

func TestTheUsersOwnCommandsTrustTheCertificateOfTheirBridge(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	cert := func(name string) (certFile, keyFile string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		form := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"bridge.example"}}
		der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		certFile, keyFile = filepath.Join(dir, name+".cert"), filepath.Join(dir, name+".key")
		for path, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: raw}} {
			if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return certFile, keyFile
	}
	certFile, keyFile := cert("one")
	_, otherKey := cert("two")
	for want, flags := range map[string][]string{"go together": {"--tls-cert", certFile}, "no certificate with its key": {"--tls-cert", certFile, "--tls-key", otherKey}} {
		code, _, errs := gridbeam(t, append([]string{"bridge", "run", "--data", t.TempDir(), "--mdns=false", "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--beam", "", "--config-dir", t.TempDir(), "--log-level", "error"}, flags...)...)
		if code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%v: exit code %d, %q", flags, code, errs)
		}
	}
	g.startBridge("--tls-cert", certFile, "--tls-key", keyFile)
	if !strings.HasPrefix(g.ready.API, "https://127.0.0.1:") {
		t.Errorf("the API is at %s", g.ready.API)
	}
	g.run(exitOK, nil, "bridge", "token", "list")
	// Somebody who is given the address, and not the certificate, checks its name.
	s, err := readClient(g.config())
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errs := gridbeam(t, "bridge", "token", "list", "--api", s.API+"/", "--config-dir", g.config()); code != exitNotConnected || !strings.Contains(errs, "certificate") {
		t.Errorf("without knowing the certificate: exit code %d, %q", code, errs)
	}
	s.TLS = strings.Repeat("0", 64)
	body, err := jsonBytes(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePrivate(filepath.Join(g.config(), clientFile), body); err != nil {
		t.Fatal(err)
	}
	if _, errs := g.run(exitNotConnected, nil, "bridge", "token", "list"); !strings.Contains(errs, "not that of this user's bridge") {
		t.Errorf("another certificate: %s", errs)
	}
}

func TestTheGatewayIsWhereTheBridgeWasReached(t *testing.T) {
	for _, c := range [][3]string{
		{"127.0.0.1:1993", "http://127.0.0.1:1994", "127.0.0.1:1993"},
		{"0.0.0.0:443", "https://bridge.example:8443", "bridge.example:443"},
		{"[::]:1993", "http://[::1]:1994", "[::1]:1993"},
		{"", "http://127.0.0.1:1994", ""},
	} {
		if got := gatewayAt(c[0], c[1]); got != c[2] {
			t.Errorf("a gateway at %q of a bridge at %s is said to be at %q, want %q", c[0], c[1], got, c[2])
		}
	}
}
