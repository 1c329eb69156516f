package dht

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// SurveyPlan says how a survey goes about (discovery.md 10).
type SurveyPlan struct {
	// Parallel bounds the peers that are asked at once. Default 200.
	Parallel int
	// Pace is how many new peers are dialled a second. Default 50.
	Pace int
	// VisitTimeout bounds the visit of one peer. Default 20 s.
	VisitTimeout time.Duration
	// SweepTimeout bounds the scan of one server. Default 5 min.
	SweepTimeout time.Duration
	// Listen is how long heartbeats are listened to at least, from the start on; it needs a directory with
	// Shards. Default 120 s.
	Listen time.Duration
	// Goal is the Coverage.Share that is wanted; below it the passes are made again. Default 0.99.
	Goal float64
	// Rounds is how often the two passes are made at most. Default 3.
	Rounds int
	// MaxPeers bounds the peers that are learnt of, so that liars cannot fill the memory. Default 1,000,000.
	MaxPeers int
}

// DefaultSurveyPlan returns the defaults that the fields' comments name.
func DefaultSurveyPlan() SurveyPlan {
	return SurveyPlan{
		Parallel: 200, Pace: 50, VisitTimeout: 20 * time.Second, SweepTimeout: 5 * time.Minute, Listen: 2 * time.Minute,
		Goal: 0.99, Rounds: 3, MaxPeers: 1_000_000,
	}
}

// Validate returns ErrConfig with the name of the first field that cannot be used.
func (p SurveyPlan) Validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"Parallel", p.Parallel},
		{"Pace", p.Pace},
		{"VisitTimeout", int(p.VisitTimeout)},
		{"SweepTimeout", int(p.SweepTimeout)},
		{"Rounds", p.Rounds},
		{"MaxPeers", p.MaxPeers},
	} {
		if f.value <= 0 {
			return fmt.Errorf("%w: SurveyPlan.%s has to be above 0", ErrConfig, f.name)
		}
	}
	if p.Listen < 0 || !(p.Goal > 0 && p.Goal <= 1) {
		return fmt.Errorf("%w: SurveyPlan.Listen is below 0, or Goal %v not within 0..1", ErrConfig, p.Goal)
	}
	return nil
}

// survey is one run.
type survey struct {
	d    *Directory
	plan SurveyPlan
	f    *Findings
	take func(SurveyEvent)
	pace *rate.Limiter
	seed uint64

	events sync.Mutex // held while an event is taken: they are told one after the other

	mu      sync.Mutex
	changed *sync.Cond // over mu
	known   map[peer.ID][]multiaddr.Multiaddr
	todo    []peer.ID
	missed  map[peer.ID]bool // visited in vain; a new address is worth another try, once
	active  int
	pass    map[peer.ID]int // which half a server belongs to
	halves  [2]int          // sizes
	swept   map[peer.ID]bool
	heard   map[peer.ID]uint64 // sequence numbers of heartbeats that were taken from the replica
}

