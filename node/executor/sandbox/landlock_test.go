//go:build linux

package sandbox

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEachLandlockEnforcesWhatItCan walks all versions of Landlock; the numbers are those of linux/landlock.h.
func TestEachLandlockEnforcesWhatItCan(t *testing.T) {
	const base = 1<<13 - 1 // the 13 rights of version 1
	for _, c := range []struct {
		abi            int
		fs, net, scope uint64
		size           uintptr
		says           string
	}{
		{1, base, 0, 0, 8, "landlock 1 (not of truncation, TCP, ioctl, signals, abstract sockets)"},
		{2, base | 1<<13, 0, 0, 8, "landlock 2 (not of truncation, TCP, ioctl, signals, abstract sockets)"},
		{3, base | 1<<13 | 1<<14, 0, 0, 8, "landlock 3 (not of TCP, ioctl, signals, abstract sockets)"},
		{4, base | 1<<13 | 1<<14, 3, 0, 16, "landlock 4 (not of ioctl, signals, abstract sockets)"},
		{5, base | 1<<13 | 1<<14 | 1<<15, 3, 0, 16, "landlock 5 (not of signals, abstract sockets)"},
		{6, base | 1<<13 | 1<<14 | 1<<15, 3, 3, 24, "landlock 6"},
		{7, base | 1<<13 | 1<<14 | 1<<15, 3, 3, 24, "landlock 7"},
		{99, base | 1<<13 | 1<<14 | 1<<15, 3, 3, 24, "landlock 99"},
	} {
		p, err := planLandlock(c.abi)
		if err != nil {
			t.Fatalf("version %d: %v", c.abi, err)
		}
		if a := p.attr; a.Handled_access_fs != c.fs || a.Handled_access_net != c.net || a.Scoped != c.scope || p.size != c.size {
			t.Errorf("version %d: %+v in %d bytes, want %+v", c.abi, a, p.size, c)
		}
		if got := p.words(c.abi); got != c.says {
			t.Errorf("version %d: it says %q, want %q", c.abi, got, c.says)
		}
		// The kernel refuses a rule with a right that its ruleset does not handle. Nobody may make devices.
		if bad := (p.write | p.files | landRead) &^ p.attr.Handled_access_fs; bad != 0 {
			t.Errorf("version %d: rules have the rights %#x, which it does not handle", c.abi, bad)
		}
		if p.write&landDevices != 0 || p.files&^landFileAll != 0 || p.write&unix.LANDLOCK_ACCESS_FS_IOCTL_DEV != 0 {
			t.Errorf("version %d: rights are %#x and %#x", c.abi, p.write, p.files)
		}
	}
	for _, abi := range []int{0, -1} {
		if _, err := planLandlock(abi); err == nil || !strings.Contains(err.Error(), "Linux 5.13") {
			t.Errorf("version %d: error is %v", abi, err)
		}
	}
}

// TestTheKernelTakesThePlanOfEachVersionItKnows makes rules as an older kernel would get them.
func TestTheKernelTakesThePlanOfEachVersionItKnows(t *testing.T) {
	newest := landlockABI()
	if newest < 1 {
		t.Skip("this kernel has no Landlock: run Linux 5.13 or later with lsm=landlock,…")
	}
	rules := landRules{Read: []string{"/usr", "/nonexistent"}, Write: []string{t.TempDir()}, Files: []string{"/dev/null"}, List: []string{"/"}}
	for abi := 1; abi <= newest; abi++ {
		plan, err := planLandlock(abi)
		if err != nil {
			t.Fatal(err)
		}
		set, err := rules.ruleset(plan)
		if err != nil {
			t.Errorf("version %d: %v", abi, err)
			continue
		}
		_ = unix.Close(set)
	}
}

func TestTheNodeSaysWhatItsLandlockLacks(t *testing.T) {
	b := newBackend(t, nil)
	b.landlock = func() int { return 0 }
	if _, err := b.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "no Landlock") {
		t.Errorf("without Landlock: %v", err)
	}
	b.landlock = func() int { return 3 }
	report, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(report.Version, ", landlock 3 (not of TCP, ioctl, signals, abstract sockets), ") {
		t.Errorf("it says %q", report.Version)
	}
}
