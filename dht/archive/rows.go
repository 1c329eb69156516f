package archive

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Version names the form of the files; docs/research.md has every field.
const Version = "gridbeam-crawl/1"

// Files of a crawl directory.
const (
	// CrawlFile says how the crawl went.
	CrawlFile = "_crawl.json"
	// VisitsFile has a line for each peer that was dialled.
	VisitsFile = "_visits.ndjson"
	// NeighborsFile has the routing tables.
	NeighborsFile = "_neighbors.ndjson"
	// PropertiesFile counts agents, protocols and errors.
	PropertiesFile = "_crawl_properties.json"
	// RecordsFile has a line for each (PeerID, seq).
	RecordsFile = "_records.ndjson"
	// PresenceFile says when peers were there.
	PresenceFile = "_presence.ndjson"
	// ManifestFile is signed and names all others.
	ManifestFile = "manifest.json"
)

// Crawl is the content of CrawlFile.
type Crawl struct {
	// State is succeeded, or cancelled when the crawl was cut off.
	State string `json:"state"`
	// StartedAt and FinishedAt are the crawler's clock, RFC 3339 in UTC.
	StartedAt string `json:"started_at"`
	// FinishedAt is when the last peer was asked.
	FinishedAt string `json:"finished_at"`
	// CrawledPeers were dialled; DialablePeers answered; UndialablePeers did not; RemainingPeers were not tried.
	CrawledPeers int `json:"crawled_peers"`
	// DialablePeers answered.
	DialablePeers int `json:"dialable_peers"`
	// UndialablePeers did not.
	UndialablePeers int `json:"undialable_peers"`
	// RemainingPeers are known and were not tried.
	RemainingPeers int `json:"remaining_peers"`
	// Version is that of these files.
	Version string `json:"version"`
}

// VisitRow is a line of VisitsFile; the names are Nebula's, but for rtt_ms.
type VisitRow struct {
	// PeerID was visited.
	PeerID string
	// Maddrs were dialled, FilteredMaddrs known and not dialled, ListenMaddrs named by the peer.
	Maddrs []string
	// FilteredMaddrs were known and not dialled.
	FilteredMaddrs []string
	// ListenMaddrs the peer names itself.
	ListenMaddrs []string
	// ConnectMaddr answered.
	ConnectMaddr string
	// Protocols that the peer speaks.
	Protocols []string
	// AgentVersion is its software.
	AgentVersion string
	// ConnectDuration and CrawlDuration as Go writes durations.
	ConnectDuration string
	// CrawlDuration is what followed connecting.
	CrawlDuration string
	// VisitStartedAt and VisitEndedAt, RFC 3339 in UTC.
	VisitStartedAt string
	// VisitEndedAt is when the visit ended.
	VisitEndedAt string
	// ConnectErrorStr and CrawlErrorStr are empty when all went well.
	ConnectErrorStr string
	// CrawlErrorStr is what went wrong after connecting.
	CrawlErrorStr string
	// Properties says whether the peer serves the directory and can be scanned, and how its scan went.
	Properties VisitProperties
	// RTTMs is the shortest exchange in milliseconds, an upper bound of the round trip; absent is unknown.
	RTTMs *float64 `json:"rtt_ms,omitempty"`
}

// VisitProperties are what Nebula has no column for.
type VisitProperties struct {
	// Server says that it serves the directory.
	Server bool `json:"dht_server"`
	// Scans says that it can be scanned.
	Scans bool `json:"scans"`
	// Pass is the pass, 1 or 2, in which it was scanned; 0 is none.
	Pass int `json:"scan_pass,omitempty"`
	// Held is how many records it listed, Bad how many rows of it did not verify.
	Held int `json:"scan_records,omitempty"`
	// Bad rows did not verify.
	Bad int `json:"scan_bad,omitempty"`
	// Err is what its scan ended with.
	Err string `json:"scan_error,omitempty"`
}

// NeighborsRow is a line of NeighborsFile.
type NeighborsRow struct {
	// PeerID has NeighborIDs in its routing table.
	PeerID string
	// NeighborIDs are sorted.
	NeighborIDs []string
	// ErrorBits has a 1 for each prefix length whose question failed, length 0 at the right.
	ErrorBits string
}

