package protocol

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Chunk is a half-open range [First, End) of a job's inputs.
type Chunk struct {
	// ID is NewChunkID of the job and the range.
	ID ChunkID
	// First is its first input, End the one after its last.
	First, End uint64
}

// Len returns the number of inputs.
func (c Chunk) Len() uint64 { return c.End - c.First }

// MaxChunkInputs bounds the inputs of a chunk.
const MaxChunkInputs = 10_000

// Lease is the right to run one chunk once, under a fence (execution.md 8).
type Lease struct {
	// ID names the attempt.
	ID LeaseID
	// Job is the chunk's job.
	Job JobID
	// Chunk is what to run.
	Chunk Chunk
	// Fence grows by one per chunk with each lease of it, from 1.
	Fence uint64
	// TTL is the lease's life without renewal.
	TTL time.Duration
	// Attempt counts the leases of the chunk, from 1.
	Attempt uint32
	// Inputs are the texts of the chunk's inputs, unless InputsCID names a file with one per line.
	Inputs []string
	// InputsCID names a file of the inputs, one JSON string per line.
	InputsCID cid.Cid
}

// LeaseGrants answers a claim; the bridge signs it.
type LeaseGrants struct {
	// Network and Grant say by what right.
	Network NetworkID
	// Grant is the last link of the bridge's chain.
	Grant GrantID
	// Bridge grants to Node.
	Bridge, Node PeerID
	// NotAfter bounds the life of the message: at most 30 s ahead.
	NotAfter time.Time
	// Nonce makes it unique.
	Nonce [16]byte
	// SetSeq is the number of the first lease set that holds these leases.
	SetSeq uint64
	// BridgeTime is the bridge's clock.
	BridgeTime time.Time
	// Leases are granted.
	Leases []Lease
}

// Announcement says on a job's topic that chunks are ready, or that the job has ended; the bridge signs it.
type Announcement struct {
	// Job is the topic's job.
	Job JobID
	// Bridge holds it.
	Bridge PeerID
	// Seq grows with each announcement of a job.
	Seq uint64
	// Ready are chunks to claim, at most 256.
	Ready []Chunk
	// Cancelled ends the job for its members, for Reason.
	Cancelled bool
	// Reason goes with Cancelled.
	Reason Reason
	// At is the bridge's clock.
	At time.Time
}

func (c Chunk) toPB() *pb.ChunkRange {
	return &pb.ChunkRange{ChunkId: c.ID[:], First: c.First, End: c.End}
}

func chunkFromPB(job JobID, m *pb.ChunkRange) (c Chunk, err error) {
	c = Chunk{First: m.GetFirst(), End: m.GetEnd()}
	if c.ID, err = id16("chunk", m.GetChunkId()); err != nil {
		return c, err
	}
	if c.First >= c.End || c.Len() > MaxChunkInputs {
		return c, bounds("chunk", "range", "[%d,%d) is empty or larger than %d", c.First, c.End, MaxChunkInputs)
	}
	if c.ID != NewChunkID(job, c.First, c.End) {
		return c, bounds("chunk", "id", "%s is not that of job %s [%d,%d)", c.ID, job, c.First, c.End)
	}
	return c, nil
}

func (l *Lease) toPB() *pb.Lease {
	return &pb.Lease{
		LeaseId: l.ID[:], JobId: l.Job[:], Chunk: l.Chunk.toPB(), Fence: l.Fence, TtlMs: uint32(l.TTL.Milliseconds()), Attempt: l.Attempt,
		Inputs: l.Inputs, InputsCid: cidBytes(l.InputsCID),
	}
}

func leaseFromPB(m *pb.Lease) (l Lease, err error) {
	l = Lease{Fence: m.GetFence(), TTL: millis(uint64(m.GetTtlMs())), Attempt: m.GetAttempt(), Inputs: m.GetInputs()}
	if l.ID, err = id16("lease", m.GetLeaseId()); err != nil {
		return l, err
	}
	if l.Job, err = id16("job", m.GetJobId()); err != nil {
		return l, err
	}
	if l.Chunk, err = chunkFromPB(l.Job, m.GetChunk()); err != nil {
		return l, err
	}
	if l.InputsCID, err = cidFrom("inputs", m.GetInputsCid()); err != nil {
		return l, err
	}
	switch {
	case l.Fence == 0:
		return l, bounds("lease", "fence", "is 0")
	case l.TTL <= 0 || l.TTL > time.Hour:
		return l, bounds("lease", "ttl", "is %s, want up to 1 h", l.TTL)
	case !l.InputsCID.Defined() && uint64(len(l.Inputs)) != l.Chunk.Len():
		return l, bounds("lease", "inputs", "%d for a chunk of %d", len(l.Inputs), l.Chunk.Len())
	}
	return l, nil
}

// Encode returns the protobuf bytes of a lease, for a journal.
func (l *Lease) Encode() ([]byte, error) { return marshal(l.toPB()) }

// DecodeLease reads what Encode wrote.
func DecodeLease(b []byte) (Lease, error) {
	m := &pb.Lease{}
	if err := unmarshal("lease", b, m); err != nil {
		return Lease{}, err
	}
	return leaseFromPB(m)
}

