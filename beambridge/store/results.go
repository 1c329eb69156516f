package store

import (
	"iter"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
)

// Result is the one accounted result of a chunk.
type Result struct {
	Job    protocol.JobID   // Job and First are the key, and what makes a chunk counted once.
	First  uint64           // First is the chunk's first input.
	End    uint64           // End is the index after its last.
	Lease  protocol.LeaseID // Lease delivered it.
	Fence  uint64           // Fence is what it ran under.
	Node   protocol.PeerID  // Node ran it.
	Root   cid.Cid          // Root is the tree of its outputs; undefined when it wrote none.
	Signed []byte           // Signed is the hash or the bytes of the envelope that it came in.
}

const resultColumns = "job, first, end, lease, fence, node, root, signed"

var (
	putResult   = &query{"INSERT INTO results (" + resultColumns + ") VALUES (?,?,?,?,?,?,?,?)"}
	getResult   = &query{"SELECT " + resultColumns + " FROM results WHERE job=? AND first=?"}
	listResults = &query{"SELECT " + resultColumns + " FROM results WHERE job=? ORDER BY first"}
)

// PutResults inserts accounted results. It returns ErrConflict when a chunk has one already, be it the same:
// who accounts twice has lost count.
func (t *Tx) PutResults(results []Result) error {
	return putAll(t, putResult, results, func(a *args, x *Result) {
		a.id(x.Job)
		a.uint("Result.First", x.First)
		a.uint("Result.End", x.End)
		a.id(x.Lease)
		a.uint("Result.Fence", x.Fence)
		a.peer("Result.Node", x.Node)
		a.cid(x.Root)
		a.blob(x.Signed)
	})
}

func scanResult(r *row) Result {
	return Result{Job: r.id(), First: r.uint(), End: r.uint(), Lease: r.id(), Fence: r.uint(), Node: r.peer(), Root: r.cid(), Signed: r.blob()}
}

// GetResult returns the accounted result of the chunk that begins at first, or ErrNotFound.
func (t *Tx) GetResult(job protocol.JobID, first uint64) (Result, error) {
	return one(t, getResult, scanResult, "result of chunk", first, job[:], int64(first))
}

// Results yields the accounted results of a job by first input.
func (t *Tx) Results(job protocol.JobID) iter.Seq2[Result, error] {
	return list(t, listResults, scanResult, job[:])
}
