package dht

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/internal/corpus"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// scanned runs a whole scan and returns what it brought, sorted by peer, records first.
func scanned(t *testing.T, d *Directory, from peer.ID, q ScanQuery) ([]ScanRow, ScanTotals) {
	t.Helper()
	var rows []ScanRow
	sum, err := d.Scan(within(t, 20*time.Second), from, q, func(r ScanRow) { rows = append(rows, r) })
	if err != nil {
		t.Fatal(err)
	}
	return rows, sum
}

func peersIn(rows []ScanRow) []peer.ID {
	var ids []peer.ID
	for _, r := range rows {
		ids = append(ids, r.Peer)
	}
	return sortedIDs(ids)
}

func TestAScanOfAnyServerGivesWhatItHoldsInTheOrderOfTheKeys(t *testing.T) {
	peers := neighbourhood(t, 6)
	raws := map[peer.ID][]byte{}
	for _, p := range peers[1:] {
		raws[p.id] = p.advertise(t, gpu("nvidia-h100-80gb-sxm", 2, 79.65))
	}
	client := startPeer(t, 100, func(c *Config) { c.Mode = ModeClient })
	for _, p := range peers {
		connect(t, client.host, p.host)
	}
	for _, p := range peers {
		eventually(t, "every server holds every record", func() bool { // scans would use up the client's rate
			return len(p.dir.held(t.Context(), &pb.ScanRequest{})) == len(peers[1:])
		})
		if rows, _ := scanned(t, client.dir, p.id, ScanQuery{}); !slices.Equal(peersIn(rows), idsOf(peers[1:]...)) {
			t.Errorf("%s lists %d rows", p.id, len(rows))
		}
	}
	server := peers[2]
	rows, sum := scanned(t, client.dir, server.id, ScanQuery{})
	for i, r := range rows {
		key := keyOf(r.Peer)
		if !bytes.Equal(r.Raw, raws[r.Peer]) || r.Record.GetGpus()[0].GetCount() != 2 || r.ReceivedAt.Before(time.Now().Add(-time.Minute)) {
			t.Errorf("row of %s: %+v", r.Peer, r)
		}
		if i > 0 {
			if before := keyOf(rows[i-1].Peer); bytes.Compare(before[:], key[:]) >= 0 {
				t.Error("rows are not in the order of their keys")
			}
		}
	}
	if sum.Rows != 5 || sum.Bad+sum.Expired != 0 {
		t.Errorf("totals %+v", sum)
	}
	t.Run("digests", func(t *testing.T) {
		short, _ := scanned(t, client.dir, server.id, ScanQuery{DigestOnly: true})
		for _, r := range short {
			if r.Raw != nil || r.Record != nil || r.Digest != digestOf(raws[r.Peer]) || r.Seq == 0 {
				t.Errorf("digest row %+v", r)
			}
		}
		if len(short) != 5 {
			t.Errorf("%d digests, want 5", len(short))
		}
	})
	t.Run("prefixes", func(t *testing.T) {
		n := 0
		for _, first := range []byte{0x00, 0x40, 0x80, 0xc0} {
			part, _ := scanned(t, client.dir, server.id, ScanQuery{Prefix: []byte{first}, Bits: 2})
			for _, r := range part {
				if key := keyOf(r.Peer); key[0]&0xc0 != first {
					t.Errorf("%x is not under %x", key[0], first)
				}
			}
			n += len(part)
		}
		if n != 5 {
			t.Errorf("the four quarters have %d rows, the whole 5", n)
		}
	})
	t.Run("limit", func(t *testing.T) {
		some, _ := scanned(t, client.dir, server.id, ScanQuery{Limit: 3})
		if !slices.Equal(peersIn(some), peersIn(rows[:3])) {
			t.Errorf("a limit of 3 gives %d rows", len(some))
		}
	})
	t.Run("since", func(t *testing.T) {
		if none, _ := scanned(t, client.dir, server.id, ScanQuery{Since: time.Now().Add(time.Minute)}); len(none) != 0 {
			t.Errorf("%d rows are from the future", len(none))
		}
	})
	t.Run("heartbeats", func(t *testing.T) {
		eventually(t, "the listener hands heartbeats out", func() bool {
			both, _ := scanned(t, client.dir, peers[0].id, ScanQuery{Beats: true})
			beats := 0
			for _, r := range both {
				if r.IsBeat && r.Beat.GetState() == ready {
					beats++
				}
			}
			return beats == 5
		})
	})
}

