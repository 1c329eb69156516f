package node

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/gridbeam/gridbeam/metering"
	"github.com/gridbeam/gridbeam/protocol"
)

// errDiary means a record of the journal that this version cannot read.
var errDiary = errors.New("node: a record of the journal cannot be read; the file was written by another version or is damaged")

// Kinds of records in the journal. Numbers are never reused.
const (
	kindControl  = 1  // what the owner said last
	kindSeq      = 2  // sequence number of the last capability record
	kindMember   = 3  // membership in a job's cluster, with its terms
	kindLeft     = 4  // its end
	kindGrants   = 5  // leases that were granted together
	kindEnded    = 6  // leases that are over
	kindOutcome  = 7  // the outcome of a lease, kept until somebody takes it
	kindChain    = 8  // a chain of receipts as a whole
	kindReceipt  = 9  // the next receipt of a chain
	kindSigned   = 10 // its counter-signature has come
	kindSeen     = 11 // a reservation that was answered
	kindStarted  = 12 // a run outside of this process
	kindFences   = 13 // the highest fences of a job
	maxDiaryKind = kindFences
)

// diary is what the journal holds: everything that outlives the process. It is changed by replaying records and
// by nothing else.
type diary struct {
	self     protocol.PeerID
	control  string // "", pause or drain
	seq      uint64
	members  map[protocol.JobID]memberFacts
	leases   map[protocol.LeaseID]leaseFacts
	fences   map[protocol.JobID]map[uint64]uint64 // by the chunk's first input
	outcomes map[protocol.LeaseID]outcomeFacts
	chains   map[pair]*metering.Chain
	seen     map[protocol.CallID]time.Time // until when
}

// pair names a chain of receipts.
type pair struct {
	network protocol.NetworkID
	bridge  protocol.PeerID
}

// memberFacts are a membership as it was agreed.
type memberFacts struct {
	pair
	grant protocol.GrantID
	terms protocol.JobTerms
	slots int
	wall  time.Duration // the longest run of a chunk that the policy grants
	level uint8         // the least isolation
}

// leaseFacts are a lease as it was granted.
type leaseFacts struct {
	protocol.Lease
	bridge protocol.PeerID
	setSeq uint64
	token  string // of a run outside of this process
}

// outcomeFacts are how a lease ended, while nobody has taken it.
type outcomeFacts struct {
	result protocol.Result
	bridge protocol.PeerID
	at     time.Time
	kept   bool // given up: only for whoever asks
}

func newDiary(self protocol.PeerID) *diary {
	return &diary{
		self: self, members: map[protocol.JobID]memberFacts{}, leases: map[protocol.LeaseID]leaseFacts{},
		fences: map[protocol.JobID]map[uint64]uint64{}, outcomes: map[protocol.LeaseID]outcomeFacts{},
		chains: map[pair]*metering.Chain{}, seen: map[protocol.CallID]time.Time{},
	}
}

// entry is one record: its kind and fields in protobuf's wire format.
type entry []byte

func newEntry(kind byte) entry { return entry{kind} }

func (e entry) bytes(n protowire.Number, b []byte) entry {
	return protowire.AppendBytes(protowire.AppendTag(e, n, protowire.BytesType), b)
}

func (e entry) num(n protowire.Number, v uint64) entry {
	return protowire.AppendVarint(protowire.AppendTag(e, n, protowire.VarintType), v)
}

// fields are the fields of a record, by number; repeated ones in order.
type fields struct {
	raw  map[protowire.Number][][]byte
	nums map[protowire.Number]uint64
}

func readFields(b []byte) (f fields, err error) {
	f = fields{map[protowire.Number][][]byte{}, map[protowire.Number]uint64{}}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return f, fmt.Errorf("%w: %w", errDiary, protowire.ParseError(n))
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return f, fmt.Errorf("%w: %w", errDiary, protowire.ParseError(n))
			}
			f.nums[num], b = v, b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return f, fmt.Errorf("%w: %w", errDiary, protowire.ParseError(n))
			}
			f.raw[num], b = append(f.raw[num], v), b[n:]
		default:
			return f, fmt.Errorf("%w: field %d has type %d", errDiary, num, typ)
		}
	}
	return f, nil
}

func (f fields) one(n protowire.Number) []byte {
	if len(f.raw[n]) == 0 {
		return nil
	}
	return f.raw[n][0]
}

func (f fields) id16(n protowire.Number) (id [16]byte, err error) {
	b := f.one(n)
	if len(b) != 16 {
		return id, fmt.Errorf("%w: field %d has %d bytes, want 16", errDiary, n, len(b))
	}
	return [16]byte(b), nil
}

func (f fields) id32(n protowire.Number) (id [32]byte, err error) {
	b := f.one(n)
	if len(b) != 32 {
		return id, fmt.Errorf("%w: field %d has %d bytes, want 32", errDiary, n, len(b))
	}
	return [32]byte(b), nil
}

