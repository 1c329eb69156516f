package node

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

func someRequest(peer protocol.PeerID, now time.Time) Request {
	return Request{
		Peer: peer, Issuers: []protocol.PeerID{"root"}, Joined: true, Kind: "map", Memory: 1 << 30, Disk: 1 << 30, Slots: 4, Wall: time.Hour, MinIsolation: "",
		Rights: &protocol.Rights{Abilities: []string{protocol.AbilityJobSubmit}, Expires: now.Add(time.Hour)},
	}
}

var someMachine = Machine{Memory: 16 << 30, Disk: 100 << 30, Slots: 4, Levels: []executor.Level{executor.LevelStrong}}

func set[T any](v T) *T { return &v }

func TestTheDecidingRuleIsNamed(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		policy  func(p *Policy)
		request func(r *Request)
		machine func(m *Machine)
		rule    string // "" is admitted
		code    protocol.AuthCode
	}{
		"all is well":               {},
		"denied":                    {policy: func(p *Policy) { p.Deny = []protocol.PeerID{"bridge"} }, rule: "deny", code: protocol.AuthPolicy},
		"an issuer is denied":       {policy: func(p *Policy) { p.Deny = []protocol.PeerID{"root"} }, rule: "deny", code: protocol.AuthPolicy},
		"deny wins over allow":      {policy: func(p *Policy) { p.Deny = []protocol.PeerID{"bridge"}; p.Allow = []PolicyPeer{{Peer: "bridge"}} }, rule: "deny", code: protocol.AuthPolicy},
		"revoked":                   {request: func(r *Request) { r.Revoked = true }, rule: "revoked", code: protocol.AuthRevoked},
		"no joined network":         {request: func(r *Request) { r.Joined = false }, rule: "root", code: protocol.AuthRoot},
		"no chain":                  {request: func(r *Request) { r.Rights = nil }, rule: "root", code: protocol.AuthRoot},
		"no ability":                {request: func(r *Request) { r.Rights.Abilities = nil }, rule: "ability", code: protocol.AuthAbility},
		"run out":                   {request: func(r *Request) { r.Rights.Expires = now.Add(-time.Hour) }, rule: "ability", code: protocol.AuthAbility},
		"nobody":                    {policy: func(p *Policy) { p.AcceptFrom = AcceptNobody }, rule: "accept_from", code: protocol.AuthPolicy},
		"not listed":                {policy: func(p *Policy) { p.AcceptFrom = AcceptListed }, rule: "accept_from", code: protocol.AuthPolicy},
		"listed by its issuer":      {policy: func(p *Policy) { p.AcceptFrom = AcceptListed; p.Allow = []PolicyPeer{{Peer: "root"}} }},
		"kind":                      {request: func(r *Request) { r.Kind = "gang" }, rule: "kind", code: protocol.AuthPolicy},
		"kind of the grant":         {request: func(r *Request) { r.Rights.Limits.JobKinds = []string{"task"} }, rule: "grant.job_kinds", code: protocol.AuthLimit},
		"memory":                    {request: func(r *Request) { r.Memory = 14 << 30 }, rule: "limits.memory", code: protocol.AuthPolicy},
		"memory of an allow line":   {policy: func(p *Policy) { p.Allow = []PolicyPeer{{Peer: "bridge", MemoryBytes: 1 << 20}} }, rule: "limits.memory", code: protocol.AuthPolicy},
		"disk":                      {machine: func(m *Machine) { m.Disk = 1 << 20 }, rule: "limits.disk", code: protocol.AuthPolicy},
		"wall":                      {request: func(r *Request) { r.Wall = 25 * time.Hour }, rule: "limits.wall", code: protocol.AuthPolicy},
		"wall of the grant":         {request: func(r *Request) { r.Rights.Limits.MaxWallS = set(uint32(60)) }, rule: "grant.max_wall_s", code: protocol.AuthLimit},
		"chunks of the grant":       {request: func(r *Request) { r.Rights.Limits.MaxChunks = set(uint32(0)) }, rule: "limits.chunks", code: protocol.AuthLimit},
		"isolation":                 {machine: func(m *Machine) { m.Levels = []executor.Level{executor.LevelShared} }, rule: "min_isolation", code: protocol.AuthPolicy},
		"isolation of the grant":    {request: func(r *Request) { r.Rights.Limits.MinIsolation = set(uint32(4)) }, rule: "min_isolation", code: protocol.AuthPolicy},
		"isolation nobody knows":    {request: func(r *Request) { r.MinIsolation = "utter" }, rule: "min_isolation", code: protocol.AuthPolicy},
		"weak policy, weak backend": {policy: func(p *Policy) { p.MinIsolation = "dev" }, machine: func(m *Machine) { m.Levels = []executor.Level{executor.LevelDev} }},
		"price":                     {policy: func(p *Policy) { p.MinPrice = 7 }, request: func(r *Request) { r.Rate = 6 }, rule: "min_price", code: protocol.AuthPolicy},
		"no price named":            {policy: func(p *Policy) { p.MinPrice = 7 }},
		"price of the grant":        {machine: func(m *Machine) { m.Ask = 9 }, request: func(r *Request) { r.Rights.Limits.MaxPrice = set(uint64(8)) }, rule: "grant.max_price", code: protocol.AuthLimit},
	} {
		t.Run(name, func(t *testing.T) {
			p, r, m := DefaultPolicy(), someRequest("bridge", now), someMachine
			for _, f := range []func(){
				func() {
					if c.policy != nil {
						c.policy(&p)
					}
				}, func() {
					if c.request != nil {
						c.request(&r)
					}
				}, func() {
					if c.machine != nil {
						c.machine(&m)
					}
				},
			} {
				f()
			}
			d := p.Decide(r, m, now)
			if d.OK != (c.rule == "") || !d.OK && (d.Rule != c.rule || d.Code != c.code || !strings.HasPrefix(d.Text, c.rule+": ")) {
				t.Errorf("decision is %+v, want rule %q", d, c.rule)
			}
			if bad := slices.IndexFunc(d.Rules, func(r Rule) bool { return !r.OK }); bad >= 0 && bad != len(d.Rules)-1 {
				t.Errorf("rules go on after the deciding one: %v", d.Rules)
			}
		})
	}
}

