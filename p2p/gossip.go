package p2p

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrTopic means that a topic's name is none of gridbeam's, or that it is joined already.
var ErrTopic = errors.New("p2p: topic cannot be joined")

// Verdict is what a topic's check says of a message that is well-formed.
type Verdict uint8

// The verdicts.
const (
	// Accept hands the message out and on.
	Accept Verdict = iota
	// Ignore drops it silently: for what is our local knowledge (an unknown grant, a rate, an old
	// sequence number), where the peer that forwarded it did nothing wrong.
	Ignore
	// Reject drops it and lowers the forwarder's score: only for what the forwarder could see. Wrong
	// rejects split honest meshes.
	Reject
)

// TopicConfig says what a topic carries.
type TopicConfig[T any] struct {
	// MaxSize bounds a message, in bytes; at most protocol.MaxGossip, the default.
	MaxSize int
	// Decode turns a message into its noun and checks format, signature and that it speaks for author, the
	// peer that published it. An error rejects the message. It has to be pure: it runs concurrently.
	Decode func(data []byte, author peer.ID) (T, error)
	// Validate judges a decoded message; nil accepts all. It runs concurrently and must not block.
	Validate func(ctx context.Context, m Received[T]) Verdict
	// Members limits the topic to some peers; nil means everybody. Subscriptions of others are not heard,
	// nothing is sent to them and nothing taken from them. It is asked in the router's loop: it must be
	// quick. A peer must be a member before it subscribes, so admit it first and tell it then.
	Members func(peer.ID) bool
	// Queue is how many messages wait for a slow subscriber before further ones are dropped. Default 256.
	Queue int
}

// Received is a message that arrived on a topic.
type Received[T any] struct {
	// Value is what Decode made of it.
	Value T
	// Author published it; the router has checked the author's signature.
	Author peer.ID
	// Via handed it to us.
	Via peer.ID
	// Data are its bytes as received, for forwarding and storing.
	Data []byte
}

// Topic is a joined topic. Publishing needs no subscription: messages of a publisher that does not
// subscribe go to subscribers it is connected to (fanout).
type Topic[T any] struct {
	host  *Host
	topic *pubsub.Topic
	cfg   TopicConfig[T]
}

// Join opens a topic by one of the names in protocol. Joining receives nothing until Subscribe. A topic can
// be joined once at a time (ErrTopic).
func Join[T any](h *Host, name string, cfg TopicConfig[T]) (*Topic[T], error) {
	if h.pubsub == nil {
		return nil, ErrClosed
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = protocol.MaxGossip
	}
	if cfg.Queue == 0 {
		cfg.Queue = 256
	}
	if cfg.Decode == nil || cfg.MaxSize < 1 || cfg.MaxSize > protocol.MaxGossip || cfg.Queue < 1 {
		return nil, fmt.Errorf("%w: %s needs Decode, MaxSize within 1..%d and Queue above 0", ErrTopic, name, protocol.MaxGossip)
	}
	if !protocol.TopicAllow.MatchString(name) {
		return nil, fmt.Errorf("%w: %q is no name of gridbeam's", ErrTopic, name)
	}
	t := &Topic[T]{host: h, cfg: cfg}
	topic, err := h.pubsub.Join(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTopic, name, err)
	}
	t.topic = topic
	h.subs.setMembers(name, cfg.Members)
	err = h.pubsub.RegisterTopicValidator(name, t.validate, pubsub.WithValidatorTimeout(10*time.Second))
	if err == nil {
		err = topic.SetScoreParams(topicScore())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("joining %s: %w", name, err), t.Close())
	}
	return t, nil
}

func (t *Topic[T]) validate(ctx context.Context, via peer.ID, msg *pubsub.Message) pubsub.ValidationResult {
	if len(msg.Data) > t.cfg.MaxSize {
		return pubsub.ValidationReject
	}
	m := Received[T]{Author: msg.GetFrom(), Via: via, Data: msg.Data}
	var err error
	if m.Value, err = t.cfg.Decode(msg.Data, m.Author); err != nil {
		t.host.log.Debug("gossip rejected", "topic", t.topic.String(), "peer", via, "err", err)
		return pubsub.ValidationReject
	}
	if t.cfg.Validate != nil && via != t.host.id {
		switch t.cfg.Validate(ctx, m) {
		case Reject:
			return pubsub.ValidationReject
		case Ignore:
			return pubsub.ValidationIgnore
		}
	}
	msg.ValidatorData = m
	return pubsub.ValidationAccept
}

