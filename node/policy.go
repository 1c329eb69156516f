package node

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// Whom a policy accepts work from; "anybody" does not exist (trust.md 3).
const (
	AcceptNobody  = "nobody"  // AcceptNobody: no work at all.
	AcceptListed  = "listed"  // AcceptListed: peers in Policy.Allow, or whose chain has an issuer that is.
	AcceptChained = "chained" // AcceptChained: whoever has a chain from a root of a joined network.
)

// PolicyLimits bound what jobs get; with a grant's limits the tighter one counts.
type PolicyLimits struct {
	// MemoryPercent is the share of the machine's memory that all chunks together may use. Default 80.
	MemoryPercent int `json:"memory_percent,omitempty"`
	// MemoryBytes bounds the same in bytes. Default 0: the share alone.
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	// DiskBytes bounds what all chunks together may write, in bytes. Default 50 GiB.
	DiskBytes uint64 `json:"disk_bytes,omitempty"`
	// Chunks bounds how many run at once. Default 8.
	Chunks int `json:"chunks,omitempty"`
	// Wall is the longest run of a chunk. Default 24 h.
	Wall time.Duration `json:"wall,omitempty"`
}

// memory is how many bytes of a machine's memory chunks may use.
func (l *PolicyLimits) memory(total uint64) uint64 {
	m := total / 100 * uint64(l.MemoryPercent)
	if l.MemoryBytes > 0 {
		m = min(m, l.MemoryBytes)
	}
	return min(m, total-min(total, nodeMemory))
}

// PolicyPeer is a bridge or issuer that is let in, with tighter limits of its own; zero fields inherit.
type PolicyPeer struct {
	// Peer is the bridge, or an issuer in its chain.
	Peer protocol.PeerID `json:"peer"`
	// MemoryBytes, DiskBytes, Chunks and Wall tighten Policy.Limits for it.
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	// DiskBytes bounds what a chunk of it may write.
	DiskBytes uint64 `json:"disk_bytes,omitempty"`
	// Chunks bounds how many of its chunks run at once.
	Chunks int `json:"chunks,omitempty"`
	// Wall is the longest run of a chunk of it.
	Wall time.Duration `json:"wall,omitempty"`
}

// Policy is what the owner of a machine accepts (trust.md 3). Which networks count is Config.Networks.
type Policy struct {
	// AcceptFrom is nobody, listed or chained. Default chained.
	AcceptFrom string `json:"accept_from"`
	// Allow lists bridges or issuers, each with limits of its own.
	Allow []PolicyPeer `json:"allow,omitempty"`
	// Deny lists bridges or issuers that get nothing; it wins over everything else.
	Deny []protocol.PeerID `json:"deny,omitempty"`
	// Limits bound what jobs get.
	Limits PolicyLimits `json:"limits"`
	// MinIsolation is the least level that code of others runs under: dev, shared or strong. Default strong.
	MinIsolation string `json:"min_isolation"`
	// MinPrice is the least that is worked for, in micro-USD per slot-hour. Default 0. A bridge that names no
	// price (rate 0) pays the ask.
	MinPrice uint64 `json:"min_price,omitempty"`
	// Kinds are the kinds of jobs that are taken. Default map and task, all that this version runs.
	Kinds []string `json:"kinds,omitempty"`
}

// DefaultPolicy returns the defaults that the fields name.
func DefaultPolicy() Policy {
	return Policy{
		AcceptFrom: AcceptChained, MinIsolation: "strong", Kinds: []string{"map", "task"},
		Limits: PolicyLimits{MemoryPercent: 80, DiskBytes: 50 << 30, Chunks: 8, Wall: 24 * time.Hour},
	}
}

// Validate returns ErrConfig naming the first field that cannot be used.
func (p *Policy) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: Policy.%s %s", ErrConfig, field, fmt.Sprintf(format, args...))
	}
	switch {
	case p.AcceptFrom != AcceptNobody && p.AcceptFrom != AcceptListed && p.AcceptFrom != AcceptChained:
		return bad("AcceptFrom", "is %q, want nobody, listed or chained", p.AcceptFrom)
	case p.Limits.MemoryPercent < 1 || p.Limits.MemoryPercent > 100:
		return bad("Limits.MemoryPercent", "is %d, want 1..100", p.Limits.MemoryPercent)
	case p.Limits.Chunks < 1:
		return bad("Limits.Chunks", "is %d, want at least 1", p.Limits.Chunks)
	case p.Limits.Wall <= 0:
		return bad("Limits.Wall", "is %s, want more than 0", p.Limits.Wall)
	case p.Limits.DiskBytes == 0:
		return bad("Limits.DiskBytes", "is 0, want what jobs may write")
	case levelOf(p.MinIsolation) == 0 || p.MinIsolation == "":
		return bad("MinIsolation", "is %q, want dev, shared or strong", p.MinIsolation)
	}
	for _, k := range p.Kinds {
		if !slices.Contains([]string{"map", "gang", "service", "task"}, k) {
			return bad("Kinds", "names %q, want map, gang, service or task", k)
		}
	}
	return nil
}

