package protocol

import (
	"bytes"
	"encoding/base64"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/internal/corpus"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// What a decoder may allocate: four times what came in, so much for each entry of a list that its shape counts,
// and so much besides.
const (
	perByte, perEntry, besides = 4, 512, 32 << 10
)

// bounded runs a decoder and holds it to what it may allocate. What it allocates once and not again is not its input's:
// protobuf reads its descriptors when a message is first seen or first refused.
func bounded(t *testing.T, s shape, size int, payload []byte, decode func()) {
	t.Helper()
	most := uint64(perByte*size + besides)
	if s.check("", payload) == nil {
		most += uint64(perEntry * entriesIn(s, payload))
	}
	if allocated(decode) <= most {
		return
	}
	if got := allocated(decode); got > most {
		t.Fatalf("%d bytes in, %d allocated, at most %d", size, got, most)
	}
}

func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// entriesIn counts what a shape counts, all levels together.
func entriesIn(s shape, b []byte) (n int) {
	for len(b) > 0 {
		num, typ, size := protowire.ConsumeField(b)
		if size < 0 {
			return n
		}
		if e, ok := s[num]; ok && typ == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(b)
			inner, _ := protowire.ConsumeBytes(b[tag:])
			n += 1 + entriesIn(e.in, inner)
		}
		b = b[size:]
	}
	return n
}

// fuzzSigned feeds a decoder with envelopes as they are, and with payloads that its author has signed: a fuzzer
// forges no signatures, but an attacker signs what it likes.
func fuzzSigned(f *testing.F, name string) {
	f.Helper()
	all := signedNouns()
	n := all[slices.IndexFunc(all, func(n signedNoun) bool { return n.noun.name == name })]
	for _, other := range all {
		raw := other.seal(f)
		f.Add(raw)
		e, err := other.noun.parse(raw)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e.payload)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n.hold(t, b)
		if len(b) < n.noun.max {
			n.hold(t, envelopeOf(t, n.author.key, n.noun, b))
		}
	})
}

// hold opens bytes: they are refused for a known reason, or what they hold can be sealed and opened again to the
// same.
func (n signedNoun) hold(t *testing.T, raw []byte) {
	t.Helper()
	e, _ := n.noun.parse(raw)
	var m proto.Message
	var err error
	bounded(t, n.noun.shape, len(raw), e.payload, func() { m, err = n.open(raw) })
	if err != nil {
		if !isRefusal(err) {
			t.Fatalf("refused for no known reason: %v", err)
		}
		return
	}
	payload := encodeMessage(t, m)
	again, err := n.open(envelopeOf(t, n.author.key, n.noun, payload))
	if err != nil {
		t.Fatalf("what was opened does not open again: %v\n%x", err, payload)
	}
	if !bytes.Equal(encodeMessage(t, again), payload) {
		t.Fatalf("what was opened changes when it is sealed again:\n%x\n%x", payload, encodeMessage(t, again))
	}
}

func FuzzOpenReservation(f *testing.F)  { fuzzSigned(f, nounReservation.name) }
func FuzzOpenOffer(f *testing.F)        { fuzzSigned(f, nounOffer.name) }
func FuzzOpenAnnouncement(f *testing.F) { fuzzSigned(f, nounAnnouncement.name) }
func FuzzOpenLeaseGrants(f *testing.F)  { fuzzSigned(f, nounLease.name) }
func FuzzOpenResults(f *testing.F)      { fuzzSigned(f, nounResult.name) }
func FuzzOpenReceipt(f *testing.F)      { fuzzSigned(f, nounReceipt.name) }
func FuzzOpenCounterSign(f *testing.F)  { fuzzSigned(f, nounCounterSign.name) }
func FuzzOpenAttestation(f *testing.F)  { fuzzSigned(f, nounAttestation.name) }
func FuzzParseGrant(f *testing.F)       { fuzzSigned(f, nounGrant.name) }
func FuzzOpenCapability(f *testing.F)   { corpus.Add(f); fuzzSigned(f, nounCapability.name) }

