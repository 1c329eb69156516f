package beambridge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
	"github.com/gridbeam/gridbeam/volumes"
)

const (
	// moduleFile is the one file of a module's tree, inputsFile that of a tree of inputs.
	moduleFile = "module.wasm"
	inputsFile = "inputs"
	// outputsAt is where a program finds the directory for its outputs.
	outputsAt = "/out"
)

// resolved is a job file with everything that it names looked up.
type resolved struct {
	spec    protocol.Job
	inputs  cluster.Inputs
	lines   []string
	terms   protocol.JobTerms
	want    cluster.Job
	class   string
	volumes []protocol.VolumeInfo
}

// notOffered says that a well-formed job wants what this version cannot do.
func notOffered(field, text, fix string) error {
	return &protocol.APIError{Code: protocol.CodeNotOffered, Field: field, Text: text, Fix: fix}
}

// badField says what is wrong with one field of a job file.
func badField(field, value, format string, args ...any) error {
	return protocol.JobErrors{{Field: field, Value: value, Problem: fmt.Sprintf(format, args...)}}
}

// offered refuses what the design has and this version does not do yet.
func offered(j *protocol.Job) error {
	switch {
	case j.Kind == protocol.JobGang || j.Kind == protocol.JobService:
		return notOffered("kind", fmt.Sprintf("jobs of kind %s are not offered yet", j.Kind), "say map or task")
	case j.Run.Handler != "":
		return notOffered("run.handler", "functions come through Beam's SDK, not by a job file yet", "point BETA9_GATEWAY_HOST at the bridge, as README says")
	case j.Run.Wasm == "":
		return notOffered("run", "only WebAssembly modules are offered yet", "build the program for wasip1 and name it as run.wasm")
	case j.Inputs.Files != "":
		return notOffered("inputs.files", "inputs.files is not offered yet", "list the files as inputs.list")
	case j.Inputs.Records != nil:
		return notOffered("inputs.records", "inputs.records is not offered yet", "give lines, with chunk: N")
	case j.Inputs.Open:
		return notOffered("inputs.open", "inputs.open is not offered yet", "submit a job for each batch")
	case j.Resources.Network != "none":
		return notOffered("resources.network", "chunks get no network yet", "say none, and put the data into a volume")
	case j.Policy.Compare != "exact" && j.Policy.Compare != "none":
		return notOffered("policy.compare", fmt.Sprintf("comparing by %s is not offered yet", j.Policy.Compare), "say exact or none")
	case j.Policy.Compare == "none" && j.Policy.Redundancy > 1:
		return badField("policy.redundancy", fmt.Sprint(j.Policy.Redundancy), "copies that nobody compares prove nothing; say compare: exact, or redundancy: 1")
	case *j.Policy.Retries == 0 && j.Policy.Redundancy > 1:
		return badField("policy.redundancy", fmt.Sprint(j.Policy.Redundancy), "a chunk that runs at most once (retries: 0) has no copies; say redundancy: 1, or retries above 0")
	}
	return nil
}

// resolve looks up what a job file names. Without a module, as validation asks, the terms are not complete.
func (b *Bridge) resolve(ctx context.Context, user string, req protocol.SubmitRequest, dry bool) (*resolved, error) {
	if err := req.Job.Validate(); err != nil {
		return nil, err
	}
	r := &resolved{spec: req.Job.WithDefaults()}
	if err := offered(&r.spec); err != nil {
		return nil, err
	}
	var err error
	if r.inputs, err = inputsOf(&r.spec, req.Lines); err != nil {
		return nil, err
	}
	if r.inputs.Len() == 0 && !(dry && r.spec.Inputs.Lines != "") {
		return nil, badField("inputs", "", "is an empty sequence: there is nothing to run")
	}
	if r.spec.Inputs.Lines != "" {
		r.lines = req.Lines
	}
	r.want = wantOf(&r.spec)
	if err := b.mounts(ctx, user, r); err != nil {
		return nil, err
	}
	if dry {
		return r, nil
	}
	return r, b.module(ctx, r, req.ModuleCID)
}

