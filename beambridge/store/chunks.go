package store

import (
	"iter"

	"github.com/gridbeam/gridbeam/protocol"
)

// States of a chunk that this package reads: what else a chunk may be is open.
const (
	chunkDone   = "done"
	chunkFailed = "failed"
)

// Chunk is a range of a job's inputs that was leased at least once.
type Chunk struct {
	Job    protocol.JobID   // Job and First are the key.
	First  uint64           // First is the first input.
	End    uint64           // End is the index after the last input.
	State  string           // State is a cluster.ChunkState: open, done or failed.
	Fence  uint64           // Fence is the highest that was given out.
	Want   int              // Want is how many copies have to agree.
	Winner protocol.LeaseID // Winner is the lease whose result counts, when done.
	Reason protocol.Reason  // Reason is the first cause, when failed.
	Text   string           // Text is its wording.
}

const chunkColumns = "job, first, end, state, fence, want, winner, reason, text"

var (
	putChunk = &query{`INSERT INTO chunks (` + chunkColumns + `) VALUES (?,?,?,?,?,?,?,?,?)
ON CONFLICT (job, first) DO UPDATE SET end=excluded.end, state=excluded.state, fence=excluded.fence, want=excluded.want,
  winner=excluded.winner, reason=excluded.reason, text=excluded.text`}
	getChunk    = &query{"SELECT " + chunkColumns + " FROM chunks WHERE job=? AND first=?"}
	listChunks  = &query{"SELECT " + chunkColumns + " FROM chunks WHERE job=? ORDER BY first"}
	countChunks = &query{"SELECT state, count(*) FROM chunks WHERE job=? GROUP BY state"}
	countInputs = &query{"SELECT state, sum(end-first) FROM chunks WHERE job=? GROUP BY state"}
)

// PutChunks inserts chunks or replaces them by (Job, First).
func (t *Tx) PutChunks(chunks []Chunk) error {
	return putAll(t, putChunk, chunks, func(a *args, c *Chunk) {
		a.id(c.Job)
		a.uint("Chunk.First", c.First)
		a.uint("Chunk.End", c.End)
		a.text(c.State)
		a.uint("Chunk.Fence", c.Fence)
		a.int(int64(c.Want))
		a.opt(c.Winner)
		a.int(int64(c.Reason))
		a.text(c.Text)
	})
}

func scanChunk(r *row) Chunk {
	return Chunk{
		Job: r.id(), First: r.uint(), End: r.uint(), State: r.text(), Fence: r.uint(), Want: int(r.int()), Winner: r.opt(),
		Reason: protocol.Reason(r.int()), Text: r.text(),
	}
}

// GetChunk returns the chunk of a job that begins at first, or ErrNotFound.
func (t *Tx) GetChunk(job protocol.JobID, first uint64) (Chunk, error) {
	return one(t, getChunk, scanChunk, "chunk", first, job[:], int64(first))
}

// Chunks yields the chunks of a job by first input.
func (t *Tx) Chunks(job protocol.JobID) iter.Seq2[Chunk, error] {
	return list(t, listChunks, scanChunk, job[:])
}

// CountChunks counts the chunks of a job by state; those that were never leased have no row.
func (t *Tx) CountChunks(job protocol.JobID) (map[string]uint64, error) {
	return counts(t, countChunks, job[:])
}

// CountInputs counts the inputs of a job's chunks by the chunk's state.
func (t *Tx) CountInputs(job protocol.JobID) (map[string]uint64, error) {
	return counts(t, countInputs, job[:])
}
