package protocol

import "github.com/libp2p/go-libp2p/core/protocol"

// Stream protocol IDs (architecture.md 3). The version is part of the ID: a peer that does not speak it
// refuses the stream by name.
const (
	// ProtoAuth presents grant chains once per connection.
	ProtoAuth protocol.ID = "/gridbeam/auth/1.0.0"
	// ProtoAttest pulls signed score statements and attestations.
	ProtoAttest protocol.ID = "/gridbeam/attest/1.0.0"
	// ProtoReserve asks a node for an Offer.
	ProtoReserve protocol.ID = "/gridbeam/reserve/1.0.0"
	// ProtoClaim asks the bridge for leases of announced chunks.
	ProtoClaim protocol.ID = "/gridbeam/claim/1.0.0"
	// ProtoLease is the one long stream per (bridge, node): the whole desired set, every 2 s.
	ProtoLease protocol.ID = "/gridbeam/lease/1.0.0"
	// ProtoResult carries signed results and receipts, answers with verdicts and counter-signatures.
	ProtoResult protocol.ID = "/gridbeam/result/1.0.0"
	// ProtoReceipt carries receipts of idle time and statements.
	ProtoReceipt protocol.ID = "/gridbeam/receipt/1.0.0"
	// ProtoLogs streams the log of a lease.
	ProtoLogs protocol.ID = "/gridbeam/logs/1.0.0"
	// ProtoQuery asks an index peer for capability records.
	ProtoQuery protocol.ID = "/gridbeam/query/1.0.0"
	// ProtoScan reads what a server of the directory holds, in the order of the keys.
	ProtoScan protocol.ID = "/gridbeam/scan/1.0.0"
	// ProtoMeasure measures the line of the peer that asks.
	ProtoMeasure protocol.ID = "/gridbeam/measure/1.0.0"
	// ProtoBlocks transfers verified ranges of blocks (volumes.md 6; not spoken yet).
	ProtoBlocks protocol.ID = "/gridbeam/blocks/1.0.0"
	// ProtoKad is our own Kademlia.
	ProtoKad protocol.ID = "/gridbeam/kad/1.0.0"
)

// DHTPrefix is the protocol prefix from which kad-dht makes ProtoKad.
const DHTPrefix protocol.ID = "/gridbeam"

// NamespaceCapability is the DHT value namespace of capability records: keys are /gb-cap/<peerID>.
const NamespaceCapability = "gb-cap"

// Limits of what is read from a remote peer, in bytes.
const (
	// MaxCapability bounds a signed capability record (discovery.md 2).
	MaxCapability = 4096
	// MaxAvailability bounds a signed heartbeat (discovery.md 3).
	MaxAvailability = 512
	// MaxGossip bounds any gossip message (trust.md 5).
	MaxGossip = 64 << 10
	// MaxFrame bounds one frame of a work stream.
	MaxFrame = 1 << 20
	// MaxReceipt bounds a signed receipt (settlement.md 2).
	MaxReceipt = 64 << 10
	// MaxGrantLink bounds one link of a grant chain, MaxGrantChain the chain (trust.md 2).
	MaxGrantLink = 2 << 10
	// MaxGrantChain bounds the bytes of a whole chain.
	MaxGrantChain = 8 << 10
	// MaxInlineParam bounds a chunk's parameters that travel inside a lease; larger ones go by CID.
	MaxInlineParam = 1 << 10
	// MaxRecordsPerReceipt bounds the usage records of one receipt.
	MaxRecordsPerReceipt = 256
	// MaxAnnounce bounds the chunks of one announcement.
	MaxAnnounce = 256
)
