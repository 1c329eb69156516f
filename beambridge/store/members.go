package store

import (
	"github.com/gridbeam/gridbeam/protocol"
)

// Member is a node that belongs or belonged to a job's cluster.
type Member struct {
	Job       protocol.JobID  // Job and Node are the key.
	Node      protocol.PeerID // Node is the node.
	Group     string          // Group is its operator; empty is an operator of its own.
	Site      string          // Site is where it stands; empty is unknown.
	Wallet    string          // Wallet is where its rewards go; empty is unknown.
	Slots     int             // Slots is how many chunks it offered to run at once.
	Probation bool            // Probation says that it was a newcomer when it joined.
	Ask       int64           // Ask is its price, micro-USD per slot-hour.
	Addrs     []string        // Addrs are multiaddrs to reach it by.
	State     string          // State is member or left.
}

const memberColumns = "job, node, grp, site, wallet, slots, probation, ask, addrs, state"

var (
	putMember = &query{`INSERT INTO members (` + memberColumns + `) VALUES (?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (job, node) DO UPDATE SET grp=excluded.grp, site=excluded.site, wallet=excluded.wallet, slots=excluded.slots,
  probation=excluded.probation, ask=excluded.ask, addrs=excluded.addrs, state=excluded.state`}
	getMember   = &query{"SELECT " + memberColumns + " FROM members WHERE job=? AND node=?"}
	listMembers = &query{"SELECT " + memberColumns + " FROM members WHERE job=? ORDER BY node"}
	memberships = &query{"SELECT " + memberColumns + " FROM members WHERE node=? ORDER BY job"}
)

// PutMembers inserts members or replaces them by (Job, Node).
func (t *Tx) PutMembers(members []Member) error {
	return putAll(t, putMember, members, func(a *args, m *Member) {
		a.id(m.Job)
		a.peer("Member.Node", m.Node)
		a.text(m.Group)
		a.text(m.Site)
		a.text(m.Wallet)
		a.int(int64(m.Slots))
		a.bool(m.Probation)
		a.int(m.Ask)
		a.texts("Member.Addrs", m.Addrs)
		a.text(m.State)
	})
}

func scanMember(r *row) Member {
	return Member{
		Job: r.id(), Node: r.peer(), Group: r.text(), Site: r.text(), Wallet: r.text(), Slots: int(r.int()), Probation: r.bool(), Ask: r.int(),
		Addrs: r.texts(), State: r.text(),
	}
}

// GetMember returns a member of a job, or ErrNotFound.
func (t *Tx) GetMember(job protocol.JobID, node protocol.PeerID) (Member, error) {
	return one(t, getMember, scanMember, "member", node, job[:], []byte(node))
}

// Members returns the members of a job by peer ID, also those that left.
func (t *Tx) Members(job protocol.JobID) ([]Member, error) {
	return collect(list(t, listMembers, scanMember, job[:]))
}

// Memberships returns what a node was a member of, by job ID.
func (t *Tx) Memberships(node protocol.PeerID) ([]Member, error) {
	return collect(list(t, memberships, scanMember, []byte(node)))
}
