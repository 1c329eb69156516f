package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strconv"

	"github.com/ipfs/go-cid"
)

// ErrNoEntry means that a directory has no entry of the asked name.
var ErrNoEntry = errors.New("tree: no such entry")

// Get returns the bytes of a block.
type Get func(ctx context.Context, c cid.Cid) ([]byte, error)

// maxShardDepth bounds the depth of a HAMT: a hash has 64 bits and a shard eats at least three.
const maxShardDepth = 22

// maxFileDepth bounds the depth of a file: 1,024 links a level reach 8 TiB of 1 MiB leaves with three.
const maxFileDepth = 16

// Load reads and decodes one node.
func Load(ctx context.Context, get Get, c cid.Cid) (*Node, error) {
	if c.Type() != cid.Raw && c.Type() != cid.DagProtobuf {
		return nil, malformed("codec 0x%x is neither raw nor dag-pb", c.Type())
	}
	b, err := get(ctx, c)
	if err != nil {
		return nil, err
	}
	n, err := Decode(c, b)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", c, err)
	}
	return n, nil
}

// Entries lists a directory, plain or sharded, calling each with the name and link of every entry, in no
// set order. Names that could not stand (CheckName) make the whole directory ErrMalformed, so nothing
// that reads a directory can be led out of it.
func Entries(ctx context.Context, get Get, dir *Node, each func(Link) error) error {
	switch dir.Kind {
	case KindDirectory:
		for _, l := range dir.Links {
			if err := CheckName(l.Name); err != nil {
				return malformed("%v", err)
			}
			if err := each(l); err != nil {
				return err
			}
		}
		return nil
	case KindShard:
		return shardEntries(ctx, get, dir, maxShardDepth, each)
	}
	return malformed("kind %d is no directory", dir.Kind)
}

func shardEntries(ctx context.Context, get Get, dir *Node, depth int, each func(Link) error) error {
	if depth == 0 {
		return malformed("HAMT too deep")
	}
	pad := padLen(dir.Fanout)
	for _, l := range dir.Links {
		if len(l.Name) < pad {
			return malformed("HAMT link %q without slot", l.Name)
		}
		if len(l.Name) > pad {
			l.Name = l.Name[pad:]
			if err := CheckName(l.Name); err != nil {
				return malformed("%v", err)
			}
			if err := each(l); err != nil {
				return err
			}
			continue
		}
		sub, err := loadShard(ctx, get, l.CID)
		if err != nil {
			return err
		}
		if err := shardEntries(ctx, get, sub, depth-1, each); err != nil {
			return err
		}
	}
	return nil
}

func loadShard(ctx context.Context, get Get, c cid.Cid) (*Node, error) {
	n, err := Load(ctx, get, c)
	if err == nil && n.Kind != KindShard {
		return nil, malformed("HAMT child %s is no shard", c)
	}
	return n, err
}

// SubShards returns the links of a shard that lead to further shards, and those that are entries.
func SubShards(dir *Node) (shards, entries []Link) {
	pad := padLen(dir.Fanout)
	for _, l := range dir.Links {
		if len(l.Name) == pad {
			shards = append(shards, l)
		} else {
			entries = append(entries, l)
		}
	}
	return shards, entries
}

func padLen(fanout uint64) int { return len(strconv.FormatUint(fanout-1, 16)) }

// Lookup finds one name in a directory; it returns ErrNoEntry.
func Lookup(ctx context.Context, get Get, dir *Node, name string) (Link, error) {
	if err := CheckName(name); err != nil {
		return Link{}, ErrNoEntry
	}
	switch dir.Kind {
	case KindDirectory:
		for _, l := range dir.Links {
			if l.Name == name {
				return l, nil
			}
		}
		return Link{}, ErrNoEntry
	case KindShard:
		return lookupShard(ctx, get, dir, name)
	}
	return Link{}, malformed("kind %d is no directory", dir.Kind)
}

func lookupShard(ctx context.Context, get Get, dir *Node, name string) (Link, error) {
	hash := hashName(name)
	v := uint64(0)
	for _, b := range hash {
		v = v<<8 | uint64(b)
	}
	for used := 0; ; {
		width := bits.TrailingZeros64(dir.Fanout)
		if used+width > 64 {
			return Link{}, malformed("HAMT too deep")
		}
		slot := v << used >> (64 - width)
		used += width
		prefix := fmt.Sprintf("%0*X", padLen(dir.Fanout), slot)
		var next *Link
		for i, l := range dir.Links {
			if l.Name == prefix+name {
				return l.named(name), nil
			}
			if l.Name == prefix {
				next = &dir.Links[i]
			}
		}
		if next == nil {
			return Link{}, ErrNoEntry
		}
		var err error
		if dir, err = loadShard(ctx, get, next.CID); err != nil {
			return Link{}, err
		}
	}
}

func (l Link) named(name string) Link { l.Name = name; return l }

// ReadAt returns part of a block: it fills p from offset off of the block named c, and may return less
// with io.EOF at the block's end.
type ReadAt func(ctx context.Context, c cid.Cid, p []byte, off int64) (int, error)

// Loader returns the decoded node of a file part that is no raw leaf; it may keep the last ones.
type Loader func(ctx context.Context, c cid.Cid) (*Node, error)

// ReadFileAt fills p from offset off of the file n. It loads only nodes on the way and reads only the
// touched part of raw leaves. It returns io.EOF when the file ends before p is full.
func ReadFileAt(ctx context.Context, load Loader, leaf ReadAt, n *Node, p []byte, off uint64) (int, error) {
	if !n.Kind.IsFile() {
		return 0, malformed("kind %d is no file", n.Kind)
	}
	if off >= n.Size {
		return 0, io.EOF
	}
	want := len(p)
	if rest := n.Size - off; uint64(want) > rest {
		p = p[:rest]
	}
	done, err := readNode(ctx, load, leaf, n, p, off, maxFileDepth)
	if err == nil && done < want {
		err = io.EOF
	}
	return done, err
}

func readNode(ctx context.Context, load Loader, leaf ReadAt, n *Node, p []byte, off uint64, depth int) (int, error) {
	if depth == 0 {
		return 0, malformed("file too deep")
	}
	done := 0
	if off < uint64(len(n.Data)) {
		done = copy(p, n.Data[off:])
	}
	at := uint64(len(n.Data)) // content offset where the next child begins
	for i := 0; i < len(n.Links) && done < len(p); i++ {
		size := n.BlockSizes[i]
		pos := off + uint64(done)
		if pos >= at+size {
			at += size
			continue
		}
		part := p[done:]
		part = part[:min(uint64(len(part)), at+size-pos)]
		k, err := readChild(ctx, load, leaf, n.Links[i].CID, size, part, pos-at, depth)
		done += k
		if err != nil {
			return done, err
		}
		at += size
	}
	if done < len(p) {
		return done, io.ErrUnexpectedEOF
	}
	return done, nil
}

func readChild(ctx context.Context, load Loader, leaf ReadAt, c cid.Cid, size uint64, p []byte, off uint64, depth int) (int, error) {
	if c.Type() == cid.Raw {
		k, err := leaf(ctx, c, p, int64(off))
		if k == len(p) {
			err = nil
		} else if errors.Is(err, io.EOF) {
			err = malformed("leaf %s is shorter than its file says", c)
		}
		return k, err
	}
	n, err := load(ctx, c)
	if err != nil {
		return 0, err
	}
	if !n.Kind.IsFile() || n.Size != size {
		return 0, malformed("block %s is no file part of %d bytes", c, size)
	}
	return readNode(ctx, load, leaf, n, p, off, depth-1)
}
