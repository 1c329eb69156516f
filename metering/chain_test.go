package metering

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// pair is a node and a bridge with their keys.
type pair struct {
	nodeKey, bridgeKey crypto.PrivKey
	node, bridge       protocol.PeerID
	network            protocol.NetworkID
	chain              *Chain
}

func newPair(t testing.TB) *pair {
	t.Helper()
	id := func() (crypto.PrivKey, protocol.PeerID) {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		ok(t, err)
		id, err := peer.IDFromPrivateKey(key)
		ok(t, err)
		return key, id
	}
	p := &pair{network: protocol.NetworkID{7}}
	p.nodeKey, p.node = id()
	p.bridgeKey, p.bridge = id()
	p.chain = NewChain(p.network, p.node, p.bridge)
	return p
}

// idle makes n idle records of a slot, one per cell from a cell on.
func (p *pair) idle(slot uint16, cell int64, n int) []protocol.UsageRecord {
	var out []protocol.UsageRecord
	for i := range n {
		c := cell + int64(i)
		out = append(out, protocol.UsageRecord{
			ID: protocol.NewRecordID(p.node, nil, slot, protocol.UsageIdle, uint64(c)), Slot: slot, State: protocol.UsageIdle,
			StartMS: c * protocol.CellMillis, EndMS: (c + 1) * protocol.CellMillis, DurationMS: protocol.CellMillis,
		})
	}
	return out
}

func (p *pair) issue(t testing.TB, records []protocol.UsageRecord) []Issued {
	t.Helper()
	out, err := p.chain.Issue(records, protocol.GrantID{1}, sunday, p.nodeKey)
	ok(t, err)
	return out
}

var cell0 = sunday.UnixMilli() / protocol.CellMillis

func TestChainIssuesReceiptsOfUpTo256Records(t *testing.T) {
	p := newPair(t)
	if out := p.issue(t, nil); len(out) != 0 {
		t.Errorf("no records give %d receipts", len(out))
	}
	out := p.issue(t, p.idle(0, cell0, 600))
	var prev [32]byte
	total := 0
	for i, x := range out {
		r, hash, err := protocol.OpenReceipt(x.Raw)
		ok(t, err)
		if r.Seq != uint64(i+1) || r.Prev != prev || hash != x.Hash || r.Node != p.node || r.Bridge != p.bridge || r.Network != p.network {
			t.Errorf("receipt %d: %+v", i, r)
		}
		prev, total = hash, total+len(r.Records)
	}
	if len(out) != 3 || total != 600 || p.chain.Position() != (Position{3, prev}) {
		t.Errorf("%d receipts of %d records, position %+v", len(out), total, p.chain.Position())
	}
	if pending := p.chain.Pending(); len(pending) != 3 || !bytes.Equal(pending[2].Raw, out[2].Raw) {
		t.Errorf("%d receipts are pending", len(pending))
	}
}

func TestCounterSignaturesSettleWhatIsPending(t *testing.T) {
	p := newPair(t)
	out := p.issue(t, p.idle(0, cell0, 300)) // 256 and 44 cells
	if open, ppm := p.chain.Exposure(); open != 1500*time.Second || ppm != 0 {
		t.Errorf("exposure %s, %d ppm", open, ppm)
	}
	cs := protocol.CounterSign{Hash: out[1].Hash, Node: p.node, Seq: 2, BridgeTime: sunday, Records: []protocol.RecordVerdict{{DurationMS: 44 * 4000}}}
	for what, spoil := range map[string]func(*protocol.CounterSign){
		"hash": func(c *protocol.CounterSign) { c.Hash[0]++ }, "node": func(c *protocol.CounterSign) { c.Node = p.bridge }, "seq": func(c *protocol.CounterSign) { c.Seq = 1 },
	} {
		bad := cs
		spoil(&bad)
		if err := p.chain.Countersigned(&bad); !errors.Is(err, ErrUnknownReceipt) {
			t.Errorf("another %s gives %v", what, err)
		}
	}
	ok(t, p.chain.Countersigned(&cs))
	if err := p.chain.Countersigned(&cs); !errors.Is(err, ErrUnknownReceipt) {
		t.Errorf("the same answer again gives %v", err)
	}
	if open, ppm := p.chain.Exposure(); open != 1280*time.Second || ppm != 200_000 {
		t.Errorf("exposure %s, %d ppm, want 1280 s and a fifth", open, ppm)
	}
	if pending := p.chain.Pending(); len(pending) != 1 || pending[0].Seq != 1 {
		t.Errorf("pending %+v", pending)
	}
	cs = protocol.CounterSign{Hash: out[0].Hash, Node: p.node, Seq: 1, BridgeTime: sunday.Add(2 * time.Hour), Records: []protocol.RecordVerdict{{DurationMS: 256 * 5000}}}
	ok(t, p.chain.Countersigned(&cs))
	if open, ppm := p.chain.Exposure(); open != 0 || ppm != 0 {
		t.Errorf("after an hour exposure is %s, %d ppm", open, ppm)
	}
}

