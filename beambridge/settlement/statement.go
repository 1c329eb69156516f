package settlement

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// Usage is what one node did for a job, as the bridge keeps it in running sums.
type Usage struct {
	// Node did the work.
	Node protocol.PeerID
	// AskUUSD is its price and RateUUSD the user's, micro-USD per slot-hour.
	AskUUSD int64
	// RateUUSD is the user's rate, from Prices.Rate.
	RateUUSD int64
	// Chunks counts accounted chunks.
	Chunks uint64
	// Records counts counter-signed usage records.
	Records uint64
	// PreparingMS and WorkingMS are settled slot time, milliseconds.
	PreparingMS int64
	// WorkingMS is settled slot time, milliseconds.
	WorkingMS int64
	// GPUMS is slots × working time, milliseconds.
	GPUMS int64
	// BilledMS is what of GPUMS the user pays.
	BilledMS int64
}

// NewStatement draws up a job's statement: each node's use, its bill with fee and burn, and its share of a pool
// of RENDER base units by rnp004, CR_i = N_i/ΣN × C_t, where N is what was burned in the node's name. A pool of
// 0 leaves the shares in millionths. It returns ErrAmount or ErrPrices.
func (p Prices) NewStatement(job protocol.JobID, usage []Usage, pool int64, at time.Time) (protocol.Statement, error) {
	if err := p.Validate(); err != nil {
		return protocol.Statement{}, err
	}
	s := protocol.Statement{Job: job, AtMS: at.UnixMilli(), FeePPM: p.FeePPM(), PoolUnits: pool}
	for _, u := range usage {
		l, err := p.line(u)
		if err != nil {
			return protocol.Statement{}, fmt.Errorf("the statement's line of %s: %w", u.Node, err)
		}
		s.Lines = append(s.Lines, l)
	}
	slices.SortFunc(s.Lines, func(a, b protocol.StatementLine) int { return strings.Compare(string(a.Node), string(b.Node)) })
	weights := make([]Weight, len(s.Lines))
	for i, l := range s.Lines {
		weights[i] = Weight{l.Node, big.NewInt(l.BurnUUSD)}
	}
	ppm, _, err := Split(Million, weights)
	if err != nil {
		return protocol.Statement{}, err
	}
	units, carry, err := Split(pool, weights)
	if err != nil {
		return protocol.Statement{}, err
	}
	s.CarryUnits = carry
	for i := range s.Lines {
		s.Lines[i].SharePPM, s.Lines[i].ShareUnits = ppm[i], units[i]
	}
	s.Total, err = total(s.Lines)
	return s, err
}

func (p Prices) line(u Usage) (protocol.StatementLine, error) {
	bill, err := Bill(u.RateUUSD, u.BilledMS)
	if err != nil {
		return protocol.StatementLine{}, err
	}
	parts, err := p.Parts(bill)
	if err != nil {
		return protocol.StatementLine{}, err
	}
	if _, err := sum("usage", u.AskUUSD, u.PreparingMS, u.WorkingMS, u.GPUMS); err != nil {
		return protocol.StatementLine{}, err
	}
	return protocol.StatementLine{
		Node: u.Node, AskUUSD: u.AskUUSD, RateUUSD: u.RateUUSD, Chunks: u.Chunks, Records: u.Records, PreparingMS: u.PreparingMS, WorkingMS: u.WorkingMS,
		GPUMS: u.GPUMS, BilledMS: u.BilledMS, BillUUSD: bill, FeeUUSD: parts.Fee(), BurnUUSD: parts.Burn,
	}, nil
}

// total sums the lines; it returns ErrAmount when a sum leaves int64.
func total(lines []protocol.StatementLine) (t protocol.StatementLine, err error) {
	for _, f := range []func(*protocol.StatementLine) *int64{
		func(l *protocol.StatementLine) *int64 { return &l.PreparingMS },
		func(l *protocol.StatementLine) *int64 { return &l.WorkingMS },
		func(l *protocol.StatementLine) *int64 { return &l.GPUMS },
		func(l *protocol.StatementLine) *int64 { return &l.BilledMS },
		func(l *protocol.StatementLine) *int64 { return &l.BillUUSD },
		func(l *protocol.StatementLine) *int64 { return &l.FeeUUSD },
		func(l *protocol.StatementLine) *int64 { return &l.BurnUUSD },
		func(l *protocol.StatementLine) *int64 { return &l.SharePPM },
		func(l *protocol.StatementLine) *int64 { return &l.ShareUnits },
	} {
		all := make([]int64, len(lines))
		for i := range lines {
			all[i] = *f(&lines[i])
		}
		if *f(&t), err = sum("total", all...); err != nil {
			return t, err
		}
	}
	for i := range lines {
		t.Chunks += lines[i].Chunks
		t.Records += lines[i].Records
	}
	return t, nil
}
