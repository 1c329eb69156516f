package dht

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Errors of the directory.
var (
	// ErrNoServers means that no peer that we know stores records for others: we are not connected, or all
	// we are connected to are clients.
	ErrNoServers = errors.New("dht: no server of the directory is connected")
	// ErrNotFound means that nobody who was asked has a valid record of the peer.
	ErrNotFound = errors.New("dht: no record of this peer")
	// ErrTooFewHolders means that less than half of the peers that ought to hold a record took it.
	ErrTooFewHolders = errors.New("dht: too few peers took the record")
	// ErrIdentityInUse means that another process published with our key while we ran.
	ErrIdentityInUse = errors.New("dht: another process uses this identity key; stop one of the two or give it a key of its own")
	// ErrStopped means that the directory is no longer running.
	ErrStopped = errors.New("dht: directory has stopped")
)

// Verdict is what becomes of a gossip message.
type Verdict uint8

// The verdicts.
const (
	// Accept takes the message and forwards it.
	Accept Verdict = iota
	// Ignore drops it; who forwarded it did nothing wrong.
	Ignore
	// Reject drops it and counts against who forwarded it.
	Reject
)

// Gossip carries heartbeats. The roles implement it with p2p.
type Gossip interface {
	// Publish sends a message on a topic without subscribing to it, and tells how many connected peers listen.
	Publish(ctx context.Context, topic string, data []byte) (listeners int, err error)
	// Subscribe hands each message of a topic, with the peer that has signed it, to take before it is
	// forwarded, until ctx ends; then it returns nil. take is called concurrently; it blocks for half a second at
	// most, while the message need not be forwarded yet.
	Subscribe(ctx context.Context, topic string, take func(author peer.ID, data []byte) Verdict) error
}

// Directory advertises this peer and knows the others. See the package's doc for the flow.
type Directory struct {
	cfg    Config
	host   host.Host
	gossip Gossip
	clock  func() time.Time
	rnd    *rand.Rand
	log    *slog.Logger

	index     *replica
	fetches   *fetches
	rates     *askRates
	values    *boundedStore // what Kademlia stores for others
	probes    *askRates     // of what costs us dialling
	watches   *askRates     // of round trips that have to be measured first
	observed  *dials        // of peers that others want measured
	reports   *rates        // of what strangers can have us write to the log
	unknown   *rates        // of heartbeats that are forwarded though nobody knows yet whose they are
	renewals  *rates        // of the network file, when others take us for a landmark
	renewed   chan struct{} // has one when such a renewal brought other landmarks
	sampled   samples
	indexes   indexes
	around    surroundings
	started   time.Time    // when New was called, by our clock
	order     uint64       // of this peer (orderOf)
	salt      uint64       // of chance
	lingering atomic.Int64 // heartbeats that wait to be forwarded
	ready     chan struct{}
	done      chan struct{}
	kad       kademlia // set before ready is closed
	wire      *messenger
	join      func() (kademlia, error) // joinKademlia, but in a model
	judge     judge                    // record.go, but in a model

	mu       sync.Mutex
	own      *record // what we advertise
	ownBeat  *beat
	running  bool
	levels   map[string]perch // of our provider keys, by attribute
	standing Standing
	clockOff bool // nothing is advertised
}

// New prepares a directory over a host; it does no I/O and starts nothing. gossip may be nil for a peer that
// neither publishes nor hears heartbeats. rnd need not be safe for concurrent use by others. It returns
// ErrConfig.
func New(cfg Config, h host.Host, gossip Gossip, clock func() time.Time, rnd *rand.Rand, log *slog.Logger) (*Directory, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	switch {
	case h == nil:
		return nil, fmt.Errorf("%w: no host", ErrConfig)
	case gossip == nil && len(cfg.Shards) > 0:
		return nil, fmt.Errorf("%w: Shards are set, but there is no gossip to hear them", ErrConfig)
	}
	d := &Directory{
		cfg: cfg, host: h, gossip: gossip, clock: clock, rnd: rnd, log: log,
		index:    newReplica(cfg.MaxNodes),
		fetches:  newFetches(cfg.FetchWorkers, cfg.FetchQueue),
		values:   newBoundedStore(h.ID(), cfg.StoreBytes),
		rates:    newAskRates(float64(cfg.QueryRate), 4*float64(cfg.QueryRate)),
		probes:   newAskRates(0.1, 3),
		watches:  newAskRates(0.5, 8),
		observed: newDials(),
		reports:  newRates(0.1, 10),
		unknown:  newRates(unknownRate, 4*unknownRate),
		renewals: newRates(0.1, 2),
		renewed:  make(chan struct{}, 1),
		started:  clock(),
		order:    orderOf(h.ID()),
		salt:     rnd.Uint64(),
		ready:    make(chan struct{}),
		done:     make(chan struct{}),
		levels:   map[string]perch{},
		judge:    judge{openCapability, openBeat},
		indexes:  indexes{turn: make(chan struct{}, 1)},
	}
	d.join = d.joinKademlia
	d.index.report = d.reportEquivocation
	return d, nil
}

