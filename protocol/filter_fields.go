package protocol

import (
	"slices"
)

// FilterKind is the type of a field and of the literals that fit it.
type FilterKind uint8

// The kinds of values.
const (
	// KindNumber is a decimal number.
	KindNumber FilterKind = iota + 1
	// KindBool is true or false.
	KindBool
	// KindText is compared as it is.
	KindText
	// KindLower is a hardware word, compared in lower case.
	KindLower
	// KindEnum is one word of a fixed list.
	KindEnum
	// KindVersion is version("550.54"), compared number by number.
	KindVersion
	// KindModel is a GPU name that stands for a set of slugs.
	KindModel
	// KindPlace is a region, country or subdivision.
	KindPlace
	// KindCountry is an ISO 3166 country code.
	KindCountry
	// KindPeer is a peer ID.
	KindPeer
)

// FilterScope says what a field belongs to.
type FilterScope uint8

// The scopes of fields.
const (
	// ScopeNode is a fact of the node.
	ScopeNode FilterScope = iota + 1
	// ScopeGroup is a fact of one group of identical GPUs: all such clauses have to hold for one group.
	ScopeGroup
	// ScopeLocal is known to the asker alone.
	ScopeLocal
)

// FilterField is a field of the grammar.
type FilterField uint8

// The fields. Numbers are as named; GB are nominal for GPUs and 10⁹ bytes elsewhere; prices are USD per
// GPU-hour; rates are Mbit/s; fp16_tflops is the node's own claim.
const (
	FieldGPUModel FilterField = iota + 1
	FieldGPUVendor
	FieldGPUCount
	FieldGPUFree
	FieldGPUVRAMGB
	FieldGPUVRAMBytes
	FieldGPUCompute
	FieldGPUArch
	FieldGPUDriver
	FieldGPUCUDA
	FieldGPUInterface
	FieldGPUNVLink
	FieldGPUMIG
	FieldGPUECC
	FieldGPUPowerW
	FieldGPUPCIeGen
	FieldGPUFP16TFLOPS
	FieldGPUsCount
	FieldGPUsFree
	FieldCPUCores
	FieldCPUArch
	FieldNodeID
	FieldNodeRegion
	FieldNodeCountry
	FieldNodeTier
	FieldNodeHostType
	FieldNodeReachability
	FieldNodeState
	FieldNodeUpMbps
	FieldNodeDownMbps
	FieldNodeRAMGB
	FieldNodeDiskGB
	FieldNodePrice
	FieldNodeUptimeS
	FieldNodeAgeS
	FieldNodeAgent
	FieldNodeKind
	FieldNodeRTTMs
	FieldNodeReputation
	// FieldLabel is label("k"): what the node or an issuer says, unchecked.
	FieldLabel
	// FieldVerified is verified("k"): what an accepted issuer signed.
	FieldVerified
)

// Words of node.state; STALE is a node whose heartbeats stopped.
var filterStates = []string{"READY", "BUSY", "DRAINING", "PAUSED", "LEAVING", "STALE"}

type fieldInfo struct {
	name  string
	kind  FilterKind
	scope FilterScope
	words []string
}

