package dht

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Bandwidth is what a peer has measured of our line.
type Bandwidth struct {
	// Peer has measured it; its own line may be what was slow.
	Peer peer.ID
	// At is when, by our clock.
	At time.Time
	// Up and Down are bit/s, from us to it and back.
	Up, Down uint64
	// Labels are what it has signed about us, verified: net.tier and net.price-tier, where the line reaches their
	// first step.
	Labels []*pb.Label
}

// MeasureRefusal tells that a peer did not measure us, and when to ask again; it unwraps to ErrMeasure.
type MeasureRefusal struct {
	// Busy says that somebody else was being measured; else our day's measurements are used up, or Text says more.
	Busy bool
	// After is how long to wait, at most 25 h; 0 is unknown.
	After time.Duration
	// Text is the peer's, clipped.
	Text string
}

// Error says it in a sentence.
func (e *MeasureRefusal) Error() string {
	if e.After > 0 {
		return fmt.Sprintf("%s: %q, again in %s", ErrMeasure, e.Text, e.After)
	}
	return fmt.Sprintf("%s: %q", ErrMeasure, e.Text)
}

// Unwrap returns ErrMeasure.
func (e *MeasureRefusal) Unwrap() error { return ErrMeasure }

const (
	maxMeasureWait   = 25 * time.Hour
	maxMeasureLabels = 8 // of one answer that are looked at
)

// Bandwidth has an index peer measure our line: for Config.MeasureTime of its own each way bytes flow as fast as
// they can. When ctx ends they stop at once. It returns ErrMeasure, as a *MeasureRefusal where the peer said why.
func (d *Directory) Bandwidth(ctx context.Context, of peer.ID) (Bandwidth, error) {
	if err := d.up(ctx); err != nil {
		return Bandwidth{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, sessionTime(maxMeasureTime)+d.cfg.QueryTimeout)
	defer cancel()
	m := &measuring{host: d.host, of: of, most: int64(d.cfg.MeasureBytes), answer: d.cfg.QueryTimeout}
	defer m.close()
	stop := context.AfterFunc(ctx, m.reset)
	defer stop()
	result, err := m.run(ctx)
	if err != nil {
		if cause := ctx.Err(); cause != nil {
			err = errors.Join(cause, err)
		}
		return Bandwidth{}, fmt.Errorf("being measured by %s: %w", of, err)
	}
	out := Bandwidth{Peer: of, At: d.now(), Up: result.GetUpBps(), Down: result.GetDownBps()}
	out.Labels = goodLabels(result, of, d.host.ID(), out.At)
	return out, nil
}

// goodLabels are the labels of a result that its peer has signed about us, that say what its figures say, once each.
func goodLabels(result *pb.MeasureResult, of, self peer.ID, now time.Time) (out []*pb.Label) {
	said := lineLabels(result.GetUpBps(), result.GetDownBps())
	all := result.GetLabels()
	for _, l := range all[:min(len(all), maxMeasureLabels)] {
		issuer, ok := protocol.VerifyLabel(l, self, now)
		if !ok || issuer != of || said[l.GetKey()] == "" || said[l.GetKey()] != l.GetValue() {
			continue
		}
		delete(said, l.GetKey())
		out = append(out, l)
	}
	return out
}

// measuring is one session, seen from who is measured.
type measuring struct {
	host interface {
		NewStream(ctx context.Context, p peer.ID, pids ...libprotocol.ID) (network.Stream, error)
	}
	of     peer.ID
	most   int64         // bytes each way; the peer may want less
	answer time.Duration // patience for the first answer

	sent, got atomic.Int64 // bytes
	work      sync.WaitGroup

	mu     sync.Mutex
	all    []network.Stream
	closed bool
}

// reset ends all streams, those too that are opened just now.
func (m *measuring) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, s := range m.all {
		_ = s.Reset()
	}
}

// close waits for what runs on them.
func (m *measuring) close() {
	m.reset()
	m.work.Wait()
}

