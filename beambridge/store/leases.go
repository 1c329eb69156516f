package store

import (
	"fmt"
	"iter"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Lease is one attempt at a chunk.
type Lease struct {
	ID            protocol.LeaseID // ID names the attempt.
	Job           protocol.JobID   // Job, First and Fence are the key.
	First         uint64           // First is the chunk's first input.
	End           uint64           // End is the index after its last.
	Fence         uint64           // Fence grows by one per chunk with each lease of it.
	Copy          bool             // Copy says that it made no other lease of the chunk old.
	Node          protocol.PeerID  // Node holds it.
	Group         string           // Group is the node's operator as it was then, as are Site, Wallet, Slots and Probation.
	Site          string           // Site is where the node stands.
	Wallet        string           // Wallet is where its rewards go.
	Slots         int              // Slots is how many chunks it runs at once.
	Probation     bool             // Probation says that it was a newcomer.
	SetSeq        uint64           // SetSeq is the first lease set that holds it.
	State         string           // State is a cluster.AttemptState.
	Reason        protocol.Reason  // Reason is how it ended.
	Exit          int32            // Exit is the exit code it ended with.
	Digest        string           // Digest names its outputs, when held or done.
	Text          string           // Text is the first cause in words.
	Granted       time.Time        // Granted is when it was given out.
	Ended         time.Time        // Ended is when it ended; a lease is live while it is zero.
	RunUS         int64            // RunUS is how long it ran, microseconds.
	CPUMS         int64            // CPUMS is the processor time it took, milliseconds.
	BlocksFetched uint64           // BlocksFetched counts blocks that came over the wire for it.
}

const leaseColumns = `l.id, l.job, l.first, l.end, l.fence, l.copy, s.node, s.grp, s.site, s.wallet, s.slots, s.probation, l.set_seq, l.state, l.reason,
  l.exit, l.digest, l.text, l.granted, l.ended, l.run_us, l.cpu_ms, l.blocks_fetched`

var (
	putLease = &query{`INSERT INTO leases (job, first, fence, id, end, copy, staff, set_seq, state, reason, exit, digest, text, granted, ended,
  run_us, cpu_ms, blocks_fetched) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (job, first, fence) DO UPDATE SET end=excluded.end, copy=excluded.copy, staff=excluded.staff, set_seq=excluded.set_seq,
  state=excluded.state, reason=excluded.reason, exit=excluded.exit, digest=excluded.digest, text=excluded.text,
  granted=excluded.granted, ended=excluded.ended, run_us=excluded.run_us, cpu_ms=excluded.cpu_ms, blocks_fetched=excluded.blocks_fetched
WHERE leases.id=excluded.id`}
	getLease   = &query{"SELECT " + leaseColumns + " FROM leases l JOIN staff s ON s.n=l.staff WHERE job=? AND first=? AND fence=?"}
	liveLease  = &query{"SELECT " + leaseColumns + " FROM leases l JOIN staff s ON s.n=l.staff WHERE l.ended=0 AND l.id=?"}
	attempts   = &query{"SELECT " + leaseColumns + " FROM leases l JOIN staff s ON s.n=l.staff WHERE job=? ORDER BY first, fence"}
	attemptsAt = &query{"SELECT " + leaseColumns + " FROM leases l JOIN staff s ON s.n=l.staff WHERE job=? AND first=? ORDER BY fence"}
	openLeases = &query{"SELECT " + leaseColumns + ` FROM chunks c CROSS JOIN leases l ON l.job=c.job AND l.first=c.first JOIN staff s ON s.n=l.staff
WHERE c.job=? AND c.state NOT IN ('` + chunkDone + `','` + chunkFailed + `') ORDER BY l.fence, l.first`}

	putStaff = &query{"INSERT INTO staff (node, grp, site, wallet, slots, probation) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING"}
	getStaff = &query{"SELECT n FROM staff WHERE node=? AND grp=? AND site=? AND wallet=? AND slots=? AND probation=?"}
)

// staffKey is who held a lease, as it was then.
type staffKey struct {
	node                protocol.PeerID
	group, site, wallet string
	slots               int
	probation           bool
}

// maxStaff bounds the numbers kept in memory; beyond it they are forgotten and looked up again.
const maxStaff = 65536

// staffNumber finds or makes the row of who holds a lease.
func (t *Tx) staffNumber(l *Lease) (int64, error) {
	if t.store == nil || t.c == nil {
		_, err := t.write(putStaff, nil) // says why not
		return 0, err
	}
	k := staffKey{l.Node, l.Group, l.Site, l.Wallet, l.Slots, l.Probation}
	if n, ok := t.store.staff[k]; ok {
		return n, nil
	}
	if _, err := t.write(putStaff, func(a *args) {
		a.peer("Lease.Node", k.node)
		a.text(k.group)
		a.text(k.site)
		a.text(k.wallet)
		a.int(int64(k.slots))
		a.bool(k.probation)
	}); err != nil {
		return 0, err
	}
	probation := int64(0)
	if k.probation {
		probation = 1
	}
	n, err := one(t, getStaff, (*row).int, "holder", k.node, []byte(k.node), k.group, k.site, k.wallet, int64(k.slots), probation)
	if err != nil {
		return 0, t.refuse(err)
	}
	if len(t.store.staff) >= maxStaff {
		clear(t.store.staff)
	}
	t.store.staff[k] = n
	return n, nil
}

// PutLeases inserts leases or replaces them by (Job, First, Fence). It returns ErrConflict when another lease
// has that fence of the chunk, or when a live lease has the ID.
func (t *Tx) PutLeases(leases []Lease) error {
	for i := range leases {
		l := &leases[i]
		staff, err := t.staffNumber(l)
		if err != nil {
			return err
		}
		n, err := t.write(putLease, func(a *args) {
			a.id(l.Job)
			a.uint("Lease.First", l.First)
			a.uint("Lease.Fence", l.Fence)
			a.id(l.ID)
			a.uint("Lease.End", l.End)
			a.bool(l.Copy)
			a.int(staff)
			a.uint("Lease.SetSeq", l.SetSeq)
			a.text(l.State)
			a.int(int64(l.Reason))
			a.int(int64(l.Exit))
			a.text(l.Digest)
			a.text(l.Text)
			a.time(l.Granted)
			a.time(l.Ended)
			a.int(l.RunUS)
			a.int(l.CPUMS)
			a.uint("Lease.BlocksFetched", l.BlocksFetched)
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return t.refuse(fmt.Errorf("%w: fence %d of chunk %d of job %s belongs to another lease than %s", ErrConflict, l.Fence, l.First, l.Job, l.ID))
		}
	}
	return nil
}

func scanLease(r *row) Lease {
	return Lease{
		ID: r.id(), Job: r.id(), First: r.uint(), End: r.uint(), Fence: r.uint(), Copy: r.bool(), Node: r.peer(), Group: r.text(), Site: r.text(),
		Wallet: r.text(), Slots: int(r.int()), Probation: r.bool(), SetSeq: r.uint(), State: r.text(), Reason: protocol.Reason(r.int()),
		Exit: int32(r.int()), Digest: r.text(), Text: r.text(), Granted: r.time(), Ended: r.time(), RunUS: r.int(), CPUMS: r.int(),
		BlocksFetched: r.uint(),
	}
}

// GetLease returns the lease of a chunk under a fence, or ErrNotFound.
func (t *Tx) GetLease(job protocol.JobID, first, fence uint64) (Lease, error) {
	return one(t, getLease, scanLease, "lease under fence", fence, job[:], int64(first), int64(fence))
}

// LiveLease returns the live lease with an ID, or ErrNotFound. A lease that has ended is found by GetLease:
// IDs are random, so an index over all of them would cost a page of its own for each.
func (t *Tx) LiveLease(id protocol.LeaseID) (Lease, error) {
	return one(t, liveLease, scanLease, "live lease", id, id[:])
}

// OpenLeases yields every lease, also ended ones, of the chunks of a job that are neither done nor failed,
// in order of fences: what cluster.Restore takes.
func (t *Tx) OpenLeases(job protocol.JobID) iter.Seq2[Lease, error] {
	return list(t, openLeases, scanLease, job[:])
}

// Attempts yields every lease of a job by first input and fence.
func (t *Tx) Attempts(job protocol.JobID) iter.Seq2[Lease, error] {
	return list(t, attempts, scanLease, job[:])
}

// AttemptsAt returns every lease of the chunk that begins at first, by fence.
func (t *Tx) AttemptsAt(job protocol.JobID, first uint64) ([]Lease, error) {
	return collect(list(t, attemptsAt, scanLease, job[:], int64(first)))
}
