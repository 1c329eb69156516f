package dht

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

const (
	// landmarkPatience bounds one round of measuring all landmarks, dialling included.
	landmarkPatience = 5 * time.Second
	// landmarksLast is for how long measured landmarks are good for a query.
	landmarksLast = 6 * time.Hour
	// landmarkShift is by how many steps of a byte, a tenth each way, a round trip has to change for a new record.
	landmarkShift = 3
	// askedForFile is how many landmarks are asked for a newer network file in a round.
	askedForFile = 3
)

// LocateConfig says how often a peer measures its round trips to the landmarks (discovery.md 7).
type LocateConfig struct {
	// Every is the time between two rounds. Default 6 h.
	Every time.Duration
	// Again is the wait after the first round in which a landmark did not answer; it grows fourfold up to Every.
	// Default 1 min.
	Again time.Duration
	// Changed is called when the round trips, or the landmarks, are others than before by more than chance; nil does
	// nothing.
	Changed func()
}

// DefaultLocate returns the defaults that the fields' comments name.
func DefaultLocate() LocateConfig { return LocateConfig{Every: landmarksLast, Again: time.Minute} }

// Validate returns ErrConfig with the name of the first field that cannot be used.
func (c *LocateConfig) Validate() error {
	switch {
	case c.Every <= 0:
		return fmt.Errorf("%w: LocateConfig.Every has to be above 0", ErrConfig)
	case c.Again <= 0:
		return fmt.Errorf("%w: LocateConfig.Again has to be above 0", ErrConfig)
	}
	return nil
}

// LandmarkRTTs are a peer's round trips to a list of landmarks, as its record holds them.
type LandmarkRTTs struct {
	// Epoch names the list (protocol.LandmarkEpoch).
	Epoch uint32
	// RTT has a byte for each landmark (protocol.RTTByte); nil when nothing was measured.
	RTT []byte
}

// Known counts the landmarks that answered.
func (l LandmarkRTTs) Known() int {
	return len(l.RTT) - bytes.Count(l.RTT, []byte{protocol.UnknownRTT})
}

// marks are a record's LandmarkRTTs, laid out for evaluation.
type marks struct {
	epoch uint32
	n     uint8
	rtt   [protocol.MaxLandmarks]byte
}

func marksOf(l *pb.Location) (m marks) {
	if l.GetLandmarkRtt() != nil && l.LandmarkEpoch != nil {
		m.epoch, m.n = l.GetLandmarkEpoch(), uint8(copy(m.rtt[:], l.GetLandmarkRtt()))
	}
	return m
}

// to estimates the round trip in ms between whom own belongs to and whom m belongs to; NaN where it cannot.
func (m *marks) to(own *LandmarkRTTs) float64 {
	if m.n == 0 || m.epoch != own.Epoch {
		return math.NaN()
	}
	return protocol.LandmarkRTT(own.RTT, m.rtt[:m.n])
}

// surroundings are what a directory knows of its network's landmarks.
type surroundings struct {
	mu   sync.Mutex
	file *protocol.NetworkFile // nil until SetNetwork
	list []protocol.Landmark
	own  LandmarkRTTs
	at   time.Time // of own
}

// SetNetwork names the network that this peer belongs to, which protocol.ParseNetworkFile has verified: its landmarks
// place others, and others get the file on demand. A later call counts only if its file supersedes the one before.
// It says whether the landmarks are others than before.
func (d *Directory) SetNetwork(n protocol.NetworkFile) (changed bool) {
	s := &d.around
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil && !n.Supersedes(s.file) {
		return false
	}
	list := n.LandmarkList()
	epoch := protocol.LandmarkEpoch(list)
	changed = s.file == nil || epoch != s.own.Epoch
	if changed {
		s.own, s.at = LandmarkRTTs{Epoch: epoch}, time.Time{}
	}
	s.file, s.list = &n, list
	return changed
}

// Network returns the network file that is known; false when SetNetwork was never called.
func (d *Directory) Network() (protocol.NetworkFile, bool) {
	d.around.mu.Lock()
	defer d.around.mu.Unlock()
	if d.around.file == nil {
		return protocol.NetworkFile{}, false
	}
	return *d.around.file, true
}

// LandmarkRTTs returns the last measured round trips to the landmarks.
func (d *Directory) LandmarkRTTs() LandmarkRTTs {
	d.around.mu.Lock()
	defer d.around.mu.Unlock()
	return LandmarkRTTs{Epoch: d.around.own.Epoch, RTT: slices.Clone(d.around.own.RTT)}
}

func (d *Directory) landmarks() ([]protocol.Landmark, uint32) {
	d.around.mu.Lock()
	defer d.around.mu.Unlock()
	return d.around.list, d.around.own.Epoch
}

