package gridbeam_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// internet is a network of namespaces of this machine: hosts with public addresses on one wire, and homes behind routers
// that let out what they translate and let nothing in. Nothing of it leaves the machine.
type internet struct {
	testing.TB
	prefix string
	hosts  int
}

// newInternet makes an empty one. Where namespaces and packet filters cannot be made it skips, and says what is missing.
func newInternet(t *testing.T) *internet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes network namespaces; run as root to see nodes behind a NAT")
	}
	for _, program := range []string{"ip", "nft", "sysctl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("namespaces need %s: apt-get install iproute2 nftables procps", program)
		}
	}
	n := &internet{TB: t, prefix: fmt.Sprintf("gb%d-", os.Getpid())}
	t.Cleanup(func() {
		out, _ := exec.Command("ip", "netns", "list").Output()
		for line := range strings.Lines(string(out)) {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, n.prefix) {
				n.run("ip", "netns", "delete", name)
			}
		}
	})
	n.space("wire")
	if out, err := exec.Command("ip", "netns", "exec", n.prefix+"wire", "nft", "list", "ruleset").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no nftables: %v: %s", err, out)
	}
	n.ip("wire", "link add wire type bridge")
	n.ip("wire", "link set wire up")
	return n
}

func (n *internet) run(args ...string) {
	n.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		n.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (n *internet) space(name string) {
	n.Helper()
	n.run("ip", "netns", "add", n.prefix+name)
	n.ip(name, "link set lo up")
}

// ip runs ip in a namespace.
func (n *internet) ip(space, args string) {
	n.Helper()
	n.run(append([]string{"ip", "-n", n.prefix + space}, strings.Fields(args)...)...)
}

// host adds a machine with a public address and returns that.
func (n *internet) host(name string) string {
	n.Helper()
	n.hosts++
	addr := fmt.Sprintf("45.9.%d.1", n.hosts)
	n.space(name)
	n.run("ip", "link", "add", "out", "netns", n.prefix+name, "type", "veth", "peer", "name", fmt.Sprint("to", n.hosts), "netns", n.prefix+"wire")
	n.ip("wire", fmt.Sprintf("link set to%d master wire up", n.hosts))
	n.ip(name, "addr add "+addr+"/16 dev out")
	n.ip(name, "link set out up")
	return addr
}

// home adds a machine behind a router.
func (n *internet) home(name string) {
	n.Helper()
	router := name + "-r"
	n.host(router)
	n.space(name)
	n.run("ip", "link", "add", "lan", "netns", n.prefix+name, "type", "veth", "peer", "name", "lan", "netns", n.prefix+router)
	n.ip(router, "addr add 192.168.7.1/24 dev lan")
	n.ip(router, "link set lan up")
	n.ip(name, "addr add 192.168.7.2/24 dev lan")
	n.ip(name, "link set lan up")
	n.ip(name, "route add default via 192.168.7.1")
	n.run("ip", "netns", "exec", n.prefix+router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	rules := filepath.Join(n.TempDir(), "rules")
	if err := os.WriteFile(rules, []byte(`
table ip translation {
	chain outgoing {
		type nat hook postrouting priority 100; policy accept;
		oifname "out" masquerade
	}
}
table ip wall {
	chain through {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan" accept
	}
	chain inward {
		type filter hook input priority 0; policy accept;
		ct state established,related accept
		iifname "out" drop
	}
}
`), 0o600); err != nil {
		n.Fatal(err)
	}
	n.run("ip", "netns", "exec", n.prefix+router, "nft", "-f", rules)
}

// TestD3_ANodeBehindANATIsFoundAskedAndPutToWork has a node whose router lets nobody in: it learns that it cannot be
// dialled, gets a place at a relay, and is listed with it; a stranger who knows another node alone finds it, hears from
// itself that it lives and measures the way to it, and the bridge gives it a job with a volume.
func TestD3_ANodeBehindANATIsFoundAskedAndPutToWork(t *testing.T) {
	net := newInternet(t)
	net.host("bridge")
	others := []string{"one", "two"}
	for _, name := range others {
		net.host(name)
	}
	net.host("stranger")
	net.home("home")

	g := newGrid(t)
	in := func(space string) { g.space = net.prefix + space }
	in("bridge")
	g.args = []string{"bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--public", "--api", "127.0.0.1:0", "--beam", "", "--mdns=false"}
	g.startBridge()
	type told struct {
		PeerID       string   `json:"peer_id"`
		Reachability string   `json:"reachability"`
		Addresses    []string `json:"addresses"`
	}
	var door string
	for _, name := range append(others, "home") {
		in(name)
		d := g.start(name, "node", "run", "--data", filepath.Join(g.dir, name), "--join", g.ready.Invitation, "--yes", "--offer-cpu", "--mdns=false", "--slots", "1", "--drain", "1s")
		g.nodes = append(g.nodes, d)
		var v struct{ Status told }
		g.await(d, &v)
		for _, a := range v.Status.Addresses {
			if strings.HasPrefix(a, "/ip4/45.9.") && strings.Contains(a, "/tcp/") {
				door = a
			}
		}
	}

	in("home")
	var home told
	soon(t, time.Minute, "the node has found out how it is reached", func() bool {
		out, err := g.command("node", "status", "--data", filepath.Join(g.dir, "home"), "-o", "json")
		return err == nil && json.Unmarshal([]byte(out), &home) == nil && (home.Reachability == "relay" || home.Reachability == "holepunch")
	})

	in("stranger")
	var rows []struct {
		PeerID string   `json:"peer_id"`
		Reach  string   `json:"claimed_reachability"`
		Addrs  []string `json:"addresses"`
	}
	find := func(where string) bool {
		rows = rows[:0]
		out, err := g.command("nodes", "--join", door, "--via", "dht", "--where", where, "-o", "json")
		return err == nil && json.Unmarshal([]byte(out), &rows) == nil
	}
	soon(t, time.Minute, "the stranger finds it by a relay, and hears from it", func() bool {
		return find(`node.rtt_ms < 1000 && node.reachability in ["relay", "holepunch"]`) && len(rows) == 1 && rows[0].PeerID == home.PeerID
	})
	for _, a := range rows[0].Addrs {
		if !strings.Contains(a, "/p2p-circuit") {
			t.Errorf("its record tells the address %s, which is its home's business", a)
		}
	}
	if !find(`node.reachability == "public"`) || len(rows) != len(others) {
		t.Errorf("%d nodes say that they are dialled directly, want %d", len(rows), len(others))
	}

	in("bridge")
	job := g.sweepJob("placement: {where: 'node.reachability != \"public\"'}\n")
	if out := g.gridbeam("job", "submit", job, "--wait"); !strings.Contains(out, "2 of 2") {
		t.Errorf("the job says:\n%s", out)
	}
	if out := g.gridbeam("node", "status", "--data", filepath.Join(g.dir, "home")); !strings.Contains(out, "done       ") || strings.Contains(out, "done       0 chunks") {
		t.Errorf("the node at home has done nothing:\n%s", out)
	}
}
