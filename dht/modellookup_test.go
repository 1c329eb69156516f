package dht

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
)

// asked is a peer in a lookup.
type asked struct {
	n       *modelNode
	far     uint64
	state   askedState
	arrives time.Duration
	fails   bool
	near    bool // connected: it is in the asker's table
}

type askedState uint8

const (
	askHeard askedState = iota
	askWaiting
	askQueried
	askUnreachable
)

// lookup is one walk to a key, played to its end at the moment it begins.
type lookup struct {
	k      *modelKad
	key    point
	known  []*asked // nearest first
	seen   map[*modelNode]*asked
	way    arrivals
	now    time.Duration
	answer func(*modelNode, time.Duration) (stop bool, size int) // what a peer that has answered gives
	weight int64
	named  int // peers in the last answer that was looked at
	kind   kadpb.Message_MessageType
	stop   bool
}

type arrivals []*asked

func (a arrivals) Len() int { return len(a) }
func (a arrivals) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(a[i].arrives, a[j].arrives), cmp.Compare(a[i].far, a[j].far)) < 0
}
func (a arrivals) Swap(i, j int) { a[i], a[j] = a[j], a[i] }

// Push implements heap.Interface.
func (a *arrivals) Push(x any) { *a = append(*a, x.(*asked)) }

// Pop implements heap.Interface.
func (a *arrivals) Pop() any { old := *a; x := old[len(old)-1]; *a = old[:len(old)-1]; return x }

func (l *lookup) hear(n *modelNode, near bool) {
	if n == l.k.n || l.seen[n] != nil {
		return
	}
	a := &asked{n: n, near: near, far: n.point.prefix() ^ l.key.prefix()}
	l.seen[n] = a
	i, _ := slices.BinarySearchFunc(l.known, a.far, func(o *asked, far uint64) int { return cmp.Compare(o.far, far) })
	l.known = slices.Insert(l.known, i, a)
}

// ask sends a request. It costs both ends its bytes; a peer that has died costs the time that finding this out takes.
func (l *lookup) ask(a *asked) {
	w, me := l.k.n.w, l.k.n
	a.state = askWaiting
	rtt := w.roundTrip(me, a.n)
	switch {
	case a.n.up:
		a.arrives = l.now + rtt
		if !a.near {
			a.arrives += 2 * rtt
			me.dials.Add(l.weight)
		}
	case slices.Contains(me.conns, a.n):
		a.arrives, a.fails = l.now+modelRead, true
	default:
		a.arrives, a.fails = l.now+modelDial, true
	}
	if !a.fails {
		l.requested(a)
	}
	heap.Push(&l.way, a)
}

// nearest are up to count peers that are not known to be dead.
func (l *lookup) nearest(count int) (out []*asked) {
	for _, a := range l.known {
		if a.state != askUnreachable {
			if out = append(out, a); len(out) == count {
				break
			}
		}
	}
	return out
}

func (l *lookup) spawn() {
	waiting := l.way.Len()
	for _, a := range l.known {
		if waiting >= l.k.alpha {
			return
		}
		if a.state == askHeard {
			l.ask(a)
			waiting++
		}
	}
}

func (l *lookup) done() bool {
	for _, a := range l.nearest(l.k.beta) {
		if a.state != askQueried {
			return false
		}
	}
	return true
}

// run plays the lookup; the caller holds the network's mu. It returns the K nearest that it reached and how long it took.
func (l *lookup) run() ([]*modelNode, time.Duration) {
	k := l.k.n.w.cfg.k
	for _, n := range l.k.n.knows(l.key, k) {
		l.hear(n, true)
	}
	l.spawn()
	for l.way.Len() > 0 && !l.done() {
		a := heap.Pop(&l.way).(*asked)
		l.now = a.arrives
		if a.fails {
			a.state = askUnreachable
		} else {
			a.state = askQueried
			l.heardFrom(a)
		}
		// That there is enough is noticed beside the lookup: what has arrived at this moment is taken first.
		if l.stop && (l.way.Len() == 0 || l.way[0].arrives > l.now) {
			l.drain()
			return nil, l.now
		}
		l.spawn()
	}
	// Those under way are waited for, but what they tell is not used; whom they went to is asked again.
	for l.way.Len() > 0 {
		a := heap.Pop(&l.way).(*asked)
		l.now = a.arrives
		if !a.fails {
			l.replied(a, l.size(a))
		}
		if l.stop {
			l.drain()
			return nil, l.now
		}
	}
	top, begun := l.nearest(k), l.now
	for _, a := range top {
		if a.state == askQueried {
			continue
		}
		l.now = begun
		l.ask(a)
	}
	for l.way.Len() > 0 {
		a := heap.Pop(&l.way).(*asked)
		if l.now = a.arrives; !a.fails {
			l.replied(a, l.size(a))
			if l.stop {
				l.drain()
				return nil, l.now
			}
		}
	}
	var out []*modelNode
	for _, a := range top {
		out = append(out, a.n)
	}
	return out, l.now
}

// heardFrom takes what a peer has answered.
func (l *lookup) heardFrom(a *asked) {
	closer := a.n.knows(l.key, l.k.n.w.cfg.k)
	l.named = len(closer) - btoi(slices.Contains(closer, l.k.n))
	for _, n := range closer {
		l.hear(n, len(l.k.n.w.ring) <= maxModelConns)
	}
	l.replied(a, l.size(a))
}

// size is that of a peer's answer; it names as many others as the last that was used, and never the asker.
func (l *lookup) size(a *asked) int {
	size := 0
	if l.answer != nil {
		stop, more := l.answer(a.n, l.now)
		l.stop, size = l.stop || stop, more
	}
	return size + kadAnswer(l.named)
}

func (l *lookup) requested(a *asked) {
	me, out := l.k.n, int64(kadRequest)
	me.begun[flowKad].Add(l.weight)
	me.kinds[l.kind].Add(l.weight)
	me.sent[flowKad].Add(out * l.weight)
	a.n.received[flowKad].Add(out * l.weight)
}

func (l *lookup) replied(a *asked, size int) {
	a.n.sent[flowKad].Add(int64(size) * l.weight)
	l.k.n.received[flowKad].Add(int64(size) * l.weight)
}

// drain lets the answers come that are under way when nobody needs them any more.
func (l *lookup) drain() {
	for _, a := range l.way {
		if !a.fails {
			l.replied(a, kadAnswer(l.named))
		}
	}
}
