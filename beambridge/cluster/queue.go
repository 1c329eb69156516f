package cluster

import (
	"slices"
)

// queue is the FIFO of ready chunks, linked through them so that any may leave at once.
type queue struct {
	head, tail *chunk
	len        int
}

func (q *queue) push(c *chunk, front bool) {
	c.queued = true
	q.len++
	switch {
	case q.head == nil:
		q.head, q.tail = c, c
	case front:
		c.next, q.head.prev, q.head = q.head, c, c
	default:
		c.prev, q.tail.next, q.tail = q.tail, c, c
	}
}

func (q *queue) remove(c *chunk) {
	if !c.queued {
		return
	}
	if c.prev == nil {
		q.head = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		q.tail = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.prev, c.next, c.queued = nil, nil, false
	q.len--
}

// enqueue puts a chunk where claims find it, when it needs a lease; one that ran before goes first.
func (t *Tracker) enqueue(c *chunk, again bool) {
	if c.queued || t.need(c) == 0 {
		return
	}
	t.ready.push(c, again)
	c.announced = false
	if len(t.fresh) > 2*t.ready.len+32 { // claims may be faster than announcements
		t.fresh = slices.DeleteFunc(t.fresh, func(o *chunk) bool { return !o.queued || o.announced })
	}
	t.fresh = append(t.fresh, c)
}

func (t *Tracker) pending() bool { return len(t.fresh) > 0 || t.canCut() }

// canCut says whether a chunk is to be cut: AnnouncePer × slots may be ready. While the run time is unknown
// only probes are cut, one per slot; the rest waits until one of them has returned.
func (t *Tracker) canCut() bool {
	if t.state.Final() || t.cutter.Remaining() == 0 || t.ready.len >= t.cfg.AnnouncePer*t.slots {
		return false
	}
	return t.pace().Known() || len(t.chunks) < t.slots
}