// Survey reads the whole network: it walks the routing tables from the seeds and the peers that are connected,
// asks every peer for itself, scans every server in two passes over disjoint halves, visits whom the records
// name, and takes in the heartbeats that are heard meanwhile. What it learns goes into f and, one at a time,
// to take, which may keep the events; a later Survey with Findings that have taken them goes on where the
// first one ended. It ends with nil when nothing is left to ask, with ctx's error when that ends before, and
// with ErrNoServers when nobody serves the directory. The directory has to be running.
func (d *Directory) Survey(ctx context.Context, plan SurveyPlan, seeds []peer.AddrInfo, f *Findings, take func(SurveyEvent)) error {
	if err := plan.Validate(); err != nil {
		return err
	}
	if err := d.up(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	seed := d.rnd.Uint64()
	d.mu.Unlock()
	s := &survey{
		d: d, plan: plan, f: f, take: take, seed: seed, pace: rate.NewLimiter(rate.Limit(plan.Pace), plan.Pace),
		known: map[peer.ID][]multiaddr.Multiaddr{}, pass: map[peer.ID]int{}, swept: map[peer.ID]bool{}, missed: map[peer.ID]bool{}, heard: map[peer.ID]uint64{},
	}
	s.changed = sync.NewCond(&s.mu)
	listened := time.NewTimer(plan.Listen)
	defer listened.Stop()
	for _, info := range seeds {
		s.want(info.ID, info.Addrs)
	}
	for _, id := range append(d.host.Network().Peers(), d.kad.RoutingTable().ListPeers()...) {
		s.want(id, d.host.Peerstore().Addrs(id))
	}
	s.resume()
	if err := s.crawl(ctx); err != nil {
		return err
	}
	return s.listen(ctx, listened.C)
}

// resume takes up what the findings know already: visited peers are not visited again, and servers that have
// answered are not scanned again in this round.
func (s *survey) resume() {
	for _, sw := range s.f.Sweeps() {
		s.pass[sw.Server] = sw.Pass
		s.halves[sw.Pass]++
		s.swept[sw.Server] = sw.Err == ""
	}
	for _, v := range s.f.Visits() {
		s.known[v.Peer] = v.Addrs
		for _, n := range v.Neighbors {
			s.want(n.ID, n.Addrs)
		}
	}
	for _, r := range s.f.Records() {
		s.wantOwner(r.Peer, r.Record)
	}
}

// crawl walks, scans and visits until nothing new turns up.
func (s *survey) crawl(ctx context.Context) error {
	s.walk(ctx)
	if s.f.Counts().Servers == 0 && ctx.Err() == nil {
		return ErrNoServers
	}
	for round := range s.plan.Rounds {
		if round > 0 {
			s.mu.Lock()
			clear(s.swept)
			s.mu.Unlock()
		}
		for {
			before := s.f.Counts()
			s.sweep(ctx, 0)
			s.sweep(ctx, 1)
			s.absorb()
			s.walk(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if s.f.Counts().Servers == before.Servers {
				break
			}
		}
		if s.f.Coverage().Share() >= s.plan.Goal {
			break
		}
	}
	return nil
}

// listen takes in heartbeats until the time is over, and visits whom they name.
func (s *survey) listen(ctx context.Context, over <-chan time.Time) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for last := s.plan.Listen == 0; ; {
		s.absorb()
		s.walk(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if last { // who has come since the passes is scanned too
			s.sweep(ctx, 0)
			s.sweep(ctx, 1)
			s.walk(ctx)
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-over:
			last = true
		}
	}
}

// event tells of something, one after the other.
func (s *survey) event(e SurveyEvent) {
	s.events.Lock()
	defer s.events.Unlock()
	s.f.Take(e)
	s.take(e)
}

// want makes sure that a peer gets visited, once.
func (s *survey) want(id peer.ID, addrs []multiaddr.Multiaddr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.known[id]
	if !known && len(s.known) >= s.plan.MaxPeers || id == s.d.host.ID() || id.Validate() != nil {
		return
	}
	const most = 32 // addresses of a peer
	before := len(old)
	for _, a := range addrs {
		if len(old) < most && !slices.ContainsFunc(old, a.Equal) {
			old = append(old, a)
		}
	}
	s.known[id] = old
	again := s.missed[id] && len(old) > before
	if again {
		s.missed[id] = false
	}
	if again || !known && !s.f.visited(id) {
		s.todo = append(s.todo, id)
		s.changed.Broadcast()
	}
}

// wantOwner makes sure that the peer of a record gets visited.
func (s *survey) wantOwner(id peer.ID, c *pb.Capability) {
	if c.GetTombstone() {
		return
	}
	s.want(id, addrsOf(c))
}

// walk visits whoever is known until no new peer turns up.
func (s *survey) walk(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); defer s.mu.Unlock(); s.changed.Broadcast() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		id, addrs, ok := s.next(ctx)
		if !ok {
			return
		}
		if s.pace.Wait(ctx) != nil { // it says so before ctx's deadline when there is no time left
			s.mu.Lock()
			s.todo = append([]peer.ID{id}, s.todo...)
			s.active--
			s.mu.Unlock()
			<-ctx.Done()
			return
		}
		wg.Go(func() {
			s.visit(ctx, id, addrs)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.active--
			s.changed.Broadcast()
		})
	}
}

