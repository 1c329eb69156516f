package archive

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoCrawl means that a directory holds no crawl.
var ErrNoCrawl = errors.New("archive: no crawl here")

// Archive is a crawl directory, read.
type Archive struct {
	// Manifest as its signer wrote it.
	Manifest Manifest
	// Crawl, Visits, Records and Presence as in the files.
	Crawl Crawl
	// Visits sorted by peer.
	Visits []VisitRow
	// Records sorted by peer and sequence number.
	Records []RecordRow
	// Presence sorted by peer.
	Presence []PresenceRow
}

// Open reads a crawl directory without verifying more than the manifest's signature. It returns ErrNoCrawl,
// ErrManifest, *BadRow and ctx's error.
func Open(ctx context.Context, dir string) (*Archive, error) {
	if _, err := os.Stat(filepath.Join(dir, ManifestFile)); err != nil {
		return nil, fmt.Errorf("%w: %w; gridbeam network crawl --out %s makes one", ErrNoCrawl, err, dir)
	}
	a := &Archive{}
	var err error
	if a.Manifest, _, err = readManifest(ctx, dir); err != nil {
		return nil, err
	}
	b, err := readFile(ctx, filepath.Join(dir, CrawlFile))
	if err == nil {
		err = json.Unmarshal(b, &a.Crawl)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", CrawlFile, err)
	}
	if a.Visits, err = readLines[VisitRow](ctx, dir, VisitsFile); err != nil {
		return nil, err
	}
	if a.Records, err = readLines[RecordRow](ctx, dir, RecordsFile); err != nil {
		return nil, err
	}
	a.Presence, err = readLines[PresenceRow](ctx, dir, PresenceFile)
	return a, err
}

func readLines[T any](ctx context.Context, dir, name string) ([]T, error) {
	f, err := openFile(ctx, filepath.Join(dir, name))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	defer f.Close()
	var out []T
	err = eachLine(f, name, func(_ int, line []byte) error {
		var row T
		if err := json.Unmarshal(line, &row); err != nil {
			return err
		}
		out = append(out, row)
		return nil
	})
	return out, err
}

// eachLine hands on each line with its number from 1; an error of do becomes a *BadRow. Lines of records are
// at most some 30 kB.
func eachLine(r io.Reader, name string, do func(n int, line []byte) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 1<<16), maxLine)
	n := 0
	for in.Scan() {
		n++
		if err := do(n, in.Bytes()); err != nil {
			return &BadRow{File: name, Row: n, Err: err}
		}
	}
	if err := in.Err(); err != nil {
		return &BadRow{File: name, Row: n + 1, Err: err}
	}
	return nil
}

// BadRow names the first row that does not hold.
type BadRow struct {
	// File and Row, from 1; Row 0 is the file as a whole.
	File string
	// Row from 1.
	Row int
	// Err is what is wrong with it.
	Err error
}

// Error names file, row and reason.
func (b *BadRow) Error() string {
	why := strings.TrimPrefix(b.Err.Error(), "archive: ")
	if b.Row == 0 {
		return fmt.Sprintf("%s: %s", b.File, why)
	}
	return fmt.Sprintf("%s row %d: %s", b.File, b.Row, why)
}

// Unwrap returns the reason.
func (b *BadRow) Unwrap() error { return b.Err }

