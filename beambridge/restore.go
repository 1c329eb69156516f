package beambridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/protocol"
)

// ended and unended are the states of jobs as they are stored.
var (
	unended = []string{string(cluster.JobPending), string(cluster.JobSelecting), string(cluster.JobRunning), string(cluster.JobWaiting)}
	ended   = []string{string(cluster.JobDone), string(cluster.JobFailed), string(cluster.JobCancelled)}
)

// restore builds the engine's whole state from the store: after a start, and after a commit that failed.
func (e *engine) restore(ctx context.Context) error {
	now := e.now()
	e.opens, e.calls = map[callKey]*job{}, newCallIndex()
	e.jobs, e.attempts, e.ended, e.owing = map[protocol.JobID]*job{}, map[protocol.LeaseID]*attempt{}, nil, map[*line]struct{}{}
	for _, n := range e.nodes {
		n.jobs, n.stops, n.busy = map[*job]struct{}{}, map[protocol.LeaseID]stopping{}, 0
	}
	for _, id := range e.judge.Nodes() {
		e.judge.Forget(id)
	}
	return e.store.View(ctx, func(tx *store.Tx) error {
		for s, err := range tx.Scores() {
			if err != nil {
				return err
			}
			if err := e.judge.Restore(s.Node, s.Body); err != nil {
				return fmt.Errorf("restoring the score of %s: %w", s.Node, err)
			}
		}
		for p, err := range tx.Paces() {
			if err != nil {
				return err
			}
			e.paces.restore(p)
		}
		rows, err := tx.JobsIn(unended...)
		if err != nil {
			return err
		}
		late, err := e.lately(tx, now)
		if err != nil {
			return err
		}
		expenses, err := expensesOf(tx, len(rows) > 0)
		if err != nil {
			return err
		}
		for _, row := range append(rows, late...) {
			if err := e.load(tx, row, expenses, now); err != nil {
				return fmt.Errorf("restoring job %s: %w", row.ID, err)
			}
		}
		return e.restoreReceipts(tx, now)
	})
}

// lately are jobs that ended not long ago: results of theirs may still come.
func (e *engine) lately(tx *store.Tx, now time.Time) (out []store.Job, err error) {
	for _, state := range ended {
		list, err := tx.ListJobs(store.JobFilter{State: state, Limit: 200})
		if err != nil {
			return nil, err
		}
		for _, j := range list {
			if now.Sub(j.Ended) < lingering {
				row, err := tx.GetJob(j.ID)
				if err != nil {
					return nil, err
				}
				out = append(out, row)
			}
		}
	}
	return out, nil
}

