package beambridge

import (
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

const (
	// callIdle is how long an open job waits for its next call before it ends (beam-interface.md 8).
	callIdle = time.Minute
	// mostInputs is how many inputs an open job takes before the next one follows it: what is kept of each is small,
	// but it is kept.
	mostInputs = 100_000
	// callAim is the predicted run time of a chunk of calls, seconds: each caller waits for its result, and results
	// return with their chunk.
	callAim = 0.2
	// callRetries is how often a call is made again whose process was killed (beam-interface.md 8).
	callRetries = 1
)

// Call states as Beam's clients know them (beam-interface.md 6.8).
const (
	callPending   = "PENDING"
	callRunning   = "RUNNING"
	callComplete  = "COMPLETE"
	callError     = "ERROR"
	callCancelled = "CANCELLED"
	callTimeout   = "TIMEOUT"
	callExpired   = "EXPIRED"
)

// withdrawn is the text of an input that nobody wants any more.
var withdrawn = protocol.FunctionInput{}.String()

// openInputs are the inputs of an open job. They grow, and are read beside the engine.
type openInputs struct {
	mu    sync.RWMutex
	texts []string // empty once its call has ended
}

// add appends an input and returns its index.
func (o *openInputs) add(text string) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.texts = append(o.texts, text)
	return uint64(len(o.texts) - 1)
}

// drop forgets the text of an input; whoever is given it from now on runs nothing.
func (o *openInputs) drop(i uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.texts[i] = ""
}

// slice returns the texts of a chunk.
func (o *openInputs) slice(r cluster.Range) []string {
	o.mu.RLock()
	defer o.mu.RUnlock()
	out := make([]string, 0, r.Len())
	for _, s := range o.texts[r.First:r.End] {
		if s == "" {
			s = withdrawn
		}
		out = append(out, s)
	}
	return out
}

func (o *openInputs) len() uint64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return uint64(len(o.texts))
}

// texts returns the inputs of a chunk, whatever the job's are.
func (j *job) texts(r cluster.Range) []string {
	if j.calls != nil {
		return j.calls.inputs.slice(r)
	}
	return j.inputs.Slice(r)
}

// callKey finds the open job that a call belongs to: whose it is, what is called, and what it sees.
type callKey struct {
	user, stub string
	sees       string // the roots of its volumes
}

// callBook are the calls of an open job. The engine owns it, but for the inputs.
type callBook struct {
	key    callKey
	inputs openInputs
	open   map[uint64]*call // calls that have not ended, by input
	idle   time.Time        // since when there is none
	sealed bool             // no more calls are taken
	failed uint64           // calls that ended otherwise than done or cancelled
	most   uint64           // inputs that it takes
}

// call is a call that has not ended. The engine owns it.
type call struct {
	row   store.Call
	job   *job
	spec  *callSpec
	chunk cluster.Range // it was leased in; empty before
	lease protocol.LeaseID
	wait  *waiter       // who waits for it; nil when nobody does
	moved chan struct{} // closed with its next change; nil while nobody wants to know
}

// watch returns the channel that is closed with the call's next change.
func (c *call) watch() <-chan struct{} {
	if c.moved == nil {
		c.moved = make(chan struct{})
	}
	return c.moved
}

// callSpec is what of a stub matters for its calls' lives.
type callSpec struct {
	retries uint32
	ttl     time.Duration // to start within; 0 is for ever
	volumes []writable
}

// writable is a volume that a function may write into.
type writable struct {
	name string // the user's
	at   string
}

func newCallBook(key callKey) *callBook {
	return &callBook{key: key, open: map[uint64]*call{}, most: mostInputs}
}
