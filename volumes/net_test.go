package volumes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/gridbeam/gridbeam/volumes"
)

func newHost(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(),
		libp2p.DisableIdentifyAddressDiscovery(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

func netConfig() volumes.NetConfig {
	cfg := volumes.DefaultNetConfig()
	cfg.Grace, cfg.AuthTTL = 0, 0
	return cfg
}

// serve runs a Net until the test ends.
func serve(t testing.TB, s *volumes.Store, h host.Host, cfg volumes.NetConfig, auth volumes.Authorizer, router volumes.ContentRouter) *volumes.Net {
	t.Helper()
	n, err := s.Serve(cfg, h, auth, router)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

type member struct {
	*volumes.Store
	host host.Host
	net  *volumes.Net
}

func newMember(t testing.TB, auth volumes.Authorizer) member {
	t.Helper()
	m := member{Store: open(t), host: newHost(t)}
	m.net = serve(t, m.Store, m.host, netConfig(), auth, nil)
	return m
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestFetchFromOneHolder(t *testing.T) {
	a, b := newMember(t, nil), newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	var seen uint64
	stats, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, func(_, n uint64) { seen = n })
	if err != nil {
		t.Fatal(err)
	}
	wire := tr.Blocks - 1 // the leaf of the empty file never travels
	if stats.Tree != tr || stats.Blocks != wire || stats.Bytes != seen || stats.PerPeer[a.host.ID()].Blocks != wire {
		t.Fatalf("stats %+v, progress %d bytes, tree %+v", stats, seen, tr)
	}
	sameFiles(t, contents(t, b.Store, tr.Root), regular(sample()))
	again, err := b.net.Fetch(deadline(t), tr.Root, nil, nil)
	if err != nil || again.Blocks != 0 || again.Tree != tr {
		t.Fatalf("second fetch brought %+v, %v", again, err)
	}
}

func TestFetchFromSeveralHoldersAtOnce(t *testing.T) {
	a, b, c := newMember(t, nil), newMember(t, nil), newMember(t, nil)
	m := fstest.MapFS{}
	for i := range 40 {
		m[fmt.Sprintf("d%d/f%d", i%4, i)] = &fstest.MapFile{Data: bytesOf(i, 1<<20+i)}
	}
	tr := importFS(t, a.Store, m)
	if other := importFS(t, b.Store, m); other != tr {
		t.Fatal("two imports differ")
	}
	stats, err := c.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host), info(b.host)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := uint64(0)
	for _, h := range []member{a, b} {
		p := stats.PerPeer[h.host.ID()]
		if p.Blocks == 0 {
			t.Errorf("holder %s delivered nothing: %+v", h.host.ID(), stats)
		}
		sum += p.Blocks
	}
	if sum != tr.Blocks {
		t.Errorf("%d blocks by peer, want %d", sum, tr.Blocks)
	}
	sameFiles(t, contents(t, c.Store, tr.Root), regular(m))
}

func TestFetchGoesOnWhereItStopped(t *testing.T) {
	a, b := newMember(t, nil), newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	half, empty := 0, 1 // the leaf of the empty file never travels
	var blocks []volumes.Block
	for blk, err := range a.Blocks(tr.Root) {
		if err != nil {
			t.Fatal(err)
		}
		if half++; half%2 == 0 {
			blocks = append(blocks, blk)
			if len(blk.Data) == 0 {
				empty = 0
			}
		}
	}
	if err := b.PutBlocks(t.Context(), blocks); err != nil {
		t.Fatal(err)
	}
	stats, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, nil)
	if err != nil || stats.Blocks != tr.Blocks-uint64(len(blocks)+empty) || stats.Tree != tr {
		t.Fatalf("%+v, %v", stats, err)
	}
}

func TestFetchOfShardedTreeAboveOneWindow(t *testing.T) {
	a, b := newMember(t, nil), newMember(t, nil)
	files := map[string]string{}
	for i := range 8000 {
		files[fmt.Sprintf("%05d", i)] = fmt.Sprint("file ", i)
	}
	tr := add(t, a.Store, files)
	stats, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, nil)
	if err != nil || stats.Tree != tr {
		t.Fatalf("%+v, %v", stats.Tree, err)
	}
}

