package dht

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

const rareModel = "nvidia-gh200-96gb"

// findings are what a run measures.
type findings struct {
	mu      sync.Mutex
	visible []time.Duration // from a change of load to the replica that shows it
	ages    []time.Duration // of what a replica answers with
	dead    map[string][]time.Duration
	recalls map[string][]float64 // by path
	extra   map[string]int       // nodes in answers that do not fit, by path
	answers map[string]int       // nodes in answers, by path
	asked   map[string][]counts  // what a query cost, by path
	took    map[string][]time.Duration
	lateBy  map[string]time.Duration // the longest that a dead node was in an answer, by path
}

// heard is called when a replica has taken a heartbeat.
func (f *findings) heard(from, at *modelNode, data []byte, when time.Time) {
	b, err := at.w.opened.beat(data, from.id)
	if err != nil {
		return
	}
	from.mu.Lock()
	since, tells := from.told[b.av.GetSeq()]
	from.mu.Unlock()
	if !tells {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.visible = append(f.visible, when.Sub(since))
}

// modelWorld drives a network: who comes, goes and changes, and what is asked.
type modelWorld struct {
	*modelNet
	t     testing.TB
	begun time.Time
	lives sync.WaitGroup
}

func newModelWorld(t testing.TB, cfg modelConfig) *modelWorld {
	w := &modelWorld{t: t, begun: time.Now(), modelNet: &modelNet{cfg: cfg, byID: map[peer.ID]*modelNode{}, fail: t.Errorf}}
	w.found = findings{
		dead: map[string][]time.Duration{}, recalls: map[string][]float64{}, extra: map[string]int{}, answers: map[string]int{},
		asked: map[string][]counts{}, took: map[string][]time.Duration{}, lateBy: map[string]time.Duration{},
	}
	for range cfg.index {
		n := w.newNode(func(n *modelNode) { n.index, n.withholds = true, w.cfg.withhold == 1 })
		n.quiet = cfg.join
		n.start(w.peers)
		if cfg.join > 0 {
			pass(time.Second) // no two of them dial each other at one moment
		}
	}
	for i := range cfg.nodes {
		w.come(func(n *modelNode) {
			if i < cfg.rare {
				n.model = rareModel
			}
			n.quiet = max(0, time.Until(w.begun.Add(time.Duration((1+w.draw(drawLife, uint64(n.at), 8))*float64(cfg.join)))))
		})
		switch {
		case cfg.join > 0:
			pass(cfg.join / 2 / time.Duration(cfg.nodes))
		case (i+cfg.index)%10 == 9: // as newSim
			pass(time.Second)
		}
	}
	pass(time.Until(w.begun.Add(2 * cfg.join)))
	return w
}

// come adds a node.
func (w *modelWorld) come(change func(*modelNode)) *modelNode {
	n := w.newNode(change)
	n.start(w.bootstrap(n))
	if w.cfg.moves > 0 {
		w.lives.Go(func() { w.live(n) })
	}
	return n
}

// bootstrap are three index peers, as a bootstrap list of more would be shuffled.
func (w *modelNet) bootstrap(n *modelNode) []*modelNode {
	w.mu.RLock()
	defer w.mu.RUnlock()
	out := slices.Clone(w.peers)
	slices.SortFunc(out, func(a, b *modelNode) int {
		return cmp.Compare(hash(drawNode, uint64(n.at), uint64(a.at), 7), hash(drawNode, uint64(n.at), uint64(b.at), 7))
	})
	return out[:min(3, len(out))]
}

// live changes a node's load now and then, and ends when the node does.
func (w *modelWorld) live(n *modelNode) {
	for i := uint64(0); ; i++ {
		wait := -math.Log(1-w.draw(drawLife, uint64(n.at), i, 1)) * float64(w.cfg.moves)
		t := time.NewTimer(time.Duration(wait))
		select {
		case <-n.ended:
			t.Stop()
			return
		case <-t.C:
		}
		if n.alive() {
			n.change(uint32(w.draw(drawLife, uint64(n.at), i, 2) * float64(n.gpus+1)))
		}
	}
}

// nodes are those that run and have done so for at least that long.
func (w *modelWorld) nodes(since time.Duration) (out []*modelNode) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, n := range w.all {
		if n.up && !n.index && !n.client && time.Since(n.came) >= since {
			out = append(out, n)
		}
	}
	return out
}