func controlEntry(what string) entry { return newEntry(kindControl).bytes(1, []byte(what)) }
func seqEntry(seq uint64) entry      { return newEntry(kindSeq).num(1, seq) }

func memberEntry(m *memberFacts) (entry, error) {
	terms, err := m.terms.Encode()
	if err != nil {
		return nil, err
	}
	return newEntry(kindMember).bytes(1, terms).bytes(2, []byte(m.bridge)).bytes(3, m.network[:]).bytes(4, m.grant[:]).
		num(5, uint64(m.slots)).num(6, uint64(m.wall)).num(7, uint64(m.level)), nil
}

func leftEntry(job protocol.JobID) entry { return newEntry(kindLeft).bytes(1, job[:]) }

func grantsEntry(bridge protocol.PeerID, setSeq uint64, leases []protocol.Lease) (entry, error) {
	e := newEntry(kindGrants).bytes(1, []byte(bridge)).num(2, setSeq)
	for i := range leases {
		b, err := leases[i].Encode()
		if err != nil {
			return nil, err
		}
		e = e.bytes(3, b)
	}
	return e, nil
}

func endedEntry(ids ...protocol.LeaseID) entry {
	e := newEntry(kindEnded)
	for _, id := range ids {
		e = e.bytes(1, id[:])
	}
	return e
}

func outcomeEntry(o *outcomeFacts) (entry, error) {
	b, err := o.result.Encode()
	if err != nil {
		return nil, err
	}
	kept := uint64(0)
	if o.kept {
		kept = 1
	}
	return newEntry(kindOutcome).bytes(1, b).bytes(2, []byte(o.bridge)).num(3, uint64(o.at.UnixMilli())).num(4, kept), nil
}

func chainEntry(p pair, state []byte) entry {
	return newEntry(kindChain).bytes(1, p.network[:]).bytes(2, []byte(p.bridge)).bytes(3, state)
}

func receiptEntry(p pair, raw []byte) entry {
	return newEntry(kindReceipt).bytes(1, p.network[:]).bytes(2, []byte(p.bridge)).bytes(3, raw)
}

func signedEntry(p pair, seq uint64, hash [32]byte) entry {
	return newEntry(kindSigned).bytes(1, p.network[:]).bytes(2, []byte(p.bridge)).num(3, seq).bytes(4, hash[:])
}

func seenEntry(call protocol.CallID, until time.Time) entry {
	return newEntry(kindSeen).bytes(1, call[:]).num(2, uint64(until.UnixMilli()))
}

func startedEntry(id protocol.LeaseID, token string) entry {
	return newEntry(kindStarted).bytes(1, id[:]).bytes(2, []byte(token))
}

// fencesEntry packs the highest fences of a job: pairs of (distance from the chunk before, fence).
func fencesEntry(job protocol.JobID, fences map[uint64]uint64) entry {
	var packed []byte
	last := uint64(0)
	for _, first := range slices.Sorted(maps.Keys(fences)) {
		packed = protowire.AppendVarint(packed, first-last)
		packed = protowire.AppendVarint(packed, fences[first])
		last = first
	}
	return newEntry(kindFences).bytes(1, job[:]).bytes(2, packed)
}

// replay applies one record. To replay records again that a snapshot holds already changes nothing.
func (d *diary) replay(record []byte) error {
	if len(record) == 0 || record[0] == 0 || record[0] > maxDiaryKind {
		return fmt.Errorf("%w: unknown kind", errDiary)
	}
	f, err := readFields(record[1:])
	if err != nil {
		return err
	}
	switch record[0] {
	case kindControl:
		d.control = string(f.one(1))
	case kindSeq:
		d.seq = max(d.seq, f.nums[1])
	case kindMember, kindLeft, kindFences:
		return d.replayMember(record[0], f)
	case kindGrants:
		return d.replayGrants(f)
	case kindEnded, kindOutcome, kindStarted:
		return d.replayLease(record[0], f)
	case kindChain, kindReceipt, kindSigned:
		return d.replayChain(record[0], f)
	case kindSeen:
		id, err := f.id16(1)
		if err != nil {
			return err
		}
		d.seen[id] = time.UnixMilli(int64(f.nums[2]))
	}
	return nil
}

