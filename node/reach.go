package node

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/dht"
	"github.com/gridbeam/gridbeam/p2p"
)

// reach is how others reach the node; on one machine or LAN it is not asked.
func (s *site) reach() p2p.Reachability {
	if s.cfg.Local {
		return p2p.ReachableUnknown
	}
	return s.host.Reachability()
}

// relays are peers that may hold a place for a node behind a NAT: those that say so in the directory, and its own
// bridges, which are found while the directory is not.
func (s *site) relays(ctx context.Context, n int) []peer.AddrInfo {
	found, err := s.dir.Providers(ctx, dht.AttrRelay, n)
	if err != nil {
		s.log.Debug("relays not found in the directory", "err", err)
	}
	if boot, err := s.cfg.bootstrap(); err == nil {
		found = append(found, boot...)
	}
	return found[:min(len(found), n)]
}

// roam tells the directory when the node is reached elsewhere or otherwise.
func (s *site) roam(ctx context.Context) error {
	last := s.whereabouts()
	return s.host.Moved(ctx, func() {
		if now := s.whereabouts(); now != last {
			last = now
			s.announce.Moved()
		}
	})
}

// whereabouts are what a record says of how the node is reached.
func (s *site) whereabouts() string { return fmt.Sprint(s.reach(), s.speaker.public()) }
