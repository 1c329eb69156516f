package archive

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// The data's licence and where its policy stands.
const (
	dataLicence = "CC-BY-4.0"
	dataPolicy  = "docs/research.md of gridbeam: Data policy"
)

// set are the rows of a crawl, sorted.
type set struct {
	crawl      Crawl
	visits     []VisitRow
	neighbors  []NeighborsRow
	records    []RecordRow
	presence   []PresenceRow
	properties map[string]map[string]int
	optedOut   int // peers that are in none of these
}

// Write turns what a survey has found into the files of a crawl directory, replacing those that are there. The
// manifest comes last, signed with key; then the journal is removed if the crawl is complete.
func Write(dir string, o *Outcome, key crypto.PrivKey) (Manifest, error) {
	s := newSet(o)
	m := o.manifest(s)
	if o.Anonymise {
		a, err := newAnonymiser()
		if err != nil {
			return m, err
		}
		a.set(s)
		m.Command, m.Seeds, m.Observer, m.Anonymised = []string{}, []string{}, "", true
		m.Verifiable = "not re-verifiable: anonymised, without envelopes; only that no file has changed can be checked"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return m, fmt.Errorf("making the crawl's directory: %w", err)
	}
	for _, f := range s.files() {
		sum := newSummer()
		if err := replace(filepath.Join(dir, f.name), func(w io.Writer) error { return f.write(io.MultiWriter(w, sum)) }); err != nil {
			return m, err
		}
		m.Files[f.name] = sum.entry()
	}
	b, err := signManifest(&m, key)
	if err != nil {
		return m, err
	}
	if err := replace(filepath.Join(dir, ManifestFile), whole(b)); err != nil {
		return m, err
	}
	if o.Complete {
		if err := os.Remove(filepath.Join(dir, JournalFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return m, fmt.Errorf("removing the journal: %w", err)
		}
	}
	return m, nil
}

// replace writes a file as a whole or not at all.
func replace(path string, write func(io.Writer) error) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	out := bufio.NewWriterSize(f, 1<<16)
	err = write(out)
	err = errors.Join(err, out.Flush(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(tmp))
	}
	return nil
}

func whole(b []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(b); return err }
}

type file struct {
	name  string
	write func(io.Writer) error
}

func (s *set) files() []file {
	return []file{
		{CrawlFile, object(s.crawl)},
		{PropertiesFile, object(s.properties)},
		{VisitsFile, lines(s.visits)},
		{NeighborsFile, lines(s.neighbors)},
		{RecordsFile, lines(s.records)},
		{PresenceFile, lines(s.presence)},
	}
}

func object(v any) func(io.Writer) error {
	return func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
}

