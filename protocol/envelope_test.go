package protocol

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	libp2p "github.com/libp2p/go-libp2p/core/record"
	recordpb "github.com/libp2p/go-libp2p/core/record/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// envelopeOf signs whatever payload under whatever noun, with no check at all.
func envelopeOf(t testing.TB, key crypto.PrivKey, n noun, payload []byte) []byte {
	t.Helper()
	env, err := libp2p.Seal(&sealed{n, payload}, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := env.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func takenApart(t testing.TB, raw []byte) *recordpb.Envelope {
	t.Helper()
	e := &recordpb.Envelope{}
	if err := proto.Unmarshal(raw, e); err != nil {
		t.Fatal(err)
	}
	return e
}

func putTogether(t testing.TB, e *recordpb.Envelope) []byte {
	t.Helper()
	raw, err := marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// isRefusal says whether an error is one that Open may return.
func isRefusal(err error) bool {
	for _, want := range []error{ErrTooLarge, ErrMalformed, ErrSignature, ErrAuthor, ErrBounds, ErrBadID} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

func TestNoNounPassesForAnother(t *testing.T) {
	nouns := signedNouns()
	for _, from := range nouns {
		raw := from.seal(t)
		if _, err := from.open(raw); err != nil {
			t.Errorf("%s does not open as itself: %v", from.noun.name, err)
		}
		for _, as := range nouns {
			if as.noun.name == from.noun.name {
				continue
			}
			if _, err := as.open(raw); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s opened as %s: %v, want ErrMalformed", from.noun.name, as.noun.name, err)
			}
			// The payload type is the attacker's to write; the signature is over another.
			e := takenApart(t, raw)
			e.PayloadType = []byte(as.noun.codec())
			if _, err := as.open(putTogether(t, e)); !errors.Is(err, ErrSignature) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s relabelled as %s: %v, want ErrSignature", from.noun.name, as.noun.name, err)
			}
			// The signer itself relabels, but under its own noun's domain.
			relabelled := noun{name: from.noun.name, max: from.noun.max}
			env, err := libp2p.Seal(&relabel{sealed{relabelled, e.GetPayload()}, as.noun.codec()}, from.author.key)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := env.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := as.open(raw); !errors.Is(err, ErrSignature) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s signed with the type of %s: %v, want ErrSignature", from.noun.name, as.noun.name, err)
			}
		}
	}
}

// relabel is a payload with the payload type of another noun.
type relabel struct {
	sealed
	codec string
}

func (r *relabel) Codec() []byte { return []byte(r.codec) }

func TestOnlyTheAuthorCanSign(t *testing.T) {
	for _, n := range signedNouns() {
		e := takenApart(t, n.seal(t))
		_, err := n.open(envelopeOf(t, stranger.key, n.noun, e.GetPayload()))
		wantErr(t, n.noun.name+" signed by a stranger", err, ErrAuthor)
	}
}

func TestSealRefusesWhatWouldNotOpen(t *testing.T) {
	reservation, offer, announcement, leases, results := fixedReservation(), fixedOffer(), fixedAnnouncement(), fixedLeaseGrants(), fixedResults()
	receipt, counter, attestation, grant := fixedReceipt(), fixedCounterSign(), fixedAttestation(), fixedChain()[0]
	seals := map[string]func(crypto.PrivKey) ([]byte, error){
		"reservation": reservation.Seal, "offer": offer.Seal, "announcement": announcement.Seal, "leases": leases.Seal, "results": results.Seal,
		"receipt": func(k crypto.PrivKey) ([]byte, error) { raw, _, err := receipt.Seal(k); return raw, err }, "attestation": attestation.Seal, "grant": grant.Seal,
		"capability":   func(k crypto.PrivKey) ([]byte, error) { return SealCapability(k, fixedCapability()) },
		"availability": func(k crypto.PrivKey) ([]byte, error) { return SealAvailability(k, fixedAvailability()) },
	}
	for name, seal := range seals {
		_, err := seal(stranger.key)
		wantErr(t, name+" with a stranger's key", err, ErrAuthor)
	}
	seals["countersign"] = counter.Seal
	for kind, key := range otherKeys(t) {
		for name, seal := range seals {
			_, err := seal(key)
			wantErr(t, name+" with a key of "+kind, err, ErrSignature)
		}
	}
}

// otherKeys are keys that libp2p knows and gridbeam refuses.
func otherKeys(t testing.TB) map[string]crypto.PrivKey {
	t.Helper()
	out := map[string]crypto.PrivKey{}
	var err error
	if out["secp256k1"], _, err = crypto.GenerateSecp256k1Key(rand.Reader); err != nil {
		t.Fatal(err)
	}
	std, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if out["RSA"], _, err = crypto.KeyPairFromStdKey(std); err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if out["ECDSA"], _, err = crypto.ECDSAKeyPairFromKey(ec); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestKeysThatAreNotEd25519AreRefused(t *testing.T) {
	for kind, key := range otherKeys(t) {
		for _, n := range signedNouns() {
			payload := takenApart(t, n.seal(t)).GetPayload()
			raw := envelopeOf(t, key, n.noun, payload)
			_, err := n.open(raw)
			if len(raw) > n.noun.max {
				wantErr(t, n.noun.name+" of a key of "+kind, err, ErrTooLarge)
			} else {
				wantErr(t, n.noun.name+" of a key of "+kind, err, ErrSignature)
			}
		}
	}
}

func TestTruncatedFlippedAndOversizeBytesAreRefused(t *testing.T) {
	for _, n := range signedNouns() {
		raw := n.seal(t)
		for cut := range raw {
			if _, err := n.open(raw[:cut]); !isRefusal(err) {
				t.Fatalf("%s cut to %d of %d bytes: %v", n.noun.name, cut, len(raw), err)
			}
		}
		for bit := range len(raw) * 8 {
			bad := bytes.Clone(raw)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := n.open(bad); !isRefusal(err) {
				t.Fatalf("%s with bit %d flipped: %v", n.noun.name, bit, err)
			}
		}
		_, err := n.open(append(bytes.Clone(raw), make([]byte, n.noun.max)...))
		wantErr(t, n.noun.name+" oversize", err, ErrTooLarge)
		if _, err := n.open(nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s of no bytes: %v", n.noun.name, err)
		}
	}
}

func TestThereIsOneEnvelopeForEachSignedPayload(t *testing.T) {
	for _, n := range signedNouns() {
		raw := n.seal(t)
		e := takenApart(t, raw)
		key, err := marshal(e.GetPublicKey())
		if err != nil {
			t.Fatal(err)
		}
		field := func(num protowire.Number, b []byte) []byte {
			return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
		}
		k, typ, payload, sig := field(1, key), field(2, e.GetPayloadType()), field(3, e.GetPayload()), field(5, e.GetSignature())
		join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
		if !bytes.Equal(join(k, typ, payload, sig), raw) {
			t.Fatalf("%s: the test does not know the envelope's form", n.noun.name)
		}
		longLength := append([]byte{k[0], k[1] | 0x80, 0}, k[2:]...)
		longKey := field(1, append([]byte{8, 0x81, 0}, key[2:]...))
		for what, bad := range map[string][]byte{
			"a byte behind":               join(raw, []byte{0}),
			"an unknown field behind":     join(raw, field(6, []byte("x"))),
			"an unknown field in between": join(k, typ, field(4, []byte("x")), payload, sig),
			"an unknown field in the key": join(field(1, append(bytes.Clone(key), field(3, []byte("x"))...)), typ, payload, sig),
			"an unknown number in front":  join([]byte{0x30, 1}, raw),
			"other order":                 join(typ, k, payload, sig),
			"signature twice":             join(raw, sig),
			"payload twice":               join(k, typ, payload, payload, sig),
			"a length that is not short":  join(longLength, typ, payload, sig),
			"a key type not short":        join(longKey, typ, payload, sig),
			"a tag that is not short":     append([]byte{k[0] | 0x80, 0}, raw[1:]...),
			"no key":                      join(typ, payload, sig),
			"no type":                     join(k, payload, sig),
			"no payload":                  join(k, typ, sig),
			"no signature":                join(k, typ, payload),
			"short signature":             join(k, typ, payload, field(5, e.GetSignature()[:63])),
			"long signature":              join(k, typ, payload, field(5, append(bytes.Clone(e.GetSignature()), 0))),
			"length of more than is left": join(k, typ, payload, []byte{5<<3 | 2, 65}, e.GetSignature()),
			"length of 2^63":              join(k, typ, payload, []byte{5<<3 | 2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1}, e.GetSignature()),
		} {
			if _, err := n.open(bad); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSignature) {
				t.Errorf("%s with %s: %v", n.noun.name, what, err)
			}
		}
	}
}

// The envelope is core/record's: what we accept its own code accepts, and the other way round for what it makes.
func TestEnvelopesAreLibp2ps(t *testing.T) {
	for _, n := range signedNouns() {
		raw := n.seal(t)
		s := &sealed{noun: n.noun}
		env, err := libp2p.ConsumeTypedEnvelope(raw, s)
		if err != nil {
			t.Errorf("%s: libp2p refuses it: %v", n.noun.name, err)
			continue
		}
		e, err := n.noun.parse(raw)
		if err != nil || !e.signer.MatchesPublicKey(env.PublicKey) || !bytes.Equal(e.payload, s.payload) {
			t.Errorf("%s: %v, signer %s, payload %x", n.noun.name, err, e.signer, e.payload)
		}
		if _, err := n.open(envelopeOf(t, n.author.key, n.noun, s.payload)); err != nil {
			t.Errorf("%s sealed by libp2p alone: %v", n.noun.name, err)
		}
	}
}

func TestUnknownFieldsOfAPayloadAreLeftOutExceptWhereTheyCouldWiden(t *testing.T) {
	for _, n := range signedNouns() {
		payload := takenApart(t, n.seal(t)).GetPayload()
		more := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(payload), 1000, protowire.BytesType), []byte("from a newer version"))
		m, err := n.open(envelopeOf(t, n.author.key, n.noun, more))
		switch n.noun.name {
		case nounGrant.name:
			wantErr(t, "a grant with an unknown field", err, ErrMalformed)
		case nounCapability.name, nounAvailability.name:
			if err != nil || len(m.ProtoReflect().GetUnknown()) == 0 {
				t.Errorf("%s: %v, unknown fields have to be kept", n.noun.name, err)
			}
		default:
			again, encErr := marshal(m)
			if err != nil || encErr != nil || !bytes.Equal(again, payload) {
				t.Errorf("%s: %v %v, want what it is without the unknown field", n.noun.name, err, encErr)
			}
		}
	}
}

