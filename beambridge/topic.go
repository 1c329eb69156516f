package beambridge

import (
	"context"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

// guests are the peers that a job's topic admits: its cluster.
type guests struct {
	mu  sync.RWMutex
	ids map[protocol.PeerID]bool
}

func (g *guests) add(id protocol.PeerID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids[id] = true
}

func (g *guests) remove(id protocol.PeerID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.ids, id)
}

func (g *guests) has(id protocol.PeerID) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.ids[id]
}

// jobTopic is the topic of one job. It is opened beside the engine; until it is, nothing is announced, and
// nodes claim without being told.
type jobTopic struct {
	guests guests
	begun  bool          // the engine's: it was begun to be opened
	ready  chan struct{} // closed when topic is set, or could not be
	topic  *p2p.Topic[protocol.Announcement]
}

// guests are whom the job's topic admits.
func (j *job) guests() *guests {
	if j.topic == nil {
		j.topic = &jobTopic{guests: guests{ids: map[protocol.PeerID]bool{}}, ready: make(chan struct{})}
	}
	return &j.topic.guests
}

// begin opens a job's topic, once however often the engine calls it.
func (b *Bridge) begin(j *job) {
	g := j.guests()
	topic := j.topic
	if topic.begun {
		return
	}
	topic.begun = true
	name, id := protocol.TopicJob(j.id()), j.id()
	if !b.spawn(func() {
		defer close(topic.ready)
		t, err := p2p.Join(b.host, name, p2p.TopicConfig[protocol.Announcement]{
			Members: func(p peer.ID) bool { return p == b.self || g.has(p) },
			Decode: func(data []byte, author peer.ID) (protocol.Announcement, error) {
				a, err := protocol.OpenAnnouncement(data)
				if err == nil && (a.Bridge != author || a.Job != id) {
					err = protocol.ErrAuthor
				}
				return a, err
			},
		})
		if err != nil {
			b.log.Warn("a job's topic could not be opened; its nodes ask without being told", "job", id, "err", err)
			return
		}
		topic.topic = t
	}) {
		close(topic.ready)
	}
}

// notice is something to say on a job's topic.
type notice struct {
	topic *jobTopic
	noun  protocol.Announcement
	close bool // leave the topic afterwards
}

// notices is how many wait at most. Beyond, chunks stay unannounced: nodes ask for them within a second.
const notices = 1024

// announce says which chunks are ready. The engine calls it after the commit.
func (b *Bridge) announce(j *job) {
	for {
		ready := j.tracker.Announce()
		if len(ready) == 0 {
			return
		}
		j.announced++
		a := protocol.Announcement{Job: j.id(), Bridge: b.self, Seq: j.announced, At: b.cfg.Clock(), Ready: make([]protocol.Chunk, len(ready))}
		for i, r := range ready {
			a.Ready[i] = protocol.Chunk{ID: r.ID, First: r.Range.First, End: r.Range.End}
		}
		b.notify(notice{topic: j.topic, noun: a})
	}
}

// farewell tells a job's nodes at once that it has ended, and leaves the topic.
func (b *Bridge) farewell(j *job, why protocol.Reason) {
	j.announced++
	b.notify(notice{topic: j.topic, close: true, noun: protocol.Announcement{
		Job: j.id(), Bridge: b.self, Seq: j.announced, At: b.cfg.Clock(), Cancelled: j.over != cluster.JobDone, Reason: why,
	}})
}

func (b *Bridge) notify(n notice) {
	if n.topic == nil {
		return
	}
	if n.close { // it has to happen
		b.spawn(func() { b.tell(b.ctx(), n) })
		return
	}
	select {
	case b.notices <- n:
	default:
		b.log.Debug("an announcement was dropped", "job", n.noun.Job)
	}
}

// crier publishes notices one after the other.
func (b *Bridge) crier(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-b.notices:
			b.tell(ctx, n)
		}
	}
}

// tell signs and publishes one notice. Nothing is signed where nobody listens.
func (b *Bridge) tell(ctx context.Context, n notice) {
	select {
	case <-n.topic.ready:
	case <-ctx.Done():
	}
	t := n.topic.topic
	if t == nil {
		return
	}
	if len(t.Peers()) > 0 && (len(n.noun.Ready) > 0 || n.noun.Cancelled) {
		raw, err := n.noun.Seal(b.key())
		if err == nil {
			err = t.Publish(ctx, raw)
		}
		if err != nil && ctx.Err() == nil {
			b.log.Debug("an announcement was not published", "job", n.noun.Job, "err", err)
		}
	}
	if n.close {
		if err := t.Close(); err != nil {
			b.log.Debug("a job's topic was not left cleanly", "job", n.noun.Job, "err", err)
		}
	}
}

// readers says which peers may read which trees: members of jobs that use them.
type readers struct {
	mu    sync.RWMutex
	roots map[cid.Cid]map[protocol.JobID]struct{}
	jobs  map[protocol.JobID]*readingJob
}

// readingJob is one job's trees and members.
type readingJob struct {
	roots   []cid.Cid
	members map[protocol.PeerID]struct{}
}

var _ volumes.Authorizer = (*readers)(nil)

func newReaders() *readers {
	return &readers{roots: map[cid.Cid]map[protocol.JobID]struct{}{}, jobs: map[protocol.JobID]*readingJob{}}
}

// MayRead implements volumes.Authorizer.
func (r *readers) MayRead(p peer.ID, root cid.Cid) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for id := range r.roots[root] {
		if _, ok := r.jobs[id].members[p]; ok {
			return true
		}
	}
	return false
}

func (r *readers) job(j *job) *readingJob {
	x := r.jobs[j.id()]
	if x == nil {
		x = &readingJob{members: map[protocol.PeerID]struct{}{}}
		r.jobs[j.id()] = x
		own := []cid.Cid{j.terms.Run.Module, j.row.InputRoot}
		if f := j.terms.Run.Function; f != nil {
			own = append(own, f.Code)
		}
		for _, c := range append(own, rootsOf(j.terms.Volumes)...) {
			r.link(x, j.id(), c)
		}
	}
	return x
}

func rootsOf(refs []protocol.VolumeRef) (out []cid.Cid) {
	for _, v := range refs {
		out = append(out, v.Root)
	}
	return out
}

func (r *readers) link(x *readingJob, id protocol.JobID, c cid.Cid) {
	if !c.Defined() {
		return
	}
	if r.roots[c] == nil {
		r.roots[c] = map[protocol.JobID]struct{}{}
	}
	if _, ok := r.roots[c][id]; !ok {
		r.roots[c][id] = struct{}{}
		x.roots = append(x.roots, c)
	}
}

// admit lets a member read what its job uses.
func (r *readers) admit(j *job, id protocol.PeerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job(j).members[id] = struct{}{}
}

// drop takes a member's right away.
func (r *readers) drop(j *job, id protocol.PeerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.jobs[j.id()]; x != nil {
		delete(x.members, id)
	}
}

// allow adds a tree to what a job's members may read.
func (r *readers) allow(j *job, c cid.Cid) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.link(r.job(j), j.id(), c)
}

// forget ends a job's rights.
func (r *readers) forget(id protocol.JobID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.jobs[id]; x != nil {
		for _, c := range x.roots {
			if delete(r.roots[c], id); len(r.roots[c]) == 0 {
				delete(r.roots, c)
			}
		}
		delete(r.jobs, id)
	}
}
