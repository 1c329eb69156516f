package p2p

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/gridbeam/gridbeam/protocol"
)

func echo(_ context.Context, _ peer.ID, b []byte) ([]byte, error) { return b, nil }

func TestCallReturnsTheHandlersAnswer(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	err := Serve(b, protocol.ProtoClaim, func(_ context.Context, from peer.ID, req *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
		if from != a.ID() {
			return nil, fmt.Errorf("request from %s", from)
		}
		return wrapperspb.String("hello " + req.Value), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var out wrapperspb.StringValue
	if err := Call(context.Background(), a, b.ID(), protocol.ProtoClaim, wrapperspb.String("b"), &out); err != nil {
		t.Fatal(err)
	}
	if out.Value != "hello b" {
		t.Errorf("answer %q", out.Value)
	}
}

func TestCallReusesWarmStreams(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	if err := b.Handle(protocol.ProtoClaim, echo); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, c := range a.Host().Network().ConnsToPeer(b.ID()) {
		for _, s := range c.GetStreams() {
			if s.Protocol() == protocol.ProtoClaim {
				n++
			}
		}
	}
	if n != 1 {
		t.Errorf("%d streams after 50 calls in a row, want 1", n)
	}
}

func TestManyCallersShareFewStreamsAndGetTheirOwnAnswers(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	var most, now atomic.Int32
	err := b.Handle(protocol.ProtoClaim, func(_ context.Context, _ peer.ID, body []byte) ([]byte, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		return bytes.Repeat(body, 2), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			want := fmt.Sprint("body", i)
			got, err := a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte(want))
			if err != nil || string(got) != want+want {
				t.Errorf("call %d: %q, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	if limit := int32(a.cfg.Protocols[protocol.ProtoClaim].CallStreams); most.Load() > limit {
		t.Errorf("%d requests at once, limit %d", most.Load(), limit)
	}
}

func TestErrorsCrossTheWireByCode(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	err := b.Handle(protocol.ProtoClaim, func(_ context.Context, _ peer.ID, body []byte) ([]byte, error) {
		if string(body) == "typed" {
			return nil, Errorf(CodeStale, "fence %d is old", 3)
		}
		return nil, errors.New("secret detail")
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte("typed"))
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeStale || e.Text != "fence 3 is old" {
		t.Errorf("typed error arrived as %v", err)
	}
	_, err = a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte("other"))
	if CodeOf(err) != CodeInternal || bytes.Contains([]byte(err.Error()), []byte("secret")) {
		t.Errorf("untyped error arrived as %v", err)
	}
	if err := Call(context.Background(), a, b.ID(), protocol.ProtoReserve, wrapperspb.String("x"), &wrapperspb.StringValue{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("call of an unserved protocol: %v, want ErrUnsupported", err)
	}
	_, err = a.Call(context.Background(), b.ID(), protocol.ProtoClaim, make([]byte, protocol.MaxFrame+1))
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized request: %v, want ErrTooLarge", err)
	}
	if _, err := a.Call(context.Background(), start(t).ID(), protocol.ProtoClaim, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("call of a peer without address: %v, want ErrUnreachable", err)
	}
}

func TestACancelledCallDoesNotPoisonLaterOnes(t *testing.T) {
	a, b := start(t), start(t, func(c *Config) { c.Drain = time.Second })
	connect(t, a, b)
	release := make(chan struct{})
	err := b.Handle(protocol.ProtoReceipt, func(_ context.Context, _ peer.ID, body []byte) ([]byte, error) {
		if string(body) == "slow" {
			<-release
		}
		return body, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Call(context.Background(), b.ID(), protocol.ProtoReceipt, []byte("warm")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, b.ID(), protocol.ProtoReceipt, []byte("slow")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("cancelled call: %v", err)
	}
	close(release) // its late answer must not be taken for the next one's
	for i := range 20 {
		want := fmt.Sprint("after", i)
		got, err := a.Call(context.Background(), b.ID(), protocol.ProtoReceipt, []byte(want))
		if err != nil || string(got) != want {
			t.Fatalf("call after a cancelled one: %q, %v", got, err)
		}
	}
}

func TestCallSurvivesThePeersIdleTimeout(t *testing.T) {
	a, b := start(t), start(t, func(c *Config) {
		l := c.Protocols[protocol.ProtoClaim]
		l.Idle = 30 * time.Millisecond
		c.Protocols[protocol.ProtoClaim] = l
	})
	connect(t, a, b)
	if err := b.Handle(protocol.ProtoClaim, echo); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte("1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the idle stream is dropped by the serving side", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.open) == 0
	})
	if got, err := a.Call(context.Background(), b.ID(), protocol.ProtoClaim, []byte("2")); err != nil || string(got) != "2" {
		t.Errorf("call over a stream that the peer had dropped: %q, %v", got, err)
	}
}

func TestDuplexCarriesFramesBothWaysAndEndsWithAReason(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	err := b.HandleDuplex(protocol.ProtoLease, func(_ context.Context, f *Frames) error {
		if f.Peer() != a.ID() {
			return fmt.Errorf("stream of %s", f.Peer())
		}
		for {
			var m wrapperspb.Int64Value
			if err := f.Read(&m); err != nil {
				return err
			}
			if m.Value < 0 {
				return Errorf(CodeStale, "enough")
			}
			if err := f.Write(wrapperspb.Int64(m.Value + 1)); err != nil {
				return err
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := a.OpenDuplex(context.Background(), b.ID(), protocol.ProtoLease)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range int64(100) {
		var m wrapperspb.Int64Value
		if err := errors.Join(f.Write(wrapperspb.Int64(i)), f.Read(&m)); err != nil || m.Value != i+1 {
			t.Fatalf("frame %d: %d, %v", i, m.Value, err)
		}
	}
	if err := f.Write(wrapperspb.Int64(-1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Read(&wrapperspb.Int64Value{}); CodeOf(err) != CodeStale {
		t.Errorf("end of stream: %v, want CodeStale", err)
	}
}

func TestShutdownLetsTheAnswerUnderWayFinish(t *testing.T) {
	a, b := start(t), start(t)
	connect(t, a, b)
	started := make(chan struct{})
	if err := b.Handle(protocol.ProtoClaim, func(ctx context.Context, _ peer.ID, body []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		return []byte("finished"), nil
	}); err != nil {
		t.Fatal(err)
	}
	duplex := make(chan error, 1)
	if err := b.HandleDuplex(protocol.ProtoLease, func(_ context.Context, f *Frames) error {
		err := f.Read(&wrapperspb.StringValue{})
		duplex <- err
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f, err := a.OpenDuplex(context.Background(), b.ID(), protocol.ProtoLease)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	go func() { // makes the stream known to the other side
		_ = f.Read(&wrapperspb.StringValue{})
	}()
	answer := make(chan string, 1)
	go func() {
		got, err := a.Call(context.Background(), b.ID(), protocol.ProtoClaim, nil)
		answer <- fmt.Sprintf("%s %v", got, err)
	}()
	<-started
	eventually(t, "the duplex stream is open", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.open) == 2
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "finished <nil>" {
		t.Errorf("answer under way at shutdown: %s", got)
	}
	if err := <-duplex; !errors.Is(err, ErrClosed) && !errors.Is(err, io.EOF) {
		t.Errorf("duplex read at shutdown: %v, want ErrClosed", err)
	}
}
