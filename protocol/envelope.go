package protocol

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Errors of opening a signed noun. What wraps them names the noun and the field.
var (
	// ErrTooLarge means more bytes than the noun may have.
	ErrTooLarge = errors.New("protocol: too large")
	// ErrMalformed means bytes that are no such noun.
	ErrMalformed = errors.New("protocol: malformed")
	// ErrSignature means that the signature is not good under this noun's domain, or of a key that is not
	// Ed25519.
	ErrSignature = errors.New("protocol: bad signature")
	// ErrAuthor means that somebody other than the peer it speaks for has signed it.
	ErrAuthor = errors.New("protocol: not signed by the peer that it speaks for")
	// ErrBounds means that a field is outside of what it may hold.
	ErrBounds = errors.New("protocol: out of bounds")
)

// noun is a kind of signed statement: its domain and payload type keep a signature over one noun from passing
// for another (architecture.md 4.8).
type noun struct {
	name  string
	max   int   // bytes with the envelope
	shape shape // how often what may come inside
}

// The signed nouns. Lease grants leave room in a frame for the ClaimReply around them.
var (
	nounCapability   = noun{"capability", MaxCapability, shapeCapability}
	nounAvailability = noun{"availability", MaxAvailability, shapeAvailability}
	nounReservation  = noun{"call", 256 << 10, shapeReservation}
	nounOffer        = noun{"offer", 1 << 10, nil}
	nounAnnouncement = noun{"announcement", MaxGossip, shapeAnnouncement}
	nounLease        = noun{"lease", MaxFrame - 8<<10, shapeLeaseGrants}
	nounResult       = noun{"result", 512 << 10, shapeResults}
	nounReceipt      = noun{"receipt", MaxReceipt, shapeReceipt}
	nounCounterSign  = noun{"countersign", MaxReceipt, shapeCounterSign}
	nounGrant        = noun{"grant", MaxGrantLink, shapeGrant}
	nounAttestation  = noun{"attestation", 2 << 10, shapeAttestation}
	nounNetworkFile  = noun{"networkfile", 16 << 10, shapeNetworkFile} // signed by its roots, without an envelope
)

func (n noun) domain() string { return "gridbeam/" + n.name + "/v1" }
func (n noun) codec() string  { return "/gridbeam/" + n.name }

// sealed is a payload on its way into an envelope.
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

// seal signs a message of author in an envelope of the noun.
func (n noun) seal(key crypto.PrivKey, author PeerID, m proto.Message) ([]byte, error) {
	payload, err := marshal(m)
	if err != nil {
		return nil, err
	}
	return n.sealBytes(key, author, payload)
}

