package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// site is everything of a node that lives from one start to the next: the parts, and who runs them.
type site struct {
	node     *Node
	cfg      *Config
	log      *slog.Logger
	host     *p2p.Host
	store    *volumes.Store
	trees    *materials
	net      *volumes.Net
	book     *book
	gate     *gate
	logs     *logShelf
	scratch  *scratch
	speaker  *speaker
	dir      *dht.Directory
	announce *dht.Announcer
	line     *line // nil when it is not measured
	gossip   *gossip
	backends []*offered
	gpus     *gpu.Monitor
	barred   string // why no GPU can be handed to a program, empty when one can
	control  net.Listener
	metrics  net.Listener             // nil when Prometheus is not answered
	boot     map[protocol.PeerID]bool // peers that are kept connected anyway

	moved    chan struct{} // capacity 1: the state may have changed
	gpuMoved chan struct{} // capacity 1: what can be done with a GPU has changed
	tidied   time.Time     // last collection; watch's own
	swept    time.Time     // trees were looked through last; watch's own

	life context.Context // of what spawn runs; ended by halt
	halt context.CancelFunc
	jobs sync.WaitGroup

	measuring sync.Mutex // one measurement at a time

	mu       sync.Mutex
	state    State
	since    time.Time
	works    bool   // it had something in hand when that was told last
	fault    string // why the directory does not speak for us
	withheld string // why the processors are not offered
}

