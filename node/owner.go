package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/internal/machine"
	"github.com/gridbeam/gridbeam/protocol"
)

// ErrHeld means that leases were still held when a drain ended.
var ErrHeld = errors.New("node: leases are still held")

var _ dht.SeqStore = (*book)(nil)

// LastSeq implements dht.SeqStore.
func (b *book) LastSeq() (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.diary.seq, nil
}

// SaveSeq implements dht.SeqStore.
func (b *book) SaveSeq(seq uint64) error {
	b.mu.Lock()
	b.diary.seq = max(b.diary.seq, seq)
	mark := b.paper.Append(seqEntry(seq))
	b.mu.Unlock()
	if err := b.sync(mark); err != nil {
		// The number has time in it: one that is forgotten is found again in our own record.
		b.log.Warn("the record's number is not kept", "err", err)
	}
	return nil
}

// order keeps what the owner wants: "" work, "pause" or "drain". It is in effect even when it cannot be kept.
func (b *book) order(what string) error {
	b.mu.Lock()
	b.diary.control = what
	mark := b.paper.Append(controlEntry(what))
	b.reopen()
	b.mu.Unlock()
	b.changed()
	if err := b.sync(mark); err != nil {
		return fmt.Errorf("it is done, but will not survive a restart: %w", err)
	}
	return nil
}

// close lets nothing new begin, for good.
func (b *book) close() {
	b.mu.Lock()
	b.closing = true
	b.meterSlots(b.now(), b.vacant()...)
	b.mu.Unlock()
	b.work.Broadcast()
	b.changed()
}

// quit ends the workers.
func (b *book) quit() { b.work.Broadcast() }

// drain hands back what has not begun, lets what runs end within the deadline, hands back what does not, and
// returns when nothing is held any more. It returns ErrHeld when that takes much longer, or ctx ends before.
func (b *book) drain(ctx context.Context, deadline time.Duration) error {
	b.handBack("the node was drained", func(s protocol.LeaseState) bool { return s == protocol.LeaseLeased || s == protocol.LeaseStaging })
	late, last := time.NewTimer(deadline), time.NewTimer(deadline+2*killPatience)
	defer late.Stop()
	defer last.Stop()
	for {
		left, wait := b.unfinished()
		if left == 0 {
			return nil
		}
		select {
		case <-wait:
		case <-late.C:
			b.handBack("the node was drained, and it did not end in time", func(protocol.LeaseState) bool { return true })
		case <-last.C:
			return fmt.Errorf("%w: %d; a bridge does not take their results, or a run does not end", ErrHeld, left)
		case <-ctx.Done():
			return fmt.Errorf("%w: %d", ErrHeld, left)
		}
	}
}

func (b *book) handBack(text string, which func(protocol.LeaseState) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.leases {
		if which(l.machine.State) && l.machine.State != protocol.LeaseEnded {
			b.giveBack(l, protocol.ReasonDrained, text, 0)
		}
	}
}

// unfinished counts leases that are not over, and returns what is closed when there is one less.
func (b *book) unfinished() (n int, fewer <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.leases {
		if l.machine.State != protocol.LeaseEnded {
			n++
		}
	}
	if b.fewer == nil {
		b.fewer = make(chan struct{})
	}
	return n, b.fewer
}

// idle says whether no lease is in hand that is not over, and returns what is closed when one comes.
func (b *book) idle() (none bool, more <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	none = true
	for _, l := range b.leases {
		none = none && l.machine.State == protocol.LeaseEnded
	}
	if b.more == nil {
		b.more = make(chan struct{})
	}
	return none, b.more
}

// gpusFree counts those among some GPUs that no lease has; none when nothing here could hand them to a chunk.
func (b *book) gpusFree(uuids []string) uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gpus.free(uuids)
}

// load counts slots that run and leases that wait.
func (b *book) load() (running, queued int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.held {
		if l != nil {
			running++
		}
	}
	return running, max(0, b.inHand()-running)
}

// situation is what the state of a node is made of.
type situation struct {
	control string
	closing bool
	full    error
	short   string
	free    int
}

func (b *book) facts() situation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return situation{b.diary.control, b.closing, b.full, b.short, b.free()}
}

// restore takes up what the journal holds: memberships, leases that run again or are looked for, outcomes that
// nobody has taken.
func (b *book) restore(backends []*offered, outputs *collector) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for job, f := range b.diary.members {
		i := slices.IndexFunc(backends, func(o *offered) bool { return o.runs(&f.terms.Run) && o.report.Level >= executor.Level(f.level) })
		if i < 0 {
			b.log.Warn("left a job that no backend here can run any more", "job", job)
			delete(b.diary.members, job)
			delete(b.diary.fences, job)
			b.paper.Append(leftEntry(job))
			continue
		}
		b.addMember(f, backends[i], 0)
	}
	for id, f := range b.diary.leases {
		m := b.members[f.Job]
		if m == nil {
			delete(b.diary.leases, id)
			b.paper.Append(endedEntry(id))
			continue
		}
		b.resume(f, m, outputs, now)
	}
	if n := len(b.leases); n > 0 {
		b.log.Info("took up leases of the last run", "leases", n)
	}
}