// Name returns the topic's name.
func (t *Topic[T]) Name() string { return t.topic.String() }

// Publish sends data to the topic. What this topic's own Decode would refuse is not sent. It returns once
// the message is queued for the connected subscribers; with none it returns nil as well (see Peers).
func (t *Topic[T]) Publish(ctx context.Context, data []byte) error {
	if len(data) > t.cfg.MaxSize {
		return fmt.Errorf("%w: %d bytes on %s, limit %d", ErrTooLarge, len(data), t.Name(), t.cfg.MaxSize)
	}
	if err := t.topic.Publish(ctx, data); err != nil {
		return fmt.Errorf("publishing on %s: %w", t.Name(), err)
	}
	return nil
}

// Peers returns the connected peers that are known to subscribe: nobody listens when there are none.
func (t *Topic[T]) Peers() []peer.ID { return t.topic.ListPeers() }

// Close leaves the topic. Its subscriptions have to be closed before.
func (t *Topic[T]) Close() error {
	t.host.subs.setMembers(t.Name(), nil)
	if err := errors.Join(t.topic.Close(), t.host.pubsub.UnregisterTopicValidator(t.Name())); err != nil {
		return fmt.Errorf("leaving %s: %w", t.Name(), err)
	}
	return nil
}

// Subscription receives a topic's messages in order of arrival, without this host's own.
type Subscription[T any] struct {
	sub *pubsub.Subscription
}

// Subscribe begins to receive. At most Queue messages wait; what does not fit is dropped, as gossip may.
func (t *Topic[T]) Subscribe() (*Subscription[T], error) {
	sub, err := t.topic.Subscribe(pubsub.WithBufferSize(t.cfg.Queue),
		pubsub.WithMessageFilter(func(m *pubsub.Message) bool { return m.ReceivedFrom != t.host.id }))
	if err != nil {
		return nil, fmt.Errorf("subscribing to %s: %w", t.Name(), err)
	}
	return &Subscription[T]{sub}, nil
}

// Next waits for a message. It returns ctx's error, or ErrClosed after Close and when the host has left.
func (s *Subscription[T]) Next(ctx context.Context) (Received[T], error) {
	msg, err := s.sub.Next(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return Received[T]{}, ctx.Err()
		}
		return Received[T]{}, ErrClosed
	}
	return msg.ValidatorData.(Received[T]), nil
}

// Close ends the subscription.
func (s *Subscription[T]) Close() { s.sub.Cancel() }

// Score returns the peer's gossip score: below -500 it gets no gossip, below -1,000 nothing published,
// below -2,500 it is not heard at all (trust.md 5). It is 0 for strangers and up to a second old.
func (h *Host) Score(p peer.ID) float64 { return h.scores.of(p) }

// messageID is SHA-256 of topic and data (trust.md 5), cut short, and of the author where a message speaks for its
// author alone: without that, a hostile peer that re-publishes somebody's message under its own name could
// get the true one taken for a duplicate and dropped. On the trust topic anybody may forward anything.
func messageID(m *pb.Message) string {
	hash := sha256.New()
	hash.Write([]byte(m.GetTopic()))
	hash.Write([]byte{0})
	if m.GetTopic() != protocol.TopicTrust {
		hash.Write([]byte{byte(len(m.GetFrom()))})
		hash.Write(m.GetFrom())
	}
	hash.Write(m.GetData())
	return string(hash.Sum(nil)[:messageIDSize])
}

const (
	// messageIDSize is how much of the hash names a message, in bytes. A peer that finds two messages of one name has
	// made both, as the author is part of it.
	messageIDSize = 16
	// dontWant is from which size on a host tells its neighbours at once that it has a message (IDONTWANT), in bytes:
	// heartbeats have 230 and more. To twelve neighbours that takes about as many bytes as the message has on a
	// stream, so nobody is moved to send much more than it has sent itself.
	dontWant = 200
)

