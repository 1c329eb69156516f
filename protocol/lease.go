package protocol

import (
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"

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

func (c Chunk) validate(job JobID) error {
	switch {
	case c.First >= c.End || c.Len() > MaxChunkInputs:
		return bounds("chunk", "range", "[%d,%d) is empty or larger than %d", c.First, c.End, MaxChunkInputs)
	case c.ID != NewChunkID(job, c.First, c.End):
		return bounds("chunk", "id", "%s is not that of job %s [%d,%d)", c.ID, job, c.First, c.End)
	}
	return nil
}

func chunkFromPB(m *pb.ChunkRange) (c Chunk, err error) {
	c = Chunk{First: m.GetFirst(), End: m.GetEnd()}
	c.ID, err = id16("chunk", m.GetChunkId())
	return c, err
}

const maxTTL = time.Hour

// Validate names the first field out of bounds, with ErrBounds.
func (l *Lease) Validate() error {
	if err := l.Chunk.validate(l.Job); err != nil {
		return err
	}
	switch {
	case l.Fence == 0:
		return bounds("lease", "fence", "is 0")
	case l.TTL < time.Millisecond || l.TTL > maxTTL:
		return bounds("lease", "ttl", "is %s, want 1 ms..%s", l.TTL, maxTTL)
	case !l.InputsCID.Defined() && uint64(len(l.Inputs)) != l.Chunk.Len():
		return bounds("lease", "inputs", "%d for a chunk of %d", len(l.Inputs), l.Chunk.Len())
	case l.InputsCID.Defined() && len(l.Inputs) > 0:
		return bounds("lease", "inputs", "are given twice, as texts and as %s", l.InputsCID)
	}
	return nil
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
	if l.Chunk, err = chunkFromPB(m.GetChunk()); err != nil {
		return l, err
	}
	l.InputsCID, err = cidFrom("inputs", m.GetInputsCid())
	return l, err
}

// Encode returns the protobuf bytes of a lease, for a journal.
func (l *Lease) Encode() ([]byte, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	return marshal(l.toPB())
}

// DecodeLease reads what Encode wrote.
func DecodeLease(b []byte) (Lease, error) {
	m := &pb.Lease{}
	if err := decodeOwn("lease", MaxFrame, shapeLease, b, m); err != nil {
		return Lease{}, err
	}
	l, err := leaseFromPB(m)
	if err == nil {
		err = l.Validate()
	}
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// MaxClaim bounds the leases of one claim.
const MaxClaim = 1024

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (g *LeaseGrants) Validate() error {
	if err := validPeers("lease grants", g.Bridge, g.Node); err != nil {
		return err
	}
	if err := validMS("lease grants", "not_after", g.NotAfter, true); err != nil {
		return err
	}
	if err := validMS("lease grants", "bridge_ms", g.BridgeTime, false); err != nil {
		return err
	}
	if len(g.Leases) > MaxClaim {
		return bounds("lease grants", "leases", "has %d entries, at most %d", len(g.Leases), MaxClaim)
	}
	for i := range g.Leases {
		if err := g.Leases[i].Validate(); err != nil {
			return err
		}
	}
	return nil
}

func (g *LeaseGrants) toPB() *pb.LeaseGrants {
	m := &pb.LeaseGrants{
		Network: g.Network[:], Grant: g.Grant[:], Bridge: []byte(g.Bridge), Node: []byte(g.Node), NotAfter: unixMS(g.NotAfter), Nonce: g.Nonce[:],
		SetSeq: g.SetSeq, BridgeMs: unixMS(g.BridgeTime), Leases: make([]*pb.Lease, 0, len(g.Leases)),
	}
	for i := range g.Leases {
		m.Leases = append(m.Leases, g.Leases[i].toPB())
	}
	return m
}

// Seal validates the grants and signs them with the bridge's key. It returns ErrTooLarge when the inputs of all
// leases do not fit into a frame: grant fewer at a time, or give the inputs by CID.
func (g *LeaseGrants) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return nounLease.seal(key, g.Bridge, g.toPB())
}

// OpenLeaseGrants verifies signed grants: their author is their Bridge.
func OpenLeaseGrants(raw []byte) (LeaseGrants, error) {
	m := &pb.LeaseGrants{}
	signer, _, err := nounLease.open(raw, m)
	if err != nil {
		return LeaseGrants{}, err
	}
	if err := nounLease.author(signer, PeerID(m.GetBridge())); err != nil {
		return LeaseGrants{}, err
	}
	g, err := leaseGrantsFromPB(m)
	if err != nil {
		return LeaseGrants{}, err
	}
	return g, nil
}

func leaseGrantsFromPB(m *pb.LeaseGrants) (g LeaseGrants, err error) {
	g = LeaseGrants{
		Bridge: PeerID(m.GetBridge()), Node: PeerID(m.GetNode()), NotAfter: fromMS(m.GetNotAfter()), SetSeq: m.GetSetSeq(), BridgeTime: fromMS(m.GetBridgeMs()),
		Leases: make([]Lease, 0, len(m.GetLeases())),
	}
	if g.Network, err = id16("network", m.GetNetwork()); err != nil {
		return g, err
	}
	if g.Grant, err = grantID(m.GetGrant()); err != nil {
		return g, err
	}
	if g.Nonce, err = id16("nonce", m.GetNonce()); err != nil {
		return g, err
	}
	for _, x := range m.GetLeases() {
		l, err := leaseFromPB(x)
		if err != nil {
			return g, err
		}
		g.Leases = append(g.Leases, l)
	}
	return g, g.Validate()
}

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (a *Announcement) Validate() error {
	if err := validPeers("announcement", a.Bridge); err != nil {
		return err
	}
	if err := validMS("announcement", "at", a.At, false); err != nil {
		return err
	}
	if len(a.Ready) > MaxAnnounce {
		return bounds("announcement", "ready", "has %d entries, at most %d", len(a.Ready), MaxAnnounce)
	}
	for _, c := range a.Ready {
		if err := c.validate(a.Job); err != nil {
			return err
		}
	}
	return nil
}

func (a *Announcement) toPB() *pb.Announcement {
	m := &pb.Announcement{JobId: a.Job[:], Bridge: []byte(a.Bridge), Seq: a.Seq, Cancelled: a.Cancelled, Reason: uint32(a.Reason), At: unixMS(a.At)}
	for _, c := range a.Ready {
		m.Ready = append(m.Ready, c.toPB())
	}
	return m
}

// Seal validates the announcement and signs it with the bridge's key.
func (a *Announcement) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	return nounAnnouncement.seal(key, a.Bridge, a.toPB())
}

// OpenAnnouncement verifies a signed announcement: its author is its Bridge.
func OpenAnnouncement(raw []byte) (Announcement, error) {
	m := &pb.Announcement{}
	signer, _, err := nounAnnouncement.open(raw, m)
	if err != nil {
		return Announcement{}, err
	}
	if err := nounAnnouncement.author(signer, PeerID(m.GetBridge())); err != nil {
		return Announcement{}, err
	}
	a, err := announcementFromPB(m)
	if err != nil {
		return Announcement{}, err
	}
	return a, nil
}

func announcementFromPB(m *pb.Announcement) (a Announcement, err error) {
	a = Announcement{
		Bridge: PeerID(m.GetBridge()), Seq: m.GetSeq(), Cancelled: m.GetCancelled(), Reason: Reason(m.GetReason()), At: fromMS(m.GetAt()),
	}
	if a.Job, err = id16("job", m.GetJobId()); err != nil {
		return a, err
	}
	for _, x := range m.GetReady() {
		c, err := chunkFromPB(x)
		if err != nil {
			return a, err
		}
		a.Ready = append(a.Ready, c)
	}
	return a, a.Validate()
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
