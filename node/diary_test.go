package node

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/node/internal/journal"
	"github.com/gridbeam/gridbeam/protocol"
)

// facts is a diary as it can be compared.
type facts struct {
	Control  string
	Seq      uint64
	Members  map[protocol.JobID][]byte
	Leases   map[protocol.LeaseID]string
	Fences   map[protocol.JobID]map[uint64]uint64
	Outcomes map[protocol.LeaseID]protocol.Reason
	Chains   map[pair]metering.Position
	Pending  map[pair]int
	Seen     map[protocol.CallID]int64
}

func factsOf(t testing.TB, d *diary) facts {
	t.Helper()
	f := facts{
		Control: d.control, Seq: d.seq, Members: map[protocol.JobID][]byte{}, Leases: map[protocol.LeaseID]string{}, Fences: map[protocol.JobID]map[uint64]uint64{},
		Outcomes: map[protocol.LeaseID]protocol.Reason{}, Chains: map[pair]metering.Position{}, Pending: map[pair]int{}, Seen: map[protocol.CallID]int64{},
	}
	for id, m := range d.members {
		e, err := memberEntry(&m)
		if err != nil {
			t.Fatal(err)
		}
		f.Members[id] = e
	}
	for id, l := range d.leases {
		e, err := grantsEntry(l.bridge, l.setSeq, []protocol.Lease{l.Lease})
		if err != nil {
			t.Fatal(err)
		}
		f.Leases[id] = string(e) + l.token
	}
	for job, m := range d.fences {
		if len(m) > 0 {
			f.Fences[job] = maps.Clone(m)
		}
	}
	for id, o := range d.outcomes {
		f.Outcomes[id] = o.result.Outcome.Reason
	}
	for p, c := range d.chains {
		f.Chains[p], f.Pending[p] = c.Position(), len(c.Pending())
	}
	for id, until := range d.seen {
		f.Seen[id] = until.UnixMilli()
	}
	return f
}

// differs names the fields in which two diaries differ.
func differs(a, b facts) (names string) {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		if x, y := va.Field(i).Interface(), vb.Field(i).Interface(); !reflect.DeepEqual(x, y) {
			names += fmt.Sprintf("%s: %d entries, want %d; ", va.Type().Field(i).Name, reflect.ValueOf(x).Len(), reflect.ValueOf(y).Len())
		}
	}
	return names
}

// history makes records of a plausible life, and what holds after each.
func history(t testing.TB, seed uint64, n int) (self protocol.PeerID, records [][]byte, after []facts) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	key, bridgeKey := newKey(t), newKey(t)
	self, bridge := idOf(t, key), idOf(t, bridgeKey)
	p := pair{protocol.NetworkID{1}, bridge}
	d := newDiary(self)
	issuing := metering.NewChain(p.network, self, bridge)
	var jobs []protocol.JobID
	var leases []protocol.LeaseID
	at := time.UnixMilli(1_700_000_000_000)
	add := func(e entry, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if err := d.replay(e); err != nil {
			t.Fatal(err)
		}
		records, after = append(records, e), append(after, factsOf(t, d))
	}
	for range n {
		at = at.Add(time.Second)
		switch k := rnd.IntN(10); {
		case k == 0 || len(jobs) == 0:
			terms := protocol.JobTerms{Job: protocol.NewJobID(), Kind: "map", Run: protocol.Run{Module: someCID(t, "m"), Command: []string{"x"}}}
			jobs = append(jobs, terms.Job)
			add(memberEntry(&memberFacts{pair: p, grant: protocol.GrantID{7}, terms: terms, slots: 2, wall: time.Hour, level: 3}))
		case k == 1 && len(jobs) > 1:
			var over []protocol.LeaseID // a membership is forgotten with its last lease
			for id, l := range d.leases {
				if l.Job == jobs[0] {
					over = append(over, id)
				}
			}
			add(endedEntry(over...), nil)
			leases = slices.DeleteFunc(leases, func(id protocol.LeaseID) bool { return slices.Contains(over, id) })
			add(leftEntry(jobs[0]), nil)
			jobs = jobs[1:]
		case k <= 4:
			var ls []protocol.Lease
			for range 1 + rnd.IntN(3) {
				job, first := jobs[rnd.IntN(len(jobs))], uint64(rnd.IntN(50))
				l := protocol.Lease{
					ID: protocol.NewLeaseID(), Job: job, Chunk: protocol.Chunk{ID: protocol.NewChunkID(job, first, first+1), First: first, End: first + 1},
					Fence: 1 + rnd.Uint64N(4), TTL: 6 * time.Second, Inputs: []string{"x"},
				}
				ls, leases = append(ls, l), append(leases, l.ID)
			}
			add(grantsEntry(bridge, uint64(rnd.IntN(1000)), ls))
		case k == 5 && len(leases) > 0:
			add(endedEntry(leases[0]), nil)
			leases = leases[1:]
		case k == 6 && len(leases) > 0:
			r := protocol.Result{Job: jobs[0], Chunk: protocol.Chunk{ID: protocol.NewChunkID(jobs[0], 1, 2), First: 1, End: 2}, Lease: leases[0], Fence: 1, Outcome: protocol.Outcome{Reason: protocol.ReasonOOM}}
			add(outcomeEntry(&outcomeFacts{result: r, bridge: bridge, at: at, kept: true}))
		case k == 7:
			u := protocol.UsageRecord{Slot: 0, State: protocol.UsageIdle, StartMS: at.UnixMilli() / 5000 * 5000, EndMS: at.UnixMilli()/5000*5000 + 100, DurationMS: 100}
			u.ID = protocol.NewRecordID(self, nil, 0, protocol.UsageIdle, uint64(u.StartMS/5000))
			issued, err := issuing.Issue([]protocol.UsageRecord{u}, protocol.GrantID{7}, at, key)
			if err != nil {
				t.Fatal(err)
			}
			add(receiptEntry(p, issued[0].Raw), nil)
		case k == 8:
			if c := d.chains[p]; c != nil && len(c.Pending()) > 0 {
				open := c.Pending()[0]
				add(signedEntry(p, open.Seq, open.Hash), nil)
			}
		default:
			switch rnd.IntN(3) {
			case 0:
				add(controlEntry([]string{"", "pause", "drain"}[rnd.IntN(3)]), nil)
			case 1:
				add(seqEntry(uint64(at.UnixMicro())), nil)
			default:
				add(seenEntry(protocol.NewCallID(), at.Add(time.Hour)), nil)
			}
		}
	}
	return self, records, after
}