// build opens what the node is made of. What it opened is closed by release, also after an error.
func (n *Node) build(ctx context.Context, host *p2p.Host) (s *site, err error) {
	cfg := &n.cfg
	s = &site{node: n, cfg: cfg, log: n.log, host: host, state: StateStarting, since: cfg.Clock(), boot: map[protocol.PeerID]bool{}, moved: make(chan struct{}, 1), gpuMoved: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	s.backends = n.prove(ctx)
	inv := readHost(os.DirFS("/"), cfg.Data)
	s.barred = barsGPUs(s.backends)
	if err = s.newMonitor(); err != nil {
		return s, err
	}
	inv.GPUs, err = s.gpus.Read(ctx)
	if err != nil && !errors.Is(err, gpu.ErrNoNVML) {
		return s, err
	}
	sale := sellingOf(&inv.GPUs, s.barred, cfg.OfferCPU)
	s.withhold(sale.Withheld)
	for _, p := range sale.Unsold {
		s.log.Warn("a GPU is not offered", "what", p.What, "fix", p.Fix)
	}
	if m, ok := LoadMeasured(cfg.Data); ok {
		inv.Measured = &m
	}
	slots := cfg.slots(inv.Threads, inv.Memory)
	if s.scratch, err = newScratch(workDir(cfg), cfg.path("runs"), cfg.Scratch, slots); err != nil {
		return s, err
	}
	vc := volumes.DefaultConfig(cfg.path("volumes"))
	vc.Reserve = cfg.Reserve
	if s.store, err = volumes.Open(vc, s.log); err != nil {
		return s, fmt.Errorf("opening the volumes: %w", err)
	}
	s.life, s.halt = context.WithCancel(context.WithoutCancel(ctx))
	s.book = newBook(host.ID(), slots, cfg.Clock, s.log)
	s.book.spawn = s.spawn
	s.book.gpus = newDevices(&inv.GPUs)
	s.book.gpus.barred = s.barred != ""
	s.gate = newGate(cfg.Networks, cfg.Clock)
	s.logs = newLogShelf(cfg.Clock)
	if s.trees, err = newMaterials(cfg.path("trees"), s.store, cfg.Clock); err != nil {
		return s, err
	}
	if s.net, err = s.store.Serve(volumes.DefaultNetConfig(), host.Host(), reader{s.gate, s.book}, nil); err != nil {
		return s, err
	}
	if err := s.book.open(cfg.path("journal")); err != nil {
		return s, err
	}
	if err := s.scratch.keepRuns(s.book.knows); err != nil {
		return s, err
	}
	s.speaker = s.newSpeaker(inv)
	if err := s.newDirectory(); err != nil {
		return s, err
	}
	if cfg.measures() {
		s.line = s.newLine()
		s.speaker.line = s.line.facts
	}
	host.RelaysFrom(s.relays)
	boot, err := cfg.bootstrap()
	if err != nil {
		return s, err
	}
	for _, p := range boot {
		s.boot[p.ID] = true
	}
	if cfg.Control {
		if s.control, err = listenSocket(ctx, cfg.Data); err != nil {
			return s, err
		}
	}
	if cfg.Metrics != "" {
		if s.metrics, err = listenMetrics(ctx, cfg.Metrics); err != nil {
			return s, err
		}
	}
	s.book.changed = func() { poke(s.moved) }
	s.book.follow = s.follow
	s.book.link = s.link
	return s, nil
}

func (s *site) newSpeaker(inv Inventory) *speaker {
	c := s.cfg
	return &speaker{
		self: s.host.ID(), key: s.host.Key(), operator: c.OperatorKey, labels: c.Labels, noResearch: c.NoResearch, version: c.Version, started: s.node.started,
		ask: max(c.Ask, c.Policy.MinPrice), kinds: c.Policy.Kinds, wall: c.Policy.Limits.Wall, networks: c.Networks, backends: s.backends, inv: inv,
		addrs: func() []multiaddr.Multiaddr { return s.host.Told() },
		place: c.Place, noLandmarks: c.NoLandmarks, landmarks: func() dht.LandmarkRTTs { return s.dir.LandmarkRTTs() },
		reach: s.reach,
		load: func() load {
			state, _ := s.judge()
			running, queued := s.book.load()
			return load{state: state, running: running, queued: queued, inventory: s.inventory(), free: s.book.gpusFree}
		},
	}
}

// inventory is the machine with what is free now.
func (s *site) inventory() Inventory {
	s.speaker.mu.Lock()
	inv := s.speaker.inv
	s.speaker.mu.Unlock()
	now := readHost(os.DirFS("/"), s.cfg.Data)
	inv.MemoryFree, inv.DiskFree = now.MemoryFree, now.DiskFree
	return inv
}

func (s *site) newDirectory() (err error) {
	dc := dht.DefaultConfig()
	dc.Loopback, dc.K = s.cfg.Local, s.cfg.Buckets
	if len(s.cfg.Networks) > 0 {
		dc.Network = s.cfg.Networks[0].ID[:]
	}
	if s.cfg.Local {
		dc.Mode = dht.ModeServer
	}
	rnd := func() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }
	s.gossip = newGossip(s.host)
	if s.dir, err = dht.New(dc, s.host.Host(), s.gossip, s.cfg.Clock, rnd(), s.log); err != nil {
		return err
	}
	if len(s.cfg.Networks) > 0 {
		s.dir.SetNetwork(s.cfg.Networks[0])
	}
	s.announce, err = dht.NewAnnouncer(s.dir, s.cfg.Schedule, s.speaker, s.book, rnd())
	return err
}

// observe watches how the node stands in the directory.
func (s *site) observe(ctx context.Context) error {
	boot, err := s.cfg.bootstrap()
	if err != nil {
		return err
	}
	w := dht.DefaultWatch()
	w.Anchors, w.Every, w.Unseen = boot, time.Hour, s.announce.RecordChanged
	return s.dir.Watch(ctx, w)
}

