package beambridge

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// linkSilence is how long a node may leave lease sets unanswered before its stream is opened anew: a cut
	// connection looks alive for 30 s.
	linkSilence = 8 * time.Second
	// linkDial bounds the opening of a stream with everything before it.
	linkDial = 5 * time.Second
	// linkPause and linkPauses are the first and the longest pause between attempts.
	linkPause  = 250 * time.Millisecond
	linkPauses = 15 * time.Second
)

// link is the lease stream to one node: a goroutine that keeps it open for as long as it is wanted.
type link struct {
	peer   protocol.PeerID
	out    chan *pb.LeaseSet // capacity 1: a newer set replaces one that was not written yet
	again  chan struct{}     // capacity 1: try now
	cancel context.CancelFunc

	// The set that was written last and when, for the round trip; the reader compares.
	seq atomic.Uint64
	at  atomic.Int64 // Unix nanoseconds
}

// send hands over a set; the engine alone calls it.
func (l *link) send(set *pb.LeaseSet) {
	select {
	case <-l.out:
	default:
	}
	l.out <- set
}

// retry ends a pause.
func (l *link) retry() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// linkTo starts the link to a node, if there is none.
func (e *engine) linkTo(n *node) {
	if n.link != nil {
		return
	}
	ctx, cancel := context.WithCancel(e.bridge.ctx())
	l := &link{peer: n.id, out: make(chan *pb.LeaseSet, 1), again: make(chan struct{}, 1), cancel: cancel}
	n.link = l
	e.bridge.partners.Store(n.id, struct{}{})
	if !e.bridge.spawn(func() { e.keep(ctx, l) }) {
		cancel()
	}
}

// unlink ends the link to a node.
func (e *engine) unlink(n *node) {
	if n.link != nil {
		n.link.cancel()
		n.link, n.up = nil, false
		e.bridge.partners.Delete(n.id)
	}
}

// keep holds the stream open until ctx is done.
func (e *engine) keep(ctx context.Context, l *link) {
	defer l.cancel()
	pause := linkPause
	for ctx.Err() == nil {
		opened, err := e.stream(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if opened {
			pause = linkPause
		}
		e.log.Debug("lease stream ended", "peer", l.peer, "err", err)
		e.bridge.auth.forget(l.peer)
		if e.post(ctx, func(t *turn) { t.linkDown(l, err) }) != nil {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-l.again:
		case <-timer.C:
			pause = min(2*pause, linkPauses)
		}
		timer.Stop()
	}
}

// stream opens the lease stream once and serves it to its end.
func (e *engine) stream(ctx context.Context, l *link) (opened bool, err error) {
	dial, stop := context.WithTimeout(ctx, linkDial)
	defer stop()
	if _, err := e.bridge.auth.present(dial, l.peer); err != nil {
		return false, err
	}
	f, err := e.bridge.host.OpenDuplex(dial, l.peer, protocol.ProtoLease)
	if err != nil {
		return false, err
	}
	reports := make(chan error, 1)
	read := make(chan struct{}, 1)
	go func() { reports <- e.read(ctx, l, f, read) }()
	err = e.write(ctx, l, f, reports, read)
	if ctx.Err() != nil {
		_ = f.Close() // the node sees an orderly end
	} else {
		f.Reset()
	}
	_ = <-reports //nolint:staticcheck // the reader is gone, whatever it ended with; errcheck wants the blank
	return true, err
}

// write sends sets until the stream ends. The end of the reader is put back for the caller to wait for.
func (e *engine) write(ctx context.Context, l *link, f *p2p.Frames, reports chan error, read <-chan struct{}) error {
	if err := e.post(ctx, func(t *turn) { t.linkUp(l) }); err != nil {
		return err
	}
	silence := time.NewTimer(linkSilence)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-reports:
			reports <- err
			return err
		case <-read:
			silence.Reset(linkSilence)
		case <-silence.C:
			return errSilent
		case set := <-l.out:
			l.at.Store(e.now().UnixNano())
			l.seq.Store(set.GetSeq())
			if err := f.Write(set); err != nil {
				return err
			}
		}
	}
}

// errSilent ends a stream on which a node does not answer.
var errSilent = errors.New("beambridge: node does not answer on its lease stream")

// read takes reports until the stream ends.
func (e *engine) read(ctx context.Context, l *link, f *p2p.Frames, read chan<- struct{}) error {
	for {
		r := &pb.LeaseReport{}
		if err := f.Read(r); err != nil {
			return err
		}
		select {
		case read <- struct{}{}:
		default:
		}
		var rtt time.Duration
		if r.GetSeq() == l.seq.Load() {
			rtt = max(time.Microsecond, time.Duration(e.now().UnixNano()-l.at.Load()))
		}
		if err := e.post(ctx, func(t *turn) { t.reported(l.peer, r, rtt) }); err != nil {
			return err
		}
	}
}

// linkUp sends the node what it should hold, at once.
func (t *turn) linkUp(l *link) {
	n := t.e.nodes[l.peer]
	if n == nil || n.link != l {
		return
	}
	n.up = true
	n.alive(t.now)
	n.heard = t.now
	t.push[l.peer] = struct{}{}
	for _, j := range t.e.jobs { // whoever was silent for too long, or has restarted, is asked again
		if m := j.members[l.peer]; n.ready && j.over == "" && (m == nil || m.State != memberIs) {
			delete(j.refused, l.peer)
			t.e.fleet++
			t.e.replace(j, t.now)
		}
	}
}

// linkDown notes that a node is out of reach for now. Its leases lapse by their own clock; those that were
// restored after a restart are not waited for any longer than that.
func (t *turn) linkDown(l *link, err error) {
	n := t.e.nodes[l.peer]
	if n == nil || n.link != l {
		return
	}
	was := n.up
	n.up = false
	if errors.Is(err, p2p.ErrUnreachable) {
		for j := range n.jobs {
			j.tracker.Unreachable(l.peer, t.now)
		}
	}
	if was && errors.Is(err, errSilent) {
		t.observe(reputation.FromAnswer(l.peer, linkSilence, t.now))
	}
	if !n.wanted() && !n.ready {
		t.e.unlink(n)
	}
}
