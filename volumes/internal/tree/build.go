package tree

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/spaolacci/murmur3"
)

// The parameters of profile unixfs-v1-2025 (IPIP-499).
const (
	// LeafSize is the content of a leaf in bytes.
	LeafSize = 1 << 20
	// FileWidth is the most links of a file node.
	FileWidth = 1024
	// shardAbove is the block size in bytes above which a directory becomes a HAMT.
	shardAbove = 256 << 10
	// shardWidth is the fanout of a HAMT.
	shardWidth = 256
	// MaxName is the longest name of an entry in bytes.
	MaxName = 255
)

// ErrBadName means that a name cannot stand in a directory.
var ErrBadName = errors.New("tree: name cannot stand in a directory")

// Put takes a finished block: its CID, its bytes and the CIDs of its children. It must not keep data or
// children after it returns, and it may be called from several goroutines; children come before parents.
type Put func(c cid.Cid, data []byte, children []Link) error

// Ref names a finished node.
type Ref struct {
	// CID is the node's content address.
	CID cid.Cid
	// Kind is what it is.
	Kind Kind
	// Size is the content in bytes of a file, 0 for others.
	Size uint64
	// Tsize is the size in bytes of all its blocks, counting repeated ones.
	Tsize uint64
}

// Entry is a named node in a directory.
type Entry struct {
	Ref
	// Name is its name, unique in the directory.
	Name string
}

// CheckName returns ErrBadName for a name that is empty, ".", "..", longer than MaxName, no UTF-8, or that
// holds a slash or a zero byte.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName || strings.ContainsAny(name, "/\x00") || !utf8.ValidString(name) {
		return fmt.Errorf("%w: %q", ErrBadName, name)
	}
	return nil
}

func sum(codec uint64, data []byte) cid.Cid {
	digest := sha256.Sum256(data)
	h := make([]byte, 0, 34)
	h = append(h, mh.SHA2_256, 32)
	return cid.NewCidV1(codec, append(h, digest[:]...))
}

var leaves = sync.Pool{New: func() any { b := make([]byte, LeafSize); return &b }}

// File cuts r into a file's blocks and puts them. Leaves are hashed on up to GOMAXPROCS cores.
func File(ctx context.Context, r io.Reader, put Put) (Ref, error) {
	first := leaves.Get().(*[]byte)
	n, err := fill(r, *first)
	if errors.Is(err, io.EOF) { // the usual case: one leaf, no goroutine
		defer leaves.Put(first)
		return Leaf((*first)[:n], put)
	}
	h := leafHasher{put: put, slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
	for i, buf := 0, first; ; i, buf = i+1, leaves.Get().(*[]byte) {
		if i > 0 { // the first leaf is read already; its buffer may come round again
			n, err = fill(r, *buf)
		}
		if n == 0 || (err != nil && !errors.Is(err, io.EOF)) || ctx.Err() != nil || h.failed() != nil {
			leaves.Put(buf)
			break
		}
		h.add(buf, n)
	}
	h.wg.Wait()
	if err != nil && !errors.Is(err, io.EOF) {
		return Ref{}, err
	}
	if err := cmp.Or(h.failed(), ctx.Err()); err != nil {
		return Ref{}, err
	}
	return balance(h.refs, put)
}

// fill reads until buf is full or r ends, which is io.EOF. A reader's own io.ErrUnexpectedEOF says that something is
// missing, and stays an error; io.ReadFull would make the same of both.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	if n == len(buf) {
		err = nil // it comes again with the next read
	}
	return n, err
}

// leafHasher hashes and puts leaves side by side, keeping their order in refs.
type leafHasher struct {
	put   Put
	slots chan struct{} // one for each core: bounds goroutines and buffers
	wg    sync.WaitGroup
	mu    sync.Mutex
	refs  []Ref
	fail  error
}

func (h *leafHasher) failed() error { h.mu.Lock(); defer h.mu.Unlock(); return h.fail }

func (h *leafHasher) add(buf *[]byte, n int) {
	h.slots <- struct{}{}
	h.mu.Lock()
	i := len(h.refs)
	h.refs = append(h.refs, Ref{})
	h.mu.Unlock()
	h.wg.Go(func() {
		defer func() { leaves.Put(buf); <-h.slots }()
		ref, err := Leaf((*buf)[:n], h.put)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.refs[i], h.fail = ref, cmp.Or(h.fail, err)
	})
}

// Bytes puts the blocks of a file that is in memory; put may keep its leaves as long as data stays as it is.
func Bytes(data []byte, put Put) (Ref, error) {
	if len(data) <= LeafSize {
		return Leaf(data, put)
	}
	refs := make([]Ref, 0, (len(data)+LeafSize-1)/LeafSize)
	for chunk := range slices.Chunk(data, LeafSize) {
		ref, err := Leaf(chunk, put)
		if err != nil {
			return Ref{}, err
		}
		refs = append(refs, ref)
	}
	return balance(refs, put)
}