// levelOf reads a level's word; an empty one is the lowest, 0 is unknown.
func levelOf(word string) executor.Level {
	for _, l := range []executor.Level{executor.LevelDev, executor.LevelShared, executor.LevelStrong} {
		if word == l.String() {
			return l
		}
	}
	if word == "" {
		return executor.LevelDev
	}
	return 0
}

// Request is a job at the door, as plain facts.
type Request struct {
	// Peer is the bridge, as its handshake proved.
	Peer protocol.PeerID
	// Issuers are the audiences and issuers of its chain, root's first.
	Issuers []protocol.PeerID
	// Rights are what the chain allows; nil when none was presented.
	Rights *protocol.Rights
	// Revoked says that a link was revoked.
	Revoked bool
	// Joined says that the chain counts in a network that the node has joined.
	Joined bool
	// Kind is the job's.
	Kind string
	// Memory and Disk are bytes that one chunk wants; Slots how many chunks at once.
	Memory, Disk uint64
	// Slots is how many chunks at once.
	Slots int
	// Wall is the longest run of a chunk; 0 leaves it to the node.
	Wall time.Duration
	// MinIsolation is the job's word.
	MinIsolation string
	// Rate is the most that is paid, in micro-USD per slot-hour; 0 pays any ask.
	Rate uint64
}

// Machine is what the policy is held against.
type Machine struct {
	// Memory and Disk are bytes that this machine has.
	Memory, Disk uint64
	// Slots is how many chunks run at once.
	Slots int
	// Ask is the price in micro-USD per slot-hour.
	Ask uint64
	// Levels are the isolation levels of the backends that can run the job.
	Levels []executor.Level
}

// Rule is one line of a decision.
type Rule struct {
	// Name is the rule: deny, revoked, root, ability, accept_from, kind, limits.memory and so on.
	Name string `json:"name"`
	// OK says that it lets the request pass.
	OK bool `json:"ok"`
	// Text is what was compared, for people.
	Text string `json:"text"`
}

// Decision is what a policy makes of a request.
type Decision struct {
	// OK says that the request is admitted.
	OK bool `json:"ok"`
	// Rule is the deciding one: the first that does not pass, else the last.
	Rule string `json:"rule"`
	// Code is the wire's word for a refusal, Text its wording with the fix.
	Code protocol.AuthCode `json:"code,omitempty"`
	// Text is the wording, with the fix.
	Text string `json:"text,omitempty"`
	// Rules are all that were looked at, in order.
	Rules []Rule `json:"rules"`
	// Slots is how many chunks at once are granted.
	Slots int `json:"slots,omitempty"`
	// Wall is the longest run of a chunk that is granted.
	Wall time.Duration `json:"wall,omitempty"`
	// Level is the isolation that a backend has to reach.
	Level executor.Level `json:"level,omitempty"`
}

// Decide holds a request against the policy: deny, revoked, root, accept_from, then limits, each met with the
// grant's. It is a function of its arguments.
func (p *Policy) Decide(r Request, m Machine, now time.Time) Decision {
	d := Decision{OK: true}
	rule := func(code protocol.AuthCode, name string, ok bool, format string, args ...any) bool {
		if !d.OK {
			return false
		}
		text := fmt.Sprintf(format, args...)
		d.Rules = append(d.Rules, Rule{name, ok, text})
		d.Rule = name
		if !ok {
			d.OK, d.Code, d.Text = false, code, name+": "+text
		}
		return ok
	}
	p.decideWho(r, now, rule)
	if d.OK {
		p.decideWhat(r, m, &d, rule)
	}
	return d
}

type ruling func(code protocol.AuthCode, name string, ok bool, format string, args ...any) bool

func (p *Policy) decideWho(r Request, now time.Time, rule ruling) {
	parties := append([]protocol.PeerID{r.Peer}, r.Issuers...)
	denied := slices.IndexFunc(parties, func(id protocol.PeerID) bool { return slices.Contains(p.Deny, id) })
	if denied >= 0 {
		rule(protocol.AuthPolicy, "deny", false, "%s is on the owner's deny list", parties[denied])
		return
	}
	rule(protocol.AuthPolicy, "deny", true, "nobody in the chain is denied")
	rule(protocol.AuthRevoked, "revoked", !r.Revoked, "revoked: %t", r.Revoked)
	rule(protocol.AuthRoot, "root", r.Joined && r.Rights != nil, "a chain from a root of a joined network: %t", r.Joined && r.Rights != nil)
	if r.Rights == nil {
		return
	}
	rule(protocol.AuthAbility, "ability", r.Rights.Can(protocol.AbilityJobSubmit, now), "%s until %s: %t", protocol.AbilityJobSubmit,
		r.Rights.Expires.UTC().Format(time.RFC3339), r.Rights.Can(protocol.AbilityJobSubmit, now))
	switch p.AcceptFrom {
	case AcceptChained:
		rule(protocol.AuthPolicy, "accept_from", true, "chained: any peer with a chain")
	case AcceptListed:
		rule(protocol.AuthPolicy, "accept_from", p.listed(r) != nil, "listed: %s is in allow: %t; add it to allow, or say accept_from: chained", r.Peer, p.listed(r) != nil)
	default:
		rule(protocol.AuthPolicy, "accept_from", false, "nobody: the owner takes no work; say accept_from: chained")
	}
}

