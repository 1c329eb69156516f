package dht

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Errors of a query.
var (
	// ErrQuery means that a peer answered with an error or with what is no answer.
	ErrQuery = errors.New("dht: query failed")
	// ErrRate means that a peer wants fewer questions.
	ErrRate = errors.New("dht: peer asks for fewer queries")
)

// Limits of /gridbeam/query/1.0.0 (discovery.md 5), in bytes and rows. A frame is a varint length and a
// protobuf message.
const (
	maxQueryRequest = 8 << 10
	maxQueryFrame   = 256 << 10
	maxQueryAnswer  = 16 << 20
	maxQueryRows    = 2000
	maxQueryGet     = 64
	queryFormat     = 1
)

// serveQueries answers until the returned function is called, which waits for the answers under way.
func (d *Directory) serveQueries(ctx context.Context) (stop func()) {
	o := &door{
		most: maxQueryRequest, slots: newGate(d.cfg.QueryStreams, answersOfPeer, answersOfNet), rates: d.rates, answer: d.answer,
		refuse: func(s network.Stream, wait time.Duration) error {
			return writeReply(queryWriter(s), errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_RATE, "too many queries", 0, wait))
		},
	}
	return o.open(ctx, d, protocol.ProtoQuery)
}

func queryWriter(s network.Stream) msgio.Writer { return msgio.NewVarintWriter(struct{ io.Writer }{s}) }

// answer sends the frames that answer a request.
func (d *Directory) answer(ctx context.Context, s network.Stream, who asker, raw []byte) error {
	if err := s.SetDeadline(time.Now().Add(d.cfg.QueryTimeout)); err != nil {
		return fmt.Errorf("setting a deadline: %w", err)
	}
	if err := s.Scope().ReserveMemory(maxQueryRequest+maxQueryFrame, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("reserving memory: %w", err)
	}
	defer s.Scope().ReleaseMemory(maxQueryRequest + maxQueryFrame)
	// Where an answer needs others, the time runs as it does for the stream.
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	w := queryWriter(s)
	for reply := range d.replies(ctx, who, raw) {
		if err := writeReply(w, reply); err != nil {
			return err
		}
	}
	return nil
}

func writeReply(w msgio.Writer, reply *pb.QueryReply) error {
	raw, err := proto.Marshal(reply)
	if err != nil {
		return fmt.Errorf("writing an answer: %w", err)
	}
	if err := w.WriteMsg(raw); err != nil {
		return fmt.Errorf("writing an answer: %w", err)
	}
	return nil
}

func errorReply(code pb.QueryErrorCode, text string, column int, retry time.Duration) *pb.QueryReply {
	return &pb.QueryReply{Part: &pb.QueryReply_Error{Error: &pb.QueryError{
		Code: code, Text: text, Column: uint32(column), RetryAfterMs: uint32(min(retry.Milliseconds(), math.MaxInt32)),
	}}}
}

// replies yields the frames that answer a request; it is what the fuzzer drives.
func (d *Directory) replies(ctx context.Context, who asker, raw []byte) func(yield func(*pb.QueryReply) bool) {
	return func(yield func(*pb.QueryReply) bool) {
		req := &pb.QueryRequest{}
		if err := proto.Unmarshal(raw, req); err != nil || req.GetFormat() != queryFormat {
			yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FORMAT, fmt.Sprintf("this peer reads format %d", queryFormat), 0, 0))
			return
		}
		switch ask := req.GetAsk().(type) {
		case *pb.QueryRequest_Get:
			d.replyGet(ask.Get, yield)
		case *pb.QueryRequest_Find:
			d.replyFind(ask.Find, yield)
		case *pb.QueryRequest_Hello:
			yield(&pb.QueryReply{Part: &pb.QueryReply_Hello{Hello: d.hello(who)}})
		case *pb.QueryRequest_Probe:
			if wait := d.probes.take(who, d.now()); wait > 0 {
				yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_RATE, "too many probes", 0, wait))
				return
			}
			yield(&pb.QueryReply{Part: &pb.QueryReply_Probe{Probe: d.probe(ctx, who)}})
		case *pb.QueryRequest_RoundTrips:
			d.replyRoundTrips(ctx, who, ask.RoundTrips, yield)
		case *pb.QueryRequest_NetworkFile:
			yield(&pb.QueryReply{Part: &pb.QueryReply_NetworkFile{NetworkFile: d.networkFile()}})
		default:
			yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FORMAT, "this peer answers find, get, hello, probe, round trips and its network file", 0, 0))
		}
	}
}