// flatRow is a group of GPUs of a node, or a node without GPUs: a line of every export. Absent is unknown.
type flatRow struct {
	PeerID       string   `json:"peer_id" parquet:"peer_id"`
	Seq          uint64   `json:"seq" parquet:"seq"`
	Current      bool     `json:"current" parquet:"current"`
	Alive        bool     `json:"alive" parquet:"alive"`
	Tombstone    bool     `json:"tombstone" parquet:"tombstone"`
	Issued       string   `json:"issued" parquet:"issued"`
	Expires      string   `json:"expires" parquet:"expires"`
	FirstSeen    string   `json:"first_seen" parquet:"first_seen"`
	LastSeen     string   `json:"last_seen" parquet:"last_seen"`
	SeenVia      string   `json:"seen_via" parquet:"seen_via"`
	Holders      int64    `json:"holders" parquet:"holders"`
	RTTMs        *float64 `json:"rtt_ms,omitempty" parquet:"rtt_ms,optional"`
	Agent        *string  `json:"claimed_agent,omitempty" parquet:"claimed_agent,optional"`
	Roles        *string  `json:"claimed_roles,omitempty" parquet:"claimed_roles,optional"`
	State        *string  `json:"claimed_state,omitempty" parquet:"claimed_state,optional"`
	HeartbeatAt  *string  `json:"heartbeat_at,omitempty" parquet:"heartbeat_at,optional"`
	UpSince      *string  `json:"claimed_up_since,omitempty" parquet:"claimed_up_since,optional"`
	Running      *uint32  `json:"claimed_running,omitempty" parquet:"claimed_running,optional"`
	Queued       *uint32  `json:"claimed_queued,omitempty" parquet:"claimed_queued,optional"`
	Macro        *string  `json:"claimed_macro,omitempty" parquet:"claimed_macro,optional"`
	Country      *string  `json:"claimed_country,omitempty" parquet:"claimed_country,optional"`
	Subdivision  *string  `json:"claimed_subdivision,omitempty" parquet:"claimed_subdivision,optional"`
	Reachability *string  `json:"claimed_reachability,omitempty" parquet:"claimed_reachability,optional"`
	UpBPS        *uint64  `json:"claimed_up_bps,omitempty" parquet:"claimed_up_bps,optional"`
	DownBPS      *uint64  `json:"claimed_down_bps,omitempty" parquet:"claimed_down_bps,optional"`
	ASN          *uint32  `json:"claimed_asn,omitempty" parquet:"claimed_asn,optional"`
	OS           *string  `json:"claimed_os,omitempty" parquet:"claimed_os,optional"`
	Arch         *string  `json:"claimed_arch,omitempty" parquet:"claimed_arch,optional"`
	CPUModel     *string  `json:"claimed_cpu_model,omitempty" parquet:"claimed_cpu_model,optional"`
	Cores        *uint32  `json:"claimed_cpu_cores,omitempty" parquet:"claimed_cpu_cores,optional"`
	Threads      *uint32  `json:"claimed_cpu_threads,omitempty" parquet:"claimed_cpu_threads,optional"`
	RAMBytes     *uint64  `json:"claimed_ram_bytes,omitempty" parquet:"claimed_ram_bytes,optional"`
	DiskBytes    *uint64  `json:"claimed_disk_usable_bytes,omitempty" parquet:"claimed_disk_usable_bytes,optional"`
	Executors    *string  `json:"claimed_executors,omitempty" parquet:"claimed_executors,optional"`
	PriceUUSD    *uint64  `json:"claimed_price_uusd_per_hour,omitempty" parquet:"claimed_price_uusd_per_hour,optional"`
	FP16GFLOPS   *uint64  `json:"claimed_fp16_gflops,omitempty" parquet:"claimed_fp16_gflops,optional"`
	Group        *int64   `json:"gpu_group,omitempty" parquet:"gpu_group,optional"`
	GPUVendor    *string  `json:"claimed_gpu_vendor,omitempty" parquet:"claimed_gpu_vendor,optional"`
	GPUModel     *string  `json:"claimed_gpu_model,omitempty" parquet:"claimed_gpu_model,optional"`
	GPURawName   *string  `json:"claimed_gpu_raw_name,omitempty" parquet:"claimed_gpu_raw_name,optional"`
	GPUCount     *uint32  `json:"claimed_gpu_count,omitempty" parquet:"claimed_gpu_count,optional"`
	GPUFree      *uint32  `json:"claimed_gpu_free,omitempty" parquet:"claimed_gpu_free,optional"`
	GPUFaulted   *uint32  `json:"claimed_gpu_faulted,omitempty" parquet:"claimed_gpu_faulted,optional"`
	GPUVRAMBytes *uint64  `json:"claimed_gpu_vram_bytes,omitempty" parquet:"claimed_gpu_vram_bytes,optional"`
	GPUVRAMGB    *int64   `json:"claimed_gpu_vram_gb,omitempty" parquet:"claimed_gpu_vram_gb,optional"`
	GPUCompute   *float64 `json:"claimed_gpu_compute,omitempty" parquet:"claimed_gpu_compute,optional"`
	GPUDriver    *string  `json:"claimed_gpu_driver,omitempty" parquet:"claimed_gpu_driver,optional"`
	GPUCUDA      *uint32  `json:"claimed_gpu_cuda,omitempty" parquet:"claimed_gpu_cuda,optional"`
	GPUInterface *string  `json:"claimed_gpu_interface,omitempty" parquet:"claimed_gpu_interface,optional"`
	GPUMIG       *string  `json:"claimed_gpu_mig_profile,omitempty" parquet:"claimed_gpu_mig_profile,optional"`
	GPUPowerW    *uint32  `json:"claimed_gpu_power_w,omitempty" parquet:"claimed_gpu_power_w,optional"`
}

