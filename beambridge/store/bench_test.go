package store_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

var when = time.UnixMilli(1_790_000_000_123).UTC()

// leaseID is random enough for a key and the same on every run.
func leaseID(job protocol.JobID, first, fence uint64) protocol.LeaseID {
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(job[:], first), fence)
	h := sha256.Sum256(b)
	return protocol.LeaseID(h[:16])
}

func grant(job protocol.JobID, first uint64, node protocol.PeerID) (store.Chunk, store.Lease) {
	l := store.Lease{
		ID: leaseID(job, first, 1), Job: job, First: first, End: first + 1, Fence: 1, Node: node, Group: node.String(), Site: "192.0.2.0/24", Slots: 2,
		SetSeq: 1_790_000_000_123_456 + first, State: "leased", Granted: when,
	}
	return store.Chunk{Job: job, First: first, End: first + 1, State: "open", Fence: 1, Want: 1}, l
}

func finish(c store.Chunk, l store.Lease) (store.Chunk, store.Lease, store.Result) {
	root := cidOf(fmt.Sprint(l.First))
	l.State, l.Reason, l.Digest, l.Ended, l.RunUS, l.CPUMS = "done", protocol.ReasonDone, root.String(), when.Add(time.Second), 12345, 12
	c.State, c.Winner = "done", l.ID
	sum := sha256.Sum256([]byte("envelope"))
	return c, l, store.Result{Job: c.Job, First: c.First, End: c.End, Lease: l.ID, Fence: 1, Node: l.Node, Root: root, Signed: sum[:]}
}

// BenchmarkChunks is what dispatch writes: batches of grants and of results, five rows a chunk in all.
func BenchmarkChunks(b *testing.B) {
	for _, batch := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "bridge.db"))
			job, nodes := protocol.NewJobID(), []protocol.PeerID{peerID("a"), peerID("b"), peerID("c")}
			first := uint64(0)
			for b.Loop() {
				chunks, leases, results := make([]store.Chunk, batch), make([]store.Lease, batch), make([]store.Result, batch)
				for i := range batch {
					chunks[i], leases[i] = grant(job, first, nodes[first%3])
					first++
				}
				update(b, s, func(t *store.Tx) error {
					if err := t.PutChunks(chunks); err != nil {
						return err
					}
					return t.PutLeases(leases)
				})
				for i := range batch {
					chunks[i], leases[i], results[i] = finish(chunks[i], leases[i])
				}
				update(b, s, func(t *store.Tx) error {
					if err := t.PutChunks(chunks); err != nil {
						return err
					}
					if err := t.PutResults(results); err != nil {
						return err
					}
					return t.PutLeases(leases)
				})
			}
			b.ReportMetric(float64(first)/b.Elapsed().Seconds(), "chunks/s")
			b.ReportMetric(5*float64(first)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkCommit is the price of durability: one row, one commit.
func BenchmarkCommit(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "bridge.db"))
	job, node := protocol.NewJobID(), peerID("a")
	first := uint64(0)
	var slowest time.Duration
	for b.Loop() {
		c, _ := grant(job, first%1000, node)
		first++
		c.Fence = first // SQLite does not write what did not change
		begin := time.Now()
		update(b, s, func(t *store.Tx) error { return t.PutChunks([]store.Chunk{c}) })
		slowest = max(slowest, time.Since(begin))
	}
	b.ReportMetric(float64(slowest.Microseconds()), "max-us")
}

// BenchmarkUpsert is rows inside one transaction, without the commit's sync.
func BenchmarkUpsert(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "bridge.db"))
	job, node := protocol.NewJobID(), peerID("a")
	rows := 0
	for b.Loop() {
		update(b, s, func(t *store.Tx) error {
			for i := range 10_000 {
				c, l := grant(job, uint64(i), node)
				if err := t.PutChunks([]store.Chunk{c}); err != nil {
					return err
				}
				if err := t.PutLeases([]store.Lease{l}); err != nil {
					return err
				}
				rows += 2
			}
			return nil
		})
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkRestore reads what a restart reads of a job of 10,000 chunks, 100 of them open.
func BenchmarkRestore(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "bridge.db"))
	job, node := protocol.NewJobID(), peerID("a")
	update(b, s, func(t *store.Tx) error {
		for i := range uint64(10_000) {
			c, l := grant(job, i, node)
			if i%100 != 0 {
				c, l, _ = finish(c, l)
			}
			if err := t.PutChunks([]store.Chunk{c}); err != nil {
				return err
			}
			if err := t.PutLeases([]store.Lease{l}); err != nil {
				return err
			}
		}
		return nil
	})
	for b.Loop() {
		view(b, s, func(t *store.Tx) error {
			n := 0
			for _, err := range t.Chunks(job) {
				if err != nil {
					return err
				}
				n++
			}
			for _, err := range t.OpenLeases(job) {
				if err != nil {
					return err
				}
				n++
			}
			if n != 10_100 {
				b.Fatalf("%d rows", n)
			}
			return nil
		})
	}
	b.ReportMetric(10_100*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkLedger posts charges of three postings, each its own transaction of the ledger, 100 a commit.
func BenchmarkLedger(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "bridge.db"))
	n := 0
	for b.Loop() {
		update(b, s, func(t *store.Tx) error {
			for range 100 {
				n++
				if _, err := t.LedgerForce(charge(fmt.Sprintf("charge/%d", n), "alice", 100)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "transactions/s")
}

// BenchmarkMillion is a job of 1,000,000 chunks, granted and finished 256 at a time, and its restart.
func BenchmarkMillion(b *testing.B) {
	const chunksAll, batch = 1_000_000, 256
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "bridge.db")
		s := open(b, path)
		job, node := protocol.NewJobID(), peerID("a")
		begin := time.Now()
		for first := uint64(0); first < chunksAll; first += batch {
			n := min(batch, chunksAll-first)
			chunks, leases, results := make([]store.Chunk, n), make([]store.Lease, n), make([]store.Result, n)
			for i := range n {
				chunks[i], leases[i] = grant(job, first+i, node)
			}
			update(b, s, func(t *store.Tx) error { return errors.Join(t.PutChunks(chunks), t.PutLeases(leases)) })
			for i := range n {
				chunks[i], leases[i], results[i] = finish(chunks[i], leases[i])
			}
			update(b, s, func(t *store.Tx) error {
				return errors.Join(t.PutChunks(chunks), t.PutLeases(leases), t.PutResults(results))
			})
		}
		b.ReportMetric(chunksAll/time.Since(begin).Seconds(), "chunks/s")
		begin = time.Now()
		view(b, s, func(t *store.Tx) error {
			n := 0
			for _, err := range t.Chunks(job) {
				if err != nil {
					return err
				}
				n++
			}
			for _, err := range t.OpenLeases(job) {
				b.Fatal("no chunk is open", err)
			}
			if n != chunksAll {
				b.Fatalf("%d chunks", n)
			}
			return nil
		})
		b.ReportMetric(time.Since(begin).Seconds(), "restart-s")
		begin = time.Now()
		view(b, s, func(t *store.Tx) error { _, err := t.NodeShares(job); return err })
		b.ReportMetric(time.Since(begin).Seconds(), "shares-s")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/chunksAll, "bytes/chunk")
	}
}
