package dht

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrMeasure means that a line was not measured.
var ErrMeasure = errors.New("dht: line not measured")

// Limits of /gridbeam/measure/1.0.0 (discovery.md 1.7). A frame is a varint length and a protobuf message.
const (
	measureFormat      = 1
	measureToken       = 16
	maxMeasureFrame    = 4 << 10
	maxMeasureStreams  = 16
	maxMeasureTime     = time.Minute
	minMeasureBytes    = 8 << 20
	measureHeader      = 5 * time.Second // for the first frame of a stream
	measureHeaders     = 256             // streams whose first frame is waited for at a time
	headersOfPeer      = maxMeasureStreams + 2
	headersOfNet       = 2 * headersOfPeer
	measureLife        = 36 * time.Hour // of what is signed
	measurePerNetwork  = 64             // sessions a day for callers of one IPv4 address or one IPv6 /48
	measureBusyDefault = 10 * time.Second
)

// priceTiers are the steps of protocol.LabelPriceTier in MB/s.
var priceTiers = []uint64{25, 50, 100, 200, 300, 400, 500, 1000}

// PriceTier names the highest step of protocol.LabelPriceTier that a line of so many bit/s down reaches; empty below
// the first.
func PriceTier(down uint64) string {
	name := ""
	for _, step := range priceTiers {
		if down >= step*8_000_000 {
			name = strconv.FormatUint(step, 10)
		}
	}
	return name
}

// lineLabels is what may be said of a line of so many bit/s. A line below the lowest step gets no label.
func lineLabels(up, down uint64) map[string]string {
	out := map[string]string{}
	if tier := BandwidthTier(down, up); tier != "none" {
		out[protocol.LabelTier] = tier
	}
	if tier := PriceTier(down); tier != "" {
		out[protocol.LabelPriceTier] = tier
	}
	return out
}

// dayQuota counts the measurements of a day. The counters start anew with each day; what all have together is bounded
// apart from this.
type dayQuota struct {
	day   int64
	taken usage // by caller, and by its network
	moved int64 // bytes, of each measurement those of its busier way
}

// take counts one measurement; it returns how long to wait when there is none left.
func (q *dayQuota) take(cfg *Config, caller, net string, now time.Time) time.Duration {
	const day = 24 * 3600
	if d := now.Unix() / day; d != q.day || q.taken == nil {
		*q = dayQuota{day: d, taken: usage{}}
	}
	q.taken.thin(2 * maxBuckets)
	if q.taken[caller] >= cfg.MeasureDaily || net != "" && q.taken[net] >= measurePerNetwork || q.moved >= int64(cfg.MeasureTotal) {
		return time.Unix((q.day+1)*day, 0).Sub(now)
	}
	q.taken[caller]++
	if net != "" {
		q.taken[net]++
	}
	return 0
}

// meters is the measuring that a peer does for others: one session at a time.
type meters struct {
	cfg   *Config
	heads *gate // of streams whose first frame is waited for

	mu      sync.Mutex
	stopped bool
	running sync.WaitGroup // streams in hand; grows under mu while stopped is false
	current *session
	quota   dayQuota
}

// session is one measurement, from its grant to its result.
type session struct {
	peer  peer.ID
	token [measureToken]byte
	until time.Time // when it is over at the latest
	most  int64     // bytes each way
	// joined has the data streams of each way that are expected still, with room for all there may be; guarded by
	// the lock of meters.
	joined map[pb.MeasureDirection]chan network.Stream
}

