package protocol

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// CellMillis is the length of a cell of the UTC grid on which usage is metered: 5 s (settlement.md 2).
const CellMillis = 5000

// RecordID names a usage record, see NewRecordID.
type RecordID [16]byte

// String returns the 26-letter text of the ID.
func (id RecordID) String() string { return idText.EncodeToString(id[:]) }

// UsageState is what a slot was doing.
type UsageState uint8

// States of a slot that are metered (settlement.md 2).
const (
	UsageIdle      UsageState = 1 // UsageIdle: assignable.
	UsagePreparing UsageState = 2 // UsagePreparing: a lease is accepted, its container is not ready.
	UsageWorking   UsageState = 3 // UsageWorking: ready until release.
)

// String returns the state in one word.
func (s UsageState) String() string {
	switch s {
	case UsageIdle:
		return "idle"
	case UsagePreparing:
		return "preparing"
	case UsageWorking:
		return "working"
	}
	return "unknown"
}

// NewRecordID derives the ID that both sides give a record: the first 16 bytes of SHA-256(
// "gridbeam/interval/1" 0x00 ‖ u16 length, peer ID ‖ u16 length, lease ID ‖ u16 slot ‖ u8 state ‖ u64 cell),
// big-endian (settlement.md 2). cell is floor(unix_ms/5000) of the record's start.
func NewRecordID(node PeerID, lease []byte, slot uint16, state UsageState, cell uint64) RecordID {
	b := append(make([]byte, 0, 128), "gridbeam/interval/1\x00"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(node)))
	b = append(b, node...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(lease)))
	b = append(b, lease...)
	b = binary.BigEndian.AppendUint16(b, slot)
	b = append(b, byte(state))
	b = binary.BigEndian.AppendUint64(b, cell)
	sum := sha256.Sum256(b)
	return RecordID(sum[:16])
}

// UsageRecord is what one slot did for one lease in one cell (settlement.md 2). Durations and sizes are
// integers; only Duration, GPU and the pair's bytes are witnessed by both sides.
type UsageRecord struct {
	// ID is NewRecordID of the record.
	ID RecordID
	// Lease, Job, Chunk and Fence are the attempt; zero for idle time.
	Lease LeaseID
	// Job is the attempt's job.
	Job JobID
	// Chunk is the attempt's chunk.
	Chunk ChunkID
	// Fence is the attempt's.
	Fence uint64
	// Slot counts the node's slots from 0.
	Slot uint16
	// State is what the slot did.
	State UsageState
	// StartMS and EndMS bound the time it speaks of, Unix milliseconds by the bridge's clock.
	StartMS, EndMS int64
	// DurationMS is how long the slot was in the state, by the monotonic clock.
	DurationMS int64
	// GPUMS is slots leased × time, in milliseconds; a node without GPU counts as one slot.
	GPUMS int64
	// CPUMS and MemMiBS are claimed: processor time, and memory × time in MiB·s.
	CPUMS, MemMiBS int64
	// PairRX and PairTX are bytes received from and sent to peers for the lease.
	PairRX, PairTX int64
	// Flags has bit 0 set for an estimate.
	Flags uint32
}

// Receipt chains what a node did for a bridge; the node signs it.
type Receipt struct {
	// Format is 1.
	Format uint32
	// Network is where it counts.
	Network NetworkID
	// Node did the work for Bridge.
	Node, Bridge PeerID
	// Seq counts the receipts of the pair from 1.
	Seq uint64
	// Prev is the SHA-256 of the payload before it, zero for the first.
	Prev [32]byte
	// Records are what was done, at most 256.
	Records []UsageRecord
	// IssuedMS is the node's clock, Unix milliseconds.
	IssuedMS int64
	// Grant is by what right the bridge used the node.
	Grant GrantID
}

// Verdicts on a record (settlement.md 2).
const (
	VerdictOK           = "ok"
	VerdictLowered      = "lowered"
	VerdictBadSignature = "bad_signature"
	VerdictBadChain     = "bad_chain"
	VerdictBounds       = "bounds"
	VerdictOverlap      = "overlap"
	VerdictFuture       = "future"
	VerdictTooOld       = "too_old"
	VerdictNotLeased    = "not_leased"
	VerdictUnwitnessed  = "unwitnessed"
)

var verdicts = []string{
	VerdictOK, VerdictLowered, VerdictBadSignature, VerdictBadChain, VerdictBounds, VerdictOverlap, VerdictFuture, VerdictTooOld, VerdictNotLeased,
	VerdictUnwitnessed,
}

