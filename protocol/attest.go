package protocol

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Criterion is what a node is judged by (trust.md 9).
type Criterion string

// The criteria.
const (
	CriterionCompletion     Criterion = "completion"
	CriterionCorrectness    Criterion = "correctness"
	CriterionUptime         Criterion = "uptime"
	CriterionPerformance    Criterion = "performance"
	CriterionResponsiveness Criterion = "responsiveness"
)

// Criteria returns the criteria in the order in which they are shown.
func Criteria() []Criterion {
	return []Criterion{CriterionCompletion, CriterionCorrectness, CriterionUptime, CriterionPerformance, CriterionResponsiveness}
}

// Evidence is decayed good and bad evidence of one criterion.
type Evidence struct {
	// Good and Bad are weights, not negative.
	Good, Bad float64
}

// Attestation is a rater's word on a node, to be carried to other raters; the rater signs it (trust.md 10).
type Attestation struct {
	// Network is where it counts.
	Network NetworkID
	// Issuer rates Subject.
	Issuer, Subject PeerID
	// Group is the subject's operator as the issuer knows it.
	Group string
	// From and To bound what it is about.
	From, To time.Time
	// Evidence is per criterion.
	Evidence map[Criterion]Evidence
	// Jobs and GPUSeconds are what it rests on.
	Jobs, GPUSeconds uint64
	// ReceiptsRoot is the Merkle root of the receipts behind it.
	ReceiptsRoot [32]byte
	// Seq grows with each attestation of the pair.
	Seq uint64
	// Expires is at most 30 days ahead.
	Expires time.Time
}

const (
	maxEvidence       = 16  // entries, so that criteria can be added
	maxWeight         = 1e9 // good or bad evidence of one criterion
	maxAttestLifetime = 30 * 24 * time.Hour
	maxGroup          = 128
)

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (a *Attestation) Validate() error {
	if err := validPeers("attestation", a.Issuer, a.Subject); err != nil {
		return err
	}
	for _, f := range []struct {
		name   string
		t      time.Time
		needed bool
	}{{"from", a.From, false}, {"to", a.To, false}, {"expires", a.Expires, true}} {
		if err := validMS("attestation", f.name, f.t, f.needed); err != nil {
			return err
		}
	}
	switch {
	case len(a.Group) > maxGroup || !printable(a.Group):
		return bounds("attestation", "group", "has %d bytes or cannot be printed, at most %d", len(a.Group), maxGroup)
	case a.To.Before(a.From):
		return bounds("attestation", "to", "%s is before from", a.To.UTC().Format(time.RFC3339))
	}
	for c, e := range a.Evidence {
		if !slices.Contains(Criteria(), c) {
			return bounds("attestation", "evidence", "of %.20q, which is no criterion", string(c))
		}
		if !(e.Good >= 0 && e.Good <= maxWeight && e.Bad >= 0 && e.Bad <= maxWeight) { // so written, NaN is refused
			return bounds("attestation", "evidence", "of %s is %v good, %v bad, want 0..%g", c, e.Good, e.Bad, maxWeight)
		}
	}
	return nil
}

func (a *Attestation) toPB() *pb.Attestation {
	m := &pb.Attestation{
		Network: a.Network[:], Issuer: []byte(a.Issuer), Subject: []byte(a.Subject), Group: a.Group, From: unixMS(a.From), To: unixMS(a.To),
		Jobs: a.Jobs, GpuSeconds: a.GPUSeconds, ReceiptsRoot: a.ReceiptsRoot[:], Seq: a.Seq, Expires: unixMS(a.Expires),
	}
	for _, c := range Criteria() {
		if e, ok := a.Evidence[c]; ok {
			m.Evidence = append(m.Evidence, &pb.CriterionEvidence{Criterion: string(c), Good: e.Good, Bad: e.Bad})
		}
	}
	return m
}

// Seal validates the attestation and signs it with the rater's key.
func (a *Attestation) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	return nounAttestation.seal(key, a.Issuer, a.toPB())
}

// OpenAttestation verifies a signed attestation: its author is its Issuer, and it expires after now, by 30 days
// and an hour of clock difference at most. Evidence of criteria that this version does not know is left out.
func OpenAttestation(raw []byte, now time.Time) (Attestation, error) {
	m := &pb.Attestation{}
	signer, _, err := nounAttestation.open(raw, m)
	if err != nil {
		return Attestation{}, err
	}
	if err := nounAttestation.author(signer, PeerID(m.GetIssuer())); err != nil {
		return Attestation{}, err
	}
	a, err := attestationFromPB(m)
	if err != nil {
		return Attestation{}, err
	}
	if !now.Before(a.Expires) || a.Expires.Sub(now) > maxAttestLifetime+time.Hour {
		return Attestation{}, bounds("attestation", "expires", "%s is past or too far ahead", a.Expires.UTC().Format(time.RFC3339))
	}
	return a, nil
}

func attestationFromPB(m *pb.Attestation) (a Attestation, err error) {
	a = Attestation{
		Issuer: PeerID(m.GetIssuer()), Subject: PeerID(m.GetSubject()), Group: m.GetGroup(), From: fromMS(m.GetFrom()), To: fromMS(m.GetTo()),
		Jobs: m.GetJobs(), GPUSeconds: m.GetGpuSeconds(), Seq: m.GetSeq(), Expires: fromMS(m.GetExpires()), Evidence: map[Criterion]Evidence{},
	}
	if a.Network, err = id16("network", m.GetNetwork()); err != nil {
		return a, err
	}
	if a.ReceiptsRoot, err = hash32("attestation", "receipts_root", m.GetReceiptsRoot()); err != nil {
		return a, err
	}
	for _, e := range m.GetEvidence() {
		c := Criterion(e.GetCriterion())
		if !slices.Contains(Criteria(), c) {
			continue
		}
		if _, twice := a.Evidence[c]; twice {
			return a, bounds("attestation", "evidence", "has %s twice", c)
		}
		a.Evidence[c] = Evidence{e.GetGood(), e.GetBad()}
	}
	return a, a.Validate()
}
