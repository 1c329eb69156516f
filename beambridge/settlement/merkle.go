package settlement

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrLeaf means a payout that cannot be a leaf, or a proof of something else.
var ErrLeaf = errors.New("settlement: not a leaf of the tree")

// Root is the Merkle tree hash of RFC 6962, section 2.1: SHA-256, leaves behind 0x00, nodes behind 0x01, the
// left part the largest power of two; of no leaves, SHA-256 of nothing.
func Root(leaves [][]byte) [32]byte {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leafHash(leaves[0])
	}
	k := split(len(leaves))
	return nodeHash(Root(leaves[:k]), Root(leaves[k:]))
}

func leafHash(b []byte) [32]byte { return sha256.Sum256(append([]byte{0}, b...)) }

func nodeHash(l, r [32]byte) [32]byte {
	return sha256.Sum256(slices.Concat([]byte{1}, l[:], r[:]))
}

// split is the largest power of two smaller than n > 1.
func split(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// Proof is the audit path of leaf i, from the leaf up (RFC 6962, 2.1.1); nil for an i that is not there.
func Proof(leaves [][]byte, i int) [][32]byte {
	if i < 0 || i >= len(leaves) || len(leaves) == 1 {
		return nil
	}
	k := split(len(leaves))
	if i < k {
		return append(Proof(leaves[:k], i), Root(leaves[k:]))
	}
	return append(Proof(leaves[k:], i-k), Root(leaves[:k]))
}

// VerifyProof says whether leaf is the i-th of n leaves under root.
func VerifyProof(root [32]byte, leaf []byte, i, n int, path [][32]byte) bool {
	if i < 0 || i >= n {
		return false
	}
	h, last := leafHash(leaf), n-1
	for _, p := range path {
		if last == 0 {
			return false
		}
		if i&1 == 1 || i == last {
			h = nodeHash(p, h)
			for i&1 == 0 && i != 0 { // the right edge: levels without a sibling
				i, last = i>>1, last>>1
			}
		} else {
			h = nodeHash(h, p)
		}
		i, last = i>>1, last>>1
	}
	return last == 0 && h == root
}

// Payout is a node's line of an epoch's report, RENDER base units.
type Payout struct {
	// Peer earned it.
	Peer protocol.PeerID
	// Wallet is where it goes, zero if there is none.
	Wallet Wallet
	// Availability, Job, Preparation and Released are what came in; Held and Forfeited are kept back.
	Availability, Job, Preparation, Released, Held, Forfeited int64
}

// Payable is Availability + Job + Preparation + Released − Held − Forfeited. It returns ErrAmount when a part
// or the result is negative.
func (p *Payout) Payable() (int64, error) {
	in, err := sum("payout", p.Availability, p.Job, p.Preparation, p.Released)
	if err != nil {
		return 0, err
	}
	out, err := sum("payout", p.Held, p.Forfeited)
	if err != nil {
		return 0, err
	}
	if out > in {
		return 0, fmt.Errorf("%w: payout of %s: %d kept back of %d", ErrAmount, p.Peer, out, in)
	}
	return in - out, nil
}

// PayoutLeaf encodes a payout (settlement.md 7): "gridbeam/payout/1" 0x00 ‖ u8 length, epoch ID ‖ policy hash ‖
// u8 length, peer ID ‖ wallet ‖ u64 availability, job, preparation, released, held, forfeited, payable,
// big-endian. It returns ErrLeaf or ErrAmount.
func PayoutLeaf(epoch string, policy [32]byte, p Payout) ([]byte, error) {
	if len(epoch) == 0 || len(epoch) > 255 || len(p.Peer) == 0 || len(p.Peer) > 255 {
		return nil, fmt.Errorf("%w: epoch of %d bytes, peer of %d", ErrLeaf, len(epoch), len(p.Peer))
	}
	payable, err := p.Payable()
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 256), "gridbeam/payout/1\x00"...)
	b = append(append(b, byte(len(epoch))), epoch...)
	b = append(b, policy[:]...)
	b = append(append(b, byte(len(p.Peer))), p.Peer...)
	b = append(b, p.Wallet[:]...)
	for _, n := range []int64{p.Availability, p.Job, p.Preparation, p.Released, p.Held, p.Forfeited, payable} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b, nil
}

// PayoutLeaves encodes payouts in the order of the tree, that of the peer IDs' bytes. It returns ErrLeaf for a
// peer that comes twice, or what PayoutLeaf returns.
func PayoutLeaves(epoch string, policy [32]byte, payouts []Payout) ([][]byte, error) {
	sorted := slices.Clone(payouts)
	slices.SortFunc(sorted, func(a, b Payout) int { return bytes.Compare([]byte(a.Peer), []byte(b.Peer)) })
	out := make([][]byte, len(sorted))
	for i, p := range sorted {
		if i > 0 && sorted[i-1].Peer == p.Peer {
			return nil, fmt.Errorf("%w: %s comes twice", ErrLeaf, p.Peer)
		}
		var err error
		if out[i], err = PayoutLeaf(epoch, policy, p); err != nil {
			return nil, err
		}
	}
	return out, nil
}