func TestUnavailableTreeNamesHoldersAndBlock(t *testing.T) {
	a := newMember(t, nil)
	b := member{Store: open(t), host: newHost(t)}
	cfg := netConfig()
	cfg.Stall = 300 * time.Millisecond
	b.net = serve(t, b.Store, b.host, cfg, nil, nil)
	tr := add(t, open(t), map[string]string{"x": "nobody has it"})
	_, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, nil)
	if !errors.Is(err, volumes.ErrUnavailable) || !strings.Contains(err.Error(), a.host.ID().String()) || !strings.Contains(err.Error(), tr.Root.String()) {
		t.Fatalf("absent tree: %v", err)
	}
	gone := newHost(t)
	at := info(gone)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{at}, nil); !errors.Is(err, volumes.ErrUnavailable) || !strings.Contains(err.Error(), at.ID.String()) {
		t.Fatalf("unreachable holder: %v", err)
	}
}

// only admits one peer to one root.
type only struct {
	mu   sync.Mutex
	peer peer.ID
	root cid.Cid
}

func (o *only) MayRead(p peer.ID, root cid.Cid) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return p == o.peer && root == o.root
}

func TestDeniedLooksAbsent(t *testing.T) {
	auth := &only{}
	a := newMember(t, auth)
	open1 := add(t, a.Store, map[string]string{"dir/public": string(bytesOf(1, 2<<20)), "both": "x"})
	secret := add(t, a.Store, map[string]string{"dir/secret": "s", "both": "x"})
	b := member{Store: open(t), host: newHost(t)}
	cfg := netConfig()
	cfg.Stall = 300 * time.Millisecond
	b.net = serve(t, b.Store, b.host, cfg, nil, nil)
	auth.mu.Lock()
	auth.peer, auth.root = b.host.ID(), open1.Root
	auth.mu.Unlock()
	if _, err := b.net.Fetch(deadline(t), open1.Root, []peer.AddrInfo{info(a.host)}, nil); err != nil {
		t.Fatalf("admitted tree: %v", err)
	}
	stats, err := b.net.Fetch(deadline(t), secret.Root, []peer.AddrInfo{info(a.host)}, nil)
	if !errors.Is(err, volumes.ErrUnavailable) || stats.Blocks != 0 {
		t.Fatalf("denied tree: %+v, %v", stats, err)
	}
	stranger := member{Store: open(t), host: newHost(t)}
	stranger.net = serve(t, stranger.Store, stranger.host, cfg, nil, nil)
	if stats, err := stranger.net.Fetch(deadline(t), open1.Root, []peer.AddrInfo{info(a.host)}, nil); !errors.Is(err, volumes.ErrUnavailable) || stats.Blocks != 0 {
		t.Fatalf("stranger: %+v, %v", stats, err)
	}
}

// liar is a host that speaks bitswap, claims to have everything and answers each want with wrong bytes.
func liar(t *testing.T) host.Host {
	h := newHost(t)
	h.SetStreamHandler("/ipfs/bitswap/1.2.0", func(s network.Stream) {
		defer s.Close()
		r := msgio.NewVarintReaderSize(s, 1<<20)
		for {
			msg, err := r.ReadMsg()
			if err != nil {
				return
			}
			answer := lies(msg)
			r.ReleaseMsg(msg)
			if answer == nil {
				continue
			}
			out, err := h.NewStream(context.Background(), s.Conn().RemotePeer(), "/ipfs/bitswap/1.2.0")
			if err != nil {
				return
			}
			_ = msgio.NewVarintWriter(out).WriteMsg(answer)
			_ = out.Close()
		}
	})
	return h
}

