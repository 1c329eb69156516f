package store

import (
	"iter"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/gridbeam/gridbeam/protocol"
)

// Object is an archive of code that a user has uploaded, and the tree of its files.
type Object struct {
	User string    // User owns it; with Hash the key.
	Hash string    // Hash is the SHA-256 of the archive, in hex.
	Root cid.Cid   // Root is the tree of its files.
	Name string    // Name is what the user calls it.
	Size uint64    // Size is that of the archive in bytes.
	Used time.Time // Used is when it was uploaded or a stub made of it last, to within a day; column created.
}

// Stub is a function as a client has prepared it.
type Stub struct {
	ID     string    // ID is the key.
	User   string    // User owns it.
	Digest [32]byte  // Digest is that of the request that made it: an equal request finds it again.
	Name   string    // Name is its name for people.
	Used   time.Time // Used is when it was prepared, deployed or called last, to within a day; column created.
	Body   []byte    // Body is the rest, for who made it.
}

// Deployment is a stub under a name and version.
type Deployment struct {
	ID      string    // ID is the key.
	User    string    // User owns it.
	Type    string    // Type is the kind of stub; user, type, name and version are unique together.
	Name    string    // Name is the user's.
	Version uint64    // Version counts from 1.
	Stub    string    // Stub is what it runs.
	Active  bool      // Active says that it answers.
	Deleted bool      // Deleted says that it is only kept so that its version is not given again.
	Created time.Time // Created is when it was deployed.
	Updated time.Time // Updated is when it changed last.
}

// Call is one call of a function: an input of an open job, from its arrival to its end.
type Call struct {
	ID         string          // ID is the key.
	User       string          // User called.
	Stub       string          // Stub was called.
	Deployment string          // Deployment was called by name; else empty.
	Job        protocol.JobID  // Job has it as an input.
	Input      uint64          // Input is its index.
	Headless   bool            // Headless says that it goes on although its caller has gone.
	State      string          // State is where it stands.
	Args       string          // Args is the input's text; empty once it has ended.
	Tries      uint64          // Tries counts the inputs that it was, from 1.
	Result     cid.Cid         // Result is the tree of what its input has left.
	Encoding   string          // Encoding is that of the result.
	Exit       int32           // Exit is what its caller was told.
	Reason     protocol.Reason // Reason is how it ended.
	Text       string          // Text is the cause for people.
	Node       protocol.PeerID // Node ran it last; empty when none did.
	Written    cid.Cid         // Written is what it wrote into volumes and has not been merged yet.
	Created    time.Time       // Created is when it was made.
	Started    time.Time       // Started is when a node was given it first.
	Ended      time.Time       // Ended is when it ended; zero while it has not.
}

// undeployed is the condition that no deployment runs stub s; the index of deployments begins with the user.
const undeployed = "NOT EXISTS (SELECT 1 FROM deployments AS d WHERE d.user=s.user AND d.stub=s.id AND d.deleted=0)"

const (
	objectColumns     = "user, hash, root, name, size, created"
	stubColumns       = "id, user, digest, name, created, body"
	deploymentColumns = "id, user, type, name, version, stub, active, deleted, created, updated"
	callColumns       = "id, user, stub, deployment, job, input, headless, state, args, tries, result, encoding, exit, reason, text, node, written, created, started, ended"
)

