package dht

import (
	"context"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
)

// ordinary is the ground of all published figures of the model.
func ordinary(seed uint64, nodes, index int) modelConfig {
	return modelConfig{
		seed: seed, nodes: nodes, index: index, k: 20, loss: 0.005, join: 3 * time.Minute,
		churn: 0.05, moves: 10 * time.Minute, rare: 48, prime: nodes > 2000,
	}
}

// modelled runs a world in virtual time.
func modelled(t *testing.T, cfg modelConfig, warm, over time.Duration, questions int) (r modelReport) {
	t.Helper()
	// A model is many small things that live long; most of its time would go into looking at them again.
	defer debug.SetGCPercent(debug.SetGCPercent(300))
	synctest.Test(t, func(t *testing.T) {
		w := newModelWorld(t, cfg)
		r = w.run(warm, over, questions)
		w.cold(&r)
		w.end()
		r.print(t.Logf)
	})
	return r
}

// goals are rows of discovery.md 12.
type goals struct {
	recall             float64 // least mean
	visible            time.Duration
	killed, left       time.Duration
	idle, ingest       float64 // bytes a second each way
	coldClient         time.Duration
	allPaths, dhtAlone float64
	messages           bool // hold the messages that a query costs: 3 for a client that stays, 60 for a cold search
}

// cost is the mean of what a path's queries sent, rounded up.
func (f *findings) cost(path string) (mean counts) {
	var sum counts
	for _, c := range f.asked[path] {
		sum = sum.plus(c)
	}
	n := int64(max(1, len(f.asked[path])))
	for i := range flows {
		mean.begun[i] = (sum.begun[i] + n - 1) / n
	}
	return mean
}

// hold reports every goal that is missed.
func (g goals) hold(t *testing.T, r *modelReport) {
	t.Helper()
	miss := func(what string, got, goal any) { t.Errorf("%s is %v, goal %v", what, got, goal) }
	for path, least := range map[string]float64{
		"replica all": g.recall, "replica job": g.recall, "index peers all": g.recall, "index peers job": g.recall,
		"all paths rare": g.allPaths, "DHT alone rare": g.dhtAlone,
	} {
		if got := r.f.recalls[path]; len(got) == 0 {
			t.Errorf("nobody was looked for by %s: the run is no test", path)
		} else if mean(got) < least {
			miss("recall by "+path, mean(got), least)
		}
	}
	if got := quantile(r.f.visible, 0.95); got > g.visible {
		miss("p95 until a change is visible", got, g.visible)
	}
	for how, most := range map[string]time.Duration{"kill -9": g.killed, "goodbye": g.left} {
		if ds := r.f.dead[how]; len(ds) == 0 {
			t.Errorf("nobody has gone by %s: the run is no test", how)
		} else if got := quantile(ds, 1); got > most {
			miss("the longest that a dead node is offered after "+how, got, most)
		}
	}
	if got := max(r.idle.sent, r.idle.received); got > g.idle {
		miss("an idle node's bytes a second", got, g.idle)
	}
	if got := r.replica.received; got > g.ingest {
		miss("a replica's bytes a second", got, g.ingest)
	}
	client, cold := r.f.cost("index peers all"), r.f.cost("DHT alone rare")
	if g.messages && (client.begun[flowQuery] > 3 || client.begun[flowKad] > 1) {
		miss("what a client's query costs", client.begun, "3 queries and a lookup in half an hour")
	}
	if g.messages && total(cold.begun) > 60 {
		miss("what a cold search costs", cold.begun, "60 messages")
	}
	if got := max(r.coldClient, r.coldIndex); got > g.coldClient {
		miss("a cold start", got, g.coldClient)
	}
}

// smallModel is what runs in every build; with the race detector a node costs ten times as much.
func smallModel() int {
	if raceEnabled {
		return 100
	}
	return 300
}

// pollStep is how often a node's death is looked for (mourn).
const pollStep = 200 * time.Millisecond

func TestAModelledNetworkHoldsItsGoalsWhileNodesComeAndGo(t *testing.T) {
	cfg := ordinary(1, smallModel(), 5)
	cfg.churn = 1 + float64(btoi(raceEnabled)) // in minutes as many go as in hours otherwise
	r := modelled(t, cfg, time.Minute, 6*time.Minute, 6)
	goals{
		recall: 0.98, visible: 2 * time.Second, killed: 90*time.Second + pollStep, left: 2 * time.Second, idle: 500, ingest: 9_000,
		coldClient: 3 * time.Second, allPaths: 0.97, dhtAlone: 0.9,
	}.hold(t, &r)
}

