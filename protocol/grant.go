package protocol

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	pb "github.com/gridbeam/gridbeam/protocol/pb/gridbeam/v1"
)

// Abilities that a grant may hold (trust.md 2).
const (
	AbilityJobSubmit   = "job/submit"
	AbilityJobControl  = "job/control"
	AbilityCounterSign = "receipt/countersign"
	AbilityAttest      = "attest"
	AbilityNodeServe   = "node/serve"
	AbilityNodeAdmin   = "node/admin"
)

var abilities = []string{
	AbilityAttest, AbilityJobControl, AbilityJobSubmit, AbilityNodeAdmin, AbilityNodeServe, AbilityCounterSign,
	"volume/admin", "volume/authority", "volume/read", "volume/replicate", "volume/write",
}

// Bounds of grants, checked before anything is parsed (trust.md 2).
const (
	maxLinks      = 4
	maxSet        = 64
	maxSetValue   = 64
	grantSkew     = 60 * time.Second
	maxGrantYears = 10 * 366 * 24 * time.Hour
)

// AuthCode says why a chain was refused; the list only grows.
type AuthCode string

// The codes (trust.md 2).
const (
	AuthTooLarge  AuthCode = "auth/too-large"
	AuthMalformed AuthCode = "auth/malformed"
	AuthNetwork   AuthCode = "auth/network"
	AuthLinkage   AuthCode = "auth/linkage"
	AuthWindow    AuthCode = "auth/window"
	AuthWidened   AuthCode = "auth/widened"
	AuthRoot      AuthCode = "auth/root"
	AuthRevoked   AuthCode = "auth/revoked"
	AuthStale     AuthCode = "auth/stale-feed"
	AuthAudience  AuthCode = "auth/audience"
	AuthSignature AuthCode = "auth/signature"
	AuthAbility   AuthCode = "auth/ability"
	AuthLimit     AuthCode = "auth/limit"
	AuthReplay    AuthCode = "auth/replay"
	AuthPolicy    AuthCode = "auth/policy"
	AuthAgain     AuthCode = "auth/present-again"
)

// AuthError is a refused chain: its code, the link (from 0, -1 for none) and what is wrong.
type AuthError struct {
	// Code is the machine's half.
	Code AuthCode
	// Link counts the chain's links from the root's, -1 when it is not about one.
	Link int
	// Text is for people.
	Text string
}

// Error tells code, link and text.
func (e *AuthError) Error() string {
	if e.Link < 0 {
		return fmt.Sprintf("%s: %s", e.Code, e.Text)
	}
	return fmt.Sprintf("%s: link %d: %s", e.Code, e.Link, e.Text)
}

// CodeOfAuth returns the code of the *AuthError inside err, or AuthMalformed.
func CodeOfAuth(err error) AuthCode {
	if e, ok := errors.AsType[*AuthError](err); ok {
		return e.Code
	}
	return AuthMalformed
}

// GrantLimits narrows a grant; a nil or empty limit is absent, which inherits.
type GrantLimits struct {
	// MaxGPUs, MaxWallS (seconds), MaxChunks and MaxPrice (micro-USD per GPU-hour) are upper bounds.
	MaxGPUs, MaxWallS, MaxChunks *uint32
	// GPUSeconds bounds the use of GPUs in all, MaxPrice the price in micro-USD per GPU-hour.
	GPUSeconds, MaxPrice *uint64
	// MinIsolation is a lower bound: 1 dev, 2 shared, 3 strong, 4 confidential.
	MinIsolation *uint32
	// Egress is an upper bound: 0 none, 1 listed, 2 any.
	Egress *uint32
	// GPUModels, EgressHosts, Volumes, Regions and JobKinds are sets; sorted.
	GPUModels, EgressHosts, Volumes, Regions, JobKinds []string
}

