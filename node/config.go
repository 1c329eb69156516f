package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// ErrConfig means that a field of the configuration cannot be used; the text names it.
var ErrConfig = errors.New("node: bad configuration")

// Backend is one way of running chunks, picked by the binary.
type Backend struct {
	// Executor runs tasks; Probe is called once at the start, and a backend that fails it is not offered.
	Executor executor.Backend
	// InProcess says that its runs die with this process: after a crash a lease that was running runs again,
	// under the same lease and fence, because nothing is left that could run beside it.
	InProcess bool
}

// Config says how a machine is offered.
type Config struct {
	// Data is the directory of everything that the node keeps: identity.key, journal, volumes, cache, work,
	// control.sock, lock. No default. One process at a time uses it (ErrLocked).
	Data string
	// Key is the identity key's file. Default Data/identity.key, made on first use with mode 0600.
	Key string
	// Listen holds the multiaddrs to listen on. Default: any port, QUIC and TCP, all IPv4 interfaces; with
	// Local loopback only.
	Listen []multiaddr.Multiaddr
	// Announce are further addresses under which others reach the node, such as that of a forwarded port.
	Announce []multiaddr.Multiaddr
	// Join are peers to join by, each ending in /p2p/<peer ID>; the bootstrap peers of Networks are added.
	Join []multiaddr.Multiaddr
	// Networks are whose bridges may use this node. With none all work is refused, and Status says so.
	Networks []protocol.NetworkFile
	// OperatorKey, if not nil, signs that this node is its operator's own (protocol.LabelOperator).
	OperatorKey crypto.PrivKey
	// Labels are what the record says of the node beyond its hardware: own claims, and what others have signed about
	// it. Default none; at most 14, as a record has room for 16 with the operator's and NoResearch's.
	Labels []*pb.Label
	// NoResearch asks researchers to leave this node out of what they keep and publish (protocol.LabelResearch).
	// Default false.
	NoResearch bool
	// Place is where its owner says that the machine is, as precisely as the record may tell it
	// (protocol.Place.Cut). Default: nothing is said.
	Place protocol.Place
	// NoLandmarks keeps the round trips to the network's landmarks out of the record, by which others estimate how far
	// they are before they ping. Default false.
	NoLandmarks bool
	// Ask is the price in micro-USD per slot-hour. Default 0: free.
	Ask uint64
	// Slots is how many chunks run at once. Default 0: one per core, less where memory is short (512 MiB
	// each), at most Policy.Limits.Chunks.
	Slots int
	// Policy is what the owner accepts. Default DefaultPolicy.
	Policy Policy
	// Local is for one machine or LAN: loopback addresses are good addresses, nothing asks for reachability.
	// Default false.
	Local bool
	// MDNS finds peers in the local network. Default true; being found grants nothing.
	MDNS bool
	// MeasureLine has peers measure how fast this machine's line is, after the start and daily, while there is no work:
	// up to 4 GiB each way with each of two. Default nil: unless Local.
	MeasureLine *bool
	// Version goes into the user agent and the record as gridbeam/<version>. Default "dev".
	Version string
	// Drain is how long Run goes on after its context is done, so that chunks can end and results be handed
	// over; what is not over then goes back to its bridge as drained. Default 5 s.
	Drain time.Duration
	// Scratch is a directory in memory (tmpfs) for outputs of jobs that fit into a part of it: a small file
	// costs a fiftieth there of what it costs on a disk. Default /dev/shm; empty uses Data/work alone.
	Scratch string
	// Control serves the owner's socket. Default true; false where virtual time runs.
	Control bool
	// Metrics is a loopback address, such as 127.0.0.1:9464, on which Prometheus may ask for /metrics. Default empty: nobody
	// is answered.
	Metrics string
	// Schedule says when records and heartbeats go out. Default dht.DefaultSchedule.
	Schedule dht.Schedule
	// Buckets is Kademlia's bucket size. Default 20; tests of many hosts on one machine use 8.
	Buckets int
	// Idle is the time between two receipts of idle time. Default 60 s (settlement.md 2).
	Idle time.Duration
	// Reserve is the free space in bytes that is left on the disk. Default 256 MiB.
	Reserve uint64
	// Measure is the age from which the figures of the machine (Measured) are taken anew while the node is idle. Default 0:
	// never, Node.Measure aside.
	Measure time.Duration
	// GPUs makes what reads and follows the GPUs. Default nil: gpu.New.
	GPUs func(gpu.Config, *slog.Logger) (*gpu.Monitor, error)
	// GPUProof begins the command line of the child process in which a GPU computes before it is offered, first and after
	// anything was wrong with it: it calls gpu.RunProof. Default nil: GPUs are not tested, a minute of quiet brings them back.
	GPUProof []string
	// OfferCPU offers the processors of a machine whose GPUs are all broken. Default false: such a machine takes no work, as
	// jobs that need no GPU are for machines without one (discovery.md 1).
	OfferCPU bool
	// Clock tells the time, with its monotonic reading. Default time.Now.
	Clock func() time.Time
}

