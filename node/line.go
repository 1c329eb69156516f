package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// When a line is measured, and by whom (discovery.md 1.7).
const (
	lineQuiet    = 30 * time.Second // without a lease before a measurement begins; also after the start
	lineEvery    = 24 * time.Hour   // give or take a tenth
	lineFresh    = 20 * time.Hour   // so young a figure is not taken again
	lineLife     = 36 * time.Hour   // of a figure, as of the labels that come with it
	linePeers    = 2                // who measure
	lineTries    = 6                // peers of a round that are asked
	lineRetry    = 10 * time.Minute // after a round that found nobody, doubling
	lineRetryMax = 2 * time.Hour
	lineBusy     = time.Minute // after one in which somebody else was being measured
	lineFormat   = 1
	maxLineFile  = 64 << 10 // bytes
)

// line has peers measure how fast this machine's line is, and keeps what they found.
type line struct {
	self protocol.PeerID
	path string // of the file
	now  func() time.Time
	log  *slog.Logger
	// measurers are those who may be asked, the best first; ask has one of them measure.
	measurers func(ctx context.Context) ([]dht.Measurer, error)
	ask       func(ctx context.Context, of protocol.PeerID) (dht.Bandwidth, error)
	// leases counts leases in hand, with what is closed when there is one less; idle says whether there is none,
	// with what is closed when one comes.
	leases func() (n int, fewer <-chan struct{})
	idle   func() (none bool, more <-chan struct{})
	// changed tells that the record says something else now.
	changed func()
	roll    func() float64 // 0 up to 1

	mu      sync.Mutex
	next    time.Time
	failed  int // rounds in a row that found nobody
	peers   []dht.Bandwidth
	problem string
}

// lineFile is Data/line.json.
type lineFile struct {
	Format int             `json:"format"`
	Node   protocol.PeerID `json:"node"`
	Next   time.Time       `json:"next"`
	Peers  []linePeer      `json:"peers"`
}

type linePeer struct {
	LinePeer
	Labels []string `json:"labels,omitempty"` // protocol.LabelText
}

// LineStatus is how fast the machine's line is, as peers have measured it.
type LineStatus struct {
	// Off says that nobody measures it: Config.Measure.
	Off bool `json:"off,omitempty"`
	// Up and Down are what the record says, in bit/s; 0 when nobody has measured it for 36 h.
	Up uint64 `json:"up_bps"`
	// Down is the way to this machine, in bit/s.
	Down uint64 `json:"down_bps"`
	// Peers are who has measured it, and what they found.
	Peers []LinePeer `json:"peers,omitempty"`
	// Next is when it is measured again, or a little later while there is work.
	Next time.Time `json:"next,omitzero"`
	// Problem says why there is less than there could be, empty when nothing is wrong.
	Problem string `json:"problem,omitempty"`
}

// LinePeer is what one peer has measured.
type LinePeer struct {
	// Peer has measured, at At.
	Peer protocol.PeerID `json:"peer"`
	// At is when.
	At time.Time `json:"at"`
	// Up and Down are bit/s.
	Up uint64 `json:"up_bps"`
	// Down is the way to this machine.
	Down uint64 `json:"down_bps"`
}

// lineFacts are what the record says of the line; At is zero when that is nothing.
type lineFacts struct {
	Up, Down uint64
	At       time.Time
	Labels   []*pb.Label
}

// newLine makes the part that a site has measured, with what was found before its start.
func (s *site) newLine() *line {
	l := &line{
		self: s.host.ID(), path: s.cfg.path("line.json"), now: s.cfg.Clock, log: s.log, ask: s.dir.Bandwidth,
		leases: s.book.unfinished, idle: s.book.idle, changed: s.announce.RecordChanged, roll: rand.Float64,
		measurers: func(ctx context.Context) ([]dht.Measurer, error) {
			known := make([]protocol.PeerID, 0, len(s.boot))
			for id := range s.boot {
				known = append(known, id)
			}
			for id := range s.gate.known() {
				if !s.boot[id] {
					known = append(known, id)
				}
			}
			slices.Sort(known)
			return s.dir.Measurers(ctx, known...)
		},
	}
	if err := l.load(); err != nil {
		s.log.Warn("what was measured of the line before is not known; it is measured again", "err", err)
	}
	return l
}

