//go:build system

package dht

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// calibration is what is measured alike of real hosts and of the model: of 50 servers 5 ms apart, of which three are
// index peers, from the fifth minute to the twenty-fifth, a whole cycle of kad-dht's tables. In it eight nodes go, half
// of them killed, and all paths are asked at five moments.
type calibration struct {
	meanRates
	index  meanRates
	recall map[string]float64
}

const (
	calibrated      = 50
	calibrationWarm = 5 * time.Minute
	calibrationOver = 20 * time.Minute
	calibrationAsks = 5
	calibrationGone = 8
)

// script calls back at the same moments for both grounds.
func (c *calibration) script(gone func(i int, kill bool), ask func(path string, via Via) float64) {
	c.recall = map[string]float64{}
	step := calibrationOver / (calibrationGone * calibrationAsks)
	for i := range calibrationGone * calibrationAsks {
		if i%calibrationAsks == 2 {
			gone(i/calibrationAsks, i%2 == 0)
		}
		if i%calibrationGone == 5 {
			for path, via := range map[string]Via{"replica": ViaAuto, "index peers": ViaIndex, "DHT alone": ViaDHT} {
				c.recall[path] += ask(path, via) / calibrationAsks
			}
		}
		pass(step)
	}
}

func realCalibration(t *testing.T) (c calibration) {
	synctest.Test(t, func(t *testing.T) {
		w := newSim(t, 5, calibrated, 0)
		pass(calibrationWarm)
		client := w.client()
		pass(time.Second)
		before := make([]counts, calibrated)
		for i := range before {
			before[i] = w.tallies[i].now()
		}
		begun, out := time.Now(), []int{}
		c.script(func(i int, kill bool) {
			at := calibrated - 1 - i
			out = append(out, at)
			if kill {
				w.hosts[at].Crash()
			} else if err := w.hosts[at].Stop(); err != nil {
				t.Error(err)
			}
		}, func(path string, via Via) float64 {
			d := client
			if path == "replica" {
				d = w.hosts[0].directory()
			}
			got, _ := w.ask(d, nodesQuery(t, via))
			share, _ := recall(w.honest(out...), got)
			return share
		})
		var idle, index []counts
		for i := range calibrated - calibrationGone {
			n := w.tallies[i].now().less(before[i])
			if i < 3 {
				index = append(index, n)
			} else {
				idle = append(idle, n)
			}
		}
		c.meanRates, c.index = meansOf(idle, time.Since(begun)), meansOf(index, time.Since(begun))
	})
	return c
}

func modelCalibration(t *testing.T) (c calibration) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		w := newModelWorld(t, modelConfig{
			seed: 5, nodes: calibrated - 3, index: 3, k: 20, oneWay: 5 * time.Millisecond, servers: true, cold: 2 * calibrated,
		})
		pass(calibrationWarm - time.Since(begun))
		client := w.client()
		pass(time.Second)
		all := w.nodes(0)
		before := map[*modelNode]counts{}
		for _, n := range append(all, w.peers...) {
			before[n] = n.now()
		}
		from := time.Now()
		c.script(func(i int, kill bool) {
			if n := all[len(all)-1-i]; kill {
				n.kill()
			} else {
				n.leave()
			}
		}, func(path string, via Via) float64 {
			asker := client
			if path == "replica" {
				asker = w.peers[0]
			}
			w.judge(path, asker, modelQuestions[0], via)
			shares := w.found.recalls[path+" all"]
			return shares[len(shares)-1]
		})
		var idle, index []counts
		for _, n := range w.nodes(0) {
			idle = append(idle, n.now().less(before[n]))
		}
		for _, n := range w.peers {
			index = append(index, n.now().less(before[n]))
		}
		c.meanRates, c.index = meansOf(idle, time.Since(from)), meansOf(index, time.Since(from))
		w.end()
	})
	return c
}

// TestTheModelIsCalibratedAgainstRealHosts holds the model to 15 % of what the same code does over libp2p, kad-dht and
// gossipsub in virtual time.
func TestTheModelIsCalibratedAgainstRealHosts(t *testing.T) {
	if raceEnabled {
		t.Skip("50 real hosts for 25 minutes: without the race detector")
	}
	model := modelCalibration(t)
	t.Logf("model, idle:      %s", model.text())
	t.Logf("model, index peers:      %s", model.index.text())
	is := realCalibration(t)
	t.Logf("real hosts, idle: %s", is.text())
	t.Logf("real hosts, index peers: %s", is.index.text())
	for _, c := range []struct {
		what      string
		is, model float64
	}{
		{"messages a node and hour", is.messages, model.messages},
		{"bytes a node sends a second", is.sent, model.sent},
		{"bytes a node receives a second", is.received, model.received},
		{"bytes an index peer sends a second", is.index.sent, model.index.sent},
		{"bytes an index peer receives a second", is.index.received, model.index.received},
		{"recall of a replica", is.recall["replica"], model.recall["replica"]},
		{"recall by index peers", is.recall["index peers"], model.recall["index peers"]},
		{"recall by the DHT alone", is.recall["DHT alone"], model.recall["DHT alone"]},
	} {
		apart := c.model/c.is - 1
		t.Logf("%s: real hosts %.4g, model %.4g: %+.1f %%", c.what, c.is, c.model, 100*apart)
		if !(math.Abs(apart) <= 0.15) {
			t.Errorf("the model's %s is %+.0f %% apart", c.what, 100*apart)
		}
	}
}