// module looks up the job's module and completes the terms.
func (b *Bridge) module(ctx context.Context, r *resolved, text string) error {
	root, err := cid.Decode(text)
	if err != nil {
		return badField("run.wasm", text, "needs the CID that POST /modules answered: %v", err)
	}
	tree, err := b.vols.Stat(ctx, root)
	switch {
	case errors.Is(err, volumes.ErrNotFound):
		return badField("run.wasm", text, "is a module that this bridge does not have; send it with POST /modules first")
	case err != nil:
		return fmt.Errorf("looking up module %s: %w", root, err)
	}
	fsys, err := b.vols.FS(root)
	if err == nil {
		_, err = fs.Stat(fsys, moduleFile)
	}
	if err != nil {
		return badField("run.wasm", text, "is no tree with the file %s; send the module with POST /modules", moduleFile)
	}
	p, res := &r.spec.Policy, &r.spec.Resources
	r.class = classOf(root, r.spec.Run.Command)
	r.terms = protocol.JobTerms{
		Name: r.spec.Name, Kind: string(r.spec.Kind), MinIsolation: p.MinIsolation, KeepOutputs: p.KeepOutputs, Seed: seedOf(root, &r.spec),
		Run:     protocol.Run{Module: root, ModuleBytes: tree.Bytes, Command: r.spec.Run.Command, Env: r.spec.Run.Env},
		Limits:  protocol.Limits{MemoryBytes: uint64(res.Memory), DiskBytes: uint64(res.Disk), Wall: p.Timeout.Std(), CPUMilli: uint32(res.CPU), Network: "none"},
		Volumes: r.terms.Volumes, GPUModels: res.GPU, GPUCount: res.GPUCount,
	}
	return nil
}

// seedOf fixes a job's randomness by what it runs, so that the same job gives the same bytes again.
func seedOf(module cid.Cid, spec *protocol.Job) [32]byte {
	h := sha256.New()
	h.Write([]byte("gridbeam/seed/1\x00"))
	h.Write(module.Bytes())
	what, err := json.Marshal(struct {
		Run    protocol.JobRun
		Inputs protocol.JobInputs
	}{spec.Run, spec.Inputs})
	if err == nil { // both were read as JSON or YAML
		h.Write(what)
	}
	return [32]byte(h.Sum(nil))
}

// mounts resolves the job's volumes to roots, once for the whole job.
func (b *Bridge) mounts(ctx context.Context, user string, r *resolved) error {
	for i, v := range r.spec.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		if v.Mode == "rw-shared" && v.At == outputsAt && r.spec.Run.Handler == "" {
			continue // the outputs, merged at the end of the job, get this name
		}
		if v.Mode != "ro" && !(v.Mode == "rw-shared" && r.spec.Run.Handler != "") {
			return notOffered(at+".mode", fmt.Sprintf("mode %s is not offered yet, but for outputs at %s", v.Mode, outputsAt), "say ro")
		}
		var row store.Volume
		err := b.store.View(ctx, func(tx *store.Tx) (err error) {
			row, err = tx.GetVolume(volumeKey(user, v.Name))
			return err
		})
		switch {
		case errors.Is(err, store.ErrNotFound):
			return badField(at+".name", v.Name, "names no volume; make it with `gridbeam volume import %s DIR`, or see `gridbeam volume list`", v.Name)
		case err != nil:
			return fmt.Errorf("looking up volume %s: %w", v.Name, err)
		}
		r.volumes = append(r.volumes, volumeInfo(v.Name, row))
		r.terms.Volumes = append(r.terms.Volumes, protocol.VolumeRef{
			Name: v.Name, Root: row.Root, At: v.At, Mode: v.Mode, Bytes: row.Bytes, Blocks: row.Blocks, Links: v.Links,
		})
	}
	return nil
}

