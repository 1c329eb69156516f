package protocol

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// CUDAVersion reads GpuGroup.cuda, which is NVML's form everywhere: 1000 × major + 10 × minor, so that 12040 is 12.4. It
// returns false for a number that is none, such as 0 or 124.
func CUDAVersion(cuda uint32) (major, minor uint32, ok bool) {
	if cuda < 1000 || cuda > 1_000_000 {
		return 0, 0, false
	}
	return cuda / 1000, cuda % 1000 / 10, true
}

// SealCapability signs a node's capability record with the node's key; it returns ErrTooLarge for more than
// MaxCapability bytes. What the fields may hold is dht's to check (discovery.md 2).
func SealCapability(key crypto.PrivKey, c *pb.Capability) ([]byte, error) {
	return nounCapability.seal(key, PeerID(c.GetPeerId()), c)
}

// OpenCapability verifies that owner has signed a capability record of itself and decodes it; fields that this
// version does not know are kept. It returns ErrTooLarge, ErrMalformed, ErrSignature, ErrAuthor or ErrBounds;
// times and the content of fields are dht's to check.
func OpenCapability(raw []byte, owner PeerID) (*pb.Capability, error) {
	c := &pb.Capability{}
	if err := nounCapability.openOf(raw, owner, c); err != nil {
		return nil, err
	}
	if PeerID(c.GetPeerId()) != owner {
		return nil, fmt.Errorf("%w: it is a record of another peer", ErrAuthor)
	}
	return c, nil
}

// PeekCapability decodes a capability record without verifying it, for choosing among records that are
// verified already.
func PeekCapability(raw []byte) (*pb.Capability, error) {
	e, err := nounCapability.parse(raw)
	if err != nil {
		return nil, err
	}
	c := &pb.Capability{}
	return c, nounCapability.decode(e.payload, c)
}

// PeekAvailability decodes a heartbeat without verifying it, for those that were verified when they came.
func PeekAvailability(raw []byte) (*pb.Availability, error) {
	e, err := nounAvailability.parse(raw)
	if err != nil {
		return nil, err
	}
	a := &pb.Availability{}
	return a, nounAvailability.decode(e.payload, a)
}

// SealAvailability signs a node's heartbeat with the node's key.
func SealAvailability(key crypto.PrivKey, a *pb.Availability) ([]byte, error) {
	return nounAvailability.seal(key, PeerID(a.GetPeerId()), a)
}

// OpenAvailability verifies that author has signed a heartbeat of itself and decodes it, as OpenCapability does.
func OpenAvailability(raw []byte, author PeerID) (*pb.Availability, error) {
	a := &pb.Availability{}
	if err := nounAvailability.openOf(raw, author, a); err != nil {
		return nil, err
	}
	if PeerID(a.GetPeerId()) != author {
		return nil, fmt.Errorf("%w: it is a heartbeat of another peer", ErrAuthor)
	}
	return a, nil
}

// openOf opens what author has to have signed, the cheap checks first. Unknown fields are kept.
func (n noun) openOf(raw []byte, author PeerID, m proto.Message) error {
	e, err := n.parse(raw)
	if err != nil {
		return err
	}
	if err := n.author(e.signer, author); err != nil {
		return err
	}
	if err := n.verify(&e); err != nil {
		return err
	}
	if err := n.shape.check(n.name, e.payload); err != nil {
		return err
	}
	if err := proto.Unmarshal(e.payload, m); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, n.name, err)
	}
	return nil
}
