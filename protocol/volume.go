package protocol

import (
	"fmt"
	"path"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Bounds of a volume reference.
const (
	maxVolumes    = 16
	maxHolders    = 16
	maxPlaces     = 8
	maxAddrs      = 8
	maxAddrBytes  = 256
	maxTargetSize = 4096
	maxCIDBytes   = 64
)

// VolumeRef names a tree and where a job finds it (volumes.md 3). The bridge resolves a job's volume to a root
// once, so that all members of its cluster see the same bytes.
type VolumeRef struct {
	// Name is what the job file calls it.
	Name string
	// Root is the UnixFS root CID.
	Root cid.Cid
	// At is the absolute path at which the job finds it.
	At string
	// Mode is "ro", or "rw-shared" for a function: each process writes into a copy of its own, and what it wrote comes
	// back with its results.
	Mode string
	// Links are further paths of the same files, absolute or relative to the work directory, at most 8.
	Links []string
	// Bytes is the size of its files, Blocks the number of its distinct blocks.
	Bytes, Blocks uint64
	// Holders have it, at most 16.
	Holders []peer.AddrInfo
}

func (v *VolumeRef) validate(noun string) error {
	switch {
	case v.Name == "" || len(v.Name) > maxName:
		return bounds(noun, "volume.name", "has %d bytes, want 1..%d", len(v.Name), maxName)
	case !v.Root.Defined():
		return bounds(noun, "volume.root", "is missing")
	case v.Mode != "ro" && v.Mode != "rw-shared":
		return bounds(noun, "volume.mode", "is %.20q, want ro or rw-shared", v.Mode)
	case len(v.Links) > maxPlaces:
		return bounds(noun, "volume.links", "has %d entries, at most %d", len(v.Links), maxPlaces)
	case len(v.At) > maxTargetSize || !path.IsAbs(v.At) || path.Clean(v.At) != v.At || v.At == "/" || strings.ContainsRune(v.At, 0):
		return bounds(noun, "volume.at", "%.80q is no clean absolute path below /", v.At)
	case len(v.Holders) > maxHolders:
		return bounds(noun, "volume.holders", "has %d entries, at most %d", len(v.Holders), maxHolders)
	}
	for _, l := range v.Links {
		if l == "" || len(l) > maxTargetSize || path.Clean(l) != l || l == "/" || l == "." || strings.HasPrefix(l, "..") || strings.ContainsRune(l, 0) {
			return bounds(noun, "volume.links", "%.80q is no clean path", l)
		}
	}
	for i := range v.Holders {
		if err := validHolder(noun, "volume.holders", &v.Holders[i]); err != nil {
			return err
		}
	}
	return nil
}

func validHolder(noun, field string, h *peer.AddrInfo) error {
	if err := validPeers(noun, h.ID); err != nil {
		return err
	}
	for _, a := range h.Addrs {
		if len(a) == 0 || len(a.Bytes()) > maxAddrBytes {
			return bounds(noun, field, "has an address of %d bytes, want 1..%d", len(a.Bytes()), maxAddrBytes)
		}
	}
	return nil
}

func (v *VolumeRef) toPB() *pb.VolumeRef {
	m := &pb.VolumeRef{Name: v.Name, Root: cidBytes(v.Root), At: v.At, Mode: v.Mode, Bytes: v.Bytes, Blocks: v.Blocks, Links: v.Links}
	for _, h := range v.Holders {
		m.Holders = append(m.Holders, holderToPB(h))
	}
	return m
}

func volumeFromPB(m *pb.VolumeRef) (v VolumeRef, err error) {
	v = VolumeRef{Name: m.GetName(), At: m.GetAt(), Mode: m.GetMode(), Bytes: m.GetBytes(), Blocks: m.GetBlocks(), Links: m.GetLinks()}
	if v.Root, err = cidFrom("volume root", m.GetRoot()); err != nil {
		return v, err
	}
	for _, h := range m.GetHolders() {
		info, err := holderFromPB(h)
		if err != nil {
			return v, err
		}
		v.Holders = append(v.Holders, info)
	}
	return v, nil
}

// holderToPB keeps the first eight addresses.
func holderToPB(info peer.AddrInfo) *pb.Holder {
	h := &pb.Holder{PeerId: []byte(info.ID)}
	for _, a := range info.Addrs[:min(len(info.Addrs), maxAddrs)] {
		h.Addrs = append(h.Addrs, a.Bytes())
	}
	return h
}

func holderFromPB(m *pb.Holder) (info peer.AddrInfo, err error) {
	info.ID = PeerID(m.GetPeerId())
	for _, b := range m.GetAddrs() {
		if len(b) > maxAddrBytes {
			return info, bounds("holder", "addrs", "has an address of %d bytes, at most %d", len(b), maxAddrBytes)
		}
		a, err := multiaddr.NewMultiaddrBytes(b)
		if err != nil {
			return info, fmt.Errorf("%w: holder's address: %w", ErrMalformed, err)
		}
		info.Addrs = append(info.Addrs, a)
	}
	return info, nil
}

func cidFrom(what string, b []byte) (cid.Cid, error) {
	if len(b) == 0 {
		return cid.Undef, nil
	}
	if len(b) > maxCIDBytes {
		return cid.Undef, fmt.Errorf("%w: %s has %d bytes", ErrMalformed, what, len(b))
	}
	c, err := cid.Cast(b)
	if err != nil {
		return cid.Undef, fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	return c, nil
}

func cidBytes(c cid.Cid) []byte {
	if !c.Defined() {
		return nil
	}
	return c.Bytes()
}
