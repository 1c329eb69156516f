package beambridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
	"github.com/gridbeam/gridbeam/reputation"
)

const (
	// askFor is how long a node may think about a reservation (scheduling.md 3.6).
	askFor = time.Second
	// askAtOnce bounds the reservations under way of one placement.
	askAtOnce = 64
	// replaceEvery is how often a job without nodes is placed anew when nothing has happened.
	replaceEvery = 2 * time.Second
	// busyFor and refusedFor keep a node that declined from being asked again for the same job.
	busyFor    = 2 * time.Second
	refusedFor = time.Minute
	// mostSlots bounds what is asked of one node.
	mostSlots = 1024
)

// placing is what a placement needs to know of its job: values, so that it runs beside the engine.
type placing struct {
	job     *job
	id      protocol.JobID
	want    cluster.Job
	where   *protocol.Filter // want.Where, once it was parsed
	terms   protocol.JobTerms
	class   string
	members map[protocol.PeerID]bool
	refused map[protocol.PeerID]decline
	credit  bool // the user can pay, or need not
	fleet   uint64
}

// replace starts a placement of a job that could use nodes, unless one is under way.
func (e *engine) replace(j *job, now time.Time) {
	if j.placing || j.over != "" || j.merging || now.Sub(j.placed) < askFor && j.fleet == e.fleet && !j.placed.IsZero() {
		return
	}
	j.placing, j.placed, j.fleet = true, now, e.fleet
	s := &placing{
		job: j, id: j.id(), want: j.want, terms: j.terms, class: j.class, refused: maps.Clone(j.refused), fleet: e.fleet,
		members: map[protocol.PeerID]bool{}, credit: j.row.Reserved > 0,
	}
	for id, m := range j.members {
		switch {
		case m.State != memberIs:
		case e.mute(id, now):
			s.refused[id] = decline{until: now.Add(replaceEvery), text: "it is silent"}
		default:
			s.members[id] = true
		}
	}
	p := j.tracker.Progress()
	s.want.Chunks, s.want.ChunkInputs = foreseen(p.Inputs-p.InputsDone-p.InputsFailed, j, e.paces.slowest(j.class), len(s.members))
	if !e.bridge.spawn(func() { e.bridge.place(s) }) {
		j.placing = false
	}
}

// openChunks is for how many chunks an open job looks for nodes.
const openChunks = 64

// foreseen is in how many chunks the rest of a job's inputs will be cut, and how long they will be.
func foreseen(rest uint64, j *job, seconds float64, nodes int) (chunks, inputs uint64) {
	pace := cluster.Pace{Nodes: max(1, nodes), SecondsPerInput: seconds, Chunk: j.row.ChunkSize}
	if j.calls != nil { // more calls may come at any time
		return openChunks, 1
	}
	inputs = max(1, pace.Size(max(1, rest)))
	return max(1, (rest+inputs-1)/inputs), inputs
}

// place chooses nodes for a job and asks them. It runs in a goroutine of its own.
func (b *Bridge) place(s *placing) {
	ctx := b.ctx()
	candidates, from, err := b.candidates(ctx, s)
	if err != nil {
		b.placed(s, outcome{err: err})
		return
	}
	now := b.cfg.Clock()
	list, notes := s.askable(candidates, now)
	b.measure(ctx, s, list, from)
	notes = append(notes, b.regionNotes(s, list)...)
	plan, why, err := cluster.Select(s.want, list, now, binary.BigEndian.Uint64(s.id[:8]))
	why.Notes = append(why.Notes, notes...)
	if err != nil {
		b.placed(s, outcome{plan: plan, why: why, err: err})
		return
	}
	o := outcome{plan: plan, why: why}
	o.asked, o.joined = b.askAll(ctx, s, plan, list, from)
	b.placed(s, o)
}

// decline is a node's no to a job.
type decline struct {
	until time.Time // it is not asked again before
	text  string    // what it said
}