// GPUClaim is a group of GPUs as its node claims it.
type GPUClaim struct {
	// Vendor, Model (a slug) and RawName (the driver's word).
	Vendor string `json:"vendor,omitempty"`
	// Model is the slug.
	Model string `json:"model,omitempty"`
	// RawName is the driver's name.
	RawName string `json:"raw_name,omitempty"`
	// Count of identical devices; Faulted and Free of them, the latter by the heartbeat.
	Count uint32 `json:"count"`
	// Faulted of them by the record.
	Faulted *uint32 `json:"faulted,omitempty"`
	// Free of them by the heartbeat.
	Free *uint32 `json:"free,omitempty"`
	// VRAMBytes of each.
	VRAMBytes *uint64 `json:"vram_bytes,omitempty"`
	// Compute capability, such as 9.0.
	Compute *float64 `json:"compute,omitempty"`
	// Driver version and CUDA version by it (12040 is 12.4).
	Driver string `json:"driver,omitempty"`
	// CUDA version in NVML's form.
	CUDA *uint32 `json:"cuda,omitempty"`
	// Interface is pcie, sxm or nvl.
	Interface string `json:"interface,omitempty"`
	// MIGProfile of a slice.
	MIGProfile string `json:"mig_profile,omitempty"`
	// PowerW is the power limit in watts.
	PowerW *uint32 `json:"power_w,omitempty"`
}

// LabelClaim is a label; with an issuer it is that issuer's word.
type LabelClaim struct {
	// Key and Value as in the record.
	Key string `json:"key"`
	// Value of the label.
	Value string `json:"value"`
	// Issued says that somebody else has signed it.
	Issued bool `json:"issued"`
}

// RecordRow is a line of RecordsFile: one signed record of one peer. What the peer says of itself and nobody has
// checked is named claimed_.
type RecordRow struct {
	// PeerID and Seq name the record.
	PeerID string
	// Seq is its sequence number.
	Seq uint64 `json:"seq"`
	// Issued and Expires are the node's clock, RFC 3339 in UTC.
	Issued string `json:"issued"`
	// Expires is when it ends.
	Expires string `json:"expires"`
	// Tombstone says that the node has left.
	Tombstone bool `json:"tombstone"`
	// SeenVia is how it came: gossip, scan, self; sorted.
	SeenVia []string `json:"seen_via"`
	// Observer is the crawler.
	Observer string `json:"observer"`
	// FirstSeen and LastSeen are the crawler's clock, RFC 3339 in UTC.
	FirstSeen string `json:"first_seen"`
	// LastSeen is when it came last.
	LastSeen string `json:"last_seen"`
	// Holders is how many servers listed it.
	Holders int `json:"holders"`
	// Agent is the node's software, Roles what it serves as.
	Agent string `json:"claimed_agent,omitempty"`
	// Roles the node serves in.
	Roles []string `json:"claimed_roles,omitempty"`
	// Addrs of the node.
	Addrs []string `json:"claimed_addrs,omitempty"`
	// State and what follows it are from the last heartbeat that speaks of this record.
	State string `json:"claimed_state,omitempty"`
	// HeartbeatAt is the node's clock, RFC 3339 in UTC.
	HeartbeatAt string `json:"heartbeat_at,omitempty"`
	// Running and Queued chunks.
	Running *uint32 `json:"claimed_running,omitempty"`
	// Queued chunks.
	Queued *uint32 `json:"claimed_queued,omitempty"`
	// UpSince is when the node started, RFC 3339 in UTC.
	UpSince string `json:"claimed_up_since,omitempty"`
	// Macro, Country and Subdivision are where it says it stands.
	Macro string `json:"claimed_macro,omitempty"`
	// Country in ISO 3166-1.
	Country string `json:"claimed_country,omitempty"`
	// Subdivision in ISO 3166-2.
	Subdivision string `json:"claimed_subdivision,omitempty"`
	// Reachability is public, holepunch or relay.
	Reachability string `json:"claimed_reachability,omitempty"`
	// UpBPS and DownBPS are bit/s.
	UpBPS *uint64 `json:"claimed_up_bps,omitempty"`
	// DownBPS is bit/s.
	DownBPS *uint64 `json:"claimed_down_bps,omitempty"`
	// ASN is the autonomous system.
	ASN *uint32 `json:"claimed_asn,omitempty"`
	// OS, Arch and CPUModel of the host.
	OS string `json:"claimed_os,omitempty"`
	// Arch of the host.
	Arch string `json:"claimed_arch,omitempty"`
	// CPUModel of the host.
	CPUModel string `json:"claimed_cpu_model,omitempty"`
	// Cores and Threads of the host.
	Cores *uint32 `json:"claimed_cpu_cores,omitempty"`
	// Threads of the host.
	Threads *uint32 `json:"claimed_cpu_threads,omitempty"`
	// RAMBytes of the host.
	RAMBytes *uint64 `json:"claimed_ram_bytes,omitempty"`
	// DiskBytes that jobs may use.
	DiskBytes *uint64 `json:"claimed_disk_usable_bytes,omitempty"`
	// Executors are the ways of running code.
	Executors []string `json:"claimed_executors,omitempty"`
	// PriceUUSD is micro-dollars per GPU or slot and hour.
	PriceUUSD *uint64 `json:"claimed_price_uusd_per_hour,omitempty"`
	// FP16GFLOPS by the node's own benchmark.
	FP16GFLOPS *uint64 `json:"claimed_fp16_gflops,omitempty"`
	// Volumes is how many volumes it says it holds.
	Volumes int `json:"claimed_volumes"`
	// Labels of the node.
	Labels []LabelClaim `json:"claimed_labels,omitempty"`
	// GPUs by groups of identical ones.
	GPUs []GPUClaim `json:"claimed_gpus"`
	// Record is the envelope as the node signed it, in base64: see protocol/capability.go.
	Record string `json:"record_b64,omitempty"`
	// Availability is the envelope of the heartbeat.
	Availability string `json:"availability_b64,omitempty"`
}

