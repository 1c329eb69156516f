package protocol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ErrBadID means that a text or a byte string is no valid ID of the asked kind.
var ErrBadID = errors.New("protocol: malformed ID")

// idText is lower-case base32 without padding: 16 bytes become 26 letters that survive file names,
// URLs and a double click.
var idText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// PeerID names a peer: the libp2p ID of its Ed25519 key.
type PeerID = peer.ID

// JobID names a job: 16 random bytes chosen by the bridge that holds it.
type JobID [16]byte

// ChunkID names a range of a job's inputs, see NewChunkID.
type ChunkID [16]byte

// LeaseID names one attempt at one chunk: 16 random bytes chosen by the bridge.
type LeaseID [16]byte

// CallID names a reservation or a call for nodes; it is the nonce of the signed request.
type CallID [16]byte

// GrantID is the SHA-256 of a grant's payload (trust.md 2).
type GrantID [32]byte

// NetworkID is the first 16 bytes of SHA-256 over version 1 of a network file (trust.md 1).
type NetworkID [16]byte

// NewJobID returns a fresh random job ID.
func NewJobID() JobID { return JobID(random16()) }

// NewLeaseID returns a fresh random lease ID.
func NewLeaseID() LeaseID { return LeaseID(random16()) }

// NewCallID returns a fresh random call ID.
func NewCallID() CallID { return CallID(random16()) }

func random16() (b [16]byte) {
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24)
	return b
}

// NewChunkID derives the ID of the half-open input range [first, end) of a job: the first 16 bytes of
// SHA-256("gridbeam/chunk/1" 0x00 ‖ job ID ‖ u64 first ‖ u64 end), big-endian (scheduling.md 2). The same
// job splits into the same IDs wherever it is split.
func NewChunkID(job JobID, first, end uint64) ChunkID {
	b := make([]byte, 0, 64)
	b = append(b, "gridbeam/chunk/1\x00"...)
	b = append(b, job[:]...)
	b = binary.BigEndian.AppendUint64(b, first)
	b = binary.BigEndian.AppendUint64(b, end)
	sum := sha256.Sum256(b)
	return ChunkID(sum[:16])
}

// String returns the 26-letter text of the ID.
func (id JobID) String() string { return idText.EncodeToString(id[:]) }

// String returns the 26-letter text of the ID.
func (id ChunkID) String() string { return idText.EncodeToString(id[:]) }

// String returns the 26-letter text of the ID.
func (id LeaseID) String() string { return idText.EncodeToString(id[:]) }

// String returns the 26-letter text of the ID.
func (id CallID) String() string { return idText.EncodeToString(id[:]) }

// String returns the 26-letter text of the ID.
func (id NetworkID) String() string { return idText.EncodeToString(id[:]) }

// String returns the 52-letter text of the ID.
func (id GrantID) String() string { return idText.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id JobID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (id ChunkID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (id LeaseID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (id CallID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (id NetworkID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (id GrantID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *JobID) UnmarshalText(b []byte) error { return parseID(id[:], "job", string(b)) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ChunkID) UnmarshalText(b []byte) error { return parseID(id[:], "chunk", string(b)) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *LeaseID) UnmarshalText(b []byte) error { return parseID(id[:], "lease", string(b)) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *CallID) UnmarshalText(b []byte) error { return parseID(id[:], "call", string(b)) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *NetworkID) UnmarshalText(b []byte) error { return parseID(id[:], "network", string(b)) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *GrantID) UnmarshalText(b []byte) error { return parseID(id[:], "grant", string(b)) }

// ParseJobID reads the text form of a job ID; it returns ErrBadID.
func ParseJobID(s string) (id JobID, err error) {
	err = parseID(id[:], "job", s)
	return id, err
}

// parseID reads the text of an ID into dst. Each ID has one text, in either case: spare bits of the last letter
// are 0, and there is nothing around it.
func parseID(dst []byte, kind, s string) error {
	letters := idText.EncodedLen(len(dst))
	if len(s) == letters {
		lower := strings.ToLower(s)
		if b, err := idText.DecodeString(lower); err == nil && len(b) == len(dst) && idText.EncodeToString(b) == lower {
			copy(dst, b)
			return nil
		}
	}
	return fmt.Errorf("%w: %s ID %.60q has to be %d letters a-z and digits 2-7", ErrBadID, kind, s, letters)
}

func id16(kind string, b []byte) (id [16]byte, err error) {
	if len(b) != 16 {
		return id, fmt.Errorf("%w: %s ID has %d bytes, want 16", ErrBadID, kind, len(b))
	}
	return [16]byte(b), nil
}

// validPeers refuses every peer ID that is not an Ed25519 key's: 38 bytes that hold the key itself
// (trust.md 1).
func validPeers(noun string, ids ...PeerID) error {
	for _, id := range ids {
		if len(id) != len(ed25519ID)+32 || string(id[:len(ed25519ID)]) != ed25519ID {
			return fmt.Errorf("%w: %s names a peer of %d bytes whose ID holds no Ed25519 key", ErrBadID, noun, len(id))
		}
	}
	return nil
}

func peerID(noun string, b []byte) (PeerID, error) {
	if err := validPeers(noun, PeerID(b)); err != nil {
		return "", err
	}
	return PeerID(b), nil
}
