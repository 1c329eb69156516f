package protocol

import (
	"math"
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

// Seal signs the attestation with the rater's key.
func (a *Attestation) Seal(key crypto.PrivKey) ([]byte, error) {
	m := &pb.Attestation{
		Network: a.Network[:], Issuer: []byte(a.Issuer), Subject: []byte(a.Subject), Group: a.Group, From: a.From.UnixMilli(), To: a.To.UnixMilli(),
		Jobs: a.Jobs, GpuSeconds: a.GPUSeconds, ReceiptsRoot: a.ReceiptsRoot[:], Seq: a.Seq, Expires: a.Expires.UnixMilli(),
	}
	for _, c := range Criteria() {
		if e, ok := a.Evidence[c]; ok {
			m.Evidence = append(m.Evidence, &pb.CriterionEvidence{Criterion: string(c), Good: e.Good, Bad: e.Bad})
		}
	}
	return nounAttestation.seal(key, m)
}

// OpenAttestation verifies a signed attestation: its author is its Issuer, and it has not expired.
func OpenAttestation(raw []byte, now time.Time) (a Attestation, err error) {
	m := &pb.Attestation{}
	signer, _, err := nounAttestation.open(raw, m)
	if err != nil {
		return a, err
	}
	a = Attestation{
		Group: m.GetGroup(), From: time.UnixMilli(m.GetFrom()), To: time.UnixMilli(m.GetTo()), Jobs: m.GetJobs(), GPUSeconds: m.GetGpuSeconds(),
		Seq: m.GetSeq(), Expires: time.UnixMilli(m.GetExpires()), Evidence: map[Criterion]Evidence{},
	}
	if a.Network, err = id16("network", m.GetNetwork()); err != nil {
		return a, err
	}
	if a.Issuer, err = peerID("issuer", m.GetIssuer()); err != nil {
		return a, err
	}
	if a.Subject, err = peerID("subject", m.GetSubject()); err != nil {
		return a, err
	}
	if err = nounAttestation.author(signer, a.Issuer); err != nil {
		return a, err
	}
	if len(m.GetReceiptsRoot()) != 32 {
		return a, bounds("attestation", "receipts_root", "has %d bytes, want 32", len(m.GetReceiptsRoot()))
	}
	copy(a.ReceiptsRoot[:], m.GetReceiptsRoot())
	if !now.Before(a.Expires) || a.Expires.Sub(now) > 31*24*time.Hour || a.To.Before(a.From) {
		return a, bounds("attestation", "expires", "%s is past or too far ahead", a.Expires.UTC().Format(time.RFC3339))
	}
	if len(m.GetEvidence()) > len(Criteria()) {
		return a, bounds("attestation", "evidence", "has %d entries, at most %d", len(m.GetEvidence()), len(Criteria()))
	}
	for _, e := range m.GetEvidence() {
		if !(e.GetGood() >= 0 && e.GetBad() >= 0) || math.IsInf(e.GetGood()+e.GetBad(), 0) {
			return a, bounds("attestation", "evidence", "of %.20q is %v good, %v bad", e.GetCriterion(), e.GetGood(), e.GetBad())
		}
		a.Evidence[Criterion(e.GetCriterion())] = Evidence{e.GetGood(), e.GetBad()}
	}
	return a, nil
}
