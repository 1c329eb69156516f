package cluster

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Member is a chosen node.
type Member struct {
	Peer   protocol.PeerID `json:"peer"`             // Peer is the node.
	Row    int             `json:"-"`                // Row is its index among the candidates.
	Rank   int             `json:"rank"`             // Rank is its place in the order of all that match, from 1.
	Region string          `json:"region,omitempty"` // Region is the share of the job that it fills.
	Slots  int             `json:"slots"`            // Slots is how many chunks it can start.
	Terms  Terms           `json:"terms"`            // Terms is why it stands where it stands.
}

// Plan is what Select proposes; nothing is decided until the members have offered (scheduling.md 3.6).
type Plan struct {
	At       time.Time `json:"at"`         // At is the moment whose candidates were judged.
	Members  []Member  `json:"members"`    // Members are the nodes to ask first.
	Spares   []Member  `json:"spares"`     // Spares replace who declines or is silent for 1 s, in order, within the same region.
	Overshot int       `json:"overshot"`   // Overshot is how many spares to ask at once with the members, to be released when not needed.
	Newcomer []Member  `json:"newcomers"`  // Newcomer are nodes in probation that Explore chunks go to.
	Explore  float64   `json:"explore"`    // Explore is the part of chunks for them, each replicated on a vetted node.
	Copies   int       `json:"copies"`     // Copies is on how many independent groups each chunk runs.
	Makespan float64   `json:"makespan_s"` // Makespan is the predicted time to the last chunk, or of a gang's round, in seconds.
}

// Select filters, orders and chooses nodes for a job (scheduling.md 3). It is a function of its arguments:
// ages are already judged in Candidate.Fresh, now only dates the plan, seed breaks exact ties. The
// Explanation is valid with every error. Errors: ErrBadJob, ErrNoMatch, ErrTooFew, ErrDomains, ErrUnvetted.
func Select(job Job, candidates []Candidate, now time.Time, seed uint64) (Plan, Explanation, error) {
	return NewFleet(candidates).Select(job, now, seed)
}

// Select is the package's Select over a fleet that is kept warm.
func (f *Fleet) Select(job Job, now time.Time, seed uint64) (Plan, Explanation, error) {
	x := Explanation{At: now, Total: f.Len()}
	j, err := job.normal()
	if err != nil {
		return Plan{}, x, err
	}
	rows, counts := f.match(&j)
	x.Filters, x.Matching = counts, len(rows)
	if len(rows) == 0 {
		return Plan{}, x, fmt.Errorf("%w: %s", ErrNoMatch, x.Summary())
	}
	vetted, fresh, err := f.vet(&j, rows, &x)
	if err != nil {
		return Plan{}, x, err
	}
	p := newPicker(f, &j, f.rank(&j, vetted, seed))
	plan := Plan{At: now, Copies: j.Copies}
	at, err := p.choose(&plan, &x)
	if err != nil {
		return Plan{}, x, err
	}
	for k, i := range at {
		plan.Members = append(plan.Members, p.member(i))
		x.Chosen = append(x.Chosen, plan.Members[k])
	}
	p.spare(at, &plan)
	if j.Explore > 0 && j.Copies == 1 && len(fresh) > 0 {
		f.explore(&j, fresh, seed, len(at), &plan, &x)
	}
	return plan, x, nil
}

// vet parts the matching rows into those that may work and newcomers to be explored.
func (f *Fleet) vet(j *Job, rows []int32, x *Explanation) (work, newcomers []int32, err error) {
	n := 0
	for _, i := range rows {
		if f.standing[i] >= uint8(StandingVetted) {
			n++
		}
	}
	switch {
	case n == len(rows) || j.AllowUnvetted == UnvettedSingle:
		return rows, nil, nil
	case n > 0:
		work = make([]int32, 0, n)
		for _, i := range rows {
			if f.standing[i] >= uint8(StandingVetted) {
				work = append(work, i)
			} else {
				newcomers = append(newcomers, i)
			}
		}
		x.note("%d of them are newcomers and get only trial chunks.", len(newcomers))
		return work, newcomers, nil
	case j.AllowUnvetted == UnvettedNever:
		x.note("All %d are newcomers and the job says allow_unvetted: never; it waits. Say replicated, or name a node you trust as anchor.", len(rows))
		return nil, nil, fmt.Errorf("%w: %s", ErrUnvetted, x.reason())
	case j.Kind == KindGang:
		x.note("All %d are newcomers and a gang cannot run each chunk twice; name a node you trust as anchor, or say allow_unvetted: single.", len(rows))
		return nil, nil, fmt.Errorf("%w: %s", ErrUnvetted, x.reason())
	}
	j.Copies = max(j.Copies, 2)
	x.note("No vetted node matches, so each chunk runs on two operators (allow_unvetted: replicated).")
	return rows, nil, nil
}