// serveMeasures measures whoever asks until the returned function is called, which waits for all that is under
// way.
func (d *Directory) serveMeasures(ctx context.Context) (stop func()) {
	m := &meters{cfg: &d.cfg, heads: newGate(measureHeaders, headersOfPeer, headersOfNet)}
	ctx, cancel := context.WithCancel(ctx)
	d.host.SetStreamHandler(protocol.ProtoMeasure, func(s network.Stream) {
		if !m.enter(askerOf(s.Conn())) {
			_ = s.Reset()
			return
		}
		defer m.running.Done()
		release := context.AfterFunc(ctx, func() { _ = s.Reset() })
		defer release()
		if err := d.measureStream(ctx, s, m); err != nil {
			d.log.Debug("line not measured", "peer", s.Conn().RemotePeer(), "err", err)
			_ = s.Reset()
		}
	})
	return func() {
		d.host.RemoveStreamHandler(protocol.ProtoMeasure)
		m.mu.Lock()
		m.stopped = true
		m.mu.Unlock()
		cancel()
		m.running.Wait()
	}
}

// enter says whether a stream is looked at.
func (m *meters) enter(who asker) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || !m.heads.enter(who) {
		return false
	}
	m.running.Add(1)
	return true
}

// measureStream reads what a stream is for. A data stream goes to its session, which owns it from then on.
func (d *Directory) measureStream(ctx context.Context, s network.Stream, m *meters) error {
	waiting := true
	known := func() { // its first frame is there
		if waiting {
			waiting = false
			m.heads.leave(askerOf(s.Conn()))
		}
	}
	defer known()
	if err := s.SetDeadline(time.Now().Add(measureHeader)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if err := s.Scope().ReserveMemory(maxMeasureFrame, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(maxMeasureFrame)
	raw, err := msgio.NewVarintReaderSize(struct{ io.Reader }{s}, maxMeasureFrame).ReadMsg()
	if err != nil {
		return fmt.Errorf("reading the first frame: %w", err)
	}
	known()
	ask, err := readMeasureRequest(raw)
	if err != nil {
		return refuse(s, pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_FORMAT, err.Error(), 0)
	}
	if join := ask.GetJoin(); join != nil {
		return m.join(s, join)
	}
	if s.Conn().Stat().Limited {
		return refuse(s, pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_RELAYED, "a line is measured over a direct connection, and this one goes through a relay", 0)
	}
	ses, refused := m.begin(s.Conn(), ask.GetBegin(), d.now())
	if refused != nil {
		return writeMeasure(s, &pb.MeasureReply{Part: &pb.MeasureReply_Refused{Refused: refused}}, true)
	}
	moved, err := d.measure(ctx, s, m, ses)
	m.end(ses, moved)
	return err
}

// readMeasureRequest reads the first frame of a stream; it is what the fuzzer drives. What it returns is a begin of
// a known format or a join with a token and a direction.
func readMeasureRequest(raw []byte) (*pb.MeasureRequest, error) {
	ask := &pb.MeasureRequest{}
	if err := proto.Unmarshal(raw, ask); err != nil {
		return nil, errors.New("this is no request to be measured")
	}
	switch part := ask.GetAsk().(type) {
	case *pb.MeasureRequest_Begin:
		if part.Begin.GetFormat() != measureFormat {
			return nil, fmt.Errorf("this peer reads format %d", measureFormat)
		}
		if most := part.Begin.GetMaxBytes(); most > 0 && most < minMeasureBytes {
			return nil, fmt.Errorf("max_bytes is %d, want at least %d", most, minMeasureBytes)
		}
	case *pb.MeasureRequest_Join:
		if len(part.Join.GetToken()) != measureToken || way(part.Join.GetDirection()) == 0 {
			return nil, errors.New("a data stream names its session and its direction")
		}
	default:
		return nil, errors.New("this peer takes begin and join")
	}
	return ask, nil
}

// way returns a direction that there is, else 0.
func way(d pb.MeasureDirection) pb.MeasureDirection {
	if d == pb.MeasureDirection_MEASURE_DIRECTION_UP || d == pb.MeasureDirection_MEASURE_DIRECTION_DOWN {
		return d
	}
	return 0
}

func refuse(s network.Stream, code pb.MeasureRefusalCode, text string, wait time.Duration) error {
	return writeMeasure(s, &pb.MeasureReply{Part: &pb.MeasureReply_Refused{Refused: refusedFor(code, text, wait)}}, true)
}

func refusedFor(code pb.MeasureRefusalCode, text string, wait time.Duration) *pb.MeasureRefused {
	return &pb.MeasureRefused{Code: code, Text: text, RetryAfterMs: uint32(min(max(wait, 0).Milliseconds(), math.MaxInt32))}
}

// writeMeasure sends a frame; the last one closes the stream.
func writeMeasure(s network.Stream, reply *pb.MeasureReply, last bool) error {
	raw, err := proto.Marshal(reply)
	if err == nil {
		err = msgio.NewVarintWriter(struct{ io.Writer }{s}).WriteMsg(raw)
	}
	if err == nil && last {
		err = s.Close()
	}
	if err != nil {
		return fmt.Errorf("writing an answer: %w", err)
	}
	return nil
}

// join hands a data stream to the session that it names; only the peer of that session may.
func (m *meters) join(s network.Stream, join *pb.MeasureJoin) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ses := m.current
	if ses == nil || ses.peer != s.Conn().RemotePeer() || s.Conn().Stat().Limited || subtle.ConstantTimeCompare(ses.token[:], join.GetToken()) != 1 {
		return errors.New("a data stream of no session")
	}
	select {
	case ses.joined[join.GetDirection()] <- s:
		return nil
	default:
		return errors.New("more data streams than were granted")
	}
}

// begin opens a session, or says why not.
func (m *meters) begin(c network.Conn, ask *pb.MeasureBegin, now time.Time) (*session, *pb.MeasureRefused) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current != nil {
		return nil, refusedFor(pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_BUSY, "somebody else is being measured", max(time.Until(m.current.until)/4, measureBusyDefault))
	}
	net := ""
	if !m.cfg.Loopback {
		net = netOf(c.RemoteMultiaddr(), 4, 6)
	}
	if wait := m.quota.take(m.cfg, "peer "+string(c.RemotePeer()), net, now); wait > 0 {
		return nil, refusedFor(pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_QUOTA, "this peer measures no more of you today", wait)
	}
	ses := &session{
		peer: c.RemotePeer(), until: time.Now().Add(sessionTime(m.cfg.MeasureTime)), most: int64(m.cfg.MeasureBytes),
		joined: map[pb.MeasureDirection]chan network.Stream{},
	}
	if most := ask.GetMaxBytes(); most > 0 && most < uint64(ses.most) {
		ses.most = int64(most)
	}
	_, _ = rand.Read(ses.token[:]) // never fails
	for _, way := range []pb.MeasureDirection{pb.MeasureDirection_MEASURE_DIRECTION_UP, pb.MeasureDirection_MEASURE_DIRECTION_DOWN} {
		ses.joined[way] = make(chan network.Stream, m.cfg.MeasureStreams)
	}
	m.current = ses
	return ses, nil
}