func TestChainSurvivesARestart(t *testing.T) {
	p := newPair(t)
	out := p.issue(t, p.idle(0, cell0, 600))
	ok(t, p.chain.Countersigned(&protocol.CounterSign{Hash: out[0].Hash, Node: p.node, Seq: 1, BridgeTime: sunday}))
	state, err := p.chain.State()
	ok(t, err)
	back := NewChain(p.network, p.node, p.bridge)
	ok(t, back.Restore(state))
	if back.Position() != p.chain.Position() || len(back.Pending()) != 2 {
		t.Errorf("position %+v, %d pending", back.Position(), len(back.Pending()))
	}
	if a, _ := back.Exposure(); a != 344*5*time.Second {
		t.Errorf("exposure %s", a)
	}
	again, err := back.State()
	ok(t, err)
	if !bytes.Equal(again, state) {
		t.Errorf("state %s, want %s", again, state)
	}
	for what, c := range map[string]*Chain{
		"node": NewChain(p.network, p.bridge, p.bridge), "bridge": NewChain(p.network, p.node, p.node), "network": NewChain(protocol.NetworkID{8}, p.node, p.bridge),
	} {
		if err := c.Restore(state); !errors.Is(err, ErrState) || c.Position() != (Position{}) {
			t.Errorf("the state of another %s gives %v", what, err)
		}
	}
	if err := back.Restore([]byte("{")); !errors.Is(err, ErrState) || len(back.Pending()) != 2 {
		t.Errorf("half a state gives %v", err)
	}
	// The incremental form: replaying the receipts one by one.
	inc := NewChain(p.network, p.node, p.bridge)
	for _, x := range out {
		ok(t, inc.Append(x.Raw))
	}
	if inc.Position() != p.chain.Position() || len(inc.Pending()) != 3 {
		t.Errorf("position %+v", inc.Position())
	}
	if err := inc.Append(out[0].Raw); !errors.Is(err, ErrState) {
		t.Errorf("an old receipt gives %v", err)
	}
}

func TestAnEmptyDiskTakesUpTheBridgesPosition(t *testing.T) {
	p := newPair(t)
	out := p.issue(t, p.idle(0, cell0, 1))
	fresh := NewChain(p.network, p.node, p.bridge)
	ok(t, fresh.Adopt(Position{1, out[0].Hash}))
	next, err := fresh.Issue(p.idle(0, cell0+1, 1), protocol.GrantID{}, sunday, p.nodeKey)
	ok(t, err)
	if r, _, err := protocol.OpenReceipt(next[0].Raw); err != nil || r.Seq != 2 || r.Prev != out[0].Hash {
		t.Errorf("it goes on with %+v, %v", r, err)
	}
	for _, pos := range []Position{{}, {1, out[0].Hash}, {2, [32]byte{1}}} {
		if err := fresh.Adopt(pos); !errors.Is(err, ErrBehind) {
			t.Errorf("going back to %d gives %v", pos.Seq, err)
		}
	}
	ok(t, fresh.Adopt(fresh.Position()))
	if len(fresh.Pending()) != 1 {
		t.Error("its own position made the chain forget what is pending")
	}
}

func FuzzChainRestore(f *testing.F) {
	p := newPair(f)
	out, err := p.chain.Issue(p.idle(0, cell0, 2), protocol.GrantID{1}, sunday, p.nodeKey)
	ok(f, err)
	state, err := p.chain.State()
	ok(f, err)
	f.Add(state)
	f.Add(out[0].Raw)
	f.Add([]byte(`{"network":"","seq":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewChain(p.network, p.node, p.bridge)
		if err := c.Restore(b); err != nil {
			if c.Position() != (Position{}) || len(c.Pending()) > 0 {
				t.Fatal("a refused state changed the chain")
			}
			return
		}
		again, err := c.State()
		ok(t, err)
		ok(t, NewChain(p.network, p.node, p.bridge).Restore(again))
	})
}
