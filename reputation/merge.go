package reputation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrAttest means that there is nothing to attest.
var ErrAttest = errors.New("reputation: nothing to attest")

// Statement is the frame of an attestation: what is not in the book.
type Statement struct {
	// Network is where it counts, Issuer who rates.
	Network protocol.NetworkID
	// Issuer rates.
	Issuer protocol.PeerID
	// Jobs and GPUSeconds are what it rests on.
	Jobs, GPUSeconds uint64
	// ReceiptsRoot is the Merkle root of the receipts behind it.
	ReceiptsRoot [32]byte
	// Seq grows with each attestation of the pair.
	Seq uint64
	// Life is how long it is good, at most 30 days.
	Life time.Duration
}

// Attest says what the rater saw of a node, for other raters: evidence, never states (trust.md 10). It returns
// ErrAttest for a node of which there is no evidence, or of the issuer itself.
func (b *Book) Attest(id protocol.PeerID, s Statement, now time.Time) (protocol.Attestation, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := b.nodes[id]
	if n == nil || id == s.Issuer {
		return protocol.Attestation{}, fmt.Errorf("%w: %s", ErrAttest, id)
	}
	a := protocol.Attestation{
		Network: s.Network, Issuer: s.Issuer, Subject: id, Group: n.Group, From: n.First, To: now, Evidence: map[protocol.Criterion]protocol.Evidence{},
		Jobs: s.Jobs, GPUSeconds: s.GPUSeconds, ReceiptsRoot: s.ReceiptsRoot, Seq: s.Seq, Expires: now.Add(min(s.Life, 30*day)),
	}
	for i, c := range criteria {
		if r, bad := n.Evidence[i].at(now, halfLife[i]); r+bad > 0 {
			a.Evidence[c] = protocol.Evidence{Good: r, Bad: bad}
		}
	}
	if len(a.Evidence) == 0 {
		return protocol.Attestation{}, fmt.Errorf("%w: %s", ErrAttest, id)
	}
	return a, nil
}

// Heard is another rater's word on a node, with what this rater thinks of the issuer.
type Heard struct {
	// Operator is the issuer's operator grant: issuers under one operator count as one.
	Operator string
	// TrustGood and TrustBad are this rater's evidence on the issuer; 0 and 0 for a stranger, who moves nothing.
	TrustGood, TrustBad float64
	// Evidence is what the issuer attests of one criterion.
	Evidence protocol.Evidence
}

// Merge is what one's own evidence on a criterion becomes by others' words: each is discounted by the trust in
// its issuer, of one operator only the one that weighs most counts, all together weigh at most MostOthers, and
// the lower bound is clamped around one's own by ClampOthers. It returns the merged evidence and bound.
func Merge(own protocol.Evidence, heard []Heard) (protocol.Evidence, float64) {
	byOperator := map[string]protocol.Evidence{}
	for _, h := range heard {
		r, s := Discount(max(0, h.TrustGood), max(0, h.TrustBad), max(0, h.Evidence.Good), max(0, h.Evidence.Bad))
		if old, ok := byOperator[h.Operator]; !ok || r+s > old.Good+old.Bad || r+s == old.Good+old.Bad && s > old.Bad {
			byOperator[h.Operator] = protocol.Evidence{Good: r, Bad: s}
		}
	}
	operators := make([]string, 0, len(byOperator))
	for o := range byOperator {
		operators = append(operators, o)
	}
	slices.SortFunc(operators, strings.Compare) // sums of floats depend on the order
	var sum protocol.Evidence
	for _, o := range operators {
		sum.Good += byOperator[o].Good
		sum.Bad += byOperator[o].Bad
	}
	n := own.Good + own.Bad
	if all, most := sum.Good+sum.Bad, MostOthers(n); all > most {
		sum.Good, sum.Bad = sum.Good*most/all, sum.Bad*most/all
	}
	merged := protocol.Evidence{Good: own.Good + sum.Good, Bad: own.Bad + sum.Bad}
	return merged, ClampOthers(Lower(own.Good, own.Bad), n, Lower(merged.Good, merged.Bad))
}
