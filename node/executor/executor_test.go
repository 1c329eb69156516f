package executor

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestInputSeedIsFrozen pins the derivation: changing it changes the bytes of every job that draws numbers.
func TestInputSeedIsFrozen(t *testing.T) {
	// printf 'gridbeam/random/1\0' | cat - <(32 zero bytes) <(8 bytes, 1) | sha256sum
	seed := InputSeed([32]byte{}, 1)
	if got, want := hex.EncodeToString(seed[:]), "4fc72540dbff5f01204e10389238b5cd334edb88fdc980569b3df67cc39b83f0"; got != want {
		t.Errorf("seed is %s, want %s", got, want)
	}
	if InputSeed([32]byte{}, 2) == seed || InputSeed([32]byte{1}, 1) == seed {
		t.Error("inputs or jobs share a seed")
	}
}

func TestArgsReplaceInOnePass(t *testing.T) {
	task := Task{Command: []string{"p", "{input}{index}", "{index}/{input}", "{{input}}", "{other}"}}
	got := task.Args(Input{Index: 12, Value: "{index}"})
	if want := []string{"p", "{index}12", "12/{index}", "{{index}}", "{other}"}; !slices.Equal(got, want) {
		t.Errorf("args are %q, want %q", got, want)
	}
}

func TestFailureKeepsReasonAndCauseThroughWrapping(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("doing: %w", Fail(protocol.ReasonBadModule, "reading: %w", cause))
	if ReasonOf(err, protocol.ReasonStartFailed) != protocol.ReasonBadModule || !errors.Is(err, cause) || err.Error() != "doing: reading: cause" {
		t.Errorf("error is %v", err)
	}
	if ReasonOf(cause, protocol.ReasonStartFailed) != protocol.ReasonStartFailed {
		t.Error("an error without a reason got one")
	}
}

// TestLogKeepsTheNewestLines compares the ring with a list that forgets nothing.
func TestLogKeepsTheNewestLines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		capacity := int64(200 + random.IntN(5000))
		l := NewLog(capacity, time.Now)
		var all []LogRecord
		var end int64
		for range random.IntN(500) {
			line := strings.Repeat("x", random.IntN(100))
			l.Append(Stdout, []byte(line))
			all = append(all, LogRecord{Offset: end, Line: line})
			end += int64(len(line)) + 1
		}
		kept, dropped := l.Counts()
		if kept+dropped != end || kept > capacity {
			t.Fatalf("kept %d and dropped %d of %d, capacity %d", kept, dropped, end, capacity)
		}
		from := int64(0)
		if len(all) > 0 {
			from = all[random.IntN(len(all))].Offset
		}
		limit := int64(random.IntN(1000))
		records, next, lost, _ := l.Read(from, limit)
		first := max(from, dropped)
		if len(all) > 0 && lost != first-from {
			t.Fatalf("lost %d from %d on, want %d", lost, from, first-from)
		}
		at, size := first, int64(0)
		for i, r := range records {
			want := all[slices.IndexFunc(all, func(w LogRecord) bool { return w.Offset == at })]
			if r.Offset != at || r.Line != want.Line {
				t.Fatalf("record %d is %+v, want %+v", i, r, want)
			}
			at += int64(len(r.Line)) + 1
			size += int64(len(r.Line)) + 1
		}
		if len(records) > 0 && next != at || len(records) > 1 && size > limit {
			t.Fatalf("next is %d, want %d; %d bytes, limit %d", next, at, size, limit)
		}
	}
}

func TestLogReaderIsWokenAndToldTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1000, time.Now)
		var got []string
		done := make(chan error)
		go func() {
			var at int64
			for {
				if err := l.Wait(t.Context(), at); err != nil {
					done <- err
					return
				}
				records, next, _, end := l.Read(at, 1000)
				for _, r := range records {
					got = append(got, r.Line)
				}
				if at = next; end {
					done <- nil
					return
				}
			}
		}()
		for _, line := range []string{"a", "", "b"} {
			synctest.Wait()
			l.Append(Stdout, []byte(line))
		}
		synctest.Wait()
		l.Close()
		l.Close()
		if err := <-done; err != nil || fmt.Sprint(got) != "[a  b]" {
			t.Errorf("read %q, %v", got, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := NewLog(10, time.Now).Wait(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting with a cancelled context: %v", err)
		}
	})
}

func TestLineWriterCutsAtLineFeedsAndLength(t *testing.T) {
	text := "one\n\ntwo\n" + strings.Repeat("y", MaxLogLine) + "\n" + strings.Repeat("z", 2*MaxLogLine+1) + "\nend"
	var want []string
	for line := range strings.SplitSeq(text, "\n") {
		for len(line) > MaxLogLine {
			want = append(want, line[:MaxLogLine])
			line = line[MaxLogLine:]
		}
		want = append(want, line)
	}
	random := rand.New(rand.NewPCG(2, 2))
	for range 100 {
		l := NewLog(DefaultLogBytes, time.Now)
		w := NewLineWriter(l, Stderr)
		for rest := []byte(text); len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 1+random.IntN(2*MaxLogLine)))
			if m, err := w.Write(rest[:n]); m != n || err != nil {
				t.Fatalf("wrote %d, %v", m, err)
			}
			rest = rest[n:]
		}
		tail := w.Tail()
		w.Flush()
		records, _, _, _ := l.Read(0, 1<<30)
		var got []string
		for _, r := range records {
			got = append(got, r.Line)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%d lines, want %d", len(got), len(want))
		}
		if whole := strings.TrimSpace(text[len(text)-maxTail:]); tail != whole {
			t.Fatalf("tail has %d bytes, want %d", len(tail), len(whole))
		}
		if w.Tail() != "" {
			t.Fatal("the tail outlives the flush")
		}
	}
}

func TestTailIsValidText(t *testing.T) {
	w := NewLineWriter(nil, Stderr)
	_, _ = w.Write(bytes.Repeat([]byte("ü"), 2000))
	_, _ = w.Write([]byte{0xff})
	if tail := w.Tail(); len(tail) == 0 || strings.ToValidUTF8(tail, "") != tail {
		t.Errorf("tail is %q", tail)
	}
}

func TestLevelsAreOrdered(t *testing.T) {
	if !(LevelDev < LevelShared && LevelShared < LevelStrong) || LevelStrong.String() != "strong" {
		t.Error("levels are out of order")
	}
}
