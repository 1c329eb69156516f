package store

import (
	"iter"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// LogTail is the end of what an attempt wrote.
type LogTail struct {
	Job   protocol.JobID   // Job, First and Lease are the key.
	First uint64           // First is the first input of the chunk.
	Lease protocol.LeaseID // Lease is the attempt.
	Node  protocol.PeerID  // Node ran it.
	Text  string           // Text is kept byte for byte, whatever the program wrote.
	At    time.Time        // At is when it arrived.
}

const logColumns = "job, first, lease, node, text, at"

var (
	putLog = &query{`INSERT INTO log_tails (` + logColumns + `) VALUES (?,?,?,?,?,?)
ON CONFLICT (job, first, lease) DO UPDATE SET node=excluded.node, text=excluded.text, at=excluded.at`}
	listLogs   = &query{"SELECT " + logColumns + " FROM log_tails WHERE job=? AND first>=? ORDER BY first, at, lease"}
	listLogsAt = &query{"SELECT " + logColumns + " FROM log_tails WHERE job=? AND first=? ORDER BY at, lease"}
)

// PutLogTails inserts log tails or replaces them by lease.
func (t *Tx) PutLogTails(tails []LogTail) error {
	return putAll(t, putLog, tails, func(a *args, l *LogTail) {
		a.id(l.Job)
		a.uint("LogTail.First", l.First)
		a.id(l.Lease)
		a.peer("LogTail.Node", l.Node)
		a.blob([]byte(l.Text))
		a.time(l.At)
	})
}

func scanLog(r *row) LogTail {
	return LogTail{Job: r.id(), First: r.uint(), Lease: r.id(), Node: r.peer(), Text: string(r.blob()), At: r.time()}
}

// LogTails yields the log tails of a job from a chunk on, in order of chunks and within one of arrival; 0 is
// all.
func (t *Tx) LogTails(job protocol.JobID, from uint64) iter.Seq2[LogTail, error] {
	return list(t, listLogs, scanLog, job[:], int64(from))
}

// LogTailsAt returns the log tails of the attempts at the chunk that begins at first, in order of arrival.
func (t *Tx) LogTailsAt(job protocol.JobID, first uint64) ([]LogTail, error) {
	return collect(list(t, listLogsAt, scanLog, job[:], int64(first)))
}
