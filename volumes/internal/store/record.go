package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Digest is the SHA-256 of a block, its only name in the store.
type Digest [sha256.Size]byte

const (
	packMagic  = 0x6b706247 // "Gbpk", little-endian
	headerSize = 48
	// MaxBlock is the largest block in bytes: larger ones do not pass bitswap.
	MaxBlock = 2 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTorn means that bytes are no whole pack record: the tail that a crash left.
var errTorn = errors.New("store: torn record")

// header is what stands before a payload in a pack.
type header struct {
	length uint32
	digest Digest
	crc    uint32 // CRC32C of the payload
}

func (h header) encode(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], packMagic)
	binary.LittleEndian.PutUint32(b[4:], h.length)
	copy(b[8:40], h.digest[:])
	binary.LittleEndian.PutUint32(b[40:], h.crc)
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
}

func decodeHeader(b []byte) (h header, err error) {
	if len(b) < headerSize || binary.LittleEndian.Uint32(b) != packMagic ||
		binary.LittleEndian.Uint32(b[44:]) != crc32.Checksum(b[:44], castagnoli) {
		return h, errTorn
	}
	h = header{length: binary.LittleEndian.Uint32(b[4:]), digest: Digest(b[8:40]), crc: binary.LittleEndian.Uint32(b[40:])}
	if h.length > MaxBlock {
		return h, errTorn
	}
	return h, nil
}

// place says where a block lies: inline bytes, or a range of a pack.
type place struct {
	inline []byte
	packed bool
	pack   uint32
	offset uint64 // of the payload
	length uint32
	crc    uint32
}

// The first byte of an index value. 2 is kept for extents.
const (
	placeInline = 0
	placePack   = 1
)

func (p place) size() int {
	if p.packed {
		return int(p.length)
	}
	return len(p.inline)
}

func (p place) encode() []byte {
	if !p.packed {
		return append([]byte{placeInline}, p.inline...)
	}
	b := make([]byte, 21)
	b[0] = placePack
	binary.LittleEndian.PutUint32(b[1:], p.pack)
	binary.LittleEndian.PutUint64(b[5:], p.offset)
	binary.LittleEndian.PutUint32(b[13:], p.length)
	binary.LittleEndian.PutUint32(b[17:], p.crc)
	return b
}

// decodePlace reads an index value; inline bytes alias b.
func decodePlace(b []byte) (place, error) {
	switch {
	case len(b) >= 1 && b[0] == placeInline:
		return place{inline: b[1:]}, nil
	case len(b) == 21 && b[0] == placePack:
		p := place{
			packed: true, pack: binary.LittleEndian.Uint32(b[1:]), offset: binary.LittleEndian.Uint64(b[5:]),
			length: binary.LittleEndian.Uint32(b[13:]), crc: binary.LittleEndian.Uint32(b[17:]),
		}
		if p.length > MaxBlock {
			return p, ErrCorrupt
		}
		return p, nil
	}
	return place{}, ErrCorrupt
}

// Root is the record of a tree that is wholly here.
type Root struct {
	// Digest names the root block, Codec is its multicodec code.
	Digest Digest
	// Codec is 0x55 for raw and 0x70 for dag-pb.
	Codec uint64
	// Bytes is the content of all files in bytes.
	Bytes uint64
	// Blocks counts the distinct blocks.
	Blocks uint64
	// Files counts the files.
	Files uint64
	// Added is when the record was made, in Unix seconds.
	Added uint64
}

func (r Root) encode() []byte {
	b := make([]byte, 0, 32)
	for _, v := range []uint64{r.Codec, r.Bytes, r.Blocks, r.Files, r.Added} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func decodeRoot(d Digest, b []byte) (Root, error) {
	r := Root{Digest: d}
	for _, v := range []*uint64{&r.Codec, &r.Bytes, &r.Blocks, &r.Files, &r.Added} {
		x, n := binary.Uvarint(b)
		if n <= 0 {
			return r, ErrCorrupt
		}
		*v, b = x, b[n:]
	}
	return r, nil
}

// The first byte of an index key.
const (
	keyBlock  = 'b' // + digest → place
	keyParent = 'e' // + child + parent → nothing
	keyRoot   = 'r' // + digest → Root
	keyPin    = 'p' // + digest → nothing
	keyPack   = 'k' // + big-endian pack number → little-endian synced length
)

func key(kind byte, parts ...[]byte) []byte {
	b := make([]byte, 1, 65)
	b[0] = kind
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func packKey(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{keyPack}, n) }
