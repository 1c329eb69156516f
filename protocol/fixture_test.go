package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// noon is when everything in these tests happens.
var noon = time.Date(2026, 1, 4, 12, 0, 0, 0, time.UTC)

// actor is a peer with a key made from one byte.
type actor struct {
	key crypto.PrivKey
	id  PeerID
}

var (
	rootActor, otherRoot, operator = newActor(1), newActor(2), newActor(3)
	bridgeActor, nodeActor         = newActor(4), newActor(5)
	stranger                       = newActor(6)
)

func newActor(seed byte) actor {
	std := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	key, err := crypto.UnmarshalEd25519PrivateKey(std)
	if err != nil {
		panic(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		panic(err)
	}
	return actor{key, id}
}

func addr(text string) multiaddr.Multiaddr {
	a, err := multiaddr.NewMultiaddr(text)
	if err != nil {
		panic(err)
	}
	return a
}

func fixedCID() cid.Cid {
	c, err := cid.Decode(someCID)
	if err != nil {
		panic(err)
	}
	return c
}

func bytes16(b byte) (out [16]byte) {
	for i := range out {
		out[i] = b + byte(i)
	}
	return out
}

func filled32(b byte) (out [32]byte) {
	for i := range out {
		out[i] = b
	}
	return out
}

func chunkOf(job JobID, first, end uint64) Chunk {
	return Chunk{ID: NewChunkID(job, first, end), First: first, End: end}
}

var (
	fixedJob     = JobID(bytes16(0x10))
	fixedNetwork = NetworkID(bytes16(0x20))
	fixedGrant   = GrantID(sha256.Sum256([]byte("a grant")))
)

func fixedTerms() JobTerms {
	return JobTerms{
		Job: fixedJob, Name: "sweep of nine", Kind: "map", MinIsolation: "strong", KeepOutputs: "success", Seed: filled32(7),
		Run:    Run{Module: fixedCID(), ModuleBytes: 1_800_000, Command: []string{"train", "--config", "{input}"}, Env: map[string]string{"B": "2", "A": "1", "C": ""}},
		Limits: Limits{MemoryBytes: 2 << 30, DiskBytes: 5 << 30, OutputBytes: 1 << 30, Wall: time.Hour, OutputFiles: 100_000, LogBytes: 64 << 20, CPUMilli: 1000, Network: "none"},
		Volumes: []VolumeRef{{
			Name: "digits", Root: fixedCID(), At: "/data", Mode: "ro", Bytes: 1 << 20, Blocks: 5,
			Holders: []peer.AddrInfo{{ID: bridgeActor.id, Addrs: []multiaddr.Multiaddr{addr("/ip4/127.0.0.1/tcp/4001"), addr("/ip4/127.0.0.1/udp/4001/quic-v1")}}},
		}},
		GPUModels: []string{"nvidia-l4-24gb"}, GPUCount: 1,
		Origin: peer.AddrInfo{ID: bridgeActor.id, Addrs: []multiaddr.Multiaddr{addr("/ip4/127.0.0.1/tcp/4001")}},
	}
}

func fixedReservation() Reservation {
	return Reservation{
		Call: CallID(bytes16(0x30)), Network: fixedNetwork, Grant: fixedGrant, Bridge: bridgeActor.id, Node: nodeActor.id, NotAfter: noon.Add(10 * time.Minute),
		Terms: fixedTerms(), Slots: 4, Rate: 450_000,
	}
}

func fixedOffer() Offer {
	return Offer{
		Call: CallID(bytes16(0x30)), Job: fixedJob, Node: nodeActor.id, Bridge: bridgeActor.id, Slots: 2, Ask: 350_000, Expires: noon.Add(30 * time.Second), DataHeld: 1 << 20,
	}
}

func fixedAnnouncement() Announcement {
	return Announcement{Job: fixedJob, Bridge: bridgeActor.id, Seq: 9, Ready: []Chunk{chunkOf(fixedJob, 0, 4), chunkOf(fixedJob, 4, 8)}, At: noon}
}

func fixedLease() Lease {
	return Lease{
		ID: LeaseID(bytes16(0x40)), Job: fixedJob, Chunk: chunkOf(fixedJob, 0, 2), Fence: 2, TTL: 6 * time.Second, Attempt: 1,
		Inputs: []string{`{"lr":0.1}`, "größer"},
	}
}

func fixedLeaseGrants() LeaseGrants {
	large := Lease{ID: LeaseID(bytes16(0x50)), Job: fixedJob, Chunk: chunkOf(fixedJob, 8, 1000), Fence: 1, TTL: time.Minute, Attempt: 3, InputsCID: fixedCID()}
	return LeaseGrants{
		Network: fixedNetwork, Grant: fixedGrant, Bridge: bridgeActor.id, Node: nodeActor.id, NotAfter: noon.Add(30 * time.Second), Nonce: bytes16(0x60),
		SetSeq: uint64(noon.UnixMicro()), BridgeTime: noon, Leases: []Lease{fixedLease(), large},
	}
}

func fixedResult() Result {
	return Result{
		Job: fixedJob, Chunk: chunkOf(fixedJob, 0, 2), Lease: LeaseID(bytes16(0x40)), Fence: 2, Root: fixedCID(), BlocksFetched: 5,
		Outcome: Outcome{
			Reason: ReasonDone, Stage: 21 * time.Millisecond, Run: 1_234_567 * time.Microsecond, CPU: 1200 * time.Millisecond,
			MemoryBytes: 64 << 20, OutputBytes: 321, OutputFiles: 2, LogKept: 100, LogDropped: 3,
		},
	}
}

func fixedResults() Results {
	failed := Result{
		Job: fixedJob, Chunk: chunkOf(fixedJob, 2, 4), Lease: LeaseID(bytes16(0x41)), Fence: 1,
		Outcome: Outcome{Reason: ReasonSignal, ExitCode: -1, Signal: 11, FirstCause: "wasm: out of bounds memory access"},
	}
	return Results{Node: nodeActor.id, Bridge: bridgeActor.id, Results: []Result{fixedResult(), failed}}
}

func usage(state UsageState, slot uint16, start, end int64) UsageRecord {
	u := UsageRecord{Slot: slot, State: state, StartMS: start, EndMS: end, DurationMS: end - start}
	var lease []byte
	if state != UsageIdle {
		u.Lease, u.Job, u.Chunk, u.Fence = LeaseID(bytes16(0x40)), fixedJob, NewChunkID(fixedJob, 0, 2), 2
		u.GPUMS, u.CPUMS, u.MemMiBS, u.PairRX, u.PairTX, u.Flags = u.DurationMS, 1200, 320, 1<<20, 4096, 1
		lease = u.Lease[:]
	}
	u.ID = NewRecordID(nodeActor.id, lease, slot, state, uint64(start/CellMillis))
	return u
}

func fixedReceipt() Receipt {
	t := noon.UnixMilli()
	return Receipt{
		Format: 1, Network: fixedNetwork, Node: nodeActor.id, Bridge: bridgeActor.id, Seq: 3, Prev: sha256.Sum256([]byte("receipt 2")), IssuedMS: t, Grant: fixedGrant,
		Records: []UsageRecord{usage(UsageWorking, 0, t+1000, t+5000), usage(UsagePreparing, 1, t, t+300), usage(UsageIdle, 2, t-60_000, t)},
	}
}

func fixedCounterSign() CounterSign {
	r := fixedReceipt()
	return CounterSign{
		Hash: sha256.Sum256([]byte("receipt 3")), Node: nodeActor.id, Seq: 3, BridgeTime: noon.Add(time.Second),
		Records: []RecordVerdict{
			{ID: r.Records[0].ID, Verdict: VerdictLowered, Reason: "4000 ms claimed, 3800 ms witnessed", DurationMS: 3800, GPUMS: 3800},
			{ID: r.Records[1].ID, Verdict: VerdictOK, DurationMS: 300, GPUMS: 300},
			{ID: r.Records[2].ID, Verdict: VerdictUnwitnessed, Reason: "the bridge did not hear of the node then"},
		},
	}
}

func fixedAttestation() Attestation {
	return Attestation{
		Network: fixedNetwork, Issuer: bridgeActor.id, Subject: nodeActor.id, Group: operator.id.String(), From: noon.Add(-30 * 24 * time.Hour), To: noon,
		Evidence: map[Criterion]Evidence{CriterionCompletion: {200, 3}, CriterionCorrectness: {120, 0}, CriterionUptime: {300, 6}},
		Jobs:     12, GPUSeconds: 36_000, ReceiptsRoot: filled32(9), Seq: 4, Expires: noon.Add(30 * 24 * time.Hour),
	}
}

func u32(n uint32) *uint32 { return &n }
func u64(n uint64) *uint64 { return &n }

// fixedChain is a chain of four links: root, operator, bridge, user.
func fixedChain() []Grant {
	who := []actor{rootActor, operator, bridgeActor, nodeActor, stranger}
	var out []Grant
	for i, life := range []time.Duration{90 * 24 * time.Hour, 30 * 24 * time.Hour, 24 * time.Hour, time.Hour} {
		g := Grant{
			Network: fixedNetwork, Issuer: who[i].id, Audience: who[i+1].id, Abilities: []string{AbilityJobSubmit, AbilityJobControl},
			NotBefore: noon.Add(-time.Minute), NotAfter: noon.Add(life), Nonce: bytes16(byte(0x70 + i)), Epoch: uint64(i), Delegations: uint32(3 - i),
		}
		switch i {
		case 0:
			g.Abilities = append(g.Abilities, AbilityAttest, AbilityCounterSign)
			g.Limits = GrantLimits{MaxGPUs: u32(64), MaxChunks: u32(1000), Regions: []string{"eu", "us"}}
		case 2:
			g.Limits = GrantLimits{
				MaxGPUs: u32(8), GPUSeconds: u64(360_000), GPUModels: []string{"nvidia-h100", "nvidia-l4-24gb"}, MinIsolation: u32(3), Egress: u32(0),
				EgressHosts: []string{"example.org"}, MaxWallS: u32(86_400), Volumes: []string{"digits"}, Regions: []string{"eu"}, MaxPrice: u64(2_000_000), JobKinds: []string{"map"},
			}
		}
		out = append(out, g)
	}
	return out
}

func keysOfChain() []actor { return []actor{rootActor, operator, bridgeActor, nodeActor} }

// sealChain links and signs grants; the IDs of the parents are filled in.
func sealChain(t testing.TB, chain []Grant, keys []actor) [][]byte {
	t.Helper()
	var links [][]byte
	for i := range chain {
		if i > 0 {
			chain[i].Parent = chain[i-1].ID
		}
		raw, err := chain[i].Seal(keys[i].key)
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, raw)
	}
	return links
}

