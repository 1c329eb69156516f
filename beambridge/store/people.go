package store

import (
	"iter"

	"github.com/gridbeam/gridbeam/protocol"
)

// NodeShare is what one node did for a job.
type NodeShare struct {
	Node          protocol.PeerID // Node is the node.
	Attempts      uint64          // Attempts counts its leases.
	Live          uint64          // Live counts those that have not ended.
	Chunks        uint64          // Chunks counts accounted chunks.
	Inputs        uint64          // Inputs counts the inputs of accounted chunks.
	Retaken       uint64          // Retaken counts accounted chunks that it ran under a fence above 1.
	RunUS         int64           // RunUS is run time over all its leases, microseconds.
	CPUMS         int64           // CPUMS is processor time over all its leases, milliseconds.
	BlocksFetched uint64          // BlocksFetched counts blocks that came over the wire.
}

var (
	nodeShares = &query{`SELECT s.node, count(*), sum(l.ended=0), count(r.fence), coalesce(sum(r.end-r.first),0), coalesce(sum(r.fence>1),0),
  sum(l.run_us), sum(l.cpu_ms), sum(l.blocks_fetched)
FROM leases l JOIN staff s ON s.n=l.staff LEFT JOIN results r ON r.job=l.job AND r.first=l.first AND r.lease=l.id
WHERE l.job=? GROUP BY s.node ORDER BY s.node`}
	refenced = &query{"SELECT " + chunkColumns + " FROM chunks WHERE job=? AND fence>1 ORDER BY first"}
)

// NodeShares returns what each node did for a job, by peer ID; it costs a pass over the job's leases.
func (t *Tx) NodeShares(job protocol.JobID) ([]NodeShare, error) {
	return collect(list(t, nodeShares, func(r *row) NodeShare {
		return NodeShare{
			Node: r.peer(), Attempts: r.uint(), Live: r.uint(), Chunks: r.uint(), Inputs: r.uint(), Retaken: r.uint(), RunUS: r.int(),
			CPUMS: r.int(), BlocksFetched: r.uint(),
		}
	}, job[:]))
}

// Refenced yields the chunks of a job that were leased more than once, by first input.
func (t *Tx) Refenced(job protocol.JobID) iter.Seq2[Chunk, error] {
	return list(t, refenced, scanChunk, job[:])
}
