package cluster

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// desk is a Tracker with a clock and the rows that it asked to persist.
type desk struct {
	t      *testing.T
	tr     *Tracker
	cfg    Config
	now    time.Time
	ids    uint64
	seq    uint64
	chunks map[uint64]ChunkRow
	leases map[protocol.LeaseID]LeaseRow
	stops  []Stop
}

func newDesk(t *testing.T, n uint64, change func(*Config), groups ...string) *desk {
	t.Helper()
	cfg := DefaultConfig(protocol.JobID{7}, n)
	cfg.Chunk = 1
	if change != nil {
		change(&cfg)
	}
	d := &desk{t: t, cfg: cfg, now: noon, chunks: map[uint64]ChunkRow{}, leases: map[protocol.LeaseID]LeaseRow{}}
	tr, err := NewTracker(cfg, d.id)
	if err != nil {
		t.Fatal(err)
	}
	d.tr = tr
	fx, err := tr.Advance(JobSelect)
	if err != nil {
		t.Fatal(err)
	}
	d.keep(fx)
	for i, g := range groups {
		d.keep(tr.Join(Worker{Peer: protocol.PeerID(fmt.Sprint("n", i)), Group: g, Slots: 4}, d.now))
	}
	return d
}

func (d *desk) id() (id protocol.LeaseID) {
	d.ids++
	binary.BigEndian.PutUint64(id[8:], d.ids)
	return id
}

func (d *desk) keep(fx Effects) {
	for _, c := range fx.Chunks {
		d.chunks[c.First] = c
	}
	for _, l := range fx.Leases {
		d.leases[l.ID] = l
	}
	d.stops = append(d.stops, fx.Stops...)
}

func (d *desk) grant(node string, n int) []Lease {
	d.t.Helper()
	ls, fx, err := d.tr.Grant(protocol.PeerID(node), n, d.seq+1, d.now)
	if err != nil {
		d.t.Fatal(err)
	}
	d.keep(fx)
	return ls
}

func (d *desk) one(node string) Lease {
	d.t.Helper()
	ls := d.grant(node, 1)
	if len(ls) != 1 {
		d.t.Fatalf("%s got %d leases, want 1", node, len(ls))
	}
	return ls[0]
}

func (d *desk) result(l Lease, r Reason, exit int32) Verdict {
	v, fx := d.tr.Result(End{Lease: l.ID, Node: l.Node, Range: l.Range, Fence: l.Fence, Reason: r, Exit: exit, Digest: "same", Seconds: 1, Text: fmt.Sprint("reason ", r)}, d.now)
	d.keep(fx)
	return v
}

func (d *desk) want(what string, got, want Verdict) {
	d.t.Helper()
	if got != want {
		d.t.Errorf("%s: %s, want %s", what, got, want)
	}
}

func (d *desk) wait(s float64) {
	d.now = d.now.Add(time.Duration(s * float64(time.Second)))
	d.keep(d.tr.Expire(d.now))
}

func (d *desk) report(node string, ls ...Lease) {
	d.seq++
	var held []Observed
	for _, l := range ls {
		held = append(held, Observed{l.ID, l.Fence, AttemptRun})
	}
	d.keep(d.tr.Report(protocol.PeerID(node), d.seq, held, d.now))
}

func (d *desk) restart() {
	d.t.Helper()
	rows := slices.SortedFunc(maps.Values(d.leases), func(a, b LeaseRow) int { return int(a.Fence) - int(b.Fence) })
	rows = slices.DeleteFunc(rows, func(l LeaseRow) bool { return d.chunks[l.First].State != ChunkOpen })
	old := d.tr
	tr, err := Restore(d.cfg, old.State(), maps.Values(d.chunks), slices.Values(rows), d.id, d.now)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, w := range old.workers {
		tr.Join(w.Worker, d.now)
	}
	d.tr, d.seq = tr, 0
}
