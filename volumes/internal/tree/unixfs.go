package tree

import (
	"encoding/binary"
	"math"

	"github.com/ipfs/go-cid"
)

// Kind says what a node is.
type Kind uint8

// The kinds of UnixFS nodes; the numbers are UnixFS's own (field 1 of its Data message).
const (
	// KindRaw is a leaf without UnixFS framing, or an old leaf of type Raw.
	KindRaw Kind = 0
	// KindDirectory is a directory in one block.
	KindDirectory Kind = 1
	// KindFile is a file, inline or of links.
	KindFile Kind = 2
	// KindSymlink is a symbolic link.
	KindSymlink Kind = 4
	// KindShard is a directory, or a part of one, as a HAMT.
	KindShard Kind = 5
)

// IsDir reports whether the kind lists names.
func (k Kind) IsDir() bool { return k == KindDirectory || k == KindShard }

// IsFile reports whether the kind has content.
func (k Kind) IsFile() bool { return k == KindFile || k == KindRaw }

const murmur3x64 = 0x22 // multicodec code of the HAMT's hash

// Node is one decoded block.
type Node struct {
	// Kind says what the node is.
	Kind Kind
	// Links are its children in order.
	Links []Link
	// Data is a file's inline content, a symlink's target or a shard's bit field; it aliases the block.
	Data []byte
	// Size is the file's content in bytes.
	Size uint64
	// BlockSizes are the content bytes below each link of a file.
	BlockSizes []uint64
	// Fanout is a shard's width.
	Fanout uint64
}

// Decode turns a block into a node; it returns ErrMalformed. Data aliases block. Tsize and Size are what
// the writer claimed: a reader must not allocate by them.
func Decode(c cid.Cid, block []byte) (*Node, error) {
	switch c.Type() {
	case cid.Raw:
		return &Node{Kind: KindRaw, Data: block, Size: uint64(len(block))}, nil
	case cid.DagProtobuf:
	default:
		return nil, malformed("codec 0x%x is neither raw nor dag-pb", c.Type())
	}
	links, data, err := decodePB(block)
	if err != nil {
		return nil, err
	}
	n := &Node{Links: links}
	if err := n.decodeData(data); err != nil {
		return nil, err
	}
	return n, n.check()
}

func (n *Node) decodeData(data []byte) error {
	hasType, hasSize, hash := false, false, uint64(0)
	for b := data; len(b) > 0; {
		num, wire, v, body, rest, err := field(b)
		if err != nil {
			return err
		}
		switch {
		case num == 1 && wire == 0 && v <= 5 && v != 3:
			n.Kind, hasType = Kind(v), true
		case num == 2 && wire == 2:
			n.Data = body
		case num == 3 && wire == 0:
			n.Size, hasSize = v, true
		case num == 4 && wire == 0:
			if len(n.BlockSizes) >= len(n.Links) {
				return malformed("more block sizes than %d links", len(n.Links))
			}
			n.BlockSizes = append(n.BlockSizes, v)
		case num == 4 && wire == 2: // packed, which other protobuf writers choose
			for len(body) > 0 {
				s, k := binary.Uvarint(body)
				if k <= 0 || len(n.BlockSizes) >= len(n.Links) {
					return malformed("packed block sizes")
				}
				n.BlockSizes, body = append(n.BlockSizes, s), body[k:]
			}
		case num == 5 && wire == 0:
			hash = v
		case num == 6 && wire == 0:
			n.Fanout = v
		case num == 7 || num == 8: // mode, mtime: not ours, but legal
		default:
			return malformed("UnixFS field %d", num)
		}
		b = rest
	}
	if !hasType {
		return malformed("no UnixFS type")
	}
	if n.Kind == KindShard && hash != murmur3x64 {
		return malformed("HAMT hash 0x%x", hash)
	}
	if n.Kind.IsFile() && !hasSize {
		n.Size = uint64(len(n.Data))
	}
	return nil
}

// check refuses nodes whose parts contradict one another, so that readers need not.
func (n *Node) check() error {
	switch n.Kind {
	case KindFile, KindRaw:
		if len(n.BlockSizes) != len(n.Links) {
			return malformed("%d links but %d block sizes", len(n.Links), len(n.BlockSizes))
		}
		sum := uint64(len(n.Data))
		for _, s := range n.BlockSizes {
			if s > math.MaxInt64-sum {
				return malformed("file size overflows")
			}
			sum += s
		}
		if sum != n.Size {
			return malformed("file of %d bytes says %d", sum, n.Size)
		}
	case KindShard:
		if f := n.Fanout; f < 8 || f > 1024 || f&(f-1) != 0 {
			return malformed("HAMT fanout %d", f)
		}
		if uint64(len(n.Links)) > n.Fanout || uint64(len(n.Data)) > n.Fanout/8 {
			return malformed("HAMT shard wider than its fanout")
		}
	case KindSymlink:
		if len(n.Links) > 0 {
			return malformed("symlink with links")
		}
	}
	return nil
}

// encodeData writes a UnixFS Data message with its fields ascending, as every known writer does.
func encodeData(k Kind, data []byte, size uint64, sizes []uint64, fanout uint64) []byte {
	b := make([]byte, 0, 32+len(data)+5*len(sizes))
	b = append(b, 0x08, byte(k))
	if data != nil {
		b = append(b, 0x12)
		b = binary.AppendUvarint(b, uint64(len(data)))
		b = append(b, data...)
	}
	if k == KindFile {
		b = append(b, 0x18)
		b = binary.AppendUvarint(b, size)
	}
	for _, s := range sizes {
		b = append(b, 0x20)
		b = binary.AppendUvarint(b, s)
	}
	if k == KindShard {
		b = append(b, 0x28, murmur3x64, 0x30)
		b = binary.AppendUvarint(b, fanout)
	}
	return b
}
