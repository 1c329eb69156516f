package protocol

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestAPrivateNetworkIsSignedByItsOnlyRoot(t *testing.T) {
	n, err := NewNetwork("home", bridgeActor.key, []multiaddr.Multiaddr{addr("/ip4/127.0.0.1/tcp/4001")}, noon)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseNetworkFile(n.Bytes())
	if err != nil || !sameValue(got, n) || got.ID == (NetworkID{}) || !got.IsRoot(bridgeActor.id) || got.IsRoot(nodeActor.id) {
		t.Errorf("%v: %+v, want %+v", err, got, n)
	}
	if other, err := NewNetwork("home", bridgeActor.key, nil, noon.Add(time.Millisecond)); err != nil || other.ID == n.ID {
		t.Errorf("%v: two networks have the ID %s", err, n.ID)
	}
	for kind, key := range otherKeys(t) {
		if _, err := NewNetwork("home", key, nil, noon); !isRefusal(err) {
			t.Errorf("a root with a key of %s: %v", kind, err)
		}
	}
}

// labFile is a network file of three roots, two of whom have to sign.
func labFile(t testing.TB, signers ...actor) NetworkFile {
	t.Helper()
	n := NetworkFile{Version: 1, Name: "lab", Roots: []PeerID{rootActor.id, otherRoot.id, operator.id}, Threshold: 2, Admission: "open", Created: noon}
	for _, s := range signers {
		if err := n.Sign(s.key); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func TestANetworkFileNeedsItsThresholdOfRoots(t *testing.T) {
	for _, c := range []struct {
		what    string
		signers []actor
		ok      bool
	}{
		{"one", []actor{rootActor}, false},
		{"one, twice", []actor{rootActor, rootActor}, false},
		{"two", []actor{rootActor, operator}, true},
		{"two, one of them twice", []actor{operator, rootActor, operator}, true},
		{"all", []actor{operator, rootActor, otherRoot}, true},
	} {
		n := labFile(t, c.signers...)
		_, err := ParseNetworkFile(n.Bytes())
		want := ErrNetwork
		if c.ok {
			want = nil
		}
		wantErr(t, c.what, err, want)
	}
	n := labFile(t, rootActor)
	wantErr(t, "a stranger's signature on version 1", n.Sign(stranger.key), ErrAuthor)
	partly, err := ReadNetworkFile(n.Bytes()) // as the second root gets it
	if err != nil {
		t.Fatal(err)
	}
	if err := partly.Sign(otherRoot.key); err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNetworkFile(partly.Bytes()); err != nil || got.ID != n.ID {
		t.Errorf("signed in two places: %v, ID %s, want %s", err, got.ID, n.ID)
	}
	partly.Name = "changed"
	if err := partly.Sign(rootActor.key); err != nil {
		t.Fatal(err)
	}
	_, err = ParseNetworkFile(partly.Bytes())
	wantErr(t, "signatures over other content", err, ErrNetwork)
}

// resigned is a network file whose payload and signatures were changed by hand.
func resigned(t testing.TB, change func(m *pb.NetworkFile, s *pb.SignedNetworkFile)) []byte {
	t.Helper()
	n := labFile(t, rootActor, otherRoot)
	s, m := &pb.SignedNetworkFile{}, &pb.NetworkFile{}
	if err := proto.Unmarshal(n.Bytes(), s); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(s.GetPayload(), m); err != nil {
		t.Fatal(err)
	}
	before := proto.Clone(m)
	change(m, s)
	if !proto.Equal(before, m) {
		s.Payload, s.Signatures = encodeMessage(t, m), nil
		signFile(t, s, rootActor, otherRoot)
	}
	return encodeMessage(t, s)
}

func encodeMessage(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func signFile(t testing.TB, s *pb.SignedNetworkFile, signers ...actor) {
	t.Helper()
	for _, r := range signers {
		sig, err := r.key.Sign(networkSigned(s.GetPayload()))
		if err != nil {
			t.Fatal(err)
		}
		s.Signatures = append(s.Signatures, &pb.RootSignature{Root: []byte(r.id), Signature: sig})
	}
}

func TestNetworkFilesOutOfBoundsAreRefused(t *testing.T) {
	type change = func(m *pb.NetworkFile, s *pb.SignedNetworkFile)
	for what, c := range map[string]struct {
		change change
		want   error
	}{
		"nothing changed":                 {func(*pb.NetworkFile, *pb.SignedNetworkFile) {}, nil},
		"format 2":                        {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Format = 2 }, ErrBounds},
		"version 0":                       {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Version = 0 }, ErrBadID},
		"version 2 without ID":            {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Version = 2 }, ErrBadID},
		"version 2 with an ID of zeros":   {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Version, m.Id = 2, make([]byte, 16) }, ErrBounds},
		"version 1 with an ID":            {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Id = make([]byte, 16) }, ErrMalformed},
		"a name that moves the cursor":    {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Name = "lab\x1b[1A" }, ErrBounds},
		"a name of two lines":             {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Name = "lab\ntrusted: yes" }, ErrBounds},
		"a name that turns its direction": {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Name = "lab\u202e" }, ErrBounds},
		"a long name":                     {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Name = strings.Repeat("a", 129) }, ErrBounds},
		"no root":                         {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Roots = nil }, ErrBounds},
		"a root twice":                    {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Roots[1] = m.GetRoots()[0] }, ErrBounds},
		"a root that is no key":           {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Roots[2] = []byte("root") }, ErrBadID},
		"seventeen roots": {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) {
			for i := range byte(14) {
				m.Roots = append(m.Roots, []byte(newActor(100+i).id))
			}
		}, ErrBounds},
		"threshold 0":                {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Threshold = 0 }, ErrBounds},
		"threshold 4 of 3":           {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Threshold = 4 }, ErrBounds},
		"threshold 2^32-1":           {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Threshold = 1<<32 - 1 }, ErrBounds},
		"threshold 3 of 3":           {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Threshold = 3 }, ErrNetwork},
		"another admission":          {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Admission = "everybody" }, ErrBounds},
		"an address that is none":    {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Bootstrap = []string{"127.0.0.1:4001"} }, ErrBounds},
		"an address in another text": {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Bootstrap = []string{"/ip6/0:0::1/tcp/1/"} }, ErrMalformed},
		"a long address": {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) {
			m.Bootstrap = []string{"/dns4/" + strings.Repeat("a", 600)}
		}, ErrBounds},
		"made in 1969":     {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.Created = -1 }, ErrBounds},
		"an unknown field": {func(m *pb.NetworkFile, _ *pb.SignedNetworkFile) { m.ProtoReflect().SetUnknown([]byte{0x78, 1}) }, ErrMalformed},
		"payload altered":  {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) { s.Payload[len(s.Payload)-1] ^= 1 }, ErrNetwork},
		"no signature":     {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) { s.Signatures = nil }, ErrNetwork},
		"one root's signature as two": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) {
			s.Signatures[1] = proto.Clone(s.GetSignatures()[0]).(*pb.RootSignature)
		}, ErrNetwork},
		"one root's signature under another's name": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) {
			s.Signatures[1].Signature = s.GetSignatures()[0].GetSignature()
		}, ErrNetwork},
		"a stranger's signature instead": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) {
			s.Signatures = s.GetSignatures()[:1]
			signFile(t, s, stranger)
		}, ErrNetwork},
		"a stranger's signature besides": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) { signFile(t, s, stranger) }, nil},
		"33 signatures": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) {
			for len(s.GetSignatures()) < 33 {
				s.Signatures = append(s.Signatures, &pb.RootSignature{})
			}
		}, ErrBounds},
		"a signature of no length": {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) { s.Signatures[0].Signature = nil }, ErrNetwork},
		"oversize":                 {func(_ *pb.NetworkFile, s *pb.SignedNetworkFile) { s.Signatures[0].Root = make([]byte, 17<<10) }, ErrTooLarge},
	} {
		raw := resigned(t, c.change)
		n, err := ParseNetworkFile(raw)
		wantErr(t, what, err, c.want)
		if err != nil && n.Roots != nil {
			t.Errorf("%s: what was refused still has roots", what)
		}
	}
	// A signature over a network file is none over anything else: it is no envelope.
	n := labFile(t, rootActor, otherRoot)
	for _, s := range signedNouns() {
		if _, err := s.open(n.Bytes()); !isRefusal(err) {
			t.Errorf("a network file opens as %s: %v", s.noun.name, err)
		}
		if _, err := ParseNetworkFile(s.seal(t)); err == nil {
			t.Errorf("%s parses as a network file", s.noun.name)
		}
	}
}