// inputsOf is the job's input sequence; a task has one input, which is empty.
func inputsOf(j *protocol.Job, lines []string) (cluster.Inputs, error) {
	in := &j.Inputs
	var out cluster.Inputs
	var err error
	switch {
	case j.Kind != protocol.JobMap:
		out = cluster.ListInputs([]string{""})
	case in.Range != nil:
		out, err = cluster.IntegerInputs(in.Range.First, in.Range.Len())
	case in.List != nil:
		out = cluster.ListInputs(in.List)
	case in.Lines != "":
		out = cluster.ListInputs(lines)
	case in.Grid != nil:
		axes := make([]cluster.Axis, len(in.Grid))
		for i, a := range in.Grid {
			axes[i] = cluster.Axis{Name: a.Name, Values: a.Values}
		}
		out, err = cluster.GridInputs(axes)
	}
	if err != nil {
		return out, badField("inputs", "", "%v", err)
	}
	return out, nil
}

// wantOf is what selection has to know of a job.
func wantOf(j *protocol.Job) cluster.Job {
	p, r, pol := &j.Placement, &j.Resources, &j.Policy
	w := cluster.Job{
		Kind: cluster.Kind(j.Kind), Backend: cluster.BackendWasm, GPUModels: r.GPU, GPUCount: int(r.GPUCount), MinVRAMGB: int(r.MinVRAM),
		Cores: float64(r.CPU) / 1000, Memory: uint64(r.Memory), Disk: uint64(r.Disk), MinNodes: int(p.Nodes.Min), MaxNodes: int(p.Nodes.Max),
		MinReputation: p.MinReputation, MaxRTT: p.MaxRTT.Std(), HostTypes: p.HostType, Compliance: p.Compliance, Where: p.Where,
		Prefer: cluster.Prefer(pol.Prefer), AllowUnvetted: cluster.Unvetted(pol.AllowUnvetted), Copies: int(pol.Redundancy),
	}
	w.Isolation, _ = cluster.ParseIsolation(pol.MinIsolation) // Validate has read both words
	w.Bandwidth, _ = cluster.ParseTier(p.Bandwidth)
	for _, s := range p.Regions {
		name := s.Place
		if p, err := protocol.ParsePlace(name); err == nil && !strings.EqualFold(p.String(), name) {
			name = p.String() // UK is GB
		}
		w.Regions = append(w.Regions, cluster.Share{Region: name, Weight: s.Share})
	}
	if j.Run.Handler != "" {
		w.Backend, w.Host, w.Explore = cluster.BackendHost, j.Run.Host, -1 // results of functions are not compared
	}
	if *pol.Retries == 0 {
		w.Explore = -1 // newcomers' chunks are always run twice
	}
	return w
}

// encodeInputs is the file of a tree of inputs: one JSON string a line.
func encodeInputs(texts []string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, s := range texts {
		if err := enc.Encode(s); err != nil {
			return nil, fmt.Errorf("encoding inputs: %w", err)
		}
	}
	return b.Bytes(), nil
}

// keepInputs stores texts as a tree and returns its root; it is durable after the next Sync.
func (b *Bridge) keepInputs(texts []string) (cid.Cid, error) {
	data, err := encodeInputs(texts)
	if err != nil {
		return cid.Undef, err
	}
	t, err := b.vols.AddFiles([]volumes.File{{Path: inputsFile, Data: data}})
	if err != nil {
		return cid.Undef, fmt.Errorf("keeping inputs: %w", err)
	}
	return t.Root, nil
}

// readInputs reads back what keepInputs stored.
func (b *Bridge) readInputs(root cid.Cid) ([]string, error) {
	fsys, err := b.vols.FS(root)
	if err != nil {
		return nil, fmt.Errorf("reading inputs: %w", err)
	}
	f, err := fsys.Open(inputsFile)
	if err != nil {
		return nil, fmt.Errorf("reading inputs: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	var out []string
	dec := json.NewDecoder(bufio.NewReader(f))
	for dec.More() {
		var s string
		if err := dec.Decode(&s); err != nil {
			return nil, fmt.Errorf("reading inputs: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}
