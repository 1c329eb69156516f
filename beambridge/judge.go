package beambridge

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
)

// ending is an attempt that has ended, or a chunk, in the order in which they did.
type ending struct {
	a      *attempt
	job    *job // set for a chunk
	first  uint64
	winner *attempt // nil for a chunk that failed
}

// settle judges what has ended in this turn: who caused it, who pays, what it says of the node. It runs after
// the turn's receipts were taken up, for they say how much work was behind it.
func (t *turn) settle() {
	for len(t.ends) > 0 {
		ends := t.ends
		t.ends = nil
		for _, x := range ends {
			switch {
			case x.job != nil:
				t.judgeChunk(x)
			case x.a != nil && !x.a.final:
				t.judgeAttempt(x.a)
			}
		}
	}
}

// judgeAttempt gives an ended attempt its blame, payer and observations (trust.md 9, settlement.md 2).
func (t *turn) judgeAttempt(a *attempt) {
	j, state := a.job, cluster.AttemptState(a.row.State)
	reason := a.row.Reason
	if state == cluster.AttemptDone {
		reason = protocol.ReasonDone
	}
	blame := protocol.BlameNobody
	if reason != protocol.ReasonDone {
		blame = reputation.Blamed(reputation.Ended{Reason: reason, CutOff: state == cluster.AttemptLost && t.e.cutOff(t.now)})
	}
	a.final = true
	a.payer = settlement.PaidBy(settlement.Ending{
		Reason: reason, Blame: blame, Accounted: a.accounted, Asked: a.asked, Audit: a.extra && !a.accounted,
	})
	t.bill(a)
	l := j.line(a.row.Node)
	l.cpu, l.blocks = l.cpu+a.row.CPUMS, l.blocks+a.row.BlocksFetched
	l.run += a.row.RunUS
	t.e.busy(a.row.Node, -1)
	if state == cluster.AttemptDone {
		l.ended++
	} else if blame != protocol.BlameNobody || state == cluster.AttemptFailed {
		l.failed++
	}
	if x, ok := j.retried[a.row.First]; ok && state == cluster.AttemptLost {
		x.LostNode, x.Reason = a.row.Node, reason.String()
		j.retried[a.row.First] = x
	}
	if blame == protocol.BlameJob {
		j.faults[a.row.First] = append(j.faults[a.row.First], fault{a.row.Node, a.row.Group, a.row.ID, reason, float64(a.row.CPUMS) / 1000})
		return // nobody knows yet; another group may complete it
	}
	o, ok := reputation.FromOutcome(t.seen(a, reason, blame))
	if !ok {
		return
	}
	t.observe(o)
	if state == cluster.AttemptLost && o.Bad > 0 {
		a.held = &o
	}
	t.checked(a, reason)
	t.raced(a, reason)
}

// seen is an attempt as reputation takes it.
func (t *turn) seen(a *attempt, reason protocol.Reason, blame protocol.Blame) reputation.Attempt {
	x := reputation.Attempt{Node: a.row.Node, Group: a.row.Group, Reason: reason, Blame: blame, CPUSeconds: float64(a.row.CPUMS) / 1000, At: t.now, Ref: a.row.ID.String()}
	if a.job.want.GPUCount > 0 {
		x.GPUSeconds = float64(a.row.RunUS) / 1e6
	}
	return x
}

// checked makes observations of correctness where copies of a chunk were compared. Whoever differs from what
// the others agree on is only convicted when an anchor is among them (trust.md 8).
func (t *turn) checked(a *attempt, reason protocol.Reason) {
	copies := a.job.compared[a.row.First]
	if len(copies) < 2 {
		return
	}
	switch reason {
	case protocol.ReasonDone:
		t.observe(reputation.FromCheck(t.seen(a, reason, protocol.BlameNobody), reputation.CheckExact, true))
	case protocol.ReasonResultWrong:
		kind := reputation.CheckDisputed
		for _, o := range copies {
			if o.row.State == string(cluster.AttemptDone) && t.e.isAnchor(o.row.Node) {
				kind = reputation.CheckExact
			}
		}
		t.observe(reputation.FromCheck(t.seen(a, reason, protocol.BlameNode), kind, false))
	}
}

// raced compares a run with what its class takes elsewhere.
func (t *turn) raced(a *attempt, reason protocol.Reason) {
	if reason != protocol.ReasonDone || a.row.RunUS <= 0 {
		return
	}
	n := int64(a.row.End - a.row.First)
	own := time.Duration(a.row.RunUS/n) * time.Microsecond
	median, samples, groups := t.e.paces.median(a.job.class, t.e.model(a.row.Node))
	if o, ok := reputation.FromPerformance(t.seen(a, reason, protocol.BlameNobody), own, median, samples, groups); ok {
		t.observe(o)
	}
	t.e.paces.learn(a.job.class, t.e.model(a.row.Node), groupOf(a.row), own, t.now)
}

