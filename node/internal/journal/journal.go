// Package journal keeps the node's durable facts: a file of checksummed records, written ahead of what they
// allow (execution.md 8).
//
//  1. Open replays the records of the file, stops at the first that is torn, and goes on behind the last good
//     one.
//  2. Append queues records and returns at once; Sync makes everything up to a Mark durable. Whoever comes first
//     writes for all who wait (group commit).
//  3. When the file is full of history it is replaced by a snapshot of the present, which the owner gives.
//
// A record in the file is: u32 length ‖ u32 CRC-32C of the length and the payload ‖ payload, little-endian. A
// length of 0 ends the file; it is filled with zeros ahead, so that a sync has no new size to make durable.
//
// Only node imports it. It knows nothing of what the records mean. It guarantees that what Sync returned for is
// replayed, in order, after any crash, and that a record is replayed wholly or not at all. A write that fails
// leaves the file good and loses the records of its batch: everybody who waits for them is told.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// Errors of a journal.
var (
	// ErrFull means that the disk is full; nothing was written.
	ErrFull = errors.New("journal: disk is full")
	// ErrTooLarge means that a record exceeds MaxRecord.
	ErrTooLarge = errors.New("journal: record is too large")
	// ErrClosed means that the journal was closed.
	ErrClosed = errors.New("journal: closed")
)

// MaxRecord bounds a record's payload, in bytes.
const MaxRecord = 16 << 20

const (
	header = 8
	// minSize is the history after which a snapshot is taken (execution.md 8).
	minSize = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Mark is a place in the history, for Sync.
type Mark struct {
	batch *batch
	err   error
}

// batch are records that become durable, or are lost, together.
type batch struct {
	framed []byte
	done   bool
	err    error
}

// file is what of an *os.File is used; tests put faults behind it.
type file interface {
	io.WriterAt
	Sync() error
	Close() error
}

// Journal is an open journal. Its methods may be called concurrently.
type Journal struct {
	path     string
	snapshot func() [][]byte

	// create makes a file of a size filled with zeros; tests replace it.
	create func(path string, size int64) (file, error)

	mu     sync.Mutex
	wake   *sync.Cond
	next   *batch // what no write has taken yet
	busy   bool   // somebody writes
	closed bool

	// Of whoever is busy:
	f      file
	offset int64 // where the next record goes
	size   int64 // of the file
}

// Open opens the journal at path, making it if absent, and calls replay for each record. The payload is valid
// until replay returns. torn is the number of bytes behind the last good record, which are dropped. snapshot
// gives records that stand for everything: it is called without the journal's lock, from within Sync.
func Open(path string, replay func(payload []byte) error, snapshot func() [][]byte) (j *Journal, torn int64, err error) {
	j = &Journal{path: path, snapshot: snapshot, create: createFile, next: &batch{}}
	j.wake = sync.NewCond(&j.mu)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("reading the journal: %w", err)
	}
	good, err := Decode(data, replay)
	if err != nil {
		return nil, 0, fmt.Errorf("replaying the journal: %w", err)
	}
	torn = tornBytes(data[good:])
	// A fresh file, so that what is behind the last good record can never be taken for a record again.
	if err := j.rotate(); err != nil {
		return nil, torn, fmt.Errorf("starting the journal: %w", full(err))
	}
	return j, torn, nil
}

// Decode calls replay for each record of data and returns where the last good one ends. The error is replay's.
func Decode(data []byte, replay func(payload []byte) error) (good int, err error) {
	for {
		rest := data[good:]
		if len(rest) < header {
			return good, nil
		}
		n := binary.LittleEndian.Uint32(rest)
		if n == 0 || n > MaxRecord || int(n) > len(rest)-header {
			return good, nil
		}
		payload := rest[header : header+int(n)]
		if checksum(payload) != binary.LittleEndian.Uint32(rest[4:]) {
			return good, nil
		}
		if err := replay(payload); err != nil {
			return good, err
		}
		good += header + int(n)
	}
}

func checksum(payload []byte) uint32 {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(payload)))
	return crc32.Update(crc32.Checksum(n[:], castagnoli), castagnoli, payload)
}

