package dht

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxEquivocations bounds how many peers' double records are kept, each at most twice protocol.MaxCapability bytes; the
// oldest go first.
const maxEquivocations = 256

// Equivocation is the proof that a peer signed two records of one sequence number: it, or two that share its key, tells
// different things to different peers.
type Equivocation struct {
	// Peer signed both.
	Peer peer.ID
	// Seq is the number of both.
	Seq uint64
	// First is the signed record that counts, as it came first; Second is the other one.
	First, Second []byte
	// At is when the second one came.
	At time.Time
}

// equivocations are the last ones, one a peer. The replica's mutex guards it.
type equivocations struct {
	of    map[peer.ID]Equivocation
	order []peer.ID
}

// add keeps one; it says whether it is the first of that peer and number.
func (e *equivocations) add(q Equivocation) bool {
	known, ok := e.of[q.Peer]
	if ok && known.Seq == q.Seq {
		return false
	}
	if e.of == nil {
		e.of = map[peer.ID]Equivocation{}
	}
	if ok {
		e.order = slices.DeleteFunc(e.order, func(id peer.ID) bool { return id == q.Peer })
	} else if len(e.order) >= maxEquivocations {
		delete(e.of, e.order[0])
		e.order = e.order[1:]
	}
	e.of[q.Peer] = q
	e.order = append(e.order, q.Peer)
	return true
}

// Equivocations returns the peers that were caught with two records of one number since the start, the last 256 of them,
// oldest first. Find's Explanation counts them.
func (d *Directory) Equivocations() []Equivocation {
	x := d.index
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]Equivocation, 0, len(x.twice.order))
	for _, id := range x.twice.order {
		out = append(out, x.twice.of[id])
	}
	return out
}

// reportEquivocation writes it to the log, a few a minute at most, as keys cost nothing.
func (d *Directory) reportEquivocation(q Equivocation) {
	if d.reports.take("", q.At) > 0 {
		return
	}
	first, second := digestOf(q.First), digestOf(q.Second)
	d.log.Warn("a peer signed two records of one number; the first counts", "peer", q.Peer, "seq", q.Seq,
		"first", hex.EncodeToString(first[:]), "second", hex.EncodeToString(second[:]))
}
