package beambridge

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// maxLine bounds a line of a log that is sent; a longer one is cut.
	maxLine = 64 << 10
	// logLook is how often a follower looks for new attempts; lines of one that is followed come at once.
	logLook = 200 * time.Millisecond
	// mostFollowed bounds the attempts whose logs one reader follows at a time.
	mostFollowed = 16
)

// logOf is one attempt whose log can be read.
type logOf struct {
	lease protocol.LeaseID
	node  protocol.PeerID
	first uint64
	end   uint64
}

// JobLogs implements api.Outcomes: first what ended attempts left, in order of chunks; with follow then what
// runs, from its nodes, as it is written.
func (b *Bridge) JobLogs(ctx context.Context, who api.Principal, id protocol.JobID, follow bool, line func(protocol.LogLine) error) error {
	s, err := b.Job(ctx, who, id)
	if err != nil {
		return err
	}
	seen := map[protocol.LeaseID]bool{}
	if err := b.storedLogs(ctx, id, seen, line); err != nil || !follow {
		return err
	}
	f := &follower{b: b, job: id, seen: seen, lines: make(chan protocol.LogLine, 64), ended: make(chan protocol.LeaseID, mostFollowed)}
	ctx, stop := context.WithCancel(ctx)
	defer f.wait()
	defer stop()
	look := time.NewTicker(logLook)
	defer look.Stop()
	for {
		if !s.State.Over() {
			f.start(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.engine.gone:
			return nil
		case l := <-f.lines:
			if err := line(l); err != nil {
				return err
			}
		case <-f.ended:
			f.running--
		case <-look.C:
			if s, err = b.Job(ctx, who, id); err != nil {
				return err
			}
			if s.State.Over() && f.running == 0 && len(f.lines) == 0 {
				return b.storedLogs(ctx, id, seen, line)
			}
		}
	}
}

// storedLogs hands over the tails that have not been seen.
func (b *Bridge) storedLogs(ctx context.Context, id protocol.JobID, seen map[protocol.LeaseID]bool, line func(protocol.LogLine) error) error {
	var tails []store.LogTail
	ends := map[uint64]uint64{}
	err := b.store.View(ctx, func(tx *store.Tx) error {
		for t, err := range tx.LogTails(id, 0) {
			if err != nil {
				return err
			}
			if !seen[t.Lease] {
				tails = append(tails, t)
			}
		}
		for c, err := range tx.Chunks(id) {
			if err != nil {
				return err
			}
			ends[c.First] = c.End
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range tails {
		seen[t.Lease] = true
		for text := range strings.SplitSeq(strings.TrimSuffix(t.Text, "\n"), "\n") {
			if err := line(protocol.LogLine{Node: t.Node, Lease: t.Lease, First: t.First, End: ends[t.First], Text: clipLine(text), At: t.At}); err != nil {
				return err
			}
		}
	}
	return nil
}

func clipLine(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxLine)], "�")
}

// follower reads the logs of what runs.
type follower struct {
	b       *Bridge
	job     protocol.JobID
	seen    map[protocol.LeaseID]bool
	lines   chan protocol.LogLine
	ended   chan protocol.LeaseID
	running int
}

// start follows attempts that it does not follow yet.
func (f *follower) start(ctx context.Context) {
	if f.running >= mostFollowed {
		return
	}
	live, err := ask(ctx, f.b.engine, func(t *turn) (out []logOf, _ error) {
		j := t.e.jobs[f.job]
		if j == nil {
			return nil, nil
		}
		for id := range j.members {
			for _, l := range j.tracker.Leases(id) {
				out = append(out, logOf{l.ID, id, l.Range.First, l.Range.End})
			}
		}
		return out, nil
	})
	if err != nil {
		return
	}
	for _, l := range live {
		if f.seen[l.lease] || f.running >= mostFollowed {
			continue
		}
		f.seen[l.lease] = true
		f.running++
		go func() {
			_ = f.follow(ctx, l) // the node is gone or has nothing: what is left of the log comes with the result
			f.ended <- l.lease
		}()
	}
}

// wait lets every reader end after its context has.
func (f *follower) wait() {
	for f.running > 0 {
		select {
		case <-f.lines:
		case <-f.ended:
			f.running--
		}
	}
}

// follow reads one attempt's log from its node to its end.
func (f *follower) follow(ctx context.Context, l logOf) error {
	s, err := f.b.host.OpenDuplex(ctx, l.node, protocol.ProtoLogs)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Reset)
	defer stop()
	defer s.Reset()
	if err := s.Write(&pb.LogRequest{LeaseId: l.lease[:], Follow: true}); err != nil {
		return err
	}
	var rest string
	var dropped uint64
	for {
		c := &pb.LogChunk{}
		if err := s.Read(c); err != nil {
			if errors.Is(err, io.EOF) || p2p.CodeOf(err) != 0 {
				err = nil
			}
			return errors.Join(err, f.say(ctx, l, rest, dropped))
		}
		dropped += c.GetDropped()
		rest += string(c.GetData())
		for {
			text, after, ok := strings.Cut(rest, "\n")
			if !ok && len(rest) < maxLine {
				break
			}
			if !ok {
				text, after = rest[:maxLine], rest[maxLine:]
			}
			if err := f.say(ctx, l, text, dropped); err != nil {
				return err
			}
			rest, dropped = after, 0
		}
		if c.GetEnd() {
			return f.say(ctx, l, rest, dropped)
		}
	}
}

func (f *follower) say(ctx context.Context, l logOf, text string, dropped uint64) error {
	if text == "" && dropped == 0 {
		return nil
	}
	select {
	case f.lines <- protocol.LogLine{Node: l.node, Lease: l.lease, First: l.first, End: l.end, Text: clipLine(text), At: f.b.cfg.Clock(), Dropped: dropped}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
