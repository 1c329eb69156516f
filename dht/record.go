package dht

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/gridbeam/gridbeam/protocol"
	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Reasons for which a record or heartbeat is refused (discovery.md 2).
var (
	// ErrTooLarge means more bytes than the noun may have.
	ErrTooLarge = errors.New("dht: record is too large")
	// ErrNotOwner means that key, envelope and content do not name one and the same peer, or that its
	// signature is not good.
	ErrNotOwner = errors.New("dht: record is not its owner's")
	// ErrExpired means a record of the past, of the future or of too long a life.
	ErrExpired = errors.New("dht: record is not of now")
	// ErrFormat means bytes that are no such record, or one that needs a newer reader.
	ErrFormat = errors.New("dht: record cannot be read")
	// ErrBounds means that a field is outside of what it may hold.
	ErrBounds = errors.New("dht: record is out of bounds")
)

const (
	readerVersion = 1 // the newest min_reader that we understand
	maxLifetime   = 2 * time.Hour
	maxAhead      = 2 * time.Minute // clocks may differ by so much
	maxBeatAge    = 5 * time.Minute
	minPeriod     = 10 * time.Second // of heartbeats: a node is believed for three periods
	maxPeriod     = 2 * time.Minute
	digestSize    = 8
)

// errPeriod is a heartbeat's period that this version does not take. A later one may send other periods, so who forwards
// such a heartbeat is not to blame.
var errPeriod = fmt.Errorf("%w: period_s is not within %d..%d", ErrBounds, minPeriod/time.Second, maxPeriod/time.Second)

func digestOf(raw []byte) (d [digestSize]byte) { s := sha256.Sum256(raw); copy(d[:], s[:]); return d }

func capabilityKey(id peer.ID) string { return "/" + protocol.NamespaceCapability + "/" + id.String() }
func millis(ms int64) time.Time       { return time.UnixMilli(ms) }

// record is a verified capability record.
type record struct {
	raw    []byte
	peer   peer.ID
	cap    *pb.Capability
	digest [digestSize]byte
}

func (r *record) expires() time.Time { return millis(r.cap.GetExpires()) }

// beat is a verified heartbeat.
type beat struct {
	raw  []byte
	peer peer.ID
	av   *pb.Availability
}

func (b *beat) period() time.Duration { return time.Duration(b.av.GetPeriodS()) * time.Second }

func (b *beat) speaksOf(r *record) bool {
	return bytes.Equal(b.av.GetCapDigest(), r.digest[:])
}

// openCapability verifies a signed record, the cheap checks first. owner is whose record it has to be.
func openCapability(raw []byte, owner peer.ID, now time.Time) (*record, error) {
	if len(raw) > protocol.MaxCapability {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(raw), protocol.MaxCapability)
	}
	c, err := protocol.OpenCapability(raw, owner)
	if err != nil {
		return nil, refusal(err)
	}
	if err := checkCapability(c, now); err != nil {
		return nil, err
	}
	return &record{raw: bytes.Clone(raw), peer: owner, cap: c, digest: digestOf(raw)}, nil
}

