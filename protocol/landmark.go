package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protowire"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// MaxLandmarks bounds the landmarks of a network, and the bytes of a record's landmark_rtt.
const MaxLandmarks = 32

// UnknownRTT is the byte of a landmark that did not answer.
const UnknownRTT = 255

// Landmark is a peer of a network whose round trips tell how near others are (discovery.md 7).
type Landmark struct {
	// Peer is who it is.
	Peer PeerID
	// Addr is where it is reached, without its peer ID at the end; nil where its record says so.
	Addr multiaddr.Multiaddr
	// Place is the country or subdivision where it stands, for which the network's roots vouch: it is an observer of
	// others' claims then. Zero is not told.
	Place Place
}

// String returns ADDRESS/p2p/ID, or ADDRESS/p2p/ID=PLACE.
func (l Landmark) String() string {
	text := "/p2p/" + l.Peer.String()
	if l.Addr != nil {
		text = l.Addr.String() + text
	}
	if !l.Place.IsZero() {
		text += "=" + l.Place.String()
	}
	return text
}

// ParseLandmark reads what String writes; it returns ErrBounds or ErrBadID, with what is wanted.
func ParseLandmark(text string) (Landmark, error) {
	addr, place := text, ""
	if i := bytes.LastIndexByte([]byte(text), '='); i >= 0 {
		addr, place = text[:i], text[i+1:]
	}
	return landmarkOf(addr, place)
}

func landmarkOf(addr, place string) (l Landmark, err error) {
	if len(addr) > maxAddrText {
		return l, bounds("landmark", "addr", "has %d bytes, at most %d", len(addr), maxAddrText)
	}
	a, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		return l, bounds("landmark", "addr", "%.80q is no multiaddress: %s", addr, err)
	}
	if l.Addr, l.Peer = peer.SplitAddr(a); l.Peer == "" {
		return l, bounds("landmark", "addr", "%.80q does not end in /p2p/ and a peer ID", addr)
	}
	if err := validPeers("landmark", l.Peer); err != nil {
		return l, err
	}
	if place == "" {
		return l, nil
	}
	l.Place, err = ParsePlace(place)
	switch {
	case err != nil:
		return l, fmt.Errorf("%w: landmark.place: %w", ErrBounds, err)
	case l.Place.Country == "":
		return l, bounds("landmark", "place", "is the region %s, want a country or subdivision", l.Place)
	}
	return l, nil
}

func validLandmarks(list []Landmark) error {
	if len(list) > MaxLandmarks {
		return bounds("network file", "landmarks", "has %d entries, at most %d", len(list), MaxLandmarks)
	}
	for i, l := range list {
		if err := validPeers("network file", l.Peer); err != nil {
			return err
		}
		if slices.ContainsFunc(list[:i], func(o Landmark) bool { return o.Peer == l.Peer }) {
			return bounds("network file", "landmarks", "names %s twice", l.Peer)
		}
	}
	return nil
}

// extra is what stands beside the file: see NetworkExtra in locality.proto.
func (n *NetworkFile) extra() *pb.NetworkExtra {
	m := &pb.NetworkExtra{Format: 1, Network: n.ID[:], Seq: n.LandmarkSeq}
	for _, l := range n.Landmarks {
		x := &pb.Landmark{Addr: Landmark{Peer: l.Peer, Addr: l.Addr}.String()}
		if !l.Place.IsZero() {
			x.Place = l.Place.String()
		}
		m.Landmarks = append(m.Landmarks, x)
	}
	return m
}

// extraSigned is what a root signs of it: domain and payload, each with its length.
func extraSigned(payload []byte) []byte {
	b := protowire.AppendString(nil, "gridbeam/networkextra/v1")
	return protowire.AppendBytes(b, payload)
}

// SetLandmarks names a network's landmarks anew, which its roots have to sign by SignLandmarks; none is said to have
// none. It returns ErrBounds or ErrBadID.
func (n *NetworkFile) SetLandmarks(list []Landmark) error {
	if err := validLandmarks(list); err != nil {
		return err
	}
	n.Landmarks, n.LandmarkSeq = slices.Clone(list), n.LandmarkSeq+1
	return nil
}

// SignLandmarks adds a root's signature over the landmarks; signatures over others go. Once Threshold of the roots
// have signed, ParseNetworkFile takes the file. It returns ErrAuthor for a key that is no root's, ErrNetwork for a file
// that is not signed itself, ErrBounds and ErrTooLarge.
func (n *NetworkFile) SignLandmarks(root crypto.PrivKey) error {
	id, err := peer.IDFromPrivateKey(root)
	if err != nil {
		return fmt.Errorf("deriving the root's peer ID: %w", err)
	}
	switch err := signsFor("network file", root, id); {
	case err != nil:
		return err
	case !n.IsRoot(id):
		return fmt.Errorf("%w: %s is no root of it", ErrAuthor, id)
	case n.LandmarkSeq == 0:
		return bounds("network file", "landmarks", "are not set")
	}
	if err := validLandmarks(n.Landmarks); err != nil {
		return err
	}
	s := &pb.SignedNetworkFile{}
	if err := unmarshal("network file", n.raw, s); err != nil || len(s.GetPayload()) == 0 {
		return fmt.Errorf("%w: sign the file before its landmarks", ErrNetwork)
	}
	if seq, list, err := n.readExtra(s.GetExtra()); err != nil || seq != n.LandmarkSeq || !sameLandmarks(list, n.Landmarks) {
		if s.Extra, err = marshal(n.extra()); err != nil {
			return err
		}
		s.ExtraSignatures = nil
	}
	sig, err := root.Sign(extraSigned(s.GetExtra()))
	if err != nil {
		return fmt.Errorf("signing the landmarks: %w", err)
	}
	s.ExtraSignatures = slices.DeleteFunc(s.GetExtraSignatures(), func(x *pb.RootSignature) bool { return PeerID(x.GetRoot()) == id })
	s.ExtraSignatures = append(s.ExtraSignatures, &pb.RootSignature{Root: []byte(id), Signature: sig})
	return n.keep(s)
}