func (h *Host) newPubSub(ctx context.Context) (*pubsub.PubSub, error) {
	params := pubsub.DefaultGossipSubParams()
	params.D, params.Dlo, params.Dhi, params.Dscore, params.Dout = 8, 6, 12, 6, 3
	params.IDontWantMessageThreshold, params.MaxIDontWantMessages = dontWant, 4000 // of a neighbour and second
	params.FanoutTTL = 5 * time.Minute                                             // heartbeats of 30-60 s publish without subscribing (discovery.md 4)

	gater := pubsub.NewPeerGaterParams(0.33, pubsub.ScoreParameterDecay(2*time.Minute), pubsub.ScoreParameterDecay(time.Hour))
	seen := newReplay()
	ps, err := pubsub.NewGossipSub(ctx, gossipHost{h.libp2p, h.subs},
		pubsub.WithGossipSubParams(params),
		pubsub.WithFloodPublish(true),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(protocol.MaxGossip+4<<10), // and its envelope
		pubsub.WithSubscriptionFilter(h.subs),
		pubsub.WithPeerFilter(h.subs.member),
		pubsub.WithPeerScore(h.peerScore(), &pubsub.PeerScoreThresholds{
			GossipThreshold: -500, PublishThreshold: -1000, GraylistThreshold: -2500,
			AcceptPXThreshold: 1000, OpportunisticGraftThreshold: 3.5,
		}),
		pubsub.WithPeerScoreInspect(h.scores.set, time.Second),
		pubsub.WithPeerGater(gater),
		pubsub.WithPeerExchange(h.cfg.PeerExchange),
		pubsub.WithPeerOutboundQueueSize(256),
		pubsub.WithValidateQueueSize(256),
		pubsub.WithValidateThrottle(1024),
		pubsub.WithDefaultValidator(func(_ context.Context, via peer.ID, m *pubsub.Message) pubsub.ValidationResult {
			if s := m.GetSeqno(); via != h.id && (len(s) != 8 || !seen.fresh(m.GetFrom(), binary.BigEndian.Uint64(s))) {
				return pubsub.ValidationIgnore
			}
			return pubsub.ValidationAccept
		}, pubsub.WithValidatorInline(true)),
	)
	if err != nil {
		return nil, fmt.Errorf("starting gossip: %w", err)
	}
	return ps, nil
}

// peerScore is trust.md 5's table. Bootstrap peers score 1,000, so that peer exchange is believed from them
// alone.
func (h *Host) peerScore() *pubsub.PeerScoreParams {
	boot := make(map[peer.ID]bool, len(h.cfg.Bootstrap))
	for _, info := range h.cfg.Bootstrap {
		boot[info.ID] = true
	}
	exempt := []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
	for _, f := range h.cfg.Farms {
		a := f.Prefix.Masked().Addr()
		exempt = append(exempt, &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(f.Prefix.Bits(), a.BitLen())})
	}
	return &pubsub.PeerScoreParams{
		AppSpecificScore: func(p peer.ID) float64 {
			score := 0.0
			if boot[p] {
				score = 1000
			}
			if h.cfg.AppScore != nil {
				score += h.cfg.AppScore(p)
			}
			return score
		},
		AppSpecificWeight:           1,
		IPColocationFactorWeight:    -35,
		IPColocationFactorThreshold: 64, // 64 machines behind one NAT; with libp2p's 16 they would score -80,640
		IPColocationFactorWhitelist: exempt,
		BehaviourPenaltyWeight:      -10,
		BehaviourPenaltyThreshold:   6,
		BehaviourPenaltyDecay:       pubsub.ScoreParameterDecay(time.Hour),
		DecayInterval:               pubsub.DefaultDecayInterval,
		DecayToZero:                 pubsub.DefaultDecayToZero,
		RetainScore:                 6 * time.Hour,
		Topics:                      make(map[string]*pubsub.TopicScoreParams),
	}
}

// topicScore: n invalid messages cost 100 n², so 3 end gossip with a peer, 4 publishing to it, 6 everything;
// 100 first deliveries are worth 10. Mesh delivery counts are off: topics with little traffic would punish
// the honest.
func topicScore() *pubsub.TopicScoreParams {
	return &pubsub.TopicScoreParams{
		SkipAtomicValidation:           true,
		TopicWeight:                    0.1,
		TimeInMeshQuantum:              time.Second, // weightless, but the router divides by it
		FirstMessageDeliveriesWeight:   1,
		FirstMessageDeliveriesDecay:    pubsub.ScoreParameterDecay(10 * time.Minute),
		FirstMessageDeliveriesCap:      100,
		InvalidMessageDeliveriesWeight: -1000,
		InvalidMessageDeliveriesDecay:  pubsub.ScoreParameterDecay(time.Hour),
	}
}