// askable leaves out nodes that have declined lately, and those that cannot be paid, and says so. Members stay:
// they count for the choice, and are not asked again.
func (s *placing) askable(all []cluster.Candidate, now time.Time) (list []cluster.Candidate, notes []string) {
	list = make([]cluster.Candidate, 0, len(all))
	dear, silent, idle := 0, 0, 0
	for _, c := range all {
		no, declined := s.refused[c.Peer]
		switch {
		case s.members[c.Peer]: // it is free for the job that it works for
			c.Ready, c.Fresh, c.Slots = true, true, max(1, c.Slots)
		case declined && now.Before(no.until) && len(notes) < mostNotes:
			notes = append(notes, fmt.Sprintf("%s said no: %s", c.Peer, no.text))
			continue
		case declined && now.Before(no.until):
			silent++
			continue
		case c.Price > 0 && !s.credit:
			dear++
			continue
		case !c.Ready:
			idle++
		}
		list = append(list, c)
	}
	if silent > 0 {
		notes = append(notes, fmt.Sprintf("%s more said no", count(silent, "node")))
	}
	if idle > 0 {
		notes = append(notes, fmt.Sprintf("%s not ready; gridbeam node status says why there", are(idle, "node")))
	}
	if dear > 0 {
		notes = append(notes, fmt.Sprintf("%s cannot be paid, since the user has no credit; post some with gridbeam settlement credit DOLLARS --ref TEXT", count(dear, "node")))
	}
	return list, notes
}

// mostNotes is how many nodes' own words an explanation holds.
const mostNotes = 3

// outcome is how a placement went.
type outcome struct {
	plan          cluster.Plan
	why           cluster.Explanation
	err           error
	asked, joined int
}

// answer is what one node said.
type answer struct {
	m     cluster.Member
	offer protocol.Offer
	took  time.Duration
	err   error
}

// askAll asks the plan's members, and for each that declines the next spare.
func (b *Bridge) askAll(ctx context.Context, s *placing, plan cluster.Plan, list []cluster.Candidate, from []dht.Candidate) (asked, joined int) {
	byPeer := make(map[protocol.PeerID]*dht.Candidate, len(from))
	for i := range from {
		byPeer[from[i].Peer] = &from[i]
	}
	queue := make([]cluster.Member, 0, len(plan.Members)+len(plan.Newcomer))
	newcomers := map[protocol.PeerID]bool{}
	for _, m := range plan.Members {
		if !s.members[m.Peer] {
			queue = append(queue, m)
		}
	}
	for _, m := range plan.Newcomer {
		newcomers[m.Peer] = true
		if !s.members[m.Peer] {
			queue = append(queue, m)
		}
	}
	spares := plan.Spares
	answers := make(chan answer, askAtOnce)
	under := 0
	for under > 0 || len(queue) > 0 {
		for len(queue) > 0 && under < askAtOnce {
			m := queue[0]
			queue = queue[1:]
			under++
			asked++
			if !b.spawn(func() { answers <- b.ask(ctx, s, m, list[m.Row].Price) }) {
				return asked, joined
			}
		}
		a := <-answers
		under--
		if a.err != nil {
			b.log.Debug("a node declined", "job", s.id, "peer", a.m.Peer, "err", a.err)
			b.declined(s, a)
			if len(spares) > 0 && ctx.Err() == nil {
				queue, spares = append(queue, spares[0]), spares[1:]
			}
			continue
		}
		joined++
		b.join(s, plan, a, &list[a.m.Row], byPeer[a.m.Peer], newcomers[a.m.Peer])
	}
	return asked, joined
}

// ask sends one reservation and returns the node's offer.
func (b *Bridge) ask(ctx context.Context, s *placing, m cluster.Member, price uint64) answer {
	ctx, stop := context.WithTimeout(ctx, askFor)
	defer stop()
	began := b.cfg.Clock()
	offer, err := b.reserve(ctx, s, m.Peer, price)
	return answer{m, offer, b.cfg.Clock().Sub(began), err}
}