func (d *Directory) now() time.Time { return d.clock() }

// chance is a generator for what is about the subject and happens now. Who shares one draws what is left by others that
// draw at the same moment, in an order that is nobody's.
func (d *Directory) chance(subject string) *rand.Rand {
	about := digestOf([]byte(subject))
	return rand.New(rand.NewPCG(d.salt^binary.BigEndian.Uint64(about[:]), uint64(d.now().UnixNano())))
}

// Run takes part in the network until ctx ends; it returns nil on orderly cancel. It may be called once.
// Methods that need the network wait for it to have started.
func (d *Directory) Run(ctx context.Context) error {
	d.mu.Lock()
	if d.running {
		d.mu.Unlock()
		return errors.New("dht: Run was called twice")
	}
	d.running = true
	d.mu.Unlock()
	defer close(d.done)

	table, err := d.join()
	if err != nil {
		return fmt.Errorf("starting Kademlia: %w", err)
	}
	defer func() {
		if err := table.Close(); err != nil {
			d.log.Warn("directory did not close cleanly", "err", err)
		}
	}()
	d.kad, d.wire = table, newMessenger(d.host)
	serving := d.serveQueries(ctx)
	defer serving()
	if d.cfg.Mode != ModeClient {
		scans := d.serveScans(ctx)
		defer scans()
	}
	if d.cfg.Index {
		measures := d.serveMeasures(ctx)
		defer measures()
	}
	close(d.ready)

	g, ctx := errgroup.WithContext(ctx)
	for range d.cfg.FetchWorkers {
		g.Go(func() error { return d.fetchLoop(ctx) })
	}
	for _, shard := range d.cfg.Shards {
		g.Go(func() error {
			if err := d.gossip.Subscribe(ctx, protocol.TopicAvailShard(shard), d.hear); err != nil && ctx.Err() == nil {
				return fmt.Errorf("listening to availability shard %02x: %w", shard, err)
			}
			return nil
		})
	}
	if len(d.cfg.Shards) > 0 {
		g.Go(func() error { return d.greet(ctx) })
		g.Go(func() error { d.catchUp(ctx); return nil })
	}
	g.Go(func() error { return d.sweepLoop(ctx) })
	return g.Wait()
}

func (d *Directory) sweepLoop(ctx context.Context) error {
	t := time.NewTicker(30 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			d.index.sweep(d.now())
		}
	}
}

