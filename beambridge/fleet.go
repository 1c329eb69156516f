package beambridge

import (
	"context"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// lookEvery is how often the directory is looked through without news; newsGap is the least time between two
	// looks that news ask for, and newsAfter the wait for records that a heartbeat makes the directory fetch.
	lookEvery = 2 * time.Second
	newsGap   = 50 * time.Millisecond
	newsAfter = 300 * time.Millisecond
	// wasmStart is what starting a module costs a node that has it compiled (execution.md 2).
	wasmStart = 25 * time.Millisecond
	// unknownFree is the part of a machine's memory that counts as free where its heartbeat does not say.
	unknownFree = 0.8
)

// watch follows the directory and tells the engine which nodes are there.
func (b *Bridge) watch(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var again time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.news:
			if again.IsZero() {
				again = b.cfg.Clock().Add(newsAfter)
			}
			timer.Reset(newsGap)
		case <-timer.C:
			found, _, err := b.dir.Find(ctx, dht.Query{Literal: true})
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				b.log.Warn("the directory does not answer", "err", err)
			} else if err := b.engine.post(ctx, func(t *turn) { t.seenFleet(found) }); err != nil {
				return nil
			}
			next := lookEvery
			if now := b.cfg.Clock(); !again.IsZero() {
				if again.After(now) {
					next = again.Sub(now)
				} else {
					again = time.Time{}
				}
			}
			timer.Reset(next)
		}
	}
}

// stirred tells that the directory has heard something; it never blocks.
func (b *Bridge) stirred() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// seenFleet takes over what the directory knows.
func (t *turn) seenFleet(found []dht.Candidate) {
	e := t.e
	here := make(map[protocol.PeerID]bool, len(found))
	changed, warm := false, 0
	for i := range found {
		c := &found[i]
		if c.Peer == e.bridge.self || !isWorker(c.Capability) {
			continue
		}
		here[c.Peer] = true
		n := e.node(c.Peer)
		changed = t.described(n, c) || changed
		switch {
		case n.wanted():
			e.linkTo(n)
		case n.ready && warm < e.bridge.cfg.Links:
			warm++
			e.linkTo(n)
		case n.link != nil && !n.wanted():
			e.unlink(n)
		}
	}
	for id, n := range e.nodes {
		if here[id] {
			continue
		}
		if n.ready {
			n.ready, changed = false, true
		}
		if !n.wanted() {
			e.unlink(n)
			if n.busy == 0 && t.now.Sub(n.heard) > time.Hour {
				delete(e.nodes, id)
			}
		}
	}
	if changed {
		e.fleet++
		for _, j := range e.jobs {
			e.replace(j, t.now)
		}
	}
}

// described takes over a node's record and heartbeat; it reports whether it became fit for work or unfit.
func (t *turn) described(n *node, c *dht.Candidate) (changed bool) {
	b := t.e.bridge
	ready := c.State == "READY" || c.State == "BUSY"
	changed = ready != n.ready
	if ready && !n.ready {
		b.auth.forgive(n.id)
		if n.link != nil {
			n.link.retry()
		}
		for _, j := range t.e.jobs { // what it said when it was not ready does not hold any more
			delete(j.refused, n.id)
		}
	}
	n.ready = ready
	if c.Availability != nil {
		n.alive(t.now.Add(-c.Age))
	}
	group, anchor := b.groupOf(n.id, c.Capability, t.now)
	if n.group == "" || n.anchor != anchor {
		t.e.judge.Meet(n.id, group, anchor, t.now)
		t.judged[n.id] = struct{}{}
	}
	n.group, n.anchor = group, anchor
	if n.group == "" {
		n.group = n.id.String() // met, with an operator of its own
	}
	n.model = noModel
	if g := c.Capability.GetGpus(); len(g) > 0 {
		n.model = g[0].GetModel()
	}
	n.ask = int64(min(c.Capability.GetPolicy().GetPriceUusdPerHour(), 1<<53))
	n.cores = int(max(c.Capability.GetHost().GetCores(), c.Capability.GetHost().GetThreads()))
	b.host.Host().Peerstore().AddAddrs(n.id, addrsOf(n.id, c.Capability.GetAddrs()).Addrs, peerstore.TempAddrTTL)
	return changed
}

