package protocol

import (
	"crypto/sha256"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// order is what an order asks of a chain, in numbers and words small enough that random chains often meet it.
type order struct {
	gpus, seconds, isolation, egress, wall, price, chunks uint64
	model, host, volume, region, kind                     string
	ability                                               string
	at                                                    time.Time
}

// allowsAlone says whether one link by itself allows an order: an absent limit allows all.
func allowsAlone(l *GrantLimits, o *order) bool {
	most := func(p *uint32, n uint64) bool { return p == nil || n <= uint64(*p) }
	most64 := func(p *uint64, n uint64) bool { return p == nil || n <= *p }
	in := func(set []string, v string) bool { return len(set) == 0 || slices.Contains(set, v) }
	return most(l.MaxGPUs, o.gpus) && most64(l.GPUSeconds, o.seconds) && (l.MinIsolation == nil || o.isolation >= uint64(*l.MinIsolation)) &&
		most(l.Egress, o.egress) && most(l.MaxWallS, o.wall) && most64(l.MaxPrice, o.price) && most(l.MaxChunks, o.chunks) &&
		in(l.GPUModels, o.model) && in(l.EgressHosts, o.host) && in(l.Volumes, o.volume) && in(l.Regions, o.region) && in(l.JobKinds, o.kind)
}

// oracle judges a chain in its own way: each field of each link is an interval or a set of what it allows, and a
// link may say no more of it than all links before it together.
func oracle(chain []Grant, signers []PeerID, c *GrantCheck) (code AuthCode, at int) {
	highest := map[string]float64{} // the most that is still allowed, by field
	allowed := map[string]map[string]bool{}
	for i := range chain {
		g := &chain[i]
		if signers[i] != g.Issuer {
			return AuthSignature, i
		}
		if g.Network != c.Network {
			return AuthNetwork, i
		}
		if i == 0 && g.Parent != (GrantID{}) || i > 0 && (g.Parent != chain[i-1].ID || g.Issuer != chain[i-1].Audience) {
			return AuthLinkage, i
		}
		if sinceStart := c.Now.Sub(g.NotBefore); sinceStart < -60*time.Second {
			return AuthWindow, i
		}
		if sinceEnd := c.Now.Sub(g.NotAfter); sinceEnd >= 60*time.Second {
			return AuthWindow, i
		}
		numbers := map[string]float64{"delegations": float64(g.Delegations), "from": -float64(g.NotBefore.Unix()), "to": float64(g.NotAfter.Unix())}
		for name, p := range map[string]*uint32{"gpus": g.Limits.MaxGPUs, "egress": g.Limits.Egress, "wall": g.Limits.MaxWallS, "chunks": g.Limits.MaxChunks} {
			if p != nil {
				numbers[name] = float64(*p)
			}
		}
		for name, p := range map[string]*uint64{"seconds": g.Limits.GPUSeconds, "price": g.Limits.MaxPrice} {
			if p != nil {
				numbers[name] = float64(*p)
			}
		}
		if g.Limits.MinIsolation != nil {
			numbers["isolation"] = -float64(*g.Limits.MinIsolation)
		}
		for name, n := range numbers {
			limit, bounded := highest[name]
			if name == "delegations" && bounded {
				limit-- // each link leaves fewer
			}
			if bounded && n > limit {
				return AuthWidened, i
			}
			highest[name] = n
		}
		for name, set := range map[string][]string{
			"abilities": g.Abilities, "models": g.Limits.GPUModels, "hosts": g.Limits.EgressHosts, "volumes": g.Limits.Volumes, "regions": g.Limits.Regions, "kinds": g.Limits.JobKinds,
		} {
			if len(set) == 0 {
				continue
			}
			now := map[string]bool{}
			for _, v := range set {
				if before, bounded := allowed[name]; bounded && !before[v] {
					return AuthWidened, i
				}
				now[v] = true
			}
			allowed[name] = now
		}
		if i == 0 && !c.IsRoot(g.Issuer) {
			return AuthRoot, i
		}
		if c.Revoked(g) {
			return AuthRevoked, i
		}
	}
	if last := len(chain) - 1; chain[last].Audience != c.Audience {
		return AuthAudience, last
	}
	return "", 0
}

// dice makes random chains, most of them nearly good.
type dice struct {
	*rand.Rand
	peers []actor
}

func (d *dice) chance(percent int) bool { return d.IntN(100) < percent }

func (d *dice) number32(old *uint32, lo, hi uint32) *uint32 {
	switch {
	case d.chance(55):
		return nil
	case old != nil && d.chance(70):
		return u32(*old)
	}
	return u32(lo + d.Uint32N(hi-lo+1))
}

func (d *dice) number64(old *uint64) *uint64 {
	switch {
	case d.chance(55):
		return nil
	case old != nil && d.chance(70):
		return u64(*old)
	}
	return u64(d.Uint64N(4))
}

var words = []string{"a", "b", "c"}

func (d *dice) set(old []string) []string {
	from := words
	if len(old) > 0 && d.chance(93) {
		from = old
	}
	if d.chance(55) {
		return nil
	}
	var out []string
	for _, w := range from {
		if d.chance(70) {
			out = append(out, w)
		}
	}
	return out
}

// chain makes one, its payloads, and who signs its links. so is what a careful issuer would look at: the meet so far.
func (d *dice) chain() (chain []Grant, payloads [][]byte, signers []actor) {
	n := 1 + d.IntN(4)
	var so GrantLimits
	for i := range n {
		g := Grant{
			Network: fixedNetwork, Issuer: d.peers[i].id, Audience: d.peers[i+1].id, Delegations: uint32(3 - i), Epoch: d.Uint64N(30),
			NotBefore: noon.Add(time.Duration(i-5) * time.Minute), NotAfter: noon.Add(time.Duration(60-i) * time.Minute), Abilities: []string{AbilityAttest, AbilityJobControl, AbilityJobSubmit},
		}
		for b := range g.Nonce {
			g.Nonce[b] = byte(d.Uint32())
		}
		if i > 0 {
			g.Parent, g.Abilities = chain[i-1].ID, slices.Clone(chain[i-1].Abilities)
		}
		if len(g.Abilities) > 1 && d.chance(30) {
			g.Abilities = slices.Delete(g.Abilities, 0, 1)
		}
		g.Limits = GrantLimits{
			MaxGPUs: d.number32(so.MaxGPUs, 0, 3), MaxWallS: d.number32(so.MaxWallS, 0, 3), MaxChunks: d.number32(so.MaxChunks, 0, 3), GPUSeconds: d.number64(so.GPUSeconds),
			MaxPrice: d.number64(so.MaxPrice), MinIsolation: d.number32(so.MinIsolation, 1, 4), Egress: d.number32(so.Egress, 0, 2), GPUModels: d.set(so.GPUModels),
			EgressHosts: d.set(so.EgressHosts), Volumes: d.set(so.Volumes), Regions: d.set(so.Regions), JobKinds: d.set(so.JobKinds),
		}
		signer := d.peers[i]
		if d.chance(8) {
			signer = d.spoil(&g, i)
		}
		payload, err := marshal(g.toPB())
		if err != nil {
			panic(err)
		}
		g.ID = sha256.Sum256(payload)
		chain, payloads, signers = append(chain, g), append(payloads, payload), append(signers, signer)
		r := Rights{Limits: so}
		r.meet(&g, false)
		so = r.Limits
	}
	return chain, payloads, signers
}

// spoil does one thing wrong to a link that is not about limits, and says who signs it.
func (d *dice) spoil(g *Grant, i int) actor {
	switch d.IntN(11) {
	case 0:
		g.Network = NetworkID{1}
	case 1:
		g.Parent = GrantID{byte(d.IntN(2))}
	case 2:
		g.Issuer = d.peers[d.IntN(len(d.peers))].id
	case 3:
		g.Audience = d.peers[d.IntN(len(d.peers))].id
	case 4:
		g.NotBefore = noon.Add(time.Duration(50+d.IntN(20)) * time.Second)
	case 5:
		g.NotBefore, g.NotAfter = noon.Add(-time.Hour), noon.Add(-time.Duration(50+d.IntN(20))*time.Second)
	case 6:
		g.NotAfter = noon.Add(2 * time.Hour)
	case 7:
		g.Delegations = d.Uint32N(4)
	case 8:
		g.Abilities = []string{AbilityAttest, AbilityJobControl, AbilityJobSubmit}
	case 9:
		g.Epoch = 0 // revoked
	case 10:
		return d.peers[d.IntN(len(d.peers))]
	}
	for _, p := range d.peers {
		if p.id == g.Issuer {
			return p
		}
	}
	return d.peers[i]
}

// unsigned is an envelope with a signature of zeros: signatures are checked after all else.
func unsigned(payload []byte, signer actor) []byte {
	b := appendField(nil, envKey, []byte(signer.id[2:]))
	b = appendField(b, envType, []byte(nounGrant.codec()))
	b = appendField(b, envPayload, payload)
	return appendField(b, envSignature, make([]byte, 64))
}

// TestRandomChainsAreJudgedAsTheOracleDoes is the property of trust.md 13: no chain widens, and what it yields is
// the meet of its links. A few of the chains are signed and go through VerifyChain whole.
func TestRandomChainsAreJudgedAsTheOracleDoes(t *testing.T) {
	const signed = randomChains / 100
	d := &dice{Rand: rand.New(rand.NewPCG(2026, 1)), peers: []actor{rootActor, operator, bridgeActor, nodeActor, stranger, otherRoot}}
	seen, orders := map[AuthCode]int{}, [2]int{}
	for n := range randomChains {
		chain, payloads, signers := d.chain()
		check := GrantCheck{
			Network: fixedNetwork, Audience: chain[len(chain)-1].Audience, IsRoot: func(id PeerID) bool { return id == rootActor.id },
			Revoked: func(g *Grant) bool { return g.Epoch == 0 }, Now: noon,
		}
		if d.chance(3) {
			check.Audience = bridgeActor.id
		}
		var ids []PeerID
		var links [][]byte
		for i := range chain {
			ids = append(ids, signers[i].id)
			links = append(links, unsigned(payloads[i], signers[i]))
		}
		want, at := oracle(chain, ids, &check)
		_, r, err := weighChain(links, &check)
		if n < signed {
			for i := range chain {
				links[i] = envelopeOf(t, signers[i].key, nounGrant, payloads[i])
			}
			r, err = VerifyChain(links, check)
		}
		got, link := AuthCode(""), 0
		if err != nil {
			e := err.(*AuthError) //nolint:errorlint // VerifyChain promises this very type
			got, link = e.Code, e.Link
		}
		if got != want || link != at {
			t.Fatalf("chain %d: %v, the oracle says %q at link %d\n%+v", n, err, want, at, chain)
		}
		if seen[got]++; err != nil {
			continue
		}
		for range 8 {
			o := d.order()
			all := true
			for i := range chain {
				all = all && allowsAlone(&chain[i].Limits, &o) && slices.Contains(chain[i].Abilities, o.ability) && o.at.Before(chain[i].NotAfter.Add(grantSkew))
			}
			if yields := allowsAlone(&r.Limits, &o) && r.Can(o.ability, o.at); yields != all {
				t.Fatalf("chain %d: its rights allow %+v: %v; its links: %v\n%+v\nfrom %+v", n, o, yields, all, r, chain)
			}
			if all {
				orders[1]++
			} else {
				orders[0]++
			}
		}
	}
	for _, code := range []AuthCode{"", AuthNetwork, AuthLinkage, AuthWindow, AuthWidened, AuthRoot, AuthRevoked, AuthAudience, AuthSignature} {
		if seen[code] < randomChains/1000 {
			t.Errorf("only %d chains ended with %q: %v", seen[code], code, seen)
		}
	}
	if min(orders[0], orders[1]) < randomChains/10 {
		t.Errorf("orders refused and allowed: %v", orders)
	}
	if share := float64(seen[""]) / randomChains; math.Abs(share-0.5) > 0.3 {
		t.Errorf("%.0f %% of the chains are good: %v", share*100, slices.Sorted(maps.Keys(seen)))
	}
	t.Logf("%v, orders %v", seen, orders)
}

func (d *dice) order() order {
	word := func() string { return words[d.IntN(len(words))] }
	n := func() uint64 { return d.Uint64N(3) }
	return order{
		gpus: n(), seconds: n(), isolation: 1 + d.Uint64N(4), egress: d.Uint64N(3), wall: n(), price: n(), chunks: n(), model: word(), host: word(), volume: word(), region: word(), kind: word(),
		ability: []string{AbilityAttest, AbilityJobControl, AbilityJobSubmit, AbilityNodeAdmin}[d.IntN(4)], at: noon.Add(time.Duration(d.IntN(63)) * time.Minute),
	}
}

func appendField(b []byte, num protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), value)
}
