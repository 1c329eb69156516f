package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

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
	maxRoots          = 16
	maxBootstrap      = 16
	maxInvited        = 4 // addresses in an invitation
	maxAddrText       = 512
	maxInvitation     = 32 << 10 // letters; a full network file has 16 KiB
	invitationSumSize = 4
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
	// Landmarks are the peers that members measure their round trips to, at most MaxLandmarks; none are the roots
	// (LandmarkList). They stand beside the file, signed by the same roots (SetLandmarks, SignLandmarks), so that a
	// change of them is no new version.
	Landmarks []Landmark
	// LandmarkSeq grows with each change of them; 0 is that none were ever named.
	LandmarkSeq uint32

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

// Validate names the first field out of bounds, with ErrBounds or ErrBadID. It looks at no signature.
func (n *NetworkFile) Validate() error {
	switch {
	case n.Version == 0:
		return bounds("network file", "version", "is 0")
	case n.Version > 1 && n.ID == NetworkID{}:
		return bounds("network file", "id", "is missing in version %d", n.Version)
	case len(n.Name) > maxName || !printable(n.Name):
		return bounds("network file", "name", "has %d bytes or cannot be printed, at most %d", len(n.Name), maxName)
	case len(n.Roots) == 0 || len(n.Roots) > maxRoots:
		return bounds("network file", "roots", "has %d entries, want 1..%d", len(n.Roots), maxRoots)
	case n.Threshold == 0 || int64(n.Threshold) > int64(len(n.Roots)):
		return bounds("network file", "threshold", "is %d of %d roots", n.Threshold, len(n.Roots))
	case len(n.Bootstrap) > maxBootstrap:
		return bounds("network file", "bootstrap", "has %d entries, at most %d", len(n.Bootstrap), maxBootstrap)
	case n.Admission != "open" && n.Admission != "granted":
		return bounds("network file", "admission", "is %.20q, want open or granted", n.Admission)
	}
	for i, r := range n.Roots {
		if slices.Contains(n.Roots[:i], r) {
			return bounds("network file", "roots", "names %s twice", r)
		}
	}
	if err := validMS("network file", "created", n.Created, false); err != nil {
		return err
	}
	return validPeers("network file", n.Roots...)
}

