package dht

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	kadrecordpb "github.com/libp2p/go-libp2p-record/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrScan means that a peer answered a scan with an error or with what is no answer.
var ErrScan = errors.New("dht: scan failed")

// Limits of /gridbeam/scan/1.0.0 (discovery.md 5), in bytes and peers. A frame is a varint length and a
// protobuf message.
const (
	maxScanRequest = 1 << 10
	maxScanFrame   = 256 << 10
	maxScanPage    = 2 << 20
	maxScanPeers   = 8192
	maxScanRow     = protocol.MaxCapability + 128
	scanReserve    = 2 << 20 // what a server sets aside for the page that it makes
	scanKey        = 32
)

// keyOf is where a peer's record lies in the Kademlia key space.
func keyOf(id peer.ID) [scanKey]byte { return sha256.Sum256([]byte(capabilityKey(id))) }

// scans are what all answers may cost, and what those of each peer have cost.
type scans struct {
	limit *rate.Limiter // bytes
	quota int

	mu   sync.Mutex
	hour int64
	sent usage
}

func newScans(cfg *Config) *scans {
	return &scans{
		limit: rate.NewLimiter(rate.Limit(cfg.ScanRate), max(cfg.ScanRate/8, maxScanFrame)), quota: cfg.ScanQuota, sent: usage{},
	}
}

// scanGate has a slot a peer, and a quarter of all for one network.
func scanGate(cfg *Config) *gate { return newGate(cfg.ScanStreams, 1, max(1, cfg.ScanStreams/4)) }

// spend counts bytes against the hour of a peer and of its network; it returns how long to wait when they are used up.
// The counters start anew with each hour; what all may have together is bounded apart from this.
func (s *scans) spend(who asker, n int, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := now.Unix() / 3600; h != s.hour {
		s.hour = h
		clear(s.sent)
	}
	if !s.sent.spend(who, n, s.quota, scanNetShare) {
		return time.Unix((s.hour+1)*3600, 0).Sub(now)
	}
	return 0
}

// serveScans answers until the returned function is called, which waits for the answers under way.
func (d *Directory) serveScans(ctx context.Context) (stop func()) {
	state := newScans(&d.cfg)
	o := &door{
		most: maxScanRequest, slots: scanGate(&d.cfg), rates: newAskRates(float64(d.cfg.QueryRate), 4*float64(d.cfg.QueryRate)),
		refuse: func(s network.Stream, wait time.Duration) error {
			return writeScan(queryWriter(s), scanError(pb.ScanErrorCode_SCAN_ERROR_CODE_RATE, "too many scans", wait))
		},
		answer: func(ctx context.Context, s network.Stream, who asker, raw []byte) error {
			return d.answerScan(ctx, s, who, raw, state)
		},
	}
	return o.open(ctx, d, protocol.ProtoScan)
}

