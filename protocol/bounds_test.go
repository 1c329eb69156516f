package protocol

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// spoilt is one field of a noun that is out of bounds.
type spoilt[T any] struct {
	what   string
	change func(*T)
	want   error
}

// refuses holds a noun to its bounds from both sides: its author cannot seal what is out of bounds, and when it is
// signed regardless, nobody opens it.
func refuses[T any](t *testing.T, n noun, key actor, fixed func() T, seal func(*T, crypto.PrivKey) ([]byte, error), encode func(*T) proto.Message, open func([]byte) error, cases []spoilt[T]) {
	t.Helper()
	for _, c := range cases {
		v := fixed()
		c.change(&v)
		_, err := seal(&v, key.key)
		wantErr(t, n.name+" sealed with "+c.what, err, c.want)
		payload, err := marshal(encode(&v))
		if err != nil {
			continue // not even protobuf takes it
		}
		wantErr(t, n.name+" opened with "+c.what, open(envelopeOf(t, key.key, n, payload)), c.want)
	}
}

const (
	farFuture = 253_402_300_800_000 // the year 10000 in Unix milliseconds
	longAgo   = -1
)

func TestReservationsOutOfBoundsAreRefused(t *testing.T) {
	type r = Reservation
	terms := func(what string, f func(*JobTerms), want error) spoilt[r] {
		return spoilt[r]{what, func(v *r) { f(&v.Terms) }, want}
	}
	refuses(t, nounReservation, bridgeActor, fixedReservation, func(v *r, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *r) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenReservation(raw); return err }, []spoilt[r]{
			{"nothing", func(*r) {}, nil},
			{"no node", func(v *r) { v.Node = "" }, ErrBadID},
			{"a node that is no key", func(v *r) { v.Node = "12D3KooW" }, ErrBadID},
			{"no end", func(v *r) { v.NotAfter = time.Time{} }, ErrBounds},
			{"an end in the year 10000", func(v *r) { v.NotAfter = time.UnixMilli(farFuture) }, ErrBounds},
			{"an end before 1970", func(v *r) { v.NotAfter = time.UnixMilli(longAgo) }, ErrBounds},
			{"no slots", func(v *r) { v.Slots = 0 }, ErrBounds},
			{"4097 slots", func(v *r) { v.Slots = maxSlots + 1 }, ErrBounds},
			{"a rate of more than $10,000", func(v *r) { v.Rate = maxAsk + 1 }, ErrBounds},
			terms("a long name", func(m *JobTerms) { m.Name = strings.Repeat("n", 129) }, ErrBounds),
			terms("another kind", func(m *JobTerms) { m.Kind = "crypto" }, ErrBounds),
			terms("an isolation that is not known", func(m *JobTerms) { m.MinIsolation = "quantum" }, ErrBounds),
			terms("outputs kept otherwise", func(m *JobTerms) { m.KeepOutputs = "sometimes" }, ErrBounds),
			terms("a network", func(m *JobTerms) { m.Limits.Network = "host" }, ErrBounds),
			terms("a wall of 366 days", func(m *JobTerms) { m.Limits.Wall = 366 * 24 * time.Hour }, ErrBounds),
			terms("module and image", func(m *JobTerms) { m.Run.Image = "x" }, ErrBounds),
			terms("nothing to run", func(m *JobTerms) { m.Run.Module = fixedCID(); m.Run = Run{Command: []string{"x"}} }, ErrBounds),
			terms("no command", func(m *JobTerms) { m.Run.Command = nil }, ErrBounds),
			terms("257 arguments", func(m *JobTerms) { m.Run.Command = make([]string, 257) }, ErrBounds),
			terms("a command of 64 KiB", func(m *JobTerms) { m.Run.Command = []string{strings.Repeat("x", maxCommand+1)} }, ErrBounds),
			terms("a zero byte in an argument", func(m *JobTerms) { m.Run.Command = []string{"a\x00b"} }, ErrBounds),
			terms("a variable without name", func(m *JobTerms) { m.Run.Env = map[string]string{"": "x"} }, ErrBounds),
			terms("a name with =", func(m *JobTerms) { m.Run.Env = map[string]string{"A=B": "x"} }, ErrBounds),
			terms("a value with a zero byte", func(m *JobTerms) { m.Run.Env = map[string]string{"A": "x\x00"} }, ErrBounds),
			terms("65 devices", func(m *JobTerms) { m.GPUCount = 65 }, ErrBounds),
			terms("65 models", func(m *JobTerms) { m.GPUModels = make([]string, 65) }, ErrBounds),
			terms("a model without name", func(m *JobTerms) { m.GPUModels = []string{""} }, ErrBounds),
			terms("17 volumes", func(m *JobTerms) { m.Volumes = make([]VolumeRef, 17) }, ErrBounds),
			terms("a volume without root", func(m *JobTerms) { m.Volumes[0].Root = Lease{}.InputsCID }, ErrBounds),
			terms("a volume without name", func(m *JobTerms) { m.Volumes[0].Name = "" }, ErrBounds),
			terms("a writable volume", func(m *JobTerms) { m.Volumes[0].Mode = "rw" }, ErrBounds),
			terms("a volume at a relative path", func(m *JobTerms) { m.Volumes[0].At = "data" }, ErrBounds),
			terms("a volume at the root", func(m *JobTerms) { m.Volumes[0].At = "/" }, ErrBounds),
			terms("a volume above", func(m *JobTerms) { m.Volumes[0].At = "/data/../etc" }, ErrBounds),
			terms("two volumes at one path", func(m *JobTerms) { m.Volumes = append(m.Volumes, m.Volumes[0]) }, ErrBounds),
			terms("17 holders", func(m *JobTerms) { m.Volumes[0].Holders = make([]peer.AddrInfo, 17) }, ErrBounds),
			terms("a holder without key", func(m *JobTerms) { m.Volumes[0].Holders[0].ID = "QmHolder" }, ErrBadID),
			terms("a long address", func(m *JobTerms) {
				m.Volumes[0].Holders[0].Addrs = []multiaddr.Multiaddr{addr("/dns4/" + strings.Repeat("a", 300))}
			}, ErrBounds),
			terms("an origin without key", func(m *JobTerms) { m.Origin.ID = "" }, ErrBadID),
		})
}

