package ipfs

import (
	"context"
	"errors"

	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
)

// Blocks is the store as bitswap reads it.
type Blocks interface {
	// Block returns a block's bytes, and false when it is not here.
	Block(c cid.Cid) ([]byte, bool, error)
	// BlockSize returns a block's size in bytes, and false when it is not here.
	BlockSize(c cid.Cid) (int, bool, error)
}

// blockstore shows Blocks to boxo, read-only: fetched blocks are put by the fetch, not by bitswap.
type blockstore struct{ Blocks }

var _ boxo.Blockstore = blockstore{}

var errReadOnly = errors.New("ipfs: bitswap does not write")

// Has implements boxo's Blockstore.
func (b blockstore) Has(_ context.Context, c cid.Cid) (bool, error) {
	_, ok, err := b.BlockSize(c)
	return ok, err
}

// Get implements boxo's Blockstore.
func (b blockstore) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	data, ok, err := b.Block(c)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	return blocks.NewBlockWithCid(data, c)
}

// GetSize implements boxo's Blockstore.
func (b blockstore) GetSize(_ context.Context, c cid.Cid) (int, error) {
	n, ok, err := b.BlockSize(c)
	if err == nil && !ok {
		err = ipld.ErrNotFound{Cid: c}
	}
	if err != nil {
		return -1, err
	}
	return n, nil
}

// Put implements boxo's Blockstore; it is never called.
func (b blockstore) Put(context.Context, blocks.Block) error { return errReadOnly }

// PutMany implements boxo's Blockstore; it is never called.
func (b blockstore) PutMany(context.Context, []blocks.Block) error { return errReadOnly }

// DeleteBlock implements boxo's Blockstore; it is never called.
func (b blockstore) DeleteBlock(context.Context, cid.Cid) error { return errReadOnly }

// AllKeysChan implements boxo's Blockstore; bitswap never lists.
func (b blockstore) AllKeysChan(context.Context) (<-chan cid.Cid, error) { return nil, errReadOnly }