var (
	putObject = &query{`INSERT INTO objects (` + objectColumns + `) VALUES (?,?,?,?,?,?)
ON CONFLICT (user, hash) DO UPDATE SET root=excluded.root, name=excluded.name, size=excluded.size, created=excluded.created`}
	getObject   = &query{"SELECT " + objectColumns + " FROM objects WHERE user=? AND hash=?"}
	listObjects = &query{"SELECT " + objectColumns + " FROM objects WHERE user=? ORDER BY hash"}

	putStub = &query{`INSERT INTO stubs (` + stubColumns + `) VALUES (?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET user=excluded.user, digest=excluded.digest, name=excluded.name, created=excluded.created, body=excluded.body`}
	getStub   = &query{"SELECT " + stubColumns + " FROM stubs WHERE id=?"}
	findStubs = &query{"SELECT " + stubColumns + " FROM stubs WHERE user=? AND digest=? ORDER BY created, id"}

	touchStub    = &query{"UPDATE stubs SET created=? WHERE id=? AND created<?"}
	touchObject  = &query{"UPDATE objects SET created=? WHERE user=? AND hash=? AND created<?"}
	countStubs   = &query{"SELECT count(*) FROM stubs WHERE user=?"}
	countObjects = &query{"SELECT count(*) FROM objects WHERE user=?"}
	unusedStubs  = &query{"SELECT " + stubColumns + ` FROM stubs AS s WHERE (?='' OR s.user=?) AND s.created<? AND ` + undeployed + ` ORDER BY s.created, s.id LIMIT ?`}
	dropStub     = &query{"DELETE FROM stubs AS s WHERE s.id=? AND s.created<? AND " + undeployed}
	unusedObject = &query{"SELECT " + objectColumns + " FROM objects WHERE (?='' OR user=?) AND created<? ORDER BY created, user, hash LIMIT ?"}
	dropObject   = &query{"DELETE FROM objects WHERE user=? AND hash=? AND created<?"}

	putDeployment = &query{`INSERT INTO deployments (` + deploymentColumns + `) VALUES (?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET user=excluded.user, type=excluded.type, name=excluded.name, version=excluded.version, stub=excluded.stub,
active=excluded.active, deleted=excluded.deleted, created=excluded.created, updated=excluded.updated`}
	getDeployment   = &query{"SELECT " + deploymentColumns + " FROM deployments WHERE id=?"}
	listDeployments = &query{"SELECT " + deploymentColumns + " FROM deployments WHERE user=? ORDER BY type, name, version"}

	putCall = &query{`INSERT INTO calls (` + callColumns + `) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET user=excluded.user, stub=excluded.stub, deployment=excluded.deployment, job=excluded.job, input=excluded.input,
headless=excluded.headless, state=excluded.state, args=excluded.args, tries=excluded.tries, result=excluded.result, encoding=excluded.encoding,
exit=excluded.exit, reason=excluded.reason, text=excluded.text, node=excluded.node, written=excluded.written, created=excluded.created,
started=excluded.started, ended=excluded.ended`}
	getCall       = &query{"SELECT " + callColumns + " FROM calls WHERE id=?"}
	callsOfJob    = &query{"SELECT " + callColumns + " FROM calls WHERE job=? ORDER BY input"}
	countCalls    = &query{"SELECT state, count(*) FROM calls WHERE job=? GROUP BY state"}
	callsOfUser   = &query{"SELECT " + callColumns + " FROM calls WHERE user=? ORDER BY created DESC, id LIMIT ?"}
	callsWritten  = &query{"SELECT " + callColumns + " FROM calls WHERE written IS NOT NULL ORDER BY ended, id"}
	forgetOfCalls = &query{"DELETE FROM calls WHERE id IN (SELECT id FROM calls WHERE ended>0 AND ended<? AND written IS NULL LIMIT ?)"}
)

// PutObject inserts an object or replaces it by user and hash.
func (t *Tx) PutObject(o Object) error {
	return putAll(t, putObject, []Object{o}, func(a *args, o *Object) {
		a.text(o.User)
		a.text(o.Hash)
		a.root("Object.Root", o.Root)
		a.text(o.Name)
		a.uint("Object.Size", o.Size)
		a.time(o.Used)
	})
}

func scanObject(r *row) Object {
	return Object{User: r.text(), Hash: r.text(), Root: r.cid(), Name: r.text(), Size: r.uint(), Used: r.time()}
}

// GetObject returns a user's object by hash, or ErrNotFound.
func (t *Tx) GetObject(user, hash string) (Object, error) {
	return one(t, getObject, scanObject, "object", hash, user, hash)
}

// Objects returns a user's objects by hash.
func (t *Tx) Objects(user string) ([]Object, error) {
	return collect(list(t, listObjects, scanObject, user))
}

// PutStub inserts a stub or replaces it by ID.
func (t *Tx) PutStub(s Stub) error {
	return putAll(t, putStub, []Stub{s}, func(a *args, s *Stub) {
		a.text(s.ID)
		a.text(s.User)
		a.hash(s.Digest)
		a.text(s.Name)
		a.time(s.Used)
		a.blob(s.Body)
	})
}

func scanStub(r *row) Stub {
	return Stub{ID: r.text(), User: r.text(), Digest: r.hash(), Name: r.text(), Used: r.time(), Body: r.blob()}
}

// GetStub returns a stub by ID, or ErrNotFound.
func (t *Tx) GetStub(id string) (Stub, error) { return one(t, getStub, scanStub, "stub", id, id) }

// FindStubs returns a user's stubs with a digest, the least recently used first.
func (t *Tx) FindStubs(user string, digest [32]byte) ([]Stub, error) {
	return collect(list(t, findStubs, scanStub, user, digest[:]))
}

// TouchStub notes a use of a stub; one that is not there, or was used later, stays as it is.
func (t *Tx) TouchStub(id string, at time.Time) error {
	_, err := t.write(touchStub, func(a *args) { a.time(at); a.text(id); a.time(at) })
	return err
}

// TouchObject notes a use of an object; one that is not there, or was used later, stays as it is.
func (t *Tx) TouchObject(user, hash string, at time.Time) error {
	_, err := t.write(touchObject, func(a *args) { a.time(at); a.text(user); a.text(hash); a.time(at) })
	return err
}

// CountStubs counts a user's stubs.
func (t *Tx) CountStubs(user string) (int64, error) {
	return one(t, countStubs, (*row).int, "count", user, user)
}

// CountObjects counts a user's objects.
func (t *Tx) CountObjects(user string) (int64, error) {
	return one(t, countObjects, (*row).int, "count", user, user)
}

// UnusedStubs returns up to limit stubs that were used last before a time and that no deployment runs, but deleted ones,
// the least recently used first; an empty user is everybody.
func (t *Tx) UnusedStubs(user string, before time.Time, limit int) ([]Stub, error) {
	return collect(list(t, unusedStubs, scanStub, user, user, millis(before), int64(limit)))
}