// rows are the archive's records, one row a group of GPUs, sorted by (PeerID, seq) and group. Only each peer's
// newest record, and none of peers that have left, unless all is set.
func (a *Archive) rows(all bool) []flatRow {
	alive, rtt := map[string]bool{}, map[string]*float64{}
	for i := range a.Presence {
		alive[a.Presence[i].PeerID] = a.Presence[i].Reason != ReasonLeft
	}
	for i := range a.Visits {
		rtt[a.Visits[i].PeerID] = a.Visits[i].RTTMs
	}
	var out []flatRow
	for i := range a.Records {
		r := &a.Records[i]
		current := (i+1 == len(a.Records) || a.Records[i+1].PeerID != r.PeerID) && !r.Tombstone
		if !current && !all {
			continue
		}
		base := r.flat()
		base.Current, base.Alive, base.RTTMs = current, alive[r.PeerID] && current, rtt[r.PeerID]
		if len(r.GPUs) == 0 {
			out = append(out, base)
		}
		for g := range r.GPUs {
			row := base
			row.gpu(int64(g), &r.GPUs[g])
			out = append(out, row)
		}
	}
	return out
}

// opt is nil for an empty text: unknown.
func opt(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (r *RecordRow) flat() flatRow {
	return flatRow{
		PeerID: r.PeerID, Seq: r.Seq, Tombstone: r.Tombstone, Issued: r.Issued, Expires: r.Expires, FirstSeen: r.FirstSeen, LastSeen: r.LastSeen,
		SeenVia: strings.Join(r.SeenVia, " "), Holders: int64(r.Holders), Agent: opt(r.Agent), Roles: opt(strings.Join(r.Roles, " ")),
		State: opt(r.State), HeartbeatAt: opt(r.HeartbeatAt), UpSince: opt(r.UpSince), Running: r.Running, Queued: r.Queued,
		Macro: opt(r.Macro), Country: opt(r.Country), Subdivision: opt(r.Subdivision), Reachability: opt(r.Reachability),
		UpBPS: r.UpBPS, DownBPS: r.DownBPS, ASN: r.ASN, OS: opt(r.OS), Arch: opt(r.Arch), CPUModel: opt(r.CPUModel), Cores: r.Cores,
		Threads: r.Threads, RAMBytes: r.RAMBytes, DiskBytes: r.DiskBytes, Executors: opt(strings.Join(r.Executors, " ")),
		PriceUUSD: r.PriceUUSD, FP16GFLOPS: r.FP16GFLOPS,
	}
}

func (r *flatRow) gpu(i int64, g *GPUClaim) {
	r.Group, r.GPUVendor, r.GPUModel, r.GPURawName, r.GPUCount = &i, opt(g.Vendor), opt(g.Model), opt(g.RawName), &g.Count
	r.GPUFree, r.GPUFaulted, r.GPUVRAMBytes, r.GPUCompute = g.Free, g.Faulted, g.VRAMBytes, g.Compute
	r.GPUDriver, r.GPUCUDA, r.GPUInterface, r.GPUMIG, r.GPUPowerW = opt(g.Driver), g.CUDA, opt(g.Interface), opt(g.MIGProfile), g.PowerW
	if gb := g.vramGB(); gb != nil {
		n := int64(*gb)
		r.GPUVRAMGB = &n
	}
}

// inOrder says whether row may follow before in RecordsFile.
func inOrder(before, row *RecordRow) bool {
	return cmp.Or(cmp.Compare(before.PeerID, row.PeerID), cmp.Compare(before.Seq, row.Seq)) <= 0
}