// DefaultConfig returns the defaults that the fields name, for a data directory.
func DefaultConfig(data string) Config {
	return Config{
		Data: data, Key: filepath.Join(data, "identity.key"), Policy: DefaultPolicy(), MDNS: true, Version: "dev",
		Drain: 5 * time.Second, Scratch: "/dev/shm", Control: true, Schedule: dht.DefaultSchedule(), Buckets: 20,
		Idle: time.Minute, Reserve: 256 << 20, Clock: time.Now,
	}
}

// Validate returns ErrConfig naming the first field that cannot be used.
func (c Config) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s %s", ErrConfig, field, fmt.Sprintf(format, args...))
	}
	switch {
	case !filepath.IsAbs(c.Data):
		return bad("Data", "is %q, want an absolute path", c.Data)
	case !filepath.IsAbs(c.Key):
		return bad("Key", "is %q, want an absolute path", c.Key)
	case c.Scratch != "" && !filepath.IsAbs(c.Scratch):
		return bad("Scratch", "is %q, want an absolute path or nothing", c.Scratch)
	case c.Slots < 0 || c.Slots > maxSlots:
		return bad("Slots", "is %d, want 0..%d", c.Slots, maxSlots)
	case c.Ask > maxAsk:
		return bad("Ask", "is %d micro-USD an hour, at most %d", c.Ask, uint64(maxAsk))
	case c.Version == "" || len(c.Version) > 22:
		return bad("Version", "is %q, want 1..22 bytes", c.Version)
	case c.Drain < 0 || c.Drain > time.Hour:
		return bad("Drain", "is %s, want 0..1 h", c.Drain)
	case c.Measure != 0 && (c.Measure < time.Hour || c.Measure > 30*24*time.Hour):
		return bad("Measure", "is %s, want 0 for never, or 1 h..720 h", c.Measure)
	case c.Buckets < 1:
		return bad("Buckets", "is %d, want at least 1", c.Buckets)
	case c.Idle < 5*time.Second || c.Idle > time.Hour:
		return bad("Idle", "is %s, want 5 s..1 h", c.Idle)
	case len(c.Labels) > maxLabels:
		return bad("Labels", "has %d, at most %d fit a record", len(c.Labels), maxLabels)
	case c.Metrics != "" && loopback(c.Metrics) != "":
		return bad("Metrics", "is %q, %s", c.Metrics, loopback(c.Metrics))
	case c.Clock == nil:
		return bad("Clock", "is nil")
	}
	if err := checkPlace(c.Place); err != nil {
		return bad("Place", "is %+v: %s", c.Place, err)
	}
	for i, a := range c.Join {
		if _, err := peer.AddrInfoFromP2pAddr(a); err != nil {
			return bad(fmt.Sprintf("Join[%d]", i), "is %q, want an address that ends in /p2p/<peer ID>", a)
		}
	}
	if err := c.Schedule.Validate(); err != nil {
		return fmt.Errorf("%w: Schedule: %w", ErrConfig, err)
	}
	return c.Policy.Validate()
}

const (
	maxSlots = 1024
	// maxLabels leaves two of a record's sixteen labels to the operator's and NoResearch's.
	maxLabels = 14
	maxAsk    = 10_000_000_000 // ten thousand dollars an hour, the bound of an Offer
	// slotMemory is what a slot has to have to be worth offering.
	slotMemory = 512 << 20
	// nodeMemory is what the node keeps for itself (execution.md 3).
	nodeMemory = 512 << 20
)

// measures says whether the line is measured.
func (c *Config) measures() bool {
	if c.MeasureLine == nil {
		return !c.Local
	}
	return *c.MeasureLine
}

func (c *Config) path(name string) string { return filepath.Join(c.Data, name) }

// slots is how many chunks run at once on a machine of so many cores and bytes of memory.
func (c *Config) slots(cores int, memory uint64) int {
	n := c.Slots
	if n == 0 {
		n = max(1, cores)
		if memory > 0 {
			n = min(n, int(max(1, c.Policy.Limits.memory(memory)/slotMemory)))
		}
	}
	return max(1, min(n, c.Policy.Limits.Chunks))
}

// bootstrap are the peers of Join and of every network, each once.
func (c *Config) bootstrap() ([]peer.AddrInfo, error) {
	addrs := append([]multiaddr.Multiaddr{}, c.Join...)
	for i := range c.Networks {
		addrs = append(addrs, c.Networks[i].Bootstrap...)
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil {
		return nil, fmt.Errorf("%w: a bootstrap address: %w", ErrConfig, err)
	}
	return infos, nil
}

// makeDirs makes the layout below Data, private to its owner.
func (c *Config) makeDirs() error {
	for _, name := range []string{"", "work", "cache"} {
		if err := os.MkdirAll(c.path(name), 0o700); err != nil {
			return fmt.Errorf("making the data directory: %w", err)
		}
	}
	return nil
}