// run measures until ctx ends.
func (l *line) run(ctx context.Context) error {
	for {
		l.mu.Lock()
		wait := l.next.Sub(l.now())
		l.mu.Unlock()
		if !pass(ctx, wait, nil) {
			return nil
		}
		more, ok := l.quiet(ctx)
		if !ok {
			return nil
		}
		l.measure(ctx, more)
	}
}

// pass waits; it says false when ctx or broken ends first.
func pass(ctx context.Context, d time.Duration, broken <-chan struct{}) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-broken:
	case <-ctx.Done():
	}
	return false
}

// quiet waits until there was no lease for a while; it returns what is closed when one comes.
func (l *line) quiet(ctx context.Context) (more <-chan struct{}, ok bool) {
	for ctx.Err() == nil {
		n, fewer := l.leases()
		none, more := l.idle()
		switch {
		case n > 0:
			select {
			case <-fewer:
			case <-ctx.Done():
			}
		case none && pass(ctx, lineQuiet, more):
			return more, true
		}
	}
	return nil, false
}

// measure is one round, which ends at once when a lease comes.
func (l *line) measure(ctx context.Context, lease <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		select {
		case <-lease:
			cancel()
		case <-ctx.Done():
		}
	})
	r := l.round(ctx)
	l.mu.Lock()
	l.next, l.failed = r.next(l.now(), l.failed, l.roll())
	if l.problem = ""; r.err != nil && ctx.Err() == nil {
		l.problem = r.err.Error()
	}
	l.mu.Unlock()
	if err := l.save(); err != nil {
		l.log.Warn("what was measured of the line is not kept", "err", err)
	}
	if r.found > 0 {
		up, down := l.facts(l.now()).Up, l.facts(l.now()).Down
		l.log.Info("peers have measured the line", "peers", r.found, "up_bps", up, "down_bps", down)
		l.changed()
	}
}

// roundOf is what came of a round.
type roundOf struct {
	have  int           // peers whose figures are young
	found int           // of them those of this round
	busy  bool          // somebody else was being measured
	after time.Duration // what such a peer asks to wait
	cut   bool          // it did not come to its end
	err   error         // the last one
}

// round has peers measure until there are enough figures.
func (l *line) round(ctx context.Context) (r roundOf) {
	fresh := map[protocol.PeerID]bool{}
	l.mu.Lock()
	for _, b := range l.peers {
		if age := l.now().Sub(b.At); age >= 0 && age < lineFresh {
			fresh[b.Peer] = true
		}
	}
	l.mu.Unlock()
	r.have = len(fresh)
	all, err := l.measurers(ctx)
	switch {
	case err != nil:
		r.err = fmt.Errorf("looking for index peers: %w", err)
	case len(all) == 0:
		r.err = errors.New("no index peer is known that could measure the line")
	}
	tries := 0
	for _, m := range all {
		if r.have >= linePeers || tries == lineTries || ctx.Err() != nil {
			break
		}
		if fresh[m.Peer] {
			continue
		}
		tries++
		b, err := l.ask(ctx, m.Peer)
		if err != nil {
			r.err = err
			if no, ok := errors.AsType[*dht.MeasureRefusal](err); ok && no.Busy {
				r.busy, r.after = true, max(r.after, no.After)
			}
			l.log.Debug("a peer did not measure the line", "peer", m.Peer, "err", err)
			continue
		}
		l.take(b)
		r.have, r.found = r.have+1, r.found+1
	}
	r.cut = ctx.Err() != nil && r.have < linePeers
	if r.have >= linePeers {
		r.err = nil
	}
	return r
}

// next says when the next round is, and how many have failed in a row.
func (r *roundOf) next(now time.Time, failed int, roll float64) (time.Time, int) {
	switch {
	case r.cut: // by a lease; quiet waits for its end
		return now, failed
	case r.have < linePeers && r.busy:
		return now.Add(max(r.after, lineBusy) + time.Duration(roll*float64(lineBusy))), failed
	case r.have == 0:
		pause := min(lineRetry<<min(failed, 10), lineRetryMax)
		return now.Add(spread(pause, roll)), failed + 1
	}
	return now.Add(spread(lineEvery, roll)), 0
}

// spread is a time give or take a tenth.
func spread(d time.Duration, roll float64) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*roll))
}

// take keeps what a peer has found, in place of what it found before.
func (l *line) take(b dht.Bandwidth) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers = slices.DeleteFunc(l.peers, func(old dht.Bandwidth) bool { return old.Peer == b.Peer || l.now().Sub(old.At) > lineLife })
	l.peers = append(l.peers, b)
}