// FuzzVerifyChain feeds a chain with a second link of whatever content, rightly signed: it never yields more than
// the first allows.
func FuzzVerifyChain(f *testing.F) {
	chain := fixedChain()
	chain[0].Limits = GrantLimits{
		MaxGPUs: u32(8), MaxWallS: u32(60), MaxChunks: u32(5), GPUSeconds: u64(100), MaxPrice: u64(9), MinIsolation: u32(3), Egress: u32(1), GPUModels: words, EgressHosts: words,
		Volumes: words, Regions: words, JobKinds: words,
	}
	links := sealChain(f, chain[:2], keysOfChain())
	first, err := ParseGrant(links[0])
	if err != nil {
		f.Fatal(err)
	}
	narrow := chain[1]
	narrow.Limits = GrantLimits{MaxGPUs: u32(1), Regions: words[:1], MinIsolation: u32(4)}
	for _, g := range []Grant{chain[1], narrow} {
		f.Add(encodeMessage(f, g.toPB()))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		check := chainCheck()
		check.Audience = bridgeActor.id
		if _, err := VerifyChain([][]byte{links[0], payload}, check); err == nil {
			t.Fatal("what no envelope holds was believed")
		}
		second := envelopeOf(t, operator.key, nounGrant, payload)
		var r Rights
		var err error
		bounded(t, nounGrant.shape, len(links[0])+len(second), payload, func() { r, err = VerifyChain([][]byte{links[0], second}, check) })
		if err != nil {
			if _, ok := errors.AsType[*AuthError](err); !ok {
				t.Fatalf("refused for no known reason: %v", err)
			}
			return
		}
		if field := widened(&r.Limits, &first.Limits); field != "" || !subset(r.Abilities, first.Abilities) || r.Expires.After(first.NotAfter) || r.Holder != bridgeActor.id {
			t.Fatalf("it yields more %s than its first link: %+v", field, r)
		}
	})
}

func FuzzParseNetworkFile(f *testing.F) {
	n := fixedNetworkFile(f)
	s := &pb.SignedNetworkFile{}
	if err := proto.Unmarshal(n.Bytes(), s); err != nil {
		f.Fatal(err)
	}
	f.Add(n.Bytes())
	f.Add(s.GetPayload())
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &pb.SignedNetworkFile{Payload: b}
		signFile(t, s, rootActor, otherRoot)
		for _, raw := range [][]byte{b, encodeMessage(t, s)} {
			var got NetworkFile
			var err error
			bounded(t, nounNetworkFile.shape, len(raw), b, func() { got, err = ParseNetworkFile(raw) })
			if err != nil {
				if !isRefusal(err) && !errors.Is(err, ErrNetwork) {
					t.Fatalf("refused for no known reason: %v", err)
				}
				continue
			}
			again := got
			if err := again.Sign(rootActor.key); err != nil && !errors.Is(err, ErrAuthor) && !errors.Is(err, ErrBounds) {
				t.Fatalf("cannot be signed again: %v", err)
			}
			if back, err := ParseNetworkFile(again.Bytes()); err != nil || back.ID != got.ID || !slices.Equal(back.Roots, got.Roots) || back.Name != got.Name {
				t.Fatalf("signed again it is another: %v, %+v, %+v", err, back, got)
			}
		}
	})
}

func FuzzLandmarksOfANetworkFile(f *testing.F) {
	n := labFile(f, rootActor, otherRoot)
	if err := n.SetLandmarks(someLandmarks(f)); err != nil {
		f.Fatal(err)
	}
	f.Add(encodeMessage(f, n.extra()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &pb.SignedNetworkFile{}
		if err := proto.Unmarshal(n.Bytes(), s); err != nil {
			t.Fatal(err)
		}
		s.Extra = b
		for _, r := range []actor{rootActor, otherRoot} {
			sig, err := r.key.Sign(extraSigned(b))
			if err != nil {
				t.Fatal(err)
			}
			s.ExtraSignatures = append(s.ExtraSignatures, &pb.RootSignature{Root: []byte(r.id), Signature: sig})
		}
		raw := encodeMessage(t, s)
		var got NetworkFile
		var err error
		bounded(t, shapeNetworkExtra, len(raw)+8<<10, b, func() { got, err = ParseNetworkFile(raw) }) // an unknown place names its nearest
		if err != nil {
			if !isRefusal(err) && !errors.Is(err, ErrNetwork) {
				t.Fatalf("refused for no known reason: %v", err)
			}
			return
		}
		if len(b) == 0 {
			return
		}
		again := got
		if err := again.SetLandmarks(got.Landmarks); err != nil {
			t.Fatalf("what was read cannot be set: %v", err)
		}
		for _, r := range []actor{rootActor, otherRoot} {
			if err := again.SignLandmarks(r.key); err != nil {
				t.Fatalf("cannot be signed again: %v", err)
			}
		}
		if back, err := ParseNetworkFile(again.Bytes()); err != nil || !sameLandmarks(back.Landmarks, got.Landmarks) {
			t.Fatalf("signed again they are others: %v, %v, %v", err, back.Landmarks, got.Landmarks)
		}
	})
}

