package p2p

import (
	"context"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// maxSubscriptions is how many topics of one peer are remembered (trust.md 5; CVE-2026-46679: the router
// itself remembers any number).
const maxSubscriptions = 100

// subscriptions decides which subscriptions of others the router hears of: allowed names, at most
// maxSubscriptions a peer over all its messages, and members alone on topics that have members.
type subscriptions struct {
	mu      sync.Mutex
	peers   map[peer.ID]map[string]struct{}
	members map[string]func(peer.ID) bool

	carriers carriers
}

var _ pubsub.SubscriptionFilter = (*subscriptions)(nil)

func newSubscriptions() *subscriptions {
	return &subscriptions{peers: make(map[peer.ID]map[string]struct{}), members: make(map[string]func(peer.ID) bool)}
}

// setMembers limits a topic to peers for which member is true; nil lifts the limit.
func (s *subscriptions) setMembers(topic string, member func(peer.ID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if member == nil {
		delete(s.members, topic)
	} else {
		s.members[topic] = member
	}
}

// member is the router's peer filter: who may be in a topic's mesh.
func (s *subscriptions) member(p peer.ID, topic string) bool {
	s.mu.Lock()
	member := s.members[topic]
	s.mu.Unlock()
	return member == nil || member(p)
}

// CanSubscribe implements pubsub.SubscriptionFilter.
func (s *subscriptions) CanSubscribe(topic string) bool {
	return protocol.TopicAllow.MatchString(topic)
}

// FilterIncomingSubscriptions implements pubsub.SubscriptionFilter. What is too much is left out, so that
// the rest of the message is still heard.
func (s *subscriptions) FilterIncomingSubscriptions(from peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	if len(subs) > 10*maxSubscriptions { // no honest peer says so much at once
		return nil, pubsub.ErrTooManySubscriptions
	}
	subs = pubsub.FilterSubscriptions(subs, func(topic string) bool {
		return s.CanSubscribe(topic) && s.member(from, topic)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.peers[from]
	if have == nil {
		have = make(map[string]struct{})
		s.peers[from] = have
	}
	out := subs[:0]
	for _, sub := range subs {
		topic := sub.GetTopicid()
		if !sub.GetSubscribe() {
			delete(have, topic)
		} else if _, again := have[topic]; !again {
			if len(have) >= maxSubscriptions {
				continue
			}
			have[topic] = struct{}{}
		}
		out = append(out, sub)
	}
	return out, nil
}

// forget drops what a peer that left had subscribed to.
func (s *subscriptions) forget(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, p)
}

// notifiee forgets peers when their last connection closes. When gossip went over a connection that closes and another
// one stays, that one is closed too: a peer that was killed and came back is known by its new connection, and then the
// old one is found dead. The router drops what the peer had subscribed to, for good, and to reset a stream would only
// make the peer's router drop what we have subscribed to. Without any connection both begin anew, each by saying what it
// hears; whoever keeps the other dials again at once. A connection that gossip did not use takes nothing with it: peers
// that test whether we can be dialled make one and end it, and a relayed one ends when a direct one has come about.
func (s *subscriptions) notifiee() network.Notifiee {
	return &network.NotifyBundle{
		ConnectedF: func(n network.Network, c network.Conn) {
			for _, old := range n.ConnsToPeer(c.RemotePeer()) {
				if old.ID() != c.ID() {
					go prod(old)
				}
			}
		},
		DisconnectedF: func(n network.Network, c network.Conn) { s.ended(n, c, s.carriers.drop(c)) },
	}
}

// ended does what follows from a connection's end; carried says whether gossip went over it.
func (s *subscriptions) ended(n network.Network, c network.Conn, carried bool) {
	id := c.RemotePeer()
	switch {
	case n.Connectedness(id) != network.Connected:
		s.forget(id)
	case carried:
		go func() { _ = n.ClosePeer(id) }() // it may have left meanwhile
	}
}

// prod asks over a connection whose peer has just made another. If that is because the peer's process is a new one,
// its machine answers that it knows nothing of the old connection, which else would look alive for 30 s.
func prod(c network.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := c.NewStream(ctx)
	if err != nil {
		return
	}
	_ = st.SetDeadline(time.Now().Add(time.Second))
	if _, err := st.Write(question); err == nil {
		_, _ = st.Read(make([]byte, 1)) // whatever it says, and if only that the connection is gone
	}
	_ = st.Reset()
}

// question opens a stream for a protocol that nobody speaks: a peer that is there says so. It is long enough for
// QUIC, which does not answer packets of less than 43 bytes from nowhere.
var question = []byte("\x13/multistream/1.0.0\n\x28/gridbeam/is-this-connection-dead/1.0.0\n")