// A frame full of empty elements must be refused before it is decoded into a hundred times its size.
func TestFloodsOfEmptyElementsAreRefusedBeforeDecoding(t *testing.T) {
	flood := func(num protowire.Number, n int) []byte {
		return bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), nil), n)
	}
	nested := func(num protowire.Number, inner []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), inner)
	}
	twice := func(num protowire.Number, inner []byte) []byte {
		return append(nested(num, inner), nested(num, inner)...)
	}
	for _, c := range []struct {
		what    string
		n       noun
		payload []byte
	}{
		{"leases", nounLease, flood(9, 400_000)},
		{"leases, one too many", nounLease, flood(9, MaxClaim+1)},
		{"inputs of a lease", nounLease, nested(9, flood(7, 400_000))},
		{"two chunks of a lease", nounLease, nested(9, flood(3, 2))},
		{"ready chunks", nounAnnouncement, flood(4, MaxAnnounce+1)},
		{"results", nounResult, flood(3, MaxResults+1)},
		{"records", nounReceipt, flood(7, MaxRecordsPerReceipt+1)},
		{"verdicts", nounCounterSign, flood(4, MaxRecordsPerReceipt+1)},
		{"evidence", nounAttestation, flood(7, maxEvidence+1)},
		{"abilities", nounGrant, flood(6, maxSet+1)},
		{"regions of a grant", nounGrant, nested(7, flood(9, maxSet+1))},
		{"volumes", nounReservation, nested(7, flood(6, maxVolumes+1))},
		{"volumes, terms given twice", nounReservation, twice(7, flood(6, maxVolumes))},
		{"holders", nounReservation, nested(7, nested(6, flood(7, maxHolders+1)))},
		{"addresses of a holder", nounReservation, nested(7, nested(6, nested(7, flood(2, maxAddrs+1))))},
		{"arguments", nounReservation, nested(7, nested(4, flood(5, 100_000)))},
		{"variables", nounReservation, nested(7, nested(4, flood(6, 100_000)))},
		{"GPUs of a record", nounCapability, flood(17, 1000)},
	} {
		raw := envelopeOf(t, bridgeActor.key, c.n, c.payload)
		var err error
		if n := testing.AllocsPerRun(1, func() { _, _, err = c.n.open(raw, &pb.Offer{}) }); n > 50 {
			t.Errorf("%s: %v allocations to refuse them", c.what, n)
		}
		wantErr(t, c.what, err, ErrBounds)
	}
}

