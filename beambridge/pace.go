package beambridge

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/store"
)

const (
	// paceGain is the weight of a new run in the moving average (scheduling.md 8).
	paceGain = 0.2
	// paceRuns is how many runs are remembered for the median of a class.
	paceRuns = 64
	// noModel is the model of a machine without GPU.
	noModel = "none"
)

// paces is the predictor: how long an input of a class of jobs takes on a model of GPU. It is safe for
// concurrent use; the engine writes, placements read.
type paces struct {
	mu   sync.Mutex
	rows map[paceKey]*pace
}

type paceKey struct{ class, model string }

// pace is one class on one model.
type pace struct {
	row   store.Pace
	runs  []timed // the newest, as a ring
	next  int
	dirty bool
}

// timed is one run per input.
type timed struct {
	group string
	took  time.Duration
}

func newPaces() *paces { return &paces{rows: map[paceKey]*pace{}} }

// classOf names a class of jobs: the same module with the same command runs alike.
func classOf(module cid.Cid, command []string) string {
	h := sha256.New()
	h.Write(module.Bytes())
	for _, a := range command {
		h.Write([]byte{0})
		h.Write([]byte(a))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// restore takes up a stored row.
func (p *paces) restore(r store.Pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows[paceKey{r.Class, r.Model}] = &pace{row: r}
}

// learn adds a run of one input.
func (p *paces) learn(class, model, group string, took time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := paceKey{class, model}
	x := p.rows[k]
	if x == nil {
		x = &pace{row: store.Pace{Class: class, Model: model}}
		p.rows[k] = x
	}
	s := took.Seconds()
	if x.row.Samples == 0 {
		x.row.Seconds = s
	} else {
		x.row.Seconds += paceGain * (s - x.row.Seconds)
	}
	x.row.Samples++
	x.row.At = now
	if len(x.runs) < paceRuns {
		x.runs = append(x.runs, timed{group, took})
	} else {
		x.runs[x.next%paceRuns] = timed{group, took}
	}
	x.next++
	x.dirty = true
}

// seconds predicts an input's run time on a model, else the slowest of what is known of the class; 0 is
// unknown.
func (p *paces) seconds(class, model string) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.rows[paceKey{class, model}]; x != nil {
		return x.row.Seconds
	}
	return 0
}

// slowest predicts for a cluster that nobody has chosen yet.
func (p *paces) slowest(class string) (s float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, x := range p.rows {
		if k.class == class {
			s = max(s, x.row.Seconds)
		}
	}
	return s
}

// median tells what an input takes on this model among the newest runs, of how many and of how many groups.
func (p *paces) median(class, model string) (took time.Duration, samples, groups int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.rows[paceKey{class, model}]
	if x == nil || len(x.runs) == 0 {
		return 0, 0, 0
	}
	seen, all := map[string]bool{}, make([]time.Duration, 0, len(x.runs))
	for _, r := range x.runs {
		seen[r.group] = true
		all = append(all, r.took)
	}
	slices.Sort(all)
	return all[len(all)/2], len(all), len(seen)
}

// changed says whether there are rows to write.
func (p *paces) changed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.rows {
		if x.dirty {
			return true
		}
	}
	return false
}

// dirty returns the rows that have changed since it was asked last.
func (p *paces) dirty() (rows []store.Pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.rows {
		if x.dirty {
			x.dirty = false
			rows = append(rows, x.row)
		}
	}
	return rows
}
