package dht

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht"
	kadpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	kbucket "github.com/libp2p/go-libp2p-kbucket"
	kadrecord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"

	"github.com/gridbeam/gridbeam/protocol"
)

// Lives of what is kept for others (discovery.md 4). MaxRecordAge usage from receipt.
const (
	maxRecordAge    = 2 * time.Hour
	valueGC         = 15 * time.Minute
	provideValidity = 130 * time.Minute
	providerCleanup = 10 * time.Minute
)

// Limits of what one peer may have us store, a minute (discovery.md 4, rule 5).
const (
	putsPerMinute     = 60
	providesPerMinute = 120
)

// kademlia is what a Directory uses of kad-dht. The tests put a model of many peers in its place (docs/directory.md).
type kademlia interface {
	routing.ContentRouting
	valueReader
	table
	own
}

// own is what a peer of Kademlia knows without asking.
type own interface {
	// nearest are up to n servers of the table, nearest to a key first.
	nearest(key string, n int) []peer.ID
	// kept are the providers of a key that this peer keeps for others.
	kept(ctx context.Context, key multihash.Multihash) []*peer.AddrInfo
}

type valueReader interface {
	GetValue(ctx context.Context, key string, opts ...routing.Option) ([]byte, error)
}

type table interface {
	GetClosestPeers(ctx context.Context, key string) ([]peer.ID, error)
	RoutingTable() *kbucket.RoutingTable
	RefreshRoutingTable() <-chan error
	Close() error
}

func (d *Directory) joinKademlia() (kademlia, error) {
	table, err := kad.New(d.host, d.options()...)
	if err != nil {
		return nil, err
	}
	return realKad{table}, nil
}

// realKad is kad-dht.
type realKad struct{ *kad.IpfsDHT }

func (k realKad) nearest(key string, n int) []peer.ID {
	return k.RoutingTable().NearestPeers(kbucket.ConvertKey(key), n)
}

func (k realKad) kept(ctx context.Context, key multihash.Multihash) []*peer.AddrInfo {
	infos, err := k.ProviderStore().GetProviders(ctx, key)
	if err != nil {
		return nil
	}
	out := make([]*peer.AddrInfo, len(infos))
	for i := range infos {
		out[i] = &infos[i]
	}
	return out
}

// judge opens signed envelopes. A model of many peers opens each once, not once for each of them.
type judge struct {
	capability func(raw []byte, owner peer.ID, now time.Time) (*record, error)
	beat       func(raw []byte, author peer.ID) (*beat, error)
}

// options turns the configuration into kad-dht's.
func (d *Directory) options() []kad.Option {
	modes := map[Mode]kad.ModeOpt{ModeServer: kad.ModeServer, ModeAuto: kad.ModeAuto, ModeClient: kad.ModeClient}
	refresh := 30 * time.Minute
	if d.cfg.Mode == ModeServer {
		refresh = 10 * time.Minute
	}
	opts := []kad.Option{
		kad.ProtocolPrefix(protocol.DHTPrefix),
		kad.Mode(modes[d.cfg.Mode]),
		kad.Validator(kadrecord.NamespacedValidator{protocol.NamespaceCapability: Validator{Now: d.clock}}),
		kad.BucketSize(d.cfg.K),
		kad.Concurrency(min(10, d.cfg.K)),
		kad.Resiliency(min(3, d.cfg.K)),
		kad.RoutingTableRefreshPeriod(refresh),
		kad.MaxRecordAge(maxRecordAge),
		kad.ValueGCInterval(valueGC),
		kad.ValueDatastore(d.values),
		kad.ProviderDatastore(newBoundedStore(d.host.ID(), d.cfg.StoreBytes)),
		kad.ProviderManagerOpts(records.ProvideValidity(provideValidity), records.ProviderAddrTTL(provideValidity), records.CleanupInterval(providerCleanup)),
		kad.OnRequestHook(newQuota(d.clock).hook),
	}
	if !d.cfg.Loopback {
		opts = append(opts,
			kad.QueryFilter(kad.PublicQueryFilter),
			kad.AddressFilter(d.publicOrOwn),
			kad.RoutingTableFilter(kad.PublicRoutingTableFilter),
			kad.RoutingTablePeerDiversityFilter(kad.NewRTPeerDiversityFilter(d.host, 2, 3)),
		)
	}
	return opts
}

// translate turns Kademlia's errors into ours.
func (d *Directory) translate(err error) error {
	switch {
	case errors.Is(err, kbucket.ErrLookupFailure):
		return ErrNoServers
	case errors.Is(err, routing.ErrNotFound):
		if d.kad.RoutingTable().Size() == 0 {
			return ErrNoServers
		}
		return ErrNotFound
	default:
		return err
	}
}

