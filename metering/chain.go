package metering

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/gridbeam/gridbeam/protocol"
)

// Errors of a Chain.
var (
	// ErrState means bytes that are no state of this pair's chain.
	ErrState = errors.New("metering: not a state of this chain")
	// ErrUnknownReceipt means a counter-signature of a receipt that the chain does not wait for.
	ErrUnknownReceipt = errors.New("metering: counter-signature of no receipt in hand")
	// ErrBehind means a position that would let the node sign a second receipt under an old number.
	ErrBehind = errors.New("metering: the bridge's position is behind what was signed")
)

// Position is where a chain of receipts stands: the last number and the SHA-256 of its payload; zero before
// the first.
type Position struct {
	// Seq is the number of the last receipt.
	Seq uint64
	// Hash is the SHA-256 of its payload.
	Hash [32]byte
}

// Issued is a signed receipt on its way to the bridge.
type Issued struct {
	// Seq is its number.
	Seq uint64
	// Hash is the SHA-256 of its payload.
	Hash [32]byte
	// Raw is the signed receipt as it is sent.
	Raw []byte
}

// Chain issues a node's receipts to one bridge. It is safe for concurrent use.
//
// Make State durable after Issue and before anything is sent: a node that forgets a number it has used signs
// it twice, which proves a fraud.
type Chain struct {
	network protocol.NetworkID
	node    protocol.PeerID
	bridge  protocol.PeerID

	mu      sync.Mutex // guards everything below
	pos     Position
	pending []pending
	settled []settled
}

type pending struct {
	Issued
	claimedMS int64
}

// settled is what one counter-signature made of what was claimed.
type settled struct {
	atMS, claimedMS, settledMS int64
}

// NewChain returns the chain of a node with a bridge, at its beginning. Use Restore or Adopt to go on.
func NewChain(network protocol.NetworkID, node, bridge protocol.PeerID) *Chain {
	return &Chain{network: network, node: node, bridge: bridge}
}

// Position is the last receipt issued.
func (c *Chain) Position() Position {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pos
}

// Issue signs records in receipts of up to 256 and appends them to the chain and to Pending. grant is by what
// right the bridge used the node. No records give no receipts. On an error the chain is as it was.
func (c *Chain) Issue(records []protocol.UsageRecord, grant protocol.GrantID, now time.Time, key crypto.PrivKey) ([]Issued, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pos := c.pos
	var out []Issued
	var more []pending
	for part := range slices.Chunk(records, protocol.MaxRecordsPerReceipt) {
		r := protocol.Receipt{
			Format: 1, Network: c.network, Node: c.node, Bridge: c.bridge, Seq: pos.Seq + 1, Prev: pos.Hash, Records: part, IssuedMS: now.UnixMilli(), Grant: grant,
		}
		raw, hash, err := r.Seal(key)
		if err != nil {
			return nil, fmt.Errorf("issuing receipt %d: %w", r.Seq, err)
		}
		pos = Position{r.Seq, hash}
		p := pending{Issued: Issued{r.Seq, hash, raw}}
		for i := range part {
			p.claimedMS += part[i].DurationMS
		}
		out, more = append(out, p.Issued), append(more, p)
	}
	c.pos, c.pending = pos, append(c.pending, more...)
	return out, nil
}

// Pending returns the receipts that the bridge has not counter-signed yet, oldest first: send them again in
// this order after a lost connection, or after a bad_chain.
func (c *Chain) Pending() []Issued {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Issued, 0, len(c.pending))
	for i := range c.pending {
		out = append(out, c.pending[i].Issued)
	}
	return out
}

// Countersigned takes the bridge's answer: the receipt is not pending any more. It returns ErrUnknownReceipt
// when that receipt is not in hand, which a repeated answer also gives, and then changes nothing.
func (c *Chain) Countersigned(cs *protocol.CounterSign) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.pending, func(p pending) bool { return p.Seq == cs.Seq && p.Hash == cs.Hash })
	if i < 0 || cs.Node != c.node {
		return fmt.Errorf("%w: number %d", ErrUnknownReceipt, cs.Seq)
	}
	s := settled{atMS: cs.BridgeTime.UnixMilli(), claimedMS: c.pending[i].claimedMS}
	for k := range cs.Records {
		s.settledMS += cs.Records[k].DurationMS
	}
	c.pending = slices.Delete(c.pending, i, i+1)
	c.settled = append(c.settled, s)
	old := slices.IndexFunc(c.settled, func(x settled) bool { return x.atMS > s.atMS-time.Hour.Milliseconds() })
	c.settled = slices.Delete(c.settled, 0, max(0, old))
	return nil
}

