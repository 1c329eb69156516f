package dht

import "time"

// Stored is what came of storing our record last.
type Stored struct {
	// At is when, by our clock.
	At time.Time
	// Published tells who was asked to keep it, and how many of them did.
	Published
}

// Stored tells who took our record last; false before anybody was asked.
func (a *Announcer) Stored() (Stored, bool) {
	if s := a.stored.Load(); s != nil {
		return *s, true
	}
	return Stored{}, false
}

func (a *Announcer) note(p Published) {
	if p.Holders > 0 {
		a.stored.Store(&Stored{a.d.now(), p})
	}
}