func chainCheck() GrantCheck {
	return GrantCheck{Network: fixedNetwork, Audience: stranger.id, IsRoot: func(id PeerID) bool { return id == rootActor.id }, Now: noon}
}

func fixedNetworkFile(t testing.TB) NetworkFile {
	t.Helper()
	n := NetworkFile{
		Version: 1, Name: "Testnetz № 1", Roots: []PeerID{rootActor.id, otherRoot.id}, Threshold: 2, Admission: "granted", Created: noon,
		Bootstrap: []multiaddr.Multiaddr{addr("/ip4/127.0.0.1/tcp/4001/p2p/" + bridgeActor.id.String())},
	}
	for _, r := range []actor{rootActor, otherRoot} {
		if err := n.Sign(r.key); err != nil {
			t.Fatal(err)
		}
	}
	n, err := ParseNetworkFile(n.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func fixedInvitation(t testing.TB) Invitation {
	return Invitation{
		Network: fixedNetworkFile(t), Bootstrap: []multiaddr.Multiaddr{addr("/ip4/192.0.2.1/tcp/4001"), addr("/dns4/bridge.example.org/udp/4001/quic-v1")}, Expires: noon.Add(7 * 24 * time.Hour),
	}
}

func fixedCapability() *pb.Capability {
	return &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(nodeActor.id), Seq: 7, Issued: noon.UnixMilli(), Expires: noon.Add(time.Hour).UnixMilli(), Agent: "gridbeam/1",
		Features: []string{"wasm"}, Roles: []string{"node"}, Host: &pb.Host{Os: "linux", Arch: "amd64", Cores: u32(2)},
	}
}

func fixedAvailability() *pb.Availability {
	return &pb.Availability{Format: 1, PeerId: []byte(nodeActor.id), Seq: 8, At: noon.UnixMilli(), PeriodS: 10, CapSeq: 7, CapDigest: []byte{1, 2, 3, 4, 5, 6, 7, 8}}
}

// signedNoun is a signed noun with its frozen example: how it is sealed and opened, and how what was opened is
// encoded again.
type signedNoun struct {
	noun   noun
	author actor
	seal   func(testing.TB) []byte
	open   func(raw []byte) (payload proto.Message, err error)
}

// opened hands on what was opened, as the message that it would be sealed as.
func opened[T any](v T, err error, encode func(*T) proto.Message) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return encode(&v), nil
}

