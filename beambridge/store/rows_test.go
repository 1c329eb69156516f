package store_test

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// filled returns a row in which every field, also one that is added tomorrow, has a value of its own.
func filled[T any](t testing.TB, n int) T {
	t.Helper()
	var x T
	v := reflect.ValueOf(&x).Elem()
	for i := range v.NumField() {
		f, seed := v.Field(i), n*100+i+1
		switch p := f.Addr().Interface().(type) {
		case *protocol.PeerID:
			*p = peerID(fmt.Sprint(seed))
		case *cid.Cid:
			*p = cidOf(fmt.Sprint(seed))
		case *time.Time:
			*p = when.Add(time.Duration(seed) * time.Millisecond)
		case *[]byte:
			*p = []byte{0, byte(seed), 0xff}
		case *[]string:
			*p = []string{fmt.Sprint("a", seed), "", "ünï"}
		case *string:
			*p = fmt.Sprintf("text %d with a \x00 and a ' in it", seed)
		case *protocol.JobID:
			*p = protocol.JobID{byte(n), byte(i), 1}
		case *protocol.LeaseID:
			*p = protocol.LeaseID{byte(n), byte(i), 2}
		case *[32]byte:
			*p = [32]byte{byte(n), byte(i), 3}
		default:
			switch {
			case f.CanUint():
				f.SetUint(uint64(seed))
			case f.CanInt():
				f.SetInt(int64(-seed))
			case f.CanFloat():
				f.SetFloat(float64(seed) / 7)
			case f.Kind() == reflect.Bool:
				f.SetBool(true)
			default:
				t.Fatalf("%T.%s: this test has no value for a %s", x, v.Type().Field(i).Name, f.Type())
			}
		}
	}
	return x
}

// table is one table as its methods show it.
type table[T any] struct {
	put func(*store.Tx, T) error
	get func(*store.Tx, T) (T, error)
	all func(*store.Tx, T) iter.Seq2[T, error] // rows that share the first part of the key
	// sibling gives b the part of the key that lists are asked by; change gives a row of a's key and other content.
	sibling func(a T, b *T)
	change  func(a, b T) T
	minimal func(a T) T // a's key and nothing else
}

func slice[T any](list []T, err error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if err != nil {
			var zero T
			yield(zero, err)
			return
		}
		for _, x := range list {
			if !yield(x, nil) {
				return
			}
		}
	}
}

func check[T any](t *testing.T, name string, tab table[T]) {
	t.Run(name, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "bridge.db")
		s, err := store.Open(path, quiet)
		if err != nil {
			t.Fatal(err)
		}
		a, b := filled[T](t, 1), filled[T](t, 2)
		if tab.sibling != nil {
			tab.sibling(a, &b)
		}
		view(t, s, func(tx *store.Tx) error {
			if _, err := tab.get(tx, a); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a row that is not there: %v, want ErrNotFound", err)
			}
			for x, err := range tab.all(tx, a) {
				t.Errorf("an empty table yields %+v, %v", x, err)
			}
			return nil
		})
		update(t, s, func(tx *store.Tx) error { return errors.Join(tab.put(tx, a), tab.put(tx, b)) })
		want := []T{a, b}
		if tab.change != nil {
			want[0] = tab.change(a, b)
			update(t, s, func(tx *store.Tx) error { return tab.put(tx, want[0]) })
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path)
		view(t, s, func(tx *store.Tx) error {
			for _, w := range want {
				got, err := tab.get(tx, w)
				same(t, got, w, err)
			}
			var got []T
			for x, err := range tab.all(tx, a) {
				if err != nil {
					return err
				}
				got = append(got, x)
			}
			same(t, got, want, nil)
			return nil
		})
		if tab.minimal != nil {
			m := tab.minimal(a)
			update(t, s, func(tx *store.Tx) error { return tab.put(tx, m) })
			view(t, s, func(tx *store.Tx) error {
				got, err := tab.get(tx, m)
				same(t, got, m, err)
				return nil
			})
		}
	})
}

