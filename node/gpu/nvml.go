//go:build linux && cgo

package gpu

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// session is NVML between Init and Shutdown.
type session struct {
	lib           nvml.Interface
	sysfs, procfs string
	driver        string
	cuda          int
	confidential  *bool
	cards         []*card
	problems      []Problem
	symbols       sync.Map // of names that were looked up: bool
	stamp         string   // of the driver when NVML was started
	generation    uint64   // counts the starts: indices and handles of different ones have nothing in common
}

// card is one physical GPU of a session.
type card struct {
	index    int
	handle   nvml.Device // nil when it could not be opened
	uuid     string      // empty when it could not be read
	bus      string
	slices   []sliceHandle
	readings []reading // of itself and of its slices
}

type sliceHandle struct {
	uuid     string
	handle   nvml.Device
	instance uint32
	compute  uint32
}

// can says whether the installed driver's library has a function. go-nvml binds functions when they are called first, and
// the process ends when the library does not have one; so all that is younger than the oldest driver in use is asked for.
func (s *session) can(symbol string) bool {
	if symbol == "" {
		return true
	}
	if known, ok := s.symbols.Load(symbol); ok {
		return known.(bool)
	}
	has := s.lib.Extensions().LookupSymbol(symbol) == nil
	s.symbols.Store(symbol, has)
	return has
}

// open starts NVML; a session that is nil has its reasons in problems.
func open(lib nvml.Interface, sysfs, procfs string) (*session, []Problem) {
	before := stamp(sysfs)
	if r := lib.Init(); r != nvml.SUCCESS {
		n, _ := onBus(sysfs)
		if p, ok := noInit(r, n); ok {
			return nil, []Problem{p}
		}
		return nil, nil
	}
	s := &session{lib: lib, sysfs: sysfs, procfs: procfs, stamp: before}
	s.driver, _ = lib.SystemGetDriverVersion()
	if v, r := lib.SystemGetCudaDriverVersion(); r == nvml.SUCCESS {
		s.cuda = v
	}
	if s.can("nvmlSystemGetConfComputeState") {
		if state, r := lib.SystemGetConfComputeState(); r == nvml.SUCCESS {
			s.confidential = ptr(state.CcFeature == nvml.CC_SYSTEM_FEATURE_ENABLED)
		}
	}
	return s, nil
}

// read lists the devices and reads all side by side. One that does not answer in time is suspect; its goroutine ends with
// its call, until when enter refuses to ask it again.
func (s *session) read(ctx context.Context, patience time.Duration, enter func(index int) (leave func(), ok bool)) {
	s.problems = nil
	n, r := s.lib.DeviceGetCount()
	if r != nvml.SUCCESS {
		s.problems = append(s.problems, Problem{What: "NVML does not count its devices: " + text(r), Fix: "reload the NVIDIA driver, or reboot"})
	}
	type answer struct {
		index int
		card  *card
	}
	answers := make(chan answer, n) // one each: nobody waits to be heard
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	asked := 0
	before := s.cards
	for i := range n {
		leave, ok := enter(i)
		if !ok {
			continue
		}
		asked++
		go func() {
			defer leave()
			answers <- answer{i, s.readCard(ctx, i, before)}
		}()
	}
	cards := make([]*card, n)
	for range asked {
		select {
		case a := <-answers:
			cards[a.index] = a.card
			continue
		case <-ctx.Done():
		}
		break
	}
	for late := true; late; { // at the last moment
		select {
		case a := <-answers:
			cards[a.index] = a.card
		default:
			late = false
		}
	}
	for i := range cards {
		if cards[i] == nil {
			cards[i] = silent(i, patience, before)
		}
	}
	s.cards = cards
	linkUp(cards)
}

// silent is a card that did not answer. Within a session an index is one device: the driver counts anew only when it starts.
func silent(i int, patience time.Duration, before []*card) *card {
	c := &card{index: i}
	if i < len(before) {
		c.uuid, c.bus, c.handle, c.slices = before[i].uuid, before[i].bus, before[i].handle, before[i].slices
	}
	dev := Device{UUID: c.uuid, Bus: c.bus, Index: i, Minor: -1, Group: -1, Health: Suspect, Reason: fmt.Sprintf("it did not answer within %s", patience)}
	c.readings = append([]reading{{device: dev}}, slicesOf(before, i, &dev)...)
	return c
}

// slicesOf are the slices of a GPU that cannot be read now, as they were before: what is wrong with it is wrong with them.
func slicesOf(before []*card, i int, parent *Device) (out []reading) {
	if i >= len(before) {
		return nil
	}
	for _, r := range before[i].readings {
		if r.device.Slice != nil {
			r.device.Health, r.device.Reason, r.group = parent.Health, parent.Reason, nil
			out = append(out, r)
		}
	}
	return out
}

