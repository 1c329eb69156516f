//go:build linux

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identity names a process so that another one that got the same number later is not taken for it.
type identity struct {
	// PID is its number.
	PID int `json:"pid"`
	// Start is when it began, in clock ticks since the boot.
	Start uint64 `json:"start"`
	// Boot is the boot's ID.
	Boot string `json:"boot"`
	// Group is the inode of the sandbox's memory cgroup, 0 without one.
	Group uint64 `json:"group"`
}

// bootID names this boot of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// identify reads who has a process number now.
func identify(pid int) (identity, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	// The name in parentheses may have anything in it; what follows the last one has not.
	_, rest, _ := strings.Cut(string(b)[strings.LastIndexByte(string(b), ')')+1:], " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" { // it has ended; only its parent has not looked yet
		return identity{}, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64) // field 22 of proc(5)
	return identity{PID: pid, Start: start, Boot: bootID()}, err
}

// alive tells whether the process of that identity still runs.
func (i *identity) alive() bool {
	now, err := identify(i.PID)
	return err == nil && now.Start == i.Start && now.Boot == i.Boot
}

// kill ends the process of that identity, and nobody else's: the number is held by a descriptor before it is judged.
func (i *identity) kill() error {
	fd, err := unix.PidfdOpen(i.PID, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !i.alive() {
		return nil
	}
	return ignoreGone(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// writeFile writes a file so that a reader sees all of it or nothing. It is not synced: what it is read for is the
// restart of a daemon, and after one of the machine nothing of a run is left that it could speak of.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("reading %s: %w", filepath.Base(path), err)
	}
	return nil
}