func TestGrantedSlotsFitMemoryDiskPolicyAndGrant(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		request func(r *Request)
		policy  func(p *Policy)
		want    int
	}{
		"as asked":      {func(r *Request) { r.Slots = 2 }, nil, 2},
		"the machine":   {func(r *Request) { r.Slots = 100 }, nil, 4},
		"the policy":    {func(*Request) {}, func(p *Policy) { p.Limits.Chunks = 3 }, 3},
		"memory":        {func(r *Request) { r.Memory = 5 << 30 }, nil, 2}, // 80 % of 16 GiB
		"disk":          {func(r *Request) { r.Disk = 20 << 30 }, nil, 2},
		"the grant":     {func(r *Request) { r.Rights.Limits.MaxChunks = set(uint32(1)) }, nil, 1},
		"an allow line": {func(*Request) {}, func(p *Policy) { p.Allow = []PolicyPeer{{Peer: "bridge", Chunks: 2}} }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			p, r := DefaultPolicy(), someRequest("bridge", now)
			c.request(&r)
			if c.policy != nil {
				c.policy(&p)
			}
			if d := p.Decide(r, someMachine, now); !d.OK || d.Slots != c.want {
				t.Errorf("%d slots, want %d: %+v", d.Slots, c.want, d)
			}
		})
	}
}

