package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Errors of network files and invitations.
var (
	// ErrNetwork means that a network file is not signed by enough of its roots, or is no successor.
	ErrNetwork = errors.New("protocol: network file cannot be believed")
	// ErrInvitation means that a text is no invitation, or one that has expired.
	ErrInvitation = errors.New("protocol: not a valid invitation")
)

// InvitationPrefix begins the text of every invitation.
const InvitationPrefix = "gridbeam:"

const (
	maxRoots      = 16
	maxBootstrap  = 16
	maxInvitation = 16 << 10
)

// NetworkFile names a network and who may vouch in it (trust.md 1).
type NetworkFile struct {
	// ID is the first 16 bytes of SHA-256 over version 1.
	ID NetworkID
	// Version grows by one with each change.
	Version uint32
	// Name is for people.
	Name string
	// Roots may issue grants; Threshold of them sign the file.
	Roots []PeerID
	// Threshold is how many roots have to sign.
	Threshold uint32
	// Bootstrap are peers to join by.
	Bootstrap []multiaddr.Multiaddr
	// Admission is "open" or "granted".
	Admission string
	// Created is when version 1 was made.
	Created time.Time

	raw []byte // as signed, with its signatures
}

// NewNetwork makes version 1 of a network with one root, signed by it.
func NewNetwork(name string, root crypto.PrivKey, bootstrap []multiaddr.Multiaddr, now time.Time) (NetworkFile, error) {
	id, err := peer.IDFromPrivateKey(root)
	if err != nil {
		return NetworkFile{}, fmt.Errorf("deriving the root's peer ID: %w", err)
	}
	n := NetworkFile{Version: 1, Name: name, Roots: []PeerID{id}, Threshold: 1, Bootstrap: bootstrap, Admission: "open", Created: now}
	if err := n.Sign(root); err != nil {
		return NetworkFile{}, err
	}
	return ParseNetworkFile(n.raw)
}

func (n *NetworkFile) toPB() *pb.NetworkFile {
	m := &pb.NetworkFile{Format: 1, Version: n.Version, Name: n.Name, Threshold: n.Threshold, Admission: n.Admission, Created: n.Created.UnixMilli()}
	if n.Version > 1 {
		m.Id = n.ID[:]
	}
	for _, r := range n.Roots {
		m.Roots = append(m.Roots, []byte(r))
	}
	for _, a := range n.Bootstrap {
		m.Bootstrap = append(m.Bootstrap, a.String())
	}
	return m
}

// Sign encodes the file and signs it with one root's key, replacing earlier signatures.
func (n *NetworkFile) Sign(root crypto.PrivKey) error {
	payload, err := marshal(n.toPB())
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(root)
	if err != nil {
		return fmt.Errorf("deriving the root's peer ID: %w", err)
	}
	sig, err := root.Sign(networkSigned(payload))
	if err != nil {
		return fmt.Errorf("signing the network file: %w", err)
	}
	n.raw, err = marshal(&pb.SignedNetworkFile{Payload: payload, Signatures: []*pb.RootSignature{{Root: []byte(id), Signature: sig}}})
	return err
}

// networkSigned is what a root signs: domain and payload, each with its length.
func networkSigned(payload []byte) []byte {
	b := protowire.AppendBytes(nil, []byte(nounNetworkFile.domain()))
	return protowire.AppendBytes(b, payload)
}

// Bytes returns the signed file.
func (n *NetworkFile) Bytes() []byte { return bytes.Clone(n.raw) }

