package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/dht/archive"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

type watchFlags struct {
	dir   string
	joins []string
	long  time.Duration
	every time.Duration
	wait  time.Duration
}

func watchCommand() *cobra.Command {
	var f watchFlags
	c := &cobra.Command{
		Use:   "watch",
		Short: "Note when peers are there, for hours or days",
		Long: `Listens to heartbeats, asks the whole network again every so often, and prints a line of JSON when a peer has left or fallen silent: from its
first to its last sign of life, whether it may have been there before or after, and why the line ends. Those who are there at the end come
then. With --out the lines also go to DIR/_presence.ndjson; a watch that was cut off goes on to its old end when it is started again with
the same --out. Nodes that ask researchers to leave them out (docs/research.md, Data policy) are not told of.

Exit code 3 when no peer was there, 5 when nobody answers.`,
		Args: exactArgs(),
		RunE: func(c *cobra.Command, _ []string) error { return runWatch(c, &f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.dir, "out", "", "directory to keep the watch in, so that it can go on after it was cut off")
	fl.StringSliceVar(&f.joins, "join", nil, "address or invitation of a peer to begin with; repeatable")
	fl.DurationVar(&f.long, "for", 24*time.Hour, "watch for so long")
	fl.DurationVar(&f.every, "every", 2*time.Minute, "ask the whole network so often")
	fl.DurationVar(&f.wait, "timeout", 10*time.Second, "give up reaching a first peer after so long")
	return c
}

// watching is a watch under way.
type watching struct {
	f    *watchFlags
	to   io.Writer
	say  *progress
	mu   sync.Mutex
	w    *archive.Watch
	rows []archive.PresenceRow // closed and not saved yet
	seen map[peer.ID]uint64    // heartbeats
	left map[peer.ID]time.Time // goodbyes
	read map[peer.ID]bool      // whose record has been read
	out  map[peer.ID]uint64    // who asks to be left out, and the sequence number of the record that says so
	any  bool                  // somebody was there
}

func newWatching(f *watchFlags, to io.Writer, say *progress, w *archive.Watch) *watching {
	return &watching{
		f: f, to: to, say: say, w: w, seen: map[peer.ID]uint64{}, left: map[peer.ID]time.Time{}, read: map[peer.ID]bool{}, out: map[peer.ID]uint64{},
	}
}

func runWatch(c *cobra.Command, f *watchFlags) error {
	switch {
	case f.long <= 0:
		return usagef("--for is %s, want above 0", f.long)
	case f.every < time.Second:
		return usagef("--every is %s, want 1s or more", f.every)
	case f.wait <= 0:
		return usagef("--timeout is %s, want above 0", f.wait)
	}
	addrs, err := seeds(c, f.joins)
	if err != nil {
		return err
	}
	log, err := logger(c, slog.LevelError)
	if err != nil {
		return err
	}
	dir := f.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "gridbeam-watch-"); err != nil {
			return fmt.Errorf("making a temporary directory: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
	}
	s := &surveyor{seeds: addrs, log: log, wait: f.wait, links: 800}
	return s.run(c.Context(), func(ctx context.Context, d *dht.Directory, infos []peer.AddrInfo) error {
		w, resumed, err := archive.OpenWatch(dir, time.Now(), f.long)
		if err != nil {
			return err
		}
		v := newWatching(f, c.OutOrStdout(), terminalProgress(c), w)
		if resumed {
			v.say.line("going on with the watch that ends at %s", w.Until().Format(time.RFC3339))
		}
		return v.run(ctx, d, infos)
	})
}

// run watches until the end, or until ctx is done: then all is kept for the next start.
func (v *watching) run(ctx context.Context, d *dht.Directory, infos []peer.AddrInfo) error {
	over, cancel := context.WithDeadline(ctx, v.w.Until())
	defer cancel()
	var asking sync.WaitGroup
	var failed error
	asking.Go(func() { failed = v.ask(over, d, infos) })
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var err error
	for err == nil && over.Err() == nil {
		select {
		case <-over.Done():
		case <-t.C:
			v.hear(d.Heard())
			err = v.save(time.Now(), true)
		}
	}
	cancel()
	asking.Wait()
	v.say.done()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		if err := v.save(time.Now(), false); err != nil || v.f.dir == "" {
			return errors.Join(err, errors.New("cut off; a watch with --out DIR can go on"))
		}
		return errors.New("cut off; the same command goes on")
	case failed != nil && !v.any:
		return failed
	}
	return v.finish(d.Heard())
}

func (v *watching) finish(heard []dht.Heard) error {
	v.hear(heard)
	if err := v.save(time.Now(), true); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	rows, err := v.w.Finish(time.Now())
	if err == nil {
		err = v.print(rows)
	}
	if err == nil && !v.any {
		err = withCode(exitNoMatch, errors.New("no peer was there"))
	}
	return err
}

// ask surveys the network again and again; one failure in the middle of a watch is no reason to end it.
func (v *watching) ask(ctx context.Context, d *dht.Directory, infos []peer.AddrInfo) error {
	plan := dht.DefaultSurveyPlan()
	plan.Listen, plan.Rounds = 0, 1
	t := time.NewTicker(v.f.every)
	defer t.Stop()
	for {
		f := dht.NewFindings()
		err := d.Survey(ctx, plan, infos, f, func(e dht.SurveyEvent) { v.event(f, e) })
		if errors.Is(err, dht.ErrNoServers) {
			err = withCode(exitNotConnected, errors.New("connected, but no peer of the directory answered; try another --join address"))
		}
		select {
		case <-ctx.Done():
			return err
		case <-t.C:
		}
	}
}

// event takes an answer of a peer as a sign of life. What others say that they have heard is not one.
func (v *watching) event(f *dht.Findings, e dht.SurveyEvent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e.Sighting != nil && len(e.Sighting.Record) > 0 {
		v.learn(e.Sighting.Peer, f.Newest(e.Sighting.Peer))
	}
	if e.Visit != nil && e.Visit.Answered() && e.Visit.Ended.After(v.left[e.Visit.Peer]) && !v.wantsOut(e.Visit.Peer) {
		v.w.Answer(e.Visit.Peer, e.Visit.Ended, v.f.every)
		v.any = true
	}
}

// learn reads in a peer's record whether it wants to be left out (docs/research.md, Data policy): then nothing more is kept of
// it, and what is not written yet is dropped. A newer record can take that back.
func (v *watching) learn(id peer.ID, record *pb.Capability) {
	if record == nil || record.GetSeq() < v.out[id] {
		return
	}
	v.read[id] = true
	switch {
	case archive.WantsOut(record):
		v.out[id] = record.GetSeq()
		v.w.Forget(id)
		v.rows = slices.DeleteFunc(v.rows, func(r archive.PresenceRow) bool { return r.PeerID == id.String() })
	case !record.GetTombstone():
		delete(v.out, id)
	}
}

func (v *watching) wantsOut(id peer.ID) bool {
	_, out := v.out[id]
	return out
}

// hear takes in the heartbeats that have come since.
func (v *watching) hear(all []dht.Heard) {
	v.mu.Lock()
	defer v.mu.Unlock()
	heard := make(map[peer.ID]bool, len(all))
	for _, h := range all {
		heard[h.Peer] = true
		v.learn(h.Peer, h.Record)
		if v.seen[h.Peer] >= h.Seq || !v.read[h.Peer] { // the record comes soon, and may say that it wants to be left out
			continue
		}
		v.seen[h.Peer] = h.Seq
		if v.wantsOut(h.Peer) {
			continue
		}
		if h.Leaving {
			v.left[h.Peer] = h.At
			if row, was := v.w.Goodbye(h.Peer, h.At); was {
				v.rows = append(v.rows, row)
			}
			continue
		}
		v.w.Sign(h.Peer, h.At, h.Period)
		v.any = true
	}
	gone := func(id peer.ID) bool { return !heard[id] }
	maps.DeleteFunc(v.seen, func(id peer.ID, _ uint64) bool { return gone(id) })
	maps.DeleteFunc(v.read, func(id peer.ID, _ bool) bool { return gone(id) })
	maps.DeleteFunc(v.left, func(id peer.ID, at time.Time) bool { return gone(id) && time.Since(at) > leftFor })
}

// leftFor is for how long an answer that was on its way may come after a goodbye.
const leftFor = 10 * time.Minute

// save prints and keeps the rows that have closed; silent also closes those of whom nothing was heard.
func (v *watching) save(now time.Time, silent bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if silent {
		v.rows = append(v.rows, v.w.Silent(now)...)
	}
	rows := v.rows
	v.rows = nil
	if err := v.w.Save(now, rows); err != nil {
		return err
	}
	v.say.show(fmt.Sprintf("%d peers are there; %s to go", v.w.Present(), time.Until(v.w.Until()).Round(time.Second)))
	return v.print(rows)
}

func (v *watching) print(rows []archive.PresenceRow) error {
	for i := range rows {
		if err := writeJSON(v.to, &rows[i], false); err != nil {
			return err
		}
	}
	return nil
}
