package node

import (
	"time"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/node/gpu"
	"github.com/gridbeam/gridbeam/p2p"
	"github.com/gridbeam/gridbeam/protocol"
)

// State is what a node says of its readiness, in the words of its heartbeats (discovery.md 3).
type State string

// The states.
const (
	StateStarting State = "STARTING" // StateStarting: not on the network yet.
	StateReady    State = "READY"    // StateReady: work is taken.
	StateBusy     State = "BUSY"     // StateBusy: every slot runs or has something waiting.
	StateDraining State = "DRAINING" // StateDraining: what runs may end, nothing new begins.
	StatePaused   State = "PAUSED"   // StatePaused: no new work, by the owner or for a reason that Status.Why tells.
	StateLeaving  State = "LEAVING"  // StateLeaving: the node is about to be gone.
)

// Status is where a node stands, for its owner.
type Status struct {
	// PeerID is the node; Version and PID are its program and process.
	PeerID protocol.PeerID `json:"peer_id"`
	// Version is the program's.
	Version string `json:"version"`
	// PID is the process.
	PID int `json:"pid"`
	// Started is when this run of the node began.
	Started time.Time `json:"started"`
	// Addresses are where others reach it, each ending in its peer ID.
	Addresses []string `json:"addresses"`
	// Metrics is where Prometheus may ask for /metrics; empty when nowhere.
	Metrics string `json:"metrics,omitempty"`
	// Reachability is how others reach it: public, holepunch, relay, none, or empty while nobody has told.
	Reachability p2p.Reachability `json:"reachability,omitempty"`
	// State since Since; Why says why it is not READY, with what to do.
	State State `json:"state"`
	// Since is when it came into State.
	Since time.Time `json:"since"`
	// Why says why it is not READY, one reason a line.
	Why []string `json:"why,omitempty"`
	// Networks are those that it has joined.
	Networks []NetworkStatus `json:"networks"`
	// Slots is how many chunks run at once, Busy how many do.
	Slots int `json:"slots"`
	// Busy is how many slots have a lease.
	Busy int `json:"busy"`
	// Ask is the price in micro-USD per slot-hour.
	Ask uint64 `json:"ask_uusd_per_hour"`
	// Executors are the backends that passed their self-test, as name:level.
	Executors []string `json:"executors"`
	// Inventory is the machine.
	Inventory Inventory `json:"inventory"`
	// Selling says how many of its GPUs can be sold, and why the others cannot.
	Selling Selling `json:"selling"`
	// Labels are what its record says of it besides.
	Labels []LabelStatus `json:"labels,omitempty"`
	// Place is what its record says of where it is.
	Place PlaceStatus `json:"place"`
	// Line is how fast its line is.
	Line LineStatus `json:"line"`
	// Profiles compare it with the minimum specifications of reward policies.
	Profiles []ProfileStatus `json:"profiles"`
	// Directory is how many servers of the directory are known; 0 means that nobody learns of the node.
	Directory int `json:"directory_servers"`
	// Stored is who took its record last; nil before anybody was asked.
	Stored *StoredStatus `json:"stored,omitempty"`
	// Standing is whether the node is in one network with its anchors, and seen there.
	Standing StandingStatus `json:"standing"`
	// Jobs are the clusters that the node belongs to.
	Jobs []JobStatus `json:"jobs"`
	// Leases are what it holds.
	Leases []LeaseStatus `json:"leases"`
	// Bridges are who has shown a right to use it.
	Bridges []BridgeStatus `json:"bridges"`
	// Done counts the leases that were handed over since the start, Failed those among them that ended badly.
	Done uint64 `json:"done"`
	// Failed counts handed-over leases that ended for a reason other than done.
	Failed uint64 `json:"failed"`
}

// LabelStatus is one label of the node's record.
type LabelStatus struct {
	// Key and Value are the label.
	Key string `json:"key"`
	// Value is free text.
	Value string `json:"value"`
	// Issuer has signed it; empty means that it is the node's own claim, which earns nothing.
	Issuer protocol.PeerID `json:"issuer,omitempty"`
	// Expires is when the issuer's word ends; nil for a claim.
	Expires *time.Time `json:"expires,omitempty"`
}

// ProfileStatus says how the node stands to one profile (protocol.Profile): that limits rewards, not joining.
type ProfileStatus struct {
	// Name is the profile.
	Name string `json:"name"`
	// Met says whether every requirement is met.
	Met bool `json:"met"`
	// Requirements are its lines.
	Requirements []protocol.Requirement `json:"requirements"`
}

// StoredStatus is what came of storing the node's record last.
type StoredStatus struct {
	// At is when.
	At time.Time `json:"at"`
	// Asked is how many servers of the directory were asked to keep it, Took how many do.
	Asked int `json:"asked"`
	// Took is how many of them took it.
	Took int `json:"took"`
}

