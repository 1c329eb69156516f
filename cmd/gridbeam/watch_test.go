package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/dht/archive"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func somebody(t *testing.T) (peer.ID, crypto.PrivKey) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id, key
}

func recordWith(seq uint64, labels ...*pb.Label) *pb.Capability {
	return &pb.Capability{Seq: seq, Labels: labels}
}

func TestAWatchLeavesOutWhoAsksForIt(t *testing.T) {
	no := &pb.Label{Key: protocol.LabelResearch, Value: protocol.ResearchNo}
	dir := t.TempDir()
	now := time.Now()
	w, _, err := archive.OpenWatch(dir, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var out, ignored bytes.Buffer
	v := newWatching(&watchFlags{every: time.Minute}, &out, newProgress(&ignored, true), w)
	shy, _ := somebody(t)
	open, _ := somebody(t)
	late, _ := somebody(t) // asks for it after it was met
	beat := func(id peer.ID, seq uint64, r *pb.Capability, leaving bool) dht.Heard {
		return dht.Heard{Peer: id, Seq: seq, At: now, Period: 10 * time.Second, Record: r, Leaving: leaving}
	}
	visit := func(id peer.ID) {
		v.event(dht.NewFindings(), dht.SurveyEvent{Visit: &dht.Visit{Peer: id, Began: now, Ended: now, RTT: time.Millisecond}})
	}
	v.hear([]dht.Heard{beat(shy, 1, nil, false)}) // its record is not known yet
	if w.Present() != 0 {
		t.Error("a node is kept whose record has not been read")
	}
	v.hear([]dht.Heard{beat(shy, 1, recordWith(5, no), false), beat(open, 1, recordWith(5), false), beat(late, 1, recordWith(5), false)})
	visit(shy)
	if w.Present() != 2 {
		t.Errorf("%d peers are kept, want 2", w.Present())
	}
	asked, askedKey := somebody(t) // says so when it is asked
	raw, err := protocol.SealCapability(askedKey, &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(asked), Seq: 8, Issued: now.UnixMilli(), Expires: now.Add(time.Hour).UnixMilli(), Labels: []*pb.Label{no},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := dht.NewFindings()
	e := dht.SurveyEvent{Sighting: &dht.Sighting{Peer: asked, Record: raw, Via: dht.ViaSelf, From: asked, At: now}}
	f.Take(e)
	v.event(f, e)
	visit(asked)
	v.hear([]dht.Heard{beat(late, 2, recordWith(6, no), false)})
	v.hear([]dht.Heard{beat(late, 3, recordWith(5), false)}) // an older record takes nothing back
	visit(late)
	if err := v.save(now, false); err != nil {
		t.Fatal(err)
	}
	v.hear([]dht.Heard{beat(shy, 2, nil, true), beat(open, 2, nil, true), beat(late, 4, nil, true)})
	if err := v.finish(nil); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(dir, archive.PresenceFile))
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"printed": out.String(), "kept": string(kept)} {
		if strings.Contains(text, shy.String()) || strings.Contains(text, late.String()) || strings.Contains(text, asked.String()) || !strings.Contains(text, open.String()) || !strings.Contains(text, "left") {
			t.Errorf("%s is %q", where, text)
		}
	}
	v.hear([]dht.Heard{beat(late, 5, recordWith(7), false)})
	if w.Present() != 1 {
		t.Error("a newer record does not take it back")
	}
	if len(v.seen) != 1 || len(v.read) != 1 {
		t.Errorf("who has gone is remembered: %d, %d", len(v.seen), len(v.read))
	}
}
