package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/parquet-go/parquet-go"
	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

type who struct {
	key crypto.PrivKey
	id  peer.ID
}

func identity(t testing.TB, n int) who {
	t.Helper()
	seed := sha256.Sum256(fmt.Appendf(nil, "archive %d", n))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(slices.Repeat(seed[:], 4)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return who{key, id}
}

func addr(t testing.TB, s string) multiaddr.Multiaddr {
	t.Helper()
	a, err := multiaddr.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func of[T any](v T) *T { return &v }

// events are a small network: a node with two kinds of GPUs that speaks, one with none in Paris that has a comma and
// a quote in its CPU's name, one that has left, and one that nobody reached.
func events(t testing.TB) (out []dht.SurveyEvent, peers []who) {
	t.Helper()
	for i := range 4 {
		peers = append(peers, identity(t, i))
	}
	record := func(i int, seq uint64, mutate func(*pb.Capability)) []byte {
		c := &pb.Capability{
			Format: 1, MinReader: 1, PeerId: []byte(peers[i].id), Seq: seq, Issued: began.UnixMilli(), Expires: began.Add(time.Hour).UnixMilli(), Agent: "gridbeam/test",
			Host: &pb.Host{Os: "linux", Arch: "amd64", CpuModel: `Xeon "Gold", 2 sockets`, Cores: of(uint32(16)), RamBytes: of(uint64(64<<30 + 12345))},
		}
		mutate(c)
		raw, err := protocol.SealCapability(peers[i].key, c)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	gpus := record(0, 7, func(c *pb.Capability) {
		c.Addrs = [][]byte{addr(t, "/ip4/192.0.2.77/tcp/4001").Bytes(), addr(t, "/dns4/secret.example.org/tcp/4001").Bytes()}
		c.Location = &pb.Location{Country: "DE"}
		c.Labels = []*pb.Label{{Key: "rack", Value: "cellar of Ann", Expires: began.UnixMilli()}}
		c.Gpus = []*pb.GpuGroup{
			{Vendor: "nvidia", Model: "nvidia-h100-80gb-sxm", RawName: "NVIDIA H100 80GB HBM3", Count: 8, VramBytes: of(uint64(85520809984)), Compute: of(uint32(90)), DeviceTags: [][]byte{[]byte("tag45678")}},
			{Vendor: "nvidia", Model: "nvidia-t4-16gb", Count: 2},
		}
	})
	digest := sha256.Sum256(gpus)
	beat, err := protocol.SealAvailability(peers[0].key, &pb.Availability{
		Format: 1, PeerId: []byte(peers[0].id), Seq: 3, At: began.Add(20 * time.Second).UnixMilli(), PeriodS: 30, State: pb.NodeState_NODE_STATE_BUSY,
		CapDigest: digest[:8], Groups: []*pb.GroupLoad{{Index: 0, Free: 5}}, Running: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	seen := func(s dht.Sighting) dht.SurveyEvent { return dht.SurveyEvent{Sighting: &s} }
	visit := func(v dht.Visit) dht.SurveyEvent { return dht.SurveyEvent{Visit: &v} }
	paris := record(1, 4, func(c *pb.Capability) { c.Location = &pb.Location{Country: "FR"} })
	return []dht.SurveyEvent{
		visit(dht.Visit{
			Peer: peers[0].id, Addrs: []multiaddr.Multiaddr{addr(t, "/ip4/192.0.2.77/tcp/4001")}, Listen: []multiaddr.Multiaddr{addr(t, "/ip6/2001:db8:1:2::3/tcp/4001")},
			Connected: addr(t, "/ip4/192.0.2.77/tcp/4001"), Protocols: []string{"/gridbeam/kad/1.0.0"}, Agent: "gridbeam/test", Began: at(1), Ended: at(2),
			Dialling: 30 * time.Millisecond, Crawling: time.Second, RTT: 1500 * time.Microsecond, Server: true, Scans: true,
			Neighbors: []peer.AddrInfo{{ID: peers[1].id, Addrs: []multiaddr.Multiaddr{addr(t, "/ip4/192.0.2.9/tcp/1")}}, {ID: peers[3].id}}, ErrorBits: 4,
		}),
		visit(dht.Visit{Peer: peers[1].id, Server: true, Scans: true, Agent: "gridbeam/test", Began: at(2), Ended: at(3)}),
		visit(dht.Visit{Peer: peers[2].id, Began: at(2), Ended: at(8), ConnectErr: "failed to dial " + peers[2].id.String() + ": connection refused 192.0.2.200"}),
		seen(dht.Sighting{Peer: peers[0].id, Record: gpus, Beat: beat, Via: dht.ViaSelf, From: peers[0].id, At: at(21)}),
		seen(dht.Sighting{Peer: peers[1].id, Record: record(1, 3, func(*pb.Capability) {}), Via: dht.ViaScan, From: peers[0].id, At: at(4)}),
		seen(dht.Sighting{Peer: peers[1].id, Record: paris, Via: dht.ViaScan, From: peers[0].id, At: at(5)}),
		seen(dht.Sighting{Peer: peers[2].id, Record: record(2, 9, func(c *pb.Capability) { c.Tombstone = true }), Via: dht.ViaScan, From: peers[1].id, At: at(5)}),
		{Sweep: &dht.Sweep{Server: peers[0].id, Pass: 0, At: at(5), Held: []dht.Holding{{Peer: peers[1].id, Seq: 4}, {Peer: peers[0].id, Seq: 7}}}},
		{Sweep: &dht.Sweep{Server: peers[1].id, Pass: 1, At: at(6), Held: []dht.Holding{{Peer: peers[1].id, Seq: 4}, {Peer: peers[0].id, Seq: 7}}}},
	}, peers
}

func written(t testing.TB, anonymise bool) (dir string, peers []who, m Manifest) {
	t.Helper()
	all, peers := events(t)
	f := dht.NewFindings()
	for _, e := range all {
		f.Take(e)
	}
	dir = t.TempDir()
	m, err := Write(dir, &Outcome{
		Findings: f, Started: began, Finished: began.Add(time.Minute), Complete: true, Goal: 0.99, Observer: identity(t, 99).id,
		Software: "gridbeam test", Command: []string{"gridbeam", "network", "crawl", "--join", "/ip4/192.0.2.77/tcp/4001"}, Seeds: []string{"/ip4/192.0.2.77/tcp/4001"}, Anonymise: anonymise,
	}, identity(t, 98).key)
	if err != nil {
		t.Fatal(err)
	}
	return dir, peers, m
}

func export(t testing.TB, dir, format string, all bool) []byte {
	t.Helper()
	a, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := a.Export(&b, format, all); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestACrawlIsWrittenVerifiedAndExportedTheSameEachTime(t *testing.T) {
	dir, peers, m := written(t, false)
	v, err := Verify(t.Context(), dir)
	if err != nil || v.Records != 4 || v.Heartbeats != 1 || v.Files != 6 || v.Signer != identity(t, 98).id.String() {
		t.Fatalf("%+v, %v", v, err)
	}
	if one, err := Verify(t.Context(), filepath.Join(dir, RecordsFile)); err != nil || one.Records != 4 || one.Files != 0 {
		t.Errorf("records alone: %+v, %v", one, err)
	}
	if m.Coverage.Share == nil || *m.Coverage.Share != 1 || m.Coverage.FirstPass != 2 || m.Coverage.BothPasses != 2 {
		t.Errorf("coverage %+v", m.Coverage)
	}
	for _, format := range []string{FormatCSV, FormatParquet, FormatNDJSON, FormatHTML} {
		if a, b := export(t, dir, format, true), export(t, dir, format, true); !bytes.Equal(a, b) || len(a) == 0 {
			t.Errorf("%s is not the same twice", format)
		}
	}
	again, _, _ := written(t, false)
	for _, name := range []string{CrawlFile, VisitsFile, NeighborsFile, PropertiesFile, RecordsFile, PresenceFile, ManifestFile} {
		a, err1 := os.ReadFile(filepath.Join(dir, name))
		b, err2 := os.ReadFile(filepath.Join(again, name))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s of the same findings differs: %v", name, err)
		}
	}
	presence, err := os.ReadFile(filepath.Join(dir, PresenceFile))
	if err != nil || bytes.Count(presence, []byte("\n")) != 2 || bytes.Contains(presence, []byte(peers[2].id.String())) {
		t.Errorf("presence: %s, %v", presence, err)
	}
}

func TestEveryFormatHasTheSameRows(t *testing.T) {
	dir, peers, _ := written(t, false)
	table, err := csv.NewReader(bytes.NewReader(export(t, dir, FormatCSV, false))).ReadAll()
	if err != nil || len(table) != 4 {
		t.Fatalf("%d lines, %v", len(table), err)
	}
	if !slices.Equal(table[0], Columns()) || !slices.Contains(table[0], "claimed_country") {
		t.Errorf("head %v", table[0])
	}
	raw := export(t, dir, FormatParquet, false)
	rows, err := parquet.Read[flatRow](bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := writeCSV(&again, rows); err != nil || !bytes.Equal(again.Bytes(), export(t, dir, FormatCSV, false)) {
		t.Errorf("Parquet read back gives other rows, %v:\n%s", err, again.Bytes())
	}
	rows = nil
	for line := range bytes.Lines(export(t, dir, FormatNDJSON, false)) {
		var r flatRow
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r)
	}
	again.Reset()
	if err := writeCSV(&again, rows); err != nil || !bytes.Equal(again.Bytes(), export(t, dir, FormatCSV, false)) {
		t.Errorf("NDJSON read back gives other rows, %v", err)
	}
	at := func(row []string, column string) string { return row[slices.Index(table[0], column)] }
	var h100, paris []string
	for _, row := range table[1:] {
		switch {
		case at(row, "claimed_gpu_model") == "nvidia-h100-80gb-sxm":
			h100 = row
		case at(row, "claimed_country") == "FR":
			paris = row
		}
	}
	if h100 == nil || at(h100, "peer_id") != peers[0].id.String() || at(h100, "claimed_gpu_count") != "8" || at(h100, "claimed_gpu_free") != "5" ||
		at(h100, "claimed_gpu_vram_gb") != "80" || at(h100, "claimed_gpu_compute") != "9" || at(h100, "claimed_state") != "busy" || at(h100, "alive") != "true" || at(h100, "rtt_ms") != "1.5" {
		t.Errorf("H100: %v", h100)
	}
	if paris == nil || at(paris, "claimed_cpu_model") != `Xeon "Gold", 2 sockets` || at(paris, "gpu_group") != "" || at(paris, "seq") != "4" || at(paris, "holders") != "2" {
		t.Errorf("Paris: %v", paris)
	}
	if all := bytes.Count(export(t, dir, FormatCSV, true), []byte("\r\n")); all != 6 {
		t.Errorf("with all records %d lines, want 6", all)
	}
}

func TestVerifyNamesTheFirstRowThatWasTouched(t *testing.T) {
	src, peers, _ := written(t, false)
	content := func(name string) []string {
		b, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	rows := content(RecordsFile)
	h100 := slices.IndexFunc(rows, func(s string) bool { return strings.Contains(s, "h100") })
	other := (h100 + 1) % len(rows)
	for _, c := range []struct {
		what  string
		file  string
		touch func(lines []string) // a line made empty is left out
		want  string
	}{
		{"a claim", RecordsFile, func(l []string) { l[h100] = strings.Replace(l[h100], `"count":8`, `"count":9`, 1) }, fmt.Sprintf("row %d: not what was signed: claimed_gpus differs", h100+1)},
		{"a country", RecordsFile, func(l []string) { l[h100] = strings.Replace(l[h100], `"DE"`, `"US"`, 1) }, fmt.Sprintf("row %d: not what was signed: claimed_country differs", h100+1)},
		{"a heartbeat", RecordsFile, func(l []string) {
			l[h100] = strings.Replace(l[h100], `"claimed_state":"busy"`, `"claimed_state":"ready"`, 1)
		}, "claimed_state differs"},
		{"a heartbeat about another record", RecordsFile, func(l []string) {
			other, err := protocol.SealAvailability(peers[0].key, &pb.Availability{
				Format: 1, PeerId: []byte(peers[0].id), Seq: 3, At: began.Add(20 * time.Second).UnixMilli(), PeriodS: 30, State: pb.NodeState_NODE_STATE_BUSY,
				CapDigest: []byte("another!"), Groups: []*pb.GroupLoad{{Index: 0, Free: 5}}, Running: 3,
			})
			if err != nil {
				t.Fatal(err)
			}
			head, _, _ := strings.Cut(l[h100], `"availability_b64"`)
			l[h100] = head + `"availability_b64":"` + base64.StdEncoding.EncodeToString(other) + `"}`
		}, "availability_b64 speaks of another record"},
		{"an added column", RecordsFile, func(l []string) { l[h100] = strings.Replace(l[h100], `"holders"`, `"golders":1,"holders"`, 1) }, "golders"},
		{"an envelope", RecordsFile, func(l []string) { l[h100] = strings.Replace(l[h100], `"record_b64":"C`, `"record_b64":"D`, 1) }, fmt.Sprintf("row %d", h100+1)},
		{"whose it is", RecordsFile, func(l []string) {
			l[h100] = strings.ReplaceAll(l[h100], peers[0].id.String(), peers[3].id.String())
		}, fmt.Sprintf("_records.ndjson row %d", h100+1)},
		{"the order", RecordsFile, func(l []string) { slices.Reverse(l) }, "row 2: not what was signed: out of order"},
		{"the crawler's own word", RecordsFile, func(l []string) { l[other] = strings.Replace(l[other], `"holders":`, `"holders":1`, 1) }, "_records.ndjson: not what was signed: "},
		{"a row left out", RecordsFile, func(l []string) { l[other] = "" }, "the manifest names 4"},
		{"presence", PresenceFile, func(l []string) { l[0] = strings.Replace(l[0], "12:0", "11:0", 1) }, PresenceFile},
		{"visits", VisitsFile, func(l []string) { l[0] = "" }, VisitsFile},
		{"the manifest", ManifestFile, func(l []string) {
			for i := range l {
				l[i] = strings.Replace(l[i], `"seen": 2`, `"seen": 3`, 1)
			}
		}, "the signature of"},
	} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
			t.Fatal(err)
		}
		l := content(c.file)
		before := strings.Join(l, "\n")
		c.touch(l)
		l = slices.DeleteFunc(l, func(s string) bool { return s == "" })
		if strings.Join(l, "\n") == before {
			t.Fatalf("%s: nothing was touched", c.what)
		}
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(strings.Join(l, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
}

func TestAnAnonymisedCrawlNamesNobody(t *testing.T) {
	dir, peers, m := written(t, true)
	v, err := Verify(t.Context(), dir)
	if err != nil || !v.Anonymised || v.Records != 4 || !strings.Contains(m.Verifiable, "not re-verifiable") {
		t.Fatalf("%+v, %v", v, err)
	}
	everything := ""
	for _, name := range []string{CrawlFile, VisitsFile, NeighborsFile, PropertiesFile, RecordsFile, PresenceFile, ManifestFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		everything += string(b)
	}
	for _, format := range []string{FormatCSV, FormatNDJSON, FormatHTML} {
		everything += string(export(t, dir, format, true))
	}
	for _, p := range peers {
		if strings.Contains(everything, p.id.String()) {
			t.Errorf("%s is named", p.id)
		}
	}
	for _, secret := range []string{"192.0.2.77", "192.0.2.200", "2001:db8:1:2", "secret.example", "cellar", "_b64", "rack", "68719489081", "12:00:20", `"seq":7`, `"seq":9`, identity(t, 99).id.String()} {
		if strings.Contains(everything, secret) {
			t.Errorf("%q is told", secret)
		}
	}
	for _, kept := range []string{"192.0.2.0/24", "2001:db8:1::/48", "nvidia-h100-80gb-sxm", `"refused"`, "anon-"} {
		if !strings.Contains(everything, kept) {
			t.Errorf("%q is lost", kept)
		}
	}
	other, _, _ := written(t, true)
	a, b := export(t, dir, FormatCSV, false), export(t, other, FormatCSV, false)
	if bytes.Equal(a, b) {
		t.Error("two crawls have the same pseudonyms")
	}
}

func TestWhoWantsNoResearchIsInNoFile(t *testing.T) {
	all, peers := events(t)
	raw, err := protocol.SealCapability(peers[0].key, &pb.Capability{
		Format: 1, MinReader: 1, PeerId: []byte(peers[0].id), Seq: 8, Issued: began.UnixMilli(), Expires: began.Add(time.Hour).UnixMilli(),
		Labels: []*pb.Label{{Key: protocol.LabelResearch, Value: protocol.ResearchNo}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := dht.NewFindings()
	for _, e := range append(all, dht.SurveyEvent{Sighting: &dht.Sighting{Peer: peers[0].id, Record: raw, Via: dht.ViaSelf, From: peers[0].id, At: began.Add(30 * time.Second)}}) {
		f.Take(e)
	}
	dir := t.TempDir()
	m, err := Write(dir, &Outcome{Findings: f, Started: began, Finished: began.Add(time.Minute), Complete: true, Observer: identity(t, 99).id}, identity(t, 98).key)
	if err != nil || m.Counts["opted_out"] != 1 || m.Counts["records"] != 3 || m.Coverage.Seen != 2 {
		t.Errorf("%+v, %v", m.Counts, err)
	}
	for name := range m.Files {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || bytes.Contains(b, []byte(peers[0].id.String())) {
			t.Errorf("%s names it, %v", name, err)
		}
	}
	if _, err := Verify(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func TestStatsCountNodesOnceAndGPUsByGroup(t *testing.T) {
	dir, _, _ := written(t, false)
	a, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := a.Stats([]string{"model"})
	if err != nil || len(stats) != 3 || stats[0].By[0] != "nvidia-h100-80gb-sxm" || stats[0].GPUs != 8 || stats[0].Free != 5 || stats[0].VRAMGB != 640 || stats[0].Nodes != 1 || stats[1].GPUs != 2 || stats[2].By[0] != "none" {
		t.Errorf("%+v, %v", stats, err)
	}
	stats, err = a.Stats([]string{"region"})
	if err != nil || len(stats) != 1 || stats[0].By[0] != "eu" || stats[0].Nodes != 2 || stats[0].Peers != 2 || stats[0].GPUs != 10 || stats[0].Cores != 32 {
		t.Errorf("%+v, %v", stats, err)
	}
	if _, err := a.Stats([]string{"colour"}); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "reachability") {
		t.Errorf("%v names no keys", err)
	}
}

func TestAJournalMakesTheSameFindingsAlsoWhenItsLastLineIsCutOff(t *testing.T) {
	all, _ := events(t)
	dir := t.TempDir()
	j, started, past, err := OpenJournal(dir, began)
	if err != nil || len(past) != 0 || !started.Equal(began) {
		t.Fatal(started, past, err)
	}
	want := dht.NewFindings()
	for _, e := range all {
		j.Take(e)
		want.Take(e)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, JournalFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, `{"visit":{"Peer":"12D3`...), 0o600); err != nil {
		t.Fatal(err)
	}
	j, started, past, err = OpenJournal(dir, began.Add(time.Hour))
	if err != nil || !started.Equal(began) || len(past) != len(all) {
		t.Fatal(started, len(past), err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("the cut line is still there, %v", err)
	}
	got := dht.NewFindings()
	for _, e := range past {
		got.Take(e)
	}
	files := func(f *dht.Findings) string {
		var b bytes.Buffer
		for _, file := range newSet(&Outcome{Findings: f, Started: began, Finished: began}).files() {
			if err := file.write(&b); err != nil {
				t.Fatal(err)
			}
		}
		return b.String()
	}
	if files(got) != files(want) {
		t.Errorf("%s\nwant\n%s", files(got), files(want))
	}
	if err := os.WriteFile(path, []byte("{\"version\":\"other/1\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := OpenJournal(dir, began); !errors.Is(err, ErrJournal) {
		t.Errorf("another version: %v", err)
	}
}

func TestAWatchKeepsWhenPeersWereThereOverInterruptions(t *testing.T) {
	dir := t.TempDir()
	a, b, c := identity(t, 1).id, identity(t, 2).id, identity(t, 3).id
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	const period = 30 * time.Second
	w, resumed, err := OpenWatch(dir, at(0), time.Hour)
	if err != nil || resumed {
		t.Fatal(resumed, err)
	}
	if !w.Sign(a, at(10), period) || !w.Sign(b, at(20), period) || w.Sign(a, at(40), period) || !w.Sign(c, at(200), period) {
		t.Error("who comes is told once")
	}
	if rows := w.Silent(at(110)); len(rows) != 0 {
		t.Errorf("after three periods and not before: %+v", rows)
	}
	w.Sign(a, at(200), period)
	if err := w.Save(at(201), w.Silent(at(201))); err != nil {
		t.Fatal(err)
	}
	row, was := w.Goodbye(a, at(205))
	if !was {
		t.Fatal("a was there")
	}
	if err := w.Save(at(206), []PresenceRow{row}); err != nil {
		t.Fatal(err)
	}
	// kill -9, and what was appended after the last state is told again
	f, err := os.OpenFile(filepath.Join(dir, PresenceFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("{}\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w, resumed, err = OpenWatch(dir, at(1000), 5*time.Second)
	if err != nil || !resumed || !w.Until().Equal(at(3600)) || w.Present() != 0 {
		t.Fatal(resumed, w, err)
	}
	w.Sign(c, at(1010), period)
	rows, err := w.Finish(at(1020))
	if err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, PresenceFile))
	if err != nil {
		t.Fatal(err)
	}
	line := func(id peer.ID, start, end int, left, right bool, reason string) string {
		return fmt.Sprintf(`{"PeerID":"%s","start":"%s","end":"%s","censored_left":%v,"censored_right":%v,"reason":"%s"}`+"\n", id, stamp(at(start)), stamp(at(end)), left, right, reason)
	}
	want := line(b, 20, 20, true, false, ReasonSilent) + line(a, 10, 205, true, false, ReasonLeft) +
		line(c, 200, 200, false, true, ReasonInterrupted) + line(c, 1010, 1010, true, true, ReasonEnded)
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if _, _, err := OpenWatch(dir, at(5000), time.Hour); err == nil {
		t.Error("a watch that has ended was written over")
	}
}

// FuzzVerifyRecords feeds arbitrary files of records to Verify: it refuses or accepts, and what it accepts it
// accepts again.
func FuzzVerifyRecords(f *testing.F) {
	dir, _, _ := written(f, false)
	b, err := os.ReadFile(filepath.Join(dir, RecordsFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"PeerID":"x","record_b64":"AAAA","availability_b64":"AAAA","first_seen":"2026-01-02T15:04:05.000Z","last_seen":"2026-01-02T15:04:05.000Z"}`))
	path := filepath.Join(f.TempDir(), "records.ndjson")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := Verify(t.Context(), path)
		again, err2 := Verify(t.Context(), path)
		if v != again || (err == nil) != (err2 == nil) {
			t.Fatalf("%+v %v, then %+v %v", v, err, again, err2)
		}
		var bad *BadRow
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("%v names no row", err)
		}
	})
}

// FuzzJournal feeds arbitrary journals: what is read can be written and read again.
func FuzzJournal(f *testing.F) {
	all, _ := events(f)
	dir := f.TempDir()
	j, _, _, err := OpenJournal(dir, began)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range all {
		j.Take(e)
	}
	if err := j.Close(); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, JournalFile)
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{\"version\":\"gridbeam-crawl/1\"}\n{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, past, _, err := readJournal(path)
		if err != nil {
			return
		}
		f := dht.NewFindings()
		for _, e := range past {
			f.Take(e)
		}
		for _, file := range newSet(&Outcome{Findings: f}).files() {
			if err := file.write(io.Discard); err != nil {
				t.Fatal(err)
			}
		}
	})
}
