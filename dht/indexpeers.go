package dht

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrNoIndex means that no index peer was found that answers.
var ErrNoIndex = errors.New("dht: no index peer answers")

const (
	indexSample   = 16 // index peers that are looked for
	indexAttempts = 8  // of them that are asked at most, until enough of different networks have answered
	missingShare  = 5  // an answer that lacks more than a fifth of what two others gave does not count as one
)

// IndexAnswer tells what an index peer said.
type IndexAnswer struct {
	// Peer was asked.
	Peer peer.ID
	// Matched and Population are its own counts.
	Matched, Population int
	// Given is how many nodes it gave, verified.
	Given int
	// Lacks is how many it did not give although two others did.
	Lacks int
	// Lacking says that it lacked so much that it does not count as heard. What it gave is used all the same: it is
	// signed by the nodes, and the two others may be those who lie.
	Lacking bool
	// Cut says that time was up before its last page.
	Cut bool
	// Err says why there is no answer, nil when there is.
	Err error
}

// polled is the whole answer of an index peer.
type polled struct {
	IndexAnswer
	rows    map[peer.ID]answered
	upTo    uint64 // the answer holds every match whose shuffled order is at most this
	clauses []*pb.ClauseCount
	groups  []string // its network and its operator
	own     []byte   // its capability, as it says itself
}

// findIndex asks index peers of different networks and operators, and unites what they give; each envelope is
// verified and the filter evaluated again. With ViaAuto and too few of them, or some that lack what others gave, the nodes
// themselves are asked too.
func (d *Directory) findIndex(ctx context.Context, query Query) ([]Candidate, Explanation, error) {
	ctx, cancel, err := d.searching(ctx)
	if err != nil {
		return nil, Explanation{}, err
	}
	defer cancel()
	ids, remembered := d.indexPeers(ctx, false)
	answers := d.poll(ctx, query, ids, nil)
	if remembered && independent(answers) < d.cfg.IndexPeers {
		ids, _ = d.indexPeers(ctx, true)
		answers = d.poll(ctx, query, ids, answers)
	}
	lacking(answers, query.Seed)
	found := newReplica(d.cfg.MaxNodes)
	ex := Explanation{Tier: "index", IndexWanted: d.cfg.IndexPeers}
	groups, best, heard := map[string]bool{}, -1, 0
	for i, a := range answers {
		ex.PeersAsked++
		ex.Index = append(ex.Index, a.IndexAnswer)
		if a.Err != nil {
			ex.PeersFailed++
			continue
		}
		if !a.Lacking {
			heard += btoi(fresh(groups, a.groups))
		}
		for _, row := range a.rows {
			found.learn(row, d.now())
		}
		if best < 0 || a.knowsMoreThan(answers[best]) {
			best = i
		}
	}
	ex.IndexHeard = heard
	switch {
	case query.Via == ViaIndex && best < 0:
		return nil, ex, ErrNoIndex
	case query.Via == ViaAuto && ex.IndexHeard < d.cfg.IndexPeers:
		asked, failed := d.searchCold(ctx, query, found)
		ex.PeersAsked, ex.PeersFailed = ex.PeersAsked+asked, ex.PeersFailed+failed
		if ex.Tier = "index+cold"; best < 0 {
			ex.Tier = "cold"
		}
	}
	return d.united(query, found, ex, answers, best)
}

// knowsMoreThan says whose counts are shown: of one that lacks little rather than of one that lacks much.
func (a *polled) knowsMoreThan(b *polled) bool {
	if a.Lacking != b.Lacking {
		return b.Lacking
	}
	return a.Population > b.Population
}

// united evaluates what was collected. The clauses were counted where the whole population is known, at the
// index peer that knows most, unless the nodes themselves had to be asked.
func (d *Directory) united(query Query, found *replica, ex Explanation, answers []*polled, best int) ([]Candidate, Explanation, error) {
	out, own := newAsking(query, d.now(), false).run(found)
	ex.Population, ex.Matched, ex.Clauses = own.Population, own.Matched, own.Clauses
	ex.OldestAge, ex.MedianAge, ex.Equivocated = own.OldestAge, own.MedianAge, own.Equivocated
	if best >= 0 {
		a := answers[best]
		ex.Population = max(ex.Population, a.Population)
		if query.Explain && len(a.clauses) > 0 {
			ex.Clauses = nil
			for _, c := range a.clauses[:min(len(a.clauses), 2*protocol.MaxFilterNodes)] {
				ex.Clauses = append(ex.Clauses, ClauseCount{
					Text: fmt.Sprintf("%.*s", protocol.MaxFilter, c.GetText()), Implied: c.GetImplied(),
					Removed: int(max(c.GetRemoved(), c.GetRemovedAlone())), RemovedAlone: int(c.GetRemovedAlone()), Left: int(c.GetLeft()),
				})
			}
		}
	}
	return out, ex, nil
}

// indexMemory is for how long the index peers that were found are asked again without a look for others.
const indexMemory = 30 * time.Minute