// next waits for a peer to visit; it says whether there is one, or may yet be.
func (s *survey) next(ctx context.Context) (peer.ID, []multiaddr.Multiaddr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil && (len(s.todo) == 0 && s.active > 0 || s.active >= s.plan.Parallel) {
		s.changed.Wait()
	}
	if ctx.Err() != nil || len(s.todo) == 0 {
		return "", nil, false
	}
	id := s.todo[0]
	s.todo = s.todo[1:]
	s.active++
	return id, s.known[id], true
}

// sweep scans the servers of one half that have not been scanned yet in this round.
func (s *survey) sweep(ctx context.Context, pass int) {
	slots := make(chan struct{}, s.plan.Parallel) // one a scan
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, id := range s.half(pass) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.scan(ctx, id, pass)
		})
	}
}

// half gives each new server to one of the halves, by chance and evenly, and returns those of one half that
// are to be scanned, in the order of chance.
func (s *survey) half(pass int) []peer.ID {
	ids := s.f.scannable()
	order := map[peer.ID][32]byte{}
	for _, id := range ids {
		order[id] = sha256.Sum256(append(binary.BigEndian.AppendUint64(nil, s.seed), id...))
	}
	slices.SortFunc(ids, func(a, b peer.ID) int {
		x, y := order[a], order[b]
		return bytes.Compare(x[:], y[:])
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []peer.ID
	for _, id := range ids {
		p, ok := s.pass[id]
		if !ok {
			if s.halves[1] < s.halves[0] {
				p = 1
			}
			s.pass[id] = p
			s.halves[p]++
		}
		if p == pass && !s.swept[id] {
			out = append(out, id)
		}
	}
	return out
}

// fewMissing is up to how many records are fetched one by one instead of with a whole scan.
const fewMissing = 8

// scan asks a server what it holds: first for digests, as most of it is known from others; then for what is
// not.
func (s *survey) scan(ctx context.Context, server peer.ID, pass int) {
	ctx, cancel := context.WithTimeout(ctx, s.plan.SweepTimeout)
	defer cancel()
	// One that was visited before the survey was cut off is not visited again, and nobody is connected to it.
	s.d.host.Peerstore().AddAddrs(server, s.d.public(s.addrs(server)), peerstore.TempAddrTTL)
	sw := Sweep{Server: server, Pass: pass}
	var held, missing []ScanRow
	beats := 0
	var err error
	sw.Totals, err = s.d.Scan(ctx, server, ScanQuery{DigestOnly: true, Beats: true}, func(r ScanRow) {
		switch {
		case r.IsBeat:
			if r.Peer != server && r.Peer != s.d.host.ID() && !s.f.holds(r) {
				beats++
			}
			return
		case !s.f.holds(r):
			missing = append(missing, r)
		}
		held = append(held, r)
	})
	if err == nil && (beats > 0 || len(missing) > fewMissing) {
		var more ScanTotals
		more, err = s.d.Scan(ctx, server, ScanQuery{Beats: true}, func(r ScanRow) { s.sighted(server, r) })
		sw.Totals.Bad, sw.Totals.Expired, sw.Totals.Bytes = sw.Totals.Bad+more.Bad, sw.Totals.Expired+more.Expired, sw.Totals.Bytes+more.Bytes
	} else if err == nil {
		for _, r := range missing {
			s.fetch(ctx, server, r, &sw.Totals)
		}
	}
	for _, r := range held {
		if s.f.holds(r) { // only what we have verified counts
			sw.Held = append(sw.Held, Holding{r.Peer, r.Seq})
		}
	}
	if err != nil {
		sw.Err = err.Error()
		if errors.Is(err, context.Canceled) { // it is we who stopped
			return
		}
	}
	sw.At = s.d.now()
	s.mu.Lock()
	s.swept[server] = true
	s.mu.Unlock()
	s.event(SurveyEvent{Sweep: &sw})
}

// fetch brings one record from a server that says it holds it.
func (s *survey) fetch(ctx context.Context, server peer.ID, r ScanRow, totals *ScanTotals) {
	ctx, cancel := context.WithTimeout(ctx, s.d.cfg.FetchTimeout)
	defer cancel()
	rec, _, err := s.d.wire.GetValue(ctx, server, capabilityKey(r.Peer))
	if err != nil {
		totals.Bad++
		s.d.log.Debug("server does not have what it lists", "peer", server, "err", err)
		return
	}
	row := ScanRow{Peer: r.Peer}
	switch err := row.open(rec.GetValue(), s.d.now()); {
	case errors.Is(err, ErrExpired):
		totals.Expired++
	case err != nil:
		totals.Bad++
	default:
		totals.Bytes += len(row.Raw)
		s.sighted(server, row)
	}
}

// sighted takes a verified row of a scan.
func (s *survey) sighted(server peer.ID, r ScanRow) {
	if r.Peer == s.d.host.ID() {
		return
	}
	e := &Sighting{Peer: r.Peer, Via: ViaScan, From: server, At: s.d.now()}
	if r.IsBeat {
		if s.f.holds(r) {
			return
		}
		e.Beat = r.Raw
	} else {
		if s.f.holds(r) {
			return // that this server holds it is told with its sweep
		}
		e.Record = r.Raw
		if rec, err := openCapability(r.Raw, r.Peer, s.d.now()); err == nil && len(s.d.cfg.Shards) > 0 {
			s.d.index.putRecord(rec, s.d.now()) // so that a heartbeat need not make us fetch it
		}
		s.wantOwner(r.Peer, r.Record)
		s.d.host.Peerstore().AddAddrs(r.Peer, s.d.public(s.addrs(r.Peer)), peerstore.TempAddrTTL)
	}
	s.event(SurveyEvent{Sighting: e})
}

func (s *survey) addrs(id peer.ID) []multiaddr.Multiaddr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id]
}

