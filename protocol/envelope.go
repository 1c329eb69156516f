package protocol

import (
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"
)

// Errors of opening a signed noun. What wraps them names the noun and the field.
var (
	// ErrTooLarge means more bytes than the noun may have.
	ErrTooLarge = errors.New("protocol: too large")
	// ErrMalformed means bytes that are no such noun.
	ErrMalformed = errors.New("protocol: malformed")
	// ErrSignature means that the signature is not good, of another noun, or of a key that is not Ed25519.
	ErrSignature = errors.New("protocol: bad signature")
	// ErrAuthor means that somebody other than the peer it speaks for has signed it.
	ErrAuthor = errors.New("protocol: not signed by the peer that it speaks for")
	// ErrBounds means that a field is outside of what it may hold.
	ErrBounds = errors.New("protocol: out of bounds")
)

// noun is a kind of signed statement: its domain and payload type keep a signature over one noun from passing
// for another (architecture.md 4.8).
type noun struct {
	name string
	max  int // bytes with the envelope
}

// The signed nouns. Capability and availability are sealed by dht under the same rule.
var (
	nounReservation  = noun{"call", 256 << 10}
	nounOffer        = noun{"offer", 1 << 10}
	nounAnnouncement = noun{"announcement", MaxGossip}
	nounLease        = noun{"lease", MaxFrame}
	nounResult       = noun{"result", 512 << 10}
	nounReceipt      = noun{"receipt", MaxReceipt}
	nounCounterSign  = noun{"countersign", MaxReceipt}
	nounGrant        = noun{"grant", MaxGrantLink}
	nounAttestation  = noun{"attestation", 2 << 10}
	nounNetworkFile  = noun{"networkfile", 16 << 10}
)

func (n noun) domain() string { return "gridbeam/" + n.name + "/v1" }
func (n noun) codec() string  { return "/gridbeam/" + n.name }

// sealed is a payload on its way into or out of an envelope.
type sealed struct {
	noun
	payload []byte
}

// Domain implements record.Record.
func (s *sealed) Domain() string { return s.domain() }

// Codec implements record.Record.
func (s *sealed) Codec() []byte { return []byte(s.codec()) }

// MarshalRecord implements record.Record.
func (s *sealed) MarshalRecord() ([]byte, error) { return s.payload, nil }

// UnmarshalRecord implements record.Record.
func (s *sealed) UnmarshalRecord(b []byte) error { s.payload = b; return nil }

// seal signs a message in an envelope of the noun.
func (n noun) seal(key crypto.PrivKey, m proto.Message) ([]byte, error) {
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", n.name, err)
	}
	return n.sealBytes(key, payload)
}

func (n noun) sealBytes(key crypto.PrivKey, payload []byte) ([]byte, error) {
	env, err := record.Seal(&sealed{n, payload}, key)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", n.name, err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding the envelope of %s: %w", n.name, err)
	}
	if len(raw) > n.max {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrTooLarge, n.name, len(raw), n.max)
	}
	return raw, nil
}

// open checks size, payload type, key type and signature, and decodes the payload into m. It returns who has
// signed and the payload's bytes as they were signed.
func (n noun) open(raw []byte, m proto.Message) (signer PeerID, payload []byte, err error) {
	signer, payload, err = n.openBytes(raw)
	if err != nil {
		return "", nil, err
	}
	if err := proto.Unmarshal(payload, m); err != nil {
		return "", nil, fmt.Errorf("%w: %s: %w", ErrMalformed, n.name, err)
	}
	return signer, payload, nil
}

func (n noun) openBytes(raw []byte) (PeerID, []byte, error) {
	if len(raw) > n.max {
		return "", nil, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrTooLarge, n.name, len(raw), n.max)
	}
	s := &sealed{noun: n}
	env, err := record.ConsumeTypedEnvelope(raw, s)
	switch {
	case errors.Is(err, record.ErrInvalidSignature):
		return "", nil, fmt.Errorf("%w: %s", ErrSignature, n.name)
	case err != nil:
		return "", nil, fmt.Errorf("%w: %s: %w", ErrMalformed, n.name, err)
	case string(env.PayloadType) != n.codec():
		return "", nil, fmt.Errorf("%w: payload type %.40q, want %q", ErrMalformed, env.PayloadType, n.codec())
	case env.PublicKey.Type() != crypto.Ed25519:
		return "", nil, fmt.Errorf("%w: %s is signed by a key that is not Ed25519", ErrSignature, n.name)
	}
	signer, err := peer.IDFromPublicKey(env.PublicKey)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %s: %w", ErrMalformed, n.name, err)
	}
	return signer, s.payload, nil
}

func (n noun) author(signer, speaksFor PeerID) error {
	if signer != speaksFor {
		return fmt.Errorf("%w: %s of %s is signed by %s", ErrAuthor, n.name, speaksFor, signer)
	}
	return nil
}

func bounds(noun, field string, format string, args ...any) error {
	return fmt.Errorf("%w: %s.%s %s", ErrBounds, noun, field, fmt.Sprintf(format, args...))
}