// up waits until Run has started the network.
func (d *Directory) up(ctx context.Context) error {
	select {
	case <-d.done:
		return ErrStopped
	default:
	}
	select {
	case <-d.ready:
		return nil
	case <-d.done:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isUp says whether Run has started the network.
func (d *Directory) isUp() bool {
	select {
	case <-d.ready:
		return true
	default:
		return false
	}
}

// hear judges and takes one heartbeat from gossip (discovery.md 4, rule 4).
func (d *Directory) hear(author peer.ID, data []byte) Verdict {
	b, err := d.judge.beat(data, author)
	if errors.Is(err, errPeriod) {
		return Ignore
	}
	if err != nil {
		d.log.Debug("heartbeat rejected", "peer", author, "err", err)
		return Reject
	}
	now := d.now()
	if !b.fresh(now) {
		return Ignore
	}
	switch d.index.putBeatHeard(b, d.cfg.BeatGap, now, b.heardAt(now)) {
	case beatOld, beatEarly, beatFull:
		return Ignore
	case beatNews:
		d.wantRecord(author, true)
		if !d.connected(author) && d.unknown.take("", now) > 0 {
			return Ignore
		}
	case beatSame:
		d.linger(b.av.GetSeq())
	}
	return Accept
}

const (
	// lingerMost bounds for how long a heartbeat that tells nothing new waits before it is forwarded. Meanwhile the
	// neighbours that have it from somebody else say so (gossipsub's IDONTWANT) and are not sent it once more. It is
	// well above a round trip, and a heartbeat is trusted for that much less.
	lingerMost = 500 * time.Millisecond
	// maxLingering bounds how many do at once; further ones are forwarded without a wait.
	maxLingering = 512
)

// unknownRate is how many heartbeats a second of peers that are neither known nor connected are forwarded: strangers make
// keys for nothing, and other replicas forward those that go beyond.
const unknownRate = 1000

// linger waits for a time that no two replicas have alike.
func (d *Directory) linger(seq uint64) {
	if d.lingering.Add(1) <= maxLingering {
		t := time.NewTimer(time.Duration(mix(d.order^mix(seq)) % uint64(lingerMost)))
		defer t.Stop()
		select {
		case <-t.C:
		case <-d.done:
		}
	}
	d.lingering.Add(-1)
}

// heard says whether a heartbeat of a peer has been heard, and the record that it speaks of.
func (d *Directory) heard(id peer.ID) bool {
	e, ok := d.index.get(id, d.now())
	return ok && e.beat != nil
}

const (
	replicasAsked = 2                      // for a record, before the DHT is
	replicasPause = 250 * time.Millisecond // between them: some are connected to the node, and fetch it just now
)

// fromReplicas asks other index peers for a record, one message each, until it is there. They need not be believed:
// the node has signed it, and its heartbeat says which one it is.
func (d *Directory) fromReplicas(ctx context.Context, id peer.ID, settled func() bool) {
	if settled() {
		return
	}
	for i, of := range d.otherReplicas(ctx, string(id)) {
		if i > 0 && pauseFor(ctx, replicasPause) != nil || i == replicasAsked {
			return
		}
		if found, err := d.ask(ctx, of, []peer.ID{id}); err == nil && len(found) == 1 {
			d.index.putRecord(found[0].record, d.now())
		}
		if settled() {
			return
		}
	}
}

func pauseFor(ctx context.Context, wait time.Duration) error {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fromDHT reads a record from its holders, verifying it again: holders do not validate when they serve. With a quorum
// above 0 one more than that many copies suffice; when few holders tell of none, all are asked.
func (d *Directory) fromDHT(ctx context.Context, id peer.ID, quorum int) (*record, error) {
	if quorum > 0 {
		if rec := d.readRecord(ctx, id, quorum); rec != nil {
			return rec, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	raw, err := d.kad.GetValue(ctx, capabilityKey(id), kad.Quorum(quorum))
	if err != nil {
		return nil, d.translate(err)
	}
	return d.judge.capability(raw, id, d.now())
}

// Get returns what is known of one peer: from the replica, else from the peer itself, else from the DHT. It
// returns ErrNotFound and ErrNoServers.
func (d *Directory) Get(ctx context.Context, id peer.ID) (Candidate, error) {
	now := d.now()
	if h, ok := d.index.get(id, now); ok && !h.left {
		return d.index.opened.candidate(&h), nil
	}
	if err := d.up(ctx); err != nil {
		return Candidate{}, err
	}
	var a answered
	if id == d.host.ID() {
		d.mu.Lock()
		a = answered{record: d.own, beat: d.ownBeat, heard: now}
		d.mu.Unlock()
		if a.record == nil {
			return Candidate{}, ErrNotFound
		}
	} else {
		if !d.connected(id) && len(d.host.Peerstore().Addrs(id)) == 0 { // somebody has to say where it is
			patience, cancel := context.WithTimeout(ctx, d.cfg.FetchTimeout)
			err := d.waitServers(patience)
			cancel()
			if err != nil {
				return Candidate{}, err
			}
		}
		var err error
		if a, err = d.reach(ctx, id); err != nil {
			return Candidate{}, err
		}
	}
	x := newReplica(1)
	x.learn(a, d.now())
	h, ok := x.get(id, d.now())
	if !ok {
		return Candidate{}, ErrNotFound
	}
	return x.opened.candidate(&h), nil
}

// Size returns how many nodes the replica holds, dead ones included.
func (d *Directory) Size() int { return d.index.size() }

// Servers returns how many DHT servers are in the routing table: none means not connected.
func (d *Directory) Servers() int {
	select {
	case <-d.ready:
		return d.kad.RoutingTable().Size()
	default:
		return 0
	}
}

// Learn takes a signed record that came some other way (an answer of another peer, a file), verified as any.
// It returns ErrTooLarge, ErrNotOwner, ErrExpired, ErrFormat or ErrBounds.
func (d *Directory) Learn(id peer.ID, raw []byte) error {
	rec, err := openCapability(raw, id, d.now())
	if err != nil {
		return err
	}
	d.index.putRecord(rec, d.now())
	return nil
}

// OpenCapability verifies a signed capability record of owner and returns its content. It returns ErrTooLarge,
// ErrNotOwner, ErrExpired, ErrFormat or ErrBounds.
func OpenCapability(raw []byte, owner peer.ID, now time.Time) (*pb.Capability, error) {
	rec, err := openCapability(raw, owner, now)
	if err != nil {
		return nil, err
	}
	return rec.cap, nil
}

// OpenAvailability verifies a signed heartbeat of owner, of any age, and returns its content. It returns
// ErrTooLarge, ErrNotOwner, ErrFormat or ErrBounds.
func OpenAvailability(raw []byte, owner peer.ID) (*pb.Availability, error) {
	b, err := openBeat(raw, owner)
	if err != nil {
		return nil, err
	}
	return b.av, nil
}

// sortedIDs returns peers in the order of their bytes.
func sortedIDs(ids []peer.ID) []peer.ID {
	slices.Sort(ids)
	return slices.Compact(ids)
}