// choose finds the set for the job's kind.
func (p *picker) choose(plan *Plan, x *Explanation) ([]int, error) {
	var at, short []int
	var seconds float64
	if p.j.Kind == KindGang {
		at, short, seconds = p.gang()
	} else {
		at, short = p.grow()
	}
	if short != nil {
		p.explainShort(short, x)
		return nil, fmt.Errorf("%w: %s", ErrTooFew, x.reason())
	}
	at, err := p.diversify(at)
	if err != nil {
		x.note("Copies of a chunk run on different operators, sites and wallets; not enough different ones match.")
		return nil, err
	}
	plan.Makespan = seconds
	if p.j.Kind != KindGang {
		plan.Makespan = p.span(at)
	}
	return at, nil
}

func (p *picker) explainShort(short []int, x *Explanation) {
	if !p.shared {
		if len(p.list) < p.j.MinNodes {
			x.note("The job wants at least %d, %d match.", p.j.MinNodes, len(p.list))
			return
		}
		x.note("No %d of them are within max_rtt %s of one another.", p.j.MinNodes, p.j.MaxRTT)
		return
	}
	want := p.quotas(p.j.MinNodes)
	have := make([]int, len(want))
	for i := range p.list {
		have[p.list[i].place]++
	}
	for r, s := range p.j.Regions {
		if have[r] < want[r] {
			x.note("Region %s has to give %d of %d, %d match there.", s.Region, want[r], p.j.MinNodes, have[r])
		}
	}
	if len(short) > 0 && p.j.Kind == KindGang && p.j.MaxRTT > 0 {
		x.note("A gang's members also have to be within max_rtt %s of one another.", p.j.MaxRTT)
	}
}

func (p *picker) member(i int) Member {
	r := &p.list[i]
	c := &p.f.rows[r.row]
	m := Member{Peer: c.Peer, Row: int(r.row), Rank: i + 1, Slots: max(1, c.Slots), Terms: r.Terms}
	if len(p.j.Regions) > 0 {
		m.Region = p.j.Regions[r.place].Region
	}
	return m
}

// spare names who is asked next: a fifth more than the members, at least eight, and as many in each region
// as it has members.
func (p *picker) spare(at []int, plan *Plan) {
	n := len(at)
	if n > 10 {
		plan.Overshot = int(math.Ceil(float64(n) * 0.2))
	}
	quota := []int{max(8, plan.Overshot)}
	if p.shared {
		quota = p.quotas(max(8, plan.Overshot))
		for r := range quota {
			quota[r] = max(quota[r], 2)
		}
	}
	k := 0
	for i := range p.list {
		if k < len(at) && at[k] == i {
			k++
			continue
		}
		r := 0
		if p.shared {
			r = int(p.list[i].place)
		}
		if quota[r] > 0 {
			quota[r]--
			plan.Spares = append(plan.Spares, p.member(i))
		}
	}
	plan.Overshot = min(plan.Overshot, len(plan.Spares))
}

// untried are newcomers in the order in which they get trial chunks: least evidence first.
func (f *Fleet) untried(j *Job, rows []int32, seed uint64) []ranked {
	list := f.rank(j, rows, seed)
	slices.SortStableFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(f.rows[a.row].Checks, f.rows[b.row].Checks), cmp.Compare(a.hash, b.hash))
	})
	return list
}

// explore picks the newcomers that this job tries: least evidence first, one per operator, about 3 % of the
// cluster and at least one.
func (f *Fleet) explore(j *Job, rows []int32, seed uint64, members int, plan *Plan, x *Explanation) {
	list := f.untried(j, rows, seed)
	p := newPicker(f, j, list)
	want := max(1, int(math.Ceil(float64(members)*j.Explore)))
	seen := make([]bool, p.ngroups)
	for i := range list {
		if g := p.groups[i]; !seen[g] && len(plan.Newcomer) < want {
			seen[g] = true
			m := p.member(i)
			m.Rank = 0
			plan.Newcomer = append(plan.Newcomer, m)
		}
	}
	plan.Explore = j.Explore
	x.note("%.3g %% of chunks go to %d of the newcomers, each repeated on a vetted node.", 100*j.Explore, len(plan.Newcomer))
}
