package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ledger is an owner: it keeps all records that it was given.
type ledger struct {
	mu      sync.Mutex
	records [][]byte
}

func (l *ledger) replay(b []byte) error { l.records = append(l.records, bytes.Clone(b)); return nil }

func (l *ledger) snapshot() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

func (l *ledger) add(j *Journal, records ...[]byte) Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, records...)
	return j.Append(records...)
}

func open(t testing.TB, path string) (*Journal, *ledger, int64) {
	t.Helper()
	l := &ledger{}
	j, torn, err := Open(path, l.replay, l.snapshot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j, l, torn
}

func record(i int) []byte {
	return append(fmt.Appendf(nil, "record %d ", i), bytes.Repeat([]byte{byte(i)}, i%97)...)
}

func TestWhatWasSyncedIsReplayedInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, l, _ := open(t, path)
	for i := range 500 {
		if err := j.Sync(l.add(j, record(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	_, got, torn := open(t, path)
	if torn != 0 || len(got.records) != 500 {
		t.Fatalf("%d records, %d torn bytes", len(got.records), torn)
	}
	for i, r := range got.records {
		if !bytes.Equal(r, record(i)) {
			t.Fatalf("record %d is %q", i, r)
		}
	}
}

func TestAFileCutAtAnyByteKeepsWholeRecordsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	var whole []byte
	var ends []int
	for i := range 12 {
		whole = frame(whole, record(i))
		ends = append(ends, len(whole))
	}
	for cut := range len(whole) + 1 {
		path := filepath.Join(dir, "journal")
		for name, data := range map[string][]byte{"cut": whole[:cut], "cut before zeros": append(slices.Clone(whole[:cut]), make([]byte, 100)...)} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			l := &ledger{}
			j, _, err := Open(path, l.replay, l.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			for want < len(ends) && ends[want] <= cut {
				want++
			}
			if len(l.records) != want {
				t.Fatalf("%s at %d: %d records, want %d", name, cut, len(l.records), want)
			}
			if err := j.Sync(l.add(j, []byte("after"))); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			again := &ledger{}
			j, torn, err := Open(path, again.replay, again.snapshot)
			if err != nil || torn != 0 || len(again.records) != want+1 || string(again.records[want]) != "after" {
				t.Fatalf("%s at %d: after going on %d records, %d torn, %v", name, cut, len(again.records), torn, err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAFlippedBitEndsTheHistoryThere(t *testing.T) {
	var whole []byte
	var ends []int
	for i := range 6 {
		whole = frame(whole, record(i))
		ends = append(ends, len(whole))
	}
	for bit := range len(whole) * 8 {
		data := slices.Clone(whole)
		data[bit/8] ^= 1 << (bit % 8)
		n := 0
		if _, err := Decode(data, func(b []byte) error {
			if !bytes.Equal(b, record(n)) {
				t.Fatalf("bit %d: record %d is %q", bit, n, b)
			}
			n++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		want := 0
		for ends[want] <= bit/8 {
			want++
		}
		if n != want {
			t.Fatalf("bit %d: %d records, want %d", bit, n, want)
		}
	}
}

func TestHistoryIsReplacedByASnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	last := []byte("0")
	var mu sync.Mutex
	snapshots := 0
	j, _, err := Open(path, func([]byte) error { return nil }, func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		snapshots++
		return [][]byte{last}
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		mu.Lock()
		last = append(fmt.Appendf(nil, "%d ", i), make([]byte, 1000)...)
		m := j.Append(last)
		mu.Unlock()
		if err := j.Sync(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if snapshots < 3 || snapshots > 4 {
		t.Errorf("%d snapshots for 3 MB of history", snapshots)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 2<<20 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	var got []byte
	if _, _, err := Open(path, func(b []byte) error { got = bytes.Clone(b); return nil }, func() [][]byte { return nil }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, last) {
		t.Errorf("the last record is %.20q, want %.20q", got, last)
	}
}

func TestManyWritersShareSyncs(t *testing.T) {
	j, l, _ := open(t, filepath.Join(t.TempDir(), "journal"))
	slow := &countingFile{file: j.f}
	j.f = slow
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if err := j.Sync(l.add(j, record(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slow.syncs > 150 {
		t.Errorf("200 records took %d syncs", slow.syncs)
	}
}

type countingFile struct {
	file
	syncs int
}

func (f *countingFile) Sync() error { f.syncs++; return f.file.Sync() }

// faultyFile fails as told, writing a part first.
type faultyFile struct {
	file
	fail    error
	partial int
	sync    error
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	if f.fail != nil {
		n, err := f.file.WriteAt(b[:min(f.partial, len(b))], at)
		return n, errors.Join(err, f.fail)
	}
	return f.file.WriteAt(b, at)
}

func (f *faultyFile) Sync() error { return errors.Join(f.sync, f.file.Sync()) }

func TestAFullDiskLosesItsBatchAloneAndTellsEverybody(t *testing.T) {
	for partial := range 60 {
		path := filepath.Join(t.TempDir(), "journal")
		j, l, _ := open(t, path)
		before := j.Append([]byte("before"))
		if err := j.Sync(before); err != nil {
			t.Fatal(err)
		}
		disk := &faultyFile{file: j.f, fail: syscall.ENOSPC, partial: partial}
		j.f = disk
		failed := j.Append([]byte("lost one"), []byte("lost two"))
		if err := j.Sync(failed); !errors.Is(err, ErrFull) {
			t.Fatalf("a full disk gives %v", err)
		}
		if err := j.Sync(failed); !errors.Is(err, ErrFull) {
			t.Fatalf("the second to ask hears %v", err)
		}
		if err := j.Sync(before); err != nil {
			t.Fatalf("what was durable before is told to be %v", err)
		}
		disk.fail = nil
		if err := j.Sync(j.Append([]byte("now it"))); err != nil { // as long as the first part of what was lost
			t.Fatal(err)
		}
		l.records = nil
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(data, l.replay); err != nil {
			t.Fatal(err)
		}
		if len(l.records) != 2 || string(l.records[1]) != "now it" {
			t.Fatalf("after %d bytes of a failed write the records are %q", partial, l.records)
		}
	}
}

func TestAFailedSyncIsNotBelievedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, l, _ := open(t, path)
	disk := &faultyFile{file: j.f, sync: syscall.EIO}
	j.f = disk
	if err := j.Sync(l.add(j, []byte("a"))); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a failed sync gives %v", err)
	}
	disk.sync = nil
	if err := j.Sync(l.add(j, []byte("b"))); err != nil {
		t.Fatal(err)
	}
	if j.f == file(disk) {
		t.Error("the file whose sync failed is still written to")
	}
}

func TestNoRoomForASnapshotLeavesTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, l, _ := open(t, path)
	if err := j.Sync(l.add(j, []byte("kept"))); err != nil {
		t.Fatal(err)
	}
	create := j.create
	j.create = func(string, int64) (file, error) { return nil, syscall.ENOSPC }
	if err := j.Sync(l.add(j, make([]byte, minSize))); !errors.Is(err, ErrFull) {
		t.Fatalf("no room gives %v", err)
	}
	j.create = create
	if err := j.Sync(l.add(j, []byte("after"))); err != nil {
		t.Fatal(err)
	}
	_ = j.Close()
	_, got, _ := open(t, path)
	if string(got.records[0]) != "kept" || string(got.records[len(got.records)-1]) != "after" {
		t.Errorf("%d records", len(got.records))
	}
}

func TestRecordsHaveBounds(t *testing.T) {
	j, _, _ := open(t, filepath.Join(t.TempDir(), "journal"))
	for _, r := range [][]byte{nil, {}, make([]byte, MaxRecord+1)} {
		if err := j.Sync(j.Append(r)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("a record of %d bytes gives %v", len(r), err)
		}
	}
	if err := j.Sync(j.Append([]byte("fine"))); err != nil {
		t.Error(err)
	}
	_ = j.Close()
	if err := j.Sync(j.Append([]byte("late"))); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	var whole []byte
	for i := range 5 {
		whole = frame(whole, record(i))
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(slices.Clone(whole), make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		good, err := Decode(data, func(b []byte) error {
			if len(b) == 0 {
				t.Fatal("an empty record")
			}
			again = frame(again, b)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		// What was read, written again, is what was there: nothing is invented.
		if !bytes.Equal(again, data[:good]) {
			t.Fatalf("%x became %x", data[:good], again)
		}
	})
}

func BenchmarkSync(b *testing.B) {
	j, _, _ := open(b, filepath.Join(b.TempDir(), "journal"))
	r := make([]byte, 800)
	for i := range r {
		r[i] = byte(rand.IntN(256))
	}
	for b.Loop() {
		if err := j.Sync(j.Append(r)); err != nil {
			b.Fatal(err)
		}
	}
}
