package protocol

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestAGoodChainYieldsTheMeetOfItsLinks(t *testing.T) {
	chain := fixedChain()
	r, err := VerifyChain(sealChain(t, chain, keysOfChain()), chainCheck())
	if err != nil {
		t.Fatal(err)
	}
	if r.Root != rootActor.id || r.Holder != stranger.id || r.Grant != chain[3].ID || len(r.Chain) != 4 || r.Chain[1] != chain[1].ID {
		t.Errorf("root %s, holder %s, grant %s of %v", r.Root, r.Holder, r.Grant, r.Chain)
	}
	l := r.Limits
	if *l.MaxGPUs != 8 || *l.MaxChunks != 1000 || *l.GPUSeconds != 360_000 || *l.MinIsolation != 3 || *l.Egress != 0 || *l.MaxWallS != 86_400 || *l.MaxPrice != 2_000_000 {
		t.Errorf("limits %+v", l)
	}
	if strings.Join(l.Regions, " ") != "eu" || strings.Join(l.GPUModels, " ") != "nvidia-h100 nvidia-l4-24gb" || strings.Join(l.JobKinds, " ") != "map" {
		t.Errorf("sets %+v", l)
	}
	if !r.Expires.Equal(noon.Add(time.Hour)) {
		t.Errorf("expires %s", r.Expires)
	}
	for ability, want := range map[string]bool{AbilityJobSubmit: true, AbilityJobControl: true, AbilityAttest: false, AbilityCounterSign: false, AbilityNodeAdmin: false, "": false} {
		if r.Can(ability, noon) != want {
			t.Errorf("can %q: %v, want %v", ability, !want, want)
		}
	}
	end := r.Expires.Add(grantSkew)
	if !r.Can(AbilityJobSubmit, end.Add(-1)) || r.Can(AbilityJobSubmit, end) {
		t.Error("rights have to end 60 s after their last link")
	}
}

// chainCase is a good chain of four links with one thing wrong.
type chainCase struct {
	what  string
	links func(t *testing.T) [][]byte
	check func(c *GrantCheck)
	code  AuthCode
	link  int
}

// wrong seals a chain in which one grant was changed.
func wrong(link int, f func(g *Grant)) func(*testing.T) [][]byte {
	return func(t *testing.T) [][]byte {
		chain := fixedChain()
		f(&chain[link])
		return sealChain(t, chain, keysOfChain())
	}
}

func good(t *testing.T) [][]byte { return sealChain(t, fixedChain(), keysOfChain()) }

// payloadOf seals whatever payload as the last link of a good chain.
func payloadOf(f func(m *pb.Grant) []byte) func(*testing.T) [][]byte {
	return func(t *testing.T) [][]byte {
		chain := fixedChain()
		links := sealChain(t, chain, keysOfChain())
		links[3] = envelopeOf(t, nodeActor.key, nounGrant, f(chain[3].toPB()))
		return links
	}
}

