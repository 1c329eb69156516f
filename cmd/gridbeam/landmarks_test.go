package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

func TestLandmarksAreNamedShownAndSignedByEachRoot(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	one, err := p2p.LoadOrCreateIdentity(path("identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := p2p.LoadOrCreateIdentity(path("two.key"))
	if err != nil {
		t.Fatal(err)
	}
	idOne, _ := peer.IDFromPrivateKey(one)
	idTwo, _ := peer.IDFromPrivateKey(two)
	n := protocol.NetworkFile{Version: 1, Name: "lab", Roots: []protocol.PeerID{idOne, idTwo}, Threshold: 2, Admission: "open", Created: time.Now()}
	if err := n.Sign(one); err != nil {
		t.Fatal(err)
	}
	if err := n.Sign(two); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("network"), n.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(want int, args ...string) (v landmarksView, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"network", "landmarks", "--data", dir, "-o", "json"}, args...), nil, &out, &errs); code != want {
			t.Fatalf("%v: exit code %d, want %d: %s", args, code, want, errs.String())
		}
		if want == exitOK {
			if err := json.Unmarshal(out.Bytes(), &v); err != nil {
				t.Fatal(err)
			}
		}
		return v, errs.String()
	}
	if v, _ := do(exitOK); v.Named || len(v.Landmarks) != 2 || v.Seq != 0 {
		t.Errorf("before: %+v", v)
	}
	mark := "/ip4/203.0.113.7/tcp/4001/p2p/" + idTwo.String() + "=DE"
	for args, want := range map[string]string{
		"/ip4/203.0.113.7/tcp/4001": "does not end in /p2p/", mark + "x": "unknown place", strings.TrimSuffix(mark, "DE") + "eu": "want a country or subdivision",
		mark + " --clear": "one of the three", mark: "say --to FILE", mark + " " + mark: "twice", mark + " --key " + path("none"): "none",
	} {
		code := exitUsage
		if strings.Contains(args, "--key") {
			code = exitFailed
		}
		if _, text := do(code, strings.Fields(args)...); !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", args, text, want)
		}
	}
	if v, _ := do(exitOK, mark, "--to", path("partly")); v.Missing == "" || v.Written != path("partly") {
		t.Errorf("signed by one of two: %+v", v)
	}
	if v, _ := do(exitOK, "--file", path("partly"), "--sign", "--key", path("two.key"), "--to", path("network")); v.Missing != "" {
		t.Errorf("signed by both: %+v", v)
	}
	v, _ := do(exitOK)
	if !v.Named || len(v.Landmarks) != 1 || v.Landmarks[0] != mark || v.Seq != 1 {
		t.Errorf("after: %+v", v)
	}
	raw, err := os.ReadFile(path("network"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := protocol.ParseNetworkFile(raw); err != nil || got.ID != n.ID {
		t.Errorf("the network is %s, %v; it was %s", got.ID, err, n.ID)
	}
}
