package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Bounds of the file: how much of it is read, and of how many devices that are not there it tells.
const (
	historyMost = 4 << 20
	absentMost  = 1024
)

// anyDevice stands in the history for all devices with a UUID that it does not name: nobody knows what they did.
const anyDevice = "*"

// past is what is kept of a device over restarts. The zero value is of one that did nothing.
type past struct {
	Faults []time.Time `json:"faults"`
	Locked string      `json:"locked,omitempty"` // the reason
}

// recall is readHistory for a start. Where the file cannot be used it is kept aside, and every device is locked until its
// owner clears it, also after more restarts: one of them may have been. The error says so, and what could not be written.
func recall(path string) (map[string]past, error) {
	if path == "" {
		return map[string]past{}, nil
	}
	old, err := readHistory(path)
	if err == nil {
		if old == nil {
			old = map[string]past{}
		}
		return old, nil
	}
	aside := path + ".damaged"
	old = map[string]past{anyDevice: {Locked: clip(fmt.Sprintf("what it did before is not known: %v; the file is kept as %s", err, filepath.Base(aside)), reasonMost)}}
	kept := os.Remove(aside)
	if errors.Is(kept, fs.ErrNotExist) {
		kept = nil
	}
	// A second name, not another one: at no time is there no file, which would mean that nothing has happened.
	return old, errors.Join(err, kept, os.Link(path, aside), writeHistory(path, old))
}

// reasonMost bounds the text for which a device is locked, in bytes.
const reasonMost = 256

// readHistory reads what was kept; nothing when there is no file yet.
func readHistory(path string) (map[string]past, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the faults of GPUs: %w", err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", filepath.Base(path))
	case info.Size() > historyMost:
		return nil, fmt.Errorf("%s has %d bytes, at most %d were written", filepath.Base(path), info.Size(), historyMost)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the faults of GPUs: %w", err)
	}
	all, err := parseHistory(raw)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Base(path), err)
	}
	return all, nil
}

func parseHistory(raw []byte) (map[string]past, error) {
	var all map[string]past
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	if all == nil {
		return nil, errors.New("it names nothing")
	}
	for uuid, p := range all {
		if uuid == "" || len(uuid) > 128 || len(p.Faults) > faultsMost || len(p.Locked) > 4096 {
			return nil, fmt.Errorf("%.128q has %d faults, at most %d are kept", uuid, len(p.Faults), faultsMost)
		}
	}
	return all, nil
}

// writeHistory replaces the file at once or not at all, durably.
func writeHistory(path string, all map[string]past) error {
	raw, err := json.Marshal(all)
	if err == nil {
		err = replaceFile(path, raw)
	}
	if err != nil {
		return fmt.Errorf("keeping the faults of GPUs: %w", err)
	}
	return nil
}

// replaceFile gives a path new content: after a crash there is the old or the new one.
func replaceFile(path string, raw []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // only its owner may read it
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remembered is what is to be kept: of the devices that are followed how they are now, of the others what was known. Locks are
// kept until their owner clears them, faults for as long as they count.
func remembered(old map[string]past, tracks map[string]track, now time.Time) map[string]past {
	_, unknown := old[anyDevice] // then also that a device is not locked is worth keeping
	all := map[string]past{}
	for key, t := range tracks {
		if p := t.past(); unknown || p.counts(now) {
			all[key] = p
		}
	}
	absent := 0
	for _, lock := range []bool{true, false} { // locks first
		for _, key := range slices.Sorted(maps.Keys(old)) {
			p := old[key]
			_, followed := tracks[key]
			if followed || (p.Locked != "") != lock || absent >= absentMost || !unknown && !p.counts(now) {
				continue
			}
			absent++
			all[key] = p
		}
	}
	return all
}

// past is what of the device's track is kept.
func (t *track) past() past {
	p := past{Faults: t.faults[max(0, len(t.faults)-faultsMost):]}
	if t.state == Locked {
		p.Locked = clip(t.reason, reasonMost)
	}
	return p
}

// counts says whether the past still decides about anything.
func (p past) counts(now time.Time) bool {
	return p.Locked != "" || slices.ContainsFunc(p.Faults, func(at time.Time) bool { return now.Sub(at) < faultWindow })
}

// pastOf is what is known of a device. That its owner has cleared a GPU holds for slices that are cut from it later.
func pastOf(old map[string]past, d *Device) past {
	p, ok := old[keyOf(d)]
	if !ok && d.Slice != nil {
		_, ok = old[d.Slice.Parent]
	}
	if ok || d.UUID == "" {
		return p
	}
	return old[anyDevice]
}

// forgive forgets what a device did before; false when nothing was known of it.
func forgive(old map[string]past, uuid string) bool {
	_, known := old[uuid]
	if _, unknown := old[anyDevice]; unknown {
		old[uuid] = past{}
		return known
	}
	delete(old, uuid)
	return known
}

// keyOf names a device over readings.
func keyOf(d *Device) string {
	if d.UUID != "" {
		return d.UUID
	}
	return fmt.Sprintf("without UUID %d %s", d.Index, d.Bus)
}

// restored is a device that was seen before this process began.
func (p past) restored(now time.Time) track {
	t := begin(now)
	for _, at := range p.Faults {
		if age := now.Sub(at); age >= 0 && age < faultWindow {
			t.faults = append(t.faults, at)
		}
	}
	if p.Locked != "" {
		t.state, t.reason, t.owes = Locked, p.Locked, true
	}
	return t
}
