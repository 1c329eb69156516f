package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
)

// note decodes test messages "note <author> <text>".
func note(data []byte, author peer.ID) (string, error) {
	rest, ok := strings.CutPrefix(string(data), "note "+author.String()+" ")
	if !ok {
		return "", errors.New("no note of its author")
	}
	return rest, nil
}

func noteOf(h *Host, text string) []byte { return []byte("note " + h.ID().String() + " " + text) }

func join(t *testing.T, h *Host, cfg TopicConfig[string]) (*Topic[string], *Subscription[string]) {
	t.Helper()
	if cfg.Decode == nil {
		cfg.Decode = note
	}
	topic, err := Join(h, testTopic, cfg)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := topic.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	return topic, sub
}

var testTopic = protocol.TopicJob(protocol.JobID{1})

func next(t *testing.T, s *Subscription[string], within time.Duration) (Received[string], error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return s.Next(ctx)
}

func TestGossipPublishedRightAfterConnectingArrivesWithinAHeartbeat(t *testing.T) {
	hosts := []*Host{start(t), start(t), start(t), start(t)}
	var subs []*Subscription[string]
	var topics []*Topic[string]
	for _, h := range hosts {
		topic, sub := join(t, h, TopicConfig[string]{})
		topics, subs = append(topics, topic), append(subs, sub)
	}
	for _, h := range hosts[1:] {
		connect(t, h, hosts[0])
	}
	eventually(t, "the subscriptions are known", func() bool { return len(topics[0].Peers()) == 3 })
	if err := topics[0].Publish(context.Background(), noteOf(hosts[0], "now")); err != nil {
		t.Fatal(err)
	}
	for i, sub := range subs[1:] {
		m, err := next(t, sub, 10*time.Second)
		if err != nil || m.Value != "now" || m.Author != hosts[0].ID() {
			t.Errorf("subscriber %d: %+v, %v", i, m, err)
		}
	}
}

