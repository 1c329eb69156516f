package beambridge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/gridbeam/gridbeam/beambridge/api"
	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/beambridge/cluster"
	"github.com/gridbeam/gridbeam/beambridge/store"
	"github.com/gridbeam/gridbeam/protocol"
)

// beamFace is the bridge as Beam's clients speak to it.
type beamFace struct{ b *Bridge }

var (
	_ beamapi.Tokens    = beamFace{}
	_ beamapi.Objects   = beamFace{}
	_ beamapi.Stubs     = beamFace{}
	_ beamapi.Lifecycle = beamFace{}
	_ beamapi.Calls     = beamFace{}
	_ beamapi.Volumes   = beamFace{}
)

// Beam is the bridge as Beam's clients speak to it.
func (b *Bridge) Beam() beamapi.Bridge {
	f := beamFace{b}
	return beamapi.Bridge{Tokens: f, Objects: f, Stubs: f, Lifecycle: f, Calls: f, Volumes: f}
}

const (
	// mostPending bounds the calls of a workspace that have not ended (beam-interface.md 7).
	mostPending = 10_000
	// mostListed is how many of a user's newest calls are looked through for a list.
	mostListed = 10_000
)

// Authenticate implements beamapi.Tokens.
func (f beamFace) Authenticate(ctx context.Context, token string) (beamapi.Principal, error) {
	who, err := f.b.Authorize(ctx, token)
	if errors.Is(err, api.ErrBadToken) {
		return beamapi.Principal{}, beamapi.ErrUnauthenticated
	}
	if err != nil {
		return beamapi.Principal{}, beamError(err)
	}
	p := beamapi.Principal{Workspace: who.User, TokenID: tokenID(token)}
	switch {
	case who.Can(api.ScopeJobs):
		p.Role = beamapi.RoleFull
	case who.Can(api.ScopeInvoke):
		p.Role = beamapi.RoleInvoke
	case who.Can(api.ScopeRead):
		p.Role = beamapi.RoleRead
	default:
		return p, beamapi.ErrUnauthenticated
	}
	return p, nil
}

// beamError turns the bridge's errors into those that the face tells its clients.
func beamError(err error) error {
	var said *protocol.APIError
	var all protocol.JobErrors
	var one *protocol.JobError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%w: %w", beamapi.ErrNotFound, err)
	case errors.Is(err, ErrStopped), errors.Is(err, errNotNow):
		return fmt.Errorf("%w: %w", beamapi.ErrUnavailable, err)
	case errors.As(err, &said) && said.Code == protocol.CodeUnavailable:
		return fmt.Errorf("%w: %w", beamapi.ErrUnavailable, err)
	case errors.As(err, &said):
		text := said.Text
		if said.Field != "" {
			text = said.Field + ": " + text
		}
		if said.Fix != "" {
			text += "; " + said.Fix
		}
		return &beamapi.Refusal{Text: text}
	case errors.As(err, &all), errors.As(err, &one):
		return &beamapi.Refusal{Text: err.Error()}
	}
	return err
}

// Object implements beamapi.Objects.
func (f beamFace) Object(ctx context.Context, who beamapi.Principal, hash string) (beamapi.Object, error) {
	row, err := view(ctx, f.b, func(tx *store.Tx) (store.Object, error) { return tx.GetObject(who.Workspace, hash) })
	return objectOf(row), beamError(err)
}

func objectOf(row store.Object) beamapi.Object {
	return beamapi.Object{ID: row.Hash, Hash: row.Hash, Name: row.Name, Size: int64(row.Size)}
}

// view reads the store.
func view[T any](ctx context.Context, b *Bridge, f func(tx *store.Tx) (T, error)) (out T, err error) {
	if err := b.running(); err != nil {
		return out, err
	}
	err = b.store.View(ctx, func(tx *store.Tx) (err error) {
		out, err = f(tx)
		return err
	})
	return out, err
}

// PutObject implements beamapi.Objects.
func (f beamFace) PutObject(ctx context.Context, who beamapi.Principal, hash string, _ int64, name string, r io.Reader) (beamapi.Object, error) {
	b := f.b
	if err := b.running(); err != nil {
		return beamapi.Object{}, beamError(err)
	}
	if err := b.room(ctx, who.Workspace, archivesKept); err != nil {
		return beamapi.Object{}, beamError(err)
	}
	tree, size, err := b.keepArchive(ctx, hash, r)
	if err != nil {
		return beamapi.Object{}, beamError(err)
	}
	row := store.Object{User: who.Workspace, Hash: hash, Root: tree.Root, Name: name, Size: uint64(size), Used: b.cfg.Clock()}
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error { return tx.PutObject(row) })
		return struct{}{}, nil
	})
	return objectOf(row), beamError(err)
}

