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
	all []device
}

// device is one GPU that can be given away.
type device struct {
	uuid  string
	path  string // its device file
	group int    // in the node's record
	slug  string // the model, as protocol names it
	vram  int    // nominal GB
	lease protocol.LeaseID
	taken bool
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

// newDevices lists the GPUs of an inventory that have a device file of their own. MIG slices have none that could be
// handed out alone, so they are not.
func newDevices(inv *gpu.Inventory) *devices {
	d := &devices{}
	for _, x := range inv.Devices {
		if x.Group < 0 || x.Minor < 0 || x.Slice {
			continue
		}
		g := inv.Groups[x.Group]
		d.all = append(d.all, device{
			uuid: x.UUID, path: fmt.Sprintf("/dev/nvidia%d", x.Minor), group: x.Group, slug: g.GetModel(), vram: protocol.NominalGB(g.GetVramBytes()),
		})
	}
	return d
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
		if d.all[i].fits(t) {
			n[d.all[i].group]++
		}
	}
	slots := 0
	for _, have := range n {
		slots += have / int(max(1, t.GPUCount))
	}
	return slots
}

// free counts the devices of a group that no lease has.
func (d *devices) free(group int) (n uint32) {
	for i := range d.all {
		if d.all[i].group == group && !d.all[i].taken {
			n++
		}
	}
	return n
}

// pick finds identical free devices for a chunk; nil when there are too few.
func (d *devices) pick(t *protocol.JobTerms) []int {
	byGroup := map[int][]int{}
	for i := range d.all {
		x := &d.all[i]
		if x.taken || !x.fits(t) {
			continue
		}
		byGroup[x.group] = append(byGroup[x.group], i)
		if len(byGroup[x.group]) == int(t.GPUCount) {
			return byGroup[x.group]
		}
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
			files, names = append(files, executor.Device{Path: d.all[i].path}), append(names, d.all[i].uuid)
		}
	}
	if len(files) > 0 {
		for _, path := range control {
			files = append(files, executor.Device{Path: path})
		}
	}
	return files, strings.Join(names, ",")
}
