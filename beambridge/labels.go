package beambridge

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// mostLabels bounds the labels that are remembered; beyond, all are forgotten and verified again.
const mostLabels = 100_000

// labels verifies the labels of nodes and remembers which were good: every placement looks at the same ones, and a
// signature costs a hundred times what a look costs.
type labels struct {
	mu   sync.Mutex
	good map[[sha256.Size]byte]protocol.PeerID // issuer, by everything that a label says
}

// verify is protocol.VerifyLabel.
func (s *labels) verify(l *pb.Label, subject protocol.PeerID, now time.Time) (issuer protocol.PeerID, ok bool) {
	if l.GetExpires() <= now.UnixMilli() {
		return "", false
	}
	key := labelKey(l, subject)
	s.mu.Lock()
	issuer, ok = s.good[key]
	s.mu.Unlock()
	if ok {
		return issuer, true
	}
	if issuer, ok = protocol.VerifyLabel(l, subject, now); !ok {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good == nil || len(s.good) >= mostLabels {
		s.good = make(map[[sha256.Size]byte]protocol.PeerID)
	}
	s.good[key] = issuer
	return issuer, true
}

func labelKey(l *pb.Label, subject protocol.PeerID) [sha256.Size]byte {
	b := make([]byte, 0, 512)
	for _, s := range []string{string(subject), l.GetKey(), l.GetValue(), string(l.GetIssuer()), string(l.GetSignature())} {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(l.GetExpires())))
}
