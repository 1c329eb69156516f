package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// WatchFile keeps who is there while a watch runs, so that one that was cut off goes on.
const WatchFile = "_watch.json"

// ReasonInterrupted means that nobody watched for a while.
const ReasonInterrupted = "observation interrupted"

// silentPeriods is after how many periods without a sign a peer counts as gone, as in the directory.
const silentPeriods = 3

// Watch keeps when peers were there: it closes a row of PresenceFile when one leaves or falls silent.
type Watch struct {
	dir   string
	state watchState
	open  map[string]*openPresence
}

// watchState is the content of WatchFile.
type watchState struct {
	Version   string         `json:"version"`
	StartedAt time.Time      `json:"started_at"`
	Until     time.Time      `json:"until"`
	SavedAt   time.Time      `json:"saved_at"`
	Bytes     int64          `json:"presence_bytes"` // of PresenceFile that this state has written
	Open      []openPresence `json:"open"`
}

// openPresence is a peer that is there.
type openPresence struct {
	PeerID       string        `json:"PeerID"`
	Start        time.Time     `json:"start"`
	Last         time.Time     `json:"last"`
	Period       time.Duration `json:"period_ns"`
	CensoredLeft bool          `json:"censored_left"`
}

// OpenWatch begins a watch of length long in a directory, or goes on with one that was cut off there, to the end
// that it had: resumed says so. Peers that were there then and not watched since have their rows closed as of
// their last sign. Who appears within three periods of a start may have been there before: such rows are censored
// on the left.
func OpenWatch(dir string, now time.Time, long time.Duration) (w *Watch, resumed bool, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, false, fmt.Errorf("making the watch's directory: %w", err)
	}
	w = &Watch{dir: dir, open: map[string]*openPresence{}, state: watchState{Version: Version, StartedAt: now, Until: now.Add(long)}}
	b, err := os.ReadFile(filepath.Join(dir, WatchFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if info, err := os.Stat(filepath.Join(dir, PresenceFile)); err == nil && info.Size() > 0 {
			return nil, false, fmt.Errorf("%s holds %s of a watch or crawl that has ended; name another directory", dir, PresenceFile)
		}
		return w, false, w.save(now, nil)
	case err != nil:
		return nil, false, fmt.Errorf("reading the watch: %w", err)
	}
	if err := json.Unmarshal(b, &w.state); err != nil || w.state.Version != Version {
		return nil, false, fmt.Errorf("%w: %s is not of version %s", ErrJournal, filepath.Join(dir, WatchFile), Version)
	}
	// What was appended after the state was saved is told again by it.
	if err := os.Truncate(filepath.Join(dir, PresenceFile), w.state.Bytes); err != nil && (w.state.Bytes > 0 || !errors.Is(err, fs.ErrNotExist)) {
		return nil, false, fmt.Errorf("going on with the watch: %w", err)
	}
	var rows []PresenceRow
	for i := range w.state.Open {
		o := &w.state.Open[i]
		if now.Sub(w.state.SavedAt) > o.grace() {
			rows = append(rows, o.close(true, ReasonInterrupted))
			continue
		}
		kept := *o // save writes over the list
		w.open[o.PeerID] = &kept
	}
	w.state.StartedAt = now
	return w, true, w.save(now, rows)
}

// Until is when the watch ends.
func (w *Watch) Until() time.Time { return w.state.Until }

// Present is how many peers are there.
func (w *Watch) Present() int { return len(w.open) }

func (o *openPresence) grace() time.Duration { return silentPeriods * o.Period }

func (o *openPresence) close(censoredRight bool, reason string) PresenceRow {
	return PresenceRow{PeerID: o.PeerID, Start: stamp(o.Start), End: stamp(o.Last), CensoredLeft: o.CensoredLeft, CensoredRight: censoredRight, Reason: reason}
}