// open opens a stream and sends its first frame.
func (m *measuring) open(ctx context.Context, first *pb.MeasureRequest) (network.Stream, error) {
	s, err := m.host.NewStream(ctx, m.of, protocol.ProtoMeasure)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMeasure, err)
	}
	m.mu.Lock()
	m.all = append(m.all, s)
	closed := m.closed
	m.mu.Unlock()
	if closed || s.Conn().Stat().Limited {
		_ = s.Reset()
		return nil, fmt.Errorf("%w: there is no direct connection", ErrMeasure)
	}
	raw, err := proto.Marshal(first)
	if err == nil {
		err = msgio.NewVarintWriter(struct{ io.Writer }{s}).WriteMsg(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMeasure, err)
	}
	return s, nil
}

// run is the session.
func (m *measuring) run(ctx context.Context) (*pb.MeasureResult, error) {
	control, err := m.open(ctx, &pb.MeasureRequest{Ask: &pb.MeasureRequest_Begin{Begin: &pb.MeasureBegin{Format: measureFormat, MaxBytes: uint64(m.most)}}})
	if err != nil {
		return nil, err
	}
	if err := control.SetDeadline(time.Now().Add(m.answer)); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	in := struct{ io.Reader }{control}
	granted, err := readMeasureReply(in, func(r *pb.MeasureReply) *pb.MeasureGranted { return r.GetGranted() })
	if err != nil {
		return nil, err
	}
	m.most = int64(min(uint64(m.most), granted.GetMaxBytes()))
	duration := time.Duration(granted.GetDurationMs()) * time.Millisecond
	if err := control.SetDeadline(time.Now().Add(sessionTime(duration))); err != nil {
		return nil, fmt.Errorf("setting a deadline: %w", err)
	}
	first, err := m.join(ctx, granted, pb.MeasureDirection_MEASURE_DIRECTION_DOWN, m.echo)
	if err != nil {
		return nil, err
	}
	turn, err := readMeasureReply(in, func(r *pb.MeasureReply) *pb.MeasureTurn { return r.GetTurn() })
	if err != nil {
		return nil, err
	}
	if turn.GetDirection() != pb.MeasureDirection_MEASURE_DIRECTION_UP {
		return nil, fmt.Errorf("%w: a turn to nowhere", ErrMeasure)
	}
	for _, s := range first {
		_ = s.Reset()
	}
	if _, err := m.join(ctx, granted, pb.MeasureDirection_MEASURE_DIRECTION_UP, m.send); err != nil {
		return nil, err
	}
	result, err := readMeasureReply(in, func(r *pb.MeasureReply) *pb.MeasureResult { return r.GetResult() })
	if err != nil {
		return nil, err
	}
	if !plausible(result.GetUpBps(), m.sent.Load(), duration, m.most) || !plausible(result.GetDownBps(), m.got.Load(), duration, m.most) {
		return nil, fmt.Errorf("%w: the peer says %d bit/s up and %d down, which is more than what has flowed", ErrMeasure, result.GetUpBps(), result.GetDownBps())
	}
	return result, nil
}

// plausible says whether so many bytes can have been so many bit/s, which is seen where the time was not cut short
// by the most that may flow.
func plausible(rate uint64, moved int64, d time.Duration, most int64) bool {
	return moved >= most/2 || float64(rate)/8*d.Seconds()*7/8 <= float64(moved)*1.02+1
}