func signedNouns() []signedNoun {
	must := func(t testing.TB, raw []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	return []signedNoun{
		{
			nounReservation, bridgeActor, func(t testing.TB) []byte {
				v := fixedReservation()
				raw, err := v.Seal(bridgeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenReservation(raw)
				return opened(v, err, func(v *Reservation) proto.Message { return v.toPB() })
			},
		},
		{
			nounOffer, nodeActor, func(t testing.TB) []byte {
				v := fixedOffer()
				raw, err := v.Seal(nodeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenOffer(raw)
				return opened(v, err, func(v *Offer) proto.Message { return v.toPB() })
			},
		},
		{
			nounAnnouncement, bridgeActor, func(t testing.TB) []byte {
				v := fixedAnnouncement()
				raw, err := v.Seal(bridgeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenAnnouncement(raw)
				return opened(v, err, func(v *Announcement) proto.Message { return v.toPB() })
			},
		},
		{
			nounLease, bridgeActor, func(t testing.TB) []byte {
				v := fixedLeaseGrants()
				raw, err := v.Seal(bridgeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenLeaseGrants(raw)
				return opened(v, err, func(v *LeaseGrants) proto.Message { return v.toPB() })
			},
		},
		{
			nounResult, nodeActor, func(t testing.TB) []byte {
				v := fixedResults()
				raw, err := v.Seal(nodeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenResults(raw)
				return opened(v, err, func(v *Results) proto.Message { return v.toPB() })
			},
		},
		{
			nounReceipt, nodeActor, func(t testing.TB) []byte {
				v := fixedReceipt()
				raw, _, err := v.Seal(nodeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, _, err := OpenReceipt(raw)
				return opened(v, err, func(v *Receipt) proto.Message { return v.toPB() })
			},
		},
		{
			nounCounterSign, bridgeActor, func(t testing.TB) []byte {
				v := fixedCounterSign()
				raw, err := v.Seal(bridgeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenCounterSign(raw, bridgeActor.id)
				return opened(v, err, func(v *CounterSign) proto.Message { return v.toPB() })
			},
		},
		{
			nounAttestation, bridgeActor, func(t testing.TB) []byte {
				v := fixedAttestation()
				raw, err := v.Seal(bridgeActor.key)
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				v, err := OpenAttestation(raw, noon)
				return opened(v, err, func(v *Attestation) proto.Message { return v.toPB() })
			},
		},
		{
			nounGrant, rootActor, func(t testing.TB) []byte { return sealChain(t, fixedChain()[:1], keysOfChain())[0] },
			func(raw []byte) (proto.Message, error) {
				v, err := ParseGrant(raw)
				return opened(v, err, func(v *Grant) proto.Message { return v.toPB() })
			},
		},
		{
			nounCapability, nodeActor, func(t testing.TB) []byte {
				raw, err := SealCapability(nodeActor.key, fixedCapability())
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				return messageOf(OpenCapability(raw, signerIn(nounCapability, raw)))
			},
		},
		{
			nounAvailability, nodeActor, func(t testing.TB) []byte {
				raw, err := SealAvailability(nodeActor.key, fixedAvailability())
				return must(t, raw, err)
			},
			func(raw []byte) (proto.Message, error) {
				return messageOf(OpenAvailability(raw, signerIn(nounAvailability, raw)))
			},
		},
	}
}

// signerIn is whoever an envelope says has signed it, for nouns that are opened as somebody's.
func signerIn(n noun, raw []byte) PeerID {
	e, err := n.parse(raw)
	if err != nil {
		return nodeActor.id
	}
	return e.signer
}

func messageOf[M proto.Message](m M, err error) (proto.Message, error) { return m, err }

// wantErr reports an error that is not of the wanted kind; nil wants none.
func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
