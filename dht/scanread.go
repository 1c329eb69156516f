package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ScanQuery is what a reader wants of a server's holdings.
type ScanQuery struct {
	// Beats also asks for the heartbeats that the server has heard.
	Beats bool
	// Prefix and Bits limit the scan to keys whose first bits are those of Prefix; 0 is the whole key space.
	Prefix []byte
	// Bits is how many bits of Prefix count; Prefix has exactly the bytes that they need.
	Bits int
	// Limit bounds the peers of the whole scan. 0 is no limit beside the server's.
	Limit int
	// Since leaves out what the server received before; zero is everything.
	Since time.Time
	// DigestOnly names what is held without fetching it.
	DigestOnly bool
}

// ScanRow is one envelope that a server holds.
type ScanRow struct {
	// Peer is whose it is.
	Peer peer.ID
	// Record is the verified content of a record, nil for heartbeats and with DigestOnly.
	Record *pb.Capability
	// Beat is the verified content of a heartbeat, else nil.
	Beat *pb.Availability
	// IsBeat tells heartbeats from records, also with DigestOnly.
	IsBeat bool
	// Raw is the envelope as its peer signed it, nil with DigestOnly.
	Raw []byte
	// Digest is the first 8 bytes of the envelope's SHA-256; with DigestOnly the server's word.
	Digest [8]byte
	// Seq is its sequence number; with DigestOnly the server's word.
	Seq uint64
	// ReceivedAt is when the server says that it came.
	ReceivedAt time.Time
}

// ScanTotals counts what a scan brought.
type ScanTotals struct {
	// Rows that were verified and live, Expired ones that were not live, Bad ones that did not verify.
	Rows, Expired, Bad int
	// Bytes that were read.
	Bytes int
}

// maxScanTotal bounds what a reader takes from one server, in bytes: as much as the server may send in an hour.
const maxScanTotal = 256 << 20

// Scan reads what a server of the directory holds, in the order of the keys, and hands each row that verifies
// and is live to take. It returns ErrScan and ErrRate; rows that were taken before stay good.
func (d *Directory) Scan(ctx context.Context, from peer.ID, q ScanQuery, take func(ScanRow)) (ScanTotals, error) {
	var sum ScanTotals
	if err := d.up(ctx); err != nil {
		return sum, err
	}
	req := &pb.ScanRequest{Prefix: q.Prefix, Bits: uint32(q.Bits), DigestOnly: q.DigestOnly}
	if q.Beats {
		req.Kinds = []pb.ScanKind{pb.ScanKind_SCAN_KIND_CAPABILITY, pb.ScanKind_SCAN_KIND_AVAILABILITY}
	}
	if !q.Since.IsZero() {
		req.Since = q.Since.UnixMilli()
	}
	left := q.Limit
	for {
		req.Limit = uint32(min(max(left, 0), maxScanPeers))
		page, err := d.scanPage(ctx, from, req, take)
		sum.Rows, sum.Expired, sum.Bad, sum.Bytes = sum.Rows+page.totals.Rows, sum.Expired+page.totals.Expired, sum.Bad+page.totals.Bad, sum.Bytes+page.totals.Bytes
		if err != nil {
			return sum, fmt.Errorf("scanning %s: %w", from, err)
		}
		if len(page.cursor) == 0 {
			return sum, nil
		}
		if q.Limit > 0 {
			if left -= page.peers; left <= 0 {
				return sum, nil
			}
		}
		if sum.Bytes > maxScanTotal {
			return sum, fmt.Errorf("scanning %s: %w: more than %d bytes", from, ErrScan, maxScanTotal)
		}
		req.Cursor = page.cursor
	}
}

// scanPage asks for one page.
func (d *Directory) scanPage(ctx context.Context, from peer.ID, req *pb.ScanRequest, take func(ScanRow)) (*scanReader, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ScanTimeout)
	defer cancel()
	r := &scanReader{req: req, now: d.now(), take: take}
	s, err := d.host.NewStream(ctx, from, protocol.ProtoScan)
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrScan, err)
	}
	defer func() { _ = s.Reset() }() // after a whole answer this only frees the stream
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := s.Scope().ReserveMemory(maxScanFrame, network.ReservationPriorityMedium); err != nil {
		return r, fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(maxScanFrame)
	raw, err := proto.Marshal(req)
	if err == nil {
		err = msgio.NewVarintWriter(struct{ io.Writer }{s}).WriteMsg(raw)
	}
	if err == nil {
		err = s.CloseWrite()
	}
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrScan, err)
	}
	if err = r.read(struct{ io.Reader }{s}); err == nil {
		err = r.whole(s)
	}
	return r, errors.Join(err, ctx.Err())
}

