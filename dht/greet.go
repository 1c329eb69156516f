package dht

import (
	"context"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/gridbeam/gridbeam/protocol"
)

// greet asks each peer that connects and keeps a record for what it says of itself, so that a replica that has just been
// started knows its neighbours at once and not with their next heartbeats.
func (d *Directory) greet(ctx context.Context) error {
	sub, err := d.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.Name("gridbeam/greet"), eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("watching for peers: %w", err)
	}
	defer func() { _ = sub.Close() }()
	for _, p := range d.host.Network().Peers() { // those that came before
		if known, err := d.host.Peerstore().SupportsProtocols(p, protocol.ProtoQuery); err == nil && len(known) > 0 {
			d.wantRecord(p, false)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			if came, is := e.(event.EvtPeerIdentificationCompleted); is && slices.Contains(came.Protocols, protocol.ProtoQuery) && !d.heard(came.Peer) {
				d.wantRecord(came.Peer, false)
			}
		}
	}
}