// PresenceRow is a line of PresenceFile: a time in which a peer gave signs of life.
type PresenceRow struct {
	// PeerID was there.
	PeerID string
	// Start and End are the first and the last sign, RFC 3339 in UTC.
	Start string `json:"start"`
	// End is the last sign.
	End string `json:"end"`
	// CensoredLeft says that it may have been there before, CensoredRight after.
	CensoredLeft bool `json:"censored_left"`
	// CensoredRight says that it may have been there after.
	CensoredRight bool `json:"censored_right"`
	// Reason is why the time ends: left (it said goodbye), silent, or observation ended.
	Reason string `json:"reason"`
}

// Reasons for which a presence ends.
const (
	// ReasonLeft means that the peer said goodbye.
	ReasonLeft = "left"
	// ReasonSilent means that its heartbeats stopped.
	ReasonSilent = "silent"
	// ReasonEnded means that we stopped watching.
	ReasonEnded = "observation ended"
)

// stamp writes a time as all files do: RFC 3339 with milliseconds, UTC.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func stampMillis(ms int64) string { return stamp(time.UnixMilli(ms)) }

func parseStamp(s string) (time.Time, error) {
	t, err := time.Parse("2006-01-02T15:04:05.000Z", s)
	if err != nil {
		return t, fmt.Errorf("%q is no time such as 2026-01-02T15:04:05.000Z", s)
	}
	return t, nil
}

// Row writes a found record as a row. It is a function of the envelopes and of the crawler's own columns,
// so that whoever verifies makes the same row.
func Row(f *dht.Found, observer string) RecordRow {
	c := f.Record
	r := RecordRow{
		PeerID: f.Peer.String(), Seq: f.Seq, Issued: stampMillis(c.GetIssued()), Expires: stampMillis(c.GetExpires()),
		Tombstone: c.GetTombstone(), SeenVia: f.Via, Observer: observer, FirstSeen: stamp(f.FirstSeen), LastSeen: stamp(f.LastSeen),
		Holders: f.Holders, Agent: c.GetAgent(), Roles: c.GetRoles(), Addrs: addrTexts(c.GetAddrs()), Volumes: len(c.GetVolumes()),
		GPUs: []GPUClaim{}, Record: base64.StdEncoding.EncodeToString(f.Raw),
	}
	for _, l := range c.GetLabels() {
		r.Labels = append(r.Labels, LabelClaim{l.GetKey(), l.GetValue(), len(l.GetIssuer()) > 0})
	}
	r.host(c)
	r.network(c)
	for i, g := range c.GetGpus() {
		r.GPUs = append(r.GPUs, gpuClaim(uint32(i), g, f.Beat))
	}
	if b := f.Beat; b != nil {
		r.State = strings.ToLower(strings.TrimPrefix(b.GetState().String(), "NODE_STATE_"))
		r.HeartbeatAt, r.Running, r.Queued = stampMillis(b.GetAt()), &b.Running, &b.Queued
		if b.GetUpSince() > 0 {
			r.UpSince = stampMillis(b.GetUpSince())
		}
		r.Availability = base64.StdEncoding.EncodeToString(f.RawBeat)
	}
	return r
}

