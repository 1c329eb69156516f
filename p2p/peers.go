package p2p

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

const (
	// redialFirst and redialMost bound the pause between two attempts to reach a kept peer; it doubles.
	// A bridge that restarts is back within a second, an unreachable peer costs one dial in 30 s.
	redialFirst = 250 * time.Millisecond
	redialMost  = 30 * time.Second
	keepTag     = "gridbeam-keep"
	// foundQueue is how many neighbours wait to be dialled; mDNS repeats itself, so more may be dropped.
	foundQueue = 64
)

// keeper holds connections to chosen peers, for as long as Run runs.
type keeper struct {
	host *Host
	mu   sync.Mutex
	want map[peer.ID]peer.AddrInfo
	kick chan struct{} // capacity 1: "want changed" is not counted
}

func (k *keeper) init(h *Host) {
	k.host, k.want, k.kick = h, make(map[peer.ID]peer.AddrInfo), make(chan struct{}, 1)
}

// Keep asks Run to stay connected to a peer: it is dialled at once, again with growing pauses while it
// cannot be reached, and its connection is not trimmed. Bootstrap peers are kept from the start.
func (h *Host) Keep(info peer.AddrInfo) {
	if info.ID == h.id {
		return
	}
	h.keep.mu.Lock()
	h.keep.want[info.ID] = info
	h.keep.mu.Unlock()
	h.keep.poke()
}

// Release undoes Keep; an open connection is left to the connection manager.
func (h *Host) Release(p peer.ID) {
	h.keep.mu.Lock()
	delete(h.keep.want, p)
	h.keep.mu.Unlock()
	if h.libp2p != nil {
		h.libp2p.ConnManager().Unprotect(p, keepTag)
	}
	h.keep.poke()
}

func (k *keeper) poke() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run starts one dialling goroutine per kept peer that is not connected.
func (k *keeper) run(ctx context.Context) error {
	changes, err := k.host.libp2p.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged))
	if err != nil {
		return fmt.Errorf("watching connections: %w", err)
	}
	defer changes.Close()
	var dials sync.WaitGroup
	defer dials.Wait()
	busy := make(map[peer.ID]bool)
	done := make(chan peer.ID)
	for {
		k.mu.Lock()
		for id, info := range k.want {
			k.host.libp2p.ConnManager().Protect(id, keepTag)
			if !busy[id] && !k.host.Connected(id) {
				busy[id] = true
				dials.Go(func() {
					k.dial(ctx, info)
					select {
					case done <- id:
					case <-ctx.Done():
					}
				})
			}
		}
		k.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case id := <-done:
			delete(busy, id)
		case <-k.kick:
		case e := <-changes.Out():
			if c, ok := e.(event.EvtPeerConnectednessChanged); ok && c.Connectedness == network.Connected {
				continue // nothing to do
			}
		}
	}
}

// dial tries until the peer is connected, no longer wanted, or ctx is done.
func (k *keeper) dial(ctx context.Context, info peer.AddrInfo) {
	wanted := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		_, ok := k.want[info.ID]
		return ok
	}
	for pause := redialFirst; ctx.Err() == nil && wanted(); pause = min(2*pause, redialMost) {
		k.host.libp2p.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.PermanentAddrTTL)
		err := k.host.Connect(ctx, info)
		if err == nil {
			return
		}
		k.host.log.Debug("peer not reached", "peer", info.ID, "err", err, "again_in", pause)
		if errors.Is(err, ErrKeyType) {
			k.host.log.Warn("a peer to stay connected to has no Ed25519 key; it is left out", "peer", info.ID)
			k.host.Release(info.ID)
			return
		}
		t := time.NewTimer(pause/2 + rand.N(pause)) // spread, so that a restarted bridge is not stormed
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// found receives neighbours from mDNS.
type found chan peer.AddrInfo

var _ mdns.Notifee = found(nil)

// HandlePeerFound implements mdns.Notifee.
func (f found) HandlePeerFound(info peer.AddrInfo) {
	select {
	case f <- info:
	default:
	}
}

// runMDNS announces this host in the local network and connects to those it hears. Being found grants
// nothing: a connection is all that comes of it.
func (h *Host) runMDNS(ctx context.Context) error {
	queue := make(found, foundQueue)
	service := mdns.NewMdnsService(h.libp2p, h.cfg.MDNSService, queue)
	if err := service.Start(); err != nil {
		// A machine without a multicast interface is no reason not to run.
		h.log.Warn("neighbours cannot be found by mDNS; name peers to join or turn mDNS off", "err", err)
		return nil
	}
	defer service.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case info := <-queue:
			if info.ID == h.id || h.Connected(info.ID) {
				continue
			}
			if err := h.Connect(ctx, info); err != nil {
				h.log.Debug("neighbour not reached", "peer", info.ID, "err", err)
			} else {
				h.log.Info("neighbour found", "peer", info.ID)
			}
		}
	}
}