// judgeChunk corrects blame when a chunk ends: what the job was blamed for is the node's fault when another
// group could do it (Render's rule), and stays the job's when the chunk failed.
func (t *turn) judgeChunk(x ending) {
	faults := x.job.faults[x.first]
	delete(x.job.faults, x.first)
	delete(x.job.compared, x.first)
	if x.winner == nil {
		return
	}
	for i, f := range faults {
		if i > 0 || f.node == x.winner.row.Node || f.group != "" && f.group == x.winner.row.Group {
			continue // only the first, and only by another group; later ones may have met the same trap
		}
		if reputation.Blamed(reputation.Ended{Reason: f.reason, ElsewhereDone: true, AlikeGroups: alike(faults, f)}) != protocol.BlameNode {
			continue
		}
		if o, ok := reputation.FromOutcome(reputation.Attempt{
			Node: f.node, Group: f.group, Reason: f.reason, Blame: protocol.BlameNode, CPUSeconds: f.cpu, At: t.now, Ref: f.lease.String(),
		}); ok {
			t.observe(o)
		}
	}
}

// alike counts the groups on which a chunk ended as it did in f.
func alike(faults []fault, f fault) int {
	groups := map[string]bool{}
	for _, o := range faults {
		if o.reason == f.reason {
			groups[o.group+"\x00"] = true
		}
	}
	return len(groups)
}

// returned takes back what was held against a node for a lease that it turned out to have kept.
func (t *turn) returned(a *attempt) {
	if a.held == nil {
		return
	}
	o := *a.held
	a.held = nil
	if err := t.e.judge.Amend(o, t.now); err == nil {
		t.judged[o.Node] = struct{}{}
	}
}

// observe adds an observation to the book; its node's state is written with this turn.
func (t *turn) observe(o reputation.Observation) {
	change, err := t.e.judge.Observe(o)
	if err != nil {
		t.e.log.Warn("an observation was not taken", "peer", o.Node, "err", err)
		return
	}
	t.judged[o.Node] = struct{}{}
	t.moved(o.Node, change)
}

// convict bars a node for good on a proof.
func (t *turn) convict(id protocol.PeerID, reason protocol.Reason, ref string) {
	t.judged[id] = struct{}{}
	t.moved(id, t.e.judge.Convict(id, reason, ref, t.now))
}

// moved follows a change of a node's state: who is barred is taken out of every cluster.
func (t *turn) moved(id protocol.PeerID, change reputation.Transition) {
	if !change.Changed() {
		return
	}
	t.e.log.Info("a node's standing changed", "peer", id, "from", change.From, "to", change.To)
	if !change.To.Barred() {
		return
	}
	for _, j := range t.e.jobsOf(id) {
		if change.To == reputation.StateDisqualified {
			t.apply(j, j.tracker.Drop(id, protocol.ReasonRevoked, "its node was disqualified"))
		}
		t.leave(j, id)
	}
}

// writeScores keeps the states of the nodes that this turn has judged.
func (t *turn) writeScores(tx *store.Tx) error {
	rows := make([]store.Score, 0, len(t.judged))
	for id := range t.judged {
		raw, err := t.e.judge.Snapshot(id)
		if err != nil {
			return fmt.Errorf("keeping the score of %s: %w", id, err)
		}
		rows = append(rows, store.Score{Node: id, Body: raw})
	}
	return tx.PutScores(rows)
}

// uptime judges the hours that have passed since the last one: of which sixths a node was heard of.
func (t *turn) uptime() {
	hour := t.now.Unix() / 3600
	if t.e.hour == 0 {
		t.e.hour = hour
	}
	for ; t.e.hour < hour; t.e.hour++ {
		from := time.Unix(t.e.hour*3600, 0)
		for id, n := range t.e.nodes {
			if n.since.IsZero() || n.since.After(from) {
				continue
			}
			heard := 0
			for k := range 6 {
				at := from.Add(time.Duration(k) * 10 * time.Minute)
				if n.anyIn(at, at.Add(10*time.Minute)) {
					heard++
				}
			}
			if heard > 0 || n.wanted() {
				t.observe(reputation.FromUptime(id, heard, t.now))
			}
		}
	}
}

// cutOff says that more than half of the nodes that ought to be heard of are silent: then it is this bridge
// that was away, and nobody is blamed.
func (e *engine) cutOff(now time.Time) bool {
	linked, silent := 0, 0
	for _, n := range e.nodes {
		if n.link == nil || n.since.IsZero() {
			continue
		}
		linked++
		if now.Sub(n.heard) > leaseTTL {
			silent++
		}
	}
	return silent*2 > linked
}

// groupOf is an attempt's operator, or its node where that is unknown.
func groupOf(l store.Lease) string {
	if l.Group != "" {
		return l.Group
	}
	return l.Node.String()
}

// subnetOf is the network that a node's address lies in: /24, or /48 of IPv6 (trust.md 1). Loopback and private
// addresses tell nothing, there each peer stands alone.
func subnetOf(addrs []multiaddr.Multiaddr) string {
	for _, a := range addrs {
		ip, err := manet.ToIP(a)
		if err != nil {
			continue
		}
		n, ok := netip.AddrFromSlice(ip)
		if !ok {
			continue
		}
		n = n.Unmap()
		if n.IsLoopback() || n.IsPrivate() || n.IsUnspecified() || n.IsLinkLocalUnicast() {
			continue
		}
		bits := 24
		if n.Is6() {
			bits = 48
		}
		if p, err := n.Prefix(bits); err == nil {
			return p.String()
		}
	}
	return ""
}

// addrsOf reads a record's addresses.
func addrsOf(id protocol.PeerID, raw [][]byte) peer.AddrInfo {
	info := peer.AddrInfo{ID: id}
	for _, b := range raw {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}