// indexes are the index peers that were found last.
type indexes struct {
	turn chan struct{} // capacity 1, taken while they are looked for: who comes meanwhile waits for what is found
	ids  []peer.ID
	at   time.Time // zero when none were looked for
}

// take begins a turn, which release ends; it says whether ctx let it.
func (m *indexes) take(ctx context.Context) bool {
	select {
	case m.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (m *indexes) release() { <-m.turn }

// indexPeers finds peers that announced the role, those that we are connected to first, as they cost no dial. Those of
// the last half hour are remembered, unless fewer than are asked are still connected, or others are wanted.
func (d *Directory) indexPeers(ctx context.Context, others bool) (ids []peer.ID, remembered bool) {
	m := &d.indexes
	if !m.take(ctx) {
		return nil, false
	}
	defer m.release()
	if !others && !m.at.IsZero() && d.now().Sub(m.at) < indexMemory {
		ids = slices.DeleteFunc(slices.Clone(m.ids), func(id peer.ID) bool { return !d.connected(id) })
		remembered = len(ids) >= d.cfg.IndexPeers
	}
	if !remembered {
		ids = d.findIndexPeers(ctx)
		m.ids, m.at = slices.Clone(ids), d.now()
	}
	d.chance("index peers").Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	slices.SortStableFunc(ids, func(a, b peer.ID) int { return btoi(!d.connected(a)) - btoi(!d.connected(b)) })
	return ids, remembered
}

// otherReplicas are index peers that we are connected to, in random order. They are looked for every half hour, also
// when there are few.
func (d *Directory) otherReplicas(ctx context.Context, subject string) []peer.ID {
	m := &d.indexes
	if !m.take(ctx) {
		return nil
	}
	defer m.release()
	if m.at.IsZero() || d.now().Sub(m.at) >= indexMemory {
		m.ids, m.at = d.findIndexPeers(ctx), d.now()
	}
	ids := slices.DeleteFunc(slices.Clone(m.ids), func(id peer.ID) bool { return !d.connected(id) })
	d.chance(subject).Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

func (d *Directory) findIndexPeers(ctx context.Context) (ids []peer.ID) {
	infos, err := d.Providers(ctx, attrIndex, indexSample)
	if err != nil {
		d.log.Debug("index peers not found", "err", err)
	}
	for _, info := range infos {
		if info.ID != d.host.ID() {
			d.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.TempAddrTTL)
			ids = append(ids, info.ID)
		}
	}
	return sortedIDs(ids)
}

func (d *Directory) connected(id peer.ID) bool {
	return d.host.Network().Connectedness(id) == network.Connected
}

// poll asks until Config.IndexPeers of different networks and operators have answered, those of earlier answers
// included; at most indexAttempts of ids.
func (d *Directory) poll(ctx context.Context, query Query, ids []peer.ID, out []*polled) []*polled {
	opened := newOpener()
	ids = slices.DeleteFunc(ids, func(id peer.ID) bool {
		return slices.ContainsFunc(out, func(a *polled) bool { return a.Peer == id })
	})
	ids = ids[:min(len(ids), indexAttempts)]
	for len(ids) > 0 && ctx.Err() == nil {
		n := min(d.cfg.IndexPeers-independent(out), len(ids))
		if n <= 0 {
			break
		}
		round := make([]*polled, n)
		var wg sync.WaitGroup
		for i, id := range ids[:n] {
			wg.Go(func() { round[i] = d.askIndex(ctx, id, query, opened) })
		}
		wg.Wait()
		ids, out = ids[n:], append(out, round...)
	}
	return out
}

// independent is how many have answered that are of different networks and operators.
func independent(answers []*polled) (n int) {
	groups := map[string]bool{}
	for _, a := range answers {
		if a.Err == nil {
			n += btoi(fresh(groups, a.groups))
		}
	}
	return n
}

// fresh adds the groups of an answer; it says whether all are new: then the answer is independent of those
// before it.
func fresh(seen map[string]bool, groups []string) bool {
	isNew := true
	for _, g := range groups {
		isNew = isNew && !seen[g]
		seen[g] = true
	}
	return isNew
}

// askIndex brings the whole answer of one index peer, page by page. All are asked for one order, so that the
// first pages of two peers speak of the same nodes.
func (d *Directory) askIndex(ctx context.Context, of peer.ID, query Query, opened *opener) *polled {
	a := &polled{IndexAnswer: IndexAnswer{Peer: of}, rows: map[peer.ID]answered{}}
	text := ""
	if query.Filter != nil {
		text = query.Filter.Source()
	}
	cursor := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, query.Seed), 0)
	for cursor != nil {
		req := &pb.FindRequest{
			Filter: text, Limit: maxQueryRows, Cursor: cursor, Literal: query.Literal, Explain: query.Explain,
			MaxAgeS: uint32(min(max(query.MaxAge, 0)/time.Second, math.MaxUint32)),
		}
		end, err := d.askPage(ctx, of, req, a, opened)
		if err != nil && a.upTo > 0 {
			a.Cut = true // what came before is an answer, as far as it goes
			break
		}
		if err != nil {
			a.Err = err
			return a
		}
		if len(end.GetOwn()) > 0 {
			a.own = end.GetOwn()
		}
		a.Matched, a.Population, a.clauses, a.upTo = int(end.GetMatched()), int(end.GetPopulation()), end.GetExplanation(), math.MaxUint64
		next := end.GetCursor()
		if len(next) == 0 {
			break
		}
		if len(next) != 16 || !bytes.Equal(next[:8], cursor[:8]) || bytes.Compare(next, cursor) <= 0 {
			a.Err = fmt.Errorf("%w: its pages lead nowhere", ErrQuery)
			return a
		}
		cursor, a.upTo = next, binary.BigEndian.Uint64(next[8:])-1
		if len(a.rows) >= d.cfg.MaxNodes || query.Limit > 0 && len(a.rows) >= query.Limit && !asksOwn(query.Filter) {
			break
		}
	}
	a.Given, a.groups = len(a.rows), d.groupsOf(ctx, of, a.own)
	return a
}

