package dht

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// modelConfig shapes a modelled network. Nothing in it is tuned to a goal: what can be measured of real hosts is
// compared with them in calibrate_test.go.
type modelConfig struct {
	seed  uint64
	nodes int // that run at any time, without index peers
	index int // peers with a replica, which do not churn
	k     int
	// oneWay is one message's way between every pair; 0 draws round trips of pairs from a lognormal distribution whose
	// middle 95 % lie within 20 to 200 ms.
	oneWay time.Duration
	loss   float64 // share of messages that have to be sent again; of gossip, that are lost
	// join is how long the first nodes take to come. They announce themselves in as long a time after that: else the
	// first would have put their records and keys with servers that are not the nearest once all are there. 0: ten come a
	// second, and announce themselves at once.
	join  time.Duration
	churn float64 // share of the nodes that leave in an hour, half of them killed; as many come
	// moves is the mean time between two changes of a node's load, exponentially distributed; 0 is never.
	moves time.Duration
	// withhold is the share of nodes that answer as servers, say that they keep what they are given, and keep nothing.
	withhold float64
	// servers makes all nodes ModeServer, as testnet's are; else nodes are ModeAuto and reachable.
	servers bool
	prime   bool // most heartbeats are not verified by their author again (modelNode.Beat)
	rare    int  // nodes with the rare model
	// cold is how many nodes a client asks that searches cold, within 30 s; 0 leaves both at their defaults.
	cold int
}

// Times of the ground that the hosts stand on: how long a dial of a dead peer takes to fail (quic-go's handshake), for
// how long a connection to a dead peer looks alive (libp2p's QUIC idle timeout), how long kad-dht waits for an answer.
const (
	modelDial = 5 * time.Second
	modelIdle = 30 * time.Second
	modelRead = 10 * time.Second
	// modelBits is what a node sends and receives a second, in bits.
	modelBits = 100e6
)

var errModelDead = errors.New("model: nobody answers")

// modelNet is a network of Directories over modelled streams, gossip and Kademlia, in virtual time. What a Directory
// does of its own is the product's code; what this file and its neighbours do is the model.
type modelNet struct {
	cfg   modelConfig
	fail  func(format string, args ...any)
	trace atomic.Uint64 // sum of the hashes of all events: equal for equal histories, whatever order goroutines took
	event atomic.Int64

	opened openedOnce
	found  findings

	mu    sync.RWMutex
	all   []*modelNode
	byID  map[peer.ID]*modelNode
	ring  []*modelNode // servers that others know of, sorted by their points; some died a short while ago
	peers []*modelNode // index peers
}

// hash mixes numbers into one.
func hash(of ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, v := range of {
		h = mix(h ^ mix(v+0x9e3779b97f4a7c15))
	}
	return h
}

func textHash(s string) uint64 { h := fnv.New64a(); _, _ = h.Write([]byte(s)); return h.Sum64() }

// What draws are about, so that two of them at one moment differ.
const (
	drawWay = iota + 1
	drawJitter
	drawLoss
	drawKnows
	drawBucket
	drawShuffle
	drawLife
	drawNode
	drawRefresh
)

// draw is in [0,1) and follows from the seed and what it is about alone, not from who else has drawn: goroutines that
// run at one virtual moment may do so in any order.
func (w *modelNet) draw(of ...uint64) float64 {
	return float64(hash(append(of, w.cfg.seed)...)>>11) / (1 << 53)
}

// log enters an event into the trace.
func (w *modelNet) log(kind string, a, b *modelNode) {
	at := func(n *modelNode) uint64 {
		if n == nil {
			return math.MaxUint64
		}
		return uint64(n.at)
	}
	w.trace.Add(hash(textHash(kind), uint64(time.Now().UnixNano()), at(a), at(b)))
	w.event.Add(1)
}

// normal is a draw of the standard normal distribution.
func (w *modelNet) normal(of ...uint64) float64 {
	u, v := w.draw(append(of, 1)...), w.draw(append(of, 2)...)
	return math.Sqrt(-2*math.Log(1-u)) * math.Cos(2*math.Pi*v)
}

