package beambridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// listenAfter is how long a chunk runs before its output is listened to as it comes: that of a shorter one comes
	// with its result.
	listenAfter = 100 * time.Millisecond
	// lateOutput is how long a result waits for the end of its output.
	lateOutput = 3 * time.Second
	// mostOutput bounds the output that waits for a slow caller, in bytes; beyond, the oldest is lost.
	mostOutput = 8 << 20
)

// callEnd is how a call ended.
type callEnd struct {
	row     store.Call
	outcome protocol.InputOutcome
	spec    *callSpec
}

// waiter is somebody who waits for a call: output first, then its end.
type waiter struct {
	mu      sync.Mutex
	output  []string
	size    int
	lost    int
	end     *callEnd
	heard   *listening
	changed chan struct{} // capacity 1
}

// listening is the output of one lease as its node tells it.
type listening struct {
	lease protocol.LeaseID
	done  chan struct{} // closed at its end
	lines map[uint64]int
	left  atomic.Int32       // calls of it that have not ended
	stop  context.CancelFunc // ends it, whatever its node says
}

// leave says that a call of it wants no more lines; with the last one the listening ends.
func (l *listening) leave() {
	if l.left.Add(-1) <= 0 && l.stop != nil {
		l.stop()
	}
}

func newWaiter() *waiter { return &waiter{changed: make(chan struct{}, 1)} }

// print hands on output. It never waits: who is slow loses the oldest.
func (w *waiter) print(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(text)
}

// printFrom is print for what a listening heard, while it is the one that counts for this call.
func (w *waiter) printFrom(l *listening, text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard != l {
		return false
	}
	w.put(text)
	return true
}

// put appends output; the caller holds mu.
func (w *waiter) put(text string) {
	if w.end != nil || text == "" {
		return
	}
	w.output = append(w.output, text)
	w.size += len(text)
	for w.size > mostOutput && len(w.output) > 1 {
		w.size -= len(w.output[0])
		w.lost += len(w.output[0])
		w.output = w.output[1:]
	}
	poke(w.changed)
}

// finish hands on the end; nothing follows it.
func (w *waiter) finish(end *callEnd) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.end == nil {
		w.end = end
		poke(w.changed)
	}
}