func TestASnapshotMakesTheSameDiaryEvenWithRecordsRepeated(t *testing.T) {
	for seed := range uint64(20) {
		self, records, after := history(t, seed, 60)
		d := newDiary(self)
		for _, r := range records {
			if err := d.replay(r); err != nil {
				t.Fatal(err)
			}
		}
		want := after[len(after)-1]
		snapshot, err := d.snapshot(time.UnixMilli(1_700_000_000_000))
		if err != nil {
			t.Fatal(err)
		}
		// The journal takes a snapshot while records wait that are in it already: they come again behind it.
		for _, again := range []int{0, 1, 5, 20} {
			e := newDiary(self)
			for _, r := range append(slices.Clone(snapshot), records[len(records)-again:]...) {
				if err := e.replay(r); err != nil {
					t.Fatalf("seed %d, %d again: %v", seed, again, err)
				}
			}
			got := factsOf(t, e)
			// An outcome whose lease has ended meanwhile comes and goes again with it; all else is equal.
			if d := differs(got, want); d != "" {
				t.Fatalf("seed %d, %d records again: %s", seed, again, d)
			}
		}
	}
}

func TestACrashAtEachByteOfTheJournalLosesWholeRecordsAlone(t *testing.T) {
	self, records, after := history(t, 42, 25)
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	empty := newDiary(self)
	j, _, err := journal.Open(path, empty.replay, func() [][]byte { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Sync(j.Append(records...)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(data, "\x00"))
	last := -1
	for cut := range end + 1 {
		d := newDiary(self)
		n := 0
		if _, err := journal.Decode(data[:cut], func(b []byte) error { n++; return d.replay(b) }); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if n == last {
			continue
		}
		last = n
		want := factsOf(t, newDiary(self))
		if n > 0 {
			want = after[n-1]
		}
		if d := differs(factsOf(t, d), want); d != "" {
			t.Fatalf("cut at %d, %d records: %s", cut, n, d)
		}
	}
	if last != len(records) {
		t.Errorf("the whole journal has %d records, want %d", last, len(records))
	}
}

func TestFencesSurviveTheirLeases(t *testing.T) {
	self, bridge := idOf(t, newKey(t)), idOf(t, newKey(t))
	d := newDiary(self)
	job := protocol.NewJobID()
	l := protocol.Lease{ID: protocol.NewLeaseID(), Job: job, Chunk: protocol.Chunk{ID: protocol.NewChunkID(job, 3, 4), First: 3, End: 4}, Fence: 5, TTL: time.Second, Inputs: []string{"x"}}
	e, err := grantsEntry(bridge, 1, []protocol.Lease{l})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []entry{e, endedEntry(l.ID)} {
		if err := d.replay(r); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := d.snapshot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again := newDiary(self)
	for _, r := range snapshot {
		if err := again.replay(r); err != nil {
			t.Fatal(err)
		}
	}
	if f := again.fences[job][3]; f != 5 || len(again.leases) != 0 {
		t.Errorf("fence %d with %d leases, want 5 with none", f, len(again.leases))
	}
}

func FuzzDiary(f *testing.F) {
	self, records, _ := history(f, 7, 40)
	for _, r := range records {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		d := newDiary(self)
		if err := d.replay(record); err != nil {
			return
		}
		// Whatever can be read can be written and read again.
		snapshot, err := d.snapshot(time.UnixMilli(0))
		if err != nil {
			t.Fatal(err)
		}
		again := newDiary(self)
		for _, r := range snapshot {
			if err := again.replay(r); err != nil {
				t.Fatalf("%x became %x: %v", record, r, err)
			}
		}
	})
}