// knows says that a directory of runs, named by its lease, belongs to a run outside of this process.
func (b *book) knows(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	raw, err := hex.DecodeString(name)
	return err == nil && len(raw) == 16 && b.diary.leases[protocol.LeaseID(raw)].token != ""
}

// resume takes up one lease; b.mu is held.
func (b *book) resume(f leaseFacts, m *member, outputs *collector, now time.Time) {
	o, ended := b.diary.outcomes[f.ID]
	if ended {
		end, err := outputs.again(o.result.Root)
		if err == nil {
			l := b.addLease(f, m, now)
			end.result, end.ready = o.result, true
			l.end = &end
			l.machine.State = protocol.LeasePublishing
			if o.kept {
				l.machine.State = protocol.LeaseEnded
				l.phase = now.Add(keepOutcome)
				b.ring(l.phase)
			}
			b.letGo(l)
			return
		}
		delete(b.diary.outcomes, f.ID) // its outputs are gone: it runs again
	}
	l := b.addLease(f, m, now)
	switch {
	case m.backend.inProcess || f.token == "":
		b.enqueue(l)
	default:
		l.machine.State = protocol.LeaseRunning
		_, uuids := splitDevices(f.token)
		b.gpus.keep(f.ID, uuids)
		b.apply(l, machine.Lost)
		b.enqueue(l)
	}
}

// toFind says that a run outside of this process is to be found again, on a slot; the book's lock is held.
func (l *lease) toFind() bool {
	return l.token != "" && l.handle == nil && (l.machine.State == protocol.LeaseUnknown || l.machine.State == protocol.LeaseStopping)
}

// status tells where the node stands.
func (s *site) status() Status {
	state, why := s.judge()
	st := Status{
		PeerID: s.host.ID(), Version: s.cfg.Version, PID: os.Getpid(), Started: s.node.started, State: state, Why: why, Slots: s.book.slots,
		Ask: s.speaker.ask, Inventory: s.inventory(), Directory: s.dir.Servers(), Standing: standingOf(s.dir.Standing()), Place: s.placeStatus(),
		Addresses: []string{}, Reachability: s.reach(), Networks: []NetworkStatus{}, Executors: []string{}, Jobs: []JobStatus{}, Leases: []LeaseStatus{}, Bridges: []BridgeStatus{},
	}
	if last, ok := s.announce.Stored(); ok {
		st.Stored = &StoredStatus{At: last.At, Asked: last.Holders, Took: last.Acks}
	}
	st.Standing.ClockOff = s.dir.ClockOff()
	s.mu.Lock()
	st.Since = s.since
	s.mu.Unlock()
	for _, a := range s.host.Addrs() {
		st.Addresses = append(st.Addresses, a.String())
	}
	for i := range s.cfg.Networks {
		st.Networks = append(st.Networks, NetworkStatus{s.cfg.Networks[i].ID, s.cfg.Networks[i].Name})
	}
	for _, o := range s.backends {
		st.Executors = append(st.Executors, o.names()...)
	}
	if s.metrics != nil {
		st.Metrics = s.metrics.Addr().String()
	}
	st.Selling = sellingOf(&st.Inventory.GPUs, s.barred, s.cfg.OfferCPU)
	if st.Line = (LineStatus{Off: true}); s.line != nil {
		st.Line = s.line.status(s.cfg.Clock())
	}
	s.speaker.compare(&st, s.cfg.Clock())
	known := s.gate.known()
	s.book.fill(&st, known)
	for i := range st.Bridges {
		st.Bridges[i].Connected = s.host.Connected(st.Bridges[i].Peer)
	}
	return st
}

// fill tells what the book knows.
func (b *book) fill(st *Status, known map[protocol.PeerID]time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st.Done, st.Failed = b.done, b.failed
	for _, l := range b.held {
		if l != nil {
			st.Busy++
		}
	}
	for _, m := range b.members {
		st.Jobs = append(st.Jobs, JobStatus{m.terms.Job, m.terms.Name, m.memberFacts.bridge, m.slots, m.held, m.since})
	}
	slices.SortFunc(st.Jobs, func(a, c JobStatus) int { return slices.Compare(a.Job[:], c.Job[:]) })
	var all []*lease
	for _, l := range b.leases {
		all = append(all, l)
	}
	for _, l := range sorted(all) {
		st.Leases = append(st.Leases, LeaseStatus{l.ID, l.Job, l.Chunk.First, l.Chunk.End, l.Fence, l.machine.State.String(), l.since, l.leaseFacts.bridge})
	}
	for id, until := range known {
		s := BridgeStatus{Peer: id, Until: until}
		if br := b.bridges[id]; br != nil {
			s.Heard = br.heard
			if br.chain != nil {
				s.Receipts, s.Open = br.chain.Position().Seq, len(br.chain.Pending())
			}
		}
		st.Bridges = append(st.Bridges, s)
	}
	slices.SortFunc(st.Bridges, func(a, c BridgeStatus) int { return slices.Compare([]byte(a.Peer), []byte(c.Peer)) })
}
