package cluster

import (
	"math"
	"slices"
	"time"
)

// EstimateSlack is how many times max_rtt an estimated round trip may be for its node to be pinged
// (discovery.md 7, rule 4).
const EstimateSlack = 1.5

// finalistsEach is how many nodes are pinged for each that is needed.
const finalistsEach = 3

// Finalists returns the rows of the candidates to ping before Select decides: those that match the job but for
// max_rtt, of which an estimate may be 1.5 times and nothing may be known, in the order in which they would be chosen;
// three for each node that the job may use, spread over its regions as its shares are, and most at most. It returns
// ErrBadJob. The order of the candidates changes nothing, seed breaks exact ties.
func Finalists(job Job, candidates []Candidate, seed uint64, most int) ([]int, error) {
	bound := job.MaxRTT
	job.MaxRTT = 0
	j, err := job.normal()
	if err != nil {
		return nil, err
	}
	f := NewFleet(candidates)
	rows, _ := f.match(&j)
	rows = slices.DeleteFunc(rows, func(i int32) bool {
		return bound > 0 && f.rtt[i] > time.Duration(EstimateSlack*float64(bound))
	})
	if len(rows) == 0 {
		return nil, nil
	}
	var x Explanation
	work, fresh, err := f.vet(&j, rows, &x)
	if err != nil { // newcomers alone, and the job waits for others
		return nil, nil
	}
	need := j.MaxNodes // after vet, which may want copies
	switch {
	case j.Kind == KindTask:
		need = max(1, j.Copies)
	case need == 0:
		need = max(j.MinNodes, j.Copies, int(min(j.Chunks, uint64(most))))
	}
	// Pings may rule out all that are vetted: then it is newcomers that are chosen.
	list := append(f.rank(&j, work, seed), f.untried(&j, fresh, seed)...)
	p := newPicker(f, &j, list)
	quota := p.quotas(min(most, finalistsEach*need))
	if p.shared {
		for r := range quota {
			quota[r] = max(quota[r], finalistsEach)
		}
	}
	var out []int
	for i := range list {
		r := 0
		if p.shared {
			r = int(list[i].place)
		}
		if quota[r] > 0 && len(out) < most {
			quota[r]--
			out = append(out, int(list[i].row))
		}
	}
	if len(fresh) > 0 && j.Explore > 0 && j.Copies == 1 { // those that get trial chunks, as Select would take them
		trials := finalistsEach * max(1, int(math.Ceil(float64(min(need, len(out)))*j.Explore)))
		for _, r := range list[len(work):][:min(trials, len(fresh))] {
			if len(out) < most && !slices.Contains(out, int(r.row)) {
				out = append(out, int(r.row))
			}
		}
	}
	return out, nil
}
