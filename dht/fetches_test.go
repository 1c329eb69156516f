package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	kbucket "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestWhoIsKnownOrConnectedIsFetchedFirst(t *testing.T) {
	f := newFetches(8, 4)
	for i, c := range []claim{claimBeat, claimLine, claimHeld, claimBoth} {
		f.want(peer.ID(fmt.Sprint(i)), "", c, epoch)
	}
	if f.want("5", "", claimBeat, epoch); f.jobs["5"] == nil || f.jobs["0"] != nil {
		t.Error("who has waited longest with the least claim does not make room")
	}
	f.want("5", "", claimHeld, epoch) // its record has come some other way
	var got []peer.ID
	for j := f.next(); j != nil; j = f.next() {
		got = append(got, j.id)
	}
	if want := []peer.ID{"2", "5", "3", "1"}; !slices.Equal(got, want) {
		t.Errorf("fetched in the order %q, want %q", got, want)
	}
	for i := range 4 {
		f.want(peer.ID(fmt.Sprint("held", i)), "", claimHeld, epoch)
	}
	if f.want("stranger", "", claimBeat, epoch) {
		t.Error("a stranger pushes out who is known")
	}
}

func TestNeitherANetworkNorTheSilentHoldAllFetchWorkers(t *testing.T) {
	f := newFetches(8, 100)
	for i := range 20 {
		f.want(peer.ID(fmt.Sprint("near ", i)), "net a", claimHeld, epoch)
		f.want(peer.ID(fmt.Sprint("silent ", i)), "", claimLine, epoch)
	}
	var held []*fetchJob
	for j := f.next(); j != nil; j = f.next() {
		held = append(held, j)
	}
	if f.busy["net a"] != 2 || f.quiet != 6 || len(held) != 8 {
		t.Fatalf("%d workers for one network, %d for the silent", f.busy["net a"], f.quiet)
	}
	f.want("elsewhere", "net b", claimBoth, epoch)
	if j := f.next(); j == nil || j.id != "elsewhere" {
		t.Error("another network's peer finds no worker")
	}
	for _, j := range held {
		f.done(j, true, epoch)
	}
	if j := f.next(); j == nil || j.net != "net a" {
		t.Error("what was held back is not fetched later")
	}
}

func TestAPeerIsFetchedOnceIn30SecondsAndLessOftenAfterFailures(t *testing.T) {
	f := newFetches(8, 100)
	now := epoch
	fetched := func(had bool) bool {
		if !f.want("a", "", claimBeat, now) {
			return false
		}
		f.done(f.next(), had, now)
		return true
	}
	n := 0
	for range 600 { // ten minutes of a heartbeat a second that speaks of another record each time
		n += btoi(fetched(true))
		now = now.Add(time.Second)
	}
	if n < 22 || n > 24 { // 4 at once, and one in 30 s
		t.Errorf("%d fetches in ten minutes, want 23", n)
	}
	now = now.Add(time.Hour)
	var at []time.Duration
	for begun := now; now.Before(begun.Add(12 * time.Minute)); now = now.Add(time.Second) {
		if fetched(false) {
			at = append(at, now.Sub(begun).Round(time.Second))
		}
	}
	if want := []time.Duration{0, 5 * time.Second, 35 * time.Second, 95 * time.Second, 215 * time.Second, 455 * time.Second}; !slices.Equal(at, want) {
		t.Errorf("a digest that nobody serves is looked for after %s, want %s", at, want)
	}
	if retryAfter(1000) != retryMost {
		t.Errorf("%s after 1,000 failures", retryAfter(1000))
	}
	for i := range 5000 {
		id := peer.ID(fmt.Sprint(i))
		f.want(id, "", claimBeat, now)
		f.done(f.next(), false, now)
	}
	if len(f.past) > 400 || len(f.jobs) != 0 || len(f.busy) != 0 {
		t.Errorf("%d peers remembered, %d jobs", len(f.past), len(f.jobs))
	}
}

// lookups counts what is asked of a DHT in which nobody has anything.
type lookups struct {
	kademlia
	table *kbucket.RoutingTable
	n     int
}

func (l *lookups) RoutingTable() *kbucket.RoutingTable { return l.table }
func (l *lookups) nearest(string, int) []peer.ID       { return nil }
func (l *lookups) GetValue(context.Context, string, ...routing.Option) ([]byte, error) {
	l.n++
	return nil, routing.ErrNotFound
}

func TestADigestThatNobodyServesCostsOneLookup(t *testing.T) {
	d := still(t)
	table, err := kbucket.NewRoutingTable(8, kbucket.ConvertPeerID(d.host.ID()), time.Minute, d.host.Peerstore(), time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
	l := &lookups{table: table}
	d.kad, d.wire, d.indexes.at = l, newMessenger(d.host), epoch
	d.index.putBeat(&beat{peer: "made up", av: heartbeat("made up", 1, epoch, nil, ready)}, 0, epoch)
	for tries := range 3 {
		l.n = 0
		if err := d.fetch(t.Context(), "made up", tries); !errors.Is(err, ErrNoServers) || l.n != 1 {
			t.Errorf("after %d failures: %d lookups, %v", tries, l.n, err)
		}
	}
}

func TestAMadeUpHeartbeatIsForgottenWhenItsRecordCannotBeHad(t *testing.T) {
	d := still(t)
	gone := make(chan struct{})
	table, err := kbucket.NewRoutingTable(8, kbucket.ConvertPeerID(d.host.ID()), time.Minute, d.host.Peerstore(), time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }()
	d.kad, d.wire, d.indexes.at = &lookups{table: table}, newMessenger(d.host), epoch
	who := identityOf(t, 9)
	if v := d.hear(who.id, sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, epoch, nil, ready))); v != Accept || d.index.size() != 1 {
		t.Fatalf("verdict %d, %d held", v, d.index.size())
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(gone); _ = d.fetchLoop(ctx) }()
	eventually(t, "it is forgotten", func() bool { return d.index.size() == 0 })
	cancel()
	<-gone
}

func TestHostsThatSayNothingDoNotKeepANewcomerOut(t *testing.T) {
	hub := startPeer(t, 0, func(c *Config) { c.Shards, c.Index = AllShards(), true })
	other := startPeer(t, 1, nil)
	connect(t, other.host, hub.host)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for i := range 24 { // they would hold eight workers for 15 s
		h, _ := newHost(t, identityOf(t, 100+i))
		h.SetStreamHandler(protocol.ProtoQuery, func(s network.Stream) { <-ctx.Done(); _ = s.Reset() })
		connect(t, h, hub.host)
	}
	begun := time.Now()
	good := startPeer(t, 2, nil)
	connect(t, good.host, hub.host)
	eventually(t, "servers", func() bool { return good.dir.Servers() > 0 })
	raw := good.advertise(t, gpu("nvidia-l4-24gb", 1, 22.5))
	eventually(t, "the hub knows the newcomer", func() bool {
		if _, ok := hub.dir.index.get(good.id, time.Now()); ok {
			return true
		}
		good.beat(t, raw, ready)
		return false
	})
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("the newcomer is known after %s", took)
	}
}