// Grant is one link of a capability chain (trust.md 2).
type Grant struct {
	// ID is the SHA-256 of its payload; Open and Seal set it.
	ID GrantID
	// Network is where it counts.
	Network NetworkID
	// Issuer gives it to Audience.
	Issuer, Audience PeerID
	// Parent is the link before it, zero for the first.
	Parent GrantID
	// Abilities are what it allows; sorted.
	Abilities []string
	// Limits narrow it.
	Limits GrantLimits
	// NotBefore and NotAfter are its window, in whole seconds.
	NotBefore, NotAfter time.Time
	// Nonce makes it unique.
	Nonce [16]byte
	// Epoch is the issuer's: a GrantEpoch above it kills the grant.
	Epoch uint64
	// Delegations is how many links may follow.
	Delegations uint32
}

func (g *Grant) toPB() *pb.Grant {
	l := &g.Limits
	m := &pb.Grant{
		Format: 1, Network: g.Network[:], Issuer: []byte(g.Issuer), Audience: []byte(g.Audience), Abilities: g.Abilities,
		NotBefore: g.NotBefore.Unix(), NotAfter: g.NotAfter.Unix(), Nonce: g.Nonce[:], IssuerEpoch: g.Epoch, Delegations: g.Delegations,
	}
	if g.Parent != (GrantID{}) {
		m.Parent = g.Parent[:]
	}
	lim := &pb.GrantLimits{
		MaxGpus: l.MaxGPUs, GpuSeconds: l.GPUSeconds, GpuModels: l.GPUModels, MinIsolation: l.MinIsolation, Egress: l.Egress, EgressHosts: l.EgressHosts,
		MaxWallS: l.MaxWallS, Volumes: l.Volumes, Regions: l.Regions, MaxPrice: l.MaxPrice, MaxChunks: l.MaxChunks, JobKinds: l.JobKinds,
	}
	if b, err := marshal(lim); err == nil && len(b) > 0 {
		m.Limits = lim
	}
	return m
}

