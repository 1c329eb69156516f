package protocol

import (
	"encoding"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestIDsSurviveTheirText(t *testing.T) {
	for range 200 {
		job := NewJobID()
		if got, err := ParseJobID(job.String()); err != nil || got != job {
			t.Fatalf("%s reads as %s, %v", job, got, err)
		}
		if got, err := ParseJobID(strings.ToUpper(job.String())); err != nil || got != job {
			t.Fatalf("%s in capitals reads as %s, %v", job, got, err)
		}
		var grant GrantID
		copy(grant[:16], job[:])
		copy(grant[16:], job[:])
		for _, id := range []encoding.TextMarshaler{job, ChunkID(job), LeaseID(job), CallID(job), NetworkID(job), grant} {
			text, err := json.Marshal(id)
			if err != nil {
				t.Fatal(err)
			}
			back := reflect.New(reflect.TypeOf(id))
			if err := json.Unmarshal(text, back.Interface()); err != nil || back.Elem().Interface() != id {
				t.Fatalf("%T %s reads as %v, %v", id, text, back.Elem(), err)
			}
		}
	}
}

func TestEachIDHasOneText(t *testing.T) {
	good := JobID(bytes16(0x80)).String()
	for what, bad := range map[string]string{
		"nothing": "", "a letter short": good[:25], "a letter more": good + "a", "spare bits": good[:25] + "b", "a digit that is none": "0" + good[1:], "padding": good[:24] + "==",
		"a line end": good[:25] + "\n", "a line end inside": good[:10] + "\r\n" + good[10:], "blanks": " " + good[:25], "a Kelvin sign": strings.Replace(good[:24], good[3:4], "K", 1),
		"much": strings.Repeat("a", 1<<20),
	} {
		id, err := ParseJobID(bad)
		if !errors.Is(err, ErrBadID) || id != (JobID{}) || len(err.Error()) > 200 {
			t.Errorf("%s: %s, %.200v", what, id, err)
		}
	}
}

func TestFreshIDsDiffer(t *testing.T) {
	seen := map[[16]byte]bool{}
	for range 1000 {
		seen[NewJobID()], seen[NewLeaseID()], seen[NewCallID()] = true, true, true
	}
	if len(seen) != 3000 {
		t.Errorf("%d of 3000 IDs differ", len(seen))
	}
}

func TestChunkIDGolden(t *testing.T) {
	// SHA-256("gridbeam/chunk/1" 00 | 00 01 .. 0f | 0000000000000005 | 0000000000000009), first 16 bytes.
	if got := NewChunkID(JobID(bytes16(0)), 5, 9); got.String() != "6kdvc6rmuif5nwxjzdm4ftwmyy" {
		t.Errorf("chunk ID %x %s", got[:], got)
	}
	if NewChunkID(JobID{}, 5, 9) == NewChunkID(JobID{1}, 5, 9) || NewChunkID(JobID{}, 5, 9) == NewChunkID(JobID{}, 5, 10) {
		t.Error("chunks of other jobs or ranges have the same ID")
	}
}

// The golden of settlement.md 13.
func TestRecordIDGolden(t *testing.T) {
	node := PeerID(ed25519ID + strings.Repeat("\x01", 32))
	lease := bytes16(0)
	if got := NewRecordID(node, lease[:], 0, UsageWorking, 353_496_960); got != (RecordID{0xf4, 0xca, 0xce, 0x60, 0x02, 0x1e, 0x61, 0x70, 0x64, 0x71, 0x23, 0x92, 0xb6, 0x8c, 0x74, 0x92}) {
		t.Errorf("record ID %x", got[:])
	}
}

func TestPeerIDsAreThoseOfEd25519Keys(t *testing.T) {
	if err := validPeers("test", nodeActor.id, bridgeActor.id); err != nil {
		t.Error(err)
	}
	for kind, key := range otherKeys(t) {
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, kind, validPeers("test", nodeActor.id, id), ErrBadID)
	}
	for _, id := range []PeerID{"", "node", nodeActor.id[1:], nodeActor.id + "x", PeerID(strings.Repeat("x", 1<<20))} {
		wantErr(t, "no peer ID", validPeers("test", id), ErrBadID)
	}
}
