package dht

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/internal/corpus"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

var epoch = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func TestValidatorAcceptsOnlyTheOwnersCurrentBoundedRecord(t *testing.T) {
	me, other := identityOf(t, 1), identityOf(t, 2)
	key := capabilityKey(me.id)
	v := Validator{Now: func() time.Time { return epoch }}
	change := func(f func(*pb.Capability)) []byte {
		c := machine(me.id, 5, epoch.Add(-time.Minute), gpu("nvidia-l4-24gb", 2, 22.5))
		f(c)
		return sign(t, me.key, capabilitySeal(), c)
	}
	good := change(func(*pb.Capability) {})
	rsa, _, err := crypto.GenerateRSAKeyPair(2048, newSeedReader([]byte("not used by RSA")))
	if err != nil {
		t.Fatal(err)
	}
	rsaID, err := peer.IDFromPrivateKey(rsa)
	if err != nil {
		t.Fatal(err)
	}
	tampered := bytes.Clone(good)
	tampered[len(tampered)/2] ^= 1
	for _, c := range []struct {
		name  string
		key   string
		value []byte
		want  error
	}{
		{"good", key, good, nil},
		{"unknown fields are kept", key, change(func(c *pb.Capability) { c.ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 1}) }), nil},
		{"tombstone", key, change(func(c *pb.Capability) { c.Tombstone = true }), nil},
		{"issued a minute ahead", key, change(func(c *pb.Capability) { c.Issued = epoch.Add(time.Minute).UnixMilli() }), nil},
		{"too large", key, make([]byte, protocol.MaxCapability+1), ErrTooLarge},
		{"empty", key, nil, ErrFormat},
		{"noise", key, []byte("noise"), ErrFormat},
		{"wrong namespace", "/gb-rev/" + me.id.String(), good, ErrFormat},
		{"no peer", "/gb-cap/", good, ErrNotOwner},
		{"key of another", capabilityKey(other.id), good, ErrNotOwner},
		{"CID form of the key", "/gb-cap/" + peer.ToCid(me.id).String(), good, ErrNotOwner},
		{"longer key", key + "/x", good, ErrNotOwner},
		{"upper case key", "/gb-cap/" + strings.ToUpper(me.id.String()), good, ErrNotOwner},
		{"signed by another", key, sign(t, other.key, capabilitySeal(), machine(me.id, 5, epoch)), ErrNotOwner},
		{"another key type", capabilityKey(rsaID), sign(t, rsa, capabilitySeal(), machine(rsaID, 5, epoch)), ErrNotOwner},
		{"speaks for another", key, change(func(c *pb.Capability) { c.PeerId = []byte(other.id) }), ErrNotOwner},
		{"other payload type", key, sign(t, me.key, availabilitySeal(), machine(me.id, 5, epoch)), ErrFormat},
		{"other domain", key, sign(t, me.key, &seal{domain: "gridbeam/label/v1", codec: capabilitySeal().codec}, machine(me.id, 5, epoch)), ErrNotOwner},
		{"newer reader", key, change(func(c *pb.Capability) { c.MinReader = 2 }), ErrFormat},
		{"no format", key, change(func(c *pb.Capability) { c.Format = 0 }), ErrFormat},
		{"issued in the future", key, change(func(c *pb.Capability) { c.Issued = epoch.Add(121 * time.Second).UnixMilli() }), ErrExpired},
		{"expires now", key, change(func(c *pb.Capability) { c.Expires = epoch.UnixMilli() }), ErrExpired},
		{"life above 2 h", key, change(func(c *pb.Capability) { c.Expires = c.Issued + (2 * time.Hour).Milliseconds() + 1 }), ErrExpired},
		{"life of 2 h", key, change(func(c *pb.Capability) { c.Expires = c.Issued + (2 * time.Hour).Milliseconds() }), nil},
		{"times overflow", key, change(func(c *pb.Capability) { c.Issued, c.Expires = -1<<63, 1<<63-1 }), ErrExpired},
		{"no seq", key, change(func(c *pb.Capability) { c.Seq = 0 }), ErrBounds},
		{"long agent", key, change(func(c *pb.Capability) { c.Agent = strings.Repeat("a", 33) }), ErrBounds},
		{"nine groups", key, change(func(c *pb.Capability) {
			for range 8 {
				c.Gpus = append(c.Gpus, gpu("x", 1, 8))
			}
		}), ErrBounds},
		{"65 GPUs", key, change(func(c *pb.Capability) { c.Gpus[0].Count = 65 }), ErrBounds},
		{"2³² GPUs", key, change(func(c *pb.Capability) { c.Gpus[0].Count = 1<<32 - 1 }), ErrBounds},
		{"more faulted than there are", key, change(func(c *pb.Capability) { c.Gpus[0].Faulted = p32(3) }), ErrBounds},
		{"long model", key, change(func(c *pb.Capability) { c.Gpus[0].Model = strings.Repeat("m", 49) }), ErrBounds},
		{"short device tag", key, change(func(c *pb.Capability) { c.Gpus[0].DeviceTags = [][]byte{{1}} }), ErrBounds},
		{"seven addresses", key, change(func(c *pb.Capability) { c.Addrs = make([][]byte, 7) }), ErrBounds},
		{"share above 1000", key, change(func(c *pb.Capability) { c.Volumes = []*pb.VolumeHold{{Root: []byte{1}, PerMille: 1001}} }), ErrBounds},
		{"long label", key, change(func(c *pb.Capability) { c.Labels = []*pb.Label{{Key: "k", Value: strings.Repeat("v", 65)}} }), ErrBounds},
	} {
		if err := v.Validate(c.key, c.value); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := v.Validate(key, tampered); err == nil {
		t.Error("tampered bytes were accepted")
	}
}