func (n *NetworkFile) toPB() *pb.NetworkFile {
	m := &pb.NetworkFile{Format: 1, Version: n.Version, Name: n.Name, Threshold: n.Threshold, Admission: n.Admission, Created: unixMS(n.Created)}
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

// Sign adds a root's signature to the file, or makes its first. Signatures over other content, from before a
// field was changed, go; so does an older one of the same root. A root of the version before may sign too, which
// Succeeds asks for. The file is whole once its Threshold of roots has signed, see ParseNetworkFile.
func (n *NetworkFile) Sign(root crypto.PrivKey) error {
	if err := n.Validate(); err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(root)
	if err != nil {
		return fmt.Errorf("deriving the root's peer ID: %w", err)
	}
	if err := signsFor("network file", root, id); err != nil {
		return err
	}
	if n.Version == 1 && !n.IsRoot(id) {
		return fmt.Errorf("%w: %s is no root of it", ErrAuthor, id)
	}
	payload, err := marshal(n.toPB())
	if err != nil {
		return err
	}
	sig, err := root.Sign(networkSigned(payload))
	if err != nil {
		return fmt.Errorf("signing the network file: %w", err)
	}
	if n.Version == 1 {
		n.ID = networkID(payload)
	}
	s, old := &pb.SignedNetworkFile{}, &pb.SignedNetworkFile{}
	if unmarshal("network file", n.raw, old) != nil {
		old = &pb.SignedNetworkFile{}
	}
	n.keepExtra(old, s, n.ID)
	if bytes.Equal(old.GetPayload(), payload) {
		s.Signatures = slices.DeleteFunc(old.GetSignatures(), func(x *pb.RootSignature) bool { return PeerID(x.GetRoot()) == id })
	}
	s.Payload, s.Signatures = payload, append(s.Signatures, &pb.RootSignature{Root: []byte(id), Signature: sig})
	if len(s.Signatures) > 2*maxRoots {
		return bounds("network file", "signatures", "has %d entries, at most %d", len(s.Signatures), 2*maxRoots)
	}
	return n.keep(s)
}

// keep takes a signed form over, if it is small enough to travel.
func (n *NetworkFile) keep(s *pb.SignedNetworkFile) error {
	raw, err := marshal(s)
	if err != nil {
		return err
	}
	if len(raw) > nounNetworkFile.max {
		return fmt.Errorf("%w: network file of %d bytes, at most %d", ErrTooLarge, len(raw), nounNetworkFile.max)
	}
	n.raw = raw
	return nil
}

func networkID(version1 []byte) NetworkID {
	sum := sha256.Sum256(version1)
	return NetworkID(sum[:16])
}

// networkSigned is what a root signs: domain and payload, each with its length.
func networkSigned(payload []byte) []byte {
	b := protowire.AppendString(nil, nounNetworkFile.domain())
	return protowire.AppendBytes(b, payload)
}

// Bytes returns the signed file.
func (n *NetworkFile) Bytes() []byte { return bytes.Clone(n.raw) }

// ParseNetworkFile verifies a signed network file: the threshold of its own roots has signed it. That makes a
// version 1 the network that its ID names. A later version proves by itself only that its roots stand behind it:
// who knows the version before has to ask Succeeds too.
func ParseNetworkFile(raw []byte) (NetworkFile, error) {
	n, s, err := readNetworkFile(raw)
	if err != nil {
		return NetworkFile{}, err
	}
	if err := s.signedBy(n.Roots, n.Threshold); err != nil {
		return NetworkFile{}, err
	}
	if len(s.GetExtra()) > 0 {
		if err := enough(extraSigned(s.GetExtra()), s.GetExtraSignatures(), n.Roots, n.Threshold); err != nil {
			return NetworkFile{}, fmt.Errorf("its landmarks: %w", err)
		}
	}
	return n, nil
}

// ReadNetworkFile reads a network file that not all roots have signed yet, so that the next one can Sign it.
// It believes nothing.
func ReadNetworkFile(raw []byte) (NetworkFile, error) {
	n, _, err := readNetworkFile(raw)
	if err != nil {
		return NetworkFile{}, err
	}
	return n, nil
}

// signedFile is a network file's payload and who claims to have signed it.
type signedFile struct{ *pb.SignedNetworkFile }

func readNetworkFile(raw []byte) (n NetworkFile, s signedFile, err error) {
	if len(raw) > nounNetworkFile.max {
		return n, s, fmt.Errorf("%w: network file of %d bytes, at most %d", ErrTooLarge, len(raw), nounNetworkFile.max)
	}
	s, m := signedFile{&pb.SignedNetworkFile{}}, &pb.NetworkFile{}
	if err := shapeSignedFile.check("network file", raw); err != nil {
		return n, s, err
	}
	if err := unmarshal("network file", raw, s); err != nil {
		return n, s, err
	}
	if err := nounNetworkFile.decode(s.GetPayload(), m); err != nil {
		return n, s, err
	}
	if m.GetFormat() != 1 {
		return n, s, bounds("network file", "format", "is %d, want 1", m.GetFormat())
	}
	n = NetworkFile{
		Version: m.GetVersion(), Name: m.GetName(), Threshold: m.GetThreshold(), Admission: m.GetAdmission(), Created: fromMS(m.GetCreated()), raw: bytes.Clone(raw),
	}
	if n.Version == 1 {
		n.ID = networkID(s.GetPayload())
	} else if n.ID, err = id16("network", m.GetId()); err != nil {
		return n, s, err
	}
	for _, b := range m.GetRoots() {
		n.Roots = append(n.Roots, PeerID(b))
	}
	if n.Bootstrap, err = addrsOf(m.GetBootstrap()); err != nil {
		return n, s, fmt.Errorf("network file.bootstrap: %w", err)
	}
	if err := n.Validate(); err != nil {
		return n, s, err
	}
	if !canonical(n.toPB(), s.GetPayload()) {
		return n, s, fmt.Errorf("%w: network file is not in canonical form or has unknown fields", ErrMalformed)
	}
	if n.LandmarkSeq, n.Landmarks, err = n.readExtra(s.GetExtra()); err != nil {
		return n, s, err
	}
	return n, s, nil
}

func addrsOf(texts []string) (out []multiaddr.Multiaddr, err error) {
	for _, t := range texts {
		if len(t) > maxAddrText {
			return nil, fmt.Errorf("%w: an address of %d bytes, at most %d", ErrBounds, len(t), maxAddrText)
		}
		a, err := multiaddr.NewMultiaddr(t)
		if err != nil {
			return nil, fmt.Errorf("%w: %.80q is no multiaddress: %w", ErrBounds, t, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// signedBy returns ErrNetwork unless k of the roots have signed the payload.
func (s signedFile) signedBy(roots []PeerID, k uint32) error {
	return enough(networkSigned(s.GetPayload()), s.GetSignatures(), roots, k)
}

// enough returns ErrNetwork unless k of the roots have signed these bytes.
func enough(signed []byte, signatures []*pb.RootSignature, roots []PeerID, k uint32) error {
	good := map[PeerID]bool{}
	for _, sig := range signatures {
		id := PeerID(sig.GetRoot())
		if !slices.Contains(roots, id) || validPeers("network file", id) != nil || len(sig.GetSignature()) != ed25519.SignatureSize {
			continue
		}
		if ed25519.Verify(ed25519.PublicKey(id[len(ed25519ID):]), signed, sig.GetSignature()) {
			good[id] = true
		}
	}
	if len(good) < int(k) {
		return fmt.Errorf("%w: %d of %d needed root signatures are good", ErrNetwork, len(good), k)
	}
	return nil
}

// Succeeds returns ErrNetwork unless this file, which ParseNetworkFile has verified, is the version after prev
// of the same network and has the signatures of prev's threshold of prev's roots too (trust.md 1).
func (n *NetworkFile) Succeeds(prev *NetworkFile) error {
	switch {
	case n.ID != prev.ID:
		return fmt.Errorf("%w: it is of network %s, not %s", ErrNetwork, n.ID, prev.ID)
	case uint64(n.Version) != uint64(prev.Version)+1:
		return fmt.Errorf("%w: version %d does not follow version %d", ErrNetwork, n.Version, prev.Version)
	}
	_, s, err := readNetworkFile(n.raw)
	if err != nil {
		return err
	}
	if err := s.signedBy(prev.Roots, prev.Threshold); err != nil {
		return fmt.Errorf("the roots of version %d: %w", prev.Version, err)
	}
	return nil
}

// Same says whether two files say the same, whoever has signed them.
func (n *NetworkFile) Same(other *NetworkFile) bool {
	a, errA := marshal(n.toPB())
	b, errB := marshal(other.toPB())
	return errA == nil && errB == nil && n.ID == other.ID && bytes.Equal(a, b)
}

// IsRoot says whether a peer may issue first grants.
func (n *NetworkFile) IsRoot(id PeerID) bool { return slices.Contains(n.Roots, id) }

// Invitation lets a node join a network: the network file and peers to join by (trust.md 1). It is not signed:
// its network file is, and an address only says where to ask.
type Invitation struct {
	// Network is whom it trusts.
	Network NetworkFile
	// Bootstrap are 1 to 4 peers to join by.
	Bootstrap []multiaddr.Multiaddr
	// Expires is when it stops being accepted; zero is never.
	Expires time.Time
	// Local says that the network is one machine or LAN: members do not ask others whether they can be reached.
	Local bool
}

// String returns the text that is passed on: "gridbeam:" and base64url of the message and the first 4 bytes of
// its SHA-256, which tell a text that was cut short. Addresses after the fourth are left out.
func (i *Invitation) String() string {
	m := &pb.Invitation{Format: 1, Network: i.Network.raw, Expires: unixMS(i.Expires), Local: i.Local}
	for _, a := range i.Bootstrap[:min(maxInvited, len(i.Bootstrap))] {
		m.Bootstrap = append(m.Bootstrap, a.String())
	}
	b, err := marshal(m)
	if err != nil { // cannot be: every text in it is ASCII
		return InvitationPrefix
	}
	return InvitationPrefix + base64.RawURLEncoding.EncodeToString(append(b, checksum(b)...))
}

func checksum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:invitationSumSize]
}

// ParseInvitation reads the text of an invitation and verifies the network file in it. White space inside, from
// a wrapped line, does no harm. What it returns wraps ErrInvitation and says what to do.
func ParseInvitation(text string, now time.Time) (Invitation, error) {
	if len(text) > 2*maxInvitation {
		return Invitation{}, fmt.Errorf("%w: it has %d letters, at most %d", ErrInvitation, len(text), maxInvitation)
	}
	rest, ok := strings.CutPrefix(strings.Join(strings.Fields(text), ""), InvitationPrefix)
	if !ok || len(rest) > maxInvitation {
		return Invitation{}, fmt.Errorf("%w: it has to begin with %s and have at most %d letters", ErrInvitation, InvitationPrefix, maxInvitation)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if body := len(b) - invitationSumSize; err == nil && body > 0 {
		if bytes.Equal(checksum(b[:body]), b[body:]) {
			return invitation(b[:body], now)
		}
	}
	return Invitation{}, fmt.Errorf("%w: it was cut short or altered on the way; copy the whole line again", ErrInvitation)
}

func invitation(b []byte, now time.Time) (i Invitation, err error) {
	m := &pb.Invitation{}
	if err := shapeInvitation.check("invitation", b); err != nil {
		return Invitation{}, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if err := unmarshal("invitation", b, m); err != nil {
		return Invitation{}, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if m.GetFormat() != 1 {
		return Invitation{}, fmt.Errorf("%w: it has format %d, this gridbeam reads 1; a newer one may read it", ErrInvitation, m.GetFormat())
	}
	if i.Network, err = ParseNetworkFile(m.GetNetwork()); err != nil {
		return Invitation{}, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if i.Bootstrap, err = addrsOf(m.GetBootstrap()); err != nil {
		return Invitation{}, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if len(i.Bootstrap) == 0 {
		return Invitation{}, fmt.Errorf("%w: it names no address to join by; ask for a new one", ErrInvitation)
	}
	i.Local = m.GetLocal()
	i.Expires = fromMS(m.GetExpires())
	if err := validMS("invitation", "expires", i.Expires, false); err != nil {
		return Invitation{}, fmt.Errorf("%w: %w", ErrInvitation, err)
	}
	if !i.Expires.IsZero() && !now.Before(i.Expires) {
		return Invitation{}, fmt.Errorf("%w: it expired at %s; ask for a new one", ErrInvitation, i.Expires.UTC().Format(time.RFC3339))
	}
	return i, nil
}