// stored puts a value into a server's store as if it had been verified once.
func (p *testPeer) stored(t *testing.T, who identity, raw []byte, received time.Time) {
	t.Helper()
	value := kadValue(t, capabilityKey(who.id), raw, received)
	if err := p.dir.values.Put(t.Context(), storeKey(capabilityKey(who.id)), value); err != nil {
		t.Fatal(err)
	}
}

func TestAScanIsServedInPagesAndLeavesOutWhatHasExpired(t *testing.T) {
	server, client := startPeer(t, 0, nil), startPeer(t, 1, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, server.host)
	now := time.Now()
	const many = 3000 // about 700 kB of records without GPUs, several pages of maxScanPage with labels
	var want []peer.ID
	for i := range many {
		who := identityOf(t, 1000+i)
		rec := machine(who.id, uint64(now.UnixMicro()), now)
		for range 8 {
			rec.Labels = append(rec.Labels, &pb.Label{Key: "padding", Value: string(bytes.Repeat([]byte("x"), 64)), Expires: now.UnixMilli()})
		}
		switch i % 10 {
		case 7: // its life is over
			rec.Issued, rec.Expires = now.Add(-90*time.Minute).UnixMilli(), now.Add(-time.Second).UnixMilli()
		default:
			want = append(want, who.id)
		}
		server.stored(t, who, sign(t, who.key, capabilitySeal(), rec), now)
	}
	old := identityOf(t, 9999)
	server.stored(t, old, sign(t, old.key, capabilitySeal(), machine(old.id, 1, now)), now.Add(-maxRecordAge-time.Minute))

	rows, sum := scanned(t, client.dir, server.id, ScanQuery{})
	if !slices.Equal(peersIn(rows), sortedIDs(want)) {
		t.Errorf("%d rows, want %d", len(rows), len(want))
	}
	if sum.Expired != 0 || sum.Bad != 0 || sum.Bytes < maxScanPage {
		t.Errorf("%+v: the server filters, and this is more than one page", sum)
	}
	some, _ := scanned(t, client.dir, server.id, ScanQuery{Limit: 2500})
	if len(some) != 2500 {
		t.Errorf("%d rows under a limit of 2500 over pages", len(some))
	}
}

func TestAReaderBelievesNothingThatAServerMakesUp(t *testing.T) {
	server, client := startPeer(t, 0, nil), startPeer(t, 1, func(c *Config) { c.Mode = ModeClient })
	connect(t, client.host, server.host)
	now := time.Now()
	ids := make([]identity, 4)
	for i := range ids {
		ids[i] = identityOf(t, 50+i)
	}
	slices.SortFunc(ids, func(a, b identity) int {
		ka, kb := keyOf(a.id), keyOf(b.id)
		return bytes.Compare(ka[:], kb[:])
	})
	good := func(i int) *pb.ScanRow {
		raw := sign(t, ids[i].key, capabilitySeal(), machine(ids[i].id, 7, now))
		return &pb.ScanRow{PeerId: []byte(ids[i].id), Kind: pb.ScanKind_SCAN_KIND_CAPABILITY, Envelope: raw, ReceivedAt: now.UnixMilli()}
	}
	stolen := good(1)
	stolen.PeerId = []byte(ids[2].id)
	flipped := good(1)
	flipped.Envelope = bytes.Clone(flipped.Envelope)
	flipped.Envelope[len(flipped.Envelope)-1] ^= 1
	expired := good(1)
	expired.Envelope = sign(t, ids[1].key, capabilitySeal(), machine(ids[1].id, 7, now.Add(-3*time.Hour)))
	last := keyOf(ids[3].id)
	for _, c := range []struct {
		what string
		rows []*pb.ScanRow
		end  []byte
		want ScanTotals
		err  error
	}{
		{"honest", []*pb.ScanRow{good(0), good(1)}, nil, ScanTotals{Rows: 2}, nil},
		{"another peer's record", []*pb.ScanRow{good(0), stolen}, nil, ScanTotals{Rows: 1, Bad: 1}, nil},
		{"a changed byte", []*pb.ScanRow{good(0), flipped}, nil, ScanTotals{Rows: 1, Bad: 1}, nil},
		{"an expired record", []*pb.ScanRow{good(0), expired}, nil, ScanTotals{Rows: 1, Expired: 1}, nil},
		{"no peer", []*pb.ScanRow{{PeerId: nil}}, nil, ScanTotals{Bad: 1}, nil},
		{"out of order", []*pb.ScanRow{good(1), good(0)}, nil, ScanTotals{Rows: 1}, ErrScan},
		{"a cursor that never ends", []*pb.ScanRow{good(0)}, last[:], ScanTotals{Rows: 1}, ErrScan},
	} {
		server.host.SetStreamHandler(protocol.ProtoScan, func(s network.Stream) {
			_, _ = io.Copy(io.Discard, s)
			w := msgio.NewVarintWriter(struct{ io.Writer }{s})
			_ = writeScan(w, &pb.ScanReply{Part: &pb.ScanReply_Rows{Rows: &pb.ScanRows{Rows: c.rows}}})
			_ = writeScan(w, &pb.ScanReply{Part: &pb.ScanReply_End{End: &pb.ScanEnd{Cursor: c.end}}})
			_ = s.Close()
		})
		var taken int
		sum, err := client.dir.Scan(within(t, 10*time.Second), server.id, ScanQuery{}, func(r ScanRow) { taken++ })
		sum.Bytes = 0
		if sum != c.want || taken != c.want.Rows || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v and %d rows, %v; want %+v, %v", c.what, sum, taken, err, c.want, c.err)
		}
	}
}

