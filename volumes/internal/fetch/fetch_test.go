package fetch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func name(codec uint64, s string) cid.Cid {
	sum := sha256.Sum256([]byte(s))
	h, _ := mh.Encode(sum[:], mh.SHA2_256)
	return cid.NewCidV1(codec, h)
}

// world is a tree of made-up nodes: what each block links to.
type world map[cid.Cid][]Want

// grow makes a tree of some depth and returns its root.
func (w world) grow(path string, fan, depth int) cid.Cid {
	if depth == 0 {
		c := name(cid.Raw, path)
		w[c] = nil
		return c
	}
	c := name(cid.DagProtobuf, path)
	for i := range fan {
		w[c] = append(w[c], Want{CID: w.grow(fmt.Sprint(path, "/", i), fan, depth-1), Size: 1 << 20})
	}
	return c
}

// holder answers wants one by one in any order and counts what is outstanding.
type holder struct {
	world world
	lie   map[cid.Cid]int // wrong answers before the right one
	mute  map[cid.Cid]bool

	mu        sync.Mutex
	out, most int
	asked     map[cid.Cid]int
}

func (h *holder) Get(ctx context.Context, wants []cid.Cid, got func(cid.Cid, []byte, peer.ID) bool) error {
	h.mu.Lock()
	h.out += len(wants)
	h.most = max(h.most, h.out)
	for _, c := range wants {
		h.asked[c]++
	}
	h.mu.Unlock()
	for _, i := range rand.Perm(len(wants)) {
		c := wants[i]
		if h.mute[c] {
			<-ctx.Done()
			return ctx.Err()
		}
		for range h.lie[c] {
			if got(c, []byte("wrong"), "liar") {
				return errors.New("a wrong block was taken")
			}
		}
		h.mu.Lock()
		h.out-- // before got: the owner may ask again as soon as it hears of the block
		h.mu.Unlock()
		if !got(c, c.Bytes(), "holder") {
			return errors.New("a good block was refused")
		}
	}
	return nil
}

// shelf keeps blocks in memory.
type shelf struct {
	world world
	mu    sync.Mutex
	has   map[cid.Cid]bool
}

func (s *shelf) Has(c cid.Cid) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has[c], nil
}

func (s *shelf) Load(_ context.Context, c cid.Cid) ([]Want, error) { return s.world[c], nil }

func (s *shelf) Put(_ context.Context, c cid.Cid, data []byte, _ peer.ID) ([]Want, error) {
	if string(data) != string(c.Bytes()) {
		return nil, ErrWrong
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has[c] = true
	return s.world[c], nil
}

func setup(fan, depth int) (world, cid.Cid, *holder, *shelf) {
	w := world{}
	root := w.grow("root", fan, depth)
	return w, root, &holder{world: w, asked: map[cid.Cid]int{}}, &shelf{world: w, has: map[cid.Cid]bool{}}
}

func pace() Config {
	return Config{Window: 16, WindowBytes: 1 << 40, Stall: time.Minute, MaxBlocks: 1 << 20}
}

func TestEveryBlockIsAskedOnceWithinTheWindow(t *testing.T) {
	w, root, h, s := setup(6, 4)
	if err := Run(t.Context(), pace(), root, h, s); err != nil {
		t.Fatal(err)
	}
	if len(s.has) != len(w) {
		t.Fatalf("%d of %d blocks", len(s.has), len(w))
	}
	for c, n := range h.asked {
		if n != 1 {
			t.Fatalf("%s was asked %d times", c, n)
		}
	}
	if h.most > 16 || h.most < 8 {
		t.Fatalf("at most %d were outstanding, the window is 16", h.most)
	}
}

func TestExpectedBytesBoundTheWindow(t *testing.T) {
	_, root, h, s := setup(40, 2)
	cfg := pace()
	cfg.Window, cfg.WindowBytes = 512, 4<<20
	if err := Run(t.Context(), cfg, root, h, s); err != nil {
		t.Fatal(err)
	}
	if h.most > 4 {
		t.Fatalf("%d blocks of 1 MiB were outstanding, the window is 4 MiB", h.most)
	}
}

func TestWhatIsHereIsNotAsked(t *testing.T) {
	w, root, h, s := setup(5, 3)
	i := 0
	for c := range w {
		if i++; i%2 == 0 {
			s.has[c] = true
		}
	}
	before := len(s.has)
	if err := Run(t.Context(), pace(), root, h, s); err != nil {
		t.Fatal(err)
	}
	if len(s.has) != len(w) || len(h.asked) != len(w)-before {
		t.Fatalf("%d of %d blocks, %d asked, %d were here", len(s.has), len(w), len(h.asked), before)
	}
}

func TestWrongBlocksAreRefusedAndAwaitedAgain(t *testing.T) {
	w, root, h, s := setup(4, 3)
	h.lie = map[cid.Cid]int{root: 3}
	for c := range w {
		h.lie[c] = rand.IntN(3)
	}
	if err := Run(t.Context(), pace(), root, h, s); err != nil {
		t.Fatal(err)
	}
	if len(s.has) != len(w) {
		t.Fatalf("%d of %d blocks", len(s.has), len(w))
	}
}

func TestSilenceEndsAFetchAndNamesABlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root, h, s := setup(4, 2)
		h.mute = map[cid.Cid]bool{}
		for c, links := range w {
			if len(links) == 0 {
				h.mute[c] = true
				break
			}
		}
		start := time.Now()
		err := Run(t.Context(), pace(), root, h, s)
		stall, ok := errors.AsType[*StallError](err)
		if !ok || !stall.First.Defined() || stall.Missing < 1 || time.Since(start) != time.Minute {
			t.Fatalf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestTreeBeyondItsLimitIsRefused(t *testing.T) {
	_, root, h, s := setup(10, 3)
	cfg := pace()
	cfg.MaxBlocks = 100
	err := Run(t.Context(), cfg, root, h, s)
	if _, ok := errors.AsType[*TooManyError](err); !ok || len(s.has) > 100 {
		t.Fatalf("%d blocks, %v", len(s.has), err)
	}
}

func TestCancelEndsAFetch(t *testing.T) {
	_, root, h, s := setup(4, 2)
	h.mute = map[cid.Cid]bool{root: true}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Run(ctx, pace(), root, h, s) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