// RecordVerdict is the bridge's word on one record, with its own witnessed values.
type RecordVerdict struct {
	// ID is the record.
	ID RecordID
	// Verdict is one of the constants above; Reason is its wording.
	Verdict, Reason string
	// DurationMS and GPUMS are what is settled.
	DurationMS, GPUMS int64
}

// CounterSign is the bridge's answer to a receipt; the bridge signs it.
type CounterSign struct {
	// Hash is the SHA-256 of the receipt's payload.
	Hash [32]byte
	// Node and Seq name the receipt.
	Node PeerID
	// Seq is the receipt's.
	Seq uint64
	// Records are the verdicts.
	Records []RecordVerdict
	// BridgeTime is the bridge's clock.
	BridgeTime time.Time
}

func (u *UsageRecord) toPB() *pb.UsageRecord {
	m := &pb.UsageRecord{
		Id: u.ID[:], Fence: u.Fence, Slot: uint32(u.Slot), State: pb.UsageState(u.State), StartMs: u.StartMS, EndMs: u.EndMS, DurationMs: u.DurationMS,
		GpuMs: u.GPUMS, CpuMs: u.CPUMS, MemMibS: u.MemMiBS, PairRx: u.PairRX, PairTx: u.PairTX, Flags: u.Flags,
	}
	if u.State != UsageIdle {
		m.Lease, m.Job, m.Chunk = u.Lease[:], u.Job[:], u.Chunk[:]
	}
	return m
}

// Most that one slot can do in an idle minute, the longest record; they keep sums far from overflow.
const (
	maxSpanMS      = 12 * CellMillis
	maxRecordCPU   = maxSpanMS << 16 // milliseconds of 65,536 cores
	maxRecordMiBS  = maxSpanMS << 14 // MiB·s of about 16 TiB
	maxRecordBytes = 1 << 46         // over the wire
)

// Validate checks that the record can be true: ID, order and grid.
func (u *UsageRecord) Validate(node PeerID) error {
	cell := u.StartMS / CellMillis
	var lease []byte
	if u.State != UsageIdle {
		lease = u.Lease[:]
	}
	span := int64(CellMillis)
	if u.State == UsageIdle && u.EndMS-u.StartMS > span {
		span = maxSpanMS // an aligned idle minute may travel as one record
	}
	switch {
	case u.State < UsageIdle || u.State > UsageWorking:
		return bounds("record", "state", "is %d", u.State)
	case u.StartMS <= 0 || u.StartMS > maxMS || u.EndMS < u.StartMS || u.EndMS > cell*CellMillis+span:
		return bounds("record", "start_ms", "%d..%d does not lie in one cell", u.StartMS, u.EndMS)
	case span == maxSpanMS && (u.StartMS%maxSpanMS != 0 || u.EndMS != u.StartMS+maxSpanMS):
		return bounds("record", "start_ms", "%d..%d is no aligned minute", u.StartMS, u.EndMS)
	case u.DurationMS < 0 || u.DurationMS > span:
		return bounds("record", "duration_ms", "is %d, want 0..%d", u.DurationMS, span)
	case u.GPUMS < 0 || u.GPUMS > 64*maxSpanMS:
		return bounds("record", "gpu_ms", "is %d, want 0..%d", u.GPUMS, 64*maxSpanMS)
	case u.CPUMS < 0 || u.CPUMS > maxRecordCPU:
		return bounds("record", "cpu_ms", "is %d, want 0..%d", u.CPUMS, int64(maxRecordCPU))
	case u.MemMiBS < 0 || u.MemMiBS > maxRecordMiBS:
		return bounds("record", "mem_mib_s", "is %d, want 0..%d", u.MemMiBS, int64(maxRecordMiBS))
	case u.PairRX < 0 || u.PairRX > maxRecordBytes || u.PairTX < 0 || u.PairTX > maxRecordBytes:
		return bounds("record", "pair_rx", "%d received, %d sent, want 0..%d", u.PairRX, u.PairTX, int64(maxRecordBytes))
	case u.State == UsageIdle && (u.Lease != LeaseID{} || u.Job != JobID{} || u.Chunk != ChunkID{} || u.Fence != 0):
		return bounds("record", "lease", "idle time belongs to no lease")
	case u.ID != NewRecordID(node, lease, u.Slot, u.State, uint64(cell)):
		return bounds("record", "id", "%s is not that of its content", u.ID)
	}
	return nil
}

