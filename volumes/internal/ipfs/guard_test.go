package ipfs

import (
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAskedBlocksAreRememberedOverGenerations(t *testing.T) {
	g := newGuard(nil, Config{}, nil)
	first := blocks.NewBlock([]byte("first")).Cid()
	g.expect([]cid.Cid{first})
	many := make([]cid.Cid, generation)
	for i := range many {
		many[i] = blocks.NewBlock([]byte{byte(i), byte(i >> 8), byte(i >> 16), 1}).Cid()
	}
	g.expect(many)
	if !g.asked(first) {
		t.Fatal("a want of the last generation is forgotten: its late answer would be blamed")
	}
	for i := range many {
		many[i] = blocks.NewBlock([]byte{byte(i), byte(i >> 8), byte(i >> 16), 2}).Cid()
	}
	g.expect(many)
	if g.asked(first) {
		t.Fatal("memory is not bounded")
	}
}

func TestBanEnds(t *testing.T) {
	now := time.Unix(1, 0)
	g := newGuard(nil, Config{Ban: time.Hour}, nil)
	g.now = func() time.Time { return now }
	g.bans["p"] = now.Add(time.Hour)
	if !g.banned("p") {
		t.Fatal("a ban does not hold")
	}
	now = now.Add(time.Hour + 1)
	if g.banned("p") {
		t.Fatal("a ban does not end")
	}
}

func TestGuardDropsWhatABannedPeerSends(t *testing.T) {
	called := false
	g := newGuard(nil, Config{Ban: time.Hour}, func(Evidence) { called = true }) // a nil client would panic
	g.bans["p"] = time.Now().Add(time.Hour)
	m := message.New(true)
	m.AddBlock(blocks.NewBlock([]byte("x")))
	g.ReceiveMessage(t.Context(), "p", m)
	g.PeerConnected("p")
	if called {
		t.Fatal("a banned peer is named twice")
	}
}