func TestAPeerHasOneScanAtATimeAndItsShareOfAnHour(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ScanStreams, cfg.ScanQuota = 2, 1000
	s, g := newScans(&cfg), scanGate(&cfg)
	a, b, c := asker{peer: "a"}, asker{peer: "b"}, asker{peer: "c"}
	if !g.enter(a) || g.enter(a) || !g.enter(b) || g.enter(c) {
		t.Error("one a peer, two in all")
	}
	g.leave(a)
	if !g.enter(c) || g.enter(a) {
		t.Error("a freed slot goes to whoever comes")
	}
	now := time.Unix(1_800_000_000, 0) // 2027-01-15 08:00:00 UTC
	if s.spend(a, 600, now) != 0 || s.spend(a, 401, now) == 0 || s.spend(b, 401, now) != 0 {
		t.Error("1,000 bytes an hour for each")
	}
	wait := s.spend(a, 401, now)
	if s.spend(a, 401, now.Add(wait)) != 0 {
		t.Errorf("not again after %s", wait)
	}
}

func TestAScanDecodesOnlyWhatItReturns(t *testing.T) {
	d := loneDirectory(t)
	now := time.Now()
	var last [scanKey]byte
	for i := range 300 {
		who := identityOf(t, 2000+i)
		b, err := openBeat(sign(t, who.key, availabilitySeal(), heartbeat(who.id, 1, now, nil, ready)), who.id)
		if err != nil {
			t.Fatal(err)
		}
		d.index.putBeat(b, 0, now)
		last = keyOf(who.id)
	}
	for what, c := range map[string]struct {
		req  *pb.ScanRequest
		most int // of what has to be decoded
		rows int
	}{
		"of nobody's key": {&pb.ScanRequest{Bits: 256, Prefix: make([]byte, scanKey)}, 0, 0},
		"of one key":      {&pb.ScanRequest{Bits: 256, Prefix: last[:]}, 1, 1},
		"a page of ten":   {&pb.ScanRequest{Limit: 10}, 11, 10}, // one more shows that there is one
		"all":             {&pb.ScanRequest{}, 300, 300},
	} {
		d.index.opened = openings{}
		for i := range d.index.slots {
			d.index.at(d.index.slots[i]).beat.content.Store(nil)
		}
		c.req.Kinds = []pb.ScanKind{pb.ScanKind_SCAN_KIND_AVAILABILITY}
		raw, err := proto.Marshal(c.req)
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for reply := range d.scanReplies(t.Context(), raw) {
			rows += len(reply.GetRows().GetRows())
		}
		if got := len(d.index.opened.beats.held); got > c.most || rows != c.rows {
			t.Errorf("%s: %d rows and %d of 300 heartbeats decoded, want %d and at most %d", what, rows, got, c.rows, c.most)
		}
	}
}

func TestAScanThatAsksWrongIsToldWhy(t *testing.T) {
	d := loneDirectory(t)
	for want, req := range map[string]*pb.ScanRequest{
		"bits is 257":        {Bits: 257, Prefix: make([]byte, 33)},
		"prefix has 1 bytes": {Bits: 9, Prefix: []byte{1}},
		"a cursor is taken":  {Cursor: []byte{1}},
		"since is before":    {Since: -1},
	} {
		raw, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		for reply := range d.scanReplies(context.Background(), raw) {
			if e := reply.GetError(); e.GetCode() != pb.ScanErrorCode_SCAN_ERROR_CODE_FORMAT || !bytes.Contains([]byte(e.GetText()), []byte(want)) {
				t.Errorf("%q answers %v", want, reply)
			}
		}
	}
}