// StandingStatus is how the node stands in the directory, as far as it knows.
type StandingStatus struct {
	// Problem says what is wrong and, for a node that is alone, why each anchor is out of reach; empty when
	// nothing is known to be.
	Problem string `json:"problem,omitempty"`
	// Isolated says that for a minute nobody of the directory was known.
	Isolated bool `json:"isolated,omitempty"`
	// Split says that anchors are in another network: one that was given, or two that were met.
	Split bool `json:"split,omitempty"`
	// Checked is when others were asked last how they see the node; zero before the first time.
	Checked time.Time `json:"checked,omitzero"`
	// Asked is how many answered.
	Asked int `json:"asked"`
	// Found is how many of them find its record, Heard how many hear its heartbeats, Dialable how many can open
	// a connection to it.
	Found int `json:"found"`
	// Heard counts those that keep a replica and have a heartbeat of it.
	Heard int `json:"heard"`
	// Dialable is how many could open a new connection.
	Dialable int `json:"dialable"`
	// ClockMs is how far others' clocks are ahead of this machine's, in ms, the median of those asked.
	ClockMs int64 `json:"clock_ahead_ms"`
	// ClockOff says that the node advertises nothing until its clock is within a minute of others'.
	ClockOff bool `json:"clock_off,omitempty"`
	// Clocks is how many they are.
	Clocks int `json:"clocks"`
}

// NetworkStatus is a joined network.
type NetworkStatus struct {
	// ID and Name are the network file's.
	ID protocol.NetworkID `json:"id"`
	// Name is for people.
	Name string `json:"name"`
}

// JobStatus is a job that the node is a member of.
type JobStatus struct {
	// Job and Name are the job's.
	Job protocol.JobID `json:"job"`
	// Name is its owner's word for it.
	Name string `json:"name"`
	// Bridge holds it.
	Bridge protocol.PeerID `json:"bridge"`
	// Slots were offered to it.
	Slots int `json:"slots"`
	// Held is how many leases of it are here.
	Held int `json:"held"`
	// Since is when the node became a member.
	Since time.Time `json:"since"`
}

// LeaseStatus is a lease.
type LeaseStatus struct {
	// Lease names it; Job, First and End are the chunk's.
	Lease protocol.LeaseID `json:"lease"`
	// Job is the chunk's job.
	Job protocol.JobID `json:"job"`
	// First and End are the chunk's half-open range of inputs.
	First uint64 `json:"first"`
	// End is the input after its last.
	End uint64 `json:"end"`
	// Fence is what it runs under.
	Fence uint64 `json:"fence"`
	// State is the lease machine's, since Since.
	State string `json:"state"`
	// Since is when it came into State.
	Since time.Time `json:"since"`
	// Bridge granted it.
	Bridge protocol.PeerID `json:"bridge"`
}

// BridgeStatus is a bridge that may use the node.
type BridgeStatus struct {
	// Peer is the bridge.
	Peer protocol.PeerID `json:"peer"`
	// Connected says whether there is a connection.
	Connected bool `json:"connected"`
	// Until is when its right ends.
	Until time.Time `json:"until"`
	// Heard is when its last lease set came; zero when none did since the start.
	Heard time.Time `json:"heard,omitzero"`
	// Receipts is the number of the last receipt, Open how many are not counter-signed.
	Receipts uint64 `json:"receipts"`
	// Open is how many receipts wait for their counter-signature.
	Open int `json:"open_receipts"`
}

// Inventory is what the machine has.
type Inventory struct {
	// OS, Arch, Kernel and CPUModel name it.
	OS string `json:"os"`
	// Arch is Go's word for the processor's kind.
	Arch string `json:"arch"`
	// Kernel is the system's release.
	Kernel string `json:"kernel,omitempty"`
	// CPUModel is the processor's name.
	CPUModel string `json:"cpu_model,omitempty"`
	// Sockets and Cores are physical, Threads what the system schedules on; 0 is unknown.
	Sockets int `json:"sockets,omitempty"`
	// Cores are physical ones.
	Cores int `json:"cores,omitempty"`
	// Threads are what the system schedules on.
	Threads int `json:"threads"`
	// MHz is the processor's clock.
	MHz int `json:"mhz,omitempty"`
	// Memory is what the machine, or the group of processes that the node is in, has; MemoryFree is
	// available. In bytes.
	Memory uint64 `json:"memory"`
	// MemoryFree is what is available now, in bytes.
	MemoryFree uint64 `json:"memory_free"`
	// Disk is the file system of the data directory, DiskFree what is free on it, in bytes.
	Disk uint64 `json:"disk"`
	// DiskFree is what is free on it, in bytes.
	DiskFree uint64 `json:"disk_free"`
	// DiskClass is the kind of drive that it is on: nvme, ssd, hdd, or data where that is not known.
	DiskClass string `json:"disk_class,omitempty"`
	// Measured is what was measured of it last; nil when nothing was.
	Measured *Measured `json:"measured,omitempty"`
	// GPUs are the groups of identical devices and the devices that cannot be offered.
	GPUs gpu.Inventory `json:"gpus"`
}

// standingOf tells what the directory's watch has found.
func standingOf(s dht.Standing) StandingStatus {
	out := StandingStatus{
		Isolated: s.Isolated, Split: s.Split, Checked: s.Seen.At, Asked: s.Seen.Asked, Found: s.Seen.Found, Heard: s.Seen.Heard,
		Dialable: s.Seen.Dialable, ClockMs: s.Clock.Milliseconds(), Clocks: s.Clocks,
	}
	if problem := s.Problem(); problem != nil {
		out.Problem = problem.Error()
	}
	return out
}