func TestSelectTakesTheHighestSeqAndTheFirstOfEquals(t *testing.T) {
	me := identityOf(t, 1)
	v := Validator{Now: func() time.Time { return epoch }}
	rnd := rand.New(rand.NewPCG(1, 1))
	bySeq := map[uint64][]byte{}
	for seq := uint64(1); seq < 8; seq++ {
		bySeq[seq] = sign(t, me.key, capabilitySeal(), machine(me.id, seq, epoch))
	}
	for range 500 {
		var values [][]byte
		var seqs []uint64
		best := uint64(0)
		for range 1 + rnd.IntN(6) {
			seq := uint64(1 + rnd.IntN(7))
			values, seqs, best = append(values, bySeq[seq]), append(seqs, seq), max(best, seq)
		}
		i, err := v.Select("", values)
		if err != nil || seqs[i] != best {
			t.Fatalf("selected %d of %v, %v", i, seqs, err)
		}
		for j := range i {
			if seqs[j] == best {
				t.Fatalf("selected %d of %v: an equal stood before", i, seqs)
			}
		}
		// Associative: the winner of winners wins.
		cut := rnd.IntN(len(values))
		if cut > 0 {
			a, _ := v.Select("", values[:cut])
			b, _ := v.Select("", values[cut:])
			k, _ := v.Select("", [][]byte{values[a], values[cut+b]})
			if got := []uint64{seqs[a], seqs[cut+b]}[k]; got != best {
				t.Fatalf("two steps select %d of %v", got, seqs)
			}
		}
	}
	if i, err := v.Select("", [][]byte{[]byte("noise"), bySeq[3]}); err != nil || i != 1 {
		t.Errorf("noise against a record: %d, %v", i, err)
	}
	if _, err := v.Select("", [][]byte{[]byte("noise")}); !errors.Is(err, ErrFormat) {
		t.Errorf("only noise: %v", err)
	}
}