// absorb takes in the heartbeats, and the records they speak of, that the replica has heard since.
func (s *survey) absorb() {
	for _, e := range s.d.index.spoken() {
		if e.peer == s.d.host.ID() || s.heard[e.peer] >= e.av.GetSeq() {
			continue
		}
		sight := &Sighting{Peer: e.peer, Beat: e.raw, Via: ViaGossip, At: e.arrived}
		if e.record != nil {
			s.heard[e.peer] = e.av.GetSeq() // else it is taken again, with its record
			sight.Record = e.record.raw
			s.wantOwner(e.peer, s.d.index.opened.record(e.record))
		} else if s.f.holds(ScanRow{Peer: e.peer, IsBeat: true, Seq: e.av.GetSeq()}) {
			continue
		}
		s.event(SurveyEvent{Sighting: sight})
	}
}

// Heard is the last heartbeat that came from a peer.
type Heard struct {
	// Peer sent it, with this sequence number.
	Peer peer.ID
	// Seq is its sequence number.
	Seq uint64
	// At is when it came, by our clock; the next one is due within Period.
	At time.Time
	// Period is until the next one.
	Period time.Duration
	// Leaving says that it was a goodbye.
	Leaving bool
	// Record is the record that it speaks of, nil while that is not known. It is not to be changed.
	Record *pb.Capability
}

// Heard returns the last heartbeat of each peer that the directory listens to, in no particular order.
func (d *Directory) Heard() []Heard {
	var out []Heard
	for _, e := range d.index.spoken() {
		if e.peer == d.host.ID() {
			continue
		}
		h := Heard{
			Peer: e.peer, Seq: e.av.GetSeq(), At: e.arrived, Period: (&beat{av: e.av}).period(),
			Leaving: e.av.GetState() == pb.NodeState_NODE_STATE_LEAVING,
		}
		if e.record != nil {
			h.Record = d.index.opened.record(e.record)
		}
		out = append(out, h)
	}
	return out
}
