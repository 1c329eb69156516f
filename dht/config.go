package dht

import (
	"errors"
	"fmt"
	"time"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrConfig means that a field of the configuration cannot be used.
var ErrConfig = errors.New("dht: bad configuration")

// Mode says what part a peer takes in the Kademlia network.
type Mode string

// The modes (discovery.md 6).
const (
	// ModeServer stores records for others and answers: bootstrap peers, bridges, LAN and tests.
	ModeServer Mode = "server"
	// ModeAuto serves once others have found it reachable: nodes on the WAN.
	ModeAuto Mode = "auto"
	// ModeClient only asks: the command line.
	ModeClient Mode = "client"
)

// Config sets up a Directory.
type Config struct {
	// Mode of taking part. Default auto.
	Mode Mode
	// Loopback switches the filters off that keep private addresses and too many peers of one network out of
	// routing tables, and private addresses in strangers' words from being dialled: for one machine or LAN, and for
	// tests. Default false.
	Loopback bool
	// Shards are the availability topics that are listened to, 0..31. Default none: nodes only publish.
	// AllShards names them all.
	Shards []int
	// Index makes this peer answer find queries of others. Default false.
	Index bool
	// Network is the network's ID, which a hello tells. Default empty: unknown.
	Network []byte
	// IndexPeers is how many index peers of different networks and operators a directory without a replica
	// asks. Default 3.
	IndexPeers int
	// K is Kademlia's bucket size and the number of holders of a record. Default 20; tests of many hosts on
	// one machine use 8.
	K int
	// MaxNodes bounds the replica, in nodes of about 2 KB. Default 200,000.
	MaxNodes int
	// FetchWorkers is how many unknown records are fetched at once. Default 8.
	FetchWorkers int
	// FetchQueue is how many wait for a worker; further ones wait for the node's next heartbeat.
	// Default 1,024.
	FetchQueue int
	// FetchTimeout bounds the fetching of one record. Default 5 s.
	FetchTimeout time.Duration
	// PutTimeout bounds one PUT_VALUE or ADD_PROVIDER. Default 10 s.
	PutTimeout time.Duration
	// BeatGap is the least mean time between heartbeats of one node that are forwarded; four may come at once.
	// Default 2 s.
	BeatGap time.Duration
	// QueryTimeout bounds one exchange on a query stream. Default 10 s.
	QueryTimeout time.Duration
	// QueryRate is how many queries a second a peer may send, with a burst of four times as many. Default 5.
	QueryRate int
	// QueryStreams bounds the queries that are answered at once, 4 of one peer and 8 of one network at most. Default 32.
	QueryStreams int
	// ColdSample is how many providers a directory without a replica asks. Default 64.
	ColdSample int
	// ColdParallel is how many of them at once. Default 16.
	ColdParallel int
	// ColdTimeout bounds a cold search as a whole. Default 5 s.
	ColdTimeout time.Duration
	// StoreBytes bounds the values, and apart from them the providers, that are kept for others. Default 64 MiB.
	StoreBytes int
	// ScanStreams bounds the scans that are answered at once, one a peer and a quarter a network. Default 8.
	ScanStreams int
	// ScanRate is what all scans together may send, bytes per second. Default 4 MiB/s.
	ScanRate int
	// ScanQuota is what one peer may have sent to it by scans, bytes in each hour. Default 256 MiB.
	ScanQuota int
	// ScanTimeout bounds one exchange on a scan stream, a page of 2 MiB at most. Default 30 s.
	ScanTimeout time.Duration
	// MeasureTime is how long bytes flow each way when an index peer measures somebody's line. Default 8 s.
	MeasureTime time.Duration
	// MeasureStreams is over how many streams they flow, 1..16. Default 4.
	MeasureStreams int
	// MeasureBytes bounds what a measurement moves each way, for the peer that measures and for the one that is
	// measured, in bytes. Default 4 GiB.
	MeasureBytes int
	// MeasureDaily is how often an index peer measures one caller in a day. Default 2.
	MeasureDaily int
	// MeasureTotal is what an index peer may move each way in a day for all callers together, in bytes.
	// Default 256 GiB.
	MeasureTotal int
}

// AllShards returns every availability shard, for peers that keep a whole replica.
func AllShards() []int {
	all := make([]int, protocol.AvailShards)
	for i := range all {
		all[i] = i
	}
	return all
}

// DefaultConfig returns the defaults that the fields' comments name.
func DefaultConfig() Config {
	return Config{
		Mode:         ModeAuto,
		IndexPeers:   3,
		K:            20,
		MaxNodes:     200_000,
		FetchWorkers: 8,
		FetchQueue:   1024,
		FetchTimeout: 5 * time.Second,
		PutTimeout:   10 * time.Second,
		BeatGap:      2 * time.Second,
		QueryTimeout: 10 * time.Second,
		QueryRate:    5,
		QueryStreams: 32,
		ColdSample:   64,
		ColdParallel: 16,
		ColdTimeout:  5 * time.Second,
		StoreBytes:   64 << 20,
		ScanStreams:  8,
		ScanRate:     4 << 20,
		ScanQuota:    256 << 20,
		ScanTimeout:  30 * time.Second,

		MeasureTime:    8 * time.Second,
		MeasureStreams: 4,
		MeasureBytes:   4 << 30,
		MeasureDaily:   2,
		MeasureTotal:   256 << 30,
	}
}

// Validate returns ErrConfig with the name of the first field that cannot be used.
func (c Config) Validate() error {
	switch c.Mode {
	case ModeServer, ModeAuto, ModeClient:
	default:
		return fmt.Errorf("%w: Mode is %q, want server, auto or client", ErrConfig, c.Mode)
	}
	for _, s := range c.Shards {
		if s < 0 || s >= protocol.AvailShards {
			return fmt.Errorf("%w: Shards names %d, want 0..%d", ErrConfig, s, protocol.AvailShards-1)
		}
	}
	if len(c.Network) > 64 {
		return fmt.Errorf("%w: Network has %d bytes, at most 64", ErrConfig, len(c.Network))
	}
	for _, f := range []struct {
		name  string
		value int
	}{
		{"IndexPeers", c.IndexPeers},
		{"K", c.K},
		{"MaxNodes", c.MaxNodes},
		{"FetchWorkers", c.FetchWorkers},
		{"FetchQueue", c.FetchQueue},
		{"FetchTimeout", int(c.FetchTimeout)},
		{"PutTimeout", int(c.PutTimeout)},
		{"BeatGap", int(c.BeatGap)},
		{"QueryTimeout", int(c.QueryTimeout)},
		{"QueryRate", c.QueryRate},
		{"QueryStreams", c.QueryStreams},
		{"ColdSample", c.ColdSample},
		{"ColdParallel", c.ColdParallel},
		{"ColdTimeout", int(c.ColdTimeout)},
		{"StoreBytes", c.StoreBytes},
		{"ScanStreams", c.ScanStreams},
		{"ScanRate", c.ScanRate},
		{"ScanQuota", c.ScanQuota},
		{"ScanTimeout", int(c.ScanTimeout)},
		{"MeasureDaily", c.MeasureDaily},
		{"MeasureTotal", c.MeasureTotal},
	} {
		if f.value <= 0 {
			return fmt.Errorf("%w: %s has to be above 0", ErrConfig, f.name)
		}
	}
	switch {
	case c.MeasureTime < 100*time.Millisecond || c.MeasureTime > maxMeasureTime:
		return fmt.Errorf("%w: MeasureTime is %s, want 100 ms..%s", ErrConfig, c.MeasureTime, maxMeasureTime)
	case c.MeasureStreams < 1 || c.MeasureStreams > maxMeasureStreams:
		return fmt.Errorf("%w: MeasureStreams is %d, want 1..%d", ErrConfig, c.MeasureStreams, maxMeasureStreams)
	case c.MeasureBytes < minMeasureBytes:
		return fmt.Errorf("%w: MeasureBytes is %d, want at least %d, which is little for a line of 100 Mbit/s", ErrConfig, c.MeasureBytes, minMeasureBytes)
	}
	return nil
}
