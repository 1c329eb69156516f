package node

import (
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// refused fails unless err is the peer's answer with the code and the word.
func refused(t *testing.T, err error, code p2p.Code, word string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted, want %s with %q", code, word)
		return
	}
	if p2p.CodeOf(err) != code || !strings.Contains(err.Error(), word) {
		t.Errorf("%v, want %s with %q", err, code, word)
	}
}

func TestAReservationWithoutRightIsRefusedWithItsCode(t *testing.T) {
	inWorld(t, 1, 10, func(w *world) {
		t := w.T
		b, node := w.bridge, w.id(0)
		_, err := b.reserve(b.reservation(node, 1))
		refused(t, err, p2p.CodeUnauthorized, "auth/present-again")

		if reply, err := b.auth(node); err != nil || !reply.GetOk() {
			t.Fatalf("auth: %v, %v", reply, err)
		}
		other := newKey(t)
		for name, c := range map[string]struct {
			change func(r *protocol.Reservation)
			key    crypto.PrivKey
			code   p2p.Code
			word   string
		}{
			"signed by another key": {func(*protocol.Reservation) {}, other, p2p.CodeUnauthorized, "auth/signature"},
			"of another bridge":     {func(r *protocol.Reservation) { r.Bridge = idOf(t, other) }, other, p2p.CodeUnauthorized, "bridge"},
			"for another node":      {func(r *protocol.Reservation) { r.Node = idOf(t, other) }, nil, p2p.CodeUnauthorized, "node"},
			"over":                  {func(r *protocol.Reservation) { r.NotAfter = time.Now().Add(-2 * time.Minute) }, nil, p2p.CodeStale, "ended"},
			"too far ahead":         {func(r *protocol.Reservation) { r.NotAfter = time.Now().Add(time.Hour) }, nil, p2p.CodeRefused, "ahead"},
			"an unknown grant":      {func(r *protocol.Reservation) { r.Grant[0] ^= 1 }, nil, p2p.CodeUnauthorized, "auth/present-again"},
			"another network":       {func(r *protocol.Reservation) { r.Network[0] ^= 1 }, nil, p2p.CodeUnauthorized, "auth/network"},
		} {
			r := b.reservation(node, 1)
			c.change(&r)
			key := c.key
			if key == nil {
				key = b.host.Key()
			}
			raw, err := sealAs(&r, key)
			if err != nil {
				continue // the noun itself refuses to sign for somebody else
			}
			t.Log(name)
			refused(t, p2p.Call(t.Context(), b.host, node, protocol.ProtoReserve, &pb.ReserveRequest{Reservation: raw}, &pb.ReserveReply{}), c.code, c.word)
		}

		r := b.reservation(node, 1)
		if reply, err := b.reserve(r); err != nil || len(reply.GetOffer()) == 0 {
			t.Fatalf("a good reservation: %v, %v", reply, err)
		}
		_, err = b.reserve(r)
		refused(t, err, p2p.CodeUnauthorized, "auth/replay")

		// The seen-set outlives the process.
		w.process[0].Crash()
		w.start(0)
		if reply, err := b.auth(node); err != nil || !reply.GetOk() {
			t.Fatalf("auth after a restart: %v, %v", reply, err)
		}
		_, err = b.reserve(r)
		refused(t, err, p2p.CodeUnauthorized, "auth/replay")

		garbage := &pb.ReserveRequest{Reservation: []byte("garbage")}
		refused(t, p2p.Call(t.Context(), b.host, node, protocol.ProtoReserve, garbage, &pb.ReserveReply{}), p2p.CodeMalformed, "")
		huge := &pb.ReserveRequest{Reservation: make([]byte, 300<<10)}
		refused(t, p2p.Call(t.Context(), b.host, node, protocol.ProtoReserve, huge, &pb.ReserveReply{}), p2p.CodeTooLarge, "")
		if n := len(w.backends[0].starts); n != 0 {
			t.Errorf("%d runs came of this", n)
		}
	})
}

func sealAs(r *protocol.Reservation, key crypto.PrivKey) ([]byte, error) { return r.Seal(key) }