func TestEachCodeOfARefusedChain(t *testing.T) {
	cases := []chainCase{
		{"no link", func(*testing.T) [][]byte { return nil }, nil, AuthTooLarge, -1},
		{"five links", func(t *testing.T) [][]byte { return append(good(t), good(t)[3]) }, nil, AuthTooLarge, -1},
		{"a link of 2 KiB and a byte", func(t *testing.T) [][]byte { return append(good(t)[:3], make([]byte, MaxGrantLink+1)) }, nil, AuthTooLarge, 3},
		{"noise", func(t *testing.T) [][]byte { return append(good(t)[:3], make([]byte, MaxGrantLink)) }, nil, AuthMalformed, 3},
		{"an empty link", func(t *testing.T) [][]byte { return append(good(t)[:3], nil) }, nil, AuthMalformed, 3},
		{"another noun", func(t *testing.T) [][]byte {
			a := fixedOffer()
			raw, err := a.Seal(nodeActor.key)
			if err != nil {
				t.Fatal(err)
			}
			return append(good(t)[:3], raw)
		}, nil, AuthMalformed, 3},
		{"another network", good, func(c *GrantCheck) { c.Network = NetworkID{1} }, AuthNetwork, 0},
		{"a link of another network", wrong(2, func(g *Grant) { g.Network = NetworkID{1} }), nil, AuthNetwork, 2},
		{"the first names a parent", wrong(0, func(g *Grant) { g.Parent = GrantID{1} }), nil, AuthLinkage, 0},
		{"a link is left out", func(t *testing.T) [][]byte { l := good(t); return append(l[:1], l[2:]...) }, nil, AuthLinkage, 1},
		{"links in other order", func(t *testing.T) [][]byte { l := good(t); l[1], l[2] = l[2], l[1]; return l }, nil, AuthLinkage, 1},
		{"a link twice", func(t *testing.T) [][]byte { l := good(t); l[3] = l[2]; return l }, nil, AuthLinkage, 3},
		{"issued by somebody who holds nothing", func(t *testing.T) [][]byte {
			chain, keys := fixedChain(), keysOfChain()
			chain[3].Issuer, keys[3] = otherRoot.id, otherRoot
			return sealChain(t, chain, keys)
		}, nil, AuthLinkage, 3},
		{"not yet", good, func(c *GrantCheck) { c.Now = noon.Add(-time.Minute - grantSkew - 1) }, AuthWindow, 0},
		{"from 60 s before", good, func(c *GrantCheck) { c.Now = noon.Add(-time.Minute - grantSkew) }, "", 0},
		{"until 60 s after", good, func(c *GrantCheck) { c.Now = noon.Add(time.Hour + grantSkew - 1) }, "", 0},
		{"no longer", good, func(c *GrantCheck) { c.Now = noon.Add(time.Hour + grantSkew) }, AuthWindow, 3},
		{"no root", good, func(c *GrantCheck) { c.IsRoot = func(PeerID) bool { return false } }, AuthRoot, 0},
		{"roots are not known", good, func(c *GrantCheck) { c.IsRoot = nil }, AuthRoot, 0},
		{"a link in between is no root's", func(t *testing.T) [][]byte { return good(t)[1:] }, nil, AuthLinkage, 0},
		{"self-made root", func(t *testing.T) [][]byte {
			chain, keys := fixedChain(), keysOfChain()
			chain[0].Issuer, keys[0] = otherRoot.id, otherRoot
			return sealChain(t, chain, keys)
		}, nil, AuthRoot, 0},
		{"revoked", good, func(c *GrantCheck) { c.Revoked = func(g *Grant) bool { return g.Epoch == 2 } }, AuthRevoked, 2},
		{"presented by another", good, func(c *GrantCheck) { c.Audience = nodeActor.id }, AuthAudience, 3},
		{"presented short by the last audience", func(t *testing.T) [][]byte { return good(t)[:3] }, nil, AuthAudience, 2},
		{"signed by another", func(t *testing.T) [][]byte {
			l := good(t)
			l[2] = envelopeOf(t, otherRoot.key, nounGrant, takenApart(t, l[2]).GetPayload())
			return l
		}, nil, AuthSignature, 2},
		{"signature altered", func(t *testing.T) [][]byte { l := good(t); l[1][len(l[1])-1] ^= 1; return l }, nil, AuthSignature, 1},
		{"another key type", func(t *testing.T) [][]byte {
			l := good(t)
			l[1] = envelopeOf(t, otherKeys(t)["secp256k1"], nounGrant, takenApart(t, l[1]).GetPayload())
			return l
		}, nil, AuthSignature, 1},
	}
	for _, c := range append(cases, wideningCases()...) {
		check := chainCheck()
		if c.check != nil {
			c.check(&check)
		}
		r, err := VerifyChain(c.links(t), check)
		if c.code == "" {
			if err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		e, ok := errors.AsType[*AuthError](err)
		if !ok || e.Code != c.code || e.Link != c.link || CodeOfAuth(err) != c.code || r.Holder != "" || r.Abilities != nil {
			t.Errorf("%s: %v with rights %+v, want %s at link %d", c.what, err, r, c.code, c.link)
		}
	}
	if CodeOfAuth(errors.New("something else")) != AuthMalformed {
		t.Error("an error that is no *AuthError has to count as malformed")
	}
}

// wideningCases are each way in which a link can allow more than those before it: more than its parent, and more
// than its grandparent where the parent says nothing and so inherits.
func wideningCases() []chainCase {
	var out []chainCase
	add := func(what string, parent, child int, limit, more func(l *GrantLimits)) {
		out = append(out, chainCase{what, func(t *testing.T) [][]byte {
			chain := fixedChain()
			for i := range chain {
				chain[i].Limits = GrantLimits{}
			}
			limit(&chain[parent].Limits)
			more(&chain[child].Limits)
			return sealChain(t, chain, keysOfChain())
		}, nil, AuthWidened, child})
	}
	for _, f := range []struct {
		name        string
		limit, more func(l *GrantLimits)
	}{
		{"max_gpus", func(l *GrantLimits) { l.MaxGPUs = u32(0) }, func(l *GrantLimits) { l.MaxGPUs = u32(1) }},
		{"gpu_seconds", func(l *GrantLimits) { l.GPUSeconds = u64(9) }, func(l *GrantLimits) { l.GPUSeconds = u64(10) }},
		{"min_isolation", func(l *GrantLimits) { l.MinIsolation = u32(3) }, func(l *GrantLimits) { l.MinIsolation = u32(2) }},
		{"egress", func(l *GrantLimits) { l.Egress = u32(0) }, func(l *GrantLimits) { l.Egress = u32(1) }},
		{"max_wall_s", func(l *GrantLimits) { l.MaxWallS = u32(60) }, func(l *GrantLimits) { l.MaxWallS = u32(61) }},
		{"max_price", func(l *GrantLimits) { l.MaxPrice = u64(1) }, func(l *GrantLimits) { l.MaxPrice = u64(2) }},
		{"max_chunks", func(l *GrantLimits) { l.MaxChunks = u32(1) }, func(l *GrantLimits) { l.MaxChunks = u32(2) }},
		{"gpu_models", func(l *GrantLimits) { l.GPUModels = []string{"a"} }, func(l *GrantLimits) { l.GPUModels = []string{"a", "b"} }},
		{"egress_hosts", func(l *GrantLimits) { l.EgressHosts = []string{"a"} }, func(l *GrantLimits) { l.EgressHosts = []string{"b"} }},
		{"volumes", func(l *GrantLimits) { l.Volumes = []string{"a"} }, func(l *GrantLimits) { l.Volumes = []string{"b"} }},
		{"regions", func(l *GrantLimits) { l.Regions = []string{"a"} }, func(l *GrantLimits) { l.Regions = []string{"b"} }},
		{"job_kinds", func(l *GrantLimits) { l.JobKinds = []string{"a"} }, func(l *GrantLimits) { l.JobKinds = []string{"b"} }},
	} {
		add("wider "+f.name, 0, 1, f.limit, f.more)
		add("wider "+f.name+" than the grandparent's", 0, 2, f.limit, f.more)
		add("wider "+f.name+" than the first's, at the last", 0, 3, f.limit, f.more)
	}
	return append(out,
		chainCase{"more abilities", wrong(2, func(g *Grant) { g.Abilities = append(g.Abilities, AbilityAttest) }), nil, AuthWidened, 2},
		chainCase{"begins before its parent", wrong(2, func(g *Grant) { g.NotBefore = g.NotBefore.Add(-time.Second) }), nil, AuthWidened, 2},
		chainCase{"ends after its parent", wrong(2, func(g *Grant) { g.NotAfter = noon.Add(30*24*time.Hour + time.Second) }), nil, AuthWidened, 2},
		chainCase{"as many delegations as its parent", wrong(2, func(g *Grant) { g.Delegations = 2 }), nil, AuthWidened, 2},
		chainCase{"its parent may not delegate", wrong(1, func(g *Grant) { g.Delegations = 0 }), nil, AuthWidened, 2},
	)
}

func TestGrantsNotInCanonicalFormAreRefused(t *testing.T) {
	field := func(num protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
	}
	number := func(num protowire.Number, n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), n)
	}
	encoded := func(m *pb.Grant) []byte {
		b, err := marshal(m)
		if err != nil {
			panic(err)
		}
		return b
	}
	edit := func(f func(m *pb.Grant)) func(*pb.Grant) []byte {
		return func(m *pb.Grant) []byte { f(m); return encoded(m) }
	}
	behind := func(b ...[]byte) func(*pb.Grant) []byte {
		return func(m *pb.Grant) []byte { return append(encoded(m), bytes.Join(b, nil)...) }
	}
	limits := func(b []byte) func(*pb.Grant) []byte { // field 7 stands between 6 and 8
		return func(m *pb.Grant) []byte {
			m.Limits = nil
			whole := encoded(m)
			at := bytes.Index(whole, number(8, uint64(m.GetNotBefore())))
			return bytes.Join([][]byte{whole[:at], field(7, b), whole[at:]}, nil)
		}
	}
	for what, payload := range map[string]func(*pb.Grant) []byte{
		"an unknown field":          behind(number(13, 1)),
		"an unknown limit":          limits(number(13, 1)),
		"an unknown field far away": behind(field(5000, []byte("x"))),
		"an unknown group":          behind(protowire.AppendTag(nil, 20, protowire.StartGroupType), protowire.AppendTag(nil, 20, protowire.EndGroupType)),
		"a default written out":     func(m *pb.Grant) []byte { m.Delegations = 0; return append(encoded(m), number(12, 0)...) },
		"an empty parent written out": func(m *pb.Grant) []byte {
			m.Delegations, m.IssuerEpoch = 0, 0
			return append(encoded(m), field(5, nil)...)
		},
		"empty limits written out":         limits(nil),
		"a number that is not short":       func(m *pb.Grant) []byte { b := encoded(m); return append([]byte{b[0], 0x81, 0}, b[2:]...) },
		"a tag that is not short":          func(m *pb.Grant) []byte { b := encoded(m); return append([]byte{b[0] | 0x80, 0}, b[1:]...) },
		"a length that is not short":       limits([]byte{9<<3 | 2, 0x82, 0, 'e', 'u'}),
		"fields in other order":            func(m *pb.Grant) []byte { b := encoded(m); return append(bytes.Clone(b[2:]), b[:2]...) },
		"a field twice":                    behind(number(11, 3)),
		"limits in other order":            limits(append(number(2, 5), number(1, 5)...)),
		"limits twice":                     behind(field(7, number(1, 5))),
		"a field of another type":          behind(field(12, []byte{1})),
		"a set that is not sorted":         edit(func(m *pb.Grant) { m.Abilities = []string{AbilityJobSubmit, AbilityJobControl} }),
		"a set with a value twice":         edit(func(m *pb.Grant) { m.Abilities = []string{AbilityJobSubmit, AbilityJobSubmit} }),
		"an empty value":                   limits(field(9, nil)),
		"a value of 65 bytes":              limits(field(9, bytes.Repeat([]byte("a"), 65))),
		"a value that cannot be printed":   limits(field(9, []byte("eu\x1b[2J"))),
		"a value that is no UTF-8":         limits(field(9, []byte{0xff})),
		"a set of 65 values":               limits(bytes.Repeat(field(9, []byte("eu")), 65)),
		"an isolation of 0":                limits(number(4, 0)),
		"an isolation that is not known":   limits(number(4, 5)),
		"an egress that is not known":      limits(number(5, 3)),
		"a number of 33 bits":              limits(number(1, 1<<32)),
		"no ability":                       edit(func(m *pb.Grant) { m.Abilities = nil }),
		"an ability that is not known":     edit(func(m *pb.Grant) { m.Abilities = []string{"job/anything"} }),
		"another format":                   edit(func(m *pb.Grant) { m.Format = 2 }),
		"no format":                        edit(func(m *pb.Grant) { m.Format = 0 }),
		"a short network":                  edit(func(m *pb.Grant) { m.Network = m.GetNetwork()[1:] }),
		"a short parent":                   edit(func(m *pb.Grant) { m.Parent = m.GetParent()[1:] }),
		"a short nonce":                    edit(func(m *pb.Grant) { m.Nonce = m.GetNonce()[1:] }),
		"an issuer that is no Ed25519 key": edit(func(m *pb.Grant) { m.Issuer = []byte{0x12, 0x20, 31: 0} }),
		"no audience":                      edit(func(m *pb.Grant) { m.Audience = nil }),
		"a window of nothing":              edit(func(m *pb.Grant) { m.NotAfter = m.GetNotBefore() }),
		"a window of 11 years":             edit(func(m *pb.Grant) { m.NotAfter = m.GetNotBefore() + 11*366*24*3600 }),
		"a beginning before 1970":          edit(func(m *pb.Grant) { m.NotBefore = -1 }),
		"an end that wraps around":         edit(func(m *pb.Grant) { m.NotBefore, m.NotAfter = 1<<63-100, 1<<63-50 }),
		"a window over all time":           edit(func(m *pb.Grant) { m.NotBefore, m.NotAfter = -1<<63, 1<<63-1 }),
		"four delegations":                 edit(func(m *pb.Grant) { m.Delegations = 4 }),
		"nothing":                          func(*pb.Grant) []byte { return []byte{8} },
	} {
		links := payloadOf(payload)(t)
		_, err := VerifyChain(links, chainCheck())
		if CodeOfAuth(err) != AuthMalformed || !strings.Contains(err.Error(), "link 3") {
			t.Errorf("%s: %v, want auth/malformed at link 3", what, err)
		}
		if _, err := ParseGrant(links[3]); !isRefusal(err) {
			t.Errorf("%s, parsed alone: %v", what, err)
		}
	}
	links := payloadOf(func(m *pb.Grant) []byte { return encoded(m) })(t)
	if _, err := VerifyChain(links, chainCheck()); err != nil {
		t.Errorf("the chain that all these were made from: %v", err)
	}
}

