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
	Untested   Health = "untested"   // Untested: nothing is wrong, and it has not computed yet (proof.go).
	Suspect    Health = "suspect"    // Suspect: something may be wrong; what runs may end, nothing new begins.
	Faulted    Health = "faulted"    // Faulted: it cannot be used; what ran on it has failed.
	Recovering Health = "recovering" // Recovering: what was wrong is over, and has to stay so for a while and to compute.
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

// signal is what one look at a device, an event or a test says.
type signal uint8

const (
	fine    signal = iota // it answers, and nothing is wrong
	quiet                 // likewise, and nothing was for quietTime; but it has not computed since
	proven                // likewise, and it has
	warn                  // it may be wrong
	fault                 // it is wrong
	third                 // it is wrong, and that for the third time in a day
	foreign               // somebody else computes on it
	gone                  // it is not listed any more
	cleared               // its owner has looked
	doubt                 // nothing is wrong, and it has to compute before it is offered
	flunk                 // it has not computed what it should
	// Signals that become one of the above.
	passed // it has computed what it should
	waived // nothing here can have it compute
)

var signals = [...]string{"fine", "quiet", "proven", "warn", "fault", "third", "foreign", "gone", "clear", "doubt", "flunk", "pass", "waive"}

func (s signal) String() string { return signals[s] }

// table is the only place that says how a device moves: from its state, by signal in the order above. Proven alone leads to
// Healthy.
var table = map[Health][11]Health{
	//           fine        quiet       proven      warn     fault    third   foreign  gone    clear       doubt       flunk
	Healthy:    {Healthy, Healthy, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Healthy, Untested, Faulted},
	Untested:   {Untested, Untested, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Untested, Untested, Faulted},
	Suspect:    {Suspect, Suspect, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Suspect, Suspect, Faulted},
	Faulted:    {Recovering, Recovering, Recovering, Faulted, Faulted, Locked, Faulted, Absent, Recovering, Faulted, Faulted},
	Recovering: {Recovering, Recovering, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Recovering, Recovering, Faulted},
	Locked:     {Locked, Locked, Locked, Locked, Locked, Locked, Locked, Locked, Recovering, Locked, Locked},
	Foreign:    {Foreign, Recovering, Healthy, Suspect, Faulted, Locked, Foreign, Absent, Foreign, Foreign, Faulted},
	Absent:     {Recovering, Recovering, Recovering, Suspect, Faulted, Locked, Foreign, Absent, Absent, Absent, Absent},
}

// track is where one device stands, and what of its past decides about its future. The zero value is a device that was
// never seen.
type track struct {
	state   Health
	reason  string      // of its state; empty when it is healthy
	since   time.Time   // it is in its state
	bad     time.Time   // something was wrong last
	faults  []time.Time // it faulted, within faultWindow, oldest first
	well    bool        // the last look found nothing wrong
	owes    bool        // it has to compute before it is offered (again)
	flunks  int         // tests in a row that it failed: until it passes one it is faulted, whatever looks say
	retryAt time.Time   // of the next test
}

// begin is a device that is seen for the first time: offered unless a signal follows.
func begin(now time.Time) track { return track{state: Healthy, since: now} }

// next returns where the device stands after a signal; reason says what was seen.
func (t track) next(s signal, reason string, now time.Time) track {
	was := t.state
	t.faults = slices.DeleteFunc(slices.Clone(t.faults), func(at time.Time) bool { return now.Sub(at) >= faultWindow })
	if s == fault && was != Locked && (was != Faulted || t.well) { // a fault that is told of again is the same one
		t.faults = append(t.faults, now)
		if len(t.faults) >= faultsMost {
			s = third
		}
	}
	told := s
	s = t.note(s, now)
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
	case t.state == Untested && was != Untested:
		t.reason = "it has to compute before it is offered"
	case told == warn || told == fault || told == foreign || told == gone || told == flunk:
		if t.state != Locked && (t.state != Faulted || was != Faulted || told == fault || told == flunk) {
			t.reason = reason
		}
	}
	return t
}

// note takes down what a signal says of the past, and returns the one that the table knows.
func (t *track) note(s signal, now time.Time) signal {
	switch s {
	case warn, fault, third, foreign, gone:
		t.bad, t.well = now, false
		t.owes = t.owes || s != foreign // that somebody else computes on it is no doubt that it can
		if s == gone {                  // what comes back begins anew
			t.flunks, t.retryAt = 0, time.Time{}
		}
		return s
	case cleared:
		t.faults, t.flunks, t.retryAt = nil, 0, time.Time{}
		return s
	case doubt:
		t.owes, t.retryAt = true, time.Time{}
		return s
	case flunk:
		if t.state == Absent { // it is gone meanwhile
			return s
		}
		t.bad, t.owes, t.flunks = now, true, t.flunks+1
		t.retryAt = now.Add(retryAfter(t.flunks))
		return s
	case waived:
		if t.flunks > 0 { // one that has failed has to pass
			t.retryAt = now.Add(retryAfter(t.flunks))
			return flunk
		}
		t.owes = false
	case passed:
		t.owes, t.flunks, t.retryAt = false, 0, time.Time{}
	case fine:
		t.well = true
	}
	switch {
	case t.flunks > 0: // it answers, and does not compute
		return flunk
	case t.owes && t.state == Healthy:
		return doubt
	case now.Sub(t.bad) < quietTime:
		return fine
	case t.owes:
		return quiet
	}
	return proven
}

// The time between two tests of a device that fails them: doubled by each failure.
const (
	retryFirst = 30 * time.Second
	retryMost  = 16 * time.Minute
)

// retryAfter is how long a device is left alone after failing so many tests in a row.
func retryAfter(flunks int) time.Duration {
	return min(retryMost, retryFirst<<min(max(flunks-1, 0), 10))
}

// due says whether the device should be tested now.
func (t *track) due(now time.Time) bool {
	switch t.state {
	case Untested, Suspect, Recovering, Faulted: // one that looks say is faulted is not well
		return t.owes && t.well && !now.Before(t.retryAt)
	}
	return false
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

// xidWord is the short word by which faults of an Xid are counted: those that nobody has listed are one.
func xidWord(xid uint64) string {
	if _, ok := xids[xid]; ok {
		return fmt.Sprintf("xid_%d", xid)
	}
	return "xid_other"
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
