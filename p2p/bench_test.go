package p2p

import (
	"context"
	"encoding/binary"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/gridbeam/gridbeam/protocol"
)

// BenchmarkCall compares a Call over a warm stream with the same bytes over a bare libp2p stream, on the
// same connection, in turn.
func BenchmarkCall(b *testing.B) {
	client, server := start(b), start(b)
	connect(b, client, server)
	if err := server.Handle(protocol.ProtoClaim, echo); err != nil {
		b.Fatal(err)
	}
	const bare = "/bare/1.0.0"
	server.Host().SetStreamHandler(bare, func(s network.Stream) { _, _ = io.Copy(s, s); _ = s.Close() })
	body := make([]byte, 256)
	s, err := client.Host().NewStream(context.Background(), server.ID(), bare)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	msg := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	back := make([]byte, len(msg))
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Write(msg); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(s, back); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("call", func(b *testing.B) {
		for b.Loop() {
			if _, err := client.Call(context.Background(), server.ID(), protocol.ProtoClaim, body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("call-parallel", func(b *testing.B) {
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := client.Call(context.Background(), server.ID(), protocol.ProtoClaim, body); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