// admits is the naive second judge: every condition as one expression, in no order.
func admits(p *Policy, r Request, m Machine, now time.Time) bool {
	parties := append([]protocol.PeerID{r.Peer}, r.Issuers...)
	var own PolicyPeer
	listed := false
	for _, id := range slices.Backward(parties) { // the bridge's own line wins
		for _, a := range slices.Backward(p.Allow) {
			if a.Peer == id {
				own, listed = a, true
			}
		}
	}
	least := func(all ...uint64) uint64 {
		n := uint64(0)
		for _, v := range all {
			if v > 0 && (n == 0 || v < n) {
				n = v
			}
		}
		return n
	}
	ok := true
	for _, id := range parties {
		ok = ok && !slices.Contains(p.Deny, id)
	}
	if !ok || r.Revoked || !r.Joined || r.Rights == nil || !r.Rights.Can(protocol.AbilityJobSubmit, now) {
		return false
	}
	g := r.Rights.Limits
	memory := min(m.Memory/100*uint64(p.Limits.MemoryPercent), m.Memory-min(m.Memory, nodeMemory))
	memory = least(memory, own.MemoryBytes, p.Limits.MemoryBytes)
	slots := int(least(uint64(r.Slots), uint64(m.Slots), uint64(p.Limits.Chunks), uint64(own.Chunks)))
	rank := map[string]int{"": 1, "dev": 1, "shared": 2, "strong": 3}
	want := max(rank[p.MinIsolation], rank[r.MinIsolation])
	if g.MinIsolation != nil {
		want = max(want, int(*g.MinIsolation))
	}
	best := 0
	for _, l := range m.Levels {
		best = max(best, int(l))
	}
	ask := max(m.Ask, p.MinPrice)
	return (p.AcceptFrom == "chained" || p.AcceptFrom == "listed" && listed) &&
		slices.Contains(p.Kinds, r.Kind) && (len(g.JobKinds) == 0 || slices.Contains(g.JobKinds, r.Kind)) &&
		r.Memory <= memory && r.Disk <= least(p.Limits.DiskBytes, own.DiskBytes, m.Disk) &&
		r.Wall <= time.Duration(least(uint64(p.Limits.Wall), uint64(own.Wall))) && (g.MaxWallS == nil || r.Wall <= time.Duration(*g.MaxWallS)*time.Second) &&
		slots > 0 && (g.MaxChunks == nil || *g.MaxChunks > 0) && rank[r.MinIsolation] > 0 && best >= want &&
		(r.Rate == 0 || r.Rate >= ask) && (g.MaxPrice == nil || ask <= *g.MaxPrice)
}

func TestThePolicyAgreesWithANaiveJudge(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	counts := map[bool]int{}
	for seed := range uint64(100_000) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		one := func(n int) bool { return rnd.IntN(n) == 0 }
		p, r, m := DefaultPolicy(), someRequest("bridge", now), someMachine
		p.AcceptFrom = []string{"chained", "chained", "listed", "nobody"}[rnd.IntN(4)]
		if one(3) {
			p.Allow = append(p.Allow, PolicyPeer{Peer: "bridge", MemoryBytes: uint64(rnd.IntN(3)) << 30, Chunks: rnd.IntN(3), Wall: time.Duration(rnd.IntN(3)) * time.Hour, DiskBytes: uint64(rnd.IntN(3)) << 30})
		}
		if one(3) {
			p.Allow = append(p.Allow, PolicyPeer{Peer: "root", MemoryBytes: uint64(rnd.IntN(3)) << 29})
		}
		if one(10) {
			p.Deny = []protocol.PeerID{[]protocol.PeerID{"bridge", "root", "somebody"}[rnd.IntN(3)]}
		}
		p.MinIsolation = []string{"dev", "shared", "strong"}[rnd.IntN(3)]
		p.MinPrice, m.Ask, r.Rate = uint64(rnd.IntN(3)), uint64(rnd.IntN(3)), uint64(rnd.IntN(4))
		r.Revoked, r.Joined = one(20), !one(20)
		r.Kind = []string{"map", "map", "task", "gang"}[rnd.IntN(4)]
		r.Memory, r.Disk, r.Wall = uint64(rnd.IntN(4))<<29, uint64(rnd.IntN(4))<<29, time.Duration(rnd.IntN(30))*time.Hour
		r.MinIsolation = []string{"", "shared", "strong", "odd"}[rnd.IntN(4)]
		m.Levels = [][]executor.Level{nil, {executor.LevelDev}, {executor.LevelShared, executor.LevelStrong}, {executor.LevelStrong}}[rnd.IntN(4)]
		if g := &r.Rights.Limits; one(3) {
			g.MaxWallS, g.MinIsolation = set(uint32(rnd.IntN(30)*3600)), set(uint32(1+rnd.IntN(4)))
			g.MaxChunks, g.MaxPrice = set(uint32(rnd.IntN(3))), set(uint64(rnd.IntN(3)))
			g.JobKinds = [][]string{nil, {"map"}, {"task"}}[rnd.IntN(3)]
		}
		if one(20) {
			r.Rights.Abilities = []string{protocol.AbilityAttest}
		}
		if one(20) {
			r.Rights = nil
		}
		got, want := p.Decide(r, m, now), admits(&p, r, m, now)
		counts[want]++
		if got.OK != want {
			t.Fatalf("seed %d: decision %+v, the naive judge says %t\npolicy %+v\nrequest %+v\nmachine %+v", seed, got, want, p, r, m)
		}
	}
	if counts[true] < 500 || counts[false] < 500 {
		t.Errorf("the draw is lopsided: %v", counts)
	}
}