// groupOf is whom a node is counted with: its operator if that has signed for it, else the network that its
// address lies in; empty where neither is known, and it stands for itself.
func (b *Bridge) groupOf(id protocol.PeerID, c *pb.Capability, now time.Time) (group string, anchor bool) {
	if group, anchor = b.operators.of(id, c, now); group == "" {
		group = subnetOf(addrsOf(id, c.GetAddrs()).Addrs)
	}
	return group, anchor
}

// candidates are the nodes of the directory as selection takes them, for one job, before anybody is pinged: round trips
// are what is known of them, and a where that asks for them holds for those too whose round trip nobody knows.
func (b *Bridge) candidates(ctx context.Context, s *placing) ([]cluster.Candidate, []dht.Candidate, error) {
	found, _, err := b.dir.Find(ctx, dht.Query{Literal: true})
	if err != nil {
		return nil, nil, err
	}
	fits := map[protocol.PeerID]bool{}
	if s.want.Where != "" {
		if s.where, err = protocol.ParseFilter(s.want.Where); err != nil {
			return nil, nil, err
		}
		q := b.whereOf(s, pingFresh)
		q.Maybe = s.whereAsksRTT() // who is far is found out among those who fit otherwise
		fitting, _, err := b.dir.Find(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		for i := range fitting {
			fits[fitting[i].Peer] = true
		}
	}
	now := b.cfg.Clock()
	out, from := make([]cluster.Candidate, 0, len(found)), make([]dht.Candidate, 0, len(found))
	for _, c := range found {
		if c.Peer == b.self || !isWorker(c.Capability) {
			continue
		}
		x := b.candidate(&c, s, now)
		x.Where = s.want.Where == "" || fits[c.Peer]
		out, from = append(out, x), append(from, c)
	}
	return out, from, nil
}

// believes says whether a label is the signed word of this bridge itself, which has measured the node's line, of its
// operator, of a root of its network, or of somebody whom it has been told to believe.
func (b *Bridge) believes(id protocol.PeerID, l *pb.Label, now time.Time) bool {
	issuer, ok := b.operators.labels.verify(l, id, now)
	return ok && (issuer == b.self || issuer == b.operators.own || b.network.IsRoot(issuer) || slices.Contains(b.cfg.Issuers, issuer))
}

// vouched is the success probability of an anchor: its operator's word counts as the evidence of a node that has
// just been vetted, on top of its own (docs/adr/0005). Without it the first node of a private network to finish a
// chunk would look ten times as reliable as its equals, and they would get nothing.
func vouched(s *reputation.Score) float64 {
	p := 1.0
	for _, c := range s.Criteria {
		if c.Criterion == protocol.CriterionCompletion || c.Criterion == protocol.CriterionCorrectness {
			p *= reputation.Lower(c.Good+vettedChecks, c.Bad)
		}
	}
	return p
}

// vettedChecks is how many checks vet a node (trust.md 9).
const vettedChecks = 25

// candidate puts one node into the units of selection.
func (b *Bridge) candidate(c *dht.Candidate, s *placing, now time.Time) cluster.Candidate {
	rec, av := c.Capability, c.Availability
	h, place := rec.GetHost(), b.placeOf(c.Peer, rec, now)
	group, anchor := b.groupOf(c.Peer, rec, now)
	score := b.engine.judge.Score(c.Peer, now)
	x := cluster.Candidate{
		Peer: c.Peer, Group: group, Site: hex.EncodeToString(rec.GetNetwork().GetSiteTag()), Where: true,
		Ready: c.State == "READY" || c.State == "BUSY", Fresh: c.State != "" && c.State != "STALE",
		Cores: float64(max(h.GetCores(), h.GetThreads())), Memory: memoryOf(rec, av), Disk: diskOf(rec, av),
		Region: place.Macro, Country: place.Country, Subdivision: place.Subdivision, RTT: b.rtt(c.Peer, rec), Price: rec.GetPolicy().GetPriceUusdPerHour(),
		O: score.O, P: score.P, Checks: score.Checks, Standing: standingOf(score, anchor), Start: wasmStart,
	}
	if x.Standing == cluster.StandingAnchor {
		x.P = vouched(&score)
	}
	for _, text := range h.GetExecutors() {
		name, level, _ := strings.Cut(text, ":")
		iso, err := cluster.ParseIsolation(level)
		if err == nil && strings.HasPrefix(name, "python") {
			x.Hosts = append(x.Hosts, name)
		}
		for _, k := range []cluster.Backend{cluster.BackendWasm, cluster.BackendImage, cluster.BackendHost} {
			if err == nil && k.String() == name {
				x.Runs[k] = max(x.Runs[k], iso)
			}
		}
	}
	for _, g := range rec.GetGpus() {
		n := int(g.GetCount()) - int(g.GetFaulted())
		if g.GetMigProfile() != "" {
			n = 0 // jobs ask for GPUs: a slice is none
		}
		x.GPUs = append(x.GPUs, cluster.GPU{Model: g.GetModel(), Count: n, VRAMGB: protocol.NominalGB(g.GetVramBytes())})
	}
	for _, l := range rec.GetLabels() {
		if !b.believes(c.Peer, l, now) {
			continue // what a node says of itself satisfies no requirement and earns no score
		}
		x.Labels = append(x.Labels, l.GetKey()+"="+l.GetValue())
		if l.GetKey() == protocol.LabelTier {
			// Who measures finds no more than its own line carries, so the highest of those who are believed is nearest.
			tier, _ := cluster.ParseTier(l.GetValue())
			x.Tier = max(x.Tier, tier)
			x.Bandwidth = x.Tier.Down()
		}
	}
	x.Slots, x.Queue = slotsOf(&x, s.want, av, now)
	x.ImageMissing, x.DataMissing = s.missing(rec)
	model := noModel
	if len(x.GPUs) > 0 {
		model = x.GPUs[0].Model
	}
	x.SecondsPerInput = b.engine.paces.seconds(s.class, model)
	return x
}

func memoryOf(c *pb.Capability, av *pb.Availability) uint64 {
	if free := av.GetRamFreeMib(); free > 0 {
		return uint64(free) << 20
	}
	return uint64(float64(c.GetHost().GetRamBytes()) * unknownFree)
}

func diskOf(c *pb.Capability, av *pb.Availability) (n uint64) {
	if free := av.GetDiskFreeGib(); free > 0 {
		return uint64(free) << 30
	}
	for _, s := range c.GetHost().GetStorage() {
		n += s.GetUsable()
	}
	return n
}

// slotsOf estimates how many chunks the node could start now, and if none how long that takes; the offer says.
func slotsOf(x *cluster.Candidate, want cluster.Job, av *pb.Availability, now time.Time) (int, time.Duration) {
	total := 1
	if want.Cores > 0 {
		total = max(1, int(x.Cores/want.Cores))
	}
	if want.GPUCount > 0 {
		devices := 0
		for i := range x.GPUs {
			free := x.GPUs[i].Count
			for _, g := range av.GetGroups() {
				if int(g.GetIndex()) == i {
					free = min(free, int(g.GetFree()))
				}
			}
			devices += free / want.GPUCount
		}
		total = min(total, devices)
	} else {
		total -= int(av.GetRunning())
	}
	if total > 0 {
		return total, 0
	}
	wait := time.Second
	if at := av.GetFreeAt(); at > 0 {
		wait = max(wait, time.UnixMilli(at).Sub(now))
	}
	return 0, wait
}

func standingOf(s reputation.Score, anchor bool) cluster.Standing {
	switch {
	case s.State.Barred():
		return cluster.StandingBarred
	case anchor || s.Anchor:
		return cluster.StandingAnchor
	case s.Vetted():
		return cluster.StandingVetted
	}
	return cluster.StandingProbation
}

// missing is what a node would have to fetch of module and volumes, bytes.
func (s *placing) missing(c *pb.Capability) (image, data uint64) {
	left := func(root []byte, size uint64) uint64 {
		for _, v := range c.GetVolumes() {
			if string(v.GetRoot()) == string(root) {
				return size - size*uint64(v.GetPerMille())/1000
			}
		}
		return size
	}
	if m := s.terms.Run.Module; m.Defined() {
		image = left(m.Bytes(), s.terms.Run.ModuleBytes)
	}
	for _, v := range s.terms.Volumes {
		data += left(v.Root.Bytes(), v.Bytes)
	}
	return image, data
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// are says that so many are something: "1 node is", "2 nodes are".
func are(n int, what string) string {
	if n == 1 {
		return count(n, what) + " is"
	}
	return count(n, what) + " are"
}
