//go:build linux

package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/protocol"
)

// valid makes text valid UTF-8.
func valid(b []byte) string { return string(bytes.ToValidUTF8(b, []byte("\ufffd"))) }

// shorten cuts text to at most n bytes, at the begin of a character, keeping its end: a traceback's last line says most.
func shorten(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// reasons are the runner's words for the end of an input.
var reasons = map[string]protocol.Reason{
	"done": protocol.ReasonDone, "exit_nonzero": protocol.ReasonExitNonzero, "bad_command": protocol.ReasonBadCommand, "signal": protocol.ReasonSignal,
	"oom": protocol.ReasonOOM, "timeout": protocol.ReasonTimeout, "cancelled": protocol.ReasonCancelled,
}

// Exit codes that Beam's clients are told (beam-interface.md 9).
const (
	exitCannotLoad = 2
	exitCancelled  = 3
	exitTimeout    = 4
	exitKilled     = -9
)

// errTooLarge means that a lease's outputs are over its limit.
var errTooLarge = errors.New("sandbox: the outputs are larger than the limit")

// stamp tells a file from an earlier state of it.
type stamp struct {
	size, inode int64
	changed     time.Time
}

// outputs writes what inputs leave behind, below one directory, and counts it.
type outputs struct {
	dir          string
	bytes, files int64 // so far
	most, many   int64 // bounds of them
}

// count takes room for a file.
func (o *outputs) count(size, files int64) error {
	o.bytes += size
	o.files += files
	if o.bytes > o.most || o.files > o.many {
		return fmt.Errorf("%w: %d bytes in %d files, at most %d in %d", errTooLarge, o.bytes, o.files, o.most, o.many)
	}
	return nil
}

// begin makes an input's directory.
func (o *outputs) begin(index uint64) (string, error) {
	dir := filepath.Join(o.dir, strconv.FormatUint(index, 10))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the directory of an input: %w", err)
	}
	return dir, o.count(0, 1)
}

// finish writes result and outcome; the outcome comes last and at once.
func (o *outputs) finish(dir string, out *protocol.InputOutcome, result []byte) error {
	if out.Reason == protocol.ReasonDone {
		if err := o.count(int64(len(result)), 1); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, protocol.ResultFile), result, 0o644); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return err
	}
	if err := o.count(int64(len(raw)), 1); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, protocol.OutcomeFile), raw)
}

// written copies the files of a writable mount that have changed since seen was made, to an input's directory, and
// brings seen up to date. Links, devices and pipes are not taken. What runs inside may change the tree at the same
// time: nothing is followed out of it.
func (o *outputs) written(from, dir, target string, seen map[string]stamp) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	to := filepath.Join(dir, protocol.WrittenDir, strings.TrimPrefix(target, "/"))
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // gone again, unreadable, or nothing that could be kept
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		now := stampOf(info)
		if seen[name] == now {
			return nil
		}
		seen[name] = now
		return o.take(root, name, filepath.Join(to, filepath.FromSlash(name)))
	})
}

// take copies one file out of a root.
func (o *outputs) take(root *os.Root, name, to string) error {
	in, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // it changed under our hands: a later look finds it
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	if err := o.count(info.Size(), 1); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, info.Size())) // no more than was counted, however it grows
	o.bytes += n - info.Size()
	return errors.Join(err, out.Close())
}

// snapshot is the state of all files of a writable mount.
func snapshot(dir string) map[string]stamp {
	seen := map[string]stamp{}
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			rel, _ := filepath.Rel(dir, name)
			seen[filepath.ToSlash(rel)] = stampOf(info)
		}
		return nil
	})
	return seen
}