func TestPublishingNeedsNoSubscription(t *testing.T) {
	a, b := start(t), start(t)
	_, sub := join(t, b, TopicConfig[string]{})
	connect(t, a, b)
	topic, err := Join(a, testTopic, TopicConfig[string]{Decode: note})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the subscriber is known", func() bool { return len(topic.Peers()) == 1 })
	if err := topic.Publish(context.Background(), noteOf(a, "fanout")); err != nil {
		t.Fatal(err)
	}
	if m, err := next(t, sub, 10*time.Second); err != nil || m.Value != "fanout" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestABurstArrivesWhole(t *testing.T) {
	a, b, c := start(t), start(t), start(t)
	ta, _ := join(t, a, TopicConfig[string]{})
	join(t, b, TopicConfig[string]{})
	_, sub := join(t, c, TopicConfig[string]{Queue: 1000})
	connect(t, a, b)
	connect(t, b, c) // c hears a through b
	eventually(t, "subscription known", func() bool { return len(ta.Peers()) == 1 })
	// What b hears before it has c in its mesh (one heartbeat) it does not pass on.
	probes := 0
	eventually(t, "b passes messages on to c", func() bool {
		probes++
		if err := ta.Publish(context.Background(), noteOf(a, fmt.Sprint("probe", probes))); err != nil {
			t.Fatal(err)
		}
		_, err := next(t, sub, 20*time.Millisecond)
		return err == nil
	})
	const n = 200
	for i := range n {
		if err := ta.Publish(context.Background(), noteOf(a, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for len(got) < n {
		m, err := next(t, sub, 8*time.Second)
		if err != nil {
			t.Fatalf("%d of %d arrived: %v", len(got), n, err)
		}
		if strings.HasPrefix(m.Value, "probe") {
			continue
		}
		if got[m.Value] {
			t.Errorf("%s arrived twice", m.Value)
		}
		got[m.Value] = true
	}
}

func TestInvalidGossipIsRejectedAndCostsTheSenderItsScore(t *testing.T) {
	honest, victim, liar := start(t), start(t), start(t)
	topic, _ := join(t, honest, TopicConfig[string]{})
	_, sub := join(t, victim, TopicConfig[string]{})
	connect(t, honest, victim)
	// The liar is a real host whose own check lets everything pass.
	lies, err := Join(liar, testTopic, TopicConfig[string]{Decode: func(b []byte, _ peer.ID) (string, error) { return string(b), nil }})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, liar, victim)
	eventually(t, "victim known", func() bool { return len(lies.Peers()) == 1 && len(topic.Peers()) == 1 })
	publish := func(n int) {
		for i := range n {
			if err := lies.Publish(context.Background(), fmt.Append(nil, "garbage ", n, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(2)
	eventually(t, "two lies cost 400", func() bool { s := victim.Score(liar.ID()); return s < -350 && s >= -400 })
	publish(4)
	eventually(t, "six lies end everything", func() bool { return victim.Score(liar.ID()) < -2500 })
	if err := topic.Publish(context.Background(), noteOf(honest, "true")); err != nil {
		t.Fatal(err)
	}
	m, err := next(t, sub, 10*time.Second)
	if err != nil || m.Value != "true" {
		t.Errorf("the honest message: %+v, %v", m, err)
	}
	if s := victim.Score(honest.ID()); s < 0 {
		t.Errorf("honest peer's score %v", s)
	}
}

func TestIgnoredGossipIsDroppedWithoutPenalty(t *testing.T) {
	a, b := start(t), start(t)
	ta, _ := join(t, a, TopicConfig[string]{})
	_, sub := join(t, b, TopicConfig[string]{Validate: func(_ context.Context, m Received[string]) Verdict {
		if m.Value == "old" {
			return Ignore
		}
		return Accept
	}})
	connect(t, a, b)
	eventually(t, "known", func() bool { return len(ta.Peers()) == 1 })
	for _, text := range []string{"old", "new"} {
		if err := ta.Publish(context.Background(), noteOf(a, text)); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := next(t, sub, 10*time.Second); err != nil || m.Value != "new" {
		t.Errorf("%+v, %v", m, err)
	}
	eventually(t, "score known", func() bool { return b.scores.last.Load() != nil })
	if s := b.Score(a.ID()); s < 0 {
		t.Errorf("score after an ignored message: %v", s)
	}
}

func TestRepublishingAnothersMessageDoesNotSuppressIt(t *testing.T) {
	author, victim, thief := start(t), start(t), start(t)
	topic, _ := join(t, author, TopicConfig[string]{})
	_, sub := join(t, victim, TopicConfig[string]{})
	loose, err := Join(thief, testTopic, TopicConfig[string]{Decode: func(b []byte, _ peer.ID) (string, error) { return string(b), nil }})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, author, victim)
	connect(t, thief, victim)
	eventually(t, "known", func() bool { return len(loose.Peers()) == 1 && len(topic.Peers()) == 1 })
	stolen := noteOf(author, "mine")
	if err := loose.Publish(context.Background(), stolen); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the theft was seen", func() bool { return victim.Score(thief.ID()) < 0 })
	if err := topic.Publish(context.Background(), stolen); err != nil {
		t.Fatal(err)
	}
	if m, err := next(t, sub, 10*time.Second); err != nil || m.Value != "mine" {
		t.Errorf("the author's own message: %+v, %v", m, err)
	}
}

func TestOnlyMembersHearAMemberTopic(t *testing.T) {
	bridge, member, stranger := start(t), start(t), start(t)
	connect(t, member, bridge)
	connect(t, stranger, bridge)
	topic, _ := join(t, bridge, TopicConfig[string]{Members: func(p peer.ID) bool { return p == member.ID() }})
	_, in := join(t, member, TopicConfig[string]{})
	_, out := join(t, stranger, TopicConfig[string]{})
	eventually(t, "member known", func() bool { return len(topic.Peers()) > 0 })
	for i := range 5 {
		if err := topic.Publish(context.Background(), noteOf(bridge, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if _, err := next(t, in, 10*time.Second); err != nil {
			t.Fatalf("member: %v", err)
		}
	}
	if m, err := next(t, out, 1500*time.Millisecond); err == nil {
		t.Errorf("stranger heard %q", m.Value)
	}
	if got := topic.Peers(); !slices.Equal(got, []peer.ID{member.ID()}) {
		t.Errorf("peers of the topic: %v", got)
	}
}

func TestJoinRefusesForeignNamesAndASecondJoin(t *testing.T) {
	h := start(t)
	if _, err := Join(h, "/other/topic", TopicConfig[string]{Decode: note}); !errors.Is(err, ErrTopic) {
		t.Errorf("foreign topic: %v", err)
	}
	topic, err := Join(h, testTopic, TopicConfig[string]{Decode: note, MaxSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(h, testTopic, TopicConfig[string]{Decode: note}); !errors.Is(err, ErrTopic) {
		t.Errorf("second join: %v", err)
	}
	if err := topic.Publish(context.Background(), noteOf(h, strings.Repeat("x", 200))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized publish: %v", err)
	}
	if err := topic.Publish(context.Background(), []byte("not a note")); err == nil {
		t.Error("a message that everybody would reject was published")
	}
	if err := topic.Close(); err != nil {
		t.Fatal(err)
	}
	if again, err := Join(h, testTopic, TopicConfig[string]{Decode: note}); err != nil {
		t.Errorf("join after leaving: %v", err)
	} else if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestAPeerIsHeardOnAHundredTopicsAtMost(t *testing.T) {
	s := newSubscriptions()
	sub := func(i int, on bool) *pb.RPC_SubOpts {
		name := protocol.TopicJob(protocol.JobID{byte(i), byte(i >> 8)})
		return &pb.RPC_SubOpts{Topicid: &name, Subscribe: &on}
	}
	heard := 0
	for i := range 300 { // spread over messages: the router's own limit counts each alone
		out, err := s.FilterIncomingSubscriptions("p", []*pb.RPC_SubOpts{sub(i, true)})
		if err != nil {
			t.Fatal(err)
		}
		heard += len(out)
	}
	if heard != maxSubscriptions {
		t.Errorf("%d topics heard, want %d", heard, maxSubscriptions)
	}
	if out, _ := s.FilterIncomingSubscriptions("p", []*pb.RPC_SubOpts{sub(0, false)}); len(out) != 1 {
		t.Error("unsubscribing was not heard")
	}
	if out, _ := s.FilterIncomingSubscriptions("p", []*pb.RPC_SubOpts{sub(500, true)}); len(out) != 1 {
		t.Error("no room after unsubscribing")
	}
	s.forget("p")
	if out, _ := s.FilterIncomingSubscriptions("p", []*pb.RPC_SubOpts{sub(501, true)}); len(out) != 1 {
		t.Error("no room after the peer was forgotten")
	}
	foreign := "/eth2/beacon"
	on := true
	if out, _ := s.FilterIncomingSubscriptions("q", []*pb.RPC_SubOpts{{Topicid: &foreign, Subscribe: &on}}); len(out) != 0 {
		t.Error("a foreign topic was heard")
	}
	if _, err := s.FilterIncomingSubscriptions("q", make([]*pb.RPC_SubOpts, 2000)); !errors.Is(err, pubsub.ErrTooManySubscriptions) {
		t.Errorf("2,000 at once: %v", err)
	}
}

// TestReplayWindow compares the window with a plain set, whose rule it is: a number is fresh when it was
// not seen and is not further than replayWindow behind the newest.
func TestReplayWindow(t *testing.T) {
	var w seqWindow
	seen := map[uint64]bool{}
	var newest uint64
	x := uint64(88172645463325252)
	for range 200_000 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		seq := newest + x%64
		if back := x % 1500; x%3 == 0 && newest > back {
			seq = newest - back
		}
		if x%1000 == 0 {
			seq = newest + 5000
		}
		if seq == 0 {
			continue
		}
		want := !seen[seq] && (seq > newest || newest-seq < replayWindow)
		if got := w.fresh(seq); got != want {
			t.Fatalf("fresh(%d) = %v, want %v (newest %d)", seq, got, want, newest)
		}
		seen[seq] = true
		newest = max(newest, seq)
	}
}

func TestMessageIDSeparatesTopicAuthorAndData(t *testing.T) {
	id := func(topic, from, data string) string {
		return messageID(&pb.Message{Topic: &topic, From: []byte(from), Data: []byte(data)})
	}
	base := id("t", "ab", "c")
	for _, other := range []string{id("u", "ab", "c"), id("t", "a", "bc"), id("t", "ab", "d"), id("t", "abc", "")} {
		if other == base {
			t.Error("two messages share an ID")
		}
	}
	if !bytes.Equal([]byte(id(protocol.TopicTrust, "a", "x")), []byte(id(protocol.TopicTrust, "b", "x"))) {
		t.Error("forwarders of one revocation make two messages of it")
	}
}