// reserve asks a node; where it does not know the bridge's grant any more, once again after showing it.
func (b *Bridge) reserve(ctx context.Context, s *placing, node protocol.PeerID, price uint64) (protocol.Offer, error) {
	for again := false; ; again = true {
		grant, err := b.auth.present(ctx, node)
		if err != nil {
			return protocol.Offer{}, err
		}
		r := protocol.Reservation{
			Call: protocol.NewCallID(), Network: b.network.ID, Grant: grant, Bridge: b.self, Node: node, NotAfter: b.cfg.Clock().Add(requestLife),
			Terms: s.terms, Slots: uint32(min(max(1, s.want.Chunks), mostSlots)), Rate: s.want.MaxPrice,
		}
		raw, err := r.Seal(b.key())
		if err != nil {
			return protocol.Offer{}, err
		}
		reply := &pb.ReserveReply{}
		err = p2p.Call(ctx, b.host, node, protocol.ProtoReserve, &pb.ReserveRequest{Reservation: raw}, reply)
		if !again && wantsAgain(err) {
			b.auth.forget(node)
			continue
		}
		if err != nil {
			return protocol.Offer{}, err
		}
		return b.offered(&r, reply, price)
	}
}

// declinedError is a node's no.
type declinedError struct {
	reason protocol.Reason
	text   string
}

func (e *declinedError) Error() string { return fmt.Sprintf("declined (%s): %s", e.reason, e.text) }

// offered checks an offer against the reservation that it answers.
func (b *Bridge) offered(r *protocol.Reservation, reply *pb.ReserveReply, price uint64) (protocol.Offer, error) {
	if len(reply.GetOffer()) == 0 {
		return protocol.Offer{}, &declinedError{protocol.Reason(reply.GetReason()), reply.GetText()}
	}
	o, err := protocol.OpenOffer(reply.GetOffer())
	switch {
	case err != nil:
		return o, err
	case o.Call != r.Call || o.Job != r.Terms.Job || o.Node != r.Node || o.Bridge != r.Bridge:
		return o, fmt.Errorf("%w: the offer answers something else", protocol.ErrMalformed)
	case !b.cfg.Clock().Before(o.Expires):
		return o, fmt.Errorf("%w: the offer had expired when it came", protocol.ErrMalformed)
	case o.Ask > price && r.Rate == 0:
		return o, fmt.Errorf("%w: the offer asks %d micro-USD an hour, the node's record %d", protocol.ErrMalformed, o.Ask, price)
	case r.Rate > 0 && o.Ask > r.Rate:
		return o, fmt.Errorf("%w: the offer asks %d micro-USD an hour, at most %d were offered", protocol.ErrMalformed, o.Ask, r.Rate)
	}
	return o, nil
}

// join makes a node that has offered a member; the lease set that says so leaves with the commit.
func (b *Bridge) join(s *placing, plan cluster.Plan, a answer, c *cluster.Candidate, rec *dht.Candidate, newcomer bool) {
	m := store.Member{
		Job: s.id, Node: a.m.Peer, Group: c.Group, Site: c.Site, Wallet: c.Wallet, Slots: int(a.offer.Slots), Probation: newcomer, Ask: int64(a.offer.Ask),
	}
	if rec != nil {
		for _, addr := range addrsOf(a.m.Peer, rec.Capability.GetAddrs()).Addrs {
			m.Addrs = append(m.Addrs, addr.String())
		}
	}
	_ = b.engine.post(b.ctx(), func(t *turn) { // nobody is left to be told when the engine has gone
		j := s.job
		if t.e.jobs[s.id] != j || j.over != "" {
			return
		}
		rate, err := t.e.prices.Rate(m.Ask)
		if err != nil {
			b.log.Warn("an offer's price cannot be paid", "peer", m.Node, "err", err)
			return
		}
		t.lazily = true // a membership may be lost in a crash: the node is asked again
		defer func() { t.lazily = false }()
		l := j.line(m.Node)
		l.ask, l.rate = m.Ask, rate
		j.tracker.Replicate(max(plan.Copies, 1), max(plan.Explore, 0))
		if _, ok := j.plan.Before[m.Node.String()]; !ok {
			j.plan.Before[m.Node.String()] = t.e.judge.Score(m.Node, t.now).O
		}
		j.plan.keep(plan, cluster.Explanation{})
		j.writePlan()
		j.guests().add(m.Node)
		b.reads.admit(j, m.Node)
		t.lines[l] = struct{}{}
		t.member(j, m)
		t.save(j)
		t.e.node(m.Node).judged = t.now
		t.observe(reputation.FromAnswer(m.Node, a.took, t.now))
	})
}