// next waits for output or the end. After the end it returns the end again.
func (w *waiter) next(ctx context.Context) (output string, end *callEnd, err error) {
	for {
		w.mu.Lock()
		if len(w.output) > 0 {
			output = strings.Join(w.output, "")
			if w.lost > 0 {
				output = fmt.Sprintf("gridbeam: %d bytes of output were lost, for they came faster than they were taken\n", w.lost) + output
			}
			w.output, w.size, w.lost = nil, 0, 0
			w.mu.Unlock()
			return output, nil, nil
		}
		end = w.end
		w.mu.Unlock()
		if end != nil {
			return "", end, nil
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
}

// hear notes whose lines count from now on, nil for nobody's: those of a node that has lost the call do not.
func (w *waiter) hear(l *listening) {
	w.mu.Lock()
	old := w.heard
	w.heard = l
	w.mu.Unlock()
	if old != nil && old != l {
		old.leave()
	}
}

// hearing returns whose lines count, nil for nobody's.
func (w *waiter) hearing() *listening {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard
}

// listenTo reads a lease's output from its node for those who wait for its calls, once it has run for a while.
func (b *Bridge) listenTo(j *job, seat logOf) {
	b.spawn(func() {
		timer := time.NewTimer(listenAfter)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-b.ctx().Done():
			return
		}
		ctx, stop := context.WithCancel(b.ctx())
		defer stop()
		l := &listening{lease: seat.lease, done: make(chan struct{}), lines: map[uint64]int{}, stop: stop}
		waiting, err := ask(b.ctx(), b.engine, func(*turn) (map[uint64]*waiter, error) {
			out := map[uint64]*waiter{}
			for i := seat.first; i < seat.end; i++ {
				if c := j.calls.open[i]; c != nil && c.wait != nil && c.lease == seat.lease {
					out[i] = c.wait
					l.left.Add(1)
					c.wait.hear(l)
				}
			}
			return out, nil
		})
		if err == nil && len(waiting) > 0 {
			b.listen(ctx, seat, l, waiting)
		}
		close(l.done)
	})
}

// listen reads a lease's output to its end.
func (b *Bridge) listen(ctx context.Context, seat logOf, l *listening, to map[uint64]*waiter) {
	s, err := b.host.OpenDuplex(ctx, seat.node, protocol.ProtoLogs)
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, s.Reset)
	defer stop()
	defer s.Reset()
	if err := s.Write(&pb.LogRequest{LeaseId: seat.lease[:], Follow: true, Lines: true}); err != nil {
		return
	}
	for {
		c := &pb.LogChunk{}
		if err := s.Read(c); err != nil {
			if !errors.Is(err, io.EOF) && p2p.CodeOf(err) == 0 {
				b.log.Debug("the output of a chunk ended early", "lease", seat.lease, "peer", seat.node, "err", err)
			}
			return
		}
		if n := c.GetDropped(); n > 0 {
			for _, w := range to {
				w.printFrom(l, fmt.Sprintf("gridbeam: %d bytes of output were dropped on the node\n", n))
			}
		}
		for _, line := range c.GetLines() {
			// Of others nobody asks, and a node may name any.
			if w := to[line.GetInput()]; w != nil && w.printFrom(l, clipLine(string(line.GetText()))+"\n") {
				l.lines[line.GetInput()]++
			}
		}
		if c.GetEnd() {
			return
		}
	}
}

// callEnded tells whoever waits that a call has ended: what it has written is merged into its volumes before, and
// its output told to the end. It is called by the engine after the commit.
func (b *Bridge) callEnded(end *callEnd, w *waiter, lease protocol.LeaseID) {
	var l *listening
	if w != nil {
		l = w.hearing()
	}
	if !end.row.Written.Defined() && (w == nil || l == nil && end.outcome.LogDropped == 0) {
		if w != nil {
			w.tell(end, 0)
		}
		return
	}
	if !b.spawn(func() {
		if end.row.Written.Defined() {
			b.mergeWritten(b.ctx(), end)
		}
		if w == nil {
			return
		}
		if l == nil && end.outcome.LogDropped > 0 {
			l = &listening{lease: lease, done: make(chan struct{}), lines: map[uint64]int{}}
			w.hear(l)
			ctx, stop := context.WithTimeout(b.ctx(), lateOutput)
			b.listen(ctx, logOf{lease: lease, node: end.row.Node}, l, map[uint64]*waiter{end.row.Input: w})
			stop()
			close(l.done)
		}
		told := 0
		if l != nil {
			timer := time.NewTimer(lateOutput)
			defer timer.Stop()
			select {
			case <-l.done:
				told = l.lines[end.row.Input]
			case <-timer.C:
				told = len(end.outcome.Log) // it is still being told; what is late is lost
			case <-b.ctx().Done():
			}
		}
		w.hear(nil)
		w.tell(end, told)
	}) && w != nil {
		w.tell(end, 0)
	}
}

// tell prints what a call has printed beyond the lines that were told already, and then its end.
func (w *waiter) tell(end *callEnd, told int) {
	var text strings.Builder
	for _, line := range end.outcome.Log[min(told, len(end.outcome.Log)):] {
		text.WriteString(strings.ToValidUTF8(line.Line, "�"))
		text.WriteByte('\n')
	}
	if told == 0 && end.outcome.LogDropped > 0 {
		fmt.Fprintf(&text, "gridbeam: %d bytes of output could not be fetched\n", end.outcome.LogDropped)
	}
	w.print(text.String())
	w.finish(end)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