// scanReader reads and verifies one page.
type scanReader struct {
	req  *pb.ScanRequest
	now  time.Time
	take func(ScanRow)

	totals ScanTotals
	peers  int
	last   []byte // key of the last row
	cursor []byte
}

// whole waits for the server to end the stream: only then it lets us ask again.
func (r *scanReader) whole(s io.Reader) error {
	if _, err := io.ReadFull(s, make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more behind its end: %w", ErrScan, err)
	}
	return nil
}

// read takes frames up to the end or the error, within all limits.
func (r *scanReader) read(in io.Reader) error {
	frames := msgio.NewVarintReaderSize(in, maxScanFrame)
	for {
		raw, err := frames.ReadMsg()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrScan, err)
		}
		if r.totals.Bytes += len(raw) + 1; r.totals.Bytes > maxScanPage+maxScanFrame {
			return fmt.Errorf("%w: a page of more than %d bytes", ErrScan, maxScanPage)
		}
		reply := &pb.ScanReply{}
		err = proto.Unmarshal(raw, reply)
		frames.ReleaseMsg(raw)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrScan, err)
		}
		switch part := reply.GetPart().(type) {
		case *pb.ScanReply_Rows:
			for _, row := range part.Rows.GetRows() {
				if err := r.row(row); err != nil {
					return err
				}
			}
		case *pb.ScanReply_End:
			return r.end(part.End.GetCursor())
		case *pb.ScanReply_Error:
			if part.Error.GetCode() == pb.ScanErrorCode_SCAN_ERROR_CODE_RATE {
				return fmt.Errorf("%w, again in %d ms", ErrRate, part.Error.GetRetryAfterMs())
			}
			return fmt.Errorf("%w: %.200q", ErrScan, part.Error.GetText())
		default:
			return fmt.Errorf("%w: an empty frame", ErrScan)
		}
	}
}

// end takes the cursor: it has to be the key of the last row, so that a scan ends.
func (r *scanReader) end(cursor []byte) error {
	if len(cursor) > 0 && !bytes.Equal(cursor, r.last) {
		return fmt.Errorf("%w: a cursor that is not the last key", ErrScan)
	}
	r.cursor = bytes.Clone(cursor)
	return nil
}

// row verifies one row. A server that leaves the order, the prefix or the limit is not read on; an envelope
// that does not verify is counted, and one that has expired.
func (r *scanReader) row(row *pb.ScanRow) error {
	id := peer.ID(row.GetPeerId())
	if len(id) > 64 || id.Validate() != nil {
		r.totals.Bad++
		return nil
	}
	key := keyOf(id)
	switch order := bytes.Compare(key[:], r.last); {
	case r.last == nil && len(r.req.GetCursor()) > 0 && bytes.Compare(key[:], r.req.GetCursor()) <= 0, r.last != nil && order < 0:
		return fmt.Errorf("%w: rows are out of order", ErrScan)
	case !underPrefix(key, r.req.GetPrefix(), r.req.GetBits()):
		return fmt.Errorf("%w: a row outside of the prefix", ErrScan)
	case r.last == nil || order > 0:
		if r.peers++; r.peers > maxScanPeers || r.req.GetLimit() > 0 && r.peers > int(r.req.GetLimit()) {
			return fmt.Errorf("%w: more peers than were asked for", ErrScan)
		}
		r.last = bytes.Clone(key[:])
	}
	out := ScanRow{Peer: id, IsBeat: row.GetKind() == pb.ScanKind_SCAN_KIND_AVAILABILITY, Seq: row.GetSeq(), ReceivedAt: millis(row.GetReceivedAt())}
	if r.req.GetDigestOnly() {
		if copy(out.Digest[:], row.GetDigest()) != digestSize || len(row.GetDigest()) != digestSize {
			r.totals.Bad++
			return nil
		}
	} else if err := out.open(row.GetEnvelope(), r.now); err != nil {
		if errors.Is(err, ErrExpired) {
			r.totals.Expired++
		} else {
			r.totals.Bad++
		}
		return nil
	}
	r.totals.Rows++
	r.take(out)
	return nil
}

// open verifies the envelope of a row.
func (s *ScanRow) open(raw []byte, now time.Time) error {
	if s.IsBeat {
		b, err := openBeat(raw, s.Peer)
		if err != nil {
			return err
		}
		if !b.fresh(now) {
			return ErrExpired
		}
		s.Beat, s.Raw, s.Seq = b.av, b.raw, b.av.GetSeq()
	} else {
		rec, err := openCapability(raw, s.Peer, now)
		if err != nil {
			return err
		}
		s.Record, s.Raw, s.Seq = rec.cap, rec.raw, rec.cap.GetSeq()
	}
	s.Digest = digestOf(s.Raw)
	return nil
}
