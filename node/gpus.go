package node

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Selling says how many of the GPUs can be sold, and why the others cannot (execution.md 12).
type Selling struct {
	// Sellable of Units can be sold. A GPU that MIG has cut counts as its slices.
	Sellable int `json:"sellable"`
	// Units is how many there are, with those that cannot be read.
	Units int `json:"units"`
	// Unsold says of the others why, with the fix.
	Unsold []gpu.Problem `json:"unsold,omitempty"`
	// Withheld is why the processors are not offered either, with what changes that; empty when they are.
	Withheld string `json:"withheld,omitempty"`
}

// sellingOf adds to what the devices say what of this node keeps them from being sold: barred, where it is not empty, bars all.
// offerCPU is the owner's word that the processors are offered even so.
func sellingOf(inv *gpu.Inventory, barred string, offerCPU bool) Selling {
	out := Selling{Units: inv.Units(), Unsold: inv.Unsold()}
	if !offerCPU {
		out.Withheld = withheld(inv)
	}
	whole, slices := 0, 0
	for i := range inv.Devices {
		switch d := &inv.Devices[i]; {
		case d.Sellable() && d.Slice != nil:
			slices++
		case d.Sellable() && len(d.Files) == 0:
			out.Unsold = append(out.Unsold, gpu.Problem{
				What: fmt.Sprintf("%s is not offered: its device file is not known", d), Fix: "make /dev/nvidia* visible here, as nvidia-modprobe does",
			})
		case d.Sellable():
			whole++
		}
	}
	if slices > 0 {
		out.Unsold = append(out.Unsold, gpu.Problem{
			What: fmt.Sprintf("%d MIG slices are in the record, and are not given to jobs: none can ask for a slice yet", slices),
			Fix:  "to sell the whole GPU: nvidia-smi -mig 0",
		})
	}
	if barred != "" && whole > 0 {
		out.Unsold = append(out.Unsold, gpu.Problem{What: fmt.Sprintf("%d GPUs are good, but %s", whole, barred), Fix: fixBarred})
		whole = 0
	}
	out.Sellable = whole
	return out
}

// withheld says why the processors of a machine are not offered: it has GPUs, and none is in order. One that is suspect for a
// moment, is not tested yet, is barred by a setting or used by somebody else is no broken one.
func withheld(inv *gpu.Inventory) string {
	units := inv.Units()
	if units == 0 {
		return ""
	}
	for i := range inv.Devices {
		d := &inv.Devices[i]
		if d.Slices > 0 { // its slices tell
			continue
		}
		switch d.Health {
		case gpu.Healthy, gpu.Untested, gpu.Suspect, gpu.Foreign:
			return ""
		}
	}
	return fmt.Sprintf("none of its %d GPUs is in order, and a machine with GPUs is no CPU node; to offer its processors all the same: "+offerSwitch, units)
}

// offerSwitch is how the owner offers processors beside broken GPUs.
const offerSwitch = "offer: {cpu: true} in node.yaml, or gridbeam node run --offer-cpu"

const fixBarred = "gridbeam node run --min-isolation shared, on a machine where a sandbox passes its self-test; the log says why one did not"

// barsGPUs says why no backend here could hand GPUs to a program; empty when one can.
func barsGPUs(backends []*offered) string {
	for _, o := range backends {
		if len(o.report.Runtimes) > 0 {
			return ""
		}
	}
	return "no backend here hands them to programs"
}

// newMonitor makes what reads and follows the GPUs.
func (s *site) newMonitor() (err error) {
	c := gpu.DefaultConfig()
	c.History, c.Clock = s.cfg.path("gpus.json"), s.cfg.Clock
	c.Changed = func() { poke(s.gpuMoved) }
	c.Busy = func(uuid string) bool { return s.book != nil && s.book.hasLease(uuid) }
	c.JobFault = func(uuid string, xid uint64) { s.book.blame(uuid, xid) }
	if len(s.cfg.GPUProof) > 0 {
		c.Prove = gpu.NewProver(s.cfg.GPUProof, "").Prove
	}
	open := s.cfg.GPUs
	if open == nil {
		open = gpu.New
	}
	s.gpus, err = open(c, s.log)
	return err
}

// followGPUs lets what is sold, and what is said of it, follow the health of the GPUs until ctx ends.
func (s *site) followGPUs(ctx context.Context) {
	// The record changes when a fault has lasted for a while.
	look := time.NewTicker(5 * time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-s.gpuMoved:
			inv := s.gpus.Inventory()
			s.speaker.setGPUs(inv)
			s.book.setGPUs(&inv)
			sale := sellingOf(&inv, s.barred, s.cfg.OfferCPU)
			s.withhold(sale.Withheld)
			s.announce.BeatChanged()
			s.reconsider()
			s.log.Info("what of the GPUs can be sold has changed", "sellable", sale.Sellable, "units", sale.Units)
		}
		if s.speaker.groupsMoved(s.cfg.Clock()) {
			s.announce.RecordChanged()
		}
	}
}

// withhold notes why no work is taken that needs no GPU; empty when it is.
func (s *site) withhold(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withheld = why
}

