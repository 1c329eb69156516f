package store_test

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// TestMain is also the processes that the crash and lock tests start: see child.
func TestMain(m *testing.M) {
	if path := os.Getenv("GRIDBEAM_STORE_CHILD"); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func update(t testing.TB, s *store.Store, f func(*store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *store.Store, f func(*store.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// peerID is the ID of an Ed25519 key that is the same for the same name.
func peerID(name string) protocol.PeerID {
	seed := sha256.Sum256([]byte(name))
	_, pub, err := crypto.GenerateEd25519Key(bytes.NewReader(seed[:]))
	if err != nil {
		panic(err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		panic(err)
	}
	return id
}

func cidOf(s string) cid.Cid {
	h, err := mh.Sum([]byte(s), mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	return cid.NewCidV1(cid.DagProtobuf, h)
}

func charge(id, user string, amount int64) protocol.Transaction {
	fee := amount / 20
	return protocol.Transaction{ID: id, Kind: protocol.KindCharge, AtMS: when.UnixMilli(), Postings: []protocol.Posting{
		{Account: "user/" + user + "/credit", Currency: protocol.USD, Amount: -amount},
		{Account: "burn/payable", Currency: protocol.USD, Amount: amount - fee},
		{Account: "fee/operator", Currency: protocol.USD, Amount: fee},
	}}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