func (d *diary) replayMember(kind byte, f fields) error {
	if kind == kindMember {
		m := memberFacts{pair: pair{bridge: protocol.PeerID(f.one(2))}, slots: int(f.nums[5]), wall: time.Duration(f.nums[6]), level: uint8(f.nums[7])}
		var err error
		if m.terms, err = protocol.DecodeJobTerms(f.one(1)); err != nil {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
		if m.network, err = f.id16(3); err != nil {
			return err
		}
		if m.grant, err = f.id32(4); err != nil {
			return err
		}
		d.members[m.terms.Job] = m
		return nil
	}
	job, err := f.id16(1)
	if err != nil {
		return err
	}
	if kind == kindLeft {
		delete(d.members, job)
		delete(d.fences, job)
		return nil
	}
	var first uint64
	for b := f.one(2); len(b) > 0; {
		gap, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", errDiary, protowire.ParseError(n))
		}
		fence, k := protowire.ConsumeVarint(b[n:])
		if k < 0 {
			return fmt.Errorf("%w: %w", errDiary, protowire.ParseError(k))
		}
		b = b[n+k:]
		first += gap
		d.raise(job, first, fence)
	}
	return nil
}

// raise notes that a fence of a chunk was given to this node.
func (d *diary) raise(job protocol.JobID, first, fence uint64) {
	m := d.fences[job]
	if m == nil {
		m = map[uint64]uint64{}
		d.fences[job] = m
	}
	m[first] = max(m[first], fence)
}

func (d *diary) replayGrants(f fields) error {
	for _, b := range f.raw[3] {
		l, err := protocol.DecodeLease(b)
		if err != nil {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
		d.grant(leaseFacts{Lease: l, bridge: protocol.PeerID(f.one(1)), setSeq: f.nums[2]})
	}
	return nil
}

func (d *diary) grant(l leaseFacts) {
	d.leases[l.ID] = l
	d.raise(l.Job, l.Chunk.First, l.Fence)
}

func (d *diary) replayLease(kind byte, f fields) error {
	switch kind {
	case kindEnded:
		for _, b := range f.raw[1] {
			if len(b) != 16 {
				return fmt.Errorf("%w: a lease ID of %d bytes", errDiary, len(b))
			}
			delete(d.leases, protocol.LeaseID(b))
			delete(d.outcomes, protocol.LeaseID(b))
		}
	case kindOutcome:
		r, err := protocol.DecodeResult(f.one(1))
		if err != nil {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
		d.outcomes[r.Lease] = outcomeFacts{result: r, bridge: protocol.PeerID(f.one(2)), at: time.UnixMilli(int64(f.nums[3])), kept: f.nums[4] == 1}
	case kindStarted:
		id, err := f.id16(1)
		if err != nil {
			return err
		}
		if l, ok := d.leases[id]; ok {
			l.token = string(f.one(2))
			d.leases[id] = l
		}
	}
	return nil
}

func (d *diary) replayChain(kind byte, f fields) error {
	network, err := f.id16(1)
	if err != nil {
		return err
	}
	p := pair{network, protocol.PeerID(f.one(2))}
	c := d.chain(p)
	switch kind {
	case kindChain:
		fresh := metering.NewChain(p.network, d.self, p.bridge)
		if err := fresh.Restore(f.one(3)); err != nil {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
		d.chains[p] = fresh
	case kindReceipt:
		// One that the snapshot has already does not follow it.
		if err := c.Append(f.one(3)); err != nil && !errors.Is(err, metering.ErrState) {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
	case kindSigned:
		hash, err := f.id32(4)
		if err != nil {
			return err
		}
		if err := c.Countersigned(&protocol.CounterSign{Hash: hash, Node: d.self, Seq: f.nums[3]}); err != nil && !errors.Is(err, metering.ErrUnknownReceipt) {
			return fmt.Errorf("%w: %w", errDiary, err)
		}
	}
	return nil
}

// chain returns the chain of receipts with a bridge.
func (d *diary) chain(p pair) *metering.Chain {
	c := d.chains[p]
	if c == nil {
		c = metering.NewChain(p.network, d.self, p.bridge)
		d.chains[p] = c
	}
	return c
}

// snapshot gives records that make the same diary. What has run out by now is left out.
func (d *diary) snapshot(now time.Time) (out [][]byte, err error) {
	out = append(out, controlEntry(d.control), seqEntry(d.seq))
	for _, m := range d.members {
		e, err := memberEntry(&m)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	for job, fences := range d.fences {
		out = append(out, fencesEntry(job, fences))
	}
	for id, l := range d.leases {
		e, err := grantsEntry(l.bridge, l.setSeq, []protocol.Lease{l.Lease})
		if err != nil {
			return nil, err
		}
		out = append(out, e)
		if l.token != "" {
			out = append(out, startedEntry(id, l.token))
		}
	}
	for _, o := range d.outcomes {
		if o.kept && now.Sub(o.at) > keepOutcome {
			continue
		}
		e, err := outcomeEntry(&o)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	for p, c := range d.chains {
		state, err := c.State()
		if err != nil {
			return nil, err
		}
		out = append(out, chainEntry(p, state))
	}
	for id, until := range d.seen {
		if until.After(now) {
			out = append(out, seenEntry(id, until))
		}
	}
	return out, nil
}

// keepOutcome is how long an outcome is kept that nobody took (execution.md 8).
const keepOutcome = 24 * time.Hour