// joinTime is how long the data streams of one way may take to arrive when bytes flow for t: what the other way has
// left in buffers comes first.
func joinTime(t time.Duration) time.Duration { return 2*t + time.Second }

// sessionTime bounds a session with its last answer.
func sessionTime(t time.Duration) time.Duration { return 2*(t+joinTime(t)) + t + time.Second }

// end closes a session; its token is worth nothing from then on.
func (m *meters) end(ses *session, moved int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current = nil
	m.quota.moved += moved
	for way := range ses.joined {
		ses.shut(way)
	}
}

// shut takes no more streams of one way; the lock of meters is held.
func (ses *session) shut(way pb.MeasureDirection) {
	waiting := ses.joined[way]
	delete(ses.joined, way)
	for len(waiting) > 0 {
		_ = (<-waiting).Reset()
	}
}

// gather waits for the data streams of one way, of which there are no more then. It returns those that have come
// also with an error.
func (m *meters) gather(ctx context.Context, ses *session, way pb.MeasureDirection) (out []network.Stream, err error) {
	m.mu.Lock()
	waiting := ses.joined[way]
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		ses.shut(way)
	}()
	patience := joinTime(m.cfg.MeasureTime)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for len(out) < cap(waiting) {
		select {
		case s := <-waiting:
			out = append(out, s)
			if err := s.SetDeadline(ses.until); err != nil {
				return out, fmt.Errorf("setting a deadline: %w", err)
			}
		case <-timer.C:
			return out, fmt.Errorf("%d of %d data streams were opened in %s", len(out), cap(waiting), patience)
		case <-ctx.Done():
			return out, fmt.Errorf("waiting for data streams: %w", ctx.Err())
		}
	}
	return out, nil
}