func TestOffersAndAnnouncementsOutOfBoundsAreRefused(t *testing.T) {
	type o = Offer
	refuses(t, nounOffer, nodeActor, fixedOffer, func(v *o, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *o) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenOffer(raw); return err }, []spoilt[o]{
			{"nothing", func(*o) {}, nil},
			{"no bridge", func(v *o) { v.Bridge = "" }, ErrBadID},
			{"no slots", func(v *o) { v.Slots = 0 }, ErrBounds},
			{"too many slots", func(v *o) { v.Slots = math.MaxUint32 }, ErrBounds},
			{"an ask of 2^64-1", func(v *o) { v.Ask = math.MaxUint64 }, ErrBounds},
			{"no end", func(v *o) { v.Expires = time.Time{} }, ErrBounds},
		})
	type a = Announcement
	refuses(t, nounAnnouncement, bridgeActor, fixedAnnouncement, func(v *a, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *a) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenAnnouncement(raw); return err }, []spoilt[a]{
			{"nothing", func(*a) {}, nil},
			{"no time", func(v *a) { v.At = time.Time{} }, nil},
			{"another job than its chunks'", func(v *a) { v.Job = JobID{1} }, ErrBounds},
			{"257 chunks", func(v *a) { v.Ready = make([]Chunk, 257) }, ErrBounds},
			{"an empty chunk", func(v *a) { v.Ready[0] = chunkOf(fixedJob, 4, 4) }, ErrBounds},
			{"a chunk that ends before it begins", func(v *a) { v.Ready[0] = chunkOf(fixedJob, 5, 4) }, ErrBounds},
			{"a chunk of 10,001", func(v *a) { v.Ready[0] = chunkOf(fixedJob, 0, MaxChunkInputs+1) }, ErrBounds},
			{"a chunk over all numbers", func(v *a) { v.Ready[0] = chunkOf(fixedJob, 0, math.MaxUint64) }, ErrBounds},
			{"a chunk under another's ID", func(v *a) { v.Ready[0].ID = v.Ready[1].ID }, ErrBounds},
			{"a time in the year 10000", func(v *a) { v.At = time.UnixMilli(farFuture) }, ErrBounds},
		})
}

