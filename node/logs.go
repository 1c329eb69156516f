package node

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// oldLogs is how many logs of ended leases are kept to be read.
	oldLogs = 64
	// oldLogBytes bounds what they hold together.
	oldLogBytes = 64 << 20
	// logPiece bounds one frame of a log.
	logPiece = 64 << 10
)

// logShelf keeps the logs of leases that run, and of the last ones that did.
type logShelf struct {
	now func() time.Time

	mu   sync.Mutex
	logs map[protocol.LeaseID]*shelved
	old  []protocol.LeaseID // ended, oldest first
	held int64
}

type shelved struct {
	log    *executor.Log
	bridge protocol.PeerID
	bytes  int64 // counted in held, once it is old
}

func newLogShelf(now func() time.Time) *logShelf {
	return &logShelf{now: now, logs: map[protocol.LeaseID]*shelved{}}
}

// open begins the log of a lease.
func (s *logShelf) open(l *lease, limit uint64) *executor.Log {
	capacity := int64(executor.DefaultLogBytes)
	if limit > 0 {
		capacity = int64(min(limit, executor.DefaultLogBytes))
	}
	log := executor.NewLog(capacity, s.now)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs[l.ID] = &shelved{log: log, bridge: l.leaseFacts.bridge}
	return log
}

// tail returns the last few lines of a lease's log.
func (s *logShelf) tail(l *lease) []byte {
	s.mu.Lock()
	one := s.logs[l.ID]
	s.mu.Unlock()
	if one == nil {
		return nil
	}
	kept, dropped := one.log.Counts()
	if kept == 0 {
		return nil
	}
	records, _, _, _ := one.log.Read(max(dropped, dropped+kept-protocol.MaxLogTail), protocol.MaxLogTail)
	var b strings.Builder
	for _, r := range records {
		b.WriteString(r.Line)
		b.WriteByte('\n')
	}
	text := b.String()
	return []byte(text[max(0, len(text)-protocol.MaxLogTail):])
}

// close says that nothing follows in a lease's log.
func (s *logShelf) close(l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.logs[l.ID]
	if one == nil {
		return
	}
	one.log.Close()
	kept, _ := one.log.Counts()
	if kept == 0 {
		delete(s.logs, l.ID) // nothing to read
		return
	}
	one.bytes = kept
	s.held += kept
	s.old = append(s.old, l.ID)
	for len(s.old) > oldLogs || s.held > oldLogBytes && len(s.old) > 1 {
		s.held -= s.logs[s.old[0]].bytes
		delete(s.logs, s.old[0])
		s.old = s.old[1:]
	}
}

// logChunk puts records into a frame, as lines with what printed them or as text.
func logChunk(records []executor.LogRecord, lines bool) *pb.LogChunk {
	c := &pb.LogChunk{}
	for _, r := range records {
		if lines {
			c.Lines = append(c.Lines, &pb.LogLine{Input: r.Input, Stream: uint32(r.Stream), Text: []byte(r.Line)})
		} else {
			c.Data = append(append(c.Data, r.Line...), '\n')
		}
	}
	return c
}

// serve streams a lease's log to the bridge that granted it.
func (s *logShelf) serve(ctx context.Context, f *p2p.Frames) error {
	req := &pb.LogRequest{}
	if err := f.Read(req); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if len(req.GetLeaseId()) != 16 {
		return p2p.Errorf(p2p.CodeMalformed, "the lease ID has %d bytes, want 16", len(req.GetLeaseId()))
	}
	s.mu.Lock()
	one := s.logs[protocol.LeaseID(req.GetLeaseId())]
	s.mu.Unlock()
	if one == nil || one.bridge != f.Peer() {
		return p2p.Errorf(p2p.CodeNotFound, "no log of lease %s is here", protocol.LeaseID(req.GetLeaseId()))
	}
	offset := int64(min(req.GetOffset(), 1<<62))
	for {
		records, next, lost, end := one.log.Read(offset, logPiece)
		if len(records) > 0 || lost > 0 || end {
			c := logChunk(records, req.GetLines())
			c.Offset, c.Dropped, c.End = uint64(offset+lost), uint64(lost), end
			if err := f.Write(c); err != nil {
				return nil // who asked is gone
			}
		}
		offset = next
		if end || !req.GetFollow() && len(records) == 0 {
			return nil
		}
		if len(records) == 0 {
			if err := one.log.Wait(ctx, offset); err != nil {
				return nil
			}
		}
	}
}