// churn replaces nodes for a time: half are killed, half say goodbye.
func (w *modelWorld) churn(over time.Duration, at func(done time.Duration)) {
	begun := time.Now()
	for i := uint64(0); time.Since(begun) < over; i++ {
		rate := w.cfg.churn * float64(w.cfg.nodes) / float64(time.Hour)
		wait := time.Duration(-math.Log(1-w.draw(drawLife, math.MaxUint64, i, 3)) / rate)
		at(min(wait, over-time.Since(begun)))
		if time.Since(begun) >= over {
			return
		}
		all := w.nodes(0)
		n := all[int(w.draw(drawLife, math.MaxUint64, i, 4)*float64(len(all)))]
		if w.draw(drawLife, math.MaxUint64, i, 5) < 0.5 {
			n.kill()
			w.lives.Go(func() { w.mourn(n, "kill -9", time.Now()) })
		} else {
			said := time.Now()
			n.leave()
			w.lives.Go(func() { w.mourn(n, "goodbye", said) })
		}
		model := n.model
		w.come(func(n *modelNode) { n.model = model })
	}
}

// mourn measures for how long the first index peer offers a node that has gone.
func (w *modelWorld) mourn(n *modelNode, how string, since time.Time) {
	d := w.peers[0].directory()
	for w.offered(d, n) {
		if time.Since(since) > 10*time.Minute {
			w.fail("a dead node is offered for ever")
			return
		}
		pass(100 * time.Millisecond)
	}
	w.found.mu.Lock()
	defer w.found.mu.Unlock()
	w.found.dead[how] = append(w.found.dead[how], time.Since(since))
}

// offered says whether a query at a replica would list a node.
func (w *modelWorld) offered(d *Directory, n *modelNode) bool {
	h, ok := d.index.get(n.id, time.Now())
	return ok && !h.left && slices.Contains([]string{"READY", "BUSY"}, h.state)
}

// question is a filter with what ought to be found.
type question struct {
	name  string
	where string
	fits  func(*modelNode) bool
}

var modelQuestions = []question{
	{name: "all", where: "gpus.count >= 1", fits: func(*modelNode) bool { return true }},
	{name: "job", where: `gpu.model == "A100-80" && gpu.free >= 2`, fits: func(n *modelNode) bool { return n.model == "nvidia-a100-80gb-sxm" && n.offers() >= 2 }},
	{name: "rare", where: `gpu.model == "GH200"`, fits: func(n *modelNode) bool { return n.model == rareModel }},
}

// settled is how long a node has to run to be looked for.
const settled = 10 * time.Second

// judge asks a question and holds the answer against the truth.
func (w *modelWorld) judge(path string, asker *modelNode, q question, via Via) {
	f, err := protocol.ParseFilter(q.where)
	if err != nil {
		w.t.Fatal(err)
	}
	want := map[peer.ID]bool{}
	for _, n := range w.nodes(settled) {
		if q.fits(n) {
			want[n.id] = true
		}
	}
	before, begun := asker.now(), time.Now()
	got, ex, err := asker.directory().Find(context.Background(), Query{Filter: f, Via: via, Seed: uint64(time.Now().UnixNano())})
	if err != nil {
		w.t.Errorf("%s: %v, %+v", path, err, ex)
		return
	}
	took := time.Since(begun)
	listed, late, wrong := 0, time.Duration(0), 0
	var ages []time.Duration
	for _, c := range got {
		n := w.node(c.Peer)
		switch {
		case n == nil:
			w.t.Errorf("%s lists a node that never was", path)
		case want[c.Peer]:
			listed++
		case !n.alive():
			wrong++
			w.mu.RLock()
			late = max(late, begun.Sub(n.died))
			w.mu.RUnlock()
		case !q.fits(n):
			wrong++
		}
		if c.Availability != nil {
			ages = append(ages, c.Age)
		}
	}
	key := path + " " + q.name
	fs := &w.found
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(want) > 0 {
		fs.recalls[key] = append(fs.recalls[key], float64(listed)/float64(len(want)))
	}
	fs.extra[key] += wrong
	fs.answers[key] += len(got)
	fs.lateBy[key] = max(fs.lateBy[key], late)
	fs.asked[key] = append(fs.asked[key], asker.now().less(before))
	fs.took[key] = append(fs.took[key], took)
	if path == "replica" {
		fs.ages = append(fs.ages, ages...)
	}
}

