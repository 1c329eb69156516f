//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// take accepts a lease, or says why not. It is called by the loop, as all methods in this file.
func (s *shim) take(w *work) string {
	switch {
	case w == nil || len(w.units) == 0:
		return "the lease has no inputs"
	case s.cur != nil:
		return "the sandbox has a lease"
	case s.ending:
		return "the sandbox is ending"
	}
	s.idle.Stop()
	s.cur = w
	w.started = time.Now()
	w.cpu0 = s.cpuNow()
	s.group.resetPeak()
	s.ooms = s.group.oomKills()
	s.outs = outputs{dir: w.out, most: w.limits.OutputBytes, many: w.limits.OutputFiles}
	w.wall = time.AfterFunc(w.limits.Wall, func() {
		s.do(func() {
			if s.cur == w {
				s.breach(protocol.ReasonTimeout, fmt.Sprintf("it ran for longer than %s", w.limits.Wall))
				s.finishUnstarted()
			}
		})
	})
	if s.ready {
		s.begin()
	}
	return ""
}

// finishUnstarted ends a lease for which no process runs yet: nothing else would.
func (s *shim) finishUnstarted() {
	if s.cur != nil && s.child == nil && s.cur.cause != nil {
		s.finish(s.cur.cause, -1, 0)
	}
}

// begin hands out the first inputs, or tells all that the code cannot be loaded.
func (s *shim) begin() {
	w := s.cur
	if s.broken == nil {
		s.feed()
		return
	}
	s.ending = true
	text := s.broken.Text
	if !strings.Contains(text, s.broken.Type) {
		text += "\n" + s.broken.Type
	}
	for _, u := range w.units {
		if !u.done {
			s.complete(u, &protocol.InputOutcome{Reason: protocol.ReasonBadCommand, Exit: exitCannotLoad, Text: text}, nil)
		}
	}
	s.settle()
}

// feed keeps the runner supplied: one input more than it runs at a time, so that it never waits for us.
func (s *shim) feed() {
	w := s.cur
	for w.next < len(w.units) && w.open <= s.spec.Workers && w.cause == nil {
		u := w.units[w.next]
		w.next++
		if u.encoding == string(executor.EncodingSkip) {
			s.complete(u, &protocol.InputOutcome{Reason: protocol.ReasonCancelled, Exit: exitCancelled, Text: "it was withdrawn before it began"}, nil)
			continue
		}
		w.open++
		u.sent = true
		s.say(outgoing{runnerFrame{
			Op: "run", Input: u.index, Task: u.task, Encoding: u.encoding, TimeoutMS: s.spec.TimeoutMS, Attempt: attempt(s.spec.Env),
		}, u.args})
		u.args = nil
	}
	s.settle()
}

// say hands a frame to the runner's writer. A runner that does not read what it asked for is of no use.
func (s *shim) say(o outgoing) {
	if s.child == nil {
		return
	}
	select {
	case s.child.out <- o:
	default:
		s.breach(protocol.ReasonExitNonzero, "the runner's process does not read any more")
	}
}

// heard is told a frame of the runner. Nothing in it is trusted.
func (s *shim) heard(f *runnerFrame, payload []byte) {
	w := s.cur
	switch f.Op {
	case "ready":
		if s.ready {
			return
		}
		s.ready, s.broken = true, f.Error
		s.bare = shorten(f.Python, 64) + " " + shorten(f.Cloudpickle, 64)
		if w != nil {
			s.begin()
		}
	case "log":
		if w == nil || f.Stream != uint8(protocol.LogStdout) && f.Stream != uint8(protocol.LogStderr) {
			return
		}
		if u := w.byIndex[f.Input]; u != nil && !u.done {
			w.print(u, protocol.LogStream(f.Stream), payload)
			w.tell(func() {})
		}
	case "result":
		if w == nil {
			return
		}
		u := w.byIndex[f.Input]
		if u == nil || u.done || !u.sent {
			return
		}
		w.open--
		s.complete(u, s.judge(f), payload)
		if s.cur == w && w.cause == nil {
			s.feed()
		}
		s.settle()
	}
}