func TestServersThatWithholdDoNotHideNodesInAModelledNetwork(t *testing.T) {
	cfg := ordinary(2, smallModel(), 3)
	cfg.withhold = 0.2
	r := modelled(t, cfg, time.Minute, 2*time.Minute, 4)
	for path, least := range map[string]float64{"all paths rare": 0.99, "DHT alone rare": 0.95} {
		if got := mean(r.f.recalls[path]); got < least {
			t.Errorf("recall by %s is %.3f, goal %.3f", path, got, least)
		}
	}
	cfg.withhold, cfg.rare = 1, 20 // then nothing is kept, or withholding would be no test
	synctest.Test(t, func(t *testing.T) {
		w := newModelWorld(t, cfg)
		client := w.client()
		w.judge("DHT alone", client, modelQuestions[2], ViaDHT)
		// What is found is found because a lookup happens to ask the node itself.
		if got := mean(w.found.recalls["DHT alone rare"]); got > 0.5 {
			t.Errorf("although every server withholds, the DHT alone gives %.2f of the nodes", got)
		}
		w.end()
	})
}

func TestTheSameSeedGivesTheSameHistory(t *testing.T) {
	history := func(seed uint64) (trace uint64) {
		cfg := ordinary(seed, 40, 3)
		cfg.churn = 2
		r := modelled(t, cfg, time.Minute, 5*time.Minute, 3)
		return r.trace
	}
	first, again, other := history(3), history(3), history(4)
	if first != again || first == other {
		t.Errorf("traces %016x, again %016x, of another seed %016x", first, again, other)
	}
}

func TestAChangeIsToldAtOnceAlsoAfterARegularHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(5, 6, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(time.Minute)
		n, hub := w.nodes(0)[0], w.peers[0].directory()
		free := func() int {
			c, err := hub.Get(context.Background(), n.id)
			if err != nil {
				t.Fatal(err)
			}
			return int(c.Availability.GetGroups()[0].GetFree())
		}
		for h, _ := hub.index.get(n.id, time.Now()); h.age > 2*time.Second; h, _ = hub.index.get(n.id, time.Now()) {
			pass(500 * time.Millisecond)
		}
		n.change(101) // within 2 s of a regular heartbeat
		if pass(time.Second); free() != 101 {
			t.Errorf("a second after a change %d GPUs are free", free())
		}
		n.change(102) // within 5 s of a heartbeat that told of a change
		if pass(time.Second); free() != 101 {
			t.Error("two changes are told within 2 s")
		}
		if pass(4 * time.Second); free() != 102 {
			t.Errorf("6 s after the first change %d GPUs are free", free())
		}
		w.end()
	})
}

func TestDeadHoldersDoNotKeepHeartbeatsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(6, 60, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(3 * time.Minute)
		for _, n := range w.nodes(0)[:20] {
			n.kill()
		}
		left := w.nodes(0)
		for _, n := range left {
			n.announce.Moved() // all publish their records and keys now
		}
		oldest := time.Duration(0)
		for range 60 {
			pass(2 * time.Second)
			for _, n := range left {
				h, ok := w.peers[0].directory().index.get(n.id, time.Now())
				if !ok {
					t.Fatalf("%d is not known any more", n.at)
				}
				oldest = max(oldest, h.age)
			}
		}
		if oldest > 34*time.Second {
			t.Errorf("while records and keys are published, a heartbeat comes after %s, every 30 s are meant", oldest)
		}
		w.end()
	})
}

func TestWhoIsSeenByAllAsksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(7, 30, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(6 * time.Minute)
		before := map[*modelNode]counts{}
		for _, n := range w.nodes(0) {
			before[n] = n.now()
		}
		pass(time.Hour)
		for n, b := range before {
			// Three probes and three hellos a round, in the first ones a record is new; and three hellos in half an hour for the
			// clock and the population.
			if asked := n.now().less(b).begun[flowQuery]; asked < 3*6 || asked > 6*6 {
				t.Errorf("%d has asked %d times in an hour, 30 are meant", n.at, asked)
			}
			if s := n.directory().Standing(); s.Seen.Found != s.Seen.Asked || s.Seen.Asked != 3 {
				t.Errorf("%d is found by %d of %d", n.at, s.Seen.Found, s.Seen.Asked)
			}
		}
		w.end()
	})
}

func TestAnnouncingAKeyTakesOneLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := ordinary(8, 60, 3)
		cfg.moves, cfg.churn, cfg.loss = 0, 0, 0
		w := newModelWorld(t, cfg)
		pass(6*time.Minute + 7*time.Second)
		n, client := w.nodes(0)[0], w.client()
		before := n.now()
		if err := n.directory().Provide(context.Background(), []string{"gpu/new"}); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		used := n.now().less(before).kinds
		if find, add := used[kadpb.Message_FIND_NODE], used[kadpb.Message_ADD_PROVIDER]; find > 40 || add != int64(cfg.k) {
			t.Errorf("%d holders were told after %d requests", add, find)
		}
		infos, err := client.directory().Providers(context.Background(), "gpu/new", 10)
		if err != nil || len(infos) != 1 || infos[0].ID != n.id {
			t.Errorf("providers %v, %v", infos, err)
		}
		w.end()
	})
}
