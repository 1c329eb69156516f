package dht

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
)

// openHost has a connection to everybody: streams open whatever the time.
type openHost struct {
	host.Host
	opened int
}

var errOpened = errors.New("a stream was opened")

func (h *openHost) NewStream(context.Context, peer.ID, ...libprotocol.ID) (network.Stream, error) {
	h.opened++
	return nil, errOpened
}

// slowTimer is a context whose deadline has come while its timer has not told yet.
type slowTimer struct {
	context.Context
	at time.Time
}

func (s slowTimer) Deadline() (time.Time, bool) { return s.at, true }

func TestWhoHasNoTimeLeftSendsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		late := slowTimer{t.Context(), time.Now()}
		h := &openHost{}
		for name, ctx := range map[string]context.Context{"cancelled": gone, "at its deadline": late} {
			if _, err := (&oneShot{h}).SendRequest(ctx, "a", &kadpb.Message{}); err == nil || h.opened != 0 {
				t.Errorf("%s: %v, %d streams", name, err, h.opened)
			}
			if _, err := (&Directory{host: h, cfg: DefaultConfig()}).exchange(ctx, "a", nil, 0, nil); err == nil || h.opened != 0 {
				t.Errorf("%s: a query: %v, %d streams", name, err, h.opened)
			}
		}
		if _, err := (&oneShot{h}).SendRequest(t.Context(), "a", &kadpb.Message{}); !errors.Is(err, errOpened) {
			t.Errorf("with time left: %v", err)
		}
	})
}
