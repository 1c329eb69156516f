package archive

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// anonymiser replaces peer IDs by HMACs under a salt that nobody keeps, so that rows of one crawl still belong
// together, while nobody can look a known peer up, nor follow one from crawl to crawl.
type anonymiser struct{ salt [32]byte }

func newAnonymiser() (*anonymiser, error) {
	a := &anonymiser{}
	if _, err := rand.Read(a.salt[:]); err != nil {
		return nil, fmt.Errorf("drawing a salt: %w", err)
	}
	return a, nil
}

func (a *anonymiser) id(peer string) string {
	mac := hmac.New(sha256.New, a.salt[:])
	mac.Write([]byte(peer))
	return "anon-" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// addrs keeps of each address the network alone: /24 of IPv4, /48 of IPv6; names and peer IDs go.
func (a *anonymiser) addrs(texts []string) []string {
	out := []string{}
	for _, s := range texts {
		if net := network(s); net != "" {
			out = append(out, net)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func network(addr string) string {
	m, err := multiaddr.NewMultiaddr(addr)
	if err != nil {
		return ""
	}
	ip, err := manet.ToIP(m)
	if err != nil {
		return ""
	}
	n, ok := netip.AddrFromSlice(ip)
	if !ok {
		return ""
	}
	n = n.Unmap()
	bits := 48
	if n.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(n, bits).Masked().String()
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// set takes out of all rows what points at a machine or person.
func (a *anonymiser) set(s *set) {
	for i := range s.visits {
		v := &s.visits[i]
		v.PeerID = a.id(v.PeerID)
		v.Maddrs, v.FilteredMaddrs, v.ListenMaddrs = a.addrs(v.Maddrs), a.addrs(v.FilteredMaddrs), a.addrs(v.ListenMaddrs)
		v.ConnectMaddr = first(a.addrs([]string{v.ConnectMaddr}))
		for _, text := range []*string{&v.ConnectErrorStr, &v.CrawlErrorStr, &v.Properties.Err} {
			if *text != "" {
				*text = errorKind(*text)
			}
		}
	}
	for i := range s.neighbors {
		n := &s.neighbors[i]
		n.PeerID = a.id(n.PeerID)
		for k := range n.NeighborIDs {
			n.NeighborIDs[k] = a.id(n.NeighborIDs[k])
		}
		slices.Sort(n.NeighborIDs)
	}
	for i := range s.records {
		r := &s.records[i]
		r.PeerID, r.Observer = a.id(r.PeerID), ""
		r.Addrs, r.Labels, r.Volumes = a.addrs(r.Addrs), nil, 0
		r.Record, r.Availability = "", ""
		a.coarsen(r)
	}
	for i := range s.presence {
		s.presence[i].PeerID = a.id(s.presence[i].PeerID)
	}
	slices.SortFunc(s.visits, func(x, y VisitRow) int { return cmp.Compare(x.PeerID, y.PeerID) })
	slices.SortFunc(s.neighbors, func(x, y NeighborsRow) int { return cmp.Compare(x.PeerID, y.PeerID) })
	slices.SortFunc(s.presence, func(x, y PresenceRow) int { return cmp.Compare(x.PeerID, y.PeerID) })
	sortRecords(s.records)
	for i := range s.records { // a sequence number is the time in µs at which it was made: its rank does as well
		s.records[i].Seq = 1
		if i > 0 && s.records[i].PeerID == s.records[i-1].PeerID {
			s.records[i].Seq = s.records[i-1].Seq + 1
		}
	}
}

// coarsen rounds what is exact enough to find the same node in a crawl that is not anonymised.
func (a *anonymiser) coarsen(r *RecordRow) {
	for _, t := range []*string{&r.Issued, &r.Expires, &r.UpSince} {
		if at, err := parseStamp(*t); err == nil {
			*t = stamp(at.Truncate(time.Hour))
		}
	}
	r.HeartbeatAt = ""
	for _, x := range []struct {
		v    **uint64
		unit uint64
	}{{&r.RAMBytes, 1 << 30}, {&r.DiskBytes, 1 << 30}, {&r.UpBPS, 10_000_000}, {&r.DownBPS, 10_000_000}} {
		if *x.v != nil {
			rounded := (**x.v + x.unit/2) / x.unit * x.unit
			*x.v = &rounded
		}
	}
}
