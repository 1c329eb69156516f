package gpu

import (
	"fmt"
	"slices"
	"time"
)

// Health is what can be done with a device (discovery.md 1).
type Health string

// The states of a device. Only a healthy one gets new leases.
const (
	Healthy    Health = "healthy"    // Healthy: it is offered.
	Suspect    Health = "suspect"    // Suspect: something may be wrong; what runs may end, nothing new begins.
	Faulted    Health = "faulted"    // Faulted: it cannot be used; what ran on it has failed.
	Recovering Health = "recovering" // Recovering: what was wrong is over, and has to stay so for a while.
	Locked     Health = "locked"     // Locked: it faulted three times in a day, and its owner has to look.
	Foreign    Health = "foreign"    // Foreign: a process that is none of ours computes on it.
	Absent     Health = "absent"     // Absent: it was there, and is not any more.
)

// Timing of the machine (discovery.md 1).
const (
	quietTime   = 60 * time.Second // without anything bad before a device is offered again
	faultWindow = 24 * time.Hour   // in which
	faultsMost  = 3                // faults lock a device
)

// signal is what one look at a device, or an event, says.
type signal uint8

const (
	fine    signal = iota // it answers, and nothing is wrong
	quiet                 // likewise, and nothing was for quietTime
	warn                  // it may be wrong
	fault                 // it is wrong
	third                 // it is wrong, and that for the third time in a day
	foreign               // somebody else computes on it
	gone                  // it is not listed any more
	cleared               // its owner has looked
)

var signals = [...]string{"fine", "quiet", "warn", "fault", "third", "foreign", "gone", "clear"}

func (s signal) String() string { return signals[s] }

// table is the only place that says how a device moves: from its state, by signal in the order above.
var table = map[Health][8]Health{
	//           fine        quiet       warn     fault    third   foreign  gone    clear
	Healthy:    {Healthy, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Healthy},
	Suspect:    {Suspect, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Suspect},
	Faulted:    {Recovering, Recovering, Faulted, Faulted, Faulted, Faulted, Absent, Recovering},
	Recovering: {Recovering, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Recovering},
	Locked:     {Locked, Locked, Locked, Locked, Locked, Locked, Locked, Recovering},
	Foreign:    {Foreign, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Foreign},
	Absent:     {Recovering, Recovering, Suspect, Faulted, Locked, Foreign, Absent, Absent},
}

// track is where one device stands, and what of its past decides about its future. The zero value is a device that was
// never seen.
type track struct {
	state  Health
	reason string      // of its state; empty when it is healthy
	since  time.Time   // it is in its state
	bad    time.Time   // something was wrong last
	faults []time.Time // it faulted, within faultWindow, oldest first
}

// begin is a device that is seen for the first time: offered unless a signal follows.
func begin(now time.Time) track { return track{state: Healthy, since: now} }

// next returns where the device stands after a signal; reason says what was seen.
func (t track) next(s signal, reason string, now time.Time) track {
	was := t.state
	t.faults = slices.DeleteFunc(slices.Clone(t.faults), func(at time.Time) bool { return now.Sub(at) >= faultWindow })
	if s == fault && was != Faulted && was != Locked {
		t.faults = append(t.faults, now)
		if len(t.faults) >= faultsMost {
			s = third
		}
	}
	switch s {
	case fine:
		if now.Sub(t.bad) >= quietTime {
			s = quiet
		}
	case cleared:
		t.faults = nil
	case warn, fault, third, foreign, gone:
		t.bad = now
	}
	t.state = table[was][s]
	if t.state == Recovering && was != Recovering {
		t.bad = now // the time of quiet begins when it is back
	}
	if t.state != was {
		t.since = now
	}
	switch {
	case t.state == Healthy:
		t.reason = ""
	case t.state == Locked && was != Locked:
		t.reason = fmt.Sprintf("%d faults in %s, the last: %s", len(t.faults), faultWindow, reason)
	case s == warn || s == fault || s == foreign || s == gone:
		if t.state != Locked && (t.state != Faulted || was != Faulted || s == fault) {
			t.reason = reason
		}
	}
	return t
}

// kind is what an Xid says of the device that it comes from.
type kind uint8

const (
	ofHardware kind = iota // the device is at fault; also every Xid that is not listed
	ofMemory               // a memory error that was contained: it may go on after a look
	ofJob                  // the program is at fault, not the device
)

// xids are the kinds of NVIDIA's driver errors (discovery.md 1; the application's ones are those that
// NVIDIA/k8s-device-plugin leaves out of its health check). What is not here is a fault: fail closed.
var xids = map[uint64]kind{
	13: ofJob, 31: ofJob, 43: ofJob, 45: ofJob, 68: ofJob, 109: ofJob,
	63: ofMemory, 92: ofMemory, 94: ofMemory,
	48: ofHardware, 64: ofHardware, 74: ofHardware, 79: ofHardware, 95: ofHardware, 119: ofHardware, 120: ofHardware,
}

// xidText are short words for the Xids that operators meet; others go by their number.
var xidText = map[uint64]string{
	48: "double-bit memory error", 63: "memory row remapped", 64: "memory row not remapped", 74: "NVLink error", 79: "fallen off the bus",
	92: "many single-bit memory errors", 94: "contained memory error", 95: "uncontained memory error", 119: "GPU firmware does not answer",
	120: "GPU firmware failed",
}

func describeXid(xid uint64) string {
	if text := xidText[xid]; text != "" {
		return fmt.Sprintf("Xid %d: %s", xid, text)
	}
	return fmt.Sprintf("Xid %d", xid)
}

// signalOf is the signal of an Xid; ok is false for the job's own.
func signalOf(xid uint64) (s signal, ok bool) {
	switch xids[xid] {
	case ofJob:
		return fine, false
	case ofMemory:
		return warn, true
	default:
		return fault, true
	}
}
