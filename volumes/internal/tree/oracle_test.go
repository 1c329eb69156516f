package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	chunk "github.com/ipfs/boxo/chunker"
	mdag "github.com/ipfs/boxo/ipld/merkledag"
	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	ft "github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/volumes/internal/tree"
)

func TestMain(m *testing.M) {
	uio.UnixFS_v1_2025.ApplyGlobals() // process-wide: once, before any test
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// memory is a block map that is both a tree.Put and a tree.Get.
type memory struct {
	mu     sync.Mutex
	blocks map[cid.Cid][]byte
}

func newMemory() *memory { return &memory{blocks: map[cid.Cid][]byte{}} }

func (m *memory) put(c cid.Cid, data []byte, children []tree.Link) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range children {
		if _, ok := m.blocks[l.CID]; !ok && l.CID.Type() == cid.DagProtobuf {
			return errors.New("parent came before its child")
		}
	}
	m.blocks[c] = bytes.Clone(data)
	return nil
}

func (m *memory) get(_ context.Context, c cid.Cid) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.blocks[c]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("no block %s", c)
}

func (m *memory) readAt(ctx context.Context, c cid.Cid, p []byte, off int64) (int, error) {
	b, err := m.get(ctx, c)
	if err != nil {
		return 0, err
	}
	return bytes.NewReader(b).ReadAt(p, off)
}

func loader(get tree.Get) tree.Loader {
	return func(ctx context.Context, c cid.Cid) (*tree.Node, error) { return tree.Load(ctx, get, c) }
}

// oracle builds with the reference implementation.
type oracle struct{ dag ipld.DAGService }