// ParseNetworkFile verifies a signed network file: the threshold of its own roots has signed it.
func ParseNetworkFile(raw []byte) (n NetworkFile, err error) {
	if len(raw) > nounNetworkFile.max {
		return n, fmt.Errorf("%w: network file of %d bytes, at most %d", ErrTooLarge, len(raw), nounNetworkFile.max)
	}
	s, m := &pb.SignedNetworkFile{}, &pb.NetworkFile{}
	if err := unmarshal("network file", raw, s); err != nil {
		return n, err
	}
	if err := unmarshal("network file", s.GetPayload(), m); err != nil {
		return n, err
	}
	n = NetworkFile{
		Version: m.GetVersion(), Name: m.GetName(), Threshold: m.GetThreshold(), Admission: m.GetAdmission(), Created: time.UnixMilli(m.GetCreated()), raw: bytes.Clone(raw),
	}
	switch {
	case m.GetFormat() != 1:
		return n, bounds("network file", "format", "is %d, want 1", m.GetFormat())
	case n.Version == 0:
		return n, bounds("network file", "version", "is 0")
	case len(n.Name) > maxName:
		return n, bounds("network file", "name", "has %d bytes, at most %d", len(n.Name), maxName)
	case len(m.GetRoots()) == 0 || len(m.GetRoots()) > maxRoots:
		return n, bounds("network file", "roots", "has %d entries, want 1..%d", len(m.GetRoots()), maxRoots)
	case n.Threshold == 0 || int(n.Threshold) > len(m.GetRoots()):
		return n, bounds("network file", "threshold", "is %d of %d roots", n.Threshold, len(m.GetRoots()))
	case len(m.GetBootstrap()) > maxBootstrap:
		return n, bounds("network file", "bootstrap", "has %d entries, at most %d", len(m.GetBootstrap()), maxBootstrap)
	case n.Admission != "open" && n.Admission != "granted":
		return n, bounds("network file", "admission", "is %.20q, want open or granted", n.Admission)
	}
	if n.Version == 1 {
		sum := sha256.Sum256(s.GetPayload())
		n.ID = NetworkID(sum[:16])
	} else if n.ID, err = id16("network", m.GetId()); err != nil {
		return n, err
	}
	for _, b := range m.GetRoots() {
		r, err := peerID("root", b)
		if err != nil {
			return n, err
		}
		if slices.Contains(n.Roots, r) {
			return n, bounds("network file", "roots", "names %s twice", r)
		}
		n.Roots = append(n.Roots, r)
	}
	for _, t := range m.GetBootstrap() {
		a, err := multiaddr.NewMultiaddr(t)
		if err != nil {
			return n, fmt.Errorf("%w: network file.bootstrap %.80q: %w", ErrBounds, t, err)
		}
		n.Bootstrap = append(n.Bootstrap, a)
	}
	return n, n.verify(s)
}

func (n *NetworkFile) verify(s *pb.SignedNetworkFile) error {
	signed := networkSigned(s.GetPayload())
	good := map[PeerID]bool{}
	for i, sig := range s.GetSignatures() {
		if i >= maxRoots {
			break
		}
		id, err := peerID("root", sig.GetRoot())
		if err != nil || !slices.Contains(n.Roots, id) {
			continue
		}
		key, err := id.ExtractPublicKey()
		if err != nil || key.Type() != crypto.Ed25519 {
			continue
		}
		if ok, err := key.Verify(signed, sig.GetSignature()); err == nil && ok {
			good[id] = true
		}
	}
	if len(good) < int(n.Threshold) {
		return fmt.Errorf("%w: %d of %d needed root signatures are good", ErrNetwork, len(good), n.Threshold)
	}
	return nil
}

// IsRoot says whether a peer may issue first grants.
func (n *NetworkFile) IsRoot(id PeerID) bool { return slices.Contains(n.Roots, id) }

// Invitation lets a node join a network: the network file and peers to join by (trust.md 1).
type Invitation struct {
	// Network is whom it trusts.
	Network NetworkFile
	// Bootstrap are 1 to 4 peers to join by.
	Bootstrap []multiaddr.Multiaddr
	// Expires is when it stops being accepted; zero is never.
	Expires time.Time
}