// setGPUs takes over what can be given away; leases on devices that have failed end, and it is not their fault.
func (b *book) setGPUs(inv *gpu.Inventory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lost := b.gpus.update(inv)
	for id, why := range lost {
		if l := b.leases[id]; l != nil {
			b.log.Warn("a lease ends with its GPU", "lease", id, "job", l.Job, "why", why)
			b.giveBack(l, protocol.ReasonGPUFaulted, why, 0)
		}
	}
	b.work.Broadcast() // somebody may wait for a GPU that is good again
}

// hasLease says whether a lease has a GPU.
func (b *book) hasLease(uuid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.gpus.all {
		if x := &b.gpus.all[i]; x.uuid == uuid {
			return x.taken
		}
	}
	return false
}

// blame notes that the program on a GPU did something that the driver had to stop.
func (b *book) blame(uuid string, xid uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.gpus.all {
		x := &b.gpus.all[i]
		if x.uuid != uuid || !x.taken {
			continue
		}
		if l := b.leases[x.lease]; l != nil {
			l.xid = xid
			b.log.Info("a program misused its GPU", "lease", l.ID, "job", l.Job, "xid", xid)
		}
	}
}

// gpuCause is the outcome of a run that the driver has stopped for what the program did; one that ended well did so all the same.
func (b *book) gpuCause(l *lease, o *protocol.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.xid != 0 && (o.Reason == protocol.ReasonExitNonzero || o.Reason == protocol.ReasonSignal) {
		o.FirstCause = fmt.Sprintf("Xid %d: the program misused its GPU; %s", l.xid, o.FirstCause)
		o.Reason = protocol.ReasonGPUApplication
	}
}

// said is which devices the groups of a record were.
type said struct {
	seq   uint64
	uuids [][]string
}

// recordDelay is how long a device has to be out before the record says so: heartbeats do at once (discovery.md 1).
const recordDelay = time.Minute

// maxGroups is how many groups a record has room for, maxInGroup how many devices one has (discovery.md 2).
const (
	maxGroups  = 8
	maxInGroup = 64
)

// setGPUs takes over what was read anew.
func (s *speaker) setGPUs(inv gpu.Inventory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inv.GPUs = inv
}

// groups are the GPU groups of a record, and the devices that each stands for. What is broken since a moment ago still counts
// as good: it may be good again before the record is read.
func (s *speaker) groups(inv *gpu.Inventory, now time.Time) (out []*pb.GpuGroup, uuids [][]string) {
	for i, g := range inv.Groups {
		var members []string
		faulted := uint32(0)
		cluster := ""
		for k := range inv.Devices {
			d := &inv.Devices[k]
			settled := now.Sub(d.Since) >= recordDelay || d.Health != gpu.Untested && d.Since.Before(s.started.Add(recordDelay/4))
			switch {
			case d.Group != i || len(members) >= maxInGroup:
				continue
			case d.Health == gpu.Absent && settled:
				continue
			case !d.Sellable() && (settled || d.Barred != ""):
				faulted++
			}
			members, cluster = append(members, d.UUID), cmp.Or(cluster, d.Board.Cluster)
		}
		if len(members) == 0 || len(out) >= maxGroups {
			continue
		}
		g = proto.CloneOf(g)
		g.Count, g.Faulted = uint32(len(members)), nil
		if faulted > 0 {
			g.Faulted = &faulted
		}
		g.DeviceTags = s.tags(members)
		if cluster != "" {
			g.FabricTag = s.tag("gridbeam/fabric/1", cluster)
		}
		out, uuids = append(out, g), append(uuids, members)
	}
	return out, uuids
}

// groupsMoved says whether the groups of a record made now would not be those of the last one.
func (s *speaker) groupsMoved(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, _ := s.groups(&s.inv.GPUs, now)
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.Capability{Gpus: all})
	if err != nil { // texts are valid where they are read
		return false
	}
	moved := string(text) != s.digest && s.digest != ""
	s.digest = string(text)
	return moved
}

// remember notes which devices a record speaks of, for the heartbeats that name it.
func (s *speaker) remember(seq uint64, uuids [][]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, said{seq, uuids})
	if len(s.said) > 4 { // the latest may not have been stored anywhere, and the one before is still spoken of
		s.said = s.said[1:]
	}
}

// loads are the groups of a heartbeat that speaks of a record.
func (s *speaker) loads(capSeq uint64, inv *gpu.Inventory, free func(uuids []string) uint32) (out []*pb.GroupLoad) {
	s.mu.Lock()
	var of [][]string
	for _, x := range s.said {
		if x.seq == capSeq {
			of = x.uuids
		}
	}
	s.mu.Unlock()
	byUUID := map[string]*gpu.Device{}
	for i := range inv.Devices {
		byUUID[inv.Devices[i].UUID] = &inv.Devices[i]
	}
	for i, uuids := range of {
		g := &pb.GroupLoad{Index: uint32(i), Free: free(uuids)}
		util, known := uint32(0), uint32(0)
		for _, uuid := range uuids {
			d := byUUID[uuid]
			if d == nil || !d.Sellable() {
				g.Faulted++
			}
			if d == nil || d.Now == nil {
				continue
			}
			if len(d.Now.Throttle) > 0 {
				g.Throttled++
			}
			if d.Now.UtilPct != nil {
				util, known = util+*d.Now.UtilPct, known+1
			}
		}
		if known > 0 {
			g.UtilPct = proto.Uint32(util / known)
		}
		out = append(out, g)
	}
	return out
}