// Sign is a sign of life: a heartbeat, or an answer. The next one is due within period. It says whether the
// peer has just come.
func (w *Watch) Sign(id peer.ID, at time.Time, period time.Duration) (came bool) {
	o := w.open[id.String()]
	if o == nil {
		o = &openPresence{PeerID: id.String(), Start: at, Last: at, CensoredLeft: at.Sub(w.state.StartedAt) < silentPeriods*period}
		w.open[o.PeerID] = o
		came = true
	}
	if at.After(o.Last) {
		o.Last = at
	}
	o.Period = period
	return came
}

// Answer is a sign of life of a peer that was asked, and is asked every so often. It says whether the peer has
// just come.
func (w *Watch) Answer(id peer.ID, at time.Time, every time.Duration) (came bool) {
	if o := w.open[id.String()]; o != nil {
		every = o.Period // heartbeats come more often and tell more
	}
	return w.Sign(id, at, every)
}

// Goodbye is a peer's own word that it leaves; it returns its row, false when it was not there.
func (w *Watch) Goodbye(id peer.ID, at time.Time) (PresenceRow, bool) {
	o := w.open[id.String()]
	if o == nil {
		return PresenceRow{}, false
	}
	if at.After(o.Last) {
		o.Last = at
	}
	delete(w.open, o.PeerID)
	return o.close(false, ReasonLeft), true
}

// Forget drops a peer that is there without a row: it does not want to be kept.
func (w *Watch) Forget(id peer.ID) { delete(w.open, id.String()) }

// Silent closes the rows of those whose signs stopped: sorted by peer.
func (w *Watch) Silent(now time.Time) []PresenceRow {
	return w.closeAll(func(o *openPresence) bool { return now.Sub(o.Last) > o.grace() }, false, ReasonSilent)
}

func (w *Watch) closeAll(which func(*openPresence) bool, censoredRight bool, reason string) []PresenceRow {
	var rows []PresenceRow
	for id, o := range w.open {
		if which(o) {
			rows = append(rows, o.close(censoredRight, reason))
			delete(w.open, id)
		}
	}
	return sortPresence(rows)
}

func sortPresence(rows []PresenceRow) []PresenceRow {
	slices.SortFunc(rows, func(a, b PresenceRow) int { return bytes.Compare([]byte(a.PeerID), []byte(b.PeerID)) })
	return rows
}

// Save appends rows to PresenceFile and keeps who is there.
func (w *Watch) Save(now time.Time, rows []PresenceRow) error { return w.save(now, rows) }

// Finish closes the rows of all who are there, as unseen beyond now, and ends the watch.
func (w *Watch) Finish(now time.Time) ([]PresenceRow, error) {
	rows := w.closeAll(func(*openPresence) bool { return true }, true, ReasonEnded)
	if err := w.save(now, rows); err != nil {
		return rows, err
	}
	if err := os.Remove(filepath.Join(w.dir, WatchFile)); err != nil {
		return rows, fmt.Errorf("ending the watch: %w", err)
	}
	return rows, nil
}

func (w *Watch) save(now time.Time, rows []PresenceRow) error {
	if len(rows) > 0 {
		var b bytes.Buffer
		if err := lines(rows)(&b); err != nil {
			return fmt.Errorf("encoding presence: %w", err)
		}
		f, err := os.OpenFile(filepath.Join(w.dir, PresenceFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("writing presence: %w", err)
		}
		_, err = f.Write(b.Bytes())
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("writing presence: %w", err)
		}
		w.state.Bytes += int64(b.Len())
	}
	w.state.SavedAt, w.state.Open = now, w.state.Open[:0]
	for _, o := range w.open {
		w.state.Open = append(w.state.Open, *o)
	}
	slices.SortFunc(w.state.Open, func(a, b openPresence) int { return bytes.Compare([]byte(a.PeerID), []byte(b.PeerID)) })
	return replace(filepath.Join(w.dir, WatchFile), object(&w.state))
}
