package protocol

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// LabelOperator is the key of the label by which an operator names its own nodes: its value is free, its
// issuer is the operator's key (trust.md 1).
const LabelOperator = "operator"

// LabelResearch is the key of a node's own label by which it asks researchers, with the value ResearchNo, to leave it
// out of what they keep and publish (docs/research.md, Data policy).
const LabelResearch = "research"

// ResearchNo is the value of LabelResearch of a node that is to be left out.
const ResearchNo = "no"

// LabelTier is the key of the label that tells a measured bandwidth tier: low, medium, high or ultra (discovery.md 9).
const LabelTier = "net.tier"

// LabelPriceTier is the key of the label that tells the highest step of MB/s that a measured line reaches: 25, 50, 100, 200,
// 300, 400, 500 or 1000 (discovery.md 9, RNP-004).
const LabelPriceTier = "net.price-tier"

// LabelLocation is the key of the label by which an issuer vouches for a place: a region, country or subdivision.
const LabelLocation = "location"

// labelWords are the values of keys that jobs and prices ask for (discovery.md 9).
var labelWords = map[string][]string{
	"host.type": jobHostTypes, "compliance": jobCompliance, LabelTier: jobBandwidths,
	LabelPriceTier: {"25", "50", "100", "200", "300", "400", "500", "1000"},
}

// CheckLabel returns an error, naming what fits, when a key that has a meaning of its own is to get a value that nobody
// asks for. Other keys may have any value.
func CheckLabel(key, value string) error {
	if words, ok := labelWords[key]; ok && !slices.Contains(words, value) {
		return fmt.Errorf("%s is %q, want %s", key, value, strings.Join(words, ", "))
	}
	if key == LabelLocation {
		if _, err := ParsePlace(value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// Bounds of a label's texts, in bytes (discovery.md 2).
const (
	maxLabelKey   = 32
	maxLabelValue = 64
)

// SignLabel makes a label about subject, signed by the issuer's key over ("gridbeam/label/v1", subject, key,
// value, expires), each with its length (discovery.md 2).
func SignLabel(issuer crypto.PrivKey, subject PeerID, key, value string, expires time.Time) (*pb.Label, error) {
	id, err := peer.IDFromPrivateKey(issuer)
	if err != nil {
		return nil, fmt.Errorf("deriving the issuer's peer ID: %w", err)
	}
	if err := signsFor("label", issuer, id); err != nil {
		return nil, err
	}
	if key == "" || len(key) > maxLabelKey || len(value) > maxLabelValue {
		return nil, bounds("label", "key", "%.40q has %d bytes with a value of %d, want 1..%d and at most %d", key, len(key), len(value), maxLabelKey, maxLabelValue)
	}
	l := &pb.Label{Key: key, Value: value, Issuer: []byte(id), Expires: expires.UnixMilli()}
	if l.Signature, err = issuer.Sign(labelSigned(l, subject)); err != nil {
		return nil, fmt.Errorf("signing a label: %w", err)
	}
	return l, nil
}

// VerifyLabel returns who has signed a label about subject; false when it is the subject's own claim, has
// expired, is out of bounds, or the signature is not good.
func VerifyLabel(l *pb.Label, subject PeerID, now time.Time) (issuer PeerID, ok bool) {
	id, err := peerID("label", l.GetIssuer())
	switch {
	case err != nil, id == subject, l.GetExpires() <= now.UnixMilli():
		return "", false
	case len(l.GetKey()) > maxLabelKey || len(l.GetValue()) > maxLabelValue || len(l.GetSignature()) != ed25519.SignatureSize:
		return "", false
	case !ed25519.Verify(ed25519.PublicKey(id[len(ed25519ID):]), labelSigned(l, subject), l.GetSignature()):
		return "", false
	}
	return id, true
}

// labelPrefix begins the text of a signed label.
const labelPrefix = "gridbeam-label:"

// LabelText returns a signed label as the text that its subject puts into its configuration.
func LabelText(l *pb.Label) (string, error) {
	raw, err := marshal(l)
	if err != nil {
		return "", err
	}
	return labelPrefix + base64.RawURLEncoding.EncodeToString(raw), nil
}

// ParseLabel reads a label of subject's configuration: the text of a signed label, or key=value, which is subject's own
// claim. It returns ErrMalformed, ErrBounds, and ErrSignature for a signed label that is not about subject, has expired or
// is not good.
func ParseLabel(text string, subject PeerID, now time.Time) (*pb.Label, error) {
	encoded, signed := strings.CutPrefix(text, labelPrefix)
	if !signed {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("%w: label %.80q: want key=value, or the text that gridbeam network label prints", ErrMalformed, text)
		}
		if len(key) > maxLabelKey || len(value) > maxLabelValue {
			return nil, bounds("label", "key", "%.80q has a key of %d bytes and a value of %d, at most %d and %d", text, len(key), len(value), maxLabelKey, maxLabelValue)
		}
		if key == LabelOperator {
			return nil, fmt.Errorf("%w: label %.80q: %s is signed by an operator's key, nobody claims it", ErrMalformed, text, LabelOperator)
		}
		return &pb.Label{Key: key, Value: value}, nil
	}
	l := &pb.Label{}
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err == nil {
		err = proto.Unmarshal(raw, l)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: label %.40q…: %w", ErrMalformed, text, err)
	}
	if until := time.UnixMilli(l.GetExpires()); !until.After(now) {
		return nil, fmt.Errorf("%w: the label %.32s=%.64s has expired on %s; ask its issuer for a new one", ErrSignature, l.GetKey(), l.GetValue(), until.UTC().Format(time.DateOnly))
	}
	if _, ok := VerifyLabel(l, subject, now); !ok {
		return nil, fmt.Errorf("%w: the label %.32s=%.64s is not about %s", ErrSignature, l.GetKey(), l.GetValue(), subject)
	}
	return l, nil
}

func labelSigned(l *pb.Label, subject PeerID) []byte {
	b := protowire.AppendString(nil, "gridbeam/label/v1")
	b = protowire.AppendString(b, string(subject))
	b = protowire.AppendString(b, l.GetKey())
	b = protowire.AppendString(b, l.GetValue())
	return binary.BigEndian.AppendUint64(b, uint64(l.GetExpires()))
}