// client starts a peer that only asks.
func (w *modelWorld) client() *modelNode {
	n := w.newNode(func(n *modelNode) { n.client, n.withholds = true, false })
	n.start(w.bootstrap(n))
	for n.directory().Servers() == 0 {
		pass(10 * time.Millisecond)
	}
	return n
}

// ask judges all paths once.
func (w *modelWorld) ask(client *modelNode) {
	for _, q := range modelQuestions[:2] {
		w.judge("replica", w.peers[0], q, ViaAuto)
		w.judge("index peers", client, q, ViaIndex)
	}
	w.judge("all paths", client, modelQuestions[2], ViaAuto)
	w.judge("DHT alone", client, modelQuestions[2], ViaDHT)
}

// end stops everybody.
func (w *modelWorld) end() {
	w.mu.RLock()
	all := slices.Clone(w.all)
	w.mu.RUnlock()
	var ended sync.WaitGroup
	for _, n := range all {
		ended.Go(func() {
			n.kill()
			<-n.ended
		})
	}
	ended.Wait()
	w.lives.Wait()
}

// modelReport is what a run came to.
type modelReport struct {
	cfg        modelConfig
	idle       meanRates
	replica    meanRates
	dialsHour  float64
	coldIndex  time.Duration // until a replica that was just started knows 95 %
	coldClient time.Duration // until a client that was just started has an answer with 95 %
	f          *findings
	trace      uint64
	events     int64
}

// run lets a world live, asks at random moments, and reports.
func (w *modelWorld) run(warm, over time.Duration, questions int) modelReport {
	w.churn(warm, pass)
	client := w.client()
	w.found.mu.Lock()
	w.found.visible, w.found.dead = nil, map[string][]time.Duration{}
	w.found.mu.Unlock()
	idle := w.nodes(0)
	before, dials := map[*modelNode]counts{}, map[*modelNode]int64{}
	for _, n := range append(slices.Clone(idle), w.peers...) {
		before[n], dials[n] = n.now(), n.dials.Load()
	}
	begun, next := time.Now(), time.Duration(0)
	draw := func(i int) time.Duration {
		return time.Duration((float64(i) + w.draw(drawLife, uint64(i), 9)) / float64(questions) * float64(over))
	}
	i := 0
	next = draw(0)
	w.churn(over, func(d time.Duration) {
		until := time.Now().Add(d)
		for i < questions && begun.Add(next).Before(until) {
			pass(time.Until(begun.Add(next)))
			w.ask(client)
			w.t.Logf("asked %d times after %s", i+1, time.Since(begun).Round(time.Second))
			i++
			next = draw(i)
		}
		pass(time.Until(until))
	})
	took := time.Since(begun)
	r := modelReport{cfg: w.cfg, f: &w.found}
	var idles, replicas []counts
	for _, n := range idle {
		if n.alive() {
			idles = append(idles, n.now().less(before[n]))
			r.dialsHour += float64(n.dials.Load() - dials[n])
		}
	}
	r.dialsHour /= float64(len(idles)) * took.Hours()
	for _, n := range w.peers {
		replicas = append(replicas, n.now().less(before[n]))
	}
	r.idle, r.replica = meansOf(idles, took), meansOf(replicas, took)
	r.trace, r.events = w.trace.Load(), w.event.Load()
	return r
}