// way is how long a message of some bytes takes from a to b, with what it takes to send it again when it was lost.
func (w *modelNet) way(a, b *modelNode, size int) time.Duration {
	base := w.base(a, b)
	now := uint64(time.Now().UnixNano())
	d := base
	if w.cfg.oneWay == 0 {
		d = time.Duration(float64(base) * (0.95 + 0.1*w.draw(drawJitter, uint64(a.at), uint64(b.at), now)))
	}
	for i := uint64(0); i < 8 && w.draw(drawLoss, uint64(a.at), uint64(b.at), now, i) < w.cfg.loss; i++ {
		d += 3*base + 25*time.Millisecond // QUIC's probe timeout
	}
	return d + time.Duration(float64(size)*8/modelBits*float64(time.Second))
}

// base is one message's way between a pair, the same in both directions.
func (w *modelNet) base(a, b *modelNode) time.Duration {
	if w.cfg.oneWay > 0 {
		return w.cfg.oneWay
	}
	lo, hi := uint64(min(a.at, b.at)), uint64(max(a.at, b.at))
	middle, spread := math.Sqrt(20*200), math.Log(200/math.Sqrt(20*200))/1.96
	rtt := middle * math.Exp(spread*w.normal(drawWay, lo, hi))
	return time.Duration(rtt / 2 * float64(time.Millisecond))
}

func (w *modelNet) roundTrip(a, b *modelNode) time.Duration { return 2 * w.base(a, b) }

// lost says whether a copy of a gossip message never arrives.
func (w *modelNet) lost(a, b *modelNode, what uint64) bool {
	return w.draw(drawLoss, uint64(a.at), uint64(b.at), what) < w.cfg.loss
}

func (w *modelNet) node(id peer.ID) *modelNode {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.byID[id]
}

// sleep waits in virtual time.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// point is a place in Kademlia's key space.
type point [32]byte

func (p point) prefix() uint64 { return binary.BigEndian.Uint64(p[:8]) }

// enter and leave keep the ring sorted; the caller holds mu.
func (w *modelNet) enterLocked(n *modelNode) {
	i, there := w.placeLocked(n.point)
	if !there {
		w.ring = slices.Insert(w.ring, i, n)
	}
}

func (w *modelNet) leaveLocked(n *modelNode) {
	if i, there := w.placeLocked(n.point); there && w.ring[i] == n {
		w.ring = slices.Delete(w.ring, i, i+1)
	}
}

func (w *modelNet) placeLocked(p point) (int, bool) {
	return slices.BinarySearchFunc(w.ring, p, func(n *modelNode, p point) int { return bytes.Compare(n.point[:], p[:]) })
}

// openedOnce opens each signed envelope once for all peers of the model. Expiry is looked at by each of them.
type openedOnce struct {
	mu      sync.Mutex
	beats   map[string]*beat
	records map[string]*record
}

// keepOpened bounds each of the two maps; what is dropped is verified again when somebody asks.
const keepOpened = 1 << 15

func (o *openedOnce) beat(raw []byte, author peer.ID) (*beat, error) {
	o.mu.Lock()
	b := o.beats[string(raw)]
	o.mu.Unlock()
	if b != nil && b.peer == author {
		return b, nil
	}
	b, err := openBeat(raw, author)
	if err == nil {
		o.keepBeat(b)
	}
	return b, err
}

func (o *openedOnce) keepBeat(b *beat) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.beats) >= keepOpened || o.beats == nil {
		o.beats = map[string]*beat{}
	}
	o.beats[string(b.raw)] = b
}

func (o *openedOnce) capability(raw []byte, owner peer.ID, now time.Time) (*record, error) {
	o.mu.Lock()
	r := o.records[string(raw)]
	o.mu.Unlock()
	if r != nil && r.peer == owner {
		if err := checkCapability(r.cap, now); err != nil {
			return nil, err
		}
		return r, nil
	}
	r, err := openCapability(raw, owner, now)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.records) >= keepOpened || o.records == nil {
		o.records = map[string]*record{}
	}
	o.records[string(r.raw)] = r
	return r, nil
}