// String returns the text that is passed on: "gridbeam:" and base64url.
func (i *Invitation) String() string {
	m := &pb.Invitation{Format: 1, Network: i.Network.raw}
	for _, a := range i.Bootstrap[:min(4, len(i.Bootstrap))] {
		m.Bootstrap = append(m.Bootstrap, a.String())
	}
	if !i.Expires.IsZero() {
		m.Expires = i.Expires.UnixMilli()
	}
	b, err := proto.Marshal(m)
	if err != nil { // cannot be: every text in it is ASCII
		return InvitationPrefix
	}
	return InvitationPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseInvitation reads the text of an invitation and verifies the network file in it.
func ParseInvitation(text string, now time.Time) (i Invitation, err error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), InvitationPrefix)
	if !ok || len(rest) > maxInvitation {
		return i, fmt.Errorf("%w: it has to begin with %s and have at most %d letters", ErrInvitation, InvitationPrefix, maxInvitation)
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil {
		return i, fmt.Errorf("%w: it was cut short or altered on the way (%w); copy the whole line again", ErrInvitation, err)
	}
	m := &pb.Invitation{}
	if err := unmarshal("invitation", b, m); err != nil {
		return i, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if m.GetFormat() != 1 || len(m.GetBootstrap()) == 0 || len(m.GetBootstrap()) > 4 {
		return i, fmt.Errorf("%w: format %d with %d addresses, want 1 with 1..4", ErrInvitation, m.GetFormat(), len(m.GetBootstrap()))
	}
	if i.Network, err = ParseNetworkFile(m.GetNetwork()); err != nil {
		return i, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	for _, t := range m.GetBootstrap() {
		a, err := multiaddr.NewMultiaddr(t)
		if err != nil {
			return i, fmt.Errorf("%w: address %.80q: %w", ErrInvitation, t, err)
		}
		i.Bootstrap = append(i.Bootstrap, a)
	}
	if m.GetExpires() != 0 {
		i.Expires = time.UnixMilli(m.GetExpires())
		if !now.Before(i.Expires) {
			return i, fmt.Errorf("%w: it expired at %s; ask for a new one", ErrInvitation, i.Expires.UTC().Format(time.RFC3339))
		}
	}
	return i, nil
}

// LabelOperator is the key of the label by which an operator names its own nodes: its value is free, its
// issuer is the operator's key (trust.md 1).
const LabelOperator = "operator"

// SignLabel makes a label about subject, signed by the issuer's key over ("gridbeam/label/v1", subject, key,
// value, expires), each with its length (discovery.md 2).
func SignLabel(issuer crypto.PrivKey, subject PeerID, key, value string, expires time.Time) (*pb.Label, error) {
	id, err := peer.IDFromPrivateKey(issuer)
	if err != nil {
		return nil, fmt.Errorf("deriving the issuer's peer ID: %w", err)
	}
	l := &pb.Label{Key: key, Value: value, Issuer: []byte(id), Expires: expires.UnixMilli()}
	if l.Signature, err = issuer.Sign(labelSigned(l, subject)); err != nil {
		return nil, fmt.Errorf("signing a label: %w", err)
	}
	return l, nil
}

// VerifyLabel returns who has signed a label about subject; false when it is the subject's own claim, has
// expired, or the signature is not good.
func VerifyLabel(l *pb.Label, subject PeerID, now time.Time) (issuer PeerID, ok bool) {
	if len(l.GetIssuer()) == 0 || l.GetExpires() <= now.UnixMilli() {
		return "", false
	}
	id, err := peerID("issuer", l.GetIssuer())
	if err != nil {
		return "", false
	}
	key, err := id.ExtractPublicKey()
	if err != nil || key.Type() != crypto.Ed25519 {
		return "", false
	}
	good, err := key.Verify(labelSigned(l, subject), l.GetSignature())
	return id, err == nil && good
}

func labelSigned(l *pb.Label, subject PeerID) []byte {
	b := protowire.AppendBytes(nil, []byte("gridbeam/label/v1"))
	b = protowire.AppendBytes(b, []byte(subject))
	b = protowire.AppendBytes(b, []byte(l.GetKey()))
	b = protowire.AppendBytes(b, []byte(l.GetValue()))
	return binary.BigEndian.AppendUint64(b, uint64(l.GetExpires()))
}