func same(t *testing.T, got, want any, err error) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestRowsComeBackAsTheyWerePut(t *testing.T) {
	check(t, "jobs", table[store.Job]{
		put:     func(tx *store.Tx, x store.Job) error { return tx.PutJob(x) },
		get:     func(tx *store.Tx, x store.Job) (store.Job, error) { return tx.GetJob(x.ID) },
		all:     func(tx *store.Tx, x store.Job) iter.Seq2[store.Job, error] { return slice(tx.JobsIn(x.State)) },
		sibling: func(a store.Job, b *store.Job) { b.State = a.State },
		change:  func(a, b store.Job) store.Job { b.ID, b.Created = a.ID, a.Created; return b },
		minimal: func(a store.Job) store.Job { return store.Job{ID: a.ID} },
	})
	check(t, "chunks", table[store.Chunk]{
		put:     func(tx *store.Tx, x store.Chunk) error { return tx.PutChunks([]store.Chunk{x}) },
		get:     func(tx *store.Tx, x store.Chunk) (store.Chunk, error) { return tx.GetChunk(x.Job, x.First) },
		all:     func(tx *store.Tx, x store.Chunk) iter.Seq2[store.Chunk, error] { return tx.Chunks(x.Job) },
		sibling: func(a store.Chunk, b *store.Chunk) { b.Job = a.Job },
		change:  func(a, b store.Chunk) store.Chunk { b.First = a.First; return b },
		minimal: func(a store.Chunk) store.Chunk { return store.Chunk{Job: a.Job, First: a.First} },
	})
	check(t, "leases", table[store.Lease]{
		put:     func(tx *store.Tx, x store.Lease) error { return tx.PutLeases([]store.Lease{x}) },
		get:     func(tx *store.Tx, x store.Lease) (store.Lease, error) { return tx.GetLease(x.Job, x.First, x.Fence) },
		all:     func(tx *store.Tx, x store.Lease) iter.Seq2[store.Lease, error] { return tx.Attempts(x.Job) },
		sibling: func(a store.Lease, b *store.Lease) { b.Job = a.Job },
		change:  func(a, b store.Lease) store.Lease { b.ID, b.First, b.Fence = a.ID, a.First, a.Fence; return b },
		minimal: func(a store.Lease) store.Lease {
			return store.Lease{ID: a.ID, Job: a.Job, First: a.First, Fence: a.Fence, Node: a.Node}
		},
	})
	check(t, "results", table[store.Result]{
		put:     func(tx *store.Tx, x store.Result) error { return tx.PutResults([]store.Result{x}) },
		get:     func(tx *store.Tx, x store.Result) (store.Result, error) { return tx.GetResult(x.Job, x.First) },
		all:     func(tx *store.Tx, x store.Result) iter.Seq2[store.Result, error] { return tx.Results(x.Job) },
		sibling: func(a store.Result, b *store.Result) { b.Job = a.Job },
	})
	check(t, "members", table[store.Member]{
		put: func(tx *store.Tx, x store.Member) error { return tx.PutMembers([]store.Member{x}) },
		get: func(tx *store.Tx, x store.Member) (store.Member, error) { return tx.GetMember(x.Job, x.Node) },
		all: func(tx *store.Tx, x store.Member) iter.Seq2[store.Member, error] {
			return slice(tx.Memberships(x.Node))
		},
		sibling: func(a store.Member, b *store.Member) { b.Node = a.Node },
		change:  func(a, b store.Member) store.Member { b.Job = a.Job; return b },
		minimal: func(a store.Member) store.Member { return store.Member{Job: a.Job, Node: a.Node} },
	})
	check(t, "receipts", table[store.Receipt]{
		put:     func(tx *store.Tx, x store.Receipt) error { return tx.PutReceipts([]store.Receipt{x}) },
		get:     func(tx *store.Tx, x store.Receipt) (store.Receipt, error) { return tx.GetReceipt(x.Node, x.Seq) },
		all:     func(tx *store.Tx, x store.Receipt) iter.Seq2[store.Receipt, error] { return tx.Receipts(x.Node, 0) },
		sibling: func(a store.Receipt, b *store.Receipt) { b.Node = a.Node },
		change:  func(a, b store.Receipt) store.Receipt { a.CounterSign = b.CounterSign; return a },
	})
	check(t, "log tails", table[store.LogTail]{
		put: func(tx *store.Tx, x store.LogTail) error { return tx.PutLogTails([]store.LogTail{x}) },
		get: func(tx *store.Tx, x store.LogTail) (store.LogTail, error) {
			got, err := tx.LogTailsAt(x.Job, x.First)
			if len(got) == 0 {
				return store.LogTail{}, errors.Join(err, store.ErrNotFound)
			}
			return got[0], err
		},
		all:     func(tx *store.Tx, x store.LogTail) iter.Seq2[store.LogTail, error] { return tx.LogTails(x.Job, 0) },
		sibling: func(a store.LogTail, b *store.LogTail) { b.Job, b.Text = a.Job, "no UTF-8: \xff\xfe" },
		change:  func(a, b store.LogTail) store.LogTail { b.First, b.Lease = a.First, a.Lease; return b },
		minimal: func(a store.LogTail) store.LogTail {
			return store.LogTail{Job: a.Job, First: a.First, Lease: a.Lease, Node: a.Node}
		},
	})
}