// judge turns the runner's words about an input into an outcome that keeps the rules.
func (s *shim) judge(f *runnerFrame) *protocol.InputOutcome {
	out := &protocol.InputOutcome{
		Reason: reasons[f.Reason], Exit: f.Exit, Text: shorten(f.Text, protocol.MaxInputText), RunMicros: max(0, f.RunMicros), CPUMillis: max(0, f.CPUMillis), MemoryBytes: max(0, f.MemoryBytes),
	}
	if n := s.group.oomKills(); n > s.ooms {
		s.ooms = n
		if out.Reason == protocol.ReasonSignal {
			out.Reason, out.Exit = protocol.ReasonOOM, exitKilled
			out.Text = fmt.Sprintf("killed: it needed more memory than the limit of %d MiB", s.spec.Limits.Memory>>20)
		}
	}
	switch out.Reason {
	case protocol.ReasonNone:
		out.Reason, out.Exit = protocol.ReasonExitNonzero, 1
	case protocol.ReasonDone:
		out.Exit, out.Text = 0, ""
		out.Encoding = protocol.EncodingPickle
		if f.Encoding == string(protocol.EncodingJSON) {
			out.Encoding = protocol.EncodingJSON
		}
	case protocol.ReasonTimeout:
		out.Exit = exitTimeout
	case protocol.ReasonCancelled:
		out.Exit = exitCancelled
	}
	if out.Reason != protocol.ReasonDone && out.Exit == 0 {
		out.Exit = 1
	}
	return out
}

// complete writes what an input left behind.
func (s *shim) complete(u *unit, out *protocol.InputOutcome, result []byte) {
	w := s.cur
	w.flush(u)
	u.done = true
	w.left--
	out.Log, out.LogDropped = u.printed, u.dropped
	u.printed = nil
	dir, err := s.outs.begin(u.index)
	for i, m := range s.spec.Mounts {
		if err == nil && !m.ReadOnly && u.sent {
			err = s.outs.written(filepath.Join(s.dir, writableName(i)), dir, m.Target, s.seen[i])
		}
	}
	if err == nil {
		err = s.outs.finish(dir, out, result)
	}
	s.served++
	switch {
	case err == nil:
		w.tell(func() { w.finished = append(w.finished, u.index) })
	case errors.Is(err, errTooLarge):
		u.done = false
		s.breach(protocol.ReasonOutputTooLarge, err.Error())
	case errors.Is(err, syscall.ENOSPC):
		u.done = false
		s.breach(protocol.ReasonNodeDiskFull, err.Error())
	default:
		u.done = false
		s.breach(protocol.ReasonBackendFailed, err.Error())
	}
}

// settle ends the lease once nothing is left to wait for.
func (s *shim) settle() {
	w := s.cur
	switch {
	case w == nil:
	case w.cause == nil && w.left == 0:
		s.finish(&cause{reason: protocol.ReasonDone}, 0, 0)
	case w.cause != nil && w.open == 0 && !s.ending: // all that ran has obeyed
		s.finish(w.cause, -1, 0)
	}
}

// stop ends a lease early: what runs is told, and killed when the grace is over.
func (s *shim) stop(lease string, why protocol.Reason, grace time.Duration) {
	w := s.cur
	if w == nil || w.lease != lease || w.cause != nil {
		return
	}
	if why == protocol.ReasonNone || why == protocol.ReasonDone {
		why = protocol.ReasonCancelled
	}
	w.cause = &cause{why, "stopped by the node"}
	if grace <= 0 || !s.ready {
		s.breach(why, "")
		s.finishUnstarted()
		return
	}
	for _, u := range w.units {
		if u.sent && !u.done {
			s.say(outgoing{header: runnerFrame{Op: "cancel", Input: u.index, GraceMS: grace.Milliseconds()}})
		}
	}
	const slack = time.Second // the runner kills at the end of the grace; then it is ours to do
	time.AfterFunc(grace+slack, func() {
		s.do(func() {
			if s.cur == w {
				s.breach(why, "")
			}
		})
	})
	s.settle()
}

