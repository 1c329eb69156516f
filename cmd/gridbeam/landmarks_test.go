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

func TestNodesAreListedWithWhatRoundTripsSayOfTheirPlaces(t *testing.T) {
	g := newGrid(t)
	g.startBridge()
	one, two := g.startNode("node-1"), g.startNode("node-2", "--region", "none")
	honest, liar := g.startNode("node-3", "--region", "DE-BE"), g.startNode("node-4", "--region", "SG")
	if p := liar.Status.Place; p.Region != "apac" || p.Country != "SG" {
		t.Errorf("the node says that it is in %+v", p)
	}
	data := filepath.Join(g.dir, "bridge")
	if err := g.bridge.stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	address := func(r nodeReady) string {
		for _, a := range r.Status.Addresses {
			if strings.Contains(a, "/tcp/") && strings.Contains(a, "/127.0.0.1/") {
				return a
			}
		}
		t.Fatalf("no address of %s", r.Status.PeerID)
		return ""
	}
	g.run(exitOK, nil, "network", "landmarks", "--data", data, g.ready.Addresses[0]+"=DE", address(one)+"=FR", address(two)+"=NL")
	g.startBridge()
	var rows []nodeRow
	check := func(id protocol.PeerID) string {
		for _, r := range rows {
			if r.PeerID == id.String() {
				return r.Region + " " + r.Check
			}
		}
		return "not listed"
	}
	g.eventually("claims are checked", func() bool {
		var out bytes.Buffer
		run(t.Context(), []string{"nodes", "--output", "json", "--via", "index", "--config-dir", g.config()}, nil, &out, new(bytes.Buffer))
		rows = nil
		return json.Unmarshal(out.Bytes(), &rows) == nil && len(rows) == 4 && check(honest.Status.PeerID) == "DE-BE consistent" && check(liar.Status.PeerID) == "SG contradicted"
	})
	if got := check(one.Status.PeerID); got != " " {
		t.Errorf("who says nothing is shown as %q", got)
	}
	table, why := g.run(exitOK, nil, "nodes", "--via", "index", "--where", `node.country != "FR"`, "--explain")
	if !strings.Contains(table, "DE-BE verified") || strings.Contains(table, liar.Status.PeerID.String()) || !strings.Contains(why, "claims SG, but answered") {
		t.Errorf("nodes that are not in France:\n%s%s", table, why)
	}
	if text := regionText("", "") + regionText("eu", "") + regionText("SG", "contradicted"); text != "-eu claimedSG contradicted" {
		t.Errorf("shown as %q", text)
	}
}