func TestSumsScoresAndNamesComeBackAsTheyWerePut(t *testing.T) {
	check(t, "usage", table[store.UsageSum]{
		put:     func(tx *store.Tx, x store.UsageSum) error { return tx.PutUsage([]store.UsageSum{x}) },
		get:     func(tx *store.Tx, x store.UsageSum) (store.UsageSum, error) { return tx.GetUsage(x.Job, x.Node) },
		all:     func(tx *store.Tx, x store.UsageSum) iter.Seq2[store.UsageSum, error] { return slice(tx.Usage(x.Job)) },
		sibling: func(a store.UsageSum, b *store.UsageSum) { b.Job, b.Node = a.Job, a.Node+"\xff" },
		change:  func(a, b store.UsageSum) store.UsageSum { b.Node = a.Node; return b },
		minimal: func(a store.UsageSum) store.UsageSum { return store.UsageSum{Job: a.Job, Node: a.Node} },
	})
	check(t, "uptime", table[store.Idle]{
		put:     func(tx *store.Tx, x store.Idle) error { return tx.PutIdle([]store.Idle{x}) },
		get:     func(tx *store.Tx, x store.Idle) (store.Idle, error) { return tx.GetIdle(x.Node, x.Day) },
		all:     func(tx *store.Tx, x store.Idle) iter.Seq2[store.Idle, error] { return slice(tx.Idles(x.Node)) },
		sibling: func(a store.Idle, b *store.Idle) { b.Node = a.Node },
		change:  func(a, b store.Idle) store.Idle { b.Day = a.Day; return b },
		minimal: func(a store.Idle) store.Idle { return store.Idle{Node: a.Node, Day: a.Day} },
	})
	check(t, "scores", table[store.Score]{
		put:     func(tx *store.Tx, x store.Score) error { return tx.PutScores([]store.Score{x}) },
		get:     func(tx *store.Tx, x store.Score) (store.Score, error) { return tx.GetScore(x.Node) },
		all:     func(tx *store.Tx, _ store.Score) iter.Seq2[store.Score, error] { return tx.Scores() },
		sibling: func(a store.Score, b *store.Score) { b.Node = a.Node + "\xff" },
		change:  func(a, b store.Score) store.Score { b.Node = a.Node; return b },
		minimal: func(a store.Score) store.Score { return store.Score{Node: a.Node} },
	})
	check(t, "paces", table[store.Pace]{
		put:     func(tx *store.Tx, x store.Pace) error { return tx.PutPaces([]store.Pace{x}) },
		get:     func(tx *store.Tx, x store.Pace) (store.Pace, error) { return tx.GetPace(x.Class, x.Model) },
		all:     func(tx *store.Tx, _ store.Pace) iter.Seq2[store.Pace, error] { return tx.Paces() },
		change:  func(a, b store.Pace) store.Pace { b.Class, b.Model = a.Class, a.Model; return b },
		minimal: func(a store.Pace) store.Pace { return store.Pace{Class: a.Class, Model: a.Model} },
	})
	check(t, "volumes", table[store.Volume]{
		put:     func(tx *store.Tx, x store.Volume) error { return tx.PutVolume(x) },
		get:     func(tx *store.Tx, x store.Volume) (store.Volume, error) { return tx.GetVolume(x.Name) },
		all:     func(tx *store.Tx, _ store.Volume) iter.Seq2[store.Volume, error] { return slice(tx.Volumes()) },
		change:  func(a, b store.Volume) store.Volume { b.Name = a.Name; return b },
		minimal: func(a store.Volume) store.Volume { return store.Volume{Name: a.Name, Root: a.Root} },
	})
	check(t, "tokens", table[store.Token]{
		put:     func(tx *store.Tx, x store.Token) error { return tx.PutToken(x) },
		get:     func(tx *store.Tx, x store.Token) (store.Token, error) { return tx.GetToken(x.Hash) },
		all:     func(tx *store.Tx, x store.Token) iter.Seq2[store.Token, error] { return slice(tx.Tokens(x.User)) },
		sibling: func(a store.Token, b *store.Token) { b.User = a.User },
		change:  func(a, b store.Token) store.Token { b.Hash, b.Created = a.Hash, a.Created; return b },
		minimal: func(a store.Token) store.Token { return store.Token{Hash: a.Hash} },
	})
}