func (o oracle) file(t testing.TB, r io.Reader) ipld.Node {
	params := helpers.DagBuilderParams{
		Dagserv: o.dag, Maxlinks: helpers.DefaultLinksPerBlock, RawLeaves: true,
		CidBuilder: uio.UnixFS_v1_2025.CidBuilder(),
	}
	db, err := params.New(chunk.NewSizeSplitter(r, chunk.DefaultBlockSize))
	if err != nil {
		t.Fatal(err)
	}
	n, err := balanced.Layout(db)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (o oracle) dir(t testing.TB, children map[string]ipld.Node) ipld.Node {
	d, err := uio.NewDirectory(o.dag, uio.WithCidBuilder(uio.UnixFS_v1_2025.CidBuilder()))
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range children {
		if err := d.AddChild(t.Context(), name, n); err != nil {
			t.Fatal(err)
		}
	}
	n, err := d.GetNode()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.dag.Add(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (o oracle) symlink(t testing.TB, target string) ipld.Node {
	data, err := ft.SymlinkData(target)
	if err != nil {
		t.Fatal(err)
	}
	n := mdag.NodeWithData(data)
	if err := n.SetCidBuilder(uio.UnixFS_v1_2025.CidBuilder()); err != nil {
		t.Fatal(err)
	}
	return n
}

// pattern is an endless reader of bytes that depend on the seed, so leaves differ.
type pattern struct{ *rand.ChaCha8 }

func content(seed byte, n int64) io.Reader {
	return io.LimitReader(pattern{rand.NewChaCha8([32]byte{seed})}, n)
}

func same(t *testing.T, what string, got tree.Ref, want ipld.Node) {
	t.Helper()
	if !got.CID.Equals(want.Cid()) {
		t.Fatalf("%s: CID %s, reference implementation says %s", what, got.CID, want.Cid())
	}
	size, err := want.Size()
	if err != nil || size != got.Tsize {
		t.Fatalf("%s: Tsize %d, reference implementation says %d (%v)", what, got.Tsize, size, err)
	}
}

func TestFileCIDsEqualReference(t *testing.T) {
	const mib = tree.LeafSize
	o, m := oracle{mdtest.Mock()}, newMemory()
	for i, size := range []int64{0, 1, 100, mib - 1, mib, mib + 1, 2 * mib, 5*mib + 17} {
		got, err := tree.File(t.Context(), content(byte(i), size), m.put)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprint(size, " bytes"), got, o.file(t, content(byte(i), size)))
		whole, err := io.ReadAll(content(byte(i), size))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := tree.Bytes(whole, m.put); err != nil || b != got {
			t.Fatalf("in memory: %+v, %v; streamed: %+v", b, err, got)
		}
		if got.Size != uint64(size) {
			t.Fatalf("size %d, want %d", got.Size, size)
		}
	}
}

// zeros is a file of one repeated leaf: more than 1,024 leaves without holding them.
func TestFilesAboveOneNodeEqualReference(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes 2 GiB twice")
	}
	for _, leaves := range []int64{1024, 1025} {
		size := leaves*tree.LeafSize - 5
		o := oracle{mdtest.Mock()}
		got, err := tree.File(t.Context(), io.LimitReader(zero{}, size), newMemory().put)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprint(leaves, " leaves"), got, o.file(t, io.LimitReader(zero{}, size)))
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func ref(n ipld.Node, size uint64) tree.Ref {
	ts, _ := n.Size()
	return tree.Ref{CID: n.Cid(), Size: size, Tsize: ts}
}

func TestDirectoryCIDsEqualReferenceAroundShardThreshold(t *testing.T) {
	o, m := oracle{mdtest.Mock()}, newMemory()
	leaf := o.file(t, strings.NewReader("x"))
	sharded := 0
	// A link of a one-byte leaf with a 9-byte name is 53 bytes: 256 KiB hold about 4,946 of them.
	for _, n := range []int{0, 1, 2, 255, 4900, 4944, 4945, 4946, 4947, 4948, 4949, 5000, 20000} {
		entries, nodes := []tree.Entry{}, map[string]ipld.Node{}
		for i := range n {
			name := fmt.Sprintf("name%05d", i)
			entries = append(entries, tree.Entry{Name: name, Ref: ref(leaf, 1)})
			nodes[name] = leaf
		}
		got, err := tree.Directory(entries, m.put)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprint(n, " entries"), got, o.dir(t, nodes))
		if got.Kind == tree.KindShard {
			sharded++
		}
		d, err := tree.Load(t.Context(), m.get, got.CID)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		if err := tree.Entries(t.Context(), m.get, d, func(l tree.Link) error { seen[l.Name] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		if len(seen) != n {
			t.Fatalf("%d entries listed, want %d", len(seen), n)
		}
		for name := range nodes {
			if l, err := tree.Lookup(t.Context(), m.get, d, name); err != nil || l.CID != leaf.Cid() {
				t.Fatalf("lookup %s: %v", name, err)
			}
		}
		if _, err := tree.Lookup(t.Context(), m.get, d, "absent"); !errors.Is(err, tree.ErrNoEntry) {
			t.Fatalf("lookup of an absent name: %v", err)
		}
	}
	if sharded < 2 || sharded == 13 {
		t.Fatalf("%d of the directories were sharded: the threshold was not crossed", sharded)
	}
}

func TestSymlinkCIDEqualsReference(t *testing.T) {
	got, err := tree.Symlink("../a/b", newMemory().put)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "symlink", got, oracle{mdtest.Mock()}.symlink(t, "../a/b"))
}

func TestRandomTreesEqualReference(t *testing.T) {
	names := []string{"a", "b.txt", "Ünïcödé", "日本語", "with space", "-dash", "emoji🙂", "%41", "A", "ÿ", ".hidden", strings.Repeat("n", 255)}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		o, m := oracle{mdtest.Mock()}, newMemory()
		var build func(depth int) (tree.Ref, ipld.Node)
		build = func(depth int) (tree.Ref, ipld.Node) {
			switch k := rng.IntN(10); {
			case depth > 0 && k < 4 || depth == 4:
				entries, nodes := []tree.Entry{}, map[string]ipld.Node{}
				for _, i := range rng.Perm(len(names))[:rng.IntN(len(names))] {
					r, n := build(depth - 1)
					entries = append(entries, tree.Entry{Name: names[i], Ref: r})
					nodes[names[i]] = n
				}
				r, err := tree.Directory(entries, m.put)
				if err != nil {
					t.Fatal(err)
				}
				return r, o.dir(t, nodes)
			case k == 9:
				r, err := tree.Symlink("a/b", m.put)
				if err != nil {
					t.Fatal(err)
				}
				return r, o.symlink(t, "a/b")
			default:
				size := []int64{0, 1, int64(rng.IntN(5000)), tree.LeafSize + int64(rng.IntN(3)) - 1}[min(rng.IntN(12), 3)%4]
				if rng.IntN(8) > 0 {
					size = int64(rng.IntN(3000))
				}
				s := byte(rng.IntN(256))
				r, err := tree.File(t.Context(), content(s, size), m.put)
				if err != nil {
					t.Fatal(err)
				}
				return r, o.file(t, content(s, size))
			}
		}
		r, n := build(4)
		same(t, fmt.Sprint("seed ", seed), r, n)
	}
}

func TestDirectoryOrderDoesNotMatter(t *testing.T) {
	m := newMemory()
	r, err := tree.Leaf([]byte("x"), m.put)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{50, 7000} {
		entries := make([]tree.Entry, n)
		for i := range entries {
			entries[i] = tree.Entry{Name: fmt.Sprintf("file-%d", i), Ref: r}
		}
		var first cid.Cid
		for i := range 4 {
			shuffled := slices.Clone(entries)
			rand.New(rand.NewPCG(uint64(i), 7)).Shuffle(n, func(a, b int) { shuffled[a], shuffled[b] = shuffled[b], shuffled[a] })
			d, err := tree.Directory(shuffled, m.put)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = d.CID
			} else if d.CID != first {
				t.Fatal("another order gave another CID")
			}
		}
	}
}