// PutStub implements beamapi.Stubs.
func (f beamFace) PutStub(ctx context.Context, who beamapi.Principal, s beamapi.Stub, force bool) (reply beamapi.StubReply, err error) {
	b := f.b
	if s.Pool != "" {
		return reply, refuse("there is no pool %q; this bridge has none. Leave pool out, or say what you need with gpu= and GRIDBEAM_* variables", s.Pool)
	}
	object, err := f.codeOf(ctx, who, s.Object)
	if err != nil {
		return reply, err
	}
	s.Job.Run.Code = object.Root.String()
	s.Job.Run.Env = maps.Clone(s.Job.Run.Env)
	o := order{user: who.Workspace, stub: "new", spec: s.Job}
	r, _, err := b.function(ctx, &o)
	if err != nil {
		return reply, beamError(err)
	}
	if reply, err = b.outlook(ctx, r); err != nil {
		return reply, beamError(err)
	}
	if !force {
		same, err := view(ctx, b, func(tx *store.Tx) ([]store.Stub, error) { return tx.FindStubs(who.Workspace, s.Digest) })
		if err != nil {
			return reply, beamError(err)
		}
		if len(same) > 0 { // the newest is the one that is found again
			reply.ID = same[len(same)-1].ID
			return reply, f.prepared(ctx, who, reply.ID, &object)
		}
	}
	if err := b.room(ctx, who.Workspace, functionsKept); err != nil {
		return reply, beamError(err)
	}
	s.ID, s.Created = protocol.NewJobID().String(), b.cfg.Clock()
	if s.Job.Run.Env == nil {
		s.Job.Run.Env = map[string]string{}
	}
	maps.Copy(s.Job.Run.Env, map[string]string{"STUB_ID": s.ID, "STUB_TYPE": s.Type, "HANDLER": s.Job.Run.Handler})
	body, err := json.Marshal(s)
	if err != nil {
		return reply, fmt.Errorf("encoding a stub: %w", err)
	}
	row := store.Stub{ID: s.ID, User: who.Workspace, Digest: s.Digest, Name: s.Name, Used: s.Created, Body: body}
	_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			return errors.Join(tx.PutStub(row), tx.TouchObject(object.User, object.Hash, t.now))
		})
		return struct{}{}, nil
	})
	reply.ID = s.ID
	return reply, beamError(err)
}

// prepared notes that a stub was prepared again.
func (f beamFace) prepared(ctx context.Context, who beamapi.Principal, id string, object *store.Object) error {
	if _, err := f.Stub(ctx, who, id); err != nil {
		return err
	}
	err := f.b.touch(ctx, id)
	if err == nil && f.b.cfg.Clock().Sub(object.Used) >= touchEvery {
		_, err = ask(ctx, f.b.engine, func(t *turn) (struct{}, error) {
			t.also(func(tx *store.Tx) error { return tx.TouchObject(object.User, object.Hash, t.now) })
			return struct{}{}, nil
		})
	}
	return beamError(err)
}

// codeOf finds the archive that a stub runs.
func (f beamFace) codeOf(ctx context.Context, who beamapi.Principal, hash string) (store.Object, error) {
	row, err := view(ctx, f.b, func(tx *store.Tx) (store.Object, error) { return tx.GetObject(who.Workspace, hash) })
	if errors.Is(err, store.ErrNotFound) {
		return row, refuse("the code %.12s… was not uploaded to this bridge; run the program again", hash)
	}
	return row, beamError(err)
}

// outlook says whether a node could run a function now.
func (b *Bridge) outlook(ctx context.Context, r *resolved) (reply beamapi.StubReply, err error) {
	s := &placing{want: r.want, terms: r.terms, credit: true, members: map[protocol.PeerID]bool{}}
	s.want.Chunks = openChunks
	list, from, err := b.candidates(ctx, s)
	if err != nil {
		return reply, fmt.Errorf("looking for nodes: %w", err)
	}
	b.measure(ctx, s, list, from)
	_, why, err := cluster.Select(s.want, list, b.cfg.Clock(), 0)
	switch {
	case errors.Is(err, cluster.ErrBadJob):
		return reply, badField("placement", "", "%v", err)
	case err != nil:
		reply.Capacity, reply.Warning = "low", "no node can run it now, so calls wait: "+strings.TrimSuffix(why.Summary(), ".")
		for _, name := range r.spec.Resources.GPU {
			if !slices.ContainsFunc(list, func(c cluster.Candidate) bool { return hasGPU(&c, name) }) {
				reply.UnsupportedGPUs = append(reply.UnsupportedGPUs, name)
			}
		}
	default:
		reply.Capacity = "available"
	}
	for i := range r.terms.Volumes {
		if v := &r.terms.Volumes[i]; v.Root == b.nothing {
			reply.Warning = strings.TrimPrefix(reply.Warning+fmt.Sprintf("; volume %s is empty: `gridbeam volume import %s DIR` fills one", v.Name, v.Name), "; ")
		}
	}
	return reply, nil
}