func recordFromPB(m *pb.UsageRecord) (u UsageRecord, err error) {
	if m.GetSlot() > math.MaxUint16 {
		return u, bounds("record", "slot", "is %d", m.GetSlot())
	}
	if m.GetState() < pb.UsageState(UsageIdle) || m.GetState() > pb.UsageState(UsageWorking) {
		return u, bounds("record", "state", "is %d", m.GetState())
	}
	u = UsageRecord{
		Fence: m.GetFence(), Slot: uint16(m.GetSlot()), State: UsageState(m.GetState()), StartMS: m.GetStartMs(), EndMS: m.GetEndMs(), DurationMS: m.GetDurationMs(),
		GPUMS: m.GetGpuMs(), CPUMS: m.GetCpuMs(), MemMiBS: m.GetMemMibS(), PairRX: m.GetPairRx(), PairTX: m.GetPairTx(), Flags: m.GetFlags(),
	}
	if u.ID, err = id16("record", m.GetId()); err != nil {
		return u, err
	}
	if u.State == UsageIdle {
		if len(m.GetLease())+len(m.GetJob())+len(m.GetChunk()) > 0 {
			return u, bounds("record", "lease", "idle time belongs to no lease")
		}
		return u, nil
	}
	if u.Lease, err = id16("lease", m.GetLease()); err != nil {
		return u, err
	}
	if u.Job, err = id16("job", m.GetJob()); err != nil {
		return u, err
	}
	u.Chunk, err = id16("chunk", m.GetChunk())
	return u, err
}

// Validate names the first field of the receipt itself that is out of bounds, with ErrBounds or ErrBadID. Each
// of its records has a Validate of its own: a record that cannot be true does not sink its receipt, the bridge
// gives it VerdictBounds (settlement.md 2).
func (r *Receipt) Validate() error {
	if err := validPeers("receipt", r.Node, r.Bridge); err != nil {
		return err
	}
	switch {
	case r.Format != 1:
		return bounds("receipt", "format", "is %d, want 1", r.Format)
	case r.Seq == 0:
		return bounds("receipt", "seq", "is 0")
	case (r.Seq == 1) != (r.Prev == [32]byte{}):
		return bounds("receipt", "prev_hash", "is %x of receipt %d: the first has none, the others have one", r.Prev[:4], r.Seq)
	case r.IssuedMS < 0 || r.IssuedMS > maxMS:
		return bounds("receipt", "issued_ms", "is %d", r.IssuedMS)
	case len(r.Records) > MaxRecordsPerReceipt:
		return bounds("receipt", "records", "has %d entries, at most %d", len(r.Records), MaxRecordsPerReceipt)
	}
	return nil
}

func (r *Receipt) toPB() *pb.Receipt {
	m := &pb.Receipt{
		Format: r.Format, Network: r.Network[:], Node: []byte(r.Node), Bridge: []byte(r.Bridge), Seq: r.Seq, PrevHash: r.Prev[:], IssuedMs: r.IssuedMS, GrantHash: r.Grant[:],
		Records: make([]*pb.UsageRecord, 0, len(r.Records)),
	}
	for i := range r.Records {
		m.Records = append(m.Records, r.Records[i].toPB())
	}
	return m
}

// Seal validates the receipt and its records, signs it with the node's key and returns the envelope and the
// hash of the payload, which the next receipt names as Prev.
func (r *Receipt) Seal(key crypto.PrivKey) (raw []byte, hash [32]byte, err error) {
	if err := r.Validate(); err != nil {
		return nil, hash, err
	}
	for i := range r.Records {
		if err := r.Records[i].Validate(r.Node); err != nil {
			return nil, hash, err
		}
	}
	payload, err := marshal(r.toPB())
	if err != nil {
		return nil, hash, err
	}
	raw, err = nounReceipt.sealBytes(key, r.Node, payload)
	return raw, sha256.Sum256(payload), err
}

// OpenReceipt verifies a signed receipt: its author is its Node. hash is the SHA-256 of its payload. Its
// records are whole but not yet believed, see Validate.
func OpenReceipt(raw []byte) (r Receipt, hash [32]byte, err error) {
	m := &pb.Receipt{}
	signer, payload, err := nounReceipt.open(raw, m)
	if err != nil {
		return Receipt{}, hash, err
	}
	if err := nounReceipt.author(signer, PeerID(m.GetNode())); err != nil {
		return Receipt{}, hash, err
	}
	if r, err = receiptFromPB(m); err != nil {
		return Receipt{}, hash, err
	}
	return r, sha256.Sum256(payload), nil
}

