package gpu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// vendors of display controllers, by PCI number.
var vendors = map[string]string{"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}

// onBus counts NVIDIA's display controllers below a sysfs root, so that "unreadable" is not "none", and names those of others
// that compute: amd ones, with their memory where the driver tells it, and intel's that are not a part of the processor.
func onBus(sysfs string) (nvidia int, others []string) {
	dirs, _ := filepath.Glob(filepath.Join(sysfs, "bus/pci/devices/*"))
	slices.Sort(dirs)
	for _, dir := range dirs {
		class := firstLine(filepath.Join(dir, "class"))
		if !strings.HasPrefix(class, "0x0300") && !strings.HasPrefix(class, "0x0302") && !strings.HasPrefix(class, "0x0380") && !strings.HasPrefix(class, "0x1200") {
			continue
		}
		bus := filepath.Base(dir)
		switch vendors[firstLine(filepath.Join(dir, "vendor"))] {
		case "nvidia":
			if strings.HasPrefix(class, "0x030") { // the rest are switches and audio
				nvidia++
			}
		case "amd":
			text := "amd " + firstLine(filepath.Join(dir, "device")) + " at " + bus
			if n, err := strconv.ParseUint(firstLine(filepath.Join(dir, "mem_info_vram_total")), 10, 64); err == nil {
				text += fmt.Sprintf(", %d MiB", n>>20)
			}
			others = append(others, text)
		case "intel":
			if !strings.HasPrefix(bus, "0000:00:") { // the processor's own graphics is on the root bus
				others = append(others, "intel "+firstLine(filepath.Join(dir, "device"))+" at "+bus)
			}
		}
	}
	return nvidia, others
}

// firstLine reads a small file of sysfs or procfs; empty when that cannot be done.
func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 4096 {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// numaOf is the memory node of a PCI device; nil when it is not told.
func numaOf(sysfs, bus string) *int {
	if n, err := strconv.Atoi(firstLine(filepath.Join(sysfs, "bus/pci/devices", bus, "numa_node"))); err == nil && n >= 0 {
		return &n
	}
	return nil
}

// stamp changes when a driver is loaded, unloaded or updated, and when GPUs are bound to it, taken away or added.
func stamp(sysfs string) string {
	version := firstLine(filepath.Join(sysfs, "module/nvidia/version"))
	source := firstLine(filepath.Join(sysfs, "module/nvidia/srcversion"))
	entries, _ := os.ReadDir(filepath.Join(sysfs, "bus/pci/drivers/nvidia"))
	var bound []string
	for _, e := range entries {
		if strings.Count(e.Name(), ":") == 2 { // the others are bind, unbind and such
			bound = append(bound, e.Name())
		}
	}
	slices.Sort(bound)
	return version + " " + source + " " + strings.Join(bound, " ")
}

// capability is the device file that lets a program use a MIG instance: procfs tells its number for a GPU's minor number
// and the instance's path below it, such as gi1 or gi1/ci0. It is empty when the driver does not tell.
func capability(procfs string, minor int, instance string) string {
	b, err := os.ReadFile(filepath.Join(procfs, "driver/nvidia/capabilities", fmt.Sprintf("gpu%d", minor), "mig", instance, "access"))
	if err != nil || len(b) > 4096 {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && strings.TrimSpace(key) == "DeviceFileMinor" && n >= 0 {
			return fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", n)
		}
	}
	return ""
}

// parentOf is the process that started a process, 0 when there is none to be found.
func parentOf(procfs string, pid int) int {
	b, err := os.ReadFile(filepath.Join(procfs, strconv.Itoa(pid), "stat"))
	if err != nil || len(b) > 4096 {
		return 0
	}
	text := string(b)
	at := strings.LastIndexByte(text, ')') // a program's name may have anything in it
	if at < 0 {
		return 0
	}
	fields := strings.Fields(text[at+1:])
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// descends says whether a process was started by another, directly or not.
func descends(procfs string, pid, from int) bool {
	for range 64 { // deeper trees are not ours
		if pid == from {
			return true
		}
		if pid = parentOf(procfs, pid); pid <= 1 {
			return false
		}
	}
	return false
}
