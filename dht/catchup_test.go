package dht

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

func TestAReplicaThatHasJustBeenStartedKnowsWhatAnotherOneKnows(t *testing.T) {
	peers := neighbourhood(t, 6)
	for _, p := range peers[1:] {
		record := p.advertise(t, gpu("nvidia-l4-24gb", 1, 22.5))
		eventually(t, "the first replica has heard of all", func() bool {
			if !peers[0].dir.heard(p.id) {
				p.beat(t, record, ready)
			}
			return peers[0].dir.heard(p.id)
		})
	}
	if err := peers[0].dir.Provide(within(t, 5*time.Second), []string{attrIndex}); err != nil {
		t.Fatal(err)
	}
	late := startPeer(t, 50, func(c *Config) { c.Shards, c.Index = AllShards(), true })
	connect(t, late.host, peers[2].host) // it is introduced to one node, and no heartbeat is sent any more
	eventually(t, "the second replica lists all", func() bool {
		got, _ := find(t, late.dir, `gpu.model == "L4" && gpu.free >= 1`, nil)
		return slices.Equal(got, idsOf(peers[1:]...))
	})
}

// stuckKad names some providers and then waits, as kad-dht does for holders that have died.
type stuckKad struct {
	kademlia
	names []peer.AddrInfo
	ended chan struct{}
}

func (k *stuckKad) FindProvidersAsync(ctx context.Context, _ cid.Cid, _ int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(k.ended)
		defer close(out)
		for _, info := range k.names {
			select {
			case out <- info:
			case <-ctx.Done():
				return
			}
		}
		<-ctx.Done()
	}()
	return out
}

func TestADeadHolderDoesNotTakeASearchsWholeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for names, most := range map[int]time.Duration{3: providerPatience, 0: DefaultConfig().ColdTimeout / 2} {
			k := &stuckKad{ended: make(chan struct{})}
			for i := range names {
				k.names = append(k.names, peer.AddrInfo{ID: identityOf(t, i).id})
			}
			d := &Directory{cfg: DefaultConfig(), kad: k}
			key, err := providerKey(AttrAll, "")
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			got := d.lookUpProviders(context.Background(), key, 128)
			if took := time.Since(begun); len(got) != names || took > most {
				t.Errorf("%d of %d providers after %s, want all within %s", len(got), names, took, most)
			}
			<-k.ended
		}
		d := &Directory{cfg: DefaultConfig(), kad: &stuckKad{ended: make(chan struct{})}}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		key, _ := providerKey(AttrAll, "")
		if got := d.lookUpProviders(ctx, key, 1); len(got) != 0 || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("who asks decides how long: %v, %v", got, ctx.Err())
		}
	})
}