// measure is a session from its grant to its end. It returns the bytes that went in the busier direction.
func (d *Directory) measure(ctx context.Context, s network.Stream, m *meters, ses *session) (moved int64, err error) {
	ctx, cancel := context.WithDeadline(ctx, ses.until)
	defer cancel()
	if err := s.SetDeadline(ses.until); err != nil {
		return 0, fmt.Errorf("setting a deadline: %w", err)
	}
	var listening sync.WaitGroup
	listening.Go(func() { // the caller says nothing more: whatever comes, it has gone
		_, _ = s.Read(make([]byte, 1))
		cancel()
	})
	defer func() { _ = s.CloseRead(); listening.Wait() }()
	granted := &pb.MeasureGranted{Token: ses.token[:], Streams: uint32(d.cfg.MeasureStreams), DurationMs: uint32(d.cfg.MeasureTime.Milliseconds()), MaxBytes: uint64(ses.most)}
	if err := writeMeasure(s, &pb.MeasureReply{Part: &pb.MeasureReply_Granted{Granted: granted}}, false); err != nil {
		return 0, err
	}
	// Down goes first: QUIC leaves its slow start too early for the second way, while the first one fills the line
	// (docs/network.md), and most lines carry less upwards.
	rates := map[pb.MeasureDirection]uint64{}
	for _, way := range []pb.MeasureDirection{pb.MeasureDirection_MEASURE_DIRECTION_DOWN, pb.MeasureDirection_MEASURE_DIRECTION_UP} {
		if len(rates) > 0 {
			if err := writeMeasure(s, &pb.MeasureReply{Part: &pb.MeasureReply_Turn{Turn: &pb.MeasureTurn{Direction: way}}}, false); err != nil {
				return moved, err
			}
		}
		rate, bytes, err := m.measure(ctx, ses, way)
		moved = max(moved, bytes)
		if err != nil {
			d.log.Debug("measurement broke off", "peer", ses.peer, "err", err)
			return moved, refuse(s, pb.MeasureRefusalCode_MEASURE_REFUSAL_CODE_FAILED, fmt.Sprintf("%.200s", err), 0)
		}
		rates[way] = rate
	}
	result, err := d.lineResult(ses.peer, rates[pb.MeasureDirection_MEASURE_DIRECTION_UP], rates[pb.MeasureDirection_MEASURE_DIRECTION_DOWN])
	if err != nil {
		return moved, err
	}
	return moved, writeMeasure(s, &pb.MeasureReply{Part: &pb.MeasureReply_Result{Result: result}}, true)
}

// lineResult signs what follows from a measurement.
func (d *Directory) lineResult(subject peer.ID, up, down uint64) (*pb.MeasureResult, error) {
	key := d.host.Peerstore().PrivKey(d.host.ID())
	out := &pb.MeasureResult{UpBps: up, DownBps: down}
	if key == nil {
		return out, nil // a host that keeps its key elsewhere signs nothing
	}
	var err error
	out.Labels, err = signLine(key, subject, up, down, d.now().Add(measureLife))
	return out, err
}

func signLine(key crypto.PrivKey, subject peer.ID, up, down uint64, expires time.Time) (out []*pb.Label, err error) {
	said := lineLabels(up, down)
	for _, name := range []string{protocol.LabelTier, protocol.LabelPriceTier} {
		if said[name] == "" {
			continue
		}
		l, err := protocol.SignLabel(key, subject, name, said[name], expires)
		if err != nil {
			return nil, fmt.Errorf("signing a label: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}