func TestLeasesOutOfBoundsAreRefused(t *testing.T) {
	type g = LeaseGrants
	cases := []spoilt[g]{
		{"nothing", func(*g) {}, nil},
		{"no node", func(v *g) { v.Node = "" }, ErrBadID},
		{"no end", func(v *g) { v.NotAfter = time.Time{} }, ErrBounds},
		{"1025 leases", func(v *g) { v.Leases = make([]Lease, MaxClaim+1) }, ErrBounds},
	}
	for _, c := range []spoilt[Lease]{
		{"fence 0", func(l *Lease) { l.Fence = 0 }, ErrBounds},
		{"no TTL", func(l *Lease) { l.TTL = 0 }, ErrBounds},
		{"a TTL below a millisecond", func(l *Lease) { l.TTL = time.Microsecond }, ErrBounds},
		{"a TTL of more than an hour", func(l *Lease) { l.TTL = time.Hour + time.Millisecond }, ErrBounds},
		{"an input too few", func(l *Lease) { l.Inputs = l.Inputs[:1] }, ErrBounds},
		{"an input too many", func(l *Lease) { l.Inputs = append(l.Inputs, "x") }, ErrBounds},
		{"no inputs", func(l *Lease) { l.Inputs = nil }, ErrBounds},
		{"inputs twice", func(l *Lease) { l.InputsCID = fixedCID() }, ErrBounds},
		{"another job than its chunk's", func(l *Lease) { l.Job = JobID{} }, ErrBounds},
	} {
		cases = append(cases, spoilt[g]{"a lease with " + c.what, func(v *g) { c.change(&v.Leases[0]) }, c.want})
		l := fixedLease()
		c.change(&l)
		_, err := l.Encode()
		wantErr(t, "a lease encoded with "+c.what, err, c.want)
		b, err := marshal(l.toPB())
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeLease(b)
		wantErr(t, "a lease decoded with "+c.what, err, c.want)
	}
	refuses(t, nounLease, bridgeActor, fixedLeaseGrants, func(v *g, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *g) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenLeaseGrants(raw); return err }, cases)
	long := fixedLease()
	long.TTL = 50 * 24 * time.Hour // 2^32 milliseconds and some: cut to 32 bits it would look harmless
	if _, err := long.Encode(); !errors.Is(err, ErrBounds) {
		t.Errorf("a TTL of 50 days: %v", err)
	}
	big := fixedLeaseGrants()
	big.Leases[0].Inputs[0] = strings.Repeat("x", MaxFrame)
	_, err := big.Seal(bridgeActor.key)
	wantErr(t, "inputs of more than a frame", err, ErrTooLarge)
}

func TestResultsOutOfBoundsAreRefused(t *testing.T) {
	type r = Results
	one := func(what string, f func(*Result), want error) spoilt[r] {
		return spoilt[r]{what, func(v *r) { f(&v.Results[0]) }, want}
	}
	refuses(t, nounResult, nodeActor, fixedResults, func(v *r, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *r) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenResults(raw); return err }, []spoilt[r]{
			{"nothing", func(*r) {}, nil},
			{"none at all", func(v *r) { v.Results = nil }, nil},
			{"no bridge", func(v *r) { v.Bridge = "" }, ErrBadID},
			{"257 results", func(v *r) { v.Results = make([]Result, 257) }, ErrBounds},
			one("no reason", func(v *Result) { v.Outcome.Reason = ReasonNone }, ErrBounds),
			one("a reason from a newer peer", func(v *Result) { v.Outcome.Reason = 4711 }, nil),
			one("fence 0", func(v *Result) { v.Fence = 0 }, ErrBounds),
			one("done without root", func(v *Result) { v.Root = Lease{}.InputsCID }, ErrBounds),
			one("another's chunk", func(v *Result) { v.Job = JobID{} }, ErrBounds),
			one("a signal of the widest number", func(v *Result) { v.Outcome.Signal = math.MinInt32 }, nil),
			one("a year of running", func(v *Result) { v.Outcome.Run = maxWall }, nil),
			one("more than a year of running", func(v *Result) { v.Outcome.Run = maxWall + time.Hour }, ErrBounds),
		})
	for what, f := range map[string]func(*Outcome){
		"negative running": func(o *Outcome) { o.Run = -1 }, "negative staging": func(o *Outcome) { o.Stage = -1 }, "negative processor time": func(o *Outcome) { o.CPU = -time.Hour },
	} {
		v := fixedResult()
		f(&v.Outcome)
		_, err := v.Encode()
		wantErr(t, what, err, ErrBounds)
	}
	for _, signal := range []string{"SIGSEGV", "+11", "011", "0", "-0", "11 ", "2147483648"} {
		v := fixedResult()
		m := v.toPB()
		m.Outcome.Signal = signal
		b, err := marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeResult(b)
		wantErr(t, "signal "+signal, err, ErrBounds)
	}
	v := fixedResult()
	v.Outcome.FirstCause = strings.Repeat("ö", MaxCause) + "\xff"
	b, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeResult(b); err != nil || got.Outcome.FirstCause != strings.Repeat("ö", MaxCause/2) {
		t.Errorf("a long cause: %v, %d bytes", err, len(got.Outcome.FirstCause))
	}
	v.Outcome.FirstCause = "a\xffb"
	if b, err = v.Encode(); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeResult(b); err != nil || got.Outcome.FirstCause != "a?b" {
		t.Errorf("a cause that is no UTF-8: %v, %q", err, got.Outcome.FirstCause)
	}
	many := fixedResults()
	many.Results = nil
	for range MaxResults {
		r := fixedResult()
		r.Outcome.FirstCause = strings.Repeat("x", MaxCause)
		many.Results = append(many.Results, r)
	}
	_, err = many.Seal(nodeActor.key)
	wantErr(t, "results of more than 512 KiB", err, ErrTooLarge)
}