// finish writes the lease's end down and tells it.
func (s *shim) finish(why *cause, code, signal int32) {
	w := s.cur
	w.wall.Stop()
	s.lastLook()
	for _, u := range w.units {
		if u.sent && !u.done {
			w.flush(u)
		}
	}
	w.log.Close()
	kept, dropped := w.log.Counts()
	end := &exitFile{
		Lease: w.lease, Boot: s.self.Boot, Reason: uint32(why.reason), ExitCode: code, Signal: signal, InputsDone: w.prefix(),
		Started: w.started.Round(0), LogKept: kept, LogDropped: dropped,
	}
	if why.reason != protocol.ReasonDone {
		end.FirstCause = shorten(why.text, executor.MaxFirstCause)
	}
	s.tellUsage(w, s.lastCPU(w))
	w.mu.Lock()
	end.Usage = w.usage
	w.mu.Unlock()
	end.Ended = time.Now()
	if err := writeJSON(filepath.Join(s.spec.Exits, w.lease+exitEnd), end); err != nil {
		s.log.Error("the end of a lease cannot be written down", "lease", w.lease, "err", err)
	}
	s.cur, s.last = nil, w
	if s.child != nil && !s.ending {
		s.child.strays()
		s.cpuIdle = s.cpuNow()
	}
	s.retireOrWait()
	w.tell(func() { w.end, w.final = end, s.ending })
}

// lastCPU is the lease's processor time at its end, when the processes may be gone.
func (s *shim) lastCPU(w *work) time.Duration {
	if s.group.mode == "soft" {
		return 0 // the last look counts
	}
	return s.group.cpu() - w.cpu0
}

// retireOrWait decides whether the sandbox serves on.
func (s *shim) retireOrWait() {
	worn := s.served >= s.spec.MaxInputs || time.Since(s.born) >= s.spec.MaxAge || s.group.resident() > s.spec.Limits.Memory/10*8
	if worn || s.ending {
		s.ending = true
		s.killChild()
		return
	}
	s.rest()
}

// gone is told that everything in the sandbox has ended.
func (s *shim) gone(c *child, status syscall.WaitStatus) {
	s.child = nil
	s.ending = true
	if s.cur == nil {
		return
	}
	code, signal := int32(status.ExitStatus()), int32(0)
	if status.Signaled() { // bubblewrap itself
		code, signal = -1, int32(status.Signal())
	} else if code > 128 && code < 128+65 { // its word for the end of what it ran
		code, signal = -1, code-128
	}
	why := s.cur.cause
	if why == nil {
		why = s.blame(c, code, signal)
	} else {
		code, signal = -1, 0
	}
	s.finish(why, code, signal)
}

// blame says why a sandbox ended that nobody ended.
func (s *shim) blame(c *child, code, signal int32) *cause {
	words := c.tail.text()
	switch {
	case s.group.oomKills() > s.ooms:
		return &cause{protocol.ReasonOOM, fmt.Sprintf("killed: it needed more memory than the limit of %d MiB", s.spec.Limits.Memory>>20)}
	case !c.said.Load() && (strings.Contains(words, initPrefix) || strings.HasPrefix(words, "bwrap: ")):
		return &cause{protocol.ReasonStartFailed, words}
	case signal > 0:
		return &cause{protocol.ReasonSignal, fmt.Sprintf("the sandbox's runner was ended by signal %d: %s", signal, words)}
	default:
		return &cause{protocol.ReasonExitNonzero, fmt.Sprintf("the sandbox's runner ended with exit code %d: %s", code, words)}
	}
}

// attempt is which try the environment says this is, from 1 on.
func attempt(env map[string]string) int {
	n := 0
	if _, err := fmt.Sscanf(env["GRIDBEAM_ATTEMPT"], "%d", &n); err != nil || n < 1 {
		return 1
	}
	return n
}

// exitEnd ends the names of exit files.
const exitEnd = ".json"

// openExit reads the exit file of a lease; one of another boot or a torn one counts for nothing.
func openExit(dir, lease string) (*exitFile, error) {
	var e exitFile
	if err := readJSON(filepath.Join(dir, lease+exitEnd), &e); err != nil {
		return nil, err
	}
	if e.Lease != lease || e.Boot != bootID() || e.Reason == 0 {
		return nil, fmt.Errorf("the exit file of lease %s is not of this boot, or torn: %w", lease, os.ErrNotExist)
	}
	return &e, nil
}