func TestASuccessorNeedsTheRootsOfTheVersionBeforeAndItsOwn(t *testing.T) {
	v1 := labFile(t, rootActor, otherRoot) // roots: root, other, operator; two of them
	next := func(signers ...actor) NetworkFile {
		n := NetworkFile{ID: v1.ID, Version: 2, Name: "lab", Roots: []PeerID{operator.id, bridgeActor.id, nodeActor.id}, Threshold: 2, Admission: "open", Created: noon}
		for _, s := range signers {
			if err := n.Sign(s.key); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	for _, c := range []struct {
		what          string
		signers       []actor
		parses, later error
	}{
		{"old and new", []actor{rootActor, otherRoot, bridgeActor, nodeActor}, nil, nil},
		{"one who was and is a root counts in both", []actor{operator, rootActor, nodeActor}, nil, nil},
		{"new roots alone", []actor{bridgeActor, nodeActor}, nil, ErrNetwork},
		{"one old root is not enough", []actor{bridgeActor, nodeActor, rootActor}, nil, ErrNetwork},
		{"old roots alone", []actor{rootActor, otherRoot}, ErrNetwork, nil},
		{"strangers", []actor{stranger}, ErrNetwork, ErrNetwork},
	} {
		n := next(c.signers...)
		got, err := ParseNetworkFile(n.Bytes())
		wantErr(t, c.what+": parsing", err, c.parses)
		if err == nil {
			wantErr(t, c.what+": succeeding", got.Succeeds(&v1), c.later)
		}
	}
	v2 := next(operator, rootActor, nodeActor)
	for what, prev := range map[string]NetworkFile{
		"a version is left out": {ID: v1.ID, Version: 0, Roots: v1.Roots, Threshold: 2},
		"the same version":      v2,
		"a later version":       {ID: v1.ID, Version: 3, Roots: v1.Roots, Threshold: 2},
		"another network":       {ID: NetworkID{1}, Version: 1, Roots: v1.Roots, Threshold: 2},
		"after the last":        {ID: v1.ID, Version: 1<<32 - 1, Roots: v1.Roots, Threshold: 2},
	} {
		wantErr(t, what, v2.Succeeds(&prev), ErrNetwork)
	}
}

func TestFilesAreTheSameWhoeverSignedThem(t *testing.T) {
	a, b := labFile(t, rootActor, otherRoot), labFile(t, operator, rootActor)
	if !a.Same(&b) || !b.Same(&a) {
		t.Error("the same content with other signatures is another file")
	}
	b.Name = "other"
	if a.Same(&b) {
		t.Error("another name is the same file")
	}
}

func TestAnInvitationSurvivesBeingPassedOn(t *testing.T) {
	inv := fixedInvitation(t)
	text := inv.String()
	half := len(text) / 2
	for what, text := range map[string]string{
		"as it is":        text,
		"with blanks":     "\n  " + text + " \r\n",
		"wrapped":         text[:half] + "\n" + text[half:],
		"wrapped, marked": text[:half] + "\n    " + text[half:],
	} {
		got, err := ParseInvitation(text, noon)
		if err != nil || !sameValue(got, inv) {
			t.Errorf("%s: %v: %+v, want %+v", what, err, got, inv)
		}
	}
	forever := inv
	forever.Expires = time.Time{}
	if _, err := ParseInvitation(forever.String(), noon.Add(1000*24*time.Hour)); err != nil {
		t.Errorf("an invitation without end: %v", err)
	}
	many := inv
	many.Bootstrap = slices.Repeat(inv.Bootstrap, 3)
	if got, err := ParseInvitation(many.String(), noon); err != nil || len(got.Bootstrap) != 4 {
		t.Errorf("six addresses: %v, %d came through", err, len(got.Bootstrap))
	}
}

func TestARefusedInvitationSaysWhatToDo(t *testing.T) {
	inv := fixedInvitation(t)
	text := inv.String()
	const again = "copy the whole line again"
	cases := map[string]struct{ text, says string }{
		"nothing":        {"", "has to begin with gridbeam:"},
		"another text":   {"https://example.org/" + text, "has to begin with gridbeam:"},
		"only the name":  {"gridbeam:", again},
		"a letter none":  {text[:50] + "!" + text[51:], again},
		"endless":        {"gridbeam:" + strings.Repeat("A", 100<<20), "at most"},
		"rather long":    {"gridbeam:" + strings.Repeat("A", 33<<10), "at most"},
		"expired":        {text, "it expired at 2026-01-11T12:00:00Z; ask for a new one"},
		"another format": {craftInvitation(t, func(m *pb.Invitation) { m.Format = 2 }), "a newer one may read it"},
		"no address":     {craftInvitation(t, func(m *pb.Invitation) { m.Bootstrap = nil }), "ask for a new one"},
		"five addresses": {craftInvitation(t, func(m *pb.Invitation) { m.Bootstrap = slices.Repeat(m.GetBootstrap(), 3) }), "more than 4 times"},
		"a bad address":  {craftInvitation(t, func(m *pb.Invitation) { m.Bootstrap[0] = "bridge.example.org" }), "no multiaddress"},
		"no network":     {craftInvitation(t, func(m *pb.Invitation) { m.Network = nil }), "invitation"},
		"unsigned network": {craftInvitation(t, func(m *pb.Invitation) {
			n := labFile(t, rootActor)
			m.Network = n.Bytes()
		}), "1 of 2 needed root signatures"},
		"an end before 1970": {craftInvitation(t, func(m *pb.Invitation) { m.Expires = -1 }), "1970"},
	}
	for cut := 10; cut < len(text); cut += 7 {
		cases["cut at "+strconv.Itoa(cut)] = struct{ text, says string }{text[:cut], again}
	}
	for at := 10; at < len(text); at += 7 {
		letter := "A"
		if text[at] == 'A' {
			letter = "B"
		}
		cases["altered at "+strconv.Itoa(at)] = struct{ text, says string }{text[:at] + letter + text[at+1:], again}
	}
	for what, c := range cases {
		now := noon
		if what == "expired" {
			now = inv.Expires
		}
		got, err := ParseInvitation(c.text, now)
		wantErr(t, what, err, ErrInvitation)
		if err != nil && !strings.Contains(err.Error(), c.says) || len(err.Error()) > 300 || got.Bootstrap != nil {
			t.Errorf("%s: it says %.300q, want %q in it", what, err, c.says)
		}
	}
}

func craftInvitation(t testing.TB, change func(m *pb.Invitation)) string {
	t.Helper()
	inv := fixedInvitation(t)
	m := &pb.Invitation{Format: 1, Network: inv.Network.raw, Bootstrap: []string{"/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.2/tcp/4001"}}
	change(m)
	b := encodeMessage(t, m)
	return InvitationPrefix + base64.RawURLEncoding.EncodeToString(append(b, checksum(b)...))
}

func TestLabelsAreTheirIssuersWordAboutOnePeer(t *testing.T) {
	make1 := func() *pb.Label {
		l, err := SignLabel(operator.key, nodeActor.id, LabelOperator, "node", noon)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	before := noon.Add(-time.Millisecond)
	if id, ok := VerifyLabel(make1(), nodeActor.id, before); !ok || id != operator.id {
		t.Errorf("issuer %s, %v", id, ok)
	}
	for what, c := range map[string]struct {
		change  func(l *pb.Label)
		subject PeerID
		now     time.Time
	}{
		"about another":         {func(*pb.Label) {}, bridgeActor.id, before},
		"expired":               {func(*pb.Label) {}, nodeActor.id, noon},
		"about its issuer":      {func(*pb.Label) {}, operator.id, before},
		"own claim":             {func(l *pb.Label) { l.Issuer = nil }, nodeActor.id, before},
		"another issuer":        {func(l *pb.Label) { l.Issuer = []byte(rootActor.id) }, nodeActor.id, before},
		"no issuer":             {func(l *pb.Label) { l.Issuer = []byte("x") }, nodeActor.id, before},
		"another key":           {func(l *pb.Label) { l.Key = "operators" }, nodeActor.id, before},
		"another value":         {func(l *pb.Label) { l.Value = "nodes" }, nodeActor.id, before},
		"key and value shifted": {func(l *pb.Label) { l.Key, l.Value = "operatorn", "ode" }, nodeActor.id, before},
		"a longer life":         {func(l *pb.Label) { l.Expires++ }, nodeActor.id, before},
		"no signature":          {func(l *pb.Label) { l.Signature = nil }, nodeActor.id, before},
	} {
		l := make1()
		c.change(l)
		if id, ok := VerifyLabel(l, c.subject, c.now); ok {
			t.Errorf("%s: accepted as the word of %s", what, id)
		}
	}
	if _, ok := VerifyLabel(nil, nodeActor.id, noon); ok {
		t.Error("no label was accepted")
	}
	own, err := SignLabel(nodeActor.key, nodeActor.id, "k", "v", noon)
	if _, ok := VerifyLabel(own, nodeActor.id, before); err != nil || ok {
		t.Errorf("%v: a peer's word about itself was accepted", err)
	}
	for kind, key := range otherKeys(t) {
		_, err := SignLabel(key, nodeActor.id, "k", "v", noon)
		wantErr(t, "a label signed by a key of "+kind, err, ErrSignature)
	}
	for _, c := range [][2]string{{"", "v"}, {strings.Repeat("k", 33), "v"}, {"k", strings.Repeat("v", 65)}} {
		_, err := SignLabel(operator.key, nodeActor.id, c[0], c[1], noon)
		wantErr(t, "a label out of bounds", err, ErrBounds)
	}
}