// asksOwn says whether an index peer gives more than what matches, as only the asker knows some fields.
func asksOwn(f *protocol.Filter) bool { return f != nil && slices.ContainsFunc(f.Clauses(), askersOwn) }

// askPage brings one page; when the peer wants fewer questions it waits once.
func (d *Directory) askPage(ctx context.Context, of peer.ID, req *pb.FindRequest, a *polled, opened *opener) (*pb.QueryEnd, error) {
	ask := func() (*pb.QueryReply, error) {
		return d.exchange(ctx, of, &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_Find{Find: req}}, maxQueryRows, func(row *pb.QueryRow) {
			if r, ok := opened.row(row, nil, d.now()); ok {
				a.rows[r.record.peer] = r
			}
		})
	}
	reply, err := ask()
	if rate, ok := errors.AsType[*RateError](err); ok {
		t := time.NewTimer(rate.After)
		defer t.Stop()
		select {
		case <-t.C:
			reply, err = ask()
		case <-ctx.Done():
		}
	}
	if err != nil {
		return nil, err
	}
	if reply.GetEnd() == nil {
		return nil, fmt.Errorf("%w: an answer to another question", ErrQuery)
	}
	return reply.GetEnd(), nil
}

// groupsOf names the network and the operator of an index peer: two of one operator, or of one /16 (IPv6: /32),
// are not independent. On loopback all are of one network, so there it does not count.
func (d *Directory) groupsOf(ctx context.Context, id peer.ID, own []byte) []string {
	out := []string{"peer " + string(id)}
	if op, ok := d.operatorOf(ctx, id, own); ok {
		out = append(out, "operator "+string(op))
	}
	if d.cfg.Loopback {
		return out
	}
	for _, c := range d.host.Network().ConnsToPeer(id) {
		if net := netOf(c.RemoteMultiaddr(), 2, 4); net != "" {
			return append(out, net)
		}
	}
	return out
}

// netOf names the network of an address by its first bytes, which are fewer for IPv4; empty when it has none.
func netOf(a multiaddr.Multiaddr, v4bytes, v6bytes int) string {
	ip, err := manet.ToIP(a)
	switch v4 := ip.To4(); {
	case err != nil:
	case v4 != nil:
		return "net " + string(v4[:v4bytes])
	case len(ip) == 16:
		return "net " + string(ip[:v6bytes])
	}
	return ""
}

// operatorOf reads the operator's label in the peer's own record, which it gave with its answer; else it is asked.
func (d *Directory) operatorOf(ctx context.Context, id peer.ID, own []byte) (peer.ID, bool) {
	rec, err := d.judge.capability(own, id, d.now())
	if err != nil {
		found, err := d.ask(ctx, id, []peer.ID{id})
		if err != nil || len(found) != 1 {
			return "", false
		}
		rec = found[0].record
	}
	for _, l := range rec.cap.GetLabels() {
		if l.GetKey() == protocol.LabelOperator {
			if op, ok := protocol.VerifyLabel(l, id, d.now()); ok {
				return op, true
			}
		}
	}
	return "", false
}

// lacking marks the answers that lack more than a fifth of what two others gave, among the nodes that their
// pages reach.
func lacking(answers []*polled, seed uint64) {
	given := map[peer.ID]int{}
	for _, a := range answers {
		for id := range a.rows {
			given[id]++
		}
	}
	for _, a := range answers {
		if a.Err != nil {
			continue
		}
		known := 0
		for id, n := range given {
			_, has := a.rows[id]
			if n-btoi(has) < 2 || shuffled(orderOf(id), seed) > a.upTo {
				continue
			}
			known++
			a.Lacks += btoi(!has)
		}
		a.Lacking = a.Lacks*missingShare > known
	}
}