// refusal translates protocol's reasons for which an envelope was refused.
func refusal(err error) error {
	for _, r := range []struct{ is, as error }{
		{protocol.ErrTooLarge, ErrTooLarge}, {protocol.ErrSignature, ErrNotOwner}, {protocol.ErrAuthor, ErrNotOwner}, {protocol.ErrBounds, ErrBounds},
	} {
		if errors.Is(err, r.is) {
			return fmt.Errorf("%w: %w", r.as, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrFormat, err)
}

func checkCapability(c *pb.Capability, now time.Time) error {
	if c.GetFormat() == 0 || c.GetMinReader() > readerVersion {
		return fmt.Errorf("%w: format %d needs reader %d, this is %d", ErrFormat, c.GetFormat(), c.GetMinReader(), readerVersion)
	}
	issued, expires := millis(c.GetIssued()), millis(c.GetExpires())
	switch {
	case issued.After(now.Add(maxAhead)):
		return fmt.Errorf("%w: issued %s from now", ErrExpired, issued.Sub(now))
	case !expires.After(now):
		return fmt.Errorf("%w: expired %s ago", ErrExpired, now.Sub(expires))
	case expires.Sub(issued) > maxLifetime || !expires.After(issued):
		return fmt.Errorf("%w: a life of %s, at most %s", ErrExpired, expires.Sub(issued), maxLifetime)
	}
	return checkBounds(c)
}

// bounds collects the first violation.
type bounds struct{ err error }

func (b *bounds) atMost(what string, n, limit int) {
	if n > limit && b.err == nil {
		b.err = fmt.Errorf("%w: %s has %d, at most %d", ErrBounds, what, n, limit)
	}
}

func (b *bounds) exactly(what string, n, want int) {
	if n != want && b.err == nil {
		b.err = fmt.Errorf("%w: %s has %d bytes, want %d", ErrBounds, what, n, want)
	}
}

// checkBounds holds each field to discovery.md 2's table.
func checkBounds(c *pb.Capability) error {
	b := &bounds{}
	if c.GetSeq() == 0 {
		b.err = fmt.Errorf("%w: seq is 0", ErrBounds)
	}
	b.atMost("agent", len(c.GetAgent()), 32)
	b.atMost("features", len(c.GetFeatures()), 16)
	for _, f := range c.GetFeatures() {
		b.atMost("feature", len(f), 32)
	}
	b.atMost("roles", len(c.GetRoles()), 8)
	for _, r := range c.GetRoles() {
		b.atMost("role", len(r), 32)
	}
	b.atMost("addrs", len(c.GetAddrs()), 6)
	for _, a := range c.GetAddrs() {
		b.atMost("addr", len(a), 128)
	}
	b.atMost("gpus", len(c.GetGpus()), 8)
	for _, g := range c.GetGpus() {
		boundGroup(b, g)
	}
	h := c.GetHost()
	b.atMost("host.kernel", len(h.GetKernel()), 32)
	b.atMost("host.cpu_model", len(h.GetCpuModel()), 64)
	b.atMost("host.storage", len(h.GetStorage()), 4)
	b.atMost("host.cpu_features", len(h.GetCpuFeatures()), 64)
	b.atMost("host.executors", len(h.GetExecutors()), 16)
	b.atMost("volumes", len(c.GetVolumes()), 16)
	for _, v := range c.GetVolumes() {
		b.atMost("volume root", len(v.GetRoot()), 40)
		b.atMost("volume per mille", int(min(v.GetPerMille(), 1<<20)), 1000)
	}
	b.atMost("labels", len(c.GetLabels()), 16)
	for _, l := range c.GetLabels() {
		b.atMost("label key", len(l.GetKey()), 32)
		b.atMost("label value", len(l.GetValue()), 64)
	}
	b.atMost("location.landmark_rtt", len(c.GetLocation().GetLandmarkRtt()), 32)
	b.atMost("network.site_tag", len(c.GetNetwork().GetSiteTag()), 8)
	b.atMost("policy.kinds", len(c.GetPolicy().GetKinds()), 16)
	return b.err
}

func boundGroup(b *bounds, g *pb.GpuGroup) {
	b.atMost("gpu model", len(g.GetModel()), protocol.MaxModel)
	b.atMost("gpu raw_name", len(g.GetRawName()), 64)
	b.atMost("gpu count", int(g.GetCount()), 64)
	b.atMost("gpu faulted", int(g.GetFaulted()), int(g.GetCount()))
	b.atMost("gpu driver", len(g.GetDriver()), 24)
	b.atMost("gpu mig_profile", len(g.GetMigProfile()), 16)
	b.atMost("gpu fabric_tag", len(g.GetFabricTag()), 8)
	b.atMost("gpu device_tags", len(g.GetDeviceTags()), 64)
	for _, t := range g.GetDeviceTags() {
		b.exactly("gpu device_tag", len(t), 8)
	}
}

// openBeat verifies a heartbeat's form and signature; author is who published it, empty for one that came in
// an answer. Age is the receiver's business (freshBeat).
func openBeat(raw []byte, author peer.ID) (*beat, error) {
	if len(raw) > protocol.MaxAvailability {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(raw), protocol.MaxAvailability)
	}
	a, err := protocol.OpenAvailability(raw, author)
	if err != nil {
		return nil, refusal(err)
	}
	b := &bounds{}
	if a.GetFormat() == 0 || a.GetSeq() == 0 || a.GetPeriodS() == 0 {
		b.err = fmt.Errorf("%w: format, seq and period_s have to be set", ErrBounds)
	}
	b.exactly("cap_digest", len(a.GetCapDigest()), digestSize)
	b.atMost("groups", len(a.GetGroups()), 8)
	b.atMost("coordinate", len(a.GetCoordinate()), 8)
	if b.err != nil {
		return nil, b.err
	}
	if p := time.Duration(a.GetPeriodS()) * time.Second; p < minPeriod || p > maxPeriod {
		return nil, fmt.Errorf("%w: it is %d", errPeriod, a.GetPeriodS())
	}
	return &beat{raw: bytes.Clone(raw), peer: author, av: a}, nil
}

// freshBeat says whether a heartbeat's own time lies within what a receiver listens to.
func (b *beat) fresh(now time.Time) bool {
	age := now.Sub(millis(b.av.GetAt()))
	return age <= maxBeatAge && age >= -maxAhead
}

// heardAt is when a heartbeat from gossip counts as heard: now, but no later than the node's clock can have meant. One that
// somebody has held back would else show a dead node for as long as heartbeats may be old.
func (b *beat) heardAt(now time.Time) time.Time {
	if sent := millis(b.av.GetAt()).Add(maxAhead); sent.Before(now) {
		return sent
	}
	return now
}

// Validator judges records of the capability namespace for kad-dht.
type Validator struct {
	// Now is the clock, required.
	Now func() time.Time
}

// Validate accepts value under key only if the key is /gb-cap/ and the one textual form of the peer whose
// signed, current, bounded record value is. It returns ErrTooLarge, ErrNotOwner, ErrExpired, ErrFormat or
// ErrBounds.
func (v Validator) Validate(key string, value []byte) error {
	if len(value) > protocol.MaxCapability {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(value), protocol.MaxCapability)
	}
	owner, err := ownerOf(key)
	if err != nil {
		return err
	}
	_, err = openCapability(value, owner, v.Now())
	return err
}