// lies answers a bitswap message: for each wanted CID a block of wrong bytes, or "have it" if only that was
// asked. Field numbers are those of the bitswap 1.2.0 message.
func lies(msg []byte) (answer []byte) {
	for _, list := range fields(msg, 1) {
		for _, e := range fields(list, 1) {
			for _, c := range fields(e, 1) {
				id, err := cid.Cast(c)
				if err != nil {
					continue
				}
				if haveOnly(e) {
					var presence []byte
					presence = protowire.AppendTag(presence, 1, protowire.BytesType)
					presence = protowire.AppendBytes(presence, c)
					answer = protowire.AppendTag(answer, 4, protowire.BytesType)
					answer = protowire.AppendBytes(answer, presence)
					continue
				}
				var block []byte
				block = protowire.AppendTag(block, 1, protowire.BytesType)
				block = protowire.AppendBytes(block, id.Prefix().Bytes())
				block = protowire.AppendTag(block, 2, protowire.BytesType)
				block = protowire.AppendBytes(block, []byte("wrong bytes"))
				answer = protowire.AppendTag(answer, 3, protowire.BytesType)
				answer = protowire.AppendBytes(answer, block)
			}
		}
	}
	return answer
}

func fields(msg []byte, want protowire.Number) (out [][]byte) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return out
		}
		msg = msg[n:]
		if typ == protowire.BytesType {
			v, k := protowire.ConsumeBytes(msg)
			if k < 0 {
				return out
			}
			if num == want {
				out = append(out, v)
			}
			msg = msg[k:]
			continue
		}
		k := protowire.ConsumeFieldValue(num, typ, msg)
		if k < 0 {
			return out
		}
		msg = msg[k:]
	}
	return out
}

// haveOnly reports wantType = Have (field 4) of a wantlist entry.
func haveOnly(entry []byte) bool {
	for len(entry) > 0 {
		num, typ, n := protowire.ConsumeTag(entry)
		if n < 0 {
			return false
		}
		entry = entry[n:]
		if num == 4 && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(entry)
			return v == 1
		}
		k := protowire.ConsumeFieldValue(num, typ, entry)
		if k < 0 {
			return false
		}
		entry = entry[k:]
	}
	return false
}

func TestPeerThatServesWrongBytesIsNamedAndItsBytesNeverStored(t *testing.T) {
	honest, bad := newMember(t, nil), liar(t)
	m := fstest.MapFS{}
	for i := range 20 {
		m[fmt.Sprint(i)] = &fstest.MapFile{Data: bytesOf(i, 300000)}
	}
	tr := importFS(t, honest.Store, m)
	b := member{Store: open(t), host: newHost(t)}
	evidence := make(chan volumes.Evidence, 100)
	cfg := netConfig()
	cfg.Evidence = func(e volumes.Evidence) { evidence <- e }
	b.net = serve(t, b.Store, b.host, cfg, nil, nil)
	// First the liar alone: it has to be named, and nothing of it may be kept.
	ctx, cancel := context.WithCancel(deadline(t))
	failed := make(chan error, 1)
	go func() {
		_, err := b.net.Fetch(ctx, tr.Root, []peer.AddrInfo{info(bad)}, nil)
		failed <- err
	}()
	select {
	case e := <-evidence:
		if e.Peer != bad.ID() || e.Bytes != len("wrong bytes") || e.Got.Equals(tr.Root) {
			t.Fatalf("evidence %+v", e)
		}
	case <-ctx.Done():
		t.Fatal("the liar was not named")
	}
	cancel()
	if err := <-failed; err == nil {
		t.Fatal("a fetch from a liar succeeded")
	}
	if _, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(bad)}, nil); !errors.Is(err, volumes.ErrUnavailable) || !strings.Contains(err.Error(), "wrong bytes") {
		t.Fatalf("the liar is asked again: %v", err)
	}
	// Then both: the honest one delivers everything.
	stats, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(bad), info(honest.host)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.PerPeer) != 1 || stats.PerPeer[honest.host.ID()].Blocks != tr.Blocks {
		t.Fatalf("stats %+v", stats)
	}
	for blk, err := range b.Blocks(tr.Root) {
		if err != nil || bytes.Equal(blk.Data, []byte("wrong bytes")) {
			t.Fatalf("block %s: %v", blk.CID, err)
		}
	}
	sameFiles(t, contents(t, b.Store, tr.Root), regular(m))
}

