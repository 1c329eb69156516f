package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

var peerNone peer.AddrInfo

const cpuinfo = `processor	: 0
model name	: AMD EPYC 7763 64-Core Processor
cpu MHz		: 2450.123
physical id	: 0
core id		: 0

processor	: 1
model name	: AMD EPYC 7763 64-Core Processor
cpu MHz		: 3100.5
physical id	: 0
core id		: 0

processor	: 2
model name	: AMD EPYC 7763 64-Core Processor
physical id	: 1
core id		: 0
`

func TestTheMachineIsReadFromProc(t *testing.T) {
	machine := fstest.MapFS{
		"proc/cpuinfo":              {Data: []byte(cpuinfo)},
		"proc/meminfo":              {Data: []byte("MemTotal:       65536000 kB\nMemFree:         100 kB\nMemAvailable:   32768000 kB\n")},
		"proc/sys/kernel/osrelease": {Data: []byte("6.18.0-test\n")},
	}
	inv := readHost(machine, t.TempDir())
	if inv.CPUModel != "AMD EPYC 7763 64-Core Processor" || inv.Cores != 2 || inv.Sockets != 2 || inv.MHz != 3100 || inv.Kernel != "6.18.0-test" {
		t.Errorf("processor is %+v", inv)
	}
	if inv.Memory != 65536000<<10 || inv.MemoryFree != 32768000<<10 || inv.Disk == 0 {
		t.Errorf("memory is %d, %d free, disk %d", inv.Memory, inv.MemoryFree, inv.Disk)
	}
	machine["sys/fs/cgroup/memory.max"] = &fstest.MapFile{Data: []byte("1073741824\n")}
	if inv := readHost(machine, t.TempDir()); inv.Memory != 1<<30 || inv.MemoryFree > 1<<30 {
		t.Errorf("in a container of 1 GiB memory is %d", inv.Memory)
	}
	machine["sys/fs/cgroup/memory.max"] = &fstest.MapFile{Data: []byte("max\n")}
	if inv := readHost(machine, t.TempDir()); inv.Memory != 65536000<<10 {
		t.Errorf("in a container without limit memory is %d", inv.Memory)
	}
	if inv := readHost(fstest.MapFS{}, "/does/not/exist"); inv.Memory != 0 || inv.Disk != 0 || inv.Threads == 0 {
		t.Errorf("a machine that tells nothing is %+v", inv)
	}
}

func newTestSpeaker(t *testing.T) *speaker {
	t.Helper()
	key := newKey(t)
	id := idOf(t, key)
	return &speaker{
		self: id, key: key, version: "1.2.3", started: time.Now(), ask: 42, kinds: []string{"map"}, wall: time.Hour,
		networks: []protocol.NetworkFile{{ID: protocol.NetworkID{1}}},
		backends: []*offered{{report: executor.Report{Backend: "wasm", Level: executor.LevelStrong}}},
		addrs: func() []multiaddr.Multiaddr {
			return []multiaddr.Multiaddr{multiaddr.StringCast("/ip4/127.0.0.1/tcp/4001"), multiaddr.StringCast("/ip4/8.8.8.8/udp/4001/quic-v1")}
		},
		reach: func() p2p.Reachability { return p2p.ReachableUnknown },
		load: func() load {
			return load{state: StateBusy, running: 2, queued: 1, inventory: Inventory{MemoryFree: 5 << 20, DiskFree: 7 << 30}}
		},
		inv: Inventory{OS: "linux", Arch: "amd64", Threads: 4, Memory: 8 << 30, Disk: 100 << 30, DiskFree: 50 << 30},
	}
}