// Exposure is what the node risks with this bridge (settlement.md 2): slot time that it has signed for and the
// bridge has not, and which part of the last hour's claims the bridge has corrected, in millionths. A node
// takes nothing more from a bridge that leaves more than 120 s a slot or corrects more than 20,000 ppm.
func (c *Chain) Exposure() (unsigned time.Duration, correctedPPM int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var open, claimed, got int64
	for i := range c.pending {
		open += c.pending[i].claimedMS
	}
	for _, s := range c.settled {
		claimed, got = claimed+s.claimedMS, got+s.settledMS
	}
	if claimed > got {
		correctedPPM = (claimed - got) * 1_000_000 / claimed
	}
	return time.Duration(open) * time.Millisecond, correctedPPM
}

// Adopt goes on from the bridge's position, for a node that has lost its disk: nothing is pending any more.
// It returns ErrBehind for a position behind what this chain has signed, unless it is one of its own.
func (c *Chain) Adopt(p Position) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == c.pos {
		return nil
	}
	if p.Seq <= c.pos.Seq {
		return fmt.Errorf("%w: it stands at %d, this node has signed %d", ErrBehind, p.Seq, c.pos.Seq)
	}
	c.pos, c.pending = p, nil
	return nil
}

// Append takes a receipt that Issue gave, out of the node's journal: an incremental form of State and Restore.
// It returns ErrState unless the receipt is this pair's and follows the chain's position.
func (c *Chain) Append(raw []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, r, err := c.own(raw)
	if err != nil {
		return err
	}
	if r.Seq != c.pos.Seq+1 || r.Prev != c.pos.Hash {
		return fmt.Errorf("%w: receipt %d does not follow %d", ErrState, r.Seq, c.pos.Seq)
	}
	c.pos, c.pending = Position{r.Seq, p.Hash}, append(c.pending, p)
	return nil
}

// own opens a receipt of this pair.
func (c *Chain) own(raw []byte) (p pending, r protocol.Receipt, err error) {
	r, hash, err := protocol.OpenReceipt(raw)
	switch {
	case err != nil:
		return p, r, fmt.Errorf("%w: pending receipt: %w", ErrState, err)
	case r.Node != c.node || r.Bridge != c.bridge || r.Network != c.network:
		return p, r, fmt.Errorf("%w: pending receipt %d is of another pair", ErrState, r.Seq)
	}
	p = pending{Issued: Issued{r.Seq, hash, slices.Clone(raw)}}
	for k := range r.Records {
		p.claimedMS += r.Records[k].DurationMS
	}
	return p, r, nil
}

// chainState is the JSON form of a Chain.
type chainState struct {
	Network protocol.NetworkID `json:"network"`
	Node    string             `json:"node"`
	Bridge  string             `json:"bridge"`
	Seq     uint64             `json:"seq"`
	Hash    []byte             `json:"hash"`
	Pending [][]byte           `json:"pending,omitempty"`
}

// State encodes the chain with its pending receipts for the node's journal.
func (c *Chain) State() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := chainState{Network: c.network, Node: c.node.String(), Bridge: c.bridge.String(), Seq: c.pos.Seq, Hash: c.pos.Hash[:]}
	for i := range c.pending {
		s.Pending = append(s.Pending, c.pending[i].Raw)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding a chain: %w", err)
	}
	return b, nil
}

// Restore takes up what State wrote, over a new chain of the same pair. It returns ErrState and then changes
// nothing.
func (c *Chain) Restore(state []byte) error {
	var s chainState
	if err := json.Unmarshal(state, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Network != c.network || s.Node != c.node.String() || s.Bridge != c.bridge.String() || len(s.Hash) != 32 {
		return fmt.Errorf("%w: it is of %.60s with %.60s", ErrState, s.Node, s.Bridge)
	}
	pos := Position{Seq: s.Seq, Hash: [32]byte(s.Hash)}
	var in []pending
	for i, raw := range s.Pending {
		p, r, err := c.own(raw)
		if err != nil {
			return err
		}
		if r.Seq > pos.Seq || i > 0 && r.Seq <= in[i-1].Seq || r.Seq == pos.Seq && p.Hash != pos.Hash {
			return fmt.Errorf("%w: pending receipt %d does not belong to it", ErrState, r.Seq)
		}
		in = append(in, p)
	}
	c.pos, c.pending = pos, in
	return nil
}