func TestLiarBesideAnHonestHolderDoesNotStopAFetch(t *testing.T) {
	honest, bad, b := newMember(t, nil), liar(t), newMember(t, nil)
	tr := importFS(t, honest.Store, sample())
	stats, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(bad), info(honest.host)}, nil)
	if err != nil || stats.PerPeer[bad.ID()].Blocks != 0 {
		t.Fatalf("%+v, %v", stats, err)
	}
	sameFiles(t, contents(t, b.Store, tr.Root), regular(sample()))
}

func TestFSFetchesWhatIsMissing(t *testing.T) {
	a, b := newMember(t, nil), newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	if err := b.host.Connect(t.Context(), info(a.host)); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, contents(t, b.Store, tr.Root), regular(sample()))
}

func TestFSWithoutHolderGivesUpAtItsDeadline(t *testing.T) {
	a := newMember(t, nil)
	cfg := config(t.TempDir())
	cfg.ReadTimeout = 200 * time.Millisecond
	s, err := volumes.Open(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	serve(t, s, newHost(t), netConfig(), nil, nil)
	tr := importFS(t, a.Store, sample())
	for blk, err := range a.Blocks(tr.Root) { // only the root directory
		if err != nil {
			t.Fatal(err)
		}
		if err := s.PutBlocks(t.Context(), []volumes.Block{blk}); err != nil {
			t.Fatal(err)
		}
		break
	}
	// Run may not have begun yet; until it has, the error is that the Net is closed.
	fsys, err := s.FS(tr.Root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.ReadFile(fsys, "hello.txt"); !errors.Is(err, volumes.ErrUnavailable) && !errors.Is(err, volumes.ErrNotFound) {
		t.Fatalf("read without holder: %v", err)
	}
}

// book is a ContentRouter of one entry.
type book struct{ holder peer.AddrInfo }

func (b book) FindProviders(_ context.Context, _ cid.Cid, limit int) ([]peer.AddrInfo, error) {
	if limit < 1 {
		return nil, errors.New("no limit")
	}
	return []peer.AddrInfo{b.holder}, nil
}

func TestRouterFindsHoldersThatNobodyNamed(t *testing.T) {
	a := newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	b := member{Store: open(t), host: newHost(t)}
	b.net = serve(t, b.Store, b.host, netConfig(), nil, book{info(a.host)})
	if stats, err := b.net.Fetch(deadline(t), tr.Root, nil, nil); err != nil || stats.Tree != tr {
		t.Fatalf("%+v, %v", stats, err)
	}
}

func TestHolderThatGetsTheTreeLaterServesIt(t *testing.T) {
	a, b, c := newMember(t, nil), newMember(t, nil), newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	done := make(chan error, 1)
	go func() { // b waits for c, who gets it from a
		_, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(c.host)}, nil)
		done <- err
	}()
	if _, err := c.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOneStoreHasOneRunningNet(t *testing.T) {
	a := newMember(t, nil)
	tr := importFS(t, a.Store, sample())
	b := newMember(t, nil)
	if _, err := b.net.Fetch(deadline(t), tr.Root, []peer.AddrInfo{info(a.host)}, nil); err != nil {
		t.Fatal(err)
	}
	second, err := a.Serve(netConfig(), newHost(t), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, volumes.ErrConflict) {
		t.Fatalf("second run: %v", err)
	}
	if got := slices.Collect(func(yield func(string) bool) {
		for _, p := range a.host.Mux().Protocols() {
			if strings.HasPrefix(string(p), "/ipfs/bitswap") && !yield(string(p)) {
				return
			}
		}
	}); len(got) == 0 {
		t.Fatal("the host does not speak IPFS's bitswap")
	}
}

func BenchmarkFetch64MiBOverLoopback(b *testing.B) {
	b.SetBytes(64 << 20)
	a := newMember(b, nil)
	tr := importFS(b, a.Store, fstest.MapFS{"f": {Data: bytesOf(1, 64<<20)}})
	for b.Loop() {
		b.StopTimer()
		c := newMember(b, nil)
		b.StartTimer()
		if _, err := c.net.Fetch(b.Context(), tr.Root, []peer.AddrInfo{info(a.host)}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