func ownerOf(key string) (peer.ID, error) {
	text, ok := strings.CutPrefix(key, "/"+protocol.NamespaceCapability+"/")
	if !ok || len(text) > 128 {
		return "", fmt.Errorf("%w: %.60q is no key of capability records", ErrFormat, key)
	}
	owner, err := peer.Decode(text)
	if err != nil || owner.String() != text {
		return "", fmt.Errorf("%w: %.60q is not the textual form of a peer ID", ErrNotOwner, text)
	}
	return owner, nil
}

// Select returns the index of the record with the highest seq, the first among equals: any other choice would
// lose the refresh of a record's time of arrival. Values that are no records lose to those that are.
func (v Validator) Select(_ string, values [][]byte) (int, error) {
	best, bestSeq := -1, uint64(0)
	for i, raw := range values {
		seq, ok := seqOf(raw)
		if ok && (best < 0 || seq > bestSeq) {
			best, bestSeq = i, seq
		}
	}
	if best < 0 {
		return 0, fmt.Errorf("selecting among %d values: %w", len(values), ErrFormat)
	}
	return best, nil
}

// seqOf reads the sequence number without verifying: kad-dht selects only among what it has validated.
func seqOf(raw []byte) (uint64, bool) {
	c, err := protocol.PeekCapability(raw)
	return c.GetSeq(), err == nil
}

// signerOf names the peer whose key an envelope carries, unverified.
func signerOf(raw []byte) (peer.ID, bool) {
	id, err := protocol.SignerOf(raw)
	return id, err == nil
}