func (s *session) readings() (all []reading) {
	for _, c := range s.cards {
		all = append(all, c.readings...)
	}
	return all
}

// noInit says what a failed start of NVML means; no problem when there is no GPU either.
func noInit(r nvml.Return, onBus int) (Problem, bool) {
	switch r {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return Problem{
			What: fmt.Sprintf("%d NVIDIA GPUs are on the PCI bus, but the driver's library is missing: libnvidia-ml.so.1 (%d)", onBus, int(r)),
			Fix:  "install the NVIDIA driver with its libraries; in a container, mount them (--gpus all)",
		}, onBus > 0
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return Problem{
			What: fmt.Sprintf("%d NVIDIA GPUs are on the PCI bus, but the driver is not loaded: %s", onBus, text(r)),
			Fix:  "modprobe nvidia; when that fails, install the NVIDIA driver for this kernel",
		}, onBus > 0
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return Problem{
			What: "the NVIDIA library and kernel module have different versions",
			Fix:  "reboot or reload the driver; after an update of the driver restart this node too, as a process keeps the library that it began with",
		}, true
	case nvml.ERROR_NO_PERMISSION:
		return Problem{What: "the NVIDIA driver may not be opened", Fix: "give this user access to /dev/nvidiactl and /dev/nvidia*"}, true
	}
	return Problem{What: "NVML does not start: " + text(r), Fix: "run nvidia-smi; reload the driver, or reboot"}, onBus > 0
}

func text(r nvml.Return) string { return fmt.Sprintf("%s (%d)", nvml.ErrorString(r), int(r)) }

func ptr[T any](v T) *T { return &v }

// class is what a return code of NVML means for the device that was asked (discovery.md 1).
type class uint8

const (
	good   class = iota
	absent       // the device does not have that, or the driver no word for it, or this user may not ask
	later        // it may answer the next time
	wrong        // the device is at fault
	stale        // NVML itself has to be started again
)

func classOf(r nvml.Return) class {
	switch r {
	case nvml.SUCCESS:
		return good
	case nvml.ERROR_TIMEOUT, nvml.ERROR_NOT_READY:
		return later
	case nvml.ERROR_INSUFFICIENT_POWER, nvml.ERROR_IRQ_ISSUE, nvml.ERROR_CORRUPTED_INFOROM, nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED,
		nvml.ERROR_OPERATING_SYSTEM, nvml.ERROR_GPU_NOT_FOUND, nvml.ERROR_UNKNOWN:
		return wrong
	case nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return stale
	default:
		return absent
	}
}

// probe asks one device.
type probe struct {
	*session
	ctx    context.Context
	health Health // the worst that an answer meant
	reason string
	fix    string // of the reason, empty for the common one
	stale  bool
}

// tries is how often a device is asked that may answer later, retryPause the time between.
const (
	tries      = 3
	retryPause = time.Second
)

// value asks one thing. It is absent, with ok false, when the device does not have it; a call that says more makes the device
// faulted or suspect, in words that begin with doing. symbol is the library's function where an old driver may lack it.
func value[T any](p *probe, doing, symbol string, f func() (T, nvml.Return)) (v T, ok bool) {
	if !p.can(symbol) {
		return v, false
	}
	var r nvml.Return
	for i := range tries {
		if i > 0 && !p.pause() {
			break
		}
		if v, r = f(); classOf(r) != later {
			break
		}
	}
	p.note(doing, r)
	return v, r == nvml.SUCCESS
}

// must is value for what every device has.
func must[T any](p *probe, doing string, f func() (T, nvml.Return)) (v T, ok bool) {
	var last nvml.Return
	v, ok = value(p, doing, "", func() (T, nvml.Return) {
		var x T
		x, last = f()
		return x, last
	})
	if !ok && p.health == Healthy && !p.stale {
		p.health, p.reason = Faulted, doing+": "+text(last)
	}
	if last == nvml.ERROR_NO_PERMISSION {
		p.fix = "give this user access to /dev/nvidia*; in a container, to the device too"
	}
	return v, ok
}

// pause waits before a device is asked again; false when there is no time for that.
func (p *probe) pause() bool {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

func (p *probe) note(doing string, r nvml.Return) {
	switch classOf(r) {
	case later:
		if p.health == Healthy {
			p.health, p.reason = Suspect, doing+": "+text(r)
		}
	case wrong:
		if p.health != Faulted {
			p.health, p.reason = Faulted, doing+": "+text(r)
		}
	case stale:
		p.stale = true
		p.health, p.reason = cmp.Or(map[Health]Health{Healthy: Suspect}[p.health], p.health), cmp.Or(p.reason, doing+": "+text(r))
	}
}
