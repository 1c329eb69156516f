package node

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
)

// devices are this machine's GPUs as leases get them: each belongs to one lease at a time. The book's lock guards it.
type devices struct {
	all    []device
	barred bool // nothing here could hand them to a program
}

// device is one GPU that can be given away.
type device struct {
	uuid  string
	files []string // its device files
	group int      // in the inventory: those of one are identical
	slug  string   // the model, as protocol names it
	vram  int      // nominal GB
	lease protocol.LeaseID
	taken bool
	open  bool // it may be given away: it is healthy, and nothing bars it
	seat  seat // where it is in the machine
}

// withDevices notes beside the token of a run which GPUs it has open; splitDevices reads it.
func withDevices(token, uuids string) string {
	if uuids == "" {
		return token
	}
	return token + "\x00" + uuids
}

func splitDevices(s string) (token, uuids string) {
	token, uuids, _ = strings.Cut(s, "\x00")
	return token, uuids
}

// control are the device files that every CUDA program opens besides its GPUs.
var control = []string{"/dev/nvidiactl", "/dev/nvidia-uvm"}

// newDevices lists the GPUs of an inventory.
func newDevices(inv *gpu.Inventory) *devices {
	d := &devices{}
	d.update(inv)
	return d
}

// update takes over what was read anew. It returns the leases whose devices have failed, with the cause. MIG slices are left
// out: no job can ask for one.
func (d *devices) update(inv *gpu.Inventory) (lost map[protocol.LeaseID]string) {
	lost = map[protocol.LeaseID]string{}
	listed := map[string]bool{}
	for i := range inv.Devices {
		x := &inv.Devices[i]
		if x.UUID == "" || x.Slice != nil || len(x.Files) == 0 || x.Group < 0 {
			continue
		}
		listed[x.UUID] = true
		at := slices.IndexFunc(d.all, func(have device) bool { return have.uuid == x.UUID })
		if at < 0 {
			at = len(d.all)
			d.all = append(d.all, device{uuid: x.UUID})
		}
		g, have := inv.Groups[x.Group], &d.all[at]
		have.files, have.group, have.slug, have.vram, have.open = x.Files, x.Group, g.GetModel(), protocol.NominalGB(g.GetVramBytes()), x.Sellable()
		have.seat = seatOf(x, g.GetNvlinkLinks())
		switch x.Health {
		case gpu.Faulted, gpu.Locked, gpu.Absent:
			if have.taken {
				lost[have.lease] = fmt.Sprintf("%s is %s: %s", x, x.Health, x.Reason)
			}
		}
	}
	d.all = slices.DeleteFunc(d.all, func(have device) bool {
		if listed[have.uuid] {
			return false
		}
		if have.taken {
			lost[have.lease] = "its GPU is not there any more, or was cut into slices"
		}
		return !have.taken
	})
	for i := range d.all {
		if !listed[d.all[i].uuid] {
			d.all[i].open = false
		}
	}
	return lost
}

// fits says that a GPU is what a job asks for.
func (x *device) fits(t *protocol.JobTerms) bool {
	if len(t.GPUModels) == 0 {
		return true
	}
	return slices.ContainsFunc(t.GPUModels, func(name string) bool {
		set, err := protocol.ResolveGPU(name)
		return err == nil && slices.Contains(set.Slugs, x.slug)
	})
}

// slots is how many chunks of a job could run at a time if nothing else did.
func (d *devices) slots(t *protocol.JobTerms) int {
	n := map[int]int{} // by group: the devices of one chunk are identical
	for i := range d.all {
		if d.all[i].open && !d.barred && d.all[i].fits(t) {
			n[d.all[i].group]++
		}
	}
	slots := 0
	for _, have := range n {
		slots += have / int(max(1, t.GPUCount))
	}
	return slots
}

// free counts those among some devices that a lease could get now.
func (d *devices) free(uuids []string) (n uint32) {
	for i := range d.all {
		if x := &d.all[i]; x.open && !x.taken && !d.barred && slices.Contains(uuids, x.uuid) {
			n++
		}
	}
	return n
}

// pick finds identical free devices for a chunk, those that belong together best (tightest); nil when there are too few.
func (d *devices) pick(t *protocol.JobTerms) (out []int) {
	var groups []int // in the order of their first free device
	byGroup := map[int][]int{}
	for i := range d.all {
		x := &d.all[i]
		if x.taken || !x.open || d.barred || !x.fits(t) {
			continue
		}
		if len(byGroup[x.group]) == 0 {
			groups = append(groups, x.group)
		}
		byGroup[x.group] = append(byGroup[x.group], i)
	}
	for _, g := range groups {
		free := byGroup[g]
		if len(free) < int(t.GPUCount) {
			continue
		}
		seats := make([]seat, len(free))
		for k, i := range free {
			seats[k] = d.all[i].seat
		}
		for _, k := range tightest(seats, int(t.GPUCount)) {
			out = append(out, free[k])
		}
		return out
	}
	return nil
}

// take gives devices to a lease; false when there are too few.
func (d *devices) take(l *lease) bool {
	t := &l.member.terms
	if t.GPUCount == 0 || d.holds(l.ID) {
		return true
	}
	picked := d.pick(t)
	for _, i := range picked {
		d.all[i].taken, d.all[i].lease = true, l.ID
	}
	return len(picked) > 0
}

func (d *devices) holds(id protocol.LeaseID) bool {
	return slices.ContainsFunc(d.all, func(x device) bool { return x.taken && x.lease == id })
}

// keep gives a lease of before a restart the devices that its run has open.
func (d *devices) keep(id protocol.LeaseID, uuids string) {
	for uuid := range strings.SplitSeq(uuids, ",") {
		for i := range d.all {
			if uuid != "" && d.all[i].uuid == uuid && !d.all[i].taken {
				d.all[i].taken, d.all[i].lease = true, id
			}
		}
	}
}

// release takes back what a lease has.
func (d *devices) release(id protocol.LeaseID) {
	for i := range d.all {
		if d.all[i].lease == id {
			d.all[i].taken, d.all[i].lease = false, protocol.LeaseID{}
		}
	}
}

// of returns what a lease's run may open, and the UUIDs of its GPUs.
func (d *devices) of(id protocol.LeaseID) (files []executor.Device, uuids string) {
	var names []string
	for i := range d.all {
		if d.all[i].taken && d.all[i].lease == id {
			for _, path := range d.all[i].files {
				files = append(files, executor.Device{Path: path})
			}
			names = append(names, d.all[i].uuid)
		}
	}
	if len(files) > 0 {
		for _, path := range control {
			files = append(files, executor.Device{Path: path})
		}
	}
	return files, strings.Join(names, ",")
}