// keepExtra takes over what an earlier form of the same network said beside its file.
func (n *NetworkFile) keepExtra(from, to *pb.SignedNetworkFile, id NetworkID) {
	if x := (&pb.NetworkExtra{}); unmarshal("network extra", from.GetExtra(), x) == nil && bytes.Equal(x.GetNetwork(), id[:]) {
		to.Extra, to.ExtraSignatures = from.GetExtra(), from.GetExtraSignatures()
		return
	}
	n.Landmarks, n.LandmarkSeq = nil, 0
}

func sameLandmarks(a, b []Landmark) bool {
	return slices.EqualFunc(a, b, func(x, y Landmark) bool { return x.String() == y.String() })
}

// readExtra reads what stands beside the file of network n.ID; nothing is there for empty bytes. Fields that it does
// not know are left out: they are signed all the same.
func (n *NetworkFile) readExtra(raw []byte) (seq uint32, list []Landmark, err error) {
	if len(raw) == 0 {
		return 0, nil, nil
	}
	m := &pb.NetworkExtra{}
	if err := shapeNetworkExtra.check("network file", raw); err != nil {
		return 0, nil, err
	}
	if err := unmarshal("network file", raw, m); err != nil {
		return 0, nil, err
	}
	switch {
	case m.GetFormat() != 1:
		return 0, nil, bounds("network file", "extra.format", "is %d, want 1", m.GetFormat())
	case !bytes.Equal(m.GetNetwork(), n.ID[:]):
		return 0, nil, fmt.Errorf("%w: its landmarks are of another network", ErrNetwork)
	case m.GetSeq() == 0:
		return 0, nil, bounds("network file", "extra.seq", "is 0")
	}
	for _, x := range m.GetLandmarks() {
		l, err := landmarkOf(x.GetAddr(), x.GetPlace())
		if err != nil {
			return 0, nil, err
		}
		list = append(list, l)
	}
	return m.GetSeq(), list, validLandmarks(list)
}

// Supersedes says whether a network file, which ParseNetworkFile has verified, takes the place of old: it is the next
// version of the network, or says the same with landmarks that were named later.
func (n *NetworkFile) Supersedes(old *NetworkFile) bool {
	return n.Succeeds(old) == nil || n.Same(old) && n.LandmarkSeq > old.LandmarkSeq
}

// LandmarkList returns the landmarks that the members of the network measure: those that it names, else its roots,
// in the order of their bytes, which in a network that a bridge made are that bridge.
func (n *NetworkFile) LandmarkList() []Landmark {
	if len(n.Landmarks) > 0 {
		return n.Landmarks
	}
	roots := slices.Clone(n.Roots)
	slices.Sort(roots)
	out := make([]Landmark, len(roots))
	for i, r := range roots {
		out[i].Peer = r
	}
	return out
}

// LandmarkEpoch names a list of landmarks: the first 4 bytes of SHA-256 over its peers in order, so that round
// trips to different lists are never compared.
func LandmarkEpoch(list []Landmark) uint32 {
	b := []byte("gridbeam/landmarks/1")
	for _, l := range list {
		b = protowire.AppendString(b, string(l.Peer))
	}
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint32(sum[:])
}

// RTTByte encodes a round trip as records hold it: round(16·log2(1+ms)), at most 254, which is 60 s. UnknownRTT
// stands for none.
func RTTByte(rtt time.Duration) byte {
	ms := max(0, float64(rtt)/float64(time.Millisecond))
	return byte(min(254, math.Round(16*math.Log2(1+ms))))
}

// rttMs is RTTByte's inverse in ms, +Inf for UnknownRTT.
var rttMs = func() (out [256]float64) {
	for b := range out {
		out[b] = math.Exp2(float64(b)/16) - 1
	}
	out[UnknownRTT] = math.Inf(1)
	return out
}()

// LandmarkRTT estimates the round trip in ms between two peers from their round trips to the same landmarks: the
// shortest way over one of them. It is NaN where no landmark answered both. As bytes are rounded, it is within 2.2 %
// (a factor of 2^(1/32)) and 0.05 ms of what that way takes.
func LandmarkRTT(a, b []byte) float64 {
	least := math.Inf(1)
	for i := range min(len(a), len(b)) {
		least = min(least, rttMs[a[i]]+rttMs[b[i]])
	}
	if math.IsInf(least, 1) {
		return math.NaN()
	}
	return least
}
