package protocol

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// writeVectors adds what is missing in testdata/vectors; what is there is frozen and never written again.
var writeVectors = flag.Bool("write-vectors", false, "write frozen vectors that do not exist yet")

func vectorPath(name string) string { return filepath.Join("testdata", "vectors", name+".hex") }

// vector returns the frozen bytes of a name; made are what this version makes of the same example.
func vector(t testing.TB, name string, made []byte) []byte {
	t.Helper()
	text, err := os.ReadFile(vectorPath(name))
	if os.IsNotExist(err) && *writeVectors {
		var b strings.Builder
		for line := range slices.Chunk([]byte(hex.EncodeToString(made)), 96) {
			b.Write(line)
			b.WriteByte('\n')
		}
		text, err = []byte(b.String()), os.WriteFile(vectorPath(name), []byte(b.String()), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return raw
}

// frozen is a vector: what it is called, what this version makes of its example, and what it reads from bytes.
type frozen struct {
	name string
	make func(t testing.TB) []byte
	read func(raw []byte) (any, error)
	want any
}

func plain[T any](v T, err error) (any, error) { return v, err }

func frozenVectors(t testing.TB) []frozen {
	t.Helper()
	encode := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	terms, lease, result := fixedTerms(), fixedLease(), fixedResult()
	chain := fixedChain()
	links := sealChain(t, chain, keysOfChain())
	file, inv := fixedNetworkFile(t), fixedInvitation(t)
	label, err := SignLabel(operator.key, nodeActor.id, LabelOperator, "node", noon)
	if err != nil {
		t.Fatal(err)
	}
	out := []frozen{
		{"terms", func(testing.TB) []byte { return encode(terms.Encode()) }, func(raw []byte) (any, error) { return plain(DecodeJobTerms(raw)) }, terms},
		{"one-lease", func(testing.TB) []byte { return encode(lease.Encode()) }, func(raw []byte) (any, error) { return plain(DecodeLease(raw)) }, lease},
		{"one-result", func(testing.TB) []byte { return encode(result.Encode()) }, func(raw []byte) (any, error) { return plain(DecodeResult(raw)) }, result},
		{"networkfile", func(testing.TB) []byte { return file.Bytes() }, func(raw []byte) (any, error) { return plain(ParseNetworkFile(raw)) }, file},
		{"invitation", func(testing.TB) []byte { return []byte(inv.String()) }, func(raw []byte) (any, error) { return plain(ParseInvitation(string(raw), noon)) }, inv},
		{"label", func(testing.TB) []byte { return encode(marshal(label)) }, nil, nil},
	}
	for i, g := range chain {
		out = append(out, frozen{"chain-" + string(rune('1'+i)), func(testing.TB) []byte { return links[i] }, func(raw []byte) (any, error) { return plain(ParseGrant(raw)) }, g})
	}
	for _, n := range signedNouns() {
		if n.noun.name == nounGrant.name { // its example is the chain's first link
			continue
		}
		out = append(out, frozen{n.noun.name, n.seal, func(raw []byte) (any, error) { return n.open(raw) }, nil})
	}
	return out
}

func TestFrozenVectorsDecodeForEver(t *testing.T) {
	for _, v := range frozenVectors(t) {
		made := v.make(t)
		raw := vector(t, v.name, made)
		if !bytes.Equal(raw, made) {
			t.Errorf("%s: this version makes other bytes of the same content:\n%x\nfrozen are\n%x", v.name, made, raw)
		}
		if v.read == nil {
			continue
		}
		got, err := v.read(raw)
		if err != nil {
			t.Errorf("%s: the frozen bytes do not decode: %v", v.name, err)
			continue
		}
		if v.want != nil && !sameValue(got, v.want) {
			t.Errorf("%s: the frozen bytes decode to\n%+v, want\n%+v", v.name, got, v.want)
		}
	}
	if files, _ := filepath.Glob(vectorPath("*")); len(files) != len(frozenVectors(t)) {
		t.Errorf("%d vectors on disk, %d are tested", len(files), len(frozenVectors(t)))
	}
}

// sameValue compares what the wire carries: times by their instant.
func sameValue(a, b any) bool {
	x, y := reflect.New(reflect.TypeOf(a)), reflect.New(reflect.TypeOf(b))
	x.Elem().Set(reflect.ValueOf(a))
	y.Elem().Set(reflect.ValueOf(b))
	inUTC(x.Elem())
	inUTC(y.Elem())
	return reflect.DeepEqual(x.Interface(), y.Interface())
}

var timeType = reflect.TypeFor[time.Time]()

func inUTC(v reflect.Value) {
	switch {
	case v.Type() == timeType && v.CanSet():
		v.Set(reflect.ValueOf(v.Interface().(time.Time).UTC()))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				inUTC(v.Field(i))
			}
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			inUTC(v.Index(i))
		}
	}
}

func TestOpenedNounsHoldWhatWasSealed(t *testing.T) {
	for _, c := range []struct {
		name string
		read func(raw []byte) (any, error)
		want any
	}{
		{"call", func(raw []byte) (any, error) { return plain(OpenReservation(raw)) }, fixedReservation()},
		{"offer", func(raw []byte) (any, error) { return plain(OpenOffer(raw)) }, fixedOffer()},
		{"announcement", func(raw []byte) (any, error) { return plain(OpenAnnouncement(raw)) }, fixedAnnouncement()},
		{"lease", func(raw []byte) (any, error) { return plain(OpenLeaseGrants(raw)) }, fixedLeaseGrants()},
		{"result", func(raw []byte) (any, error) { return plain(OpenResults(raw)) }, fixedResults()},
		{"receipt", func(raw []byte) (any, error) { r, _, err := OpenReceipt(raw); return plain(r, err) }, fixedReceipt()},
		{"countersign", func(raw []byte) (any, error) { return plain(OpenCounterSign(raw, bridgeActor.id)) }, fixedCounterSign()},
		{"attestation", func(raw []byte) (any, error) { return plain(OpenAttestation(raw, noon)) }, fixedAttestation()},
	} {
		got, err := c.read(vector(t, c.name, nil))
		if err != nil || !sameValue(got, c.want) {
			t.Errorf("%s: %v\n%+v, want\n%+v", c.name, err, got, c.want)
		}
	}
	for name, open := range map[string]func([]byte) (proto.Message, error){
		"capability":   func(raw []byte) (proto.Message, error) { return messageOf(OpenCapability(raw, nodeActor.id)) },
		"availability": func(raw []byte) (proto.Message, error) { return messageOf(OpenAvailability(raw, nodeActor.id)) },
	} {
		want := proto.Message(fixedCapability())
		if name == "availability" {
			want = fixedAvailability()
		}
		if got, err := open(vector(t, name, nil)); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", name, err, got, want)
		}
	}
}

func TestReceiptHashIsThatOfThePayloadAsSigned(t *testing.T) {
	r := fixedReceipt()
	raw, sealedHash, err := r.Seal(nodeActor.key)
	if err != nil {
		t.Fatal(err)
	}
	_, openedHash, err := OpenReceipt(raw)
	if err != nil || openedHash != sealedHash {
		t.Errorf("%v, sealed %x, opened %x", err, sealedHash, openedHash)
	}
	const golden = "9dcde8fe5c2845dbdfb91ef137da48d01df9beaaf808e9768a4433bf266c1d53"
	if got := hex.EncodeToString(sealedHash[:]); got != golden {
		t.Errorf("hash %s, want %s", got, golden)
	}
}
