package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// historyMost bounds the file that is read.
const historyMost = 1 << 20

// past is what is kept of a device over restarts.
type past struct {
	Faults []time.Time `json:"faults"`
	Locked string      `json:"locked,omitempty"` // the reason
}

// readHistory reads what was kept; nothing when there is no file yet.
func readHistory(path string) (map[string]past, error) {
	info, err := os.Stat(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the faults of GPUs: %w", err)
	}
	if info.Size() > historyMost {
		return nil, fmt.Errorf("%s has %d bytes, at most %d were written; delete it", path, info.Size(), historyMost)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the faults of GPUs: %w", err)
	}
	return parseHistory(raw)
}

func parseHistory(raw []byte) (map[string]past, error) {
	var all map[string]past
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("the faults of GPUs are kept as no JSON: %w; delete the file", err)
	}
	for uuid, p := range all {
		if uuid == "" || len(uuid) > 128 || len(p.Faults) > faultsMost || len(p.Locked) > 4096 {
			return nil, fmt.Errorf("the faults of GPUs: %.128q has %d faults, at most %d are kept; delete the file", uuid, len(p.Faults), faultsMost)
		}
	}
	return all, nil
}

// writeHistory replaces the file at once or not at all.
func writeHistory(path string, tracks map[string]track) error {
	all := map[string]past{}
	for uuid, t := range tracks {
		if len(t.faults) == 0 && t.state != Locked {
			continue
		}
		p := past{Faults: t.faults[max(0, len(t.faults)-faultsMost):]}
		if t.state == Locked {
			p.Locked = clip(t.reason, 1024)
		}
		all[uuid] = p
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("keeping the faults of GPUs: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("keeping the faults of GPUs: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("keeping the faults of GPUs: %w", err)
	}
	return nil
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