func TestHeartbeatsAreHeldToTheirAuthorAndBounds(t *testing.T) {
	me, other := identityOf(t, 1), identityOf(t, 2)
	record := sign(t, me.key, capabilitySeal(), machine(me.id, 5, epoch))
	change := func(f func(*pb.Availability)) []byte {
		a := heartbeat(me.id, 9, epoch, record, ready, &pb.GroupLoad{Free: 2})
		f(a)
		return sign(t, me.key, availabilitySeal(), a)
	}
	for _, c := range []struct {
		name   string
		raw    []byte
		author peer.ID
		want   error
	}{
		{"good", change(func(*pb.Availability) {}), me.id, nil},
		{"another author", change(func(*pb.Availability) {}), other.id, ErrNotOwner},
		{"speaks for another", change(func(a *pb.Availability) { a.PeerId = []byte(other.id) }), me.id, ErrNotOwner},
		{"a record is no heartbeat", record, me.id, ErrFormat},
		{"too large", make([]byte, protocol.MaxAvailability+1), me.id, ErrTooLarge},
		{"no digest", change(func(a *pb.Availability) { a.CapDigest = nil }), me.id, ErrBounds},
		{"no period", change(func(a *pb.Availability) { a.PeriodS = 0 }), me.id, ErrBounds},
		{"a period of a day", change(func(a *pb.Availability) { a.PeriodS = 86400 }), me.id, ErrBounds},
		{"a period of 9 s", change(func(a *pb.Availability) { a.PeriodS = 9 }), me.id, errPeriod},
		{"a period of 10 s", change(func(a *pb.Availability) { a.PeriodS = 10 }), me.id, nil},
		{"a period of 120 s", change(func(a *pb.Availability) { a.PeriodS = 120 }), me.id, nil},
		{"a period of 121 s", change(func(a *pb.Availability) { a.PeriodS = 121 }), me.id, errPeriod},
		{"a period beyond counting", change(func(a *pb.Availability) { a.PeriodS = 1<<32 - 1 }), me.id, errPeriod},
		{"nine groups", change(func(a *pb.Availability) { a.Groups = make([]*pb.GroupLoad, 9) }), me.id, ErrBounds},
	} {
		if _, err := openBeat(c.raw, c.author); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for age, fresh := range map[time.Duration]bool{0: true, 5 * time.Minute: true, 301 * time.Second: false, -2 * time.Minute: true, -121 * time.Second: false} {
		b, err := openBeat(change(func(a *pb.Availability) { a.At = epoch.Add(-age).UnixMilli() }), me.id)
		if err != nil || b.fresh(epoch) != fresh {
			t.Errorf("age %s: fresh %t, %v", age, b.fresh(epoch), err)
		}
	}
}

func FuzzValidator(f *testing.F) {
	me := identityOf(f, 1)
	good := sign(f, me.key, capabilitySeal(), machine(me.id, 5, epoch, gpu("nvidia-l4-24gb", 1, 22)))
	f.Add(capabilityKey(me.id), good)
	f.Add("/gb-cap/", good[:40])
	v := Validator{Now: func() time.Time { return epoch }}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if v.Validate(key, value) != nil {
			return
		}
		rec, err := openCapability(value, me.id, epoch)
		if err != nil || key != capabilityKey(me.id) || rec.cap.GetSeq() != 5 {
			t.Fatalf("a record that its owner never signed was accepted: %v", err)
		}
	})
}

func FuzzOpenBeat(f *testing.F) {
	corpus.Add(f)
	me := identityOf(f, 1)
	record := sign(f, me.key, capabilitySeal(), machine(me.id, 5, epoch))
	f.Add(sign(f, me.key, availabilitySeal(), heartbeat(me.id, 9, epoch, record, ready, &pb.GroupLoad{Free: 2})))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b, err := openBeat(raw, me.id); err == nil && b.av.GetSeq() != 9 {
			t.Fatal("a heartbeat that its author never signed was accepted")
		}
	})
}

func TestABurstOfHeartbeatsIsTakenAndAFloodIsNot(t *testing.T) {
	x := newReplica(10)
	now := time.Unix(1_800_000_000, 0)
	seq := uint64(0)
	take := func() bool {
		seq++
		fate := x.putBeat(&beat{peer: "a node", av: &pb.Availability{Seq: seq, PeriodS: 30}}, 2*time.Second, now)
		return fate != beatEarly
	}
	for i := range 4 {
		if !take() {
			t.Fatalf("heartbeat %d of a burst was ignored: a node that stops and starts again would be taken for gone", i+1)
		}
	}
	if take() {
		t.Fatal("a fifth heartbeat in one moment was taken")
	}
	taken := 0
	for range 1000 { // 100 s of ten heartbeats a second
		now = now.Add(100 * time.Millisecond)
		if take() {
			taken++
		}
	}
	if taken < 49 || taken > 51 {
		t.Fatalf("of a flood of 100 s %d heartbeats were taken, want one in 2 s", taken)
	}
}
