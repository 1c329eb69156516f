package node

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// readHost reads processor, memory and the disk of a directory; root is the root of the file system, of which
// /proc and /sys are looked at. What cannot be read is absent.
func readHost(root fs.FS, dir string) Inventory {
	inv := Inventory{OS: runtime.GOOS, Arch: runtime.GOARCH, Threads: runtime.NumCPU()}
	read := func(name string) []byte {
		b, _ := fs.ReadFile(root, name)
		return b
	}
	inv.Kernel = clip(strings.TrimSpace(string(read("proc/sys/kernel/osrelease"))), 32)
	readProcessor(read("proc/cpuinfo"), &inv)
	inv.Memory, inv.MemoryFree = readMemory(read("proc/meminfo"))
	// A container's limit, where it is smaller than the machine.
	for _, name := range []string{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(read(name))), 10, 64); err == nil && n > 0 && (inv.Memory == 0 || n < inv.Memory) {
			inv.Memory, inv.MemoryFree = n, min(inv.MemoryFree, n)
		}
	}
	inv.Disk, inv.DiskFree = readDisk(dir)
	inv.DiskClass = diskClass(root, deviceOf(dir))
	return inv
}

// diskClass says what kind of drive a device of a file system is on, by sysfs: nvme, ssd, hdd, or data where that cannot be
// told, as for one that lies in the network, in memory, or over several drives.
func diskClass(root fs.FS, device string) string {
	const other = "data"
	if device == "" {
		return other
	}
	place, err := fs.ReadLink(root, "sys/dev/block/"+device) // ../../devices/pci…/nvme/nvme0/nvme0n1/nvme0n1p2
	switch {
	case err != nil || strings.HasPrefix(place, "../../devices/virtual/"):
		return other
	case strings.Contains(place, "/nvme/"):
		return "nvme"
	}
	disk := path.Join("sys/dev/block", place)
	for _, dir := range []string{disk, path.Dir(disk)} { // a partition's flag is its disk's
		b, _ := fs.ReadFile(root, dir+"/queue/rotational")
		switch strings.TrimSpace(string(b)) {
		case "0":
			return "ssd"
		case "1":
			return "hdd"
		}
	}
	return other
}

func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// readProcessor reads /proc/cpuinfo.
func readProcessor(text []byte, inv *Inventory) {
	cores, sockets := map[string]bool{}, map[string]bool{}
	socket := ""
	for line := range bytes.Lines(text) {
		key, value, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			inv.CPUModel = clip(value, 64)
		case "cpu MHz":
			if mhz, err := strconv.ParseFloat(value, 64); err == nil {
				inv.MHz = max(inv.MHz, int(mhz))
			}
		case "physical id":
			socket = value
			sockets[value] = true
		case "core id":
			cores[socket+"/"+value] = true
		}
	}
	inv.Cores, inv.Sockets = len(cores), len(sockets)
}

// readMemory reads /proc/meminfo: what there is and what is available, in bytes.
func readMemory(text []byte) (total, free uint64) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			free = n << 10
		}
	}
	return total, free
}

// readDisk returns the size of a directory's file system and what is free on it, in bytes.
func readDisk(dir string) (total, free uint64) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0
	}
	return st.Blocks * uint64(st.Bsize), st.Bavail * uint64(st.Bsize)
}

// deviceOf is the device number of a directory's file system as major:minor, empty when it cannot be told.
func deviceOf(dir string) string {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return ""
	}
	dev := uint64(st.Dev) //nolint:unconvert // other systems have 32 bits
	return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
}

// onTmpfs says whether a directory is in memory.
func onTmpfs(dir string) bool {
	const tmpfsMagic = 0x01021994
	var st syscall.Statfs_t
	if _, err := os.Stat(dir); err != nil {
		return false
	}
	return syscall.Statfs(dir, &st) == nil && st.Type == tmpfsMagic
}