func TestBoundsOfAChainComeBeforeItsParsing(t *testing.T) {
	for what, links := range map[string][][]byte{
		"a huge link":      {good(t)[0], make([]byte, 64<<20)},
		"a million links":  make([][]byte, 1_000_000),
		"five large links": {make([]byte, 2048), make([]byte, 2048), make([]byte, 2048), make([]byte, 2048), make([]byte, 2048)},
	} {
		var err error
		if n := testing.AllocsPerRun(1, func() { _, err = VerifyChain(links, chainCheck()) }); n > 20 {
			t.Errorf("%s: %v allocations to refuse it", what, n)
		}
		if CodeOfAuth(err) != AuthTooLarge {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSealMakesGrantsCanonical(t *testing.T) {
	g := fixedChain()[2]
	g.Parent = fixedGrant
	g.Abilities = []string{AbilityJobSubmit, AbilityAttest, AbilityJobControl}
	g.Limits.Regions = []string{"us", "eu"}
	g.NotBefore, g.Nonce = noon.Add(1234567), [16]byte{}
	given := g.Abilities
	raw, err := g.Seal(bridgeActor.key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseGrant(raw)
	if err != nil || got.ID != g.ID || got.Nonce == ([16]byte{}) || got.Nonce != g.Nonce || !got.NotBefore.Equal(g.NotBefore) {
		t.Errorf("%v: %+v, want %+v", err, got, g)
	}
	if strings.Join(got.Abilities, " ") != "attest job/control job/submit" || strings.Join(got.Limits.Regions, " ") != "eu us" || given[0] != AbilityJobSubmit {
		t.Errorf("abilities %v, regions %v, the caller's own %v", got.Abilities, got.Limits.Regions, given)
	}
	for what, f := range map[string]func(g *Grant){
		"an ability twice":       func(g *Grant) { g.Abilities = append(g.Abilities, AbilityAttest) },
		"no window":              func(g *Grant) { g.NotBefore, g.NotAfter = time.Time{}, time.Time{} },
		"a window of a moment":   func(g *Grant) { g.NotAfter = g.NotBefore.Add(time.Millisecond) },
		"no audience":            func(g *Grant) { g.Audience = "" },
		"an isolation of 9":      func(g *Grant) { g.Limits.MinIsolation = u32(9) },
		"a region that is blank": func(g *Grant) { g.Limits.Regions = []string{""} },
	} {
		bad := g
		f(&bad)
		if _, err := bad.Seal(bridgeActor.key); !errors.Is(err, ErrBounds) && !errors.Is(err, ErrBadID) {
			t.Errorf("%s was sealed: %v", what, err)
		}
	}
	big := fixedChain()[0]
	for i := range maxSet {
		big.Limits.Volumes = append(big.Limits.Volumes, strings.Repeat(string(rune('a'+i/26))+string(rune('a'+i%26)), 32))
	}
	_, err = big.Seal(rootActor.key)
	wantErr(t, "a link above 2 KiB", err, ErrTooLarge)
}