func balance(refs []Ref, put Put) (Ref, error) {
	for len(refs) > 1 {
		up := make([]Ref, 0, (len(refs)+FileWidth-1)/FileWidth)
		for group := range slices.Chunk(refs, FileWidth) {
			ref, err := fileNode(group, put)
			if err != nil {
				return Ref{}, err
			}
			up = append(up, ref)
		}
		refs = up
	}
	return refs[0], nil
}

// Leaf puts one raw leaf of at most LeafSize bytes.
func Leaf(data []byte, put Put) (Ref, error) {
	c := sum(cid.Raw, data)
	return Ref{CID: c, Kind: KindRaw, Size: uint64(len(data)), Tsize: uint64(len(data))}, put(c, data, nil)
}

func fileNode(children []Ref, put Put) (Ref, error) {
	links, sizes, size := make([]Link, len(children)), make([]uint64, len(children)), uint64(0)
	for i, ch := range children {
		links[i] = Link{CID: ch.CID, Tsize: ch.Tsize}
		sizes[i] = ch.Size
		size += ch.Size
	}
	ref, err := putNode(KindFile, links, encodeData(KindFile, nil, size, sizes, 0), put)
	ref.Size = size
	return ref, err
}

func putNode(k Kind, links []Link, data []byte, put Put) (Ref, error) {
	block := encodePB(links, data)
	ref := Ref{CID: sum(cid.DagProtobuf, block), Kind: k, Tsize: uint64(len(block))}
	for _, l := range links {
		ref.Tsize += l.Tsize
	}
	return ref, put(ref.CID, block, links)
}

// Symlink puts a symbolic link to target.
func Symlink(target string, put Put) (Ref, error) {
	return putNode(KindSymlink, nil, encodeData(KindSymlink, []byte(target), 0, nil, 0), put)
}

// Directory puts a directory of the entries, in any order; it returns ErrBadName for names that cannot
// stand and for a name that stands twice. It sorts entries.
func Directory(entries []Entry, put Put) (Ref, error) {
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	data := encodeData(KindDirectory, nil, 0, nil, 0)
	size := 1 + sizeUvarint(uint64(len(data))) + len(data)
	links := make([]Link, len(entries))
	for i, e := range entries {
		if err := CheckName(e.Name); err != nil {
			return Ref{}, err
		}
		if i > 0 && e.Name == entries[i-1].Name {
			return Ref{}, fmt.Errorf("%w: %q stands twice", ErrBadName, e.Name)
		}
		links[i] = Link{CID: e.CID, Name: e.Name, Tsize: e.Tsize}
		size += sizeLink(links[i])
	}
	if size <= shardAbove {
		return putNode(KindDirectory, links, data, put)
	}
	values := make([]hashed, len(links))
	for i, l := range links {
		values[i] = hashed{hash: hashName(l.Name), link: l}
	}
	slices.SortFunc(values, func(a, b hashed) int { return slices.Compare(a.hash[:], b.hash[:]) })
	return shard(values, 0, put)
}

type hashed struct {
	hash [8]byte
	link Link
}

func hashName(name string) (h [8]byte) {
	v := murmur3.Sum64([]byte(name))
	for i := range h {
		h[i] = byte(v >> (56 - 8*i))
	}
	return h
}

const upperHex = "0123456789ABCDEF"

// shard writes one HAMT node over values sorted by hash, which agree in their first depth bytes.
func shard(values []hashed, depth int, put Put) (Ref, error) {
	if depth == len(hashed{}.hash) {
		return Ref{}, fmt.Errorf("%w: %q and %q have one hash", ErrBadName, values[0].link.Name, values[1].link.Name)
	}
	var bits [shardWidth / 8]byte
	links := make([]Link, 0, min(len(values), shardWidth))
	for len(values) > 0 {
		slot := values[0].hash[depth]
		n := 1
		for n < len(values) && values[n].hash[depth] == slot {
			n++
		}
		prefix := string([]byte{upperHex[slot>>4], upperHex[slot&15]})
		l := values[0].link
		if n == 1 {
			l.Name = prefix + l.Name
		} else {
			ref, err := shard(values[:n], depth+1, put)
			if err != nil {
				return Ref{}, err
			}
			l = Link{CID: ref.CID, Name: prefix, Tsize: ref.Tsize}
		}
		links = append(links, l)
		bits[len(bits)-1-int(slot)/8] |= 1 << (slot % 8)
		values = values[n:]
	}
	field := bits[:]
	for len(field) > 0 && field[0] == 0 {
		field = field[1:]
	}
	return putNode(KindShard, links, encodeData(KindShard, field, 0, nil, shardWidth), put)
}
