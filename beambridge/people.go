package beambridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/settlement"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/reputation"
)

var (
	_ api.Nodes  = (*Bridge)(nil)
	_ api.Money  = (*Bridge)(nil)
	_ api.System = (*Bridge)(nil)
)

// ListNodes implements api.Nodes.
func (b *Bridge) ListNodes(ctx context.Context, _ api.Principal, where *protocol.Filter) (protocol.NodeList, error) {
	if err := b.running(); err != nil {
		return protocol.NodeList{}, err
	}
	found, _, err := b.dir.Find(ctx, dht.Query{Filter: where, Literal: where == nil, Refuted: b.refuted})
	if err != nil {
		return protocol.NodeList{}, err
	}
	out := protocol.NodeList{Nodes: []protocol.NodeInfo{}}
	s := &placing{}
	now := b.cfg.Clock()
	for i := range found {
		c := &found[i]
		if c.Peer == b.self || !isWorker(c.Capability) {
			continue
		}
		x := b.candidate(c, s, now)
		score := b.engine.judge.Score(c.Peer, now)
		claim := dht.ClaimedPlace(c.Capability)
		n := protocol.NodeInfo{
			PeerID: c.Peer, State: c.State, Standing: standingWord(score), Connected: b.host.Connected(c.Peer), Agent: c.Capability.GetAgent(), Cores: x.Cores,
			MemoryBytes: x.Memory, DiskBytes: x.Disk, Region: claim.Macro, Country: claim.Country, AskUUSD: int64(x.Price), RTTMS: x.RTT.Seconds() * 1000, Score: score.O,
			Slots: max(1, int(x.Cores)), SlotsFree: x.Slots,
		}
		if check, ok := b.regionOf(c.Peer, claim); ok {
			n.RegionCheck = string(check.Verdict)
		}
		if c.Availability != nil {
			n.Heard = now.Add(-c.Age)
			n.SlotsFree = max(0, n.Slots-int(c.Availability.GetRunning()))
		}
		for _, g := range x.GPUs {
			n.GPUs = append(n.GPUs, protocol.NodeGPU{Model: g.Model, Count: g.Count, VRAMGB: g.VRAMGB})
		}
		out.Nodes = append(out.Nodes, n)
	}
	slices.SortFunc(out.Nodes, func(a, b protocol.NodeInfo) int { return strings.Compare(string(a.PeerID), string(b.PeerID)) })
	return out, nil
}

func standingWord(s reputation.Score) string {
	if s.Anchor && !s.State.Barred() {
		return "anchor"
	}
	return string(s.State)
}

// Reputation implements api.Nodes.
func (b *Bridge) Reputation(_ context.Context, _ api.Principal, node protocol.PeerID) (protocol.Reputation, error) {
	if err := b.running(); err != nil {
		return protocol.Reputation{}, err
	}
	now := b.cfg.Clock()
	s := b.engine.judge.Score(node, now)
	if s.First.IsZero() {
		return protocol.Reputation{}, &protocol.APIError{Code: protocol.CodeNotFound, Text: fmt.Sprintf("this bridge never met node %s", node), Fix: "`gridbeam nodes` lists those that it knows"}
	}
	r := protocol.Reputation{
		PeerID: node, Group: s.Group, Rater: b.self, At: now, Standing: standingWord(s), Score: s.O, P: s.P, Checks: uint64(s.Checks), Next: s.Next,
		Criteria: []protocol.CriterionScore{},
	}
	for _, c := range s.Criteria {
		r.Criteria = append(r.Criteria, protocol.CriterionScore{Criterion: c.Criterion, Good: c.Good, Bad: c.Bad, Lower: c.L, Weight: weightOf(c.Criterion)})
	}
	for _, i := range s.Incidents {
		r.Incidents = append(r.Incidents, protocol.Incident{At: i.At, Reason: i.Reason.String(), Blame: i.Blame.String(), Without: i.Without})
	}
	return r, nil
}

// weightOf is a criterion's exponent in O (trust.md 9).
func weightOf(c protocol.Criterion) float64 {
	return map[protocol.Criterion]float64{
		protocol.CriterionCompletion: .30, protocol.CriterionCorrectness: .30, protocol.CriterionUptime: .15, protocol.CriterionPerformance: .15,
		protocol.CriterionResponsiveness: .10,
	}[c]
}