var filterFields = map[FilterField]fieldInfo{
	FieldGPUModel:         {"gpu.model", KindModel, ScopeGroup, nil},
	FieldGPUVendor:        {"gpu.vendor", KindLower, ScopeGroup, nil},
	FieldGPUCount:         {"gpu.count", KindNumber, ScopeGroup, nil},
	FieldGPUFree:          {"gpu.free", KindNumber, ScopeGroup, nil},
	FieldGPUVRAMGB:        {"gpu.vram_gb", KindNumber, ScopeGroup, nil},
	FieldGPUVRAMBytes:     {"gpu.vram_bytes", KindNumber, ScopeGroup, nil},
	FieldGPUCompute:       {"gpu.compute", KindNumber, ScopeGroup, nil},
	FieldGPUArch:          {"gpu.arch", KindLower, ScopeGroup, nil},
	FieldGPUDriver:        {"gpu.driver", KindVersion, ScopeGroup, nil},
	FieldGPUCUDA:          {"gpu.cuda", KindVersion, ScopeGroup, nil},
	FieldGPUInterface:     {"gpu.interface", KindLower, ScopeGroup, nil},
	FieldGPUNVLink:        {"gpu.nvlink", KindNumber, ScopeGroup, nil},
	FieldGPUMIG:           {"gpu.mig", KindBool, ScopeGroup, nil},
	FieldGPUECC:           {"gpu.ecc", KindBool, ScopeGroup, nil},
	FieldGPUPowerW:        {"gpu.power_w", KindNumber, ScopeGroup, nil},
	FieldGPUPCIeGen:       {"gpu.pcie_gen", KindNumber, ScopeGroup, nil},
	FieldGPUFP16TFLOPS:    {"gpu.fp16_tflops", KindNumber, ScopeGroup, nil},
	FieldGPUsCount:        {"gpus.count", KindNumber, ScopeNode, nil},
	FieldGPUsFree:         {"gpus.free", KindNumber, ScopeNode, nil},
	FieldCPUCores:         {"cpu.cores", KindNumber, ScopeNode, nil},
	FieldCPUArch:          {"cpu.arch", KindLower, ScopeNode, nil},
	FieldNodeID:           {"node.id", KindPeer, ScopeNode, nil},
	FieldNodeRegion:       {"node.region", KindPlace, ScopeNode, nil},
	FieldNodeCountry:      {"node.country", KindCountry, ScopeNode, nil},
	FieldNodeTier:         {"node.tier", KindEnum, ScopeNode, []string{"low", "medium", "high", "ultra"}},
	FieldNodeHostType:     {"node.host_type", KindEnum, ScopeNode, []string{"datacenter", "miner", "partner"}},
	FieldNodeReachability: {"node.reachability", KindEnum, ScopeNode, []string{"public", "holepunch", "relay"}},
	FieldNodeState:        {"node.state", KindEnum, ScopeNode, filterStates},
	FieldNodeUpMbps:       {"node.up_mbps", KindNumber, ScopeNode, nil},
	FieldNodeDownMbps:     {"node.down_mbps", KindNumber, ScopeNode, nil},
	FieldNodeRAMGB:        {"node.ram_gb", KindNumber, ScopeNode, nil},
	FieldNodeDiskGB:       {"node.disk_gb", KindNumber, ScopeNode, nil},
	FieldNodePrice:        {"node.price", KindNumber, ScopeNode, nil},
	FieldNodeUptimeS:      {"node.uptime_s", KindNumber, ScopeNode, nil},
	FieldNodeAgeS:         {"node.age_s", KindNumber, ScopeNode, nil},
	FieldNodeAgent:        {"node.agent", KindText, ScopeNode, nil},
	FieldNodeKind:         {"node.kind", KindLower, ScopeNode, nil},
	FieldNodeRTTMs:        {"node.rtt_ms", KindNumber, ScopeLocal, nil},
	FieldNodeReputation:   {"node.reputation", KindNumber, ScopeLocal, nil},
	FieldLabel:            {"label", KindText, ScopeNode, nil},
	FieldVerified:         {"verified", KindText, ScopeNode, nil},
}

// String returns the field's name in the grammar.
func (f FilterField) String() string { return filterFields[f].name }

// Kind returns the type of the field's values.
func (f FilterField) Kind() FilterKind { return filterFields[f].kind }

// Scope says what the field belongs to.
func (f FilterField) Scope() FilterScope { return filterFields[f].scope }

// fieldByName holds the plain fields; label and verified are functions.
var fieldByName = func() map[string]FilterField {
	m := map[string]FilterField{}
	for f, info := range filterFields {
		if f != FieldLabel && f != FieldVerified {
			m[info.name] = f
		}
	}
	return m
}()

// FilterFields returns the names of all plain fields, sorted.
func FilterFields() []string {
	names := make([]string, 0, len(fieldByName))
	for n := range fieldByName {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