func TestTheLargestNounsFit(t *testing.T) {
	far := maxMS/CellMillis*CellMillis - maxSpanMS
	r := Receipt{Format: 1, Network: fixedNetwork, Node: nodeActor.id, Bridge: bridgeActor.id, Seq: 1<<64 - 1, Prev: filled32(1), IssuedMS: maxMS, Grant: fixedGrant}
	c := CounterSign{Node: nodeActor.id, Seq: 1<<64 - 1, BridgeTime: noon}
	for i := range MaxRecordsPerReceipt {
		u := usage(UsageWorking, uint16(1<<16-1-i), int64(far), int64(far)+CellMillis)
		u.Fence, u.GPUMS, u.CPUMS, u.MemMiBS, u.PairRX, u.PairTX, u.Flags = 1<<64-1, 64*maxSpanMS, maxRecordCPU, maxRecordMiBS, maxRecordBytes, maxRecordBytes, 1<<32-1
		r.Records = append(r.Records, u)
		c.Records = append(c.Records, RecordVerdict{ID: u.ID, Verdict: VerdictBadSignature, Reason: string(bytes.Repeat([]byte("ä"), 4000)), DurationMS: maxSpanMS, GPUMS: 64 * maxSpanMS})
	}
	raw, _, err := r.Seal(nodeActor.key)
	if err != nil {
		t.Fatalf("a full receipt: %v", err)
	}
	if _, _, err := OpenReceipt(raw); err != nil {
		t.Errorf("a full receipt: %v", err)
	}
	if raw, err = c.Seal(bridgeActor.key); err != nil {
		t.Fatalf("verdicts on a full receipt: %v", err)
	}
	if got, err := OpenCounterSign(raw, bridgeActor.id); err != nil || len(got.Records[0].Reason) > MaxVerdictReason {
		t.Errorf("verdicts on a full receipt: %v", err)
	}
	a := Announcement{Job: fixedJob, Bridge: bridgeActor.id, Seq: 1<<64 - 1, Cancelled: true, Reason: 1<<32 - 1, At: noon}
	for i := range uint64(MaxAnnounce) {
		a.Ready = append(a.Ready, chunkOf(fixedJob, 1<<63+i, 1<<63+i+MaxChunkInputs))
	}
	if raw, err = a.Seal(bridgeActor.key); err != nil {
		t.Fatalf("a full announcement: %v", err)
	}
	if _, err := OpenAnnouncement(raw); err != nil {
		t.Errorf("a full announcement: %v", err)
	}
	g := fixedLeaseGrants()
	g.Leases = nil
	for i := range uint64(MaxClaim) {
		l := fixedLease()
		l.Chunk, l.Inputs, l.InputsCID = chunkOf(fixedJob, 1<<63+i, 1<<63+i+2), nil, fixedCID()
		g.Leases = append(g.Leases, l)
	}
	if raw, err = g.Seal(bridgeActor.key); err != nil {
		t.Fatalf("full grants: %v", err)
	}
	if _, err := OpenLeaseGrants(raw); err != nil {
		t.Errorf("full grants: %v", err)
	}
	if framed, err := marshal(&pb.ClaimReply{Grants: raw}); err != nil || len(framed) > MaxFrame {
		t.Errorf("the reply around full grants has %d bytes, %v", len(framed), err)
	}
}