// replyGet answers with what is known of the asked peers; any peer answers for itself.
func (d *Directory) replyGet(req *pb.GetRequest, yield func(*pb.QueryReply) bool) {
	if len(req.GetPeerIds()) > maxQueryGet {
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FORMAT, fmt.Sprintf("at most %d peers", maxQueryGet), 0, 0))
		return
	}
	var rows []*pb.QueryRow
	now := d.now()
	for _, raw := range req.GetPeerIds() {
		id := peer.ID(raw)
		if id == d.host.ID() {
			d.mu.Lock()
			own, beat := d.own, d.ownBeat
			d.mu.Unlock()
			if own != nil && own.expires().After(now) {
				rows = append(rows, rowOf(own, beat))
			}
			continue
		}
		if h, ok := d.index.get(id, now); ok && d.cfg.Index {
			rows = append(rows, h.row())
		}
	}
	if sendRows(rows, yield) {
		yield(&pb.QueryReply{Part: &pb.QueryReply_End{End: &pb.QueryEnd{Matched: uint32(len(rows)), Population: uint32(len(rows))}}})
	}
}

func rowOf(r *record, b *beat) *pb.QueryRow {
	row := &pb.QueryRow{Capability: r.raw}
	if b != nil {
		row.Availability = b.raw
	}
	return row
}

func (h *hit) row() *pb.QueryRow {
	row := &pb.QueryRow{Capability: h.record.raw}
	if h.beat != nil {
		row.Availability = h.beat.raw
	}
	return row
}

// sendRows cuts rows into frames; it says whether the reader still listens.
func sendRows(rows []*pb.QueryRow, yield func(*pb.QueryReply) bool) bool {
	const perFrame = maxQueryFrame/(protocol.MaxCapability+protocol.MaxAvailability+16) - 1
	for len(rows) > 0 {
		n := min(perFrame, len(rows))
		if !yield(&pb.QueryReply{Part: &pb.QueryReply_Rows{Rows: &pb.QueryRows{Rows: rows[:n]}}}) {
			return false
		}
		rows = rows[n:]
	}
	return true
}

// replyFind answers from the replica. What only the asker knows is unknown here, and unknown is kept: the
// asker evaluates again.
func (d *Directory) replyFind(req *pb.FindRequest, yield func(*pb.QueryReply) bool) {
	if !d.cfg.Index {
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_NO_INDEX, "this peer keeps no index of others", 0, 0))
		return
	}
	filter, err := protocol.ParseFilter(req.GetFilter())
	if err != nil {
		column := 0
		if fe, ok := errors.AsType[*protocol.FilterError](err); ok {
			column = fe.Column
		}
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FILTER, err.Error(), column, 0))
		return
	}
	limit := int(min(req.GetLimit(), maxQueryRows))
	if limit == 0 {
		limit = maxQueryRows
	}
	var seed uint64
	after := uint64(0) // keys below it were sent
	switch cursor := req.GetCursor(); len(cursor) {
	case 0:
		d.mu.Lock()
		seed = d.rnd.Uint64()
		d.mu.Unlock()
	case 16:
		seed, after = binary.BigEndian.Uint64(cursor), binary.BigEndian.Uint64(cursor[8:])
	default:
		yield(errorReply(pb.QueryErrorCode_QUERY_ERROR_CODE_FORMAT, "a cursor is taken from an answer as it is", 0, 0))
		return
	}
	q := newAsking(Query{
		Filter: filter, Seed: seed, Explain: req.GetExplain(), Literal: req.GetLiteral(),
		MaxAge: time.Duration(req.GetMaxAgeS()) * time.Second,
	}, d.now(), true)
	found, ex := q.match(d.index)
	page, cursor := pageOf(arrange(found, seed, 0), seed, after, limit)
	rows := make([]*pb.QueryRow, len(page))
	for i := range page {
		rows[i] = page[i].row()
	}
	if !sendRows(rows, yield) {
		return
	}
	end := &pb.QueryEnd{Matched: uint32(ex.Matched), Population: uint32(ex.Population), Truncated: cursor != nil, Cursor: cursor}
	if own := d.ownRecord(); after == 0 && own != nil && own.expires().After(d.now()) {
		end.Own = own.raw
	}
	for _, c := range ex.Clauses {
		end.Explanation = append(end.Explanation, &pb.ClauseCount{
			Text: c.Text, Implied: c.Implied, Removed: uint32(c.Removed), RemovedAlone: uint32(c.RemovedAlone), Left: uint32(c.Left),
		})
	}
	yield(&pb.QueryReply{Part: &pb.QueryReply_End{End: end}})
}

// pageOf cuts the hits from a cursor on: they are sorted by the key that the cursor's seed gives.
func pageOf(found []hit, seed, from uint64, limit int) (page []hit, cursor []byte) {
	start, _ := slices.BinarySearchFunc(found, from, func(h hit, key uint64) int { return cmp.Compare(shuffled(h.order, seed), key) })
	page = found[start:]
	if len(page) <= limit {
		return page, nil
	}
	next := shuffled(page[limit].order, seed)
	return page[:limit], binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, seed), next)
}