// Seal fills in a nonce if there is none, sorts the sets, cuts the window to whole seconds, sets ID and signs
// with the issuer's key.
func (g *Grant) Seal(key crypto.PrivKey) ([]byte, error) {
	if g.Nonce == ([16]byte{}) {
		_, _ = rand.Read(g.Nonce[:])
	}
	g.NotBefore, g.NotAfter = g.NotBefore.Truncate(time.Second), g.NotAfter.Truncate(time.Second)
	for _, s := range append(g.Limits.sets(), namedSet{"abilities", &g.Abilities}) {
		*s.set = slices.Clone(*s.set)
		slices.Sort(*s.set)
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	payload, err := marshal(g.toPB())
	if err != nil {
		return nil, err
	}
	g.ID = sha256.Sum256(payload)
	return nounGrant.sealBytes(key, g.Issuer, payload)
}

// decodeGrant reads a payload and refuses every form but the canonical one: a limit that an old verifier does
// not know would otherwise widen.
func decodeGrant(payload []byte) (g Grant, err error) {
	m := &pb.Grant{}
	if err := nounGrant.decode(payload, m); err != nil {
		return g, err
	}
	l := m.GetLimits()
	if l == nil {
		l = &pb.GrantLimits{}
	}
	g = Grant{
		ID: sha256.Sum256(payload), Issuer: PeerID(m.GetIssuer()), Audience: PeerID(m.GetAudience()), Abilities: m.GetAbilities(),
		NotBefore: time.Unix(m.GetNotBefore(), 0), NotAfter: time.Unix(m.GetNotAfter(), 0), Epoch: m.GetIssuerEpoch(), Delegations: m.GetDelegations(),
		Limits: GrantLimits{
			MaxGPUs: l.MaxGpus, GPUSeconds: l.GpuSeconds, GPUModels: l.GpuModels, MinIsolation: l.MinIsolation, Egress: l.Egress, EgressHosts: l.EgressHosts,
			MaxWallS: l.MaxWallS, Volumes: l.Volumes, Regions: l.Regions, MaxPrice: l.MaxPrice, MaxChunks: l.MaxChunks, JobKinds: l.JobKinds,
		},
	}
	if m.GetFormat() != 1 {
		return g, bounds("grant", "format", "is %d, want 1", m.GetFormat())
	}
	if g.Network, err = id16("network", m.GetNetwork()); err != nil {
		return g, err
	}
	if len(m.GetParent()) > 0 {
		if g.Parent, err = grantID(m.GetParent()); err != nil {
			return g, err
		}
	}
	if g.Nonce, err = id16("nonce", m.GetNonce()); err != nil {
		return g, err
	}
	if m.GetNotBefore() < 0 || m.GetNotAfter() > maxMS/1000 { // before they are compared: far ones wrap around
		return g, bounds("grant", "not_after", "%d..%d are no times of the years 1970 to 9999", m.GetNotBefore(), m.GetNotAfter())
	}
	if !canonical(g.toPB(), payload) {
		return g, fmt.Errorf("%w: grant is not in canonical form or has unknown fields", ErrMalformed)
	}
	return g, g.Validate()
}

// namedSet is a set of texts in a grant.
type namedSet struct {
	field string
	set   *[]string
}

func (l *GrantLimits) sets() []namedSet {
	return []namedSet{{"gpu_models", &l.GPUModels}, {"egress_hosts", &l.EgressHosts}, {"volumes", &l.Volumes}, {"regions", &l.Regions}, {"job_kinds", &l.JobKinds}}
}

// Validate names the first field out of bounds, with ErrBounds or ErrBadID.
func (g *Grant) Validate() error {
	if err := validPeers("grant", g.Issuer, g.Audience); err != nil {
		return err
	}
	for _, s := range append(g.Limits.sets(), namedSet{"abilities", &g.Abilities}) {
		if len(*s.set) > maxSet {
			return bounds("grant", s.field, "has %d values, at most %d", len(*s.set), maxSet)
		}
		for i, v := range *s.set {
			if v == "" || len(v) > maxSetValue || !printable(v) || i > 0 && (*s.set)[i-1] >= v {
				return bounds("grant", s.field, "value %.64q is empty, longer than %d, unprintable, or out of order", v, maxSetValue)
			}
		}
	}
	for _, a := range g.Abilities {
		if !slices.Contains(abilities, a) {
			return bounds("grant", "abilities", "%.64q is not known", a)
		}
	}
	switch l := &g.Limits; {
	case len(g.Abilities) == 0:
		return bounds("grant", "abilities", "is empty")
	case g.NotBefore.Unix() < 0 || g.NotAfter.Unix() > maxMS/1000:
		return bounds("grant", "not_after", "%s..%s are no times of the years 1970 to 9999", g.NotBefore.UTC().Format(time.RFC3339), g.NotAfter.UTC().Format(time.RFC3339))
	case !g.NotAfter.After(g.NotBefore) || g.NotAfter.Sub(g.NotBefore) > maxGrantYears:
		return bounds("grant", "not_after", "%s does not follow not_before %s within 10 years", g.NotAfter.UTC().Format(time.RFC3339), g.NotBefore.UTC().Format(time.RFC3339))
	case g.Delegations >= maxLinks:
		return bounds("grant", "delegations", "is %d, at most %d", g.Delegations, maxLinks-1)
	case l.MinIsolation != nil && (*l.MinIsolation < 1 || *l.MinIsolation > 4):
		return bounds("grant", "limits.min_isolation", "is %d, want 1..4", *l.MinIsolation)
	case l.Egress != nil && *l.Egress > 2:
		return bounds("grant", "limits.egress", "is %d, want 0..2", *l.Egress)
	}
	return nil
}

// Rights are what a chain allows its last audience: the meet of all its links.
type Rights struct {
	// Grant is the last link.
	Grant GrantID
	// Holder is the last audience.
	Holder PeerID
	// Root issued the first link.
	Root PeerID
	// Chain are the IDs of all links.
	Chain []GrantID
	// Abilities, Limits and Expires are effective.
	Abilities []string
	// Limits are the meet of all links'.
	Limits GrantLimits
	// Expires is the earliest end of a window.
	Expires time.Time
}

// Can says whether the rights hold an ability at a time.
func (r *Rights) Can(ability string, now time.Time) bool {
	return now.Before(r.Expires.Add(grantSkew)) && slices.Contains(r.Abilities, ability)
}

// GrantCheck is what a verifier knows.
type GrantCheck struct {
	// Network is where the chain has to count.
	Network NetworkID
	// Audience is the remote peer, as its handshake proved.
	Audience PeerID
	// IsRoot says who may issue a first link.
	IsRoot func(PeerID) bool
	// Revoked says whether a link was revoked or its issuer's epoch has passed; nil knows of none.
	Revoked func(g *Grant) bool
	// Now is the verifier's clock.
	Now time.Time
}

// VerifyChain checks a chain of signed grants, root's first, cheap checks before signatures (trust.md 2). The
// error is an *AuthError; of several that hold, it is the first of the first link that has one, and signatures
// come last.
func VerifyChain(links [][]byte, c GrantCheck) (Rights, error) {
	envs, r, err := weighChain(links, &c)
	if err != nil {
		return Rights{}, err
	}
	for i := range envs {
		if err := nounGrant.verify(&envs[i]); err != nil {
			return Rights{}, refused(AuthSignature, i, "%s", err)
		}
	}
	return r, nil
}

// weighChain is everything of VerifyChain but the signatures.
func weighChain(links [][]byte, c *GrantCheck) ([]envelope, Rights, error) {
	fail := func(code AuthCode, link int, format string, args ...any) ([]envelope, Rights, error) {
		return nil, Rights{}, refused(code, link, format, args...)
	}
	size := 0
	for i, l := range links {
		if size += len(l); len(l) > MaxGrantLink {
			return fail(AuthTooLarge, i, "%d bytes, at most %d", len(l), MaxGrantLink)
		}
	}
	if len(links) == 0 || len(links) > maxLinks || size > MaxGrantChain {
		return fail(AuthTooLarge, -1, "a chain of %d links and %d bytes, want 1..%d links of at most %d bytes", len(links), size, maxLinks, MaxGrantChain)
	}
	var r Rights
	var prev *Grant
	envs := make([]envelope, len(links))
	for i, raw := range links {
		var err error
		if envs[i], err = nounGrant.parse(raw); errors.Is(err, ErrSignature) {
			return fail(AuthSignature, i, "%s", err)
		} else if err != nil {
			return fail(AuthMalformed, i, "%s", err)
		}
		g, err := decodeGrant(envs[i].payload)
		if err != nil {
			return fail(AuthMalformed, i, "%s", err)
		}
		if envs[i].signer != g.Issuer {
			return fail(AuthSignature, i, "signed by %s, issued by %s", envs[i].signer, g.Issuer)
		}
		if code, text := g.follow(prev, &r.Limits, c); code != "" {
			return fail(code, i, "%s", text)
		}
		r.meet(&g, i == 0)
		prev = &g
	}
	if prev.Audience != c.Audience {
		return fail(AuthAudience, len(links)-1, "it is for %s, presented by %s", prev.Audience, c.Audience)
	}
	return envs, r, nil
}

func refused(code AuthCode, link int, format string, args ...any) error {
	return &AuthError{code, link, fmt.Sprintf(format, args...)}
}

// follow checks a link against the one before it, what all before it allow together, and the verifier's
// knowledge. Limits are held against the meet of all: a link in between may have left one out, which inherits it.
func (g *Grant) follow(prev *Grant, so *GrantLimits, c *GrantCheck) (AuthCode, string) {
	switch {
	case g.Network != c.Network:
		return AuthNetwork, fmt.Sprintf("it counts in network %s, this is %s", g.Network, c.Network)
	case prev == nil && g.Parent != (GrantID{}):
		return AuthLinkage, "the first link names a parent"
	case prev != nil && (g.Parent != prev.ID || g.Issuer != prev.Audience):
		return AuthLinkage, "it does not follow from the link before it"
	case c.Now.Add(grantSkew).Before(g.NotBefore):
		return AuthWindow, "it begins at " + g.NotBefore.UTC().Format(time.RFC3339)
	case !c.Now.Before(g.NotAfter.Add(grantSkew)):
		return AuthWindow, "it ended at " + g.NotAfter.UTC().Format(time.RFC3339)
	}
	if prev != nil {
		if field := g.widens(prev, so); field != "" {
			return AuthWidened, field + " allows more than the links before it"
		}
	}
	switch {
	case prev == nil && (c.IsRoot == nil || !c.IsRoot(g.Issuer)):
		return AuthRoot, fmt.Sprintf("%s is no root of the network", g.Issuer)
	case c.Revoked != nil && c.Revoked(g):
		return AuthRevoked, "it was revoked"
	}
	return "", ""
}

// widens names the first field that allows more than the link before and the limits of all before.
func (g *Grant) widens(prev *Grant, so *GrantLimits) string {
	switch {
	case prev.Delegations == 0 || g.Delegations >= prev.Delegations:
		return "delegations"
	case g.NotBefore.Before(prev.NotBefore):
		return "not_before"
	case g.NotAfter.After(prev.NotAfter):
		return "not_after"
	case !subset(g.Abilities, prev.Abilities):
		return "abilities"
	}
	if field := widened(&g.Limits, so); field != "" {
		return "limits." + field
	}
	return ""
}

func subset(a, b []string) bool {
	for _, v := range a {
		if !slices.Contains(b, v) {
			return false
		}
	}
	return true
}

// widened names the first limit that allows more than p; absent inherits and so never widens.
func widened(l, p *GrantLimits) string {
	switch {
	case above(l.MaxGPUs, p.MaxGPUs):
		return "max_gpus"
	case above(l.GPUSeconds, p.GPUSeconds):
		return "gpu_seconds"
	case above(p.MinIsolation, l.MinIsolation):
		return "min_isolation"
	case above(l.Egress, p.Egress):
		return "egress"
	case above(l.MaxWallS, p.MaxWallS):
		return "max_wall_s"
	case above(l.MaxPrice, p.MaxPrice):
		return "max_price"
	case above(l.MaxChunks, p.MaxChunks):
		return "max_chunks"
	}
	parents := p.sets()
	for i, s := range l.sets() {
		if all := *parents[i].set; len(all) > 0 && !subset(*s.set, all) {
			return s.field
		}
	}
	return ""
}

func above[T cmp.Ordered](a, b *T) bool { return a != nil && b != nil && *a > *b }

// meet narrows the rights by a link that does not widen them: what it says replaces what was, what it leaves out
// stays.
func (r *Rights) meet(g *Grant, first bool) {
	r.Grant, r.Holder, r.Abilities = g.ID, g.Audience, g.Abilities
	r.Chain = append(r.Chain, g.ID)
	if first || g.NotAfter.Before(r.Expires) {
		r.Expires = g.NotAfter
	}
	if first {
		r.Root = g.Issuer
	}
	to, from := &r.Limits, &g.Limits
	to.MaxGPUs, to.MaxWallS, to.MaxChunks = cmp.Or(from.MaxGPUs, to.MaxGPUs), cmp.Or(from.MaxWallS, to.MaxWallS), cmp.Or(from.MaxChunks, to.MaxChunks)
	to.GPUSeconds, to.MaxPrice = cmp.Or(from.GPUSeconds, to.GPUSeconds), cmp.Or(from.MaxPrice, to.MaxPrice)
	to.MinIsolation, to.Egress = cmp.Or(from.MinIsolation, to.MinIsolation), cmp.Or(from.Egress, to.Egress)
	sets := to.sets()
	for i, s := range from.sets() {
		if len(*s.set) > 0 {
			*sets[i].set = *s.set
		}
	}
}

// ParseGrant opens one signed link for inspection, checking signature and form but no chain.
func ParseGrant(raw []byte) (Grant, error) {
	e, err := nounGrant.parse(raw)
	if err != nil {
		return Grant{}, err
	}
	if err := nounGrant.verify(&e); err != nil {
		return Grant{}, err
	}
	g, err := decodeGrant(e.payload)
	if err == nil {
		err = nounGrant.author(e.signer, g.Issuer)
	}
	if err != nil {
		return Grant{}, err
	}
	return g, nil
}