func TestReadAtEqualsContent(t *testing.T) {
	m := newMemory()
	size := int64(3*tree.LeafSize + 12345)
	want, _ := io.ReadAll(content(9, size))
	r, err := tree.File(t.Context(), bytes.NewReader(want), m.put)
	if err != nil {
		t.Fatal(err)
	}
	n, err := tree.Load(t.Context(), m.get, r.CID)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		off := rng.Int64N(size + 10)
		p := make([]byte, rng.IntN(2*tree.LeafSize))
		k, err := tree.ReadFileAt(t.Context(), loader(m.get), m.readAt, n, p, uint64(off))
		full := max(0, min(int64(len(p)), size-off))
		if int64(k) != full || (full < int64(len(p))) != errors.Is(err, io.EOF) {
			t.Fatalf("read %d at %d: %d bytes, %v", len(p), off, k, err)
		}
		if full > 0 && !bytes.Equal(p[:k], want[off:off+full]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
}

func TestReaderUnderstandsOtherProfiles(t *testing.T) {
	o := oracle{mdtest.Mock()}
	want, _ := io.ReadAll(content(3, 900000))
	params := helpers.DagBuilderParams{Dagserv: o.dag, Maxlinks: 3} // CIDv0, dag-pb leaves, four levels
	db, err := params.New(chunk.NewSizeSplitter(bytes.NewReader(want), 10000))
	if err != nil {
		t.Fatal(err)
	}
	root, err := balanced.Layout(db)
	if err != nil {
		t.Fatal(err)
	}
	get := func(ctx context.Context, c cid.Cid) ([]byte, error) {
		n, err := o.dag.Get(ctx, c)
		if err != nil {
			return nil, err
		}
		return n.RawData(), nil
	}
	n, err := tree.Load(t.Context(), get, root.Cid())
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+1)
	k, err := tree.ReadFileAt(t.Context(), loader(get), nil, n, got, 0)
	if k != len(want) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:k], want) {
		t.Fatalf("%d bytes, %v", k, err)
	}
}