// hasGPU says that a node has a GPU of a name.
func hasGPU(c *cluster.Candidate, name string) bool {
	set, err := protocol.ResolveGPU(name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(c.GPUs, func(g cluster.GPU) bool { return slices.Contains(set.Slugs, g.Model) })
}

// Stub implements beamapi.Stubs.
func (f beamFace) Stub(ctx context.Context, who beamapi.Principal, id string) (beamapi.Stub, error) {
	b := f.b
	if s, ok := b.stubs.Load(id); ok {
		return ownStub(s.(*stubOf), who)
	}
	row, err := view(ctx, b, func(tx *store.Tx) (store.Stub, error) { return tx.GetStub(id) })
	if err != nil {
		return beamapi.Stub{}, beamError(err)
	}
	s := &stubOf{user: row.User}
	s.used.Store(row.Used.UnixMilli())
	if err := json.Unmarshal(row.Body, &s.stub); err != nil {
		return beamapi.Stub{}, fmt.Errorf("reading stub %s: %w", id, err)
	}
	b.stubs.Store(id, s) // stubs do not change
	return ownStub(s, who)
}

func ownStub(s *stubOf, who beamapi.Principal) (beamapi.Stub, error) {
	if s.user != who.Workspace {
		return beamapi.Stub{}, beamapi.ErrNotFound
	}
	return s.stub, nil
}

// Deploy implements beamapi.Stubs.
func (f beamFace) Deploy(ctx context.Context, who beamapi.Principal, stubID, name string) (beamapi.Deployment, error) {
	s, err := f.Stub(ctx, who, stubID)
	if err != nil {
		return beamapi.Deployment{}, err
	}
	if err := f.b.touch(ctx, stubID); err != nil {
		return beamapi.Deployment{}, beamError(err)
	}
	row := &store.Deployment{ID: protocol.NewJobID().String(), User: who.Workspace, Type: s.Type, Name: name, Stub: stubID, Active: true}
	var missing error // to be read only after a commit
	_, err = ask(ctx, f.b.engine, func(t *turn) (struct{}, error) {
		row.Created, row.Updated = t.now, t.now
		t.also(func(tx *store.Tx) error {
			if _, missing = tx.GetStub(stubID); missing != nil { // forgotten since; nothing was written, so what else the turn holds goes on
				return nil
			}
			all, err := tx.Deployments(who.Workspace)
			if err != nil {
				return err
			}
			row.Version = 1
			for _, d := range all {
				if d.Type == row.Type && d.Name == name {
					row.Version = max(row.Version, d.Version+1)
				}
			}
			return tx.PutDeployment(*row)
		})
		return struct{}{}, nil
	})
	if err = cmp.Or(err, missing); err != nil {
		return beamapi.Deployment{}, beamError(err)
	}
	return deploymentOf(row, &s), nil
}

func deploymentOf(d *store.Deployment, s *beamapi.Stub) beamapi.Deployment {
	return beamapi.Deployment{
		ID: d.ID, Name: d.Name, Version: uint32(d.Version), Active: d.Active, StubID: d.Stub, StubType: s.Type, StubName: s.Name, App: s.App,
		Created: d.Created, Updated: d.Updated,
	}
}

// Deployment implements beamapi.Stubs.
func (f beamFace) Deployment(ctx context.Context, who beamapi.Principal, key beamapi.DeploymentKey) (beamapi.Deployment, error) {
	all, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Deployment, error) { return tx.Deployments(who.Workspace) })
	if err != nil {
		return beamapi.Deployment{}, beamError(err)
	}
	var best *store.Deployment
	for i := range all {
		d := &all[i]
		switch {
		case d.Deleted:
		case key.ID != "" && d.ID == key.ID,
			key.ID == "" && d.Type == key.Type && d.Name == key.Name && (key.Version == 0 || uint64(key.Version) == d.Version) && (best == nil || best.Version < d.Version):
			best = d
		}
	}
	if best == nil {
		return beamapi.Deployment{}, beamapi.ErrNotFound
	}
	s, err := f.Stub(ctx, who, best.Stub)
	return deploymentOf(best, &s), err
}