// loneDirectory is a directory over a host that is connected to nobody and not run.
func loneDirectory(t testing.TB) *Directory {
	t.Helper()
	who := identityOf(t, 500)
	h, g := newHost(t, who)
	cfg := DefaultConfig()
	cfg.Loopback = true
	d, err := New(cfg, h, g, time.Now, rand.New(rand.NewPCG(1, 2)), quiet)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// FuzzScanServer feeds arbitrary requests to a server that holds some records: whatever is asked, the answer is
// within its limits, in order, and ends with one end or one error.
func FuzzScanServer(f *testing.F) {
	corpus.Add(f)
	d := loneDirectory(f)
	now := time.Now()
	for i := range 20 {
		who := identityOf(f, 600+i)
		raw := sign(f, who.key, capabilitySeal(), machine(who.id, 1, now))
		if err := d.values.Put(context.Background(), storeKey(capabilityKey(who.id)), kadValue(f, capabilityKey(who.id), raw, now)); err != nil {
			f.Fatal(err)
		}
	}
	for _, req := range []*pb.ScanRequest{
		{},
		{Kinds: []pb.ScanKind{1, 2}, Limit: 3},
		{Prefix: []byte{0x80}, Bits: 1, DigestOnly: true},
		{Cursor: bytes.Repeat([]byte{0x55}, 32), Since: 1},
		{Bits: 300},
	} {
		raw, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ended, rows := false, 0
		var last []byte
		for reply := range d.scanReplies(context.Background(), raw) {
			if ended {
				t.Fatal("a frame behind the end")
			}
			if size := proto.Size(reply); size > maxScanFrame {
				t.Fatalf("a frame of %d bytes", size)
			}
			for _, r := range reply.GetRows().GetRows() {
				key := keyOf(peer.ID(r.GetPeerId()))
				if bytes.Compare(key[:], last) < 0 {
					t.Fatal("out of order")
				}
				last = key[:]
				rows++
			}
			ended = reply.GetRows() == nil
		}
		if !ended || rows > 20 {
			t.Fatalf("%d rows, ended %v", rows, ended)
		}
	})
}

// FuzzScanReader feeds arbitrary answers to the reader: it hands out only what verifies, and takes no more
// than the limits.
func FuzzScanReader(f *testing.F) {
	corpus.Add(f)
	now := time.Now()
	who := identityOf(f, 700)
	row := &pb.ScanRow{
		PeerId: []byte(who.id), Kind: pb.ScanKind_SCAN_KIND_CAPABILITY, ReceivedAt: now.UnixMilli(),
		Envelope: sign(f, who.key, capabilitySeal(), machine(who.id, 1, now)), Digest: make([]byte, 8),
	}
	for _, replies := range [][]*pb.ScanReply{
		{{Part: &pb.ScanReply_Rows{Rows: &pb.ScanRows{Rows: []*pb.ScanRow{row}}}}, {Part: &pb.ScanReply_End{End: &pb.ScanEnd{}}}},
		{{Part: &pb.ScanReply_Error{Error: &pb.ScanError{Code: 2, RetryAfterMs: 9}}}},
		{{}},
	} {
		var b bytes.Buffer
		for _, r := range replies {
			if err := writeScan(msgio.NewVarintWriter(&b), r); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes(), false)
		f.Add(b.Bytes(), true)
	}
	f.Fuzz(func(t *testing.T, answer []byte, digests bool) {
		taken := 0
		r := &scanReader{req: &pb.ScanRequest{DigestOnly: digests, Limit: 4}, now: now, take: func(s ScanRow) {
			taken++
			if digests {
				return
			}
			if s.IsBeat {
				if _, err := openBeat(s.Raw, s.Peer); err != nil {
					t.Fatalf("took %v", err)
				}
			} else if _, err := OpenCapability(s.Raw, s.Peer, now); err != nil {
				t.Fatalf("took %v", err)
			}
		}}
		_ = r.read(bytes.NewReader(answer))
		if r.peers > 4 || taken != r.totals.Rows {
			t.Fatalf("%d peers, %d taken, %+v", r.peers, taken, r.totals)
		}
	})
}