func idOf(t testing.TB, key crypto.PrivKey) protocol.PeerID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAChainThatDoesNotHoldGivesNoRight(t *testing.T) {
	inWorld(t, 1, 10, func(w *world) {
		t := w.T
		b, node := w.bridge, w.id(0)
		good := b.chain
		stranger := newKey(t)
		now := time.Now()
		make1 := func(change func(g *protocol.Grant), key crypto.PrivKey) [][]byte {
			g := protocol.Grant{
				Network: b.network.ID, Issuer: b.host.ID(), Audience: b.host.ID(), Abilities: []string{protocol.AbilityJobSubmit},
				NotBefore: now.Add(-time.Hour).Truncate(time.Second), NotAfter: now.Add(time.Hour).Truncate(time.Second),
			}
			change(&g)
			raw, err := g.Seal(key)
			if err != nil {
				t.Fatal(err)
			}
			return [][]byte{raw}
		}
		for name, c := range map[string]struct {
			network protocol.NetworkID
			chain   [][]byte
			code    protocol.AuthCode
		}{
			"no chain":          {b.network.ID, nil, protocol.AuthTooLarge},
			"another network":   {protocol.NetworkID{1}, good, protocol.AuthNetwork},
			"not from a root":   {b.network.ID, make1(func(g *protocol.Grant) { g.Issuer = idOf(t, stranger) }, stranger), protocol.AuthRoot},
			"for somebody else": {b.network.ID, make1(func(g *protocol.Grant) { g.Audience = idOf(t, stranger) }, b.host.Key()), protocol.AuthAudience},
			"run out":           {b.network.ID, make1(func(g *protocol.Grant) { g.NotAfter = now.Add(-30 * time.Minute).Truncate(time.Second) }, b.host.Key()), protocol.AuthWindow},
			"altered":           {b.network.ID, [][]byte{append(append([]byte{}, good[0][:len(good[0])-1]...), good[0][len(good[0])-1]^1)}, protocol.AuthSignature},
		} {
			b.chain = c.chain
			reply := &pb.AuthReply{}
			err := p2p.Call(t.Context(), b.host, node, protocol.ProtoAuth, &pb.AuthRequest{Network: c.network[:], Links: c.chain}, reply)
			if err != nil || reply.GetOk() || reply.GetCode() != string(c.code) || reply.GetText() == "" {
				t.Errorf("%s: %v, %v, want %s", name, reply, err, c.code)
			}
		}
		// A right without the ability to submit is no right to a lease stream either.
		b.chain = make1(func(g *protocol.Grant) { g.Abilities = []string{protocol.AbilityAttest} }, b.host.Key())
		if reply, err := b.auth(node); err != nil || !reply.GetOk() {
			t.Fatalf("auth: %v, %v", reply, err)
		}
		f, err := b.host.OpenDuplex(t.Context(), node, protocol.ProtoLease)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Reset()
		if err := f.Write(&pb.LeaseSet{Seq: 1}); err != nil {
			t.Fatal(err)
		}
		refused(t, f.Read(&pb.LeaseReport{}), p2p.CodeUnauthorized, "auth/present-again")
	})
}

func TestWhatPolicyRefusesIsSaidWithItsRule(t *testing.T) {
	inWorld(t, 1, 10, func(w *world) {
		t := w.T
		b, node := w.bridge, w.id(0)
		if reply, err := b.auth(node); err != nil || !reply.GetOk() {
			t.Fatalf("auth: %v, %v", reply, err)
		}
		for name, c := range map[string]struct {
			change func(r *protocol.Reservation)
			word   string
		}{
			"too much memory":   {func(r *protocol.Reservation) { r.Terms.Limits.MemoryBytes = 1 << 50 }, "limits.memory"},
			"too much disk":     {func(r *protocol.Reservation) { r.Terms.Limits.DiskBytes = 1 << 50 }, "limits.disk"},
			"too long":          {func(r *protocol.Reservation) { r.Terms.Limits.Wall = 48 * time.Hour }, "limits.wall"},
			"too cheap":         {func(r *protocol.Reservation) { r.Rate = 5 }, "min_price"},
			"GPUs":              {func(r *protocol.Reservation) { r.Terms.GPUCount = 1 }, "GPU"},
			"a container":       {func(r *protocol.Reservation) { r.Terms.Run = protocol.Run{Image: "x", Command: []string{"x"}} }, "wasm"},
			"a gang":            {func(r *protocol.Reservation) { r.Terms.Kind = "gang" }, "kind"},
			"unknown isolation": {func(r *protocol.Reservation) { r.Terms.MinIsolation = "confidential" }, "min_isolation"},
		} {
			r := b.reservation(node, 1)
			c.change(&r)
			reply, err := b.reserve(r)
			if err != nil || protocol.Reason(reply.GetReason()) != protocol.ReasonRefusedPolicy || !strings.Contains(reply.GetText(), c.word) || len(reply.GetOffer()) > 0 {
				t.Errorf("%s: %v, %v, want refused_policy naming %s", name, reply, err, c.word)
			}
		}
	}, func(c *Config) { c.Ask = 10 })
}

