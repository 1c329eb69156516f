package metering

import (
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of Book.Check. A record that is refused is no error: its verdict says why.
var (
	// ErrBadChain means a receipt that does not follow the chain; the ChainError tells what would.
	ErrBadChain = errors.New("metering: receipt does not follow the chain")
	// ErrKnown means a receipt that was checked before: the stored counter-signature is the answer.
	ErrKnown = errors.New("metering: receipt is known")
	// ErrEquivocation means a second receipt under a number that the node has used: with the stored one it is
	// a proof of fraud that anybody can check.
	ErrEquivocation = errors.New("metering: two receipts under one number")
	// ErrStranger means a receipt for another bridge.
	ErrStranger = errors.New("metering: receipt is for another bridge")
)

// ChainError is the ErrBadChain of one receipt.
type ChainError struct {
	// Got is the number that came.
	Got uint64
	// Want is the number that has to come, and Prev the hash that it has to name.
	Want uint64
	// Prev is the SHA-256 of the last payload that the bridge has.
	Prev [32]byte
}

// Error implements error.
func (e *ChainError) Error() string {
	return fmt.Sprintf("%s: %d came, %d after %x is wanted", ErrBadChain, e.Got, e.Want, e.Prev[:8])
}

// Unwrap returns ErrBadChain.
func (e *ChainError) Unwrap() error { return ErrBadChain }

// Lease is the bridge's own view of an attempt: what it witnessed.
type Lease struct {
	// Node holds the lease.
	Node protocol.PeerID
	// Job is the lease's job.
	Job protocol.JobID
	// Chunk is the lease's chunk.
	Chunk protocol.ChunkID
	// Fence is the lease's fence.
	Fence uint64
	// Slots is how many slots it takes; 0 counts as 1.
	Slots int
	// Granted is when it was granted.
	Granted time.Time
	// Ended is when its result came or it lapsed; zero while it lives.
	Ended time.Time
	// Ran is the longest that it can have worked, where the bridge knows better than from Granted and Ended;
	// 0 where it does not.
	Ran time.Duration
}

// Witness is what the bridge knows by itself.
type Witness interface {
	// Lease returns the bridge's view of a lease, false if it granted no such lease.
	Lease(protocol.LeaseID) (Lease, bool)
	// Heard says whether the node was heard of, by heartbeat or lease stream, in such a way that it counts as
	// present in [from, to).
	Heard(node protocol.PeerID, from, to time.Time) bool
	// ReceiptHash returns the hash of a stored receipt.
	ReceiptHash(node protocol.PeerID, seq uint64) ([32]byte, bool)
}

// BookConfig is what a Book is set up with.
type BookConfig struct {
	// Bridge is whose book it is; no default.
	Bridge protocol.PeerID
	// Future is how far ahead of the bridge's clock a record may end; default 60 s (settlement.md 2).
	Future time.Duration
	// MaxAge is how old a record may be; default 35 days.
	MaxAge time.Duration
	// Noise and NoisePPM bound a difference that is no dispute: the larger of the two; defaults 50 ms and
	// 10,000 millionths of the larger value.
	Noise time.Duration
	// NoisePPM is the relative part of Noise.
	NoisePPM int64
	// Skew is how far a node's clock may be off the bridge's: its records may lie that far outside of their
	// lease. What they sum to is bounded by the lease's own length all the same; default 2 s.
	Skew time.Duration
	// Window is how far behind a slot's newest cell a record may come, since only so far back the book
	// remembers what was settled; default 1 h.
	Window time.Duration
	// MaxIDs bounds the record IDs remembered per slot; leases of cells whose IDs were dropped are refused as
	// too old; default 16,384.
	MaxIDs int
	// MaxSlots bounds a node's slots where Machine does not know better; default 64.
	MaxSlots int
	// Machine says how many slots and CPU cores a node has, which bound what it may report; 0 is unknown. Nil
	// knows nothing.
	Machine func(protocol.PeerID) (slots, cores int)
}

// DefaultBookConfig returns the defaults for a bridge.
func DefaultBookConfig(bridge protocol.PeerID) BookConfig {
	return BookConfig{
		Bridge: bridge, Future: time.Minute, MaxAge: 35 * 24 * time.Hour, Noise: 50 * time.Millisecond, NoisePPM: 10_000, Skew: 2 * time.Second, Window: time.Hour, MaxIDs: 1 << 14, MaxSlots: 64,
	}
}

// Validate returns ErrConfig naming the field.
func (c *BookConfig) Validate() error {
	switch {
	case c.Bridge == "":
		return fmt.Errorf("%w: Bridge is missing", ErrConfig)
	case c.Future < 0 || c.MaxAge <= 0:
		return fmt.Errorf("%w: Future or MaxAge is negative", ErrConfig)
	case c.Noise < 0 || c.NoisePPM < 0 || c.NoisePPM > 1_000_000:
		return fmt.Errorf("%w: Noise or NoisePPM is out of bounds", ErrConfig)
	case c.Skew < 0 || c.Skew > time.Minute:
		return fmt.Errorf("%w: Skew is %s, want up to 1 min", ErrConfig, c.Skew)
	case c.Window < time.Minute || c.MaxIDs < 2*protocol.MaxRecordsPerReceipt:
		return fmt.Errorf("%w: Window is under 1 min or MaxIDs under %d", ErrConfig, 2*protocol.MaxRecordsPerReceipt)
	case c.MaxSlots < 1 || c.MaxSlots > 1<<16:
		return fmt.Errorf("%w: MaxSlots is %d, want 1..65536", ErrConfig, c.MaxSlots)
	}
	return nil
}

// LeaseUse is what one receipt settles of one lease.
type LeaseUse struct {
	// Lease is the attempt.
	Lease protocol.LeaseID
	// Job is its job.
	Job protocol.JobID
	// Records counts the records that were not refused.
	Records uint64
	// PreparingMS is settled slot time, milliseconds.
	PreparingMS int64
	// WorkingMS is settled slot time, milliseconds.
	WorkingMS int64
	// GPUMS is slots × working time, milliseconds: what a bill is made of.
	GPUMS int64
	// CPUMS is processor time as the node claims it.
	CPUMS int64
	// Lowered counts records that were lowered or refused: disputes (settlement.md 2).
	Lowered uint64
}

// DayUse is settled slot time of one UTC day.
type DayUse struct {
	// Day is YYYY-MM-DD.
	Day string
	// IdleMS is settled idle slot time, milliseconds.
	IdleMS int64
	// PreparingMS is settled preparing slot time, milliseconds.
	PreparingMS int64
	// WorkingMS is settled working slot time, milliseconds.
	WorkingMS int64
}

// Checked is what a Book made of a receipt.
type Checked struct {
	// Position is where the chain stands now.
	Position Position
	// Verdicts are the bridge's word on each record, in the receipt's order.
	Verdicts []protocol.RecordVerdict
	// Leases sums what is settled, in the order in which leases appear.
	Leases []LeaseUse
	// Days sums what is settled, ascending.
	Days []DayUse
	// Lowered counts records that were lowered beyond noise, Refused those that were refused.
	Lowered int
	// Refused counts records that count nothing.
	Refused int
}

// CounterSign is the bridge's answer to the receipt, to be sealed with its key.
func (c *Checked) CounterSign(node protocol.PeerID, now time.Time) protocol.CounterSign {
	return protocol.CounterSign{Hash: c.Position.Hash, Node: node, Seq: c.Position.Seq, Records: c.Verdicts, BridgeTime: now}
}
