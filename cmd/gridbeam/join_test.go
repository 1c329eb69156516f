package main

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestAForgedVersionOfAJoinedNetworkIsNotTakenForIt(t *testing.T) {
	owner, mallory := rootKey(t), rootKey(t)
	first, err := protocol.NewNetwork("lab", owner, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	later := func(signers ...crypto.PrivKey) *protocol.NetworkFile {
		root, err := peer.IDFromPrivateKey(signers[0])
		if err != nil {
			t.Fatal(err)
		}
		n := &protocol.NetworkFile{ID: first.ID, Version: 2, Name: "lab", Roots: []protocol.PeerID{root}, Threshold: 1, Admission: "open", Created: time.Now()}
		for _, s := range signers {
			if err := n.Sign(s); err != nil {
				t.Fatal(err)
			}
		}
		parsed, err := protocol.ParseNetworkFile(n.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return &parsed
	}
	other, err := protocol.NewNetwork("lab", mallory, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged, handedOver := later(mallory), later(mallory, owner)
	known := []string{invitationTo(first), "gridbeam:noise"}
	for what, c := range map[string]struct {
		network         *protocol.NetworkFile
		joined, refused bool
	}{
		"the same file":                 {&first, true, false},
		"another network":               {&other, false, false},
		"a version of somebody else":    {forged, false, true},
		"a version that its owner made": {handedOver, true, false},
	} {
		joined, err := joinedBefore(c.network, known)
		if joined != c.joined || (err != nil) != c.refused || err != nil && exitCode(err) != exitUsage {
			t.Errorf("%s: joined %v, %v", what, joined, err)
		}
	}
	known = append(known, invitationTo(*handedOver))
	if joined, err := joinedBefore(&first, known); !joined || err != nil {
		t.Errorf("a version joined before: %v, %v", joined, err)
	}
}

func rootKey(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func invitationTo(n protocol.NetworkFile) string {
	inv := protocol.Invitation{Network: n, Bootstrap: []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/1")}}
	return inv.String()
}
