package dht

import (
	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// SealCapability signs a capability record with its peer's key. What OpenCapability would refuse is refused
// here as well by Advertise.
func SealCapability(key crypto.PrivKey, c *pb.Capability) ([]byte, error) {
	return protocol.SealCapability(key, c)
}

// SealAvailability signs a heartbeat with its peer's key.
func SealAvailability(key crypto.PrivKey, a *pb.Availability) ([]byte, error) {
	return protocol.SealAvailability(key, a)
}