// Deployments implements beamapi.Stubs.
func (f beamFace) Deployments(ctx context.Context, who beamapi.Principal, q beamapi.DeploymentFilter) ([]beamapi.Deployment, error) {
	all, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Deployment, error) { return tx.Deployments(who.Workspace) })
	if err != nil {
		return nil, beamError(err)
	}
	slices.SortStableFunc(all, func(a, b store.Deployment) int { return b.Created.Compare(a.Created) })
	var out []beamapi.Deployment
	for i := range all {
		d := &all[i]
		if d.Deleted || len(out) >= q.Limit || q.Active != nil && *q.Active != d.Active || !chosen(q.Types, d.Type) || !chosen(q.Names, d.Name) || !chosen(q.StubIDs, d.Stub) {
			continue
		}
		s, err := f.Stub(ctx, who, d.Stub)
		if err != nil {
			return nil, err
		}
		if chosen(q.Apps, s.App) {
			out = append(out, deploymentOf(d, &s))
		}
	}
	return out, nil
}

// chosen says that a value is among the wanted ones; none wants all.
func chosen[T comparable](want []T, v T) bool { return len(want) == 0 || slices.Contains(want, v) }

// SetActive implements beamapi.Lifecycle.
func (f beamFace) SetActive(ctx context.Context, who beamapi.Principal, id string, active bool) error {
	return f.change(ctx, who, id, func(d *store.Deployment) { d.Active = active })
}

// DeleteDeployment implements beamapi.Lifecycle.
func (f beamFace) DeleteDeployment(ctx context.Context, who beamapi.Principal, id string) error {
	return f.change(ctx, who, id, func(d *store.Deployment) { d.Active, d.Deleted = false, true })
}

func (f beamFace) change(ctx context.Context, who beamapi.Principal, id string, how func(*store.Deployment)) error {
	row, err := view(ctx, f.b, func(tx *store.Tx) (store.Deployment, error) { return tx.GetDeployment(id) })
	if err == nil && (row.User != who.Workspace || row.Deleted) {
		return beamapi.ErrNotFound
	}
	if err != nil {
		return beamError(err)
	}
	_, err = ask(ctx, f.b.engine, func(t *turn) (struct{}, error) {
		t.also(func(tx *store.Tx) error {
			now, err := tx.GetDeployment(id)
			if err != nil {
				return err
			}
			how(&now)
			now.Updated = t.now
			return tx.PutDeployment(now)
		})
		return struct{}{}, nil
	})
	return beamError(err)
}

// GetOrCreateVolume implements beamapi.Volumes.
func (f beamFace) GetOrCreateVolume(ctx context.Context, who beamapi.Principal, name string) (beamapi.Volume, error) {
	b, key := f.b, volumeKey(who.Workspace, name)
	row, err := view(ctx, b, func(tx *store.Tx) (store.Volume, error) { return tx.GetVolume(key) })
	if errors.Is(err, store.ErrNotFound) {
		row = store.Volume{Name: key, Root: b.nothing, Created: b.cfg.Clock()}
		_, err = ask(ctx, b.engine, func(t *turn) (struct{}, error) {
			t.also(func(tx *store.Tx) error {
				if _, err := tx.GetVolume(key); !errors.Is(err, store.ErrNotFound) {
					return err // somebody was faster
				}
				return tx.PutVolume(row)
			})
			return struct{}{}, nil
		})
	}
	return beamVolume(name, &row), beamError(err)
}

func beamVolume(name string, row *store.Volume) beamapi.Volume {
	return beamapi.Volume{ID: name, Name: name, Size: row.Bytes, Created: row.Created, Updated: row.Created}
}

// Volumes implements beamapi.Volumes.
func (f beamFace) Volumes(ctx context.Context, who beamapi.Principal) ([]beamapi.Volume, error) {
	rows, err := view(ctx, f.b, func(tx *store.Tx) ([]store.Volume, error) { return tx.Volumes() })
	var out []beamapi.Volume
	for i := range rows {
		if name, ok := ownName(who.Workspace, rows[i].Name); ok {
			out = append(out, beamVolume(name, &rows[i]))
		}
	}
	return out, beamError(err)
}

// tokenID tells tokens of a user apart without telling them.
func tokenID(token string) string {
	return tokenName(sha256.Sum256([]byte(token)))
}