func TestLeasesThatAreNotTheBridgesToGiveDoNotRun(t *testing.T) {
	other := func(g *protocol.LeaseGrants) { g.Leases = append(g.Leases, g.Leases[0]) }
	for name, c := range map[string]struct {
		tamper func(g *protocol.LeaseGrants)
		runs   bool
	}{
		"for another node":        {func(g *protocol.LeaseGrants) { g.Node = g.Bridge }, false},
		"another network":         {func(g *protocol.LeaseGrants) { g.Network[0] ^= 1 }, false},
		"an unknown grant":        {func(g *protocol.LeaseGrants) { g.Grant[0] ^= 1 }, false},
		"over":                    {func(g *protocol.LeaseGrants) { g.NotAfter = g.NotAfter.Add(-time.Hour) }, false},
		"for too long":            {func(g *protocol.LeaseGrants) { g.NotAfter = g.NotAfter.Add(time.Hour) }, false},
		"of another job":          {foreignJob, false},
		"the same lease twice":    {other, true},
		"more than was asked for": {tooMany, true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, 10, func(w *world) {
				t := w.T
				b := w.bridge
				once := false
				b.tamper = func(g *protocol.LeaseGrants) {
					if !once && len(g.Leases) > 0 {
						once = true
						c.tamper(g)
					}
				}
				b.join(w.ctx, w.wg, w.id(0), 2)
				w.within(10*time.Second, "the bad message is out", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return once })
				// What was refused is given again by the bridge under new fences; everything is accounted once.
				w.giveLostAgain()
				w.within(time.Minute, "all chunks are accounted", func() bool { w.giveLostAgain(); return b.accounted() == 10 })
				w.backends[0].mu.Lock()
				defer w.backends[0].mu.Unlock()
				for id, n := range w.backends[0].starts {
					if n != 1 {
						t.Errorf("lease %s started %d times", id, n)
					}
				}
				if most := w.backends[0].most; most > 2 {
					t.Errorf("%d runs at once", most)
				}
			})
		})
	}
}

func foreignJob(g *protocol.LeaseGrants) {
	job := protocol.NewJobID()
	for i := range g.Leases {
		l := &g.Leases[i]
		l.Job = job
		l.Chunk.ID = protocol.NewChunkID(job, l.Chunk.First, l.Chunk.End)
	}
}

// tooMany adds leases of chunks far away.
func tooMany(g *protocol.LeaseGrants) {
	for i := range 20 {
		l := g.Leases[0]
		l.ID, l.Chunk.First, l.Chunk.End = protocol.NewLeaseID(), uint64(1000+i), uint64(1001+i)
		l.Chunk.ID, l.Inputs = protocol.NewChunkID(l.Job, l.Chunk.First, l.Chunk.End), []string{"x"}
		g.Leases = append(g.Leases, l)
	}
}

// giveLostAgain does what a bridge does with leases that a node reports not to have.
func (w *world) giveLostAgain() {
	b := w.bridge
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, l := range b.leases {
		report := b.reports[b.holders[id]]
		if b.gone[id] || report == nil || l.Chunk.First >= 1000 {
			continue
		}
		held := false
		for _, o := range report.GetLeases() {
			held = held || protocol.LeaseID(o.GetLeaseId()) == id
		}
		if !held && report.GetSeq() >= b.set-1 && b.fences[l.Chunk.First] == l.Fence && b.done[l.Chunk.First] == cid.Undef {
			b.gone[id] = true
			b.again = append(b.again, l.Chunk.First)
		}
	}
}

func TestAnOldFenceIsNotTaken(t *testing.T) {
	inWorld(t, 1, 4, func(w *world) {
		t := w.T
		b := w.bridge
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(10*time.Second, "all chunks are accounted", func() bool { return b.accounted() == 4 })
		before := len(w.backends[0].starts)
		b.mu.Lock()
		b.fences[2] = 0 // the bridge has lost count: it gives fence 1 again
		b.again = []uint64{2}
		b.mu.Unlock()
		b.announce(w.topic, 1, false)
		<-time.After(5 * time.Second)
		w.backends[0].mu.Lock()
		defer w.backends[0].mu.Unlock()
		if n := len(w.backends[0].starts); n != before {
			t.Errorf("a lease under an old fence ran: %d starts, %d before", n, before)
		}
	})
}

func TestAStrangerOnTheJobsTopicIsNotHeard(t *testing.T) {
	inWorld(t, 2, 4, func(w *world) {
		t := w.T
		w.backends[0].behave = untilStopped
		b := w.bridge
		b.join(w.ctx, w.wg, w.id(0), 2)
		w.within(10*time.Second, "two chunks run", func() bool { return w.backends[0].runs() == 2 })
		stranger := w.process[1].Host()
		if err := stranger.Connect(t.Context(), w.process[0].Host().AddrInfo()); err != nil {
			t.Fatal(err)
		}
		topic, err := p2p.Join(stranger, protocol.TopicJob(b.job), p2p.TopicConfig[[]byte]{Decode: func(b []byte, _ protocol.PeerID) ([]byte, error) { return b, nil }})
		if err != nil {
			t.Fatal(err)
		}
		a := protocol.Announcement{Job: b.job, Bridge: stranger.ID(), Seq: 1 << 40, Cancelled: true, Reason: protocol.ReasonCancelled, At: time.Now()}
		raw, err := a.Seal(stranger.Key())
		if err != nil {
			t.Fatal(err)
		}
		if err := topic.Publish(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		<-time.After(3 * time.Second)
		if n := w.backends[0].runs(); n != 2 {
			t.Errorf("%d chunks run after a stranger's cancellation, want 2", n)
		}
		if err := topic.Close(); err != nil {
			t.Error(err)
		}
	})
}
