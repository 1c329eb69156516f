package dht

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const maxRetryMs = 60_000 // of what a peer may ask us to wait

// RateError tells when a peer will answer again; it unwraps to ErrRate.
type RateError struct {
	// After is how long to wait, at most a minute.
	After time.Duration
}

// Error says it in a sentence.
func (e *RateError) Error() string { return fmt.Sprintf("%s, again in %s", ErrRate, e.After) }

// Unwrap returns ErrRate.
func (e *RateError) Unwrap() error { return ErrRate }

// answered is a verified row of an answer.
type answered struct {
	record *record
	beat   *beat
	heard  time.Time // when, for one that the node itself has just told; else its own word counts
}

// ask sends a get to a peer and verifies what comes. Rows that were not asked for or do not verify are left
// out.
func (d *Directory) ask(ctx context.Context, of peer.ID, ids []peer.ID) ([]answered, error) {
	req := &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_Get{Get: &pb.GetRequest{}}}
	wanted := map[peer.ID]bool{}
	for _, id := range ids[:min(len(ids), maxQueryGet)] {
		req.GetGet().PeerIds = append(req.GetGet().PeerIds, []byte(id))
		wanted[id] = true
	}
	var out []answered
	opened := newOpener()
	_, err := d.exchange(ctx, of, req, len(wanted), func(row *pb.QueryRow) {
		if a, ok := opened.row(row, wanted, d.now()); ok {
			delete(wanted, a.record.peer)
			out = append(out, a)
		}
	})
	return out, err
}

// opener verifies the rows of answers; an envelope that several peers give is verified once.
type opener struct {
	mu      sync.Mutex
	records map[string]*record
	beats   map[string]*beat
}

func newOpener() *opener { return &opener{records: map[string]*record{}, beats: map[string]*beat{}} }

// row verifies a row for one of the wanted peers (nil: whoever signed it).
func (o *opener) row(row *pb.QueryRow, wanted map[peer.ID]bool, now time.Time) (answered, bool) {
	id, ok := signerOf(row.GetCapability())
	if !ok || wanted != nil && !wanted[id] {
		return answered{}, false
	}
	o.mu.Lock()
	a := answered{record: o.records[string(row.GetCapability())], beat: o.beats[string(row.GetAvailability())]}
	o.mu.Unlock()
	if a.record == nil {
		rec, err := openCapability(row.GetCapability(), id, now)
		if err != nil {
			return answered{}, false
		}
		a.record = rec
	}
	if a.beat == nil && len(row.GetAvailability()) > 0 {
		if b, err := openBeat(row.GetAvailability(), id); err == nil {
			a.beat = b
		}
	}
	if a.beat != nil && (a.beat.peer != id || !a.beat.fresh(now)) {
		a.beat = nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.records[string(a.record.raw)] = a.record
	if a.beat != nil {
		o.beats[string(a.beat.raw)] = a.beat
	}
	return a, true
}

// exchange sends a request and hands each row to take, at most most of them; it returns the frame that ends the
// answer: an end, a hello or a probe.
func (d *Directory) exchange(ctx context.Context, of peer.ID, req *pb.QueryRequest, most int, take func(*pb.QueryRow)) (*pb.QueryReply, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	if err := timeLeft(ctx); err != nil {
		return nil, fmt.Errorf("asking %s: %w", of, err)
	}
	// A relay's limits leave room for a few rows, all that is asked of a node that only a relay reaches.
	s, err := d.host.NewStream(network.WithAllowLimitedConn(ctx, "query"), of, protocol.ProtoQuery)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", of, err)
	}
	defer func() { _ = s.Reset() }() // after a whole answer this only frees the stream
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := s.Scope().ReserveMemory(maxQueryFrame, network.ReservationPriorityMedium); err != nil {
		return nil, fmt.Errorf("asking %s: %w", of, err)
	}
	defer s.Scope().ReleaseMemory(maxQueryFrame)
	raw, err := proto.Marshal(req)
	if err == nil {
		err = msgio.NewVarintWriter(struct{ io.Writer }{s}).WriteMsg(raw)
	}
	if err == nil {
		err = s.CloseWrite()
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", of, err)
	}
	end, err := readAnswer(struct{ io.Reader }{s}, most, take)
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", of, err)
	}
	return end, nil
}

// readAnswer reads frames up to the end or the error, within all limits.
func readAnswer(r io.Reader, most int, take func(*pb.QueryRow)) (*pb.QueryReply, error) {
	in := msgio.NewVarintReaderSize(r, maxQueryFrame)
	rows, size := 0, 0
	for {
		raw, err := in.ReadMsg()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrQuery, err)
		}
		if size += len(raw) + 1; size > maxQueryAnswer {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrQuery, maxQueryAnswer)
		}
		reply := &pb.QueryReply{}
		err = proto.Unmarshal(raw, reply)
		in.ReleaseMsg(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrQuery, err)
		}
		switch part := reply.GetPart().(type) {
		case *pb.QueryReply_Rows:
			if rows += len(part.Rows.GetRows()); rows > most {
				return nil, fmt.Errorf("%w: more rows than were asked for", ErrQuery)
			}
			for _, row := range part.Rows.GetRows() {
				take(row)
			}
		case *pb.QueryReply_End, *pb.QueryReply_Hello, *pb.QueryReply_Probe, *pb.QueryReply_RoundTrips, *pb.QueryReply_NetworkFile:
			return reply, nil
		case *pb.QueryReply_Error:
			if part.Error.GetCode() == pb.QueryErrorCode_QUERY_ERROR_CODE_RATE {
				return nil, &RateError{After: time.Duration(min(part.Error.GetRetryAfterMs(), maxRetryMs)) * time.Millisecond}
			}
			return nil, fmt.Errorf("%w: %.200s", ErrQuery, part.Error.GetText())
		default:
			return nil, fmt.Errorf("%w: an empty frame", ErrQuery)
		}
	}
}