// declined remembers that a node does not want a job for now.
func (b *Bridge) declined(s *placing, a answer) {
	wait, text := busyFor, "it did not answer in time"
	var no *declinedError
	var auth *protocol.AuthError
	switch {
	case errors.As(a.err, &no):
		text = no.text
		if no.reason == protocol.ReasonRefusedPolicy {
			wait = refusedFor
		}
	case errors.As(a.err, &auth):
		text, wait = auth.Error(), refusedFor
	}
	_ = b.engine.post(b.ctx(), func(t *turn) {
		s.job.refused[a.m.Peer] = decline{t.now.Add(wait), text}
		if errors.Is(a.err, context.DeadlineExceeded) {
			t.observe(reputation.FromAnswer(a.m.Peer, 2*askFor, t.now)) // silence
		}
	})
}

// placed tells the engine how a placement went.
func (b *Bridge) placed(s *placing, o outcome) {
	_ = b.engine.post(b.ctx(), func(t *turn) {
		t.lazily = true // an explanation may be lost in a crash: the job is placed again
		defer func() { t.lazily = false }()
		j := s.job
		j.placing = false
		if t.e.jobs[s.id] != j || j.over != "" {
			return
		}
		j.plan.keep(o.plan, o.why)
		j.writePlan()
		t.touched[j] = struct{}{}
		p := j.tracker.Progress()
		if p.Workers > 0 {
			if o.joined > 0 || o.err == nil && len(j.row.Plan) == 0 {
				t.save(j)
			}
			if j.fleet != t.e.fleet { // somebody came while we asked
				t.then(func(error) { t.e.replace(j, t.e.now()) })
			}
			return
		}
		text := o.why.Summary()
		switch {
		case o.why.Total == 0 && len(o.why.Notes) > 0:
			text = "no node can be asked now"
		case o.err == nil && o.asked > 0:
			text = fmt.Sprintf("%s matched and %s declined or did not answer; asking again", count(o.asked, "node"), count(o.asked-o.joined, "node"))
		case o.err != nil && o.why.Total == 0 && len(o.why.Filters) == 0 && !errors.Is(o.err, cluster.ErrNoMatch):
			text = o.err.Error()
		}
		for _, n := range o.why.Notes {
			text = strings.TrimSuffix(text, ".") + ". " + strings.TrimSuffix(n, ".")
		}
		if j.tracker.State() == cluster.JobSelecting {
			if fx, err := j.tracker.Advance(cluster.JobStarved); err == nil {
				t.apply(j, fx)
			}
		}
		if j.row.Text != text {
			j.row.Text = text
			t.save(j)
		}
	})
}

// keep takes over what a selection said; one that found nobody new does not wipe out why members were chosen.
func (p *planRecord) keep(plan cluster.Plan, why cluster.Explanation) {
	if why.Total > 0 || len(why.Filters) > 0 {
		if len(why.Chosen) == 0 && len(p.Explanation.Chosen) > 0 && why.Matching > 0 {
			why.Chosen = p.Explanation.Chosen
		}
		p.Explanation = why
	}
	if plan.Copies > 0 {
		p.Copies, p.Explore, p.Makespan = plan.Copies, plan.Explore, plan.Makespan
	}
}