// waitServers waits until the routing table has a server. It returns ErrNoServers when ctx ends first.
func (d *Directory) waitServers(ctx context.Context) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for d.kad.RoutingTable().Size() == 0 {
		select {
		case <-ctx.Done():
			return ErrNoServers
		case <-t.C:
		}
	}
	return nil
}

// quota holds each sender, and each network, to a number of stores a minute. kad-dht has no way to refuse in its hook
// but to make the request invalid: without a key it is rejected.
type quota struct {
	now func() time.Time

	mu     sync.Mutex
	minute int64
	puts   usage
	adds   usage
}

func newQuota(now func() time.Time) *quota { return &quota{now: now} }

func (q *quota) hook(_ context.Context, s network.Stream, req *kadpb.Message) {
	kind := req.GetType()
	if kind != kadpb.Message_PUT_VALUE && kind != kadpb.Message_ADD_PROVIDER {
		return
	}
	if !q.allow(askerOf(s.Conn()), kind == kadpb.Message_PUT_VALUE) {
		req.Key = nil
	}
}

// allow usage a store in fixed minutes; the counters start anew with each, so that they stay small.
func (q *quota) allow(who asker, put bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m := q.now().Unix() / 60; m != q.minute || q.puts == nil {
		q.minute, q.puts, q.adds = m, usage{}, usage{}
	}
	if put {
		return q.puts.spend(who, 1, putsPerMinute, netShare)
	}
	return q.adds.spend(who, 1, providesPerMinute, netShare)
}

// messenger sends single Kademlia requests, so that acknowledgements can be counted: kad-dht's own PutValue
// returns nil when every remote peer has refused.
type messenger struct{ *kadpb.ProtocolMessenger }

func newMessenger(h host.Host) *messenger {
	m, err := kadpb.NewProtocolMessenger(&oneShot{h})
	if err != nil { // only its options can fail, and there are none
		panic(err)
	}
	return &messenger{m}
}

// oneShot sends each request on a stream of its own.
type oneShot struct{ host host.Host }

// Replies: a PUT_VALUE's repeats the record; one to GET_PROVIDERS holds the providers with their addresses, and
// more than this is more than a key ought to have.
const (
	maxKadReply       = 64 << 10
	maxProvidersReply = 512 << 10
)

// SendRequest implements kad-dht's MessageSender.
func (o *oneShot) SendRequest(ctx context.Context, p peer.ID, m *kadpb.Message) (*kadpb.Message, error) {
	s, err := o.send(ctx, p, m)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	limit := maxKadReply
	if m.GetType() == kadpb.Message_GET_PROVIDERS {
		limit = maxProvidersReply
	}
	if err := s.Scope().ReserveMemory(limit, network.ReservationPriorityMedium); err != nil {
		_ = s.Reset()
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	defer s.Scope().ReleaseMemory(limit)
	raw, err := msgio.NewVarintReaderSize(s, limit).ReadMsg()
	if err != nil {
		_ = s.Reset()
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	reply := &kadpb.Message{}
	if err := proto.Unmarshal(raw, reply); err != nil {
		_ = s.Reset()
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	return reply, nil
}

// SendMessage implements kad-dht's MessageSender.
func (o *oneShot) SendMessage(ctx context.Context, p peer.ID, m *kadpb.Message) error {
	s, err := o.send(ctx, p, m)
	if err != nil {
		return err
	}
	return s.Close()
}

// timeLeft is the context's error, also when its deadline has come and its timer has not told yet. Over an open connection
// a stream opens all the same.
func timeLeft(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err //nolint:wrapcheck // by the caller, who knows for what the time was
	}
	if at, ok := ctx.Deadline(); ok && !time.Now().Before(at) {
		return context.DeadlineExceeded
	}
	return nil
}

func (o *oneShot) send(ctx context.Context, p peer.ID, m *kadpb.Message) (network.Stream, error) {
	if err := timeLeft(ctx); err != nil {
		return nil, fmt.Errorf("sending a request: %w", err)
	}
	s, err := o.host.NewStream(ctx, p, protocol.ProtoKad)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.SetDeadline(deadline)
	}
	raw, err := proto.Marshal(m)
	if err == nil {
		err = msgio.NewVarintWriter(struct{ io.Writer }{s}).WriteMsg(raw)
	}
	if err != nil {
		_ = s.Reset()
		return nil, fmt.Errorf("sending a request: %w", err)
	}
	return s, nil
}