func frame(to, payload []byte) []byte {
	to = binary.LittleEndian.AppendUint32(to, uint32(len(payload)))
	to = binary.LittleEndian.AppendUint32(to, checksum(payload))
	return append(to, payload...)
}

// tornBytes counts what is not filling.
func tornBytes(rest []byte) int64 {
	for i, c := range slices.Backward(rest) {
		if c != 0 {
			return int64(i + 1)
		}
	}
	return 0
}

// Append queues records, in order, and returns their mark. It does not touch the disk. With a record that is
// empty or larger than MaxRecord nothing is queued, and Sync returns ErrTooLarge.
func (j *Journal) Append(records ...[]byte) Mark {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range records {
		if len(r) == 0 || len(r) > MaxRecord {
			return Mark{err: fmt.Errorf("%w: %d bytes, want 1..%d", ErrTooLarge, len(r), MaxRecord)}
		}
	}
	for _, r := range records {
		j.next.framed = frame(j.next.framed, r)
	}
	return Mark{batch: j.next}
}

// Sync returns when everything up to the mark is durable. ErrFull and the disk's errors mean that it is not and
// will not be: it has to be appended again.
func (j *Journal) Sync(m Mark) error {
	if m.err != nil || m.batch == nil {
		return m.err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for !m.batch.done {
		if j.busy {
			j.wake.Wait()
			continue
		}
		if j.closed {
			return ErrClosed
		}
		j.busy = true
		b := j.next
		j.next = &batch{}
		j.mu.Unlock()
		err := j.write(b.framed)
		j.mu.Lock()
		j.busy = false
		b.done, b.err, b.framed = true, full(err), nil
		j.wake.Broadcast()
	}
	return m.batch.err
}

// write appends a batch to the file and syncs it; the caller is busy.
func (j *Journal) write(batch []byte) error {
	if j.offset+int64(len(batch))+header > j.size {
		// The snapshot is taken now, so it may hold what the batch says; to replay that again changes nothing.
		if err := j.rotateFor(len(batch)); err != nil {
			return err
		}
	}
	if len(batch) == 0 {
		return nil
	}
	// The end goes with it: what a failed write left behind must never look like the next record.
	b := append(batch, make([]byte, header)...)
	if _, err := j.f.WriteAt(b, j.offset); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	if err := j.f.Sync(); err != nil {
		j.size = 0 // what the system then says of these pages is not to be believed: the next write takes a new file
		return fmt.Errorf("syncing the journal: %w", err)
	}
	j.offset += int64(len(batch))
	return nil
}

func (j *Journal) rotate() error { return j.rotateFor(0) }

// rotateFor replaces the file by a snapshot with room for n bytes and at least as much history as the snapshot
// is long, so that taking snapshots costs a constant share of the writing.
func (j *Journal) rotateFor(n int) error {
	var b []byte
	for _, r := range j.snapshot() {
		if len(r) == 0 || len(r) > MaxRecord {
			return fmt.Errorf("%w: %d bytes in a snapshot", ErrTooLarge, len(r))
		}
		b = frame(b, r)
	}
	size := max(minSize, 2*int64(len(b))) + int64(n) + header
	tmp := j.path + ".new"
	f, err := j.create(tmp, size)
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing a snapshot: %w", err), f.Close(), ignoreMissing(os.Remove(tmp)))
	}
	if j.f != nil {
		_ = j.f.Close() // its content has been replaced
	}
	j.f, j.offset, j.size = f, int64(len(b)), size
	return nil
}

// Close closes the file after whoever writes has finished; what was not synced may be lost.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.busy {
		j.wake.Wait()
	}
	if j.closed {
		return nil
	}
	j.closed = true
	j.wake.Broadcast()
	return j.f.Close()
}

func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// diskFile syncs data alone where it can: the size does not change.
type diskFile struct{ *os.File }

func (f diskFile) Sync() error { return dataSync(f.File) }

func createFile(path string, size int64) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a journal: %w", err)
	}
	zeros := make([]byte, 256<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return nil, errors.Join(fmt.Errorf("making room for a journal: %w", err), f.Close())
		}
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(fmt.Errorf("making room for a journal: %w", err), f.Close())
	}
	return diskFile{f}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