// answerScan sends the frames that answer a request, no faster than all scans may.
func (d *Directory) answerScan(ctx context.Context, s network.Stream, who asker, raw []byte, state *scans) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ScanTimeout)
	defer cancel()
	if err := s.SetDeadline(time.Now().Add(d.cfg.ScanTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if err := s.Scope().ReserveMemory(scanReserve, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(scanReserve)
	w := queryWriter(s)
	for reply := range d.scanReplies(ctx, raw) {
		size := proto.Size(reply)
		if wait := state.spend(who, size, d.now()); wait > 0 {
			return writeScan(w, scanError(pb.ScanErrorCode_SCAN_ERROR_CODE_RATE, "this hour's bytes are used up", wait))
		}
		if err := state.limit.WaitN(ctx, min(size, maxScanFrame)); err != nil {
			return fmt.Errorf("waiting to send: %w", err)
		}
		if err := writeScan(w, reply); err != nil {
			return err
		}
	}
	return nil
}

func writeScan(w msgio.Writer, reply *pb.ScanReply) error {
	raw, err := proto.Marshal(reply)
	if err == nil {
		err = w.WriteMsg(raw)
	}
	if err != nil {
		return fmt.Errorf("writing an answer: %w", err)
	}
	return nil
}

func scanError(code pb.ScanErrorCode, text string, retry time.Duration) *pb.ScanReply {
	return &pb.ScanReply{Part: &pb.ScanReply_Error{Error: &pb.ScanError{
		Code: code, Text: text, RetryAfterMs: uint32(min(retry.Milliseconds(), math.MaxInt32)),
	}}}
}

// checkScan names the first field of a request that cannot be answered, "" when there is none.
func checkScan(req *pb.ScanRequest) string {
	switch {
	case req.GetBits() > 8*scanKey:
		return fmt.Sprintf("bits is %d, at most %d", req.GetBits(), 8*scanKey)
	case len(req.GetPrefix()) != int(req.GetBits()+7)/8:
		return fmt.Sprintf("prefix has %d bytes, %d bits need %d", len(req.GetPrefix()), req.GetBits(), (req.GetBits()+7)/8)
	case len(req.GetCursor()) != 0 && len(req.GetCursor()) != scanKey:
		return "a cursor is taken from an answer as it is"
	case len(req.GetKinds()) > 8:
		return "at most 8 kinds"
	case req.GetSince() < 0:
		return "since is before 1970"
	}
	return ""
}

// underPrefix says whether the first bits of key are those of prefix.
func underPrefix(key [scanKey]byte, prefix []byte, bits uint32) bool {
	whole := bits / 8
	if !bytes.Equal(key[:whole], prefix[:whole]) {
		return false
	}
	rest := bits % 8
	return rest == 0 || (key[whole]^prefix[whole])>>(8-rest) == 0
}

// scanReplies yields the frames that answer a request; it is what the fuzzer drives.
func (d *Directory) scanReplies(ctx context.Context, raw []byte) func(yield func(*pb.ScanReply) bool) {
	return func(yield func(*pb.ScanReply) bool) {
		req := &pb.ScanRequest{}
		if err := proto.Unmarshal(raw, req); err != nil {
			yield(scanError(pb.ScanErrorCode_SCAN_ERROR_CODE_FORMAT, "no scan request", 0))
			return
		}
		if bad := checkScan(req); bad != "" {
			yield(scanError(pb.ScanErrorCode_SCAN_ERROR_CODE_FORMAT, bad, 0))
			return
		}
		page := &scanPage{limit: int(min(req.GetLimit(), maxScanPeers)), yield: yield}
		if page.limit == 0 {
			page.limit = maxScanPeers
		}
		now := d.now()
		all := d.held(ctx, req)
		for len(all) > 0 {
			key, n := all[0].key, 0
			var rows []*pb.ScanRow
			for ; n < len(all) && all[n].key == key; n++ {
				if row := all[n].row(d.index, req, now); row != nil {
					rows = append(rows, row)
				}
			}
			if all = all[n:]; len(rows) > 0 && !page.add(key, rows) {
				break
			}
		}
		page.end()
	}
}

// scanPage packs rows into frames until the page is full.
type scanPage struct {
	limit, peers, size int // peers; so many are in; bytes of the whole page
	frame              []*pb.ScanRow
	inFrame            int // bytes
	last               [scanKey]byte
	cursor             []byte // set when something is left behind
	gone               bool   // nobody reads any more
	yield              func(*pb.ScanReply) bool
}

// add takes the rows of one peer, all or none; it says whether to go on.
func (p *scanPage) add(key [scanKey]byte, rows []*pb.ScanRow) bool {
	size := 0
	for _, r := range rows {
		size += proto.Size(r) + 8
	}
	if p.peers == p.limit || p.size+size > maxScanPage && p.peers > 0 {
		p.cursor = bytes.Clone(p.last[:])
		return false
	}
	if p.inFrame+size > maxScanFrame-64 && !p.flush() {
		return false
	}
	p.frame = append(p.frame, rows...)
	p.peers, p.size, p.inFrame, p.last = p.peers+1, p.size+size, p.inFrame+size, key
	return true
}

func (p *scanPage) flush() bool {
	if len(p.frame) > 0 && !p.gone {
		p.gone = !p.yield(&pb.ScanReply{Part: &pb.ScanReply_Rows{Rows: &pb.ScanRows{Rows: p.frame}}})
	}
	p.frame, p.inFrame = nil, 0
	return !p.gone
}

func (p *scanPage) end() {
	if p.flush() {
		p.yield(&pb.ScanReply{Part: &pb.ScanReply_End{End: &pb.ScanEnd{Cursor: p.cursor}}})
	}
}

// heldRows are what is held of one peer, to be read when it is its turn.
type heldRows struct {
	key   [scanKey]byte
	own   *record
	value []byte // as Kademlia keeps it
	beat  *spoken
}

// held gathers what the request asks for, in the order of the keys: what Kademlia stores here for others, our
// own record, and heartbeats where they are listened to.
func (d *Directory) held(ctx context.Context, req *pb.ScanRequest) []heldRows {
	wants := func(k pb.ScanKind) bool {
		return slices.Contains(req.GetKinds(), k) || len(req.GetKinds()) == 0 && k == pb.ScanKind_SCAN_KIND_CAPABILITY
	}
	after := req.GetCursor()
	if len(after) == 0 {
		after = nil
	}
	through := func(key [scanKey]byte) bool {
		return underPrefix(key, req.GetPrefix(), req.GetBits()) && (after == nil || bytes.Compare(key[:], after) > 0)
	}
	var all []heldRows
	d.mu.Lock()
	own, ownBeat := d.own, d.ownBeat
	d.mu.Unlock()
	if wants(pb.ScanKind_SCAN_KIND_CAPABILITY) {
		for _, it := range d.values.within(ctx, "/"+protocol.NamespaceCapability+"/", through) {
			if own == nil || it.key != keyOf(own.peer) {
				all = append(all, heldRows{key: it.key, value: it.value})
			}
		}
		if own != nil && through(keyOf(own.peer)) {
			all = append(all, heldRows{key: keyOf(own.peer), own: own})
		}
	}
	if wants(pb.ScanKind_SCAN_KIND_AVAILABILITY) {
		beats := d.index.unopened(through)
		for i := range beats {
			all = append(all, heldRows{key: beats[i].held.key, beat: &beats[i]})
		}
		if ownBeat != nil && len(d.cfg.Shards) == 0 && through(keyOf(ownBeat.peer)) {
			own := spoken{peer: ownBeat.peer, raw: ownBeat.raw, av: ownBeat.av, arrived: millis(ownBeat.av.GetAt())}
			all = append(all, heldRows{key: keyOf(ownBeat.peer), beat: &own})
		}
	}
	slices.SortStableFunc(all, func(a, b heldRows) int { return bytes.Compare(a.key[:], b.key[:]) })
	return all
}

// row makes what is sent of it; nil when it is not live, or received before since.
func (h *heldRows) row(x *replica, req *pb.ScanRequest, now time.Time) *pb.ScanRow {
	var row *pb.ScanRow
	switch {
	case h.beat != nil:
		if !h.beat.open(x) || !(&beat{av: h.beat.av}).fresh(now) {
			return nil
		}
		row = &pb.ScanRow{
			PeerId: []byte(h.beat.peer), Kind: pb.ScanKind_SCAN_KIND_AVAILABILITY, Envelope: h.beat.raw,
			ReceivedAt: h.beat.arrived.UnixMilli(), Digest: digestBytes(h.beat.raw), Seq: h.beat.av.GetSeq(),
		}
	case h.own != nil:
		if h.own.expires().After(now) {
			row = capabilityRow(h.own.raw, h.own.cap, h.own.peer, h.own.cap.GetIssued())
		}
	default:
		row = storedRow(h.value, now)
	}
	if row == nil || row.GetReceivedAt() < req.GetSince() {
		return nil
	}
	if req.GetDigestOnly() {
		row.Envelope = nil
	}
	return row
}

func digestBytes(raw []byte) []byte { d := digestOf(raw); return d[:] }

func capabilityRow(raw []byte, c *pb.Capability, id peer.ID, received int64) *pb.ScanRow {
	return &pb.ScanRow{
		PeerId: []byte(id), Kind: pb.ScanKind_SCAN_KIND_CAPABILITY, Envelope: raw, ReceivedAt: received,
		Digest: digestBytes(raw), Seq: c.GetSeq(),
	}
}

// storedRow reads a value as Kademlia keeps it; nil when it is not live. It was verified when it was stored.
func storedRow(value []byte, now time.Time) *pb.ScanRow {
	kept := &kadrecordpb.Record{}
	if err := proto.Unmarshal(value, kept); err != nil {
		return nil
	}
	c, err := protocol.PeekCapability(kept.GetValue())
	if err != nil || !millis(c.GetExpires()).After(now) {
		return nil
	}
	received, err := time.Parse(time.RFC3339Nano, kept.GetTimeReceived())
	if err != nil || now.Sub(received) > maxRecordAge {
		return nil
	}
	return capabilityRow(kept.GetValue(), c, peer.ID(c.GetPeerId()), received.UnixMilli())
}