// release closes what build has opened.
func (s *site) release() error {
	var errs []error
	if s.halt != nil {
		s.halt()
	}
	if s.control != nil {
		errs = append(errs, ignoreClosed(s.control.Close()))
	}
	if s.metrics != nil {
		errs = append(errs, ignoreClosed(s.metrics.Close()))
	}
	if s.gpus != nil {
		s.gpus.Close()
	}
	if s.gossip != nil {
		s.gossip.close()
	}
	if s.book != nil && s.book.paper != nil {
		errs = append(errs, s.book.paper.Close())
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.scratch != nil {
		s.scratch.close()
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// spawn runs something until the node ends or the returned function is called.
func (s *site) spawn(f func(ctx context.Context)) context.CancelFunc {
	ctx, cancel := context.WithCancel(s.life)
	s.jobs.Go(func() {
		defer cancel()
		f(ctx)
	})
	return cancel
}

// listen answers bridges on the host.
func (s *site) listen() error {
	d := &desk{
		self: s.host.ID(), gate: s.gate, book: s.book, policy: &s.cfg.Policy, backends: s.backends, now: s.cfg.Clock, ready: s.accepts, holds: s.holds,
		sign: func(o *protocol.Offer) ([]byte, error) { return o.Seal(s.host.Key()) },
		machine: func() Machine {
			inv := s.inventory()
			return Machine{Memory: inv.Memory, Disk: inv.DiskFree, Slots: s.book.slots, Ask: s.speaker.ask}
		},
	}
	c := &clerk{gate: s.gate, book: s.book, boot: s.node.boot, state: func() State { st, _ := s.judge(); return st }}
	return errors.Join(
		p2p.Serve(s.host, protocol.ProtoAuth, s.gate.serve),
		p2p.Serve(s.host, protocol.ProtoReserve, d.serve),
		s.host.HandleDuplex(protocol.ProtoLease, c.serve),
		s.host.HandleDuplex(protocol.ProtoLogs, s.logs.serve),
	)
}

// holds counts the bytes of a job's volumes that are here.
func (s *site) holds(ctx context.Context, t *protocol.JobTerms) (n uint64) {
	for i := range t.Volumes {
		if here, err := s.store.Has(ctx, t.Volumes[i].Root); err == nil && here {
			n += t.Volumes[i].Bytes
		}
	}
	return n
}

// follow keeps the bridge of a job connected and listens to the job's topic while the node is a member.
func (s *site) follow(ctx context.Context, m *member) {
	origin := m.terms.Origin
	if origin.ID == m.memberFacts.bridge && len(origin.Addrs) > 0 && !s.boot[origin.ID] {
		s.host.Keep(origin)
		// It stays kept: an operator's bridges are few, and its next job comes over the same connection.
	}
	for ctx.Err() == nil {
		err := listen(ctx, s.host, s.book, m)
		if ctx.Err() != nil || errors.Is(err, p2p.ErrClosed) {
			return
		}
		// The topic of an earlier membership may be closing just now.
		s.log.Debug("listening to a job again", "job", m.terms.Job, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// link talks to a bridge until the node ends.
func (s *site) link(ctx context.Context, br *bridge) {
	l := &link{
		book: s.book, bridge: br, gate: s.gate, key: s.host.Key(), idle: s.cfg.Idle, log: s.log,
		call: func(ctx context.Context, to protocol.PeerID, id libprotocol.ID, req, resp proto.Message) error {
			return p2p.Call(ctx, s.host, to, id, req, resp)
		},
	}
	var both sync.WaitGroup
	both.Go(func() { l.runHeavy(ctx) })
	l.run(ctx)
	both.Wait()
}

// fetch brings a tree from holders.
func (s *site) fetch(ctx context.Context, root cid.Cid, holders []peer.AddrInfo) (uint64, error) {
	stats, err := s.net.Fetch(ctx, root, holders, nil)
	return stats.Blocks, err
}

// run serves until ctx ends or Stop is called, then drains and says goodbye.
func (s *site) run(ctx context.Context) error {
	// What serves outlives the drain.
	serving, stopServing := context.WithCancel(s.life)
	defer stopServing()
	speaking, stopSpeaking := context.WithCancel(s.life)
	defer stopSpeaking()
	ended := make(chan error, 10) // one for each of the ten below
	var parts sync.WaitGroup
	part := func(f func(ctx context.Context) error, ctx context.Context) {
		parts.Go(func() { ended <- f(ctx) })
	}
	part(s.dir.Run, serving)
	part(s.net.Run, serving)
	part(s.observe, serving)
	part(s.roam, serving)
	part(s.locate, serving)
	if s.line != nil {
		part(s.line.run, serving)
	}
	for _, f := range s.answers() {
		part(f, serving)
	}
	spoken := make(chan struct{})
	part(func(ctx context.Context) error { defer close(spoken); return s.speak(ctx) }, speaking)

	s.spawn(s.book.keepTime)
	s.spawn(s.watch)
	outputs := &collector{store: s.store}
	store := &depot{store: s.store, trees: s.trees, fetch: s.fetch}
	s.book.restore(s.backends, outputs)
	part(s.gpus.Run, serving)
	s.spawn(s.followGPUs)
	s.spawn(s.measureDaily)
	for slot := range s.book.slots {
		w := &worker{slot: slot, memory: s.share(), book: s.book, depot: store, scratch: s.scratch, outputs: outputs, logs: s.logs, log: s.log}
		s.spawn(w.run)
	}
	err := s.listen()
	if err == nil {
		s.up()
		select {
		case <-ctx.Done():
		case <-s.node.stopped:
		case err = <-ended: // nothing ends by itself but for a fault
		}
	}
	s.leave()
	stopSpeaking()
	<-spoken
	stopServing()
	s.halt()
	parts.Wait()
	close(ended)
	for e := range ended {
		err = errors.Join(err, e)
	}
	return errors.Join(err, s.rest())
}

// answers are what answers the owner: by the socket, and Prometheus.
func (s *site) answers() (parts []func(ctx context.Context) error) {
	if s.control != nil {
		parts = append(parts, func(ctx context.Context) error { return serveControl(ctx, s.control, s.node) })
	}
	if s.metrics != nil {
		parts = append(parts, func(ctx context.Context) error { return serveMetrics(ctx, s.metrics, s.node.Status) })
	}
	return parts
}

// share is the memory in bytes of a chunk whose job does not say what it needs; 0 when nobody knows.
func (s *site) share() uint64 {
	return s.cfg.Policy.Limits.memory(s.speaker.inv.Memory) / uint64(s.book.slots)
}

// up says that the node answers.
func (s *site) up() {
	s.mu.Lock()
	s.state = ""
	s.mu.Unlock()
	s.book.setShort(s.shortage())
	s.reconsider()
	st, why := s.judge()
	s.log.Info("node is up", "state", st, "why", why, "peer", s.host.ID(), "addrs", s.host.Addrs(), "slots", s.book.slots)
	close(s.node.ready)
}

// leave lets what runs end, and hands the rest back.
func (s *site) leave() {
	s.book.close()
	s.reconsider()
	ctx, cancel := context.WithTimeout(s.life, s.cfg.Drain+killPatience)
	defer cancel()
	if err := s.book.drain(ctx, s.cfg.Drain); err != nil {
		s.log.Warn("leases were left for the next start", "err", err)
	}
}

// rest waits for the workers, but not for a run that clings to its slot.
func (s *site) rest() error {
	s.book.quit()
	done := make(chan struct{})
	go func() { s.jobs.Wait(); close(done) }()
	timer := time.NewTimer(killPatience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errors.New("node: a run does not end although it was killed; end its process by hand")
	}
}

// speak publishes what the node says of itself. Another process under our identity takes our voice, not our
// work.
func (s *site) speak(ctx context.Context) error {
	err := s.announce.Run(ctx)
	if errors.Is(err, dht.ErrIdentityInUse) {
		s.mu.Lock()
		s.fault = err.Error()
		s.mu.Unlock()
		s.log.Error("the directory does not speak for this node any more", "err", err)
		<-ctx.Done()
		return nil
	}
	return err
}

// judge is the node's state, and why it is not READY.
func (s *site) judge() (State, []string) {
	s.mu.Lock()
	starting, fault, withheld := s.state == StateStarting, s.fault, s.withheld
	s.mu.Unlock()
	if starting {
		return StateStarting, []string{"it is starting"}
	}
	f := s.book.facts()
	var why []string
	state := StatePaused
	switch {
	case f.closing:
		return StateLeaving, []string{"it is about to end"}
	case f.control == "drain":
		state, why = StateDraining, []string{"drained by the owner: gridbeam node resume takes work again"}
	case f.control == "pause":
		why = append(why, "paused by the owner: gridbeam node resume takes work again")
	}
	if len(s.cfg.Networks) == 0 {
		why = append(why, "no network is joined, so nobody may use this node: gridbeam node run --join INVITATION, which a bridge prints")
	}
	if len(s.backends) == 0 {
		why = append(why, "no backend passed its self-test, so nothing can be run: the log says why")
	}
	if withheld != "" {
		why = append(why, withheld)
	}
	if f.full != nil {
		why = append(why, "the journal cannot be written ("+f.full.Error()+"): make room on the disk of "+s.cfg.Data)
	}
	if f.short != "" {
		why = append(why, f.short)
	}
	if fault != "" {
		why = append(why, fault)
	}
	switch {
	case len(why) > 0:
		return state, why
	case f.free == 0:
		return StateBusy, []string{"every slot has something to do"}
	}
	return StateReady, nil
}

// accepts says why no reservation is answered with an offer; a busy node may belong to further jobs, whose chunks
// then take turns.
func (s *site) accepts() (protocol.Reason, string) {
	s.book.setShort(s.shortage()) // the last look may be two seconds old
	switch state, why := s.judge(); state {
	case StateReady, StateBusy:
		return protocol.ReasonNone, ""
	case StateDraining, StateLeaving:
		return protocol.ReasonDrained, why[0]
	default:
		return protocol.ReasonBusy, why[0]
	}
}

// watch follows the state.
func (s *site) watch(ctx context.Context) {
	look := time.NewTicker(diskLook)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			s.book.setShort(s.shortage())
			s.book.retry()
			s.tidy(ctx)
		case <-ctx.Done():
			return
		case <-s.moved:
			s.reconsider()
		}
	}
}

// tidy collects trees that nothing here needs when the disk is short; until then they may serve the next job.
func (s *site) tidy(ctx context.Context) {
	if now := s.cfg.Clock(); now.Sub(s.swept) >= tidyPause {
		s.swept = now
		s.trees.sweep(s.book.needed())
	}
	if s.book.facts().short == "" || s.cfg.Clock().Before(s.tidied.Add(tidyPause)) {
		return
	}
	s.tidied = s.cfg.Clock()
	if _, _, err := s.store.GC(ctx, s.book.needed()...); err != nil && ctx.Err() == nil {
		s.log.Warn("old data cannot be removed", "err", err)
	}
}

// tidyPause is the least time between two collections.
const tidyPause = time.Minute

// diskLook is how often free space is looked at.
const diskLook = 2 * time.Second

// shortage says why the disk has no room for work: what is kept in reserve is needed to end what runs.
func (s *site) shortage() string {
	if total, free := readDisk(s.cfg.Data); total > 0 && free < s.cfg.Reserve+diskMargin {
		return fmt.Sprintf("the disk of %s is full: %d MiB free, and %d MiB are kept in reserve; make room", s.cfg.Data, free>>20, s.cfg.Reserve>>20)
	}
	return ""
}

// diskMargin is what has to be free beside the reserve before work is taken: less is used up by one chunk.
const diskMargin = 16 << 20

// reconsider tells the directory when the state has changed.
func (s *site) reconsider() {
	state, _ := s.judge()
	running, queued := s.book.load()
	works := running+queued > 0
	s.mu.Lock()
	changed := (state != s.state || works != s.works) && s.state != StateStarting
	if changed && state != s.state {
		s.state, s.since = state, s.cfg.Clock()
	}
	if changed {
		s.works = works
	}
	s.mu.Unlock()
	if changed {
		s.announce.BeatChanged()
	}
}