func (r *RecordRow) host(c *pb.Capability) {
	h := c.GetHost()
	if h == nil {
		return
	}
	r.OS, r.Arch, r.CPUModel, r.Executors = h.GetOs(), h.GetArch(), h.GetCpuModel(), h.GetExecutors()
	r.Cores, r.Threads, r.RAMBytes = h.Cores, h.Threads, h.RamBytes
	if len(h.GetStorage()) > 0 {
		var disk uint64
		for _, s := range h.GetStorage() {
			disk += s.GetUsable()
		}
		r.DiskBytes = &disk
	}
}

func (r *RecordRow) network(c *pb.Capability) {
	if l := c.GetLocation(); l != nil {
		r.Macro, r.Country, r.Subdivision = l.GetMacro(), l.GetCountry(), l.GetSubdivision()
	}
	if n := c.GetNetwork(); n != nil {
		r.Reachability, r.UpBPS, r.DownBPS, r.ASN = n.GetReachability(), n.Up, n.Down, n.Asn
	}
	if p := c.GetPolicy(); p != nil {
		r.PriceUUSD = p.PriceUusdPerHour
	}
	if b := c.GetBenchmark(); b != nil {
		r.FP16GFLOPS = b.Fp16Gflops
	}
}

func gpuClaim(i uint32, g *pb.GpuGroup, beat *pb.Availability) GPUClaim {
	c := GPUClaim{
		Vendor: g.GetVendor(), Model: g.GetModel(), RawName: g.GetRawName(), Count: g.GetCount(), Faulted: g.Faulted, VRAMBytes: g.VramBytes,
		Driver: g.GetDriver(), CUDA: g.Cuda, Interface: g.GetInterface(), MIGProfile: g.GetMigProfile(), PowerW: g.PowerW,
	}
	if g.Compute != nil {
		compute := float64(g.GetCompute()) / 10
		c.Compute = &compute
	}
	for _, l := range beat.GetGroups() {
		if l.GetIndex() == i {
			c.Free = &l.Free
		}
	}
	return c
}

func (g *GPUClaim) vramGB() *int {
	if g.VRAMBytes == nil {
		return nil
	}
	gb := protocol.NominalGB(*g.VRAMBytes)
	return &gb
}

func addrTexts(raw [][]byte) []string {
	var out []string
	for _, b := range raw {
		if a, err := multiaddr.NewMultiaddrBytes(b); err == nil {
			out = append(out, a.String())
		}
	}
	return out
}

func texts(addrs []multiaddr.Multiaddr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func visitRow(v *dht.Visit, sweep *dht.Sweep) VisitRow {
	r := VisitRow{
		PeerID: v.Peer.String(), Maddrs: texts(v.Addrs), FilteredMaddrs: texts(v.Filtered), ListenMaddrs: texts(v.Listen),
		Protocols: v.Protocols, AgentVersion: v.Agent, ConnectDuration: v.Dialling.String(), CrawlDuration: v.Crawling.String(),
		VisitStartedAt: stamp(v.Began), VisitEndedAt: stamp(v.Ended), ConnectErrorStr: v.ConnectErr, CrawlErrorStr: v.CrawlErr,
		Properties: VisitProperties{Server: v.Server, Scans: v.Scans},
	}
	if r.Protocols == nil {
		r.Protocols = []string{}
	}
	if v.Connected != nil {
		r.ConnectMaddr = v.Connected.String()
	}
	if v.RTT > 0 {
		ms := float64(v.RTT.Microseconds()) / 1000
		r.RTTMs = &ms
	}
	if sweep != nil {
		p := &r.Properties
		p.Pass, p.Held, p.Bad, p.Err = sweep.Pass+1, len(sweep.Held), sweep.Totals.Bad, sweep.Err
	}
	return r
}

func neighborsRow(v *dht.Visit) NeighborsRow {
	n := NeighborsRow{PeerID: v.Peer.String(), NeighborIDs: make([]string, len(v.Neighbors)), ErrorBits: fmt.Sprintf("%016b", v.ErrorBits)}
	for i, p := range v.Neighbors {
		n.NeighborIDs[i] = p.ID.String()
	}
	return n
}
