package dht

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// population is a simulated population that announces one attribute every hour, in an order of its own, while what
// was announced is kept for 130 minutes.
type population struct {
	rnd     *rand.Rand
	now     time.Duration
	members []peer.ID
	levels  map[peer.ID]perch
	keys    map[string]map[peer.ID]time.Duration // by bits: until when
}

func newPopulation(seed uint64) *population {
	return &population{rnd: rand.New(rand.NewPCG(seed, 1)), levels: map[peer.ID]perch{}, keys: map[string]map[peer.ID]time.Duration{}}
}

func (p *population) resize(n int) {
	for len(p.members) < n {
		p.members = append(p.members, peer.ID(fmt.Sprintf("node %d", p.rnd.Uint64())))
	}
	p.rnd.Shuffle(len(p.members), func(i, j int) { p.members[i], p.members[j] = p.members[j], p.members[i] })
	p.members = p.members[:n]
}

func (p *population) expire() {
	for bits, key := range p.keys {
		for id, until := range key {
			if until <= p.now {
				delete(key, id)
			}
		}
		if len(key) == 0 {
			delete(p.keys, bits)
		}
	}
}

// round is an hour; it returns how many changed their level.
func (p *population) round() (moved int) {
	for i, at := range p.rnd.Perm(len(p.members)) {
		if i%(1+len(p.members)/60) == 0 { // a minute
			p.now += time.Minute
			p.expire()
		}
		id := p.members[at]
		bits, before := bitsOf(id), p.levels[id]
		at := settle(before, func(l int) int { return len(p.keys[bits[:l]]) }, p.rnd.Float64)
		level := at.level
		if level != before.level {
			moved++
		}
		p.levels[id] = at
		key := p.keys[bits[:level]]
		if key == nil {
			key = map[peer.ID]time.Duration{}
			p.keys[bits[:level]] = key
		}
		key[id] = p.now + provideValidity
	}
	return moved
}

func (p *population) largest() (n int) {
	for _, key := range p.keys {
		n = max(n, len(key))
	}
	return n
}

// read is what a cold reader gets, and the longest list that it was sent.
func (p *population) read(count int) (found, asked, longest int) {
	out := descend(count, p.rnd.Float64, func(bits string, most int) (out []peer.AddrInfo) {
		asked++
		longest = max(longest, len(p.keys[bits]))
		for id := range p.keys[bits] {
			if len(out) < most {
				out = append(out, peer.AddrInfo{ID: id})
			}
		}
		return out
	})
	return len(out), asked, longest
}

func TestLevelsConvergeWhateverTheSizeAndAfterItChanges(t *testing.T) {
	for _, sizes := range [][]int{{10}, {100}, {700}, {5000}, {20_000}, {10, 20_000, 150}, {600, 60, 6000, 600}} {
		p := newPopulation(uint64(len(sizes)))
		for _, n := range sizes {
			p.resize(n)
			for range 20 {
				p.round()
			}
			moved := 0
			for range 5 {
				moved += p.round()
			}
			if moved > n/4 {
				t.Errorf("%v: of %d nodes %d an hour change their level", sizes, n, moved/5)
			}
			// An entry lives for two rounds, so a key holds some of those that have left it.
			if most := p.largest(); most > 2*splitEntries+100 {
				t.Errorf("%v: a key of %d nodes has %d entries", sizes, n, most)
			}
			for range 50 {
				found, asked, longest := p.read(64)
				if found < min(64, n) {
					t.Fatalf("%v: a reader finds %d of %d nodes", sizes, found, n)
				}
				if asked > maxLevel || longest > 2*splitEntries+100 {
					t.Fatalf("%v: a reader asks %d keys, the longest of %d", sizes, asked, longest)
				}
			}
			if n <= 100 {
				if found, asked, _ := p.read(n); found != n || asked != 1 {
					t.Errorf("%v: %d of %d nodes are found at the first key, asking %d", sizes, found, n, asked)
				}
			}
		}
	}
}

func TestEveryNodeIsFoundByReadersInTime(t *testing.T) {
	p := newPopulation(9)
	p.resize(3000)
	for range 10 {
		p.round()
	}
	seen := map[peer.ID]bool{}
	for range 2000 {
		for _, info := range descend(64, p.rnd.Float64, func(bits string, most int) (out []peer.AddrInfo) {
			for id := range p.keys[bits] { // a map gives them in any order
				if len(out) < most {
					out = append(out, peer.AddrInfo{ID: id})
				}
			}
			return out
		}) {
			seen[info.ID] = true
		}
	}
	if len(seen) < 2990 {
		t.Errorf("readers find %d of 3000 nodes: some are never sampled", len(seen))
	}
}

func TestTheLevelFollowsItsTable(t *testing.T) {
	for _, c := range []struct {
		level, here, above int
		roll               float64
		want               int
	}{
		{0, 511, 0, 0.9, 0},
		{0, 512, 0, 0.51, 1},
		{0, 512, 0, 0.49, 0},   // one of those that stay
		{0, 5120, 0, 0.049, 0}, // of more, fewer in proportion
		{0, 5120, 0, 0.051, 1},
		{12, 5000, 0, 0.99, 12},
		{3, 64, 128, 0.1, 3},
		{3, 63, 255, 0.9, 2},
		{3, 400, 100, 0.19, 2}, // the key above is too short to lead readers here
		{3, 400, 100, 0.20, 3},
		{3, 63, 256, 0.9, 3},
		{0, 1, 0, 0.9, 0},
		{3, -1, 0, 0.9, 3}, // nobody answers: it stays
		{3, 10, -1, 0.9, 3},
	} {
		if got := nextLevel(c.level, c.here, c.above, c.roll); got != c.want {
			t.Errorf("%+v: level %d", c, got)
		}
	}
}

func TestAnAttributeOfManyMovesToTheNextLevelAndIsFoundThere(t *testing.T) {
	peers := neighbourhood(t, 3)
	node := peers[1]
	key, err := providerKey("gpu/x", "")
	if err != nil {
		t.Fatal(err)
	}
	crowd := 700
	for _, p := range peers { // as if so many had announced themselves with each holder
		for i := range crowd {
			if err := p.dir.kad.(realKad).ProviderStore().AddProvider(t.Context(), key.Hash(), peer.AddrInfo{ID: identityOf(t, 10_000+i).id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, _ := node.dir.entries(within(t, 10*time.Second), "gpu/x", ""); n != crowd {
		t.Fatalf("%d entries, want %d", n, crowd)
	}
	eventually(t, "the node has moved", func() bool {
		if err := node.dir.Provide(within(t, 10*time.Second), []string{"gpu/x"}); err != nil {
			t.Fatal(err)
		}
		node.dir.mu.Lock()
		defer node.dir.mu.Unlock()
		return node.dir.levels["gpu/x"].level == 1
	})
	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, peers[0].host)
	connect(t, client.host, peers[2].host)
	eventually(t, "it is found one level below", func() bool {
		infos, err := client.dir.Providers(within(t, 10*time.Second), "gpu/x", 2000)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			if info.ID == node.id {
				return true
			}
		}
		return false
	})
}
