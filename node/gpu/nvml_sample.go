//go:build linux && cgo

package gpu

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// sampled is one look at a card.
type sampled struct {
	session *session
	index   int
	health  Health // Healthy, Suspect or Faulted
	reason  string
	stale   bool     // NVML has to be started again
	now     Sensors  // of the whole card
	whole   []int    // processes on it, when it has no slices
	slices  []onPart // by slice
}

// onPart is what a slice has of its own.
type onPart struct {
	uuid      string
	health    Health
	reason    string
	used      *uint64
	processes []int
}

// throttles are the reasons for which a GPU is slowed down against its will; a limit of power that its owner set is none.
var throttles = []struct {
	bit  uint64
	text string
}{
	{nvml.ClocksThrottleReasonHwSlowdown, "hardware slowdown"},
	{nvml.ClocksEventReasonSwThermalSlowdown, "thermal slowdown"},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, "hardware thermal slowdown"},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"},
}

// sample looks at a card's health.
func (s *session) sample(ctx context.Context, c *card, hotC uint32, now time.Time) sampled {
	p := &probe{session: s, ctx: ctx, health: Healthy}
	out := sampled{session: s, index: c.index, now: Sensors{At: now}}
	d := c.handle
	// A GPU that has fallen off the bus says so to everybody who asks for its UUID.
	uuid, ok := must(p, "reading its UUID", d.GetUUID)
	if ok && c.uuid != "" && uuid != c.uuid {
		p.health, p.reason, p.stale = Suspect, "another GPU is in its place now", true
	}
	if ok {
		p.sensors(d, &out.now)
		p.memoryHealth(d, &out.now)
		p.recovery(d)
	}
	if t := out.now.TemperatureC; t != nil && hotC > 0 && *t >= hotC && p.health == Healthy {
		p.health, p.reason = Suspect, fmt.Sprintf("it is hot: %d °C, from %d °C it gets no new work; check fans and air", *t, hotC)
	}
	if ok && len(c.slices) == 0 {
		out.whole = p.processes(d)
		out.now.Processes = out.whole
	}
	out.health, out.reason, out.stale = p.health, p.reason, p.stale
	for _, h := range c.slices {
		part := probe{session: s, ctx: ctx, health: Healthy}
		one := onPart{uuid: h.uuid}
		if m, ok := value(&part, "reading a slice's memory", "", h.handle.GetMemoryInfo); ok {
			one.used = ptr(m.Used)
		}
		one.processes = part.processes(h.handle)
		one.health, one.reason = part.health, part.reason
		out.slices, out.stale = append(out.slices, one), out.stale || part.stale
	}
	return out
}

func (p *probe) sensors(d nvml.Device, now *Sensors) {
	optional := func(doing string, f func() (uint32, nvml.Return)) *uint32 {
		if v, ok := value(p, doing, "", f); ok {
			return &v
		}
		return nil
	}
	now.TemperatureC = optional("reading its temperature", func() (uint32, nvml.Return) { return d.GetTemperature(nvml.TEMPERATURE_GPU) })
	if now.PowerW = optional("reading its power", d.GetPowerUsage); now.PowerW != nil {
		*now.PowerW /= 1000
	}
	now.SMMHz = optional("reading its clock", clock(d.GetClockInfo, nvml.CLOCK_SM))
	now.MemMHz = optional("reading its memory clock", clock(d.GetClockInfo, nvml.CLOCK_MEM))
	if u, ok := value(p, "reading its load", "", d.GetUtilizationRates); ok {
		now.UtilPct = ptr(u.Gpu)
	}
	if m, ok := value(p, "reading its memory", "", d.GetMemoryInfo); ok {
		now.MemoryUsed = ptr(m.Used)
	}
	if bits, ok := value(p, "reading why it is slowed down", "nvmlDeviceGetCurrentClocksThrottleReasons", d.GetCurrentClocksThrottleReasons); ok {
		for _, t := range throttles {
			if bits&t.bit != 0 {
				now.Throttle = append(now.Throttle, t.text)
			}
		}
	}
}

// memoryHealth reads errors of memory: those that wait for a reset keep new work away, one that cannot be repaired is a fault.
func (p *probe) memoryHealth(d nvml.Device, now *Sensors) {
	count := func(which nvml.EccCounterType) *uint64 {
		v, ok := value(p, "counting its memory errors", "", func() (uint64, nvml.Return) {
			return d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, which)
		})
		if !ok {
			return nil
		}
		return &v
	}
	now.ECCErrors, now.ECCErrorsEver = count(nvml.VOLATILE_ECC), count(nvml.AGGREGATE_ECC)
	if v, ok := value(p, "reading its retired pages", "", d.GetRetiredPagesPendingStatus); ok && v == nvml.FEATURE_ENABLED {
		p.suspect("a page of its memory is to be retired, at the next reset")
	}
	if !p.can("nvmlDeviceGetRemappedRows") {
		return
	}
	_, uncorrected, pending, failed, r := d.GetRemappedRows()
	p.note("reading its remapped rows", r)
	if r != nvml.SUCCESS {
		return
	}
	now.Remapped = ptr(uint32(uncorrected))
	switch {
	case failed && p.health != Faulted:
		p.health, p.reason = Faulted, "a row of its memory could not be remapped: replace it"
	case pending:
		p.suspect("a row of its memory is to be remapped, at the next reset")
	}
}

func (p *probe) suspect(reason string) {
	if p.health == Healthy {
		p.health, p.reason = Suspect, reason
	}
}

// recoveries are what the driver wants done.
var recoveries = map[nvml.DeviceGpuRecoveryAction]string{
	nvml.GPU_RECOVERY_ACTION_GPU_RESET: "a reset", nvml.GPU_RECOVERY_ACTION_NODE_REBOOT: "a reboot", nvml.GPU_RECOVERY_ACTION_DRAIN_P2P: "its peers drained",
	nvml.GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "to be drained and reset", nvml.GPU_RECOVERY_ACTION_BUS_RESET: "a reset of its bus",
	nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "a reboot",
}

// recovery asks whether the driver wants something done before the GPU is good again; old drivers do not tell.
func (p *probe) recovery(d nvml.Device) {
	v := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if r := d.GetFieldValues(v); r != nvml.SUCCESS || nvml.Return(v[0].NvmlReturn) != nvml.SUCCESS {
		return
	}
	action := nvml.DeviceGpuRecoveryAction(binary.NativeEndian.Uint32(v[0].Value[:4]))
	if action == nvml.GPU_RECOVERY_ACTION_NONE {
		return
	}
	what := recoveries[action]
	if what == "" {
		what = fmt.Sprintf("recovery action %d", action)
	}
	p.suspect("the driver wants " + what)
}

func (p *probe) processes(d nvml.Device) (pids []int) {
	all, ok := value(p, "listing its processes", "", d.GetComputeRunningProcesses)
	if !ok {
		return nil
	}
	for _, x := range all[:min(len(all), 256)] {
		pids = append(pids, int(x.Pid))
	}
	return pids
}