// sealBytes signs a payload of author. It returns ErrSignature for a key that is not Ed25519, ErrAuthor for
// somebody else's, ErrTooLarge for too many bytes and ErrBounds for too many entries: what it returns opens.
func (n noun) sealBytes(key crypto.PrivKey, author PeerID, payload []byte) ([]byte, error) {
	if err := signsFor(n.name, key, author); err != nil {
		return nil, err
	}
	if err := n.shape.check(n.name, payload); err != nil {
		return nil, err
	}
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

// signsFor refuses every key but the author's own Ed25519 key.
func signsFor(noun string, key crypto.PrivKey, author PeerID) error {
	if key.Type() != crypto.Ed25519 {
		return fmt.Errorf("%w: %s would be signed by a key that is not Ed25519", ErrSignature, noun)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return fmt.Errorf("deriving the peer ID of the key that signs %s: %w", noun, err)
	}
	if id != author {
		return fmt.Errorf("%w: %s of %s would be signed by %s", ErrAuthor, noun, author, id)
	}
	return nil
}

// open checks size, form, payload type, key type, signature and the number of entries, and decodes the payload
// into m. It returns who has signed and the payload's bytes as they were signed.
func (n noun) open(raw []byte, m proto.Message) (signer PeerID, payload []byte, err error) {
	e, err := n.parse(raw)
	if err != nil {
		return "", nil, err
	}
	if err := n.verify(&e); err != nil {
		return "", nil, err
	}
	return e.signer, e.payload, n.decode(e.payload, m)
}

// decode reads a payload into m, without looking at signatures.
func (n noun) decode(payload []byte, m proto.Message) error {
	if err := n.shape.check(n.name, payload); err != nil {
		return err
	}
	return unmarshal(n.name, payload, m)
}

// envelope is a core/record envelope, taken apart. Its slices are parts of the bytes that it came in.
type envelope struct {
	signer             PeerID
	payload, signature []byte
}

// The fields of a core/record envelope and the bytes with which each Ed25519 public key in it begins: key type
// 1, then 32 bytes of key. A peer ID of such a key is that same encoding behind an identity multihash's head.
const (
	envKey, envType, envPayload, envSignature = 1, 2, 3, 5

	ed25519Head = "\x08\x01\x12\x20"
	ed25519ID   = "\x00\x24" + ed25519Head
)

// parse takes an envelope of the noun apart and verifies nothing but its form. There is one form for each
// signed payload: its four fields in order and once each, in the shortest encoding, and nothing behind them.
// So nobody but the signer can make other bytes of it, and what is named by the hash of its envelope stays
// what it is.
func (n noun) parse(raw []byte) (e envelope, err error) {
	if len(raw) > n.max {
		return e, fmt.Errorf("%w: %s of %d bytes, at most %d", ErrTooLarge, n.name, len(raw), n.max)
	}
	var at [envSignature + 1][]byte
	rest := raw
	for _, num := range []protowire.Number{envKey, envType, envPayload, envSignature} {
		if at[num], rest = takeBytes(num, rest); len(at[num]) == 0 {
			return e, fmt.Errorf("%w: %s is in no canonical envelope: field %d", ErrMalformed, n.name, num)
		}
	}
	switch key := at[envKey]; {
	case len(rest) > 0:
		return e, fmt.Errorf("%w: %s has %d bytes behind its envelope", ErrMalformed, n.name, len(rest))
	case string(at[envType]) != n.codec():
		return e, fmt.Errorf("%w: payload type %.40q, want %q", ErrMalformed, at[envType], n.codec())
	case len(key) != len(ed25519Head)+ed25519.PublicKeySize || string(key[:len(ed25519Head)]) != ed25519Head:
		return e, fmt.Errorf("%w: %s is signed by a key that is not Ed25519", ErrSignature, n.name)
	}
	return envelope{PeerID(ed25519ID[:2] + string(at[envKey])), at[envPayload], at[envSignature]}, nil
}

// takeBytes cuts the bytes of field num off the head of b; nil when it does not begin with that field in its
// shortest encoding.
func takeBytes(num protowire.Number, b []byte) (field, rest []byte) {
	if len(b) == 0 || b[0] != byte(num<<3)|byte(protowire.BytesType) {
		return nil, nil
	}
	size, n := protowire.ConsumeVarint(b[1:])
	if n < 0 || n != protowire.SizeVarint(size) || size > uint64(len(b)-1-n) {
		return nil, nil
	}
	b = b[1+n:]
	return b[:size:size], b[size:]
}

// verify checks the signature over domain, payload type and payload, each with its length in front.
func (n noun) verify(e *envelope) error {
	signed := make([]byte, 0, len(e.payload)+96)
	signed = protowire.AppendString(signed, n.domain())
	signed = protowire.AppendString(signed, n.codec())
	signed = protowire.AppendBytes(signed, e.payload)
	if len(e.signature) != ed25519.SignatureSize || !ed25519.Verify(ed25519.PublicKey(e.signer[len(ed25519ID):]), signed, e.signature) {
		return fmt.Errorf("%w: %s", ErrSignature, n.name)
	}
	return nil
}

func (n noun) author(signer, speaksFor PeerID) error {
	if signer != speaksFor {
		return fmt.Errorf("%w: %s of %s is signed by %s", ErrAuthor, n.name, speaksFor, signer)
	}
	return nil
}

// SignerOf names the peer whose key a capability record carries, unverified: a hint for whom to ask.
func SignerOf(raw []byte) (PeerID, error) {
	e, err := nounCapability.parse(raw)
	return e.signer, err
}

func bounds(noun, field string, format string, args ...any) error {
	return fmt.Errorf("%w: %s.%s %s", ErrBounds, noun, field, fmt.Sprintf(format, args...))
}

// canonical says whether again is the only encoding of what was read from payload.
func canonical(again proto.Message, payload []byte) bool {
	b, err := marshal(again)
	return err == nil && bytes.Equal(b, payload)
}