func TestReceiptsOutOfBoundsAreRefused(t *testing.T) {
	type r = Receipt
	refuses(t, nounReceipt, nodeActor, fixedReceipt, func(v *r, k crypto.PrivKey) ([]byte, error) { raw, _, err := v.Seal(k); return raw, err },
		func(v *r) proto.Message { return v.toPB() }, func(raw []byte) error { _, _, err := OpenReceipt(raw); return err }, []spoilt[r]{
			{"nothing", func(*r) {}, nil},
			{"no bridge", func(v *r) { v.Bridge = "" }, ErrBadID},
			{"format 0", func(v *r) { v.Format = 0 }, ErrBounds},
			{"seq 0", func(v *r) { v.Seq = 0 }, ErrBounds},
			{"a first one that follows another", func(v *r) { v.Seq = 1 }, ErrBounds},
			{"a later one that follows none", func(v *r) { v.Prev = [32]byte{} }, ErrBounds},
			{"a first one", func(v *r) { v.Seq, v.Prev = 1, [32]byte{} }, nil},
			{"257 records", func(v *r) { v.Records = append(make([]UsageRecord, 254), v.Records...) }, ErrBounds},
			{"issued before 1970", func(v *r) { v.IssuedMS = -1 }, ErrBounds},
		})
	type c = CounterSign
	refuses(t, nounCounterSign, bridgeActor, fixedCounterSign, func(v *c, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *c) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenCounterSign(raw, bridgeActor.id); return err }, []spoilt[c]{
			{"nothing", func(*c) {}, nil},
			{"no node", func(v *c) { v.Node = "" }, ErrBadID},
			{"seq 0", func(v *c) { v.Seq = 0 }, ErrBounds},
			{"a verdict that is none", func(v *c) { v.Records[0].Verdict = "fine" }, ErrBounds},
			{"a negative duration", func(v *c) { v.Records[0].DurationMS = -1 }, ErrBounds},
			{"a duration that overflows sums", func(v *c) { v.Records[0].DurationMS = math.MaxInt64 }, ErrBounds},
			{"negative GPU time", func(v *c) { v.Records[0].GPUMS = -1 }, ErrBounds},
			{"257 verdicts", func(v *c) { v.Records = make([]RecordVerdict, 257) }, ErrBounds},
		})
	raw := envelopeOf(t, bridgeActor.key, nounCounterSign, encodeMessage(t, &pb.CounterSign{
		ReceiptHash: make([]byte, 32), Node: []byte(nodeActor.id), Seq: 1, Records: []*pb.RecordVerdict{{Id: make([]byte, 16), Verdict: VerdictOK, Reason: strings.Repeat("x", MaxVerdictReason+1)}},
	}))
	_, err := OpenCounterSign(raw, bridgeActor.id)
	wantErr(t, "a long wording", err, ErrBounds)
	counter := fixedCounterSign()
	raw, err = counter.Seal(bridgeActor.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenCounterSign(raw, rootActor.id)
	wantErr(t, "a counter-signature of another bridge", err, ErrAuthor)
}