// DropStub deletes a stub that UnusedStubs would return now, and says whether it did.
func (t *Tx) DropStub(id string, before time.Time) (bool, error) {
	n, err := t.write(dropStub, func(a *args) { a.text(id); a.time(before) })
	return n > 0, err
}

// UnusedObjects returns up to limit objects that were used last before a time, the least recently used first; an empty
// user is everybody.
func (t *Tx) UnusedObjects(user string, before time.Time, limit int) ([]Object, error) {
	return collect(list(t, unusedObject, scanObject, user, user, millis(before), int64(limit)))
}

// DropObject deletes an object that UnusedObjects would return now, and says whether it did; the blocks of its tree are
// not this package's.
func (t *Tx) DropObject(user, hash string, before time.Time) (bool, error) {
	n, err := t.write(dropObject, func(a *args) { a.text(user); a.text(hash); a.time(before) })
	return n > 0, err
}

// PutDeployment inserts a deployment or replaces it by ID. It returns ErrConflict when another has its user, type,
// name and version.
func (t *Tx) PutDeployment(d Deployment) error {
	return putAll(t, putDeployment, []Deployment{d}, func(a *args, d *Deployment) {
		a.text(d.ID)
		a.text(d.User)
		a.text(d.Type)
		a.text(d.Name)
		a.uint("Deployment.Version", d.Version)
		a.text(d.Stub)
		a.bool(d.Active)
		a.bool(d.Deleted)
		a.time(d.Created)
		a.time(d.Updated)
	})
}

func scanDeployment(r *row) Deployment {
	return Deployment{
		ID: r.text(), User: r.text(), Type: r.text(), Name: r.text(), Version: r.uint(), Stub: r.text(), Active: r.bool(), Deleted: r.bool(),
		Created: r.time(), Updated: r.time(),
	}
}

// GetDeployment returns a deployment by ID, deleted ones too, or ErrNotFound.
func (t *Tx) GetDeployment(id string) (Deployment, error) {
	return one(t, getDeployment, scanDeployment, "deployment", id, id)
}

// Deployments returns a user's deployments, deleted ones too, by type, name and version.
func (t *Tx) Deployments(user string) ([]Deployment, error) {
	return collect(list(t, listDeployments, scanDeployment, user))
}

// PutCalls inserts calls or replaces them by ID.
func (t *Tx) PutCalls(calls []Call) error {
	return putAll(t, putCall, calls, func(a *args, c *Call) {
		a.text(c.ID)
		a.text(c.User)
		a.text(c.Stub)
		a.text(c.Deployment)
		a.id(c.Job)
		a.uint("Call.Input", c.Input)
		a.bool(c.Headless)
		a.text(c.State)
		a.text(c.Args)
		a.uint("Call.Tries", c.Tries)
		a.cid(c.Result)
		a.text(c.Encoding)
		a.int(int64(c.Exit))
		a.int(int64(c.Reason))
		a.text(c.Text)
		a.add([]byte(c.Node))
		a.cid(c.Written)
		a.time(c.Created)
		a.time(c.Started)
		a.time(c.Ended)
	})
}

func scanCall(r *row) Call {
	return Call{
		ID: r.text(), User: r.text(), Stub: r.text(), Deployment: r.text(), Job: r.id(), Input: r.uint(), Headless: r.bool(), State: r.text(),
		Args: r.text(), Tries: r.uint(), Result: r.cid(), Encoding: r.text(), Exit: int32(r.int()), Reason: protocol.Reason(r.int()), Text: r.text(),
		Node: r.peer(), Written: r.cid(), Created: r.time(), Started: r.time(), Ended: r.time(),
	}
}

// GetCall returns a call by ID, or ErrNotFound.
func (t *Tx) GetCall(id string) (Call, error) { return one(t, getCall, scanCall, "call", id, id) }

// CallsOfJob yields the calls that are inputs of a job, by input.
func (t *Tx) CallsOfJob(job protocol.JobID) iter.Seq2[Call, error] {
	return list(t, callsOfJob, scanCall, job[:])
}

// CountCalls counts the calls of a job by their state.
func (t *Tx) CountCalls(job protocol.JobID) (map[string]uint64, error) {
	return counts(t, countCalls, job[:])
}

// CallsOfUser returns a user's newest calls, newest first, at most limit.
func (t *Tx) CallsOfUser(user string, limit int) ([]Call, error) {
	return collect(list(t, callsOfUser, scanCall, user, int64(limit)))
}

// CallsWritten yields calls whose writes to volumes were not merged yet, oldest end first.
func (t *Tx) CallsWritten() iter.Seq2[Call, error] { return list(t, callsWritten, scanCall) }

// ForgetCalls deletes up to limit calls that ended before a time, and returns how many.
func (t *Tx) ForgetCalls(before time.Time, limit int) (int64, error) {
	return t.write(forgetOfCalls, func(a *args) { a.time(before); a.int(int64(limit)) })
}