// cold starts a replica and a client, and measures how long each takes until it knows 95 % of the nodes.
func (w *modelWorld) cold(r *modelReport) {
	want := w.nodes(settled)
	begun := time.Now()
	n := w.newNode(func(n *modelNode) { n.client = true })
	n.start(w.bootstrap(n))
	f, err := protocol.ParseFilter("gpus.count >= 1")
	if err != nil {
		w.t.Fatal(err)
	}
	got, _, err := n.directory().Find(context.Background(), Query{Filter: f, Via: ViaIndex})
	if err != nil || float64(len(got)) < 0.95*float64(len(want)) {
		w.t.Errorf("a client that was just started finds %d of %d nodes, %v", len(got), len(want), err)
	}
	r.coldClient = time.Since(begun)
	begun = time.Now()
	x := w.newNode(func(n *modelNode) { n.index, n.withholds = true, w.cfg.withhold == 1 })
	x.start(w.bootstrap(x))
	w.mu.RLock()
	others := slices.Clone(w.peers)
	w.mu.RUnlock()
	for _, o := range others {
		if o != x {
			_ = x.host.Connect(context.Background(), peer.AddrInfo{ID: o.id})
		}
	}
	for time.Since(begun) < 30*time.Minute {
		known := 0
		for _, n := range want {
			known += btoi(w.offered(x.directory(), n) || !n.alive())
		}
		if float64(known) >= 0.95*float64(len(want)) {
			break
		}
		pass(250 * time.Millisecond)
	}
	r.coldIndex = time.Since(begun)
}

func mean(vs []float64) float64 {
	sum := 0.0
	for _, v := range vs {
		sum += v
	}
	return sum / float64(max(1, len(vs)))
}

// print writes a report as lines.
func (r *modelReport) print(log func(format string, args ...any)) {
	f := r.f
	log("%d nodes, %d index peers, seed %d, churn %.0f %%/h, withholding %.0f %%: trace %016x of %d events", r.cfg.nodes, r.cfg.index, r.cfg.seed, 100*r.cfg.churn, 100*r.cfg.withhold, r.trace, r.events)
	keys := make([]string, 0, len(f.recalls))
	for k := range f.recalls {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		var sum counts
		for _, c := range f.asked[k] {
			sum = sum.plus(c)
		}
		n := float64(len(f.asked[k]))
		log("  %-16s recall mean %.4f least %.4f; wrong %d of %d, dead at most %s; messages a query: kademlia %.1f queries %.1f; p50 %s max %s", k,
			mean(f.recalls[k]), slices.Min(f.recalls[k]), f.extra[k], f.answers[k], f.lateBy[k].Round(time.Second),
			float64(sum.begun[flowKad])/n, float64(sum.begun[flowQuery])/n, quantile(f.took[k], 0.5).Round(time.Millisecond), quantile(f.took[k], 1).Round(time.Millisecond))
	}
	if len(f.ages) > 0 && len(f.visible) > 0 {
		log("  age of availability p50 %s p95 %s; change visible p50 %s p95 %s max %s (%d)", quantile(f.ages, 0.5).Round(time.Millisecond), quantile(f.ages, 0.95).Round(time.Millisecond),
			quantile(f.visible, 0.5).Round(time.Millisecond), quantile(f.visible, 0.95).Round(time.Millisecond), quantile(f.visible, 1).Round(time.Millisecond), len(f.visible))
	}
	for _, how := range []string{"kill -9", "goodbye"} {
		if ds := f.dead[how]; len(ds) > 0 {
			log("  dead node offered after %s: p50 %s p95 %s max %s (%d)", how, quantile(ds, 0.5).Round(100*time.Millisecond), quantile(ds, 0.95).Round(100*time.Millisecond), quantile(ds, 1).Round(100*time.Millisecond), len(ds))
		}
	}
	log("  idle node: %s; dials %.0f/h", r.idle.text(), r.dialsHour)
	log("  index peer: %s", r.replica.text())
	log("  cold start to 95 %%: client %s, replica %s", r.coldClient.Round(time.Millisecond), r.coldIndex.Round(time.Millisecond))
}

func (r meanRates) text() string {
	s := fmt.Sprintf("%.0f B/s out, %.0f B/s in, %.0f messages/h", r.sent, r.received, r.messages)
	for f := range flows {
		s += fmt.Sprintf("; %s %.0f out %.0f in B/s %d/h", flowNames[f], float64(r.by.sent[f])/3600, float64(r.by.received[f])/3600, r.by.begun[f])
	}
	return s + fmt.Sprintf("; put %d get %d add %d getp %d find %d", r.by.kinds[0], r.by.kinds[1], r.by.kinds[2], r.by.kinds[3], r.by.kinds[4])
}