func receiptFromPB(m *pb.Receipt) (r Receipt, err error) {
	r = Receipt{
		Format: m.GetFormat(), Node: PeerID(m.GetNode()), Bridge: PeerID(m.GetBridge()), Seq: m.GetSeq(), IssuedMS: m.GetIssuedMs(),
		Records: make([]UsageRecord, 0, len(m.GetRecords())),
	}
	if r.Network, err = id16("network", m.GetNetwork()); err != nil {
		return r, err
	}
	if r.Grant, err = grantID(m.GetGrantHash()); err != nil {
		return r, err
	}
	if r.Prev, err = hash32("receipt", "prev_hash", m.GetPrevHash()); err != nil {
		return r, err
	}
	for _, x := range m.GetRecords() {
		u, err := recordFromPB(x)
		if err != nil {
			return r, err
		}
		r.Records = append(r.Records, u)
	}
	return r, r.Validate()
}

// MaxVerdictReason bounds the wording of a verdict, in bytes, so that the verdicts on a full receipt fit.
const MaxVerdictReason = 96

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (c *CounterSign) Validate() error {
	if err := validPeers("countersign", c.Node); err != nil {
		return err
	}
	if err := validMS("countersign", "bridge_ms", c.BridgeTime, false); err != nil {
		return err
	}
	switch {
	case c.Seq == 0:
		return bounds("countersign", "seq", "is 0")
	case len(c.Records) > MaxRecordsPerReceipt:
		return bounds("countersign", "records", "has %d entries, at most %d", len(c.Records), MaxRecordsPerReceipt)
	}
	for i := range c.Records {
		v := &c.Records[i]
		switch {
		case !slices.Contains(verdicts, v.Verdict):
			return bounds("countersign", "verdict", "%.20q is not known", v.Verdict)
		case v.DurationMS < 0 || v.DurationMS > maxSpanMS || v.GPUMS < 0 || v.GPUMS > 64*maxSpanMS:
			return bounds("countersign", "duration_ms", "settles %d ms and %d GPU ms", v.DurationMS, v.GPUMS)
		}
	}
	return nil
}

func (c *CounterSign) toPB() *pb.CounterSign {
	m := &pb.CounterSign{
		ReceiptHash: c.Hash[:], Node: []byte(c.Node), Seq: c.Seq, BridgeMs: unixMS(c.BridgeTime), Records: make([]*pb.RecordVerdict, 0, len(c.Records)),
	}
	for i := range c.Records {
		v := &c.Records[i]
		m.Records = append(m.Records, &pb.RecordVerdict{
			Id: v.ID[:], Verdict: v.Verdict, Reason: strings.ToValidUTF8(clip(v.Reason, MaxVerdictReason), "?"), DurationMs: v.DurationMS, GpuMs: v.GPUMS,
		})
	}
	return m
}

// Seal validates the counter-signature and signs it with the key of bridge, whom the receipt names. Wordings
// longer than MaxVerdictReason are cut.
func (c *CounterSign) Seal(key crypto.PrivKey) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	bridge, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("deriving the bridge's peer ID: %w", err)
	}
	return nounCounterSign.seal(key, bridge, c.toPB())
}

// OpenCounterSign verifies a counter-signature of bridge. Whether it is the one of a receipt tell its Hash,
// Node and Seq.
func OpenCounterSign(raw []byte, bridge PeerID) (CounterSign, error) {
	m := &pb.CounterSign{}
	signer, _, err := nounCounterSign.open(raw, m)
	if err != nil {
		return CounterSign{}, err
	}
	if err := nounCounterSign.author(signer, bridge); err != nil {
		return CounterSign{}, err
	}
	c, err := counterSignFromPB(m)
	if err != nil {
		return CounterSign{}, err
	}
	return c, nil
}

func counterSignFromPB(m *pb.CounterSign) (c CounterSign, err error) {
	c = CounterSign{Node: PeerID(m.GetNode()), Seq: m.GetSeq(), BridgeTime: fromMS(m.GetBridgeMs()), Records: make([]RecordVerdict, 0, len(m.GetRecords()))}
	if c.Hash, err = hash32("countersign", "receipt_hash", m.GetReceiptHash()); err != nil {
		return c, err
	}
	for _, x := range m.GetRecords() {
		v := RecordVerdict{Verdict: x.GetVerdict(), Reason: x.GetReason(), DurationMS: x.GetDurationMs(), GPUMS: x.GetGpuMs()}
		if v.ID, err = id16("record", x.GetId()); err != nil {
			return c, err
		}
		if len(v.Reason) > MaxVerdictReason {
			return c, bounds("countersign", "reason", "has %d bytes, at most %d", len(v.Reason), MaxVerdictReason)
		}
		c.Records = append(c.Records, v)
	}
	return c, c.Validate()
}

func hash32(noun, field string, b []byte) (h [32]byte, err error) {
	if len(b) != len(h) {
		return h, bounds(noun, field, "has %d bytes, want 32", len(b))
	}
	return [32]byte(b), nil
}