// Seal signs the grants with the bridge's key.
func (g *LeaseGrants) Seal(key crypto.PrivKey) ([]byte, error) {
	m := &pb.LeaseGrants{
		Network: g.Network[:], Grant: g.Grant[:], Bridge: []byte(g.Bridge), Node: []byte(g.Node), NotAfter: g.NotAfter.UnixMilli(), Nonce: g.Nonce[:],
		SetSeq: g.SetSeq, BridgeMs: g.BridgeTime.UnixMilli(),
	}
	for i := range g.Leases {
		m.Leases = append(m.Leases, g.Leases[i].toPB())
	}
	return nounLease.seal(key, m)
}

// OpenLeaseGrants verifies signed grants: their author is their Bridge.
func OpenLeaseGrants(raw []byte) (g LeaseGrants, err error) {
	m := &pb.LeaseGrants{}
	signer, _, err := nounLease.open(raw, m)
	if err != nil {
		return g, err
	}
	g = LeaseGrants{NotAfter: time.UnixMilli(m.GetNotAfter()), SetSeq: m.GetSetSeq(), BridgeTime: time.UnixMilli(m.GetBridgeMs())}
	if g.Network, err = id16("network", m.GetNetwork()); err != nil {
		return g, err
	}
	if g.Grant, err = grantID(m.GetGrant()); err != nil {
		return g, err
	}
	if g.Bridge, err = peerID("bridge", m.GetBridge()); err != nil {
		return g, err
	}
	if g.Node, err = peerID("node", m.GetNode()); err != nil {
		return g, err
	}
	if g.Nonce, err = id16("nonce", m.GetNonce()); err != nil {
		return g, err
	}
	if err = nounLease.author(signer, g.Bridge); err != nil {
		return g, err
	}
	if len(m.GetLeases()) > MaxClaim {
		return g, bounds("lease grants", "leases", "has %d entries, at most %d", len(m.GetLeases()), MaxClaim)
	}
	for _, x := range m.GetLeases() {
		l, err := leaseFromPB(x)
		if err != nil {
			return g, err
		}
		g.Leases = append(g.Leases, l)
	}
	return g, nil
}

// MaxClaim bounds the leases of one claim.
const MaxClaim = 1024

// Seal signs the announcement with the bridge's key.
func (a *Announcement) Seal(key crypto.PrivKey) ([]byte, error) {
	m := &pb.Announcement{JobId: a.Job[:], Bridge: []byte(a.Bridge), Seq: a.Seq, Cancelled: a.Cancelled, Reason: uint32(a.Reason), At: a.At.UnixMilli()}
	for _, c := range a.Ready {
		m.Ready = append(m.Ready, c.toPB())
	}
	return nounAnnouncement.seal(key, m)
}

// OpenAnnouncement verifies a signed announcement: its author is its Bridge.
func OpenAnnouncement(raw []byte) (a Announcement, err error) {
	m := &pb.Announcement{}
	signer, _, err := nounAnnouncement.open(raw, m)
	if err != nil {
		return a, err
	}
	a = Announcement{Seq: m.GetSeq(), Cancelled: m.GetCancelled(), Reason: Reason(m.GetReason()), At: time.UnixMilli(m.GetAt())}
	if a.Job, err = id16("job", m.GetJobId()); err != nil {
		return a, err
	}
	if a.Bridge, err = peerID("bridge", m.GetBridge()); err != nil {
		return a, err
	}
	if err = nounAnnouncement.author(signer, a.Bridge); err != nil {
		return a, err
	}
	if len(m.GetReady()) > MaxAnnounce {
		return a, bounds("announcement", "ready", "has %d entries, at most %d", len(m.GetReady()), MaxAnnounce)
	}
	for _, x := range m.GetReady() {
		c, err := chunkFromPB(a.Job, x)
		if err != nil {
			return a, err
		}
		a.Ready = append(a.Ready, c)
	}
	return a, nil
}

// LeaseState is what a node observes of a lease (execution.md 8).
type LeaseState uint8

// The states; ended is final.
const (
	LeaseNone       LeaseState = iota
	LeaseLeased                // LeaseLeased: granted, nothing done yet.
	LeaseStaging               // LeaseStaging: module and data arrive.
	LeaseRunning               // LeaseRunning: the job's code runs.
	LeaseStopping              // LeaseStopping: told to end.
	LeaseOrphaned              // LeaseOrphaned: runs on although the bridge does not renew it.
	LeaseUnknown               // LeaseUnknown: the node has lost sight of its own process.
	LeasePublishing            // LeasePublishing: ended, the result is on its way.
	LeaseStuck                 // LeaseStuck: killed, but not gone.
	LeaseEnded                 // LeaseEnded: over, the outcome is kept.
)

var leaseStates = [...]string{"none", "leased", "staging", "running", "stopping", "orphaned", "unknown", "publishing", "stuck", "ended"}

// String returns the state's name.
func (s LeaseState) String() string {
	if int(s) < len(leaseStates) {
		return leaseStates[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

func marshal(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", m, err)
	}
	return b, nil
}

func unmarshal(what string, b []byte, m proto.Message) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	return nil
}

// clip cuts a text to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
