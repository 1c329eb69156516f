package p2p

import (
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// replayAuthors is how many authors' sequence numbers are remembered; 150 bytes each.
	replayAuthors = 16384
	// replayWindow is how far a message may arrive behind its author's newest, in messages. Validation
	// and mesh paths reorder: a plain "newer than the last" would drop part of every burst.
	replayWindow = 1024
)

// replay refuses a message that its author published before (trust.md 5): the router forgets message IDs
// after two minutes, then a hostile peer could send old messages round again for ever.
type replay struct {
	mu      sync.Mutex
	authors *lru.Cache[peer.ID, *seqWindow]
}

func newReplay() *replay {
	authors, err := lru.New[peer.ID, *seqWindow](replayAuthors)
	if err != nil { // only for a size below 1
		panic(err)
	}
	return &replay{authors: authors}
}

// fresh tells whether (author, seq) is seen for the first time, and remembers it.
func (r *replay) fresh(author peer.ID, seq uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.authors.Get(author)
	if !ok {
		w = &seqWindow{}
		r.authors.Add(author, w)
	}
	return w.fresh(seq)
}

// seqWindow is the sliding window of RFC 6479: the newest number and which of the ones before it came.
type seqWindow struct {
	newest uint64
	seen   [replayWindow / 64]uint64
}

func (w *seqWindow) fresh(seq uint64) bool {
	if seq > w.newest {
		if seq-w.newest >= replayWindow {
			w.seen = [replayWindow / 64]uint64{}
		} else {
			for s := w.newest + 1; s < seq; s++ {
				w.set(s, false)
			}
		}
		w.newest = seq
		w.set(seq, true)
		return true
	}
	if w.newest-seq >= replayWindow || w.has(seq) {
		return false
	}
	w.set(seq, true)
	return true
}

func (w *seqWindow) has(seq uint64) bool {
	i := seq % replayWindow
	return w.seen[i/64]&(1<<(i%64)) != 0
}

func (w *seqWindow) set(seq uint64, v bool) {
	i := seq % replayWindow
	if v {
		w.seen[i/64] |= 1 << (i % 64)
	} else {
		w.seen[i/64] &^= 1 << (i % 64)
	}
}
