package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

// The frozen CIDs of profile unixfs-v1-2025: they must never change.
func TestGoldenCIDs(t *testing.T) {
	m := newMemory()
	file := func(s string) tree.Ref {
		r, err := tree.File(t.Context(), strings.NewReader(s), m.put)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	dir := func(es ...tree.Entry) tree.Ref {
		r, err := tree.Directory(es, m.put)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	var many []tree.Entry
	for i := range 6000 {
		many = append(many, tree.Entry{Name: fmt.Sprintf("%06d.json", i), Ref: file("{}")})
	}
	for _, c := range []struct {
		what, want string
		ref        tree.Ref
	}{
		{"empty file", "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", file("")},
		{"empty directory", "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354", dir()},
		{"hello", "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am", file("hello\n")},
		{"two leaves", "bafybeia3bxowsqxj53v3al3crfrn5awmh3hvanwtrlmfaqbkqtvixxusfa", file(strings.Repeat("a", tree.LeafSize+1))},
		{"directory", "bafybeih4w37sdy3shm64jhk74qajvnbxfrfcl4xuizl3r5cmj5on5w3xla", dir(tree.Entry{Name: "b", Ref: file("")}, tree.Entry{Name: "a", Ref: dir()})},
		{"HAMT", "bafybeiblqeclap2p6pg2wmufqqfrk3ifp2lrxjvrethcr4ity4lllzakem", dir(many...)},
	} {
		if got := c.ref.CID.String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	m := newMemory()
	r, err := tree.Leaf(nil, m.put)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00", "\xff", strings.Repeat("n", 256)} {
		if _, err := tree.Directory([]tree.Entry{{Name: name, Ref: r}}, m.put); !errors.Is(err, tree.ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
		// The same name in a block that somebody else wrote must not be listed either.
		n := &tree.Node{Kind: tree.KindDirectory, Links: []tree.Link{{CID: r.CID, Name: name}}}
		if err := tree.Entries(t.Context(), m.get, n, func(tree.Link) error { return nil }); !errors.Is(err, tree.ErrMalformed) {
			t.Errorf("listing %q: %v", name, err)
		}
	}
	if _, err := tree.Directory([]tree.Entry{{Name: "a", Ref: r}, {Name: "a", Ref: r}}, m.put); !errors.Is(err, tree.ErrBadName) {
		t.Errorf("a name twice: %v", err)
	}
}

func TestShardLoopEnds(t *testing.T) {
	// A shard that names itself cannot be built with real hashes, but a Get may lie: depth has to stop it.
	c, _ := cid.Decode("bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354")
	loop := &tree.Node{Kind: tree.KindShard, Fanout: 256, Links: []tree.Link{{CID: c, Name: "00"}}, Data: []byte{1}}
	m := newMemory()
	m.blocks[c] = shardBlock(t, c)
	if err := tree.Entries(t.Context(), m.get, loop, func(tree.Link) error { return nil }); !errors.Is(err, tree.ErrMalformed) {
		t.Fatalf("endless shard: %v", err)
	}
}

// shardBlock is a HAMT shard whose slot 00 leads to c.
func shardBlock(t *testing.T, c cid.Cid) []byte {
	t.Helper()
	link := append([]byte{0x0a, byte(c.ByteLen())}, c.Bytes()...)
	link = append(link, 0x12, 2, '0', '0', 0x18, 0)
	data := []byte{0x08, 5, 0x12, 1, 1, 0x28, 0x22, 0x30, 0x80, 0x02}
	b := append([]byte{0x12, byte(len(link))}, link...)
	b = append(b, 0x0a, byte(len(data)))
	return append(b, data...)
}

func FuzzDecode(f *testing.F) {
	m := newMemory()
	a, _ := tree.File(context.Background(), strings.NewReader("hello"), m.put)
	_, _ = tree.File(context.Background(), bytes.NewReader(make([]byte, 3<<20)), m.put)
	_, _ = tree.Directory([]tree.Entry{{Name: "a", Ref: a}, {Name: "b", Ref: a}}, m.put)
	_, _ = tree.Symlink("x", m.put)
	var many []tree.Entry
	for i := range 6000 {
		many = append(many, tree.Entry{Name: fmt.Sprint(i, strings.Repeat("x", 20)), Ref: a})
	}
	_, _ = tree.Directory(many, m.put)
	for c, b := range m.blocks {
		if c.Type() == cid.DagProtobuf && len(b) < 4096 {
			f.Add(b)
		}
	}
	pb := cid.NewCidV1(cid.DagProtobuf, a.CID.Hash())
	get := func(context.Context, cid.Cid) ([]byte, error) { return nil, errors.New("absent") }
	leaf := func(context.Context, cid.Cid, []byte, int64) (int, error) { return 0, errors.New("absent") }
	f.Fuzz(func(t *testing.T, block []byte) {
		n, err := tree.Decode(pb, block)
		if err != nil {
			if !errors.Is(err, tree.ErrMalformed) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		if len(n.Links)*4 > len(block) || len(n.Data) > len(block) {
			t.Fatal("node larger than its block")
		}
		if n.Kind.IsDir() {
			_ = tree.Entries(context.Background(), get, n, func(l tree.Link) error { return tree.CheckName(l.Name) })
			_, _ = tree.Lookup(context.Background(), get, n, "name")
		}
		if n.Kind.IsFile() {
			_, _ = tree.ReadFileAt(context.Background(), loader(get), leaf, n, make([]byte, 64), n.Size/2)
		}
	})
}