func TestAPolicyThatCannotWorkNamesItsField(t *testing.T) {
	for field, change := range map[string]func(p *Policy){
		"AcceptFrom":           func(p *Policy) { p.AcceptFrom = "anybody" },
		"Limits.MemoryPercent": func(p *Policy) { p.Limits.MemoryPercent = 0 },
		"Limits.Chunks":        func(p *Policy) { p.Limits.Chunks = 0 },
		"Limits.Wall":          func(p *Policy) { p.Limits.Wall = 0 },
		"Limits.DiskBytes":     func(p *Policy) { p.Limits.DiskBytes = 0 },
		"MinIsolation":         func(p *Policy) { p.MinIsolation = "none" },
		"Kinds":                func(p *Policy) { p.Kinds = []string{"maps"} },
	} {
		p := DefaultPolicy()
		change(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "Policy."+field+" ") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestAConfigThatCannotWorkNamesItsField(t *testing.T) {
	for field, change := range map[string]func(c *Config){
		"Data": func(c *Config) { c.Data = "here" }, "Key": func(c *Config) { c.Key = "" }, "Scratch": func(c *Config) { c.Scratch = "shm" },
		"Slots": func(c *Config) { c.Slots = -1 }, "Ask": func(c *Config) { c.Ask = 1 << 60 }, "Version": func(c *Config) { c.Version = "" },
		"Drain": func(c *Config) { c.Drain = -1 }, "Buckets": func(c *Config) { c.Buckets = 0 }, "Idle": func(c *Config) { c.Idle = 0 },
		"Clock": func(c *Config) { c.Clock = nil }, "Schedule": func(c *Config) { c.Schedule.Beat = 0 },
	} {
		c := DefaultConfig("/data")
		change(&c)
		if _, err := New(c, nil, testLog()); err == nil || !strings.Contains(err.Error(), "configuration: "+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := DefaultConfig("/data").Validate(); err != nil {
		t.Error(err)
	}
}

func TestSlotsFollowCoresMemoryAndPolicy(t *testing.T) {
	for _, c := range []struct {
		slots, cores int
		memory       uint64
		want         int
	}{
		{0, 4, 64 << 30, 4}, {0, 64, 64 << 30, 8}, {0, 8, 2 << 30, 3}, {0, 1, 0, 1}, {0, 0, 1 << 20, 1}, {2, 64, 64 << 30, 2}, {100, 4, 64 << 30, 8},
	} {
		cfg := DefaultConfig("/data")
		cfg.Slots = c.slots
		if got := cfg.slots(c.cores, c.memory); got != c.want {
			t.Errorf("%s: %d slots, want %d", fmt.Sprint(c), got, c.want)
		}
	}
}