// listed returns the entry of Allow that is about a party of the request, the bridge's own first.
func (p *Policy) listed(r Request) *PolicyPeer {
	for _, id := range append([]protocol.PeerID{r.Peer}, r.Issuers...) {
		if i := slices.IndexFunc(p.Allow, func(a PolicyPeer) bool { return a.Peer == id }); i >= 0 {
			return &p.Allow[i]
		}
	}
	return nil
}

// tighter is the smaller of two bounds of which 0 means none.
func tighter[T int | uint64 | time.Duration](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func (p *Policy) decideWhat(r Request, m Machine, d *Decision, rule ruling) {
	own, grant := PolicyPeer{}, r.Rights.Limits
	if a := p.listed(r); a != nil {
		own = *a
	}
	rule(protocol.AuthPolicy, "kind", len(p.Kinds) == 0 || slices.Contains(p.Kinds, r.Kind), "%s among %s", r.Kind, strings.Join(p.Kinds, " "))
	if len(grant.JobKinds) > 0 {
		rule(protocol.AuthLimit, "grant.job_kinds", slices.Contains(grant.JobKinds, r.Kind), "%s among %s", r.Kind, strings.Join(grant.JobKinds, " "))
	}
	memory := tighter(p.Limits.memory(m.Memory), own.MemoryBytes)
	rule(protocol.AuthPolicy, "limits.memory", r.Memory <= memory, "a chunk wants %s of %s", size(r.Memory), size(memory))
	disk := tighter(tighter(p.Limits.DiskBytes, own.DiskBytes), m.Disk)
	rule(protocol.AuthPolicy, "limits.disk", r.Disk <= disk, "a chunk wants %s of %s", size(r.Disk), size(disk))

	d.Wall = tighter(p.Limits.Wall, own.Wall)
	rule(protocol.AuthPolicy, "limits.wall", r.Wall <= d.Wall, "a chunk may run %s, at most %s", r.Wall, d.Wall)
	if grant.MaxWallS != nil {
		most := time.Duration(*grant.MaxWallS) * time.Second
		rule(protocol.AuthLimit, "grant.max_wall_s", r.Wall <= most, "a chunk may run %s, the grant allows %s", r.Wall, most)
		d.Wall = min(d.Wall, most)
	}
	d.Wall = tighter(d.Wall, r.Wall)

	d.Slots = min(r.Slots, tighter(min(m.Slots, p.Limits.Chunks), own.Chunks))
	if r.Memory > 0 {
		d.Slots = min(d.Slots, int(min(memory/r.Memory, maxSlots)))
	}
	if r.Disk > 0 {
		d.Slots = min(d.Slots, int(min(disk/r.Disk, maxSlots)))
	}
	if grant.MaxChunks != nil {
		d.Slots = min(d.Slots, int(min(*grant.MaxChunks, maxSlots)))
	}
	rule(protocol.AuthLimit, "limits.chunks", d.Slots > 0, "%d of %d chunks at once", d.Slots, r.Slots)

	least := max(levelOf(p.MinIsolation), levelOf(r.MinIsolation))
	known := levelOf(r.MinIsolation) != 0
	if grant.MinIsolation != nil {
		least = max(least, executor.Level(min(*grant.MinIsolation, 255)))
	}
	d.Level = least
	best := executor.Level(0)
	if len(m.Levels) > 0 {
		best = slices.Max(m.Levels)
	}
	rule(protocol.AuthPolicy, "min_isolation", known && best >= least, "%s is wanted, the best backend for this job gives %s", level(least), level(best))

	ask := max(m.Ask, p.MinPrice)
	rule(protocol.AuthPolicy, "min_price", r.Rate == 0 || r.Rate >= ask, "%d micro-USD per slot-hour are offered, %d are asked", r.Rate, ask)
	if grant.MaxPrice != nil {
		rule(protocol.AuthLimit, "grant.max_price", ask <= *grant.MaxPrice, "%d micro-USD per slot-hour are asked, the grant allows %d", ask, *grant.MaxPrice)
	}
}

func level(l executor.Level) string {
	switch {
	case l == 0:
		return "none"
	case l > executor.LevelStrong:
		return "confidential"
	}
	return l.String()
}

// size is a number of bytes for people.
func size(n uint64) string {
	for _, u := range []struct {
		name string
		n    uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n {
			return strconv.FormatFloat(float64(n)/float64(u.n), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatUint(n, 10) + " B"
}
