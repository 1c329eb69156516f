package store

import (
	"fmt"
	"iter"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Receipt is a link of the chain of signed usage between a node and this bridge (settlement.md 2).
type Receipt struct {
	Node        protocol.PeerID // Node and Seq are the key.
	Seq         uint64          // Seq grows by one with each receipt of the node, from 1.
	Hash        [32]byte        // Hash is the SHA-256 of its payload.
	Prev        [32]byte        // Prev is the hash of the receipt before it.
	Raw         []byte          // Raw is the signed envelope as it came.
	CounterSign []byte          // CounterSign is this bridge's signed answer.
	At          time.Time       // At is when it was accepted.
}

const receiptColumns = "node, seq, hash, prev, raw, countersign, at"

var (
	putReceipt = &query{`INSERT INTO receipts (` + receiptColumns + `) VALUES (?,?,?,?,?,?,?)
ON CONFLICT (node, seq) DO UPDATE SET countersign=excluded.countersign WHERE hash=excluded.hash`}
	getReceipt    = &query{"SELECT " + receiptColumns + " FROM receipts WHERE node=? AND seq=?"}
	lastReceipt   = &query{"SELECT " + receiptColumns + " FROM receipts WHERE node=? ORDER BY seq DESC LIMIT 1"}
	listReceipts  = &query{"SELECT " + receiptColumns + " FROM receipts WHERE node=? AND seq>? ORDER BY seq"}
	countReceipts = &query{"SELECT count(*) FROM receipts"}
	chainHeads    = &query{"SELECT node, max(seq), hash FROM receipts GROUP BY node ORDER BY node"}
)

// PutReceipts inserts receipts. One that is there already with the same hash only gets the counter-signature;
// another hash under its number is ErrConflict: the node has signed two receipts with one number.
func (t *Tx) PutReceipts(receipts []Receipt) error {
	for i := range receipts {
		x := &receipts[i]
		n, err := t.write(putReceipt, func(a *args) {
			a.peer("Receipt.Node", x.Node)
			a.uint("Receipt.Seq", x.Seq)
			a.hash(x.Hash)
			a.hash(x.Prev)
			a.blob(x.Raw)
			a.blob(x.CounterSign)
			a.time(x.At)
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return t.refuse(fmt.Errorf("%w: node %s signed two receipts with number %d", ErrConflict, x.Node, x.Seq))
		}
	}
	return nil
}

func scanReceipt(r *row) Receipt {
	return Receipt{Node: r.peer(), Seq: r.uint(), Hash: r.hash(), Prev: r.hash(), Raw: r.blob(), CounterSign: r.blob(), At: r.time()}
}

// GetReceipt returns a receipt of a node by its number, or ErrNotFound.
func (t *Tx) GetReceipt(node protocol.PeerID, seq uint64) (Receipt, error) {
	return one(t, getReceipt, scanReceipt, "receipt", seq, []byte(node), int64(seq))
}

// LastReceipt returns where the chain of a node stands, or ErrNotFound when it has none.
func (t *Tx) LastReceipt(node protocol.PeerID) (Receipt, error) {
	return one(t, lastReceipt, scanReceipt, "receipt of", node, []byte(node))
}

// Receipts yields the receipts of a node after a number, in order; 0 is all.
func (t *Tx) Receipts(node protocol.PeerID, after uint64) iter.Seq2[Receipt, error] {
	return list(t, listReceipts, scanReceipt, []byte(node), int64(after))
}

// CountReceipts counts the receipts of all nodes.
func (t *Tx) CountReceipts() (uint64, error) {
	return one(t, countReceipts, (*row).uint, "count of", "receipts")
}

// ChainHead is where the chain of a node stands.
type ChainHead struct {
	Node protocol.PeerID // Node is the node.
	Seq  uint64          // Seq is its last receipt's number.
	Hash [32]byte        // Hash is its last receipt's.
}

// ChainHeads returns where every chain stands, by peer ID.
func (t *Tx) ChainHeads() ([]ChainHead, error) {
	return collect(list(t, chainHeads, func(r *row) ChainHead { return ChainHead{r.peer(), r.uint(), r.hash()} }))
}