func TestRecordsThatCannotBeTrueAreNamedAndDoNotSinkTheirReceipt(t *testing.T) {
	noonMS := noon.UnixMilli()
	again := func(u *UsageRecord) { // as a liar would: with an ID that fits
		var lease []byte
		if u.State != UsageIdle {
			lease = u.Lease[:]
		}
		u.ID = NewRecordID(nodeActor.id, lease, u.Slot, u.State, uint64(u.StartMS/CellMillis))
	}
	for _, c := range []struct {
		what   string
		of     int // the record that is spoilt: 0 working, 1 preparing, 2 an idle minute
		change func(u *UsageRecord)
		ok     bool
	}{
		{"nothing", 0, func(*UsageRecord) {}, true},
		{"nothing, idle", 2, func(*UsageRecord) {}, true},
		{"a whole cell", 0, func(u *UsageRecord) { u.StartMS, u.EndMS, u.DurationMS = noonMS, noonMS+CellMillis, CellMillis }, true},
		{"a boundary, which belongs to the later cell", 0, func(u *UsageRecord) { u.StartMS, u.EndMS, u.DurationMS, u.GPUMS = noonMS, noonMS, 0, 0 }, true},
		{"two cells", 0, func(u *UsageRecord) { u.EndMS = noonMS + CellMillis + 1 }, false},
		{"an end before its start", 0, func(u *UsageRecord) { u.EndMS = u.StartMS - 1 }, false},
		{"a start before 1970", 0, func(u *UsageRecord) { u.StartMS, u.EndMS = -5000, -4000 }, false},
		{"a start at 0", 0, func(u *UsageRecord) { u.StartMS, u.EndMS = 0, 4000 }, false},
		{"times at the end of all numbers", 0, func(u *UsageRecord) { u.StartMS, u.EndMS = math.MaxInt64-1, math.MaxInt64 }, false},
		{"times over all numbers", 2, func(u *UsageRecord) { u.StartMS, u.EndMS = math.MinInt64, math.MaxInt64 }, false},
		{"a duration longer than a cell", 0, func(u *UsageRecord) { u.DurationMS = CellMillis + 1 }, false},
		{"a negative duration", 0, func(u *UsageRecord) { u.DurationMS = -1 }, false},
		{"GPU time that overflows sums", 0, func(u *UsageRecord) { u.GPUMS = math.MaxInt64 }, false},
		{"processor time that overflows sums", 0, func(u *UsageRecord) { u.CPUMS = math.MaxInt64 / 2 }, false},
		{"memory that overflows sums", 0, func(u *UsageRecord) { u.MemMiBS = math.MaxInt64 / 2 }, false},
		{"bytes that overflow sums", 0, func(u *UsageRecord) { u.PairTX = math.MaxInt64 / 2 }, false},
		{"negative bytes", 0, func(u *UsageRecord) { u.PairRX = -1 }, false},
		{"a minute that is not aligned", 2, func(u *UsageRecord) { u.StartMS, u.EndMS = u.StartMS+CellMillis, u.EndMS+CellMillis }, false},
		{"a minute and a bit", 2, func(u *UsageRecord) { u.EndMS++ }, false},
		{"half a minute in one record", 2, func(u *UsageRecord) { u.EndMS, u.DurationMS = u.StartMS+30_000, 30_000 }, false},
		{"an idle cell", 2, func(u *UsageRecord) { u.EndMS, u.DurationMS = u.StartMS+CellMillis, CellMillis }, true},
		{"an idle cell of a minute's duration", 2, func(u *UsageRecord) { u.EndMS = u.StartMS + CellMillis }, false},
		{"a working minute", 2, func(u *UsageRecord) { u.State = UsageWorking }, false},
	} {
		r := fixedReceipt()
		u := &r.Records[c.of]
		c.change(u)
		again(u)
		if err := u.Validate(nodeActor.id); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
		if _, _, err := r.Seal(nodeActor.key); (err == nil) != c.ok {
			t.Errorf("a receipt sealed with %s: %v", c.what, err)
		}
		got, _, err := OpenReceipt(envelopeOf(t, nodeActor.key, nounReceipt, encodeMessage(t, r.toPB())))
		if err != nil || len(got.Records) != 3 {
			t.Errorf("a receipt with %s is sunk: %v", c.what, err)
			continue
		}
		for i := range got.Records {
			if err := got.Records[i].Validate(nodeActor.id); (err == nil) != (c.ok || i != c.of) {
				t.Errorf("%s: record %d: %v", c.what, i, err)
			}
		}
	}
	u := fixedReceipt().Records[0]
	u.Slot++
	wantErr(t, "another slot's ID", u.Validate(nodeActor.id), ErrBounds)
	u = fixedReceipt().Records[0]
	wantErr(t, "another node's ID", u.Validate(bridgeActor.id), ErrBounds)
	u = fixedReceipt().Records[2]
	u.Fence = 1
	wantErr(t, "idle time with a fence", u.Validate(nodeActor.id), ErrBounds)
	for what, f := range map[string]func(m *pb.UsageRecord){
		"state 257, which has 8 bits of idle": func(m *pb.UsageRecord) { m.State = 257 },
		"state 0":                             func(m *pb.UsageRecord) { m.State = 0 },
		"state -1":                            func(m *pb.UsageRecord) { m.State = -1 },
		"slot 65536":                          func(m *pb.UsageRecord) { m.Slot = 1 << 16 },
		"no ID":                               func(m *pb.UsageRecord) { m.Id = nil },
		"idle time with a lease":              func(m *pb.UsageRecord) { m.Lease = make([]byte, 16) },
	} {
		r := fixedReceipt()
		m := r.toPB()
		f(m.Records[2])
		_, _, err := OpenReceipt(envelopeOf(t, nodeActor.key, nounReceipt, encodeMessage(t, m)))
		if !isRefusal(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAttestationsOutOfBoundsAreRefused(t *testing.T) {
	type a = Attestation
	good := func(g, b float64) func(*a) {
		return func(v *a) { v.Evidence = map[Criterion]Evidence{CriterionUptime: {g, b}} }
	}
	refuses(t, nounAttestation, bridgeActor, fixedAttestation, func(v *a, k crypto.PrivKey) ([]byte, error) { return v.Seal(k) },
		func(v *a) proto.Message { return v.toPB() }, func(raw []byte) error { _, err := OpenAttestation(raw, noon); return err }, []spoilt[a]{
			{"nothing", func(*a) {}, nil},
			{"no subject", func(v *a) { v.Subject = "" }, ErrBadID},
			{"no end", func(v *a) { v.Expires = time.Time{} }, ErrBounds},
			{"an end before its beginning", func(v *a) { v.To = v.From.Add(-time.Second) }, ErrBounds},
			{"not a number", good(math.NaN(), 0), ErrBounds},
			{"infinite evidence", good(math.Inf(1), 0), ErrBounds},
			{"negative evidence", good(0, -1), ErrBounds},
			{"evidence that overflows sums", good(math.MaxFloat64, math.MaxFloat64), ErrBounds},
			{"a long group", func(v *a) { v.Group = strings.Repeat("g", 129) }, ErrBounds},
			{"a group that moves the cursor", func(v *a) { v.Group = "\x1b[2J" }, ErrBounds},
		})
	v := fixedAttestation()
	raw, err := v.Seal(bridgeActor.key)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		now  time.Time
		want error
	}{
		"a moment before its end": {v.Expires.Add(-time.Millisecond), nil}, "at its end": {v.Expires, ErrBounds}, "long after": {noon.Add(1e5 * time.Hour), ErrBounds},
		"a fast clock": {v.Expires.Add(-30*24*time.Hour - time.Hour), nil}, "too far ahead": {v.Expires.Add(-30*24*time.Hour - time.Hour - time.Millisecond), ErrBounds},
	} {
		_, err := OpenAttestation(raw, c.now)
		wantErr(t, what, err, c.want)
	}
	v.Evidence["charm"] = Evidence{1, 1}
	_, err = v.Seal(bridgeActor.key)
	wantErr(t, "a criterion of one's own", err, ErrBounds)
	m := v.toPB()
	m.Evidence = append(m.Evidence, &pb.CriterionEvidence{Criterion: "charm", Good: math.NaN()})
	got, err := OpenAttestation(envelopeOf(t, bridgeActor.key, nounAttestation, encodeMessage(t, m)), noon)
	if err != nil || len(got.Evidence) != 3 {
		t.Errorf("a criterion of a newer peer: %v, %v", err, got.Evidence)
	}
	m.Evidence[3] = m.GetEvidence()[0]
	_, err = OpenAttestation(envelopeOf(t, bridgeActor.key, nounAttestation, encodeMessage(t, m)), noon)
	wantErr(t, "a criterion twice", err, ErrBounds)
}

func TestJournalDecodersRefuseWhatIsTooLarge(t *testing.T) {
	big := make([]byte, 2*MaxFrame)
	_, err := DecodeJobTerms(big)
	wantErr(t, "terms", err, ErrTooLarge)
	_, err = DecodeLease(big)
	wantErr(t, "lease", err, ErrTooLarge)
	_, err = DecodeResult(big)
	wantErr(t, "result", err, ErrTooLarge)
}