// facts are what the record says. Of several figures it is the second highest: the lowest may be that of a peer with a
// slow line, and the highest that of one who says too much.
func (l *line) facts(now time.Time) (f lineFacts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ups, downs []uint64
	for _, b := range l.peers {
		if age := now.Sub(b.At); age > lineLife || age < -time.Hour {
			continue
		}
		ups, downs = append(ups, b.Up), append(downs, b.Down)
		if b.At.After(f.At) {
			f.At = b.At
		}
		for _, x := range b.Labels {
			if x.GetExpires() > now.UnixMilli() {
				f.Labels = append(f.Labels, x)
			}
		}
	}
	f.Up, f.Down = secondHighest(ups), secondHighest(downs)
	return f
}

// secondHighest is the only one if there is one, and 0 if there is none.
func secondHighest(all []uint64) uint64 {
	slices.Sort(all)
	switch n := len(all); n {
	case 0:
		return 0
	case 1:
		return all[0]
	default:
		return all[n-2]
	}
}

// status tells the owner.
func (l *line) status(now time.Time) LineStatus {
	f := l.facts(now)
	l.mu.Lock()
	defer l.mu.Unlock()
	out := LineStatus{Up: f.Up, Down: f.Down, Next: l.next, Problem: l.problem}
	for _, b := range l.peers {
		if now.Sub(b.At) <= lineLife {
			out.Peers = append(out.Peers, LinePeer{b.Peer, b.At, b.Up, b.Down})
		}
	}
	return out
}

// save writes the file, whole or not at all.
func (l *line) save() error {
	l.mu.Lock()
	f := lineFile{Format: lineFormat, Node: l.self, Next: l.next.UTC()}
	var errs []error
	for _, b := range l.peers {
		p := linePeer{LinePeer: LinePeer{b.Peer, b.At.UTC(), b.Up, b.Down}}
		for _, x := range b.Labels {
			text, err := protocol.LabelText(x)
			errs = append(errs, err)
			p.Labels = append(p.Labels, text)
		}
		f.Peers = append(f.Peers, p)
	}
	l.mu.Unlock()
	raw, err := json.MarshalIndent(f, "", "  ")
	if err := errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("writing %s: %w", l.path, err)
	}
	tmp := filepath.Join(filepath.Dir(l.path), ".line.json.new")
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", l.path, err)
	}
	if err := os.Rename(tmp, l.path); err != nil {
		return fmt.Errorf("writing %s: %w", l.path, err)
	}
	return nil
}

// load reads the file; none is no error.
func (l *line) load() error {
	st, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && st.Size() > maxLineFile {
		err = fmt.Errorf("%s has %d bytes, at most %d are read", l.path, st.Size(), maxLineFile)
	}
	var raw []byte
	if err == nil {
		raw, err = os.ReadFile(l.path)
	}
	if err != nil {
		return fmt.Errorf("reading what was measured: %w", err)
	}
	peers, next, err := readLine(raw, l.self, l.now())
	if err != nil {
		return fmt.Errorf("reading %s: %w", l.path, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers, l.next = peers, next
	return nil
}

// readLine reads a file of this node; figures that are too old or of the future are left out, and labels that do not
// verify. A next round too far ahead is now.
func readLine(raw []byte, self protocol.PeerID, now time.Time) (peers []dht.Bandwidth, next time.Time, err error) {
	var f lineFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, next, fmt.Errorf("it is damaged: %w", err)
	}
	if f.Format != lineFormat {
		return nil, next, fmt.Errorf("it has format %d, this version reads %d", f.Format, lineFormat)
	}
	if f.Node != self {
		return nil, next, nil // of another identity
	}
	for _, p := range f.Peers[:min(len(f.Peers), 4*lineTries)] {
		if age := now.Sub(p.At); age > lineLife || age < 0 || p.Peer.Validate() != nil {
			continue
		}
		b := dht.Bandwidth{Peer: p.Peer, At: p.At, Up: p.Up, Down: p.Down}
		for _, text := range p.Labels {
			if x, err := protocol.ParseLabel(text, self, now); err == nil && protocol.PeerID(x.GetIssuer()) == p.Peer {
				b.Labels = append(b.Labels, x)
			}
		}
		peers = append(peers, b)
	}
	if f.Next.Before(now.Add(lineEvery * 6 / 5)) {
		next = f.Next
	}
	return peers, next, nil
}
