package dht

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	envelope "github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// SealCapability signs a capability record with its peer's key. What OpenCapability would refuse is refused
// here as well by Advertise.
func SealCapability(key crypto.PrivKey, c *pb.Capability) ([]byte, error) {
	return sealed(key, capabilitySeal(), c)
}

// SealAvailability signs a heartbeat with its peer's key.
func SealAvailability(key crypto.PrivKey, a *pb.Availability) ([]byte, error) {
	return sealed(key, availabilitySeal(), a)
}

func sealed(key crypto.PrivKey, as *seal, m proto.Message) ([]byte, error) {
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", as.codec, err)
	}
	as.payload = payload
	env, err := envelope.Seal(as, key)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", as.codec, err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the envelope of %s: %w", as.codec, err)
	}
	return raw, nil
}