// measureLandmarks pings every landmark three times; it says whether what came differs from before by more than chance,
// and whether all have answered.
func (d *Directory) measureLandmarks(ctx context.Context) (changed, all bool) {
	list, epoch := d.landmarks()
	if len(list) == 0 {
		return false, true
	}
	ctx, cancel := context.WithTimeout(ctx, landmarkPatience)
	defer cancel()
	rtts := d.Measure(ctx, d.reachable(ctx, list))
	own := LandmarkRTTs{Epoch: epoch, RTT: make([]byte, len(list))}
	for i, l := range list {
		rtt, ok := rtts[l.Peer]
		switch {
		case l.Peer == d.host.ID():
			own.RTT[i] = 0
		case ok:
			own.RTT[i] = protocol.RTTByte(rtt)
		default:
			own.RTT[i] = protocol.UnknownRTT
		}
	}
	s := &d.around
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own.Epoch != epoch { // the list has changed meanwhile
		return false, false
	}
	changed = len(s.own.RTT) != len(own.RTT)
	for i := range min(len(s.own.RTT), len(own.RTT)) {
		a, b := s.own.RTT[i], own.RTT[i]
		changed = changed || max(a, b)-min(a, b) > landmarkShift
	}
	s.own, s.at = own, d.now()
	return changed, own.Known() == len(own.RTT)
}

// reachable returns the landmarks but us, after making sure that an address of each is known, if somebody tells one.
func (d *Directory) reachable(ctx context.Context, list []protocol.Landmark) (ids []peer.ID) {
	var looking sync.WaitGroup
	for _, l := range list {
		if l.Peer == d.host.ID() {
			continue
		}
		ids = append(ids, l.Peer)
		if l.Addr != nil {
			d.host.Peerstore().AddAddrs(l.Peer, []multiaddr.Multiaddr{l.Addr}, peerstore.TempAddrTTL)
		} else if !d.connected(l.Peer) && len(d.host.Peerstore().Addrs(l.Peer)) == 0 && d.isUp() {
			looking.Go(func() {
				if rec, err := d.fromDHT(ctx, l.Peer, 1); err == nil {
					d.placed(l.Peer, rec.cap)
				}
			})
		}
	}
	looking.Wait()
	return ids
}

// knowWhere measures the landmarks for a query, unless that was done lately.
func (d *Directory) knowWhere(ctx context.Context) {
	d.around.mu.Lock()
	due := len(d.around.list) > 0 && (d.around.at.IsZero() || d.now().Sub(d.around.at) > landmarksLast)
	d.around.mu.Unlock()
	if due {
		d.measureLandmarks(ctx)
	}
}

// Locate measures the round trips to the landmarks at once and again on schedule until ctx ends, and asks landmarks for
// a newer network file. LandmarkRTTs tells what it found. It returns nil on orderly cancel, or ErrConfig.
func (d *Directory) Locate(ctx context.Context, cfg LocateConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if err := d.up(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	patience, cancel := context.WithTimeout(ctx, landmarkPatience)
	_ = d.waitServers(patience) // a landmark may be known by its address alone
	cancel()
	again := cfg.Again
	for ctx.Err() == nil {
		changed, all := d.measureLandmarks(ctx)
		if changed && cfg.Changed != nil {
			cfg.Changed()
		}
		if d.RenewNetwork(ctx) {
			continue // others to measure
		}
		wait := cfg.Every
		if !all {
			wait, again = min(again, wait), min(4*again, cfg.Every)
		} else {
			again = cfg.Again
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-d.renewed:
			again = cfg.Again
		}
		t.Stop()
	}
	return nil
}

// RenewNetwork asks a few landmarks that are connected for a newer file of the network that SetNetwork named; it says
// whether there are other landmarks now.
func (d *Directory) RenewNetwork(ctx context.Context) (changed bool) {
	list, _ := d.landmarks()
	asked := 0
	for _, l := range list {
		if l.Peer == d.host.ID() || !d.connected(l.Peer) || asked == askedForFile {
			continue
		}
		asked++
		n, err := d.askNetwork(ctx, l.Peer)
		if err != nil {
			d.log.Debug("no network file from a landmark", "peer", l.Peer, "err", err)
			continue
		}
		changed = d.SetNetwork(n) || changed
	}
	return changed
}

// askNetwork brings a peer's network file, verified in itself: SetNetwork judges whether it is ours.
func (d *Directory) askNetwork(ctx context.Context, of peer.ID) (protocol.NetworkFile, error) {
	end, err := d.exchange(ctx, of, &pb.QueryRequest{Format: queryFormat, Ask: &pb.QueryRequest_NetworkFile{NetworkFile: &pb.NetworkFileRequest{}}}, 0, func(*pb.QueryRow) {})
	if err != nil {
		return protocol.NetworkFile{}, err
	}
	if end.GetNetworkFile() == nil {
		return protocol.NetworkFile{}, fmt.Errorf("%w: not a network file", ErrQuery)
	}
	n, err := protocol.ParseNetworkFile(end.GetNetworkFile().GetSigned())
	if err != nil {
		return protocol.NetworkFile{}, fmt.Errorf("%w: %w", ErrQuery, err)
	}
	return n, nil
}

// networkFile answers askNetwork.
func (d *Directory) networkFile() *pb.NetworkFileReply {
	if n, ok := d.Network(); ok {
		return &pb.NetworkFileReply{Signed: n.Bytes()}
	}
	return &pb.NetworkFileReply{}
}