func TestValuesThatCannotBeKeptAreRefusedByName(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "bridge.db"))
	node := peerID("a")
	for field, put := range map[string]func(*store.Tx) error{
		"Job.Inputs":    func(tx *store.Tx) error { return tx.PutJob(store.Job{Inputs: math.MaxInt64 + 1}) },
		"Chunk.End":     func(tx *store.Tx) error { return tx.PutChunks([]store.Chunk{{End: math.MaxUint64}}) },
		"Lease.Fence":   func(tx *store.Tx) error { return tx.PutLeases([]store.Lease{{Node: node, Fence: math.MaxUint64}}) },
		"Lease.Node":    func(tx *store.Tx) error { return tx.PutLeases([]store.Lease{{}}) },
		"Result.Node":   func(tx *store.Tx) error { return tx.PutResults([]store.Result{{}}) },
		"Member.Node":   func(tx *store.Tx) error { return tx.PutMembers([]store.Member{{}}) },
		"Member.Addrs":  func(tx *store.Tx) error { return tx.PutMembers([]store.Member{{Node: node, Addrs: []string{"a\nb"}}}) },
		"Token.Scopes":  func(tx *store.Tx) error { return tx.PutToken(store.Token{Scopes: []string{"job\nadmin"}}) },
		"Pace.Seconds":  func(tx *store.Tx) error { return tx.PutPaces([]store.Pace{{Seconds: math.NaN()}}) },
		"Volume.Root":   func(tx *store.Tx) error { return tx.PutVolume(store.Volume{Name: "v"}) },
		"Receipt.Node":  func(tx *store.Tx) error { return tx.PutReceipts([]store.Receipt{{}}) },
		"UsageSum.Node": func(tx *store.Tx) error { return tx.AddUsage([]store.UsageSum{{}}) },
	} {
		err := s.Update(t.Context(), func(tx *store.Tx) error { _ = put(tx); return nil })
		if !errors.Is(err, store.ErrBadRow) || !contains(err, field) {
			t.Errorf("%s: %v, want ErrBadRow naming it", field, err)
		}
	}
}