func TestTheRecordSaysWhatTheNodeIs(t *testing.T) {
	s := newTestSpeaker(t)
	s.operator = newKey(t)
	now := time.Now()
	raw, err := s.Record(7, now, now.Add(time.Hour), false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dht.OpenCapability(raw, s.self, now)
	if err != nil {
		t.Fatal(err)
	}
	if c.GetHost().GetExecutors()[0] != "wasm:strong" || c.GetHost().GetCores() != 4 || c.GetHost().GetRamBytes() != 8<<30 || c.GetPolicy().GetPriceUusdPerHour() != 42 {
		t.Errorf("the record is %v", c)
	}
	issuer, ok := protocol.VerifyLabel(c.GetLabels()[0], s.self, now)
	if !ok || issuer != idOf(t, s.operator) || c.GetLabels()[0].GetKey() != protocol.LabelOperator {
		t.Errorf("the operator's label is %v of %s, %t", c.GetLabels(), issuer, ok)
	}
	if len(c.GetLabels()) != 1 {
		t.Errorf("labels that nobody asked for: %v", c.GetLabels())
	}
	s.noResearch = true
	if raw, err = s.Record(8, now, now.Add(time.Hour), false); err != nil {
		t.Fatal(err)
	}
	if r, err := dht.OpenCapability(raw, s.self, now); err != nil || len(r.GetLabels()) != 2 || r.GetLabels()[1].GetKey() != protocol.LabelResearch || r.GetLabels()[1].GetValue() != protocol.ResearchNo {
		t.Errorf("who wants no research says %v, %v", r.GetLabels(), err)
	}
	if len(c.GetAddrs()) != 2 || c.GetNetwork().GetReachability() != "" {
		t.Errorf("%d addresses are told, want 2, and it is reached %q while nobody knows", len(c.GetAddrs()), c.GetNetwork().GetReachability())
	}
	for how, want := range map[p2p.Reachability]string{p2p.ReachableDirectly: "public", p2p.ReachableByHolePunch: "holepunch", p2p.ReachableByRelay: "relay", p2p.Unreachable: ""} {
		s.reach = func() p2p.Reachability { return how }
		if raw, err = s.Record(8, now, now.Add(time.Hour), false); err != nil {
			t.Fatal(err)
		}
		if c, err = dht.OpenCapability(raw, s.self, now); err != nil || c.GetNetwork().GetReachability() != want {
			t.Errorf("reached by %q the record says %q, %v", how, c.GetNetwork().GetReachability(), err)
		}
	}
	gone, err := s.Record(9, now, now.Add(10*time.Minute), true)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := dht.OpenCapability(gone, s.self, now); err != nil || !c.GetTombstone() || c.GetHost() != nil {
		t.Errorf("the tombstone is %v, %v", c, err)
	}
}

func TestALargeMachineStillFitsIntoItsRecord(t *testing.T) {
	s := newTestSpeaker(t)
	s.addrs = func() (out []multiaddr.Multiaddr) {
		for range 10 {
			out = append(out, multiaddr.StringCast("/ip6/2001:db8:1234:5678:9abc:def0:1234:5678/udp/65535/quic-v1"))
		}
		return out
	}
	for g := range 8 {
		s.inv.GPUs.Groups = append(s.inv.GPUs.Groups, &pb.GpuGroup{Vendor: "nvidia", Model: "nvidia-h100-80gb-sxm", RawName: "NVIDIA H100 80GB HBM3", Count: 64, VramBytes: proto.Uint64(80 << 30), MigProfile: "x"})
		for range 64 {
			s.inv.GPUs.Devices = append(s.inv.GPUs.Devices, gpu.Device{UUID: "GPU-1234", Group: g, Health: gpu.Healthy})
		}
	}
	now := time.Now()
	raw, err := s.Record(1, now, now.Add(time.Hour), false)
	if err != nil || len(raw) > protocol.MaxCapability {
		t.Errorf("the record has %d bytes, %v", len(raw), err)
	}
	if _, err := dht.OpenCapability(raw, s.self, now); err != nil {
		t.Error(err)
	}
}

func TestHeartbeatsSayHowBusyTheNodeIs(t *testing.T) {
	s := newTestSpeaker(t)
	for leaving, want := range map[bool]pb.NodeState{false: pb.NodeState_NODE_STATE_BUSY, true: pb.NodeState_NODE_STATE_LEAVING} {
		now := time.Now()
		raw, err := s.Beat(dht.BeatHeader{Seq: 3, At: now, Period: 30 * time.Second, CapSeq: 7}, leaving)
		if err != nil {
			t.Fatal(err)
		}
		a, err := protocol.OpenAvailability(raw, s.self)
		if err != nil || a.GetState() != want || a.GetRunning() != 2 || a.GetQueued() != 1 || a.GetRamFreeMib() != 5 || a.GetDiskFreeGib() != 7 {
			t.Errorf("the heartbeat is %v, %v, want %s", a, err, want)
		}
	}
}

func TestTheKindOfDriveIsReadFromSysfs(t *testing.T) {
	root := t.TempDir()
	for _, at := range []struct{ place, rotational string }{
		{"sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p2", ""},
		{"sys/devices/pci0000:00/ata1/block/sda/sda1", ""},
		{"sys/devices/pci0000:00/ata1/block/sda/queue", "1\n"},
		{"sys/devices/pci0000:00/virtio1/block/vda/queue", "0\n"},
		{"sys/devices/virtual/block/dm-0/queue", "0\n"},
		{"sys/dev/block", ""},
	} {
		if err := os.MkdirAll(filepath.Join(root, at.place), 0o755); err != nil {
			t.Fatal(err)
		}
		if at.rotational != "" {
			if err := os.WriteFile(filepath.Join(root, at.place, "rotational"), []byte(at.rotational), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for device, c := range map[string]struct{ place, want string }{
		"259:2": {"../../devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p2", "nvme"},
		"8:1":   {"../../devices/pci0000:00/ata1/block/sda/sda1", "hdd"},
		"254:0": {"../../devices/pci0000:00/virtio1/block/vda", "ssd"},
		"253:0": {"../../devices/virtual/block/dm-0", "data"},
		"0:40":  {"", "data"}, // tmpfs, NFS, overlays: no block device
	} {
		if c.place != "" {
			if err := os.Symlink(c.place, filepath.Join(root, "sys/dev/block", device)); err != nil {
				t.Fatal(err)
			}
		}
		if got := diskClass(os.DirFS(root), device); got != c.want {
			t.Errorf("%s is %q, want %q", device, got, c.want)
		}
	}
}

func TestLabelsAreInTheRecordWhileTheyHold(t *testing.T) {
	s := newTestSpeaker(t)
	issuer := newKey(t)
	now := time.Now()
	signed, err := protocol.SignLabel(issuer, s.self, "host.type", "datacenter", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s.labels = []*pb.Label{signed, {Key: "rack", Value: "7"}}
	words := func(at time.Time) (out []string) {
		raw, err := s.Record(7, at, at.Add(time.Hour), false)
		if err != nil {
			t.Fatal(err)
		}
		c, err := protocol.OpenCapability(raw, s.self)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range c.GetLabels() {
			_, ok := protocol.VerifyLabel(l, s.self, at)
			out = append(out, fmt.Sprint(l.GetKey(), "=", l.GetValue(), " ", ok))
		}
		return out
	}
	if got := words(now); !slices.Equal(got, []string{"host.type=datacenter true", "rack=7 false"}) {
		t.Errorf("the labels are %q", got)
	}
	if got := words(now.Add(2 * time.Hour)); !slices.Equal(got, []string{"rack=7 false"}) {
		t.Errorf("when the issuer's word has ended they are %q", got)
	}
	var st Status
	s.compare(&st, now)
	if len(st.Labels) != 2 || st.Labels[0].Expires == nil || st.Labels[1].Issuer != "" || len(st.Profiles) != len(protocol.Profiles()) || st.Profiles[0].Met {
		t.Errorf("the status says %+v %+v", st.Labels, st.Profiles)
	}
}