// join opens the data streams of one way and starts what runs on each.
func (m *measuring) join(ctx context.Context, granted *pb.MeasureGranted, way pb.MeasureDirection, run func(network.Stream)) (out []network.Stream, err error) {
	for range granted.GetStreams() {
		s, err := m.open(ctx, &pb.MeasureRequest{Ask: &pb.MeasureRequest_Join{Join: &pb.MeasureJoin{Token: granted.GetToken(), Direction: way}}})
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	for _, s := range out {
		if err := s.Scope().ReserveMemory(measureChunk, network.ReservationPriorityMedium); err != nil {
			return nil, fmt.Errorf("reserving memory: %w", err)
		}
		m.work.Go(func() {
			defer s.Scope().ReleaseMemory(measureChunk)
			run(s)
		})
	}
	return out, nil
}

// send writes until the peer has measured enough, or the most that may flow has.
func (m *measuring) send(s network.Stream) {
	block := make([]byte, measureBlock)
	_, _ = rand.Read(block) // never fails; nothing on the way can make it smaller
	for m.sent.Load() < m.most {
		n, err := s.Write(block)
		m.sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// echo reads chunks and gives their nonces back, until the peer has measured enough.
func (m *measuring) echo(s network.Stream) {
	chunk := make([]byte, measureChunk)
	for m.got.Load() < m.most+measureChunk*maxMeasureStreams {
		n, err := io.ReadFull(s, chunk)
		m.got.Add(int64(n))
		if err != nil {
			return
		}
		if _, err := s.Write(chunk[measureChunk-measureNonce:]); err != nil {
			return
		}
	}
	_ = s.Reset() // it sends more than we have asked for
}

// readMeasureReply reads one frame, which has to have the part that is due; it returns a *MeasureRefusal for a
// refusal. It is what the fuzzer drives.
func readMeasureReply[P interface {
	*pb.MeasureGranted | *pb.MeasureTurn | *pb.MeasureResult
}](in io.Reader, part func(*pb.MeasureReply) P,
) (P, error) {
	frames := msgio.NewVarintReaderSize(in, maxMeasureFrame)
	raw, err := frames.ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMeasure, err)
	}
	reply := &pb.MeasureReply{}
	err = proto.Unmarshal(raw, reply)
	frames.ReleaseMsg(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMeasure, err)
	}
	if r := reply.GetRefused(); r != nil {
		return nil, &MeasureRefusal{
			Busy:  r.GetCode() == pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_BUSY,
			After: min(time.Duration(r.GetRetryAfterMs())*time.Millisecond, maxMeasureWait),
			Text:  fmt.Sprintf("%.200s", r.GetText()),
		}
	}
	if g := reply.GetGranted(); g != nil {
		n, ms := g.GetStreams(), g.GetDurationMs()
		if len(g.GetToken()) != measureToken || n < 1 || n > maxMeasureStreams || ms < 1 || ms > uint32(maxMeasureTime.Milliseconds()) || g.GetMaxBytes() < 1 {
			return nil, fmt.Errorf("%w: a session of %d streams, %d ms and %d bytes", ErrMeasure, n, ms, g.GetMaxBytes())
		}
	}
	p := part(reply)
	if p == nil {
		return nil, fmt.Errorf("%w: an answer to another question", ErrMeasure)
	}
	return p, nil
}

// Measurer is an index peer that may measure us.
type Measurer struct {
	// Peer is who.
	Peer peer.ID
	// Network tells networks apart: of two with the same one says little more than the other. On loopback each peer
	// has its own.
	Network string
}

// Measurers returns index peers in the order in which they are to be asked: those of a network that none before
// them has come first. known are peers that we know some other way: those that speak the protocol are taken.
func (d *Directory) Measurers(ctx context.Context, known ...peer.ID) ([]Measurer, error) {
	if err := d.up(ctx); err != nil {
		return nil, err
	}
	ids := slices.DeleteFunc(slices.Clone(known), func(id peer.ID) bool {
		speaks, err := d.host.Peerstore().SupportsProtocols(id, protocol.ProtoMeasure)
		return err != nil || len(speaks) == 0
	})
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ColdTimeout)
	defer cancel()
	found, _ := d.indexPeers(ctx, false)
	for _, id := range found {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	var all []Measurer
	for _, id := range ids {
		if id != d.host.ID() {
			all = append(all, Measurer{Peer: id, Network: d.networkOf(id)})
		}
	}
	return spread(all), nil
}

// networkOf names the /16 (IPv6: /32) that a peer is in, by a connection to it, else by its addresses.
func (d *Directory) networkOf(id peer.ID) string {
	own := "peer " + string(id)
	if d.cfg.Loopback {
		return own
	}
	for _, c := range d.host.Network().ConnsToPeer(id) {
		if net := netOf(c.RemoteMultiaddr(), 2, 4); net != "" && !c.Stat().Limited {
			return net
		}
	}
	for _, a := range d.host.Peerstore().Addrs(id) {
		if net := netOf(a, 2, 4); net != "" {
			return net
		}
	}
	return own
}

// spread puts the first of each network before all others, else keeps the order.
func spread(all []Measurer) (out []Measurer) {
	seen := map[string]bool{}
	var again []Measurer
	for _, m := range all {
		if seen[m.Network] {
			again = append(again, m)
			continue
		}
		seen[m.Network] = true
		out = append(out, m)
	}
	return append(out, again...)
}
