package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// crowdNodes is how many nodes a demo without a job may have. Each is a process of about 30 MB and, on one core, half
// a second of start.
const crowdNodes = 500

// truthRow is a line of --truth: what a crawl should find.
type truthRow struct {
	PeerID string `json:"PeerID"`
	Event  string `json:"event"` // joined, left (it said goodbye) or killed
	At     string `json:"at"`    // joined: it was ready; left, killed: its process had ended
	Role   string `json:"role"`  // node or bridge
	PID    int    `json:"pid"`
}

// crowdResult is what `gridbeam demo --output json` prints once a demo without a job is up.
type crowdResult struct {
	Event     string `json:"event"`
	Nodes     int    `json:"nodes"`
	ConfigDir string `json:"config_dir"`
	Truth     string `json:"truth,omitempty"`
	Crawl     string `json:"crawl"`
}

// crowd is a network to be crawled: nodes that come and go.
type crowd struct {
	d   *demo
	rnd *rand.Rand

	mu    sync.Mutex
	truth io.Writer // nil for none
	err   error     // the first of writing it
	next  int       // number of the next node
}

func (f *demoFlags) crowd() bool { return f.churn || f.truth != "" || f.nodes > jobNodes }

// checkCrowd refuses flags that do not go together.
func (f *demoFlags) checkCrowd() error {
	switch {
	case !f.keep:
		return usagef("--nodes above %d, --churn and --truth are for a network that stays up: say --keep too", jobNodes)
	case f.nodes > crowdNodes:
		return usagef("--nodes is %d, want 1..%d", f.nodes, crowdNodes)
	case f.killNode:
		return usagef("--kill-node kills during a job, and with --churn, --truth or more than %d nodes none is run", jobNodes)
	case f.churnEvery < 0:
		return usagef("--churn-every is %s, want 0 or more", f.churnEvery)
	}
	return nil
}

// runCrowd starts the nodes, says how to crawl them, and lets them come and go until ctx ends.
func (d *demo) runCrowd(ctx, starting context.Context, out io.Writer) error {
	c := &crowd{d: d, rnd: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	if d.f.truth != "" {
		f, err := os.Create(d.f.truth)
		if err != nil {
			return usagef("--truth: %s", err)
		}
		defer f.Close()
		c.truth = f
	}
	c.tell(&demoPeer{child: d.bridge, id: d.bridgeID}, "joined", "bridge")
	if err := c.grow(starting, d.f.nodes); err != nil {
		return err
	}
	if err := d.awaitNodes(starting); err != nil {
		return err
	}
	d.say.done()
	r := crowdResult{Event: "ready", Nodes: len(d.nodes), ConfigDir: filepath.Join(d.dir, "config"), Truth: d.f.truth}
	r.Crawl = fmt.Sprintf("%s --config-dir %s network crawl --out crawl-1 --listen 40s", d.l.exe, r.ConfigDir)
	if d.f.out.json() {
		if err := writeJSON(out, &r, false); err != nil {
			return err
		}
	}
	d.say.line("%d nodes are up until Ctrl-C%s; crawl them from another terminal:\n  %s", r.Nodes, map[bool]string{true: ", coming and going"}[d.f.churn], r.Crawl)
	if d.f.truth != "" {
		d.say.line("who was there when is told in %s", d.f.truth)
	}
	err := c.live(ctx)
	c.endAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(err, c.err)
}

// grow starts n nodes, some at a time: each takes a core while it starts.
func (c *crowd) grow(ctx context.Context, n int) error {
	slots := make(chan struct{}, 4) // starts at once
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := c.join(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			}
		})
		mu.Lock()
		err := failed
		mu.Unlock()
		if err != nil {
			break
		}
		c.mu.Lock()
		c.d.say.show(fmt.Sprintf("starting node %d of %d", c.next, n))
		c.mu.Unlock()
	}
	wg.Wait()
	return failed
}

// join starts one node and waits until it is ready.
func (c *crowd) join(ctx context.Context) error {
	c.mu.Lock()
	c.next++
	name := fmt.Sprintf("node-%d", c.next)
	c.mu.Unlock()
	p, err := c.d.l.start(name, "node", "run", "--data", filepath.Join(c.d.dir, name), "--mdns=false", "--local", "--offer-cpu", "--measure", "0", "--price", c.d.f.price, "--slots", "1", "--drain", "1s")
	if err != nil {
		return err
	}
	peer := &demoPeer{child: p}
	c.mu.Lock()
	c.d.nodes = append(c.d.nodes, peer)
	c.mu.Unlock()
	var r nodeReady
	if err := p.ready(ctx, &r); err != nil {
		return err
	}
	peer.id = r.Status.PeerID.String()
	c.tell(peer, "joined", "node")
	return nil
}

// live lets a node leave or die, and another one join, again and again: about a tenth of them a minute.
func (c *crowd) live(ctx context.Context) error {
	if !c.d.f.churn {
		<-ctx.Done()
		return nil
	}
	every := c.d.f.churnEvery
	if every == 0 {
		every = 10 * time.Minute / time.Duration(c.d.f.nodes)
	}
	for {
		pause := time.NewTimer(time.Duration(c.rnd.ExpFloat64() * float64(every)))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		c.lose()
		if err := c.join(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// lose ends one node by chance, with a goodbye or without.
func (c *crowd) lose() {
	c.mu.Lock()
	i := c.rnd.IntN(len(c.d.nodes))
	p := c.d.nodes[i]
	c.d.nodes = slices.Delete(c.d.nodes, i, i+1)
	c.mu.Unlock()
	c.part(p, c.rnd.IntN(2) == 0, "node")
	_ = os.RemoveAll(filepath.Join(c.d.dir, p.name))
}

func (c *crowd) part(p *demoPeer, kill bool, role string) {
	event := "left"
	if kill {
		event = "killed"
		_ = p.kill() // it has ended then, whatever it says
	} else if err := p.stop(15 * time.Second); err != nil {
		event = "killed"
	}
	c.tell(p, event, role)
}

// endAll stops what is left, so that the truth has an end for each.
func (c *crowd) endAll() {
	c.mu.Lock()
	nodes := c.d.nodes
	c.d.nodes = nil
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range nodes {
		wg.Go(func() { c.part(p, false, "node") })
	}
	wg.Wait()
	c.part(&demoPeer{child: c.d.bridge, id: c.d.bridgeID}, false, "bridge")
}

// tell writes a line of the truth.
func (c *crowd) tell(p *demoPeer, event, role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.truth == nil || p.id == "" {
		return
	}
	b, err := json.Marshal(truthRow{p.id, event, time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), role, p.pid()})
	if err == nil {
		_, err = c.truth.Write(append(b, '\n'))
	}
	if c.err == nil && err != nil {
		c.err = fmt.Errorf("writing --truth: %w", err)
	}
}