// lines writes rows as NDJSON.
func lines[T any](rows []T) func(io.Writer) error {
	return func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for i := range rows {
			if err := enc.Encode(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// newSet makes the rows of the findings.
func newSet(o *Outcome) *set {
	f := o.Findings
	records := f.Records()
	out := optedOut(records)
	visits, sweeps := slices.DeleteFunc(f.Visits(), func(v dht.Visit) bool { return out[v.Peer] }), map[peer.ID]*dht.Sweep{}
	all := f.Sweeps()
	for i := range all {
		sweeps[all[i].Server] = &all[i]
	}
	s := &set{
		crawl:      Crawl{State: "succeeded", StartedAt: stamp(o.Started), FinishedAt: stamp(o.Finished), Version: Version},
		visits:     make([]VisitRow, 0, len(visits)),
		properties: map[string]map[string]int{"agent_version": {}, "protocol": {}, "connect_error": {}, "crawl_error": {}},
	}
	if !o.Complete {
		s.crawl.State = "cancelled"
	}
	known := map[peer.ID]bool{}
	for i := range visits {
		v := &visits[i]
		known[v.Peer] = true
		v.Neighbors = slices.DeleteFunc(slices.Clone(v.Neighbors), func(n peer.AddrInfo) bool { return out[n.ID] })
		s.visits = append(s.visits, visitRow(v, sweeps[v.Peer]))
		if len(v.Neighbors) > 0 || v.ErrorBits != 0 {
			s.neighbors = append(s.neighbors, neighborsRow(v))
		}
	}
	remaining := map[peer.ID]bool{}
	for i := range visits {
		for _, n := range visits[i].Neighbors {
			if !known[n.ID] {
				remaining[n.ID] = true
			}
		}
	}
	s.count(visits)
	s.crawl.CrawledPeers, s.crawl.RemainingPeers = len(visits), len(remaining)
	s.optedOut = len(out)
	for i := range records {
		if out[records[i].Peer] {
			continue
		}
		s.records = append(s.records, Row(&records[i], o.Observer.String()))
	}
	for _, l := range f.Lives() {
		if l.Last.Before(o.Started) || out[l.Peer] {
			continue // others heard it before we began, or it wants no research
		}
		row := PresenceRow{PeerID: l.Peer.String(), Start: stamp(l.First), End: stamp(l.Last), CensoredLeft: true, CensoredRight: !l.Left, Reason: ReasonEnded}
		if l.Left {
			row.Reason = ReasonLeft
		}
		s.presence = append(s.presence, row)
	}
	return s
}

// WantsOut says whether a node asks in its record that researchers leave it out of what they keep and publish.
func WantsOut(record *pb.Capability) bool {
	return slices.ContainsFunc(record.GetLabels(), func(l *pb.Label) bool {
		return l.GetKey() == protocol.LabelResearch && l.GetValue() == protocol.ResearchNo
	})
}

// optedOut are the peers whose newest record asks researchers to leave them out.
func optedOut(records []dht.Found) map[peer.ID]bool {
	out := map[peer.ID]bool{}
	for i := range records { // the newest of each peer comes last
		r := &records[i]
		if WantsOut(r.Record) {
			out[r.Peer] = true
		} else if !r.Record.GetTombstone() {
			delete(out, r.Peer)
		}
	}
	return out
}

// count fills in the properties.
func (s *set) count(visits []dht.Visit) {
	for i := range visits {
		v := &visits[i]
		if v.ConnectErr != "" {
			s.crawl.UndialablePeers++
			s.properties["connect_error"][errorKind(v.ConnectErr)]++
			continue
		}
		s.crawl.DialablePeers++
		s.properties["agent_version"][v.Agent]++
		for _, p := range v.Protocols {
			s.properties["protocol"][p]++
		}
		if v.CrawlErr != "" {
			s.properties["crawl_error"][errorKind(v.CrawlErr)]++
		}
	}
}

// errorKind sorts an error's text, which holds addresses and peer IDs, into a kind.
func errorKind(text string) string {
	for _, k := range []struct{ part, kind string }{
		{"deadline exceeded", "timeout"},
		{"i/o timeout", "timeout"},
		{"connection refused", "refused"},
		{"no addresses", "no address"},
		{"no good addresses", "no address"},
		{"no route to host", "no route"},
		{"network is unreachable", "no route"},
		{"peer id mismatch", "another peer answers"},
		{"resource limit", "our own limit"},
		{"protocols not supported", "protocol not spoken"},
		{"stream reset", "stream reset"},
		{"asks for fewer", "asked too often"},
		{"peers too many", "too many peers"},
	} {
		if strings.Contains(text, k.part) {
			return k.kind
		}
	}
	return "other"
}

func (o *Outcome) manifest(s *set) Manifest {
	c := o.Findings.Counts()
	return Manifest{
		Version: Version, Software: o.Software, Command: slices.Clone(o.Command), Seeds: slices.Clone(o.Seeds), Observer: o.Observer.String(),
		State: s.crawl.State, StartedAt: s.crawl.StartedAt, FinishedAt: s.crawl.FinishedAt, ListenSeconds: o.Listen.Seconds(),
		Counts: map[string]int{
			"visited": c.Visited, "reached": c.Reached, "servers": c.Servers, "scanned": c.Swept - c.Failed, "scans_failed": c.Failed,
			"records": len(s.records), "peers_with_record": c.Records, "present": len(s.presence), "opted_out": s.optedOut,
		},
		Errors: o.Findings.Refused(), Coverage: coverageOnPaper(o.Findings.Coverage(), o.Goal),
		Verifiable: "every record and heartbeat carries its node's signature; observations are the crawler's word", Licence: dataLicence, Policy: dataPolicy,
		Files: map[string]ManifestFileEntry{},
	}
}

// sortRecords puts rows into their order: by peer, then by sequence number.
func sortRecords(rows []RecordRow) {
	slices.SortStableFunc(rows, func(a, b RecordRow) int { return cmp.Or(cmp.Compare(a.PeerID, b.PeerID), cmp.Compare(a.Seq, b.Seq)) })
}
