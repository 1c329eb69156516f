package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
)

// Specs is what a machine is, in a form that may be published: without names, addresses, serial numbers or UUIDs.
type Specs struct {
	// Version is the program's, At when it was asked.
	Version string `json:"version"`
	// At is when it was asked.
	At time.Time `json:"at"`
	// Running says whether the node that offers the machine was asked; else the hardware was read for the occasion.
	Running bool `json:"running"`
	// Machine is the hardware.
	Machine Inventory `json:"machine"`
	// Selling says how many of its GPUs can be sold, and why the others cannot.
	Selling Selling `json:"selling"`
	// Profiles compare it with the minimum specifications of reward policies.
	Profiles []ProfileStatus `json:"profiles"`
}

// SpecsOf are the specs of a running node.
func SpecsOf(st *Status, now time.Time) Specs {
	return Specs{Version: st.Version, At: now.UTC(), Running: true, Machine: nameless(st.Inventory), Selling: st.Selling, Profiles: st.Profiles}
}

// ReadSpecs reads the hardware, and from the data directory of a node that does not run what it has measured. The error is
// ctx's, or gpu.ErrConfig.
func ReadSpecs(ctx context.Context, cfg Config, log *slog.Logger) (Specs, error) {
	inv := readHost(os.DirFS("/"), cfg.Data)
	if m, ok := LoadMeasured(cfg.Data); ok {
		inv.Measured = &m
	}
	open := cfg.GPUs
	if open == nil {
		open = gpu.New
	}
	monitor, err := open(gpu.DefaultConfig(), log)
	if err != nil {
		return Specs{}, err
	}
	defer monitor.Close()
	inv.GPUs, err = monitor.Read(ctx)
	if err != nil && !errors.Is(err, gpu.ErrNoNVML) {
		return Specs{}, err
	}
	now := cfg.Clock()
	s := &speaker{inv: inv, started: now}
	c := s.machine(&inv, now)
	out := Specs{Version: cfg.Version, At: now.UTC(), Machine: nameless(inv), Selling: sellingOf(&inv.GPUs, "", cfg.OfferCPU)}
	for _, p := range protocol.Profiles() {
		all := p.Check(c)
		out.Profiles = append(out.Profiles, ProfileStatus{Name: p.Name, Met: protocol.Meets(all), Requirements: all})
	}
	return out, nil
}

// nameless leaves out what names this machine or what runs on it.
func nameless(inv Inventory) Inventory {
	inv.GPUs.Devices = slices.Clone(inv.GPUs.Devices)
	for i := range inv.GPUs.Devices {
		d := &inv.GPUs.Devices[i]
		d.UUID, d.Board.Cluster = "", ""
		if d.Slice != nil {
			s := *d.Slice
			s.Parent = ""
			d.Slice = &s
		}
		if d.Proof != nil { // its words may name a place on this machine
			d.Proof = &gpu.Proof{Verdict: d.Proof.Verdict, Bytes: d.Proof.Bytes, At: d.Proof.At, TookMs: d.Proof.TookMs}
		}
		if d.Now != nil {
			now := *d.Now
			now.Processes = nil
			d.Now = &now
		}
	}
	return inv
}