func FuzzParseInvitation(f *testing.F) {
	inv := fixedInvitation(f)
	f.Add([]byte(inv.String()))
	body, err := base64.RawURLEncoding.DecodeString(inv.String()[len(InvitationPrefix):])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body[:len(body)-invitationSumSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, text := range []string{string(b), InvitationPrefix + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(b), checksum(b)...))} {
			var got Invitation
			var err error
			// Text is taken apart, decoded and parsed, each with a copy.
			bounded(t, shapeInvitation, 3*len(text), b, func() { got, err = ParseInvitation(text, noon) })
			if err != nil {
				if !errors.Is(err, ErrInvitation) || len(err.Error()) > 1000 {
					t.Fatalf("refused for no known reason: %v", err)
				}
				continue
			}
			if back, err := ParseInvitation(got.String(), noon); err != nil || !sameValue(back, got) {
				t.Fatalf("passed on it is another: %v, %+v, %+v", err, back, got)
			}
		}
	})
}

// fuzzOwn feeds a decoder of what a journal keeps.
func fuzzOwn[T any](f *testing.F, s shape, fixed T, encode func(*T) ([]byte, error), decode func([]byte) (T, error)) {
	f.Helper()
	seed, err := encode(&fixed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var v T
		var err error
		bounded(t, s, len(b), b, func() { v, err = decode(b) })
		if err != nil {
			if !isRefusal(err) {
				t.Fatalf("refused for no known reason: %v", err)
			}
			return
		}
		again, err := encode(&v)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		back, err := decode(again)
		if err != nil || !sameValue(back, v) {
			t.Fatalf("it changes when it is encoded again: %v\n%+v\n%+v", err, v, back)
		}
	})
}

func FuzzDecodeJobTerms(f *testing.F) {
	fuzzOwn(f, shapeTerms, fixedTerms(), (*JobTerms).Encode, DecodeJobTerms)
}

func FuzzDecodeLease(f *testing.F) {
	fuzzOwn(f, shapeLease, fixedLease(), (*Lease).Encode, DecodeLease)
}

func FuzzDecodeResult(f *testing.F) {
	fuzzOwn(f, shapeResult, fixedResult(), (*Result).Encode, DecodeResult)
}

// FuzzOpenAvailability is of the one signed noun that has no Go struct of its own.
func FuzzOpenAvailability(f *testing.F) { corpus.Add(f); fuzzSigned(f, nounAvailability.name) }

// The largest messages of each kind have to keep to the same bound.
func TestTheLargestNounsAllocateInProportion(t *testing.T) {
	lease := Lease{ID: LeaseID{1}, Job: fixedJob, Chunk: chunkOf(fixedJob, 0, MaxChunkInputs), Fence: 1, TTL: time.Second, Inputs: make([]string, MaxChunkInputs)}
	grants, results, receipt := fixedLeaseGrants(), fixedResults(), fixedReceipt()
	grants.Leases = nil
	for range 50 {
		grants.Leases = append(grants.Leases, lease)
	}
	for range MaxResults - len(results.Results) {
		results.Results = append(results.Results, fixedResult())
	}
	for i := range uint16(MaxRecordsPerReceipt - 3) {
		receipt.Records = append(receipt.Records, usage(UsageWorking, 3+i, noon.UnixMilli(), noon.UnixMilli()+CellMillis))
	}
	for _, n := range signedNouns() {
		payload := map[string]proto.Message{nounLease.name: grants.toPB(), nounResult.name: results.toPB(), nounReceipt.name: receipt.toPB()}[n.noun.name]
		if payload == nil {
			continue
		}
		n.hold(t, envelopeOf(t, n.author.key, n.noun, encodeMessage(t, payload)))
	}
}
