package dht

import (
	"container/list"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// bareLife is for how long a node is held of which only heartbeats are known. Fetching its record takes seconds; a
// heartbeat that comes later makes room for it again.
const bareLife = 30 * time.Second

// bareLimit bounds the nodes of which only heartbeats are known: strangers make them for nothing. A new one takes the
// place of the one that is there longest, so that a flood of made-up keys keeps nobody out.
func (x *replica) bareLimit() int { return x.limit/8 + 16 }

// bareSlots are the slots without a record, by the time at which they were given away. The replica's mutex guards it.
type bareSlots struct {
	order *list.List // of bareSlot, oldest first
	of    map[uint32]*list.Element
}

type bareSlot struct {
	slot uint32
	at   time.Duration // since the replica's base
}

func newBareSlots() bareSlots {
	return bareSlots{order: list.New(), of: map[uint32]*list.Element{}}
}

func (b *bareSlots) len() int { return b.order.Len() }

func (b *bareSlots) add(slot uint32, at time.Duration) {
	b.of[slot] = b.order.PushBack(bareSlot{slot, at})
}

func (b *bareSlots) remove(slot uint32) {
	if e := b.of[slot]; e != nil {
		b.order.Remove(e)
		delete(b.of, slot)
	}
}

// oldest is the slot that is bare longest; there has to be one.
func (b *bareSlots) oldest() uint32 { return b.order.Front().Value.(bareSlot).slot }

// since is when it was given away.
func (b *bareSlots) since() time.Duration { return b.order.Front().Value.(bareSlot).at }

// dropBare forgets a peer of which only heartbeats are known: its record could not be had.
func (x *replica) dropBare(id peer.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if i, ok := x.slots[id]; ok && x.at(i).record == nil {
		x.dropLocked(i)
	}
}
