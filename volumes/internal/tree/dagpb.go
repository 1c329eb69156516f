package tree

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
)

// ErrMalformed means that a block is not valid dag-pb or not valid UnixFS.
var ErrMalformed = errors.New("tree: malformed block")

// MaxBlock is the largest block in bytes that is written or read: larger ones do not pass bitswap.
const MaxBlock = 2 << 20

// Link is an edge of a dag-pb node.
type Link struct {
	// CID names the child.
	CID cid.Cid
	// Name is the entry's name in a directory, empty in a file.
	Name string
	// Tsize is the size in bytes of all blocks below the link, as its writer claims.
	Tsize uint64
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func sizeUvarint(x uint64) int {
	n := 1
	for ; x >= 0x80; x >>= 7 {
		n++
	}
	return n
}

func sizeLinkBody(l Link) int {
	h, n := l.CID.ByteLen(), len(l.Name)
	return 1 + sizeUvarint(uint64(h)) + h + 1 + sizeUvarint(uint64(n)) + n + 1 + sizeUvarint(l.Tsize)
}

// sizeLink is the number of bytes that a link adds to its node's block.
func sizeLink(l Link) int {
	n := sizeLinkBody(l)
	return 1 + sizeUvarint(uint64(n)) + n
}

// encodePB writes links and data in the canonical order, links first (dag-pb specification).
func encodePB(links []Link, data []byte) []byte {
	size := 1 + sizeUvarint(uint64(len(data))) + len(data)
	for _, l := range links {
		size += sizeLink(l)
	}
	b := make([]byte, 0, size)
	for _, l := range links {
		b = append(b, 0x12)
		b = binary.AppendUvarint(b, uint64(sizeLinkBody(l)))
		b = append(b, 0x0a)
		b = binary.AppendUvarint(b, uint64(l.CID.ByteLen()))
		b = append(b, l.CID.KeyString()...)
		b = append(b, 0x12)
		b = binary.AppendUvarint(b, uint64(len(l.Name)))
		b = append(b, l.Name...)
		b = append(b, 0x18)
		b = binary.AppendUvarint(b, l.Tsize)
	}
	b = append(b, 0x0a)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// field reads one protobuf field; for wire type 2 body is its content, for type 0 v its value.
func field(b []byte) (num uint64, wire int, v uint64, body, rest []byte, err error) {
	key, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, 0, nil, nil, malformed("bad field key")
	}
	b = b[n:]
	num, wire = key>>3, int(key&7)
	switch wire {
	case 0, 2:
		if v, n = binary.Uvarint(b); n <= 0 {
			return 0, 0, 0, nil, nil, malformed("bad varint in field %d", num)
		}
		b = b[n:]
		if wire == 0 {
			return num, wire, v, nil, b, nil
		}
		if v > uint64(len(b)) {
			return 0, 0, 0, nil, nil, malformed("field %d is cut off", num)
		}
		return num, wire, v, b[:v], b[v:], nil
	case 1, 5:
		n = 8
		if wire == 5 {
			n = 4
		}
		if len(b) < n {
			return 0, 0, 0, nil, nil, malformed("field %d is cut off", num)
		}
		return num, wire, 0, b[:n], b[n:], nil
	}
	return 0, 0, 0, nil, nil, malformed("wire type %d", wire)
}

// decodePB reads a dag-pb node. Both orders of links and data are read, since writers differ; links that
// are split by the data, repeated data and unknown fields are refused as the specification asks.
func decodePB(block []byte) (links []Link, data []byte, err error) {
	if len(block) > MaxBlock {
		return nil, nil, malformed("%d bytes, limit %d", len(block), MaxBlock)
	}
	count, hasData, afterData := 0, false, false
	for b := block; len(b) > 0; {
		num, wire, _, body, rest, err := field(b)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case num == 2 && wire == 2:
			if hasData && count > 0 && !afterData {
				return nil, nil, malformed("links on both sides of the data")
			}
			count++
		case num == 1 && wire == 2:
			if hasData {
				return nil, nil, malformed("data twice")
			}
			hasData, data, afterData = true, body, count == 0
		default:
			return nil, nil, malformed("unknown dag-pb field %d", num)
		}
		b = rest
	}
	if !hasData {
		return nil, nil, malformed("no UnixFS data")
	}
	links = make([]Link, 0, count)
	for b := block; len(b) > 0; {
		num, _, _, body, rest, _ := field(b)
		if num == 2 {
			l, err := decodeLink(body)
			if err != nil {
				return nil, nil, err
			}
			links = append(links, l)
		}
		b = rest
	}
	return links, data, nil
}

func decodeLink(b []byte) (l Link, err error) {
	last := uint64(0)
	for len(b) > 0 {
		num, wire, v, body, rest, err := field(b)
		if err != nil {
			return l, err
		}
		if num <= last {
			return l, malformed("link fields out of order")
		}
		last = num
		switch {
		case num == 1 && wire == 2:
			if l.CID, err = cid.Cast(body); err != nil {
				return l, malformed("link CID: %v", err)
			}
		case num == 2 && wire == 2:
			l.Name = string(body)
		case num == 3 && wire == 0:
			l.Tsize = v
		default:
			return l, malformed("unknown link field %d", num)
		}
		b = rest
	}
	if !l.CID.Defined() {
		return l, malformed("link without CID")
	}
	return l, nil
}
