package beambridge

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestARememberedLabelIsJudgedLikeANewOne(t *testing.T) {
	issuer, subject := newPeer(t), newPeer(t)
	self, err := peer.IDFromPrivateKey(subject)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	good, err := protocol.SignLabel(issuer, self, protocol.LabelOperator, "node", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var s labels
	for range 2 { // the second time it is remembered
		if id, ok := s.verify(good, self, now); !ok || !id.MatchesPrivateKey(issuer) {
			t.Fatalf("a good label is of %s, %v", id, ok)
		}
	}
	if len(s.good) != 1 {
		t.Fatalf("%d labels are remembered", len(s.good))
	}
	for name, change := range map[string]func(*pb.Label){
		"key": func(l *pb.Label) { l.Key += "x" }, "value": func(l *pb.Label) { l.Value += "x" }, "time": func(l *pb.Label) { l.Expires++ },
		"signature": func(l *pb.Label) { l.Signature[3] ^= 1 }, "issuer": func(l *pb.Label) { l.Issuer = []byte(self) },
		"border": func(l *pb.Label) { l.Key, l.Value = l.Key+l.Value[:1], l.Value[1:] },
	} {
		l := proto.CloneOf(good)
		change(l)
		if _, ok := s.verify(l, self, now); ok {
			t.Errorf("a label with another %s passes", name)
		}
	}
	if _, ok := s.verify(good, "somebody else", now); ok {
		t.Error("a label about somebody else passes")
	}
	if _, ok := s.verify(good, self, now.Add(time.Hour)); ok {
		t.Error("a label passes after its time")
	}
}

func TestABridgeBelievesItselfAndThoseWhomItKnows(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	id := func(key crypto.PrivKey) protocol.PeerID {
		p, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	self, operator, root, told, stranger, node := newPeer(t), newPeer(t), newPeer(t), newPeer(t), newPeer(t), newPeer(t)
	b := &Bridge{
		self: id(self), network: protocol.NetworkFile{Roots: []protocol.PeerID{id(root)}}, cfg: Config{Issuers: []protocol.PeerID{id(told)}},
		operators: operators{own: id(operator), labels: &labels{}},
	}
	for name, c := range map[string]struct {
		issuer crypto.PrivKey
		want   bool
	}{
		"itself, which has measured": {self, true}, "its operator": {operator, true}, "a root": {root, true}, "whom it was told of": {told, true},
		"a stranger": {stranger, false}, "the node": {node, false},
	} {
		l, err := protocol.SignLabel(c.issuer, id(node), protocol.LabelTier, "high", now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.believes(id(node), l, now); got != c.want {
			t.Errorf("a tier that %s has signed is believed: %v", name, got)
		}
		if b.believes(id(stranger), l, now) || b.believes(id(node), l, now.Add(time.Hour)) {
			t.Errorf("a tier that %s has signed is believed about somebody else, or after its time", name)
		}
	}
}

func newPeer(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
