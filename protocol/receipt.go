package protocol

import (
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

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

// Validate checks that the record can be true: ID, order and grid.
func (u *UsageRecord) Validate(node PeerID) error {
	cell := u.StartMS / CellMillis
	var lease []byte
	if u.State != UsageIdle {
		lease = u.Lease[:]
	}
	span := int64(CellMillis)
	if u.State == UsageIdle {
		span = 12 * CellMillis // an aligned idle minute may travel as one record
	}
	switch {
	case u.State < UsageIdle || u.State > UsageWorking:
		return bounds("record", "state", "is %d", u.State)
	case u.StartMS <= 0 || u.EndMS < u.StartMS || u.EndMS > (cell*CellMillis)+span:
		return bounds("record", "start_ms", "%d..%d does not lie in one cell", u.StartMS, u.EndMS)
	case u.DurationMS < 0 || u.DurationMS > span:
		return bounds("record", "duration_ms", "is %d, want 0..%d", u.DurationMS, span)
	case u.GPUMS < 0 || u.CPUMS < 0 || u.MemMiBS < 0 || u.PairRX < 0 || u.PairTX < 0:
		return bounds("record", "gpu_ms", "a quantity is negative")
	case u.ID != NewRecordID(node, lease, u.Slot, u.State, uint64(cell)):
		return bounds("record", "id", "%s is not that of its content", u.ID)
	}
	return nil
}

func recordFromPB(node PeerID, m *pb.UsageRecord) (u UsageRecord, err error) {
	u = UsageRecord{
		Fence: m.GetFence(), Slot: uint16(m.GetSlot()), State: UsageState(m.GetState()), StartMS: m.GetStartMs(), EndMS: m.GetEndMs(), DurationMS: m.GetDurationMs(),
		GPUMS: m.GetGpuMs(), CPUMS: m.GetCpuMs(), MemMiBS: m.GetMemMibS(), PairRX: m.GetPairRx(), PairTX: m.GetPairTx(), Flags: m.GetFlags(),
	}
	if m.GetSlot() >= 1<<16 {
		return u, bounds("record", "slot", "is %d", m.GetSlot())
	}
	if u.ID, err = id16("record", m.GetId()); err != nil {
		return u, err
	}
	if u.State != UsageIdle {
		if u.Lease, err = id16("lease", m.GetLease()); err != nil {
			return u, err
		}
		if u.Job, err = id16("job", m.GetJob()); err != nil {
			return u, err
		}
		if u.Chunk, err = id16("chunk", m.GetChunk()); err != nil {
			return u, err
		}
	}
	return u, u.Validate(node)
}

// Seal signs the receipt with the node's key and returns the envelope and the hash of the payload, which the
// next receipt names as Prev.
func (r *Receipt) Seal(key crypto.PrivKey) (raw []byte, hash [32]byte, err error) {
	m := &pb.Receipt{
		Format: r.Format, Network: r.Network[:], Node: []byte(r.Node), Bridge: []byte(r.Bridge), Seq: r.Seq, PrevHash: r.Prev[:], IssuedMs: r.IssuedMS, GrantHash: r.Grant[:],
	}
	for i := range r.Records {
		m.Records = append(m.Records, r.Records[i].toPB())
	}
	payload, err := marshal(m)
	if err != nil {
		return nil, hash, err
	}
	raw, err = nounReceipt.sealBytes(key, payload)
	return raw, sha256.Sum256(payload), err
}

// OpenReceipt verifies a signed receipt: its author is its Node. hash is the SHA-256 of its payload.
func OpenReceipt(raw []byte) (r Receipt, hash [32]byte, err error) {
	m := &pb.Receipt{}
	signer, payload, err := nounReceipt.open(raw, m)
	if err != nil {
		return r, hash, err
	}
	hash = sha256.Sum256(payload)
	r = Receipt{Format: m.GetFormat(), Seq: m.GetSeq(), IssuedMS: m.GetIssuedMs()}
	if r.Format != 1 {
		return r, hash, bounds("receipt", "format", "is %d, want 1", r.Format)
	}
	if r.Network, err = id16("network", m.GetNetwork()); err != nil {
		return r, hash, err
	}
	if r.Node, err = peerID("node", m.GetNode()); err != nil {
		return r, hash, err
	}
	if r.Bridge, err = peerID("bridge", m.GetBridge()); err != nil {
		return r, hash, err
	}
	if r.Grant, err = grantID(m.GetGrantHash()); err != nil {
		return r, hash, err
	}
	if err = nounReceipt.author(signer, r.Node); err != nil {
		return r, hash, err
	}
	if len(m.GetPrevHash()) != 32 || r.Seq == 0 {
		return r, hash, bounds("receipt", "seq", "is %d after a hash of %d bytes", r.Seq, len(m.GetPrevHash()))
	}
	copy(r.Prev[:], m.GetPrevHash())
	if len(m.GetRecords()) > MaxRecordsPerReceipt {
		return r, hash, bounds("receipt", "records", "has %d entries, at most %d", len(m.GetRecords()), MaxRecordsPerReceipt)
	}
	r.Records = make([]UsageRecord, 0, len(m.GetRecords()))
	for _, x := range m.GetRecords() {
		u, err := recordFromPB(r.Node, x)
		if err != nil {
			return r, hash, err
		}
		r.Records = append(r.Records, u)
	}
	return r, hash, nil
}

// Seal signs the counter-signature with the bridge's key.
func (c *CounterSign) Seal(key crypto.PrivKey) ([]byte, error) {
	m := &pb.CounterSign{ReceiptHash: c.Hash[:], Node: []byte(c.Node), Seq: c.Seq, BridgeMs: c.BridgeTime.UnixMilli()}
	for i := range c.Records {
		v := &c.Records[i]
		m.Records = append(m.Records, &pb.RecordVerdict{Id: v.ID[:], Verdict: v.Verdict, Reason: v.Reason, DurationMs: v.DurationMS, GpuMs: v.GPUMS})
	}
	return nounCounterSign.seal(key, m)
}

// OpenCounterSign verifies a counter-signature of bridge.
func OpenCounterSign(raw []byte, bridge PeerID) (c CounterSign, err error) {
	m := &pb.CounterSign{}
	signer, _, err := nounCounterSign.open(raw, m)
	if err != nil {
		return c, err
	}
	if err = nounCounterSign.author(signer, bridge); err != nil {
		return c, err
	}
	c = CounterSign{Seq: m.GetSeq(), BridgeTime: time.UnixMilli(m.GetBridgeMs())}
	if len(m.GetReceiptHash()) != 32 {
		return c, bounds("countersign", "receipt_hash", "has %d bytes, want 32", len(m.GetReceiptHash()))
	}
	copy(c.Hash[:], m.GetReceiptHash())
	if c.Node, err = peerID("node", m.GetNode()); err != nil {
		return c, err
	}
	if len(m.GetRecords()) > MaxRecordsPerReceipt {
		return c, bounds("countersign", "records", "has %d entries, at most %d", len(m.GetRecords()), MaxRecordsPerReceipt)
	}
	for _, x := range m.GetRecords() {
		v := RecordVerdict{Verdict: x.GetVerdict(), Reason: x.GetReason(), DurationMS: x.GetDurationMs(), GPUMS: x.GetGpuMs()}
		if v.ID, err = id16("record", x.GetId()); err != nil {
			return c, err
		}
		c.Records = append(c.Records, v)
	}
	return c, nil
}

func itoa(n int32) string { return strconv.FormatInt(int64(n), 10) }

func atoi(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int32(n), err
}