// expensesOf sums what was posted for work that no user pays, by job and node.
func expensesOf(tx *store.Tx, needed bool) (map[string]int64, error) {
	out := map[string]int64{}
	if !needed {
		return out, nil
	}
	for x, err := range tx.AccountTransactions(settlement.AccountSpeculation, protocol.USD, 0) {
		if err != nil {
			return nil, err
		}
		key, bill, ok := cutLast(x.ID)
		if n, err := strconv.ParseInt(bill, 10, 64); ok && err == nil && x.Kind == protocol.KindExpense {
			out[strings.TrimPrefix(key, "expense/")] = max(out[strings.TrimPrefix(key, "expense/")], n)
		}
	}
	return out, nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// load brings one job into memory.
func (e *engine) load(tx *store.Tx, row store.Job, expenses map[string]int64, now time.Time) error {
	var spec protocol.Job
	if err := json.Unmarshal(row.Spec, &spec); err != nil {
		return fmt.Errorf("its job file: %w", err)
	}
	spec = spec.WithDefaults()
	terms, err := protocol.DecodeJobTerms(row.Terms)
	if err != nil {
		return fmt.Errorf("its terms: %w", err)
	}
	terms.Origin = e.bridge.origin()
	var lines []string
	if row.InputRoot.Defined() {
		if lines, err = e.bridge.readInputs(row.InputRoot); err != nil {
			return err
		}
	}
	inputs, err := inputsOf(&spec, lines)
	if err != nil {
		return err
	}
	j := e.empty(row, spec, terms, inputs)
	if j.calls != nil {
		j.calls.sealed = true // new calls go to a new job
		if err := e.loadCalls(tx, j); err != nil {
			return err
		}
	}
	if len(row.Plan) > 0 {
		if err := json.Unmarshal(row.Plan, &j.plan); err != nil {
			return fmt.Errorf("its plan: %w", err)
		}
	}
	if j.plan.Before == nil {
		j.plan.Before = map[string]float64{}
	}
	for _, x := range j.plan.Retried {
		j.retried[x.First] = x
	}
	if err := e.loadTracker(tx, j, now); err != nil {
		return err
	}
	if err := e.loadPeople(tx, j, expenses); err != nil {
		return err
	}
	if state := cluster.JobState(row.State); state.Final() {
		j.over, j.endedAt, j.released = state, row.Ended, row.Reserved <= row.Spent
	}
	for ; ; j.reserves++ {
		if _, err := tx.LedgerGet(fmt.Sprintf("reserve/%s/%d", row.ID, j.reserves+1)); errors.Is(err, store.ErrNotFound) {
			break
		} else if err != nil {
			return err
		}
	}
	e.jobs[row.ID] = j
	return nil
}

// loadTracker rebuilds a job's tracker and its attempts.
func (e *engine) loadTracker(tx *store.Tx, j *job, now time.Time) error {
	var broken error
	chunks := func(yield func(cluster.ChunkRow) bool) {
		for c, err := range tx.Chunks(j.id()) {
			if err != nil {
				broken = err
				return
			}
			if !yield(cluster.ChunkRow{
				First: c.First, End: c.End, State: cluster.ChunkState(c.State), Fence: c.Fence, Want: c.Want, Winner: c.Winner, Reason: c.Reason, Text: c.Text,
			}) {
				return
			}
		}
	}
	tracker, err := cluster.Restore(e.trackerConfig(j), cluster.JobState(j.row.State), chunks, e.leaseRows(tx, j, &broken), protocol.NewLeaseID, now)
	if broken != nil {
		return broken
	}
	if err != nil {
		return err
	}
	j.tracker = tracker
	return nil
}

// leaseRows yields the leases of open chunks, and makes the attempts of them.
func (e *engine) leaseRows(tx *store.Tx, j *job, broken *error) iter.Seq[cluster.LeaseRow] {
	return func(yield func(cluster.LeaseRow) bool) {
		for l, err := range tx.OpenLeases(j.id()) {
			if err != nil {
				*broken = err
				return
			}
			a := &attempt{job: j, row: l, chunk: protocol.NewChunkID(j.id(), l.First, l.End)}
			a.asked, a.extra = l.Copy && j.spec.Policy.Redundancy > 1, l.Copy && j.spec.Policy.Redundancy <= 1
			state := cluster.AttemptState(l.State)
			e.attempts[l.ID] = a
			switch {
			case state.Live():
				j.seat(&l)
				n := e.node(l.Node)
				n.jobs[j] = struct{}{}
				n.busy++
			case state == cluster.AttemptHeld:
				a.told = true
				j.compared[l.First] = append(j.compared[l.First], a)
				e.ended = append(e.ended, a)
			default:
				a.final = true
				e.ended = append(e.ended, a)
			}
			if !yield(cluster.LeaseRow{
				ID: l.ID, First: l.First, End: l.End, Fence: l.Fence, Copy: l.Copy, SetSeq: l.SetSeq, State: state, Reason: l.Reason, Exit: l.Exit,
				Digest: l.Digest, Text: l.Text,
				Worker: cluster.Worker{Peer: l.Node, Group: l.Group, Site: l.Site, Wallet: l.Wallet, Slots: l.Slots, Probation: l.Probation},
			}) {
				return
			}
		}
	}
}

// loadPeople rebuilds who works for a job and what they did.
func (e *engine) loadPeople(tx *store.Tx, j *job, expenses map[string]int64) error {
	members, err := tx.Members(j.id())
	if err != nil {
		return err
	}
	for _, m := range members {
		row := m
		j.members[m.Node] = &row
		l := j.line(m.Node)
		l.ask = m.Ask
		if l.rate, err = e.prices.Rate(m.Ask); err != nil {
			return err
		}
		if m.State == memberIs && !cluster.JobState(j.row.State).Final() {
			e.node(m.Node).jobs[j] = struct{}{}
			e.bridge.knows(m)
		}
	}
	sums, err := tx.Usage(j.id())
	if err != nil {
		return err
	}
	for _, u := range sums {
		l := j.line(u.Node)
		l.use = use{u.Records, u.PreparingMS, u.WorkingMS, u.GPUMS}
		l.billed, l.charged, l.chunks, l.rate = u.BilledMS, u.ChargedUUSD, u.Chunks, u.Rate
		e.owing[l] = struct{}{}
		if l.expense = expenses[j.id().String()+"/"+u.Node.String()]; l.expense > 0 && l.rate > 0 {
			l.bridge = (l.expense*settlement.HourMS + l.rate - 1) / l.rate
		}
	}
	shares, err := tx.NodeShares(j.id())
	if err != nil {
		return err
	}
	for _, s := range shares {
		l := j.line(s.Node)
		l.cpu, l.run, l.blocks, l.chunks = s.CPUMS, s.RunUS, s.BlocksFetched, s.Chunks
		l.ended = s.Chunks
		j.leases += s.Attempts
		if rest := s.Attempts - min(s.Attempts, s.Live+s.Chunks); rest > 0 {
			l.failed = rest
		}
	}
	return nil
}

// knows makes a stored member's addresses known, and lets it read what its job uses.
func (b *Bridge) knows(m store.Member) {
	info := peer.AddrInfo{ID: m.Node}
	for _, text := range m.Addrs {
		if a, err := multiaddr.NewMultiaddr(text); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	b.host.Host().Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.RecentlyConnectedAddrTTL)
}

// slotsOf is how many slots a node can have: one for each core, or what it has offered if that is more; 0 is unknown.
func (e *engine) slotsOf(n *node) int {
	if n.cores == 0 {
		return 0
	}
	most := n.cores
	for _, j := range e.jobs {
		if m := j.members[n.id]; m != nil {
			most = max(most, m.Slots)
		}
	}
	return most
}

// restoreReceipts gives the metering book back what it knew: the newest receipts of every chain. What they
// settled of leases that still live is not billed yet.
func (e *engine) restoreReceipts(tx *store.Tx, now time.Time) error {
	cfg := metering.DefaultBookConfig(e.bridge.self)
	cfg.Machine = func(id protocol.PeerID) (slots, cores int) {
		if n := e.nodes[id]; n != nil {
			return e.slotsOf(n), n.cores
		}
		return 0, 0
	}
	book, err := metering.NewBook(cfg)
	if err != nil {
		return err
	}
	e.money = book
	heads, err := tx.ChainHeads()
	if err != nil {
		return err
	}
	oldest := now.Add(-cfg.Window)
	for _, a := range e.attempts {
		if !a.final && a.row.Granted.Before(oldest) {
			oldest = a.row.Granted
		}
	}
	for _, h := range heads {
		first := h.Seq
		for first > 1 {
			r, err := tx.GetReceipt(h.Node, first)
			if err != nil {
				return err
			}
			if r.At.Before(oldest) {
				break
			}
			first--
		}
		for r, err := range tx.Receipts(h.Node, first-1) {
			if err != nil {
				return err
			}
			if err := e.rememberReceipt(book, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *engine) rememberReceipt(book *metering.Book, r store.Receipt) error {
	noun, hash, err := protocol.OpenReceipt(r.Raw)
	if err != nil {
		return fmt.Errorf("receipt %d of %s: %w", r.Seq, r.Node, err)
	}
	sign, err := protocol.OpenCounterSign(r.CounterSign, e.bridge.self)
	if err != nil {
		return fmt.Errorf("the answer to receipt %d of %s: %w", r.Seq, r.Node, err)
	}
	book.Remember(&noun, hash, sign.Records)
	for i := range noun.Records {
		u := &noun.Records[i]
		if a := e.attempts[u.Lease]; a != nil && !a.final && i < len(sign.Records) && u.State == protocol.UsageWorking { // preparing is not billed
			a.unbilled += sign.Records[i].GPUMS
		}
	}
	return nil
}

// undo throws away what a failed commit was about and takes everything up again from the store.
func (e *engine) undo(ctx context.Context) error {
	old, calls := e.jobs, e.calls
	if err := e.restore(ctx); err != nil {
		e.log.Error("the bridge's state could not be read back", "err", err)
		return err
	}
	for id, j := range old {
		if is := e.jobs[id]; is != nil {
			is.topic = j.topic
			is.seq = j.seq
		}
		close(j.changed) // whoever waits looks again
		j.changed = make(chan struct{})
	}
	for id, c := range calls.byID {
		if is := e.calls.get(id); is != nil {
			is.wait = c.wait
		}
		if c.moved != nil {
			close(c.moved) // whoever watches looks again
		}
	}
	e.resume()
	return nil
}

// resume starts what restored jobs need.
func (e *engine) resume() {
	for _, j := range e.jobs {
		e.version++
		j.seq = e.version
		if j.over == "" {
			e.bridge.begin(j)
		}
		if j.calls != nil {
			for _, c := range j.calls.open {
				if in, err := protocol.ParseFunctionInput(c.row.Args); err == nil && in.Root.Defined() {
					e.bridge.reads.allow(j, in.Root)
				}
			}
		}
		for id, m := range j.members {
			if m.State == memberIs && j.over == "" {
				j.guests().add(id)
				e.bridge.reads.admit(j, id)
			}
		}
		if j.over != "" && j.row.Result.Defined() {
			root := j.row.Result
			e.bridge.spawn(func() { e.bridge.hold(root) })
		}
		if j.over != "" && !j.row.Result.Defined() && j.calls == nil {
			j.merging = true
			if !e.bridge.spawn(func() { e.bridge.merge(e.bridge.ctx(), j.id(), j) }) {
				j.merging = false
			}
		}
	}
	for _, n := range e.nodes {
		if n.wanted() {
			e.linkTo(n)
		}
	}
}