// Account implements api.Money.
func (b *Bridge) Account(ctx context.Context, who api.Principal) (protocol.Account, error) {
	if err := b.running(); err != nil {
		return protocol.Account{}, err
	}
	return b.account(ctx, who.User)
}

func (b *Bridge) account(ctx context.Context, user string) (protocol.Account, error) {
	a := protocol.Account{User: user}
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		if a.CreditUUSD, err = tx.Balance(settlement.AccountCredit(user), protocol.USD); err != nil {
			return err
		}
		reserved := settlement.AccountReserved(user)
		if a.ReservedUUSD, err = tx.Balance(reserved, protocol.USD); err != nil {
			return err
		}
		seen := map[uint64]bool{}
		for _, account := range []string{settlement.AccountCredit(user), reserved} {
			for x, err := range tx.AccountTransactions(account, protocol.USD, 0) {
				if err != nil {
					return err
				}
				if x.Kind == protocol.KindCharge && account == reserved {
					for _, p := range x.Postings {
						if p.Account == reserved {
							a.SpentUUSD -= p.Amount
						}
					}
				}
				if !seen[x.Seq] {
					seen[x.Seq] = true
					a.Recent = append(a.Recent, x)
				}
			}
		}
		return nil
	})
	slices.SortFunc(a.Recent, func(x, y protocol.Transaction) int { return int(y.Seq) - int(x.Seq) })
	a.Recent = a.Recent[:min(len(a.Recent), 100)]
	return a, err
}

// Credit implements api.Money.
func (b *Bridge) Credit(ctx context.Context, _ api.Principal, req protocol.CreditRequest) (protocol.Account, error) {
	if err := b.running(); err != nil {
		return protocol.Account{}, err
	}
	if err := protocol.CheckUser(req.User); err != nil {
		return protocol.Account{}, err
	}
	now := b.cfg.Clock()
	var x protocol.Transaction
	var err error
	if program, ok := strings.CutPrefix(req.Source, "grant/"); ok {
		x, err = settlement.Grant(program, req.User, req.AmountUUSD, req.Ref, now)
	} else {
		x, err = settlement.Deposit(req.Source, req.User, req.AmountUUSD, req.Ref, now)
	}
	if err != nil {
		return protocol.Account{}, &protocol.APIError{Code: protocol.CodeBadRequest, Text: err.Error()}
	}
	var refused error
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			_, err := tx.LedgerPost(x)
			if errors.Is(err, store.ErrConflict) { // it comes before anything is written: the others go on
				refused = &protocol.APIError{
					Code: protocol.CodeConflict, Field: "ref", Text: fmt.Sprintf("%s %q was posted already, for another user or amount", req.Source, req.Ref), Fix: "give each payment a reference of its own",
				}
				return nil
			}
			return err
		})
		return struct{}{}, nil
	})
	if err = errors.Join(err, refused); err != nil {
		return protocol.Account{}, err
	}
	return b.account(ctx, req.User)
}

// Status implements api.System.
func (b *Bridge) Status(ctx context.Context) (protocol.BridgeStatus, error) {
	s := protocol.BridgeStatus{Version: b.cfg.Version, Commit: b.cfg.Commit, State: "running", Started: b.started, Now: b.cfg.Clock(), Beam: b.beamAddr(), Nodes: map[string]int{}, Jobs: map[string]int{}}
	if b.running() != nil {
		s.State = "starting"
		return s, nil
	}
	s.PeerID, s.Network, s.NetworkID = b.self, b.network.Name, b.network.ID.String()
	for _, a := range b.host.Addrs() {
		s.Addrs = append(s.Addrs, a.String())
	}
	found, _, err := b.dir.Find(ctx, dht.Query{Literal: true})
	if err != nil {
		return s, err
	}
	for i := range found {
		if found[i].Peer != b.self && isWorker(found[i].Capability) && found[i].State != "" {
			s.Nodes[found[i].State]++
		}
	}
	err = b.store.View(ctx, func(tx *store.Tx) error {
		counts, err := tx.CountJobs()
		for state, n := range counts {
			s.Jobs[state] = int(n)
		}
		return err
	})
	if err != nil {
		return s, err
	}
	s.ChunksRunning, err = ask(ctx, b.engine, func(t *turn) (n int, _ error) {
		for _, j := range t.e.jobs {
			if j.over == "" {
				n += j.tracker.Progress().Leases
			}
		}
		return n, nil
	})
	if errors.Is(err, ErrStopped) {
		s.State, err = "draining", nil
	}
	return s, err
}
