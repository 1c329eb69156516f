package protocol

import (
	"fmt"
	"testing"
	"time"
)

func manyResults(n int) Results {
	r := Results{Node: nodeActor.id, Bridge: bridgeActor.id}
	for i := range uint64(n) {
		one := fixedResult()
		one.Chunk = chunkOf(fixedJob, 4*i, 4*i+4)
		r.Results = append(r.Results, one)
	}
	return r
}

func BenchmarkResults(b *testing.B) {
	for _, n := range []int{1, 64} {
		r := manyResults(n)
		raw, err := r.Seal(nodeActor.key)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("seal/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Seal(nodeActor.key); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("open/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				if _, err := OpenResults(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLeaseGrants64(b *testing.B) {
	g := fixedLeaseGrants()
	g.Leases = nil
	for i := range uint64(64) {
		l := fixedLease()
		l.Chunk, l.Inputs = chunkOf(fixedJob, i, i+1), []string{`{"lr":0.1,"hidden":32}`}
		g.Leases = append(g.Leases, l)
	}
	raw, err := g.Seal(bridgeActor.key)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.Seal(bridgeActor.key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			if _, err := OpenLeaseGrants(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReceipt256(b *testing.B) {
	r := fixedReceipt()
	r.Records = nil
	for i := range uint16(MaxRecordsPerReceipt) {
		r.Records = append(r.Records, usage(UsageWorking, i, noon.UnixMilli(), noon.UnixMilli()+CellMillis))
	}
	raw, _, err := r.Seal(nodeActor.key)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("open and validate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			got, _, err := OpenReceipt(raw)
			if err != nil {
				b.Fatal(err)
			}
			for i := range got.Records {
				if err := got.Records[i].Validate(got.Node); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkChainOfFour is trust.md 13's: at most 300 µs.
func BenchmarkChainOfFour(b *testing.B) {
	links, check := sealChain(b, fixedChain(), keysOfChain()), chainCheck()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := VerifyChain(links, check); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRefusedChain is what a stranger can make us do: no signature is looked at.
func BenchmarkRefusedChain(b *testing.B) {
	links, check := sealChain(b, fixedChain(), keysOfChain()), chainCheck()
	check.Now = check.Now.Add(365 * 24 * time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := VerifyChain(links, check); err == nil {
			b.Fatal("it was accepted")
		}
	}
}
