//go:build linux

package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/protocol"
)

// listenerFD is where the shim's process finds its listening socket.
const listenerFD = 3

const (
	usageEvery = 250 * time.Millisecond // also how often the watchdog looks when there are no cgroups
	diskEvery  = time.Second            // execution.md 3
	stuckAfter = 5 * time.Second        // from a kill to giving up (execution.md 8)
	firstLease = time.Minute            // how long a new sandbox waits at least
	idleCPU    = time.Second            // of processor time that a sandbox without a lease may take before it is ended
	keepLog    = 1 << 20                // a log that is larger is given up once it was told
	tailBytes  = 4 << 10                // what is remembered of the runner's own words
)

// shim is the process that holds one sandbox. Its fields belong to the goroutine of loop, but where said.
type shim struct {
	dir   string
	spec  boxSpec
	log   *slog.Logger
	group *group
	self  identity

	jobs  chan func() // what other goroutines want done by loop; unbuffered: whoever floods it waits
	over  chan struct{}
	all   sync.WaitGroup // all goroutines but loop
	child *child         // nil until it is started, and after its end

	starting bool // start has not come to an end
	ready    bool
	broken   *runnerFail // why the code cannot be loaded
	bare     string      // python's and cloudpickle's versions
	ending   bool        // no lease is taken any more
	cur      *work       // the lease that runs
	last     *work       // the lease that ran
	served   int
	cpuIdle  time.Duration // that had been taken when the last lease ended
	born     time.Time
	idle     *time.Timer
	daemons  int // that are connected
	seen     map[int]map[string]stamp
	outs     outputs
	ooms     int64
	failure  *cause // why the sandbox could not be started
}

// RunShim is the body of the hidden command that holds one sandbox. args are those that the backend appended to
// Config.Shim: the sandbox's directory. It returns when the sandbox has ended and all of it is removed.
func RunShim(ctx context.Context, args []string) error {
	if len(args) != 1 || !filepath.IsAbs(args[0]) {
		return errors.New("sandbox: the shim wants one directory: it is started by gridbeam only")
	}
	s := &shim{
		dir: args[0], jobs: make(chan func()), over: make(chan struct{}), born: time.Now(), starting: true,
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)), seen: map[int]map[string]stamp{},
	}
	if err := readJSON(filepath.Join(s.dir, specName), &s.spec); err != nil {
		return fmt.Errorf("reading the sandbox's spec: %w", err)
	}
	// Orphans of the sandbox become this process's children, so that none is left to the host's init.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming a subreaper: %w", err)
	}
	f := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("taking over the socket: %w", err)
	}
	if err := s.identify(); err != nil {
		return err
	}
	return s.run(ctx, l)
}

// identify finds the cgroups and says who this process is.
func (s *shim) identify() error {
	places := groupPlaces{mode: "soft"}
	if !s.spec.NoCgroups {
		places = ownGroups()
	}
	s.group = places.named(s.spec.ID)
	if err := s.group.create(&s.spec.Limits); err != nil {
		s.failure = &cause{protocol.ReasonStartFailed, err.Error()}
	}
	self, err := identify(os.Getpid())
	if err != nil {
		return fmt.Errorf("identifying itself: %w", err)
	}
	self.Group = s.group.inode()
	s.self = self
	return writeJSON(filepath.Join(s.dir, identityName), self)
}

// ownGroups finds the places for cgroups on this machine.
func ownGroups() groupPlaces {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	own, _ := os.ReadFile("/proc/self/cgroup")
	return findGroups(string(mounts), string(own))
}

// run is the shim's life.
func (s *shim) run(ctx context.Context, l net.Listener) error {
	s.idle = time.AfterFunc(max(s.spec.KeepWarm, firstLease), func() { s.do(s.retire) })
	defer s.idle.Stop()
	s.all.Go(func() { s.accept(l) })
	s.all.Go(s.watch)
	s.all.Go(s.watchDisk)
	if s.group.mode == "soft" {
		s.all.Go(s.watchMemory)
	}
	s.all.Go(func() {
		err := s.failed()
		if err == nil {
			err = s.start()
		}
		if err != nil {
			s.do(func() { s.cannotStart(err) })
		}
	})
	defer context.AfterFunc(ctx, func() { s.do(s.retire) })()
	s.loop()
	_ = l.Close()
	s.all.Wait()
	return errors.Join(s.group.remove(stuckAfter), removeTree(s.dir))
}

func (s *shim) failed() error {
	if s.failure == nil {
		return nil
	}
	return errors.New(s.failure.text)
}

// do has the loop do a job and returns when it is done; after the loop's end nothing happens. The loop itself must not
// call it.
func (s *shim) do(f func()) {
	done := make(chan struct{})
	select {
	case s.jobs <- func() { defer close(done); f() }:
		<-done
	case <-s.over:
	}
}

// loop does all jobs until the sandbox is over.
func (s *shim) loop() {
	for !s.ending || s.starting || s.child != nil || s.cur != nil {
		(<-s.jobs)()
	}
	close(s.over)
}

// cannotStart ends a shim whose sandbox did not come about.
func (s *shim) cannotStart(err error) {
	s.log.Error("the sandbox cannot be started", "err", err)
	s.failure = &cause{protocol.ReasonStartFailed, err.Error()}
	s.ending, s.starting = true, false
	if s.cur != nil {
		s.finish(s.failure, -1, 0)
	}
}

// retire ends a sandbox that does nothing.
func (s *shim) retire() {
	if s.cur != nil {
		return
	}
	s.ending = true
	s.killChild()
}

// rest sets the time after which a sandbox without a lease ends: without a daemon nobody will give it one, but for one
// that is about to be started again.
func (s *shim) rest() {
	wait := s.spec.KeepWarm
	if s.daemons == 0 {
		wait = min(wait, s.spec.KeepOrphan)
	}
	s.idle.Reset(max(0, min(wait, s.spec.MaxAge-time.Since(s.born))))
}

// count is called when a daemon comes or goes.
func (s *shim) count(by int) {
	s.daemons += by
	if s.cur == nil && s.served > 0 {
		s.rest()
	}
}

// watch looks at what the sandbox uses while it lives.
func (s *shim) watch() {
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.over:
			return
		}
		s.do(func() { s.measure(); s.watchIdle() })
	}
}

// watchIdle ends a sandbox that computes although it has no lease: nobody counts that, and nobody pays for it.
func (s *shim) watchIdle() {
	if s.cur != nil || s.child == nil || s.served == 0 || s.ending {
		return
	}
	if used := s.cpuNow() - s.cpuIdle; used > idleCPU {
		s.log.Warn("a sandbox computes without a lease and is ended", "cpu", used)
		s.retire()
	}
}

// measure brings the usage up to date. Without cgroups watchMemory looks at the memory.
func (s *shim) measure() {
	w := s.cur
	if w == nil || s.child == nil {
		return
	}
	if s.group.mode == "soft" {
		s.tellUsage(w, max(s.child.cpu()-w.cpu0, 0))
		return
	}
	w.peak = max(w.peak, s.group.peak())
	s.tellUsage(w, s.group.cpu()-w.cpu0)
}

// lastLook measures what runs before it goes.
func (s *shim) lastLook() {
	if w := s.cur; s.group.mode == "soft" && w.peak == 0 && s.child != nil { // it was too short for the watchdog
		w.peak, _ = s.child.memory(s.scratchMounts())
	}
	s.measure()
}

func (s *shim) tellUsage(w *work, cpu time.Duration) {
	w.tell(func() {
		w.usage.CPUMillis = max(w.usage.CPUMillis, cpu.Milliseconds())
		w.usage.MaxMemoryBytes, w.usage.OutputBytes, w.usage.OutputFiles = w.peak, s.outs.bytes, s.outs.files
	})
}

// cpuNow is the processor time of the sandbox so far.
func (s *shim) cpuNow() time.Duration {
	if s.group.mode == "soft" {
		if s.child == nil {
			return 0
		}
		return s.child.cpu()
	}
	return s.group.cpu()
}

// breach ends the lease for a broken limit, at once.
func (s *shim) breach(why protocol.Reason, text string) {
	if s.cur == nil {
		return
	}
	if s.cur.cause == nil {
		s.cur.cause = &cause{why, text}
	}
	s.lastLook() // without cgroups nobody can look when they are gone
	s.ending = true
	s.killChild()
}

// killChild ends everything in the sandbox; gone is called when that is done.
func (s *shim) killChild() {
	if s.child != nil {
		s.child.kill(s.group)
	}
}

// accept serves those who connect.
func (s *shim) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p := &peer{shim: s, conn: c}
		s.all.Go(p.serve)
	}
}

// peer is a daemon that is connected.
type peer struct {
	shim *shim
	conn net.Conn
	mu   sync.Mutex // guards writing
}

func (p *peer) send(m message, payload []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return writeFrame(p.conn, m, payload)
}

// serve reads what a daemon wants until it goes or the sandbox ends.
func (p *peer) serve() {
	s := p.shim
	gone, served := make(chan struct{}), make(chan struct{})
	var tails sync.WaitGroup
	s.all.Go(func() { // at the end of the sandbox nothing more is heard, and what is still to be said has a second
		select {
		case <-s.over:
			_ = p.conn.SetReadDeadline(time.Now())
			_ = p.conn.SetWriteDeadline(time.Now().Add(time.Second))
		case <-served:
		}
	})
	defer func() {
		select {
		case <-s.over: // each lease has an end, so each tail has
		default:
			close(gone)
		}
		tails.Wait()
		_ = p.conn.Close()
		close(served)
	}()
	var hello message
	s.do(func() {
		s.count(1)
		hello = message{Op: "hello", Running: s.cur != nil, Text: s.bare}
		if s.cur != nil {
			hello.Lease = s.cur.lease
		}
	})
	if hello.Op == "" {
		return
	}
	defer s.do(func() { s.count(-1) })
	if p.send(hello, nil) != nil {
		return
	}
	tail := func(w *work) { tails.Go(func() { p.tail(w, gone) }) }
	var w *work
	r := bufio.NewReaderSize(p.conn, 64<<10)
	for {
		var m message
		payload, err := readFrame(r, &m)
		if err != nil {
			return
		}
		switch m.Op {
		case "lease":
			w = nil
			if m.Limits != nil && filepath.IsAbs(m.Out) {
				w = newWork(m.Lease, m.Out, *m.Limits)
			}
		case "input":
			if w != nil && w.byIndex[m.Input] == nil {
				w.add(&unit{index: m.Input, task: m.Task, encoding: m.Encoding, args: payload})
			}
		case "begin":
			p.answer(w, func() string { return s.take(w) }, tail)
			w = nil
		case "attach":
			var found *work
			p.answer(nil, func() string {
				for _, have := range []*work{s.cur, s.last} {
					if found == nil && have != nil && have.lease == m.Lease {
						found = have
					}
				}
				if found == nil {
					return "no such lease"
				}
				return ""
			}, func(*work) { tail(found) })
		case "stop":
			s.do(func() { s.stop(m.Lease, protocol.Reason(m.Reason), time.Duration(m.GraceMS)*time.Millisecond) })
		case "end":
			s.do(s.retire)
		}
	}
}

// answer lets the loop judge and tells the daemon; then, if it was accepted, it is told all about the lease.
func (p *peer) answer(w *work, judge func() string, then func(*work)) {
	text := "the sandbox has ended"
	p.shim.do(func() { text = judge() })
	if text != "" {
		_ = p.send(message{Op: "refused", Text: text}, nil)
		return
	}
	if p.send(message{Op: "accepted"}, nil) == nil {
		then(w)
	}
}

// forget gives up what is known of a lease that has ended and was told.
func (s *shim) forget(w *work) {
	if s.last == w {
		s.last = nil
	}
}

// tail tells a daemon what a lease prints and completes, from the first line that is left, until its end.
func (p *peer) tail(w *work, gone <-chan struct{}) {
	var at int64
	var done int
	var used executor.Usage
	for {
		w.mu.Lock()
		changed, finished, usage, end, final := w.changed, w.finished[done:], w.usage, w.end, w.final
		w.mu.Unlock()
		for more := true; more; {
			records, next, _, _ := w.log.Read(at, 1<<20)
			more, at = len(records) > 0, next
			for _, r := range records {
				if p.send(message{Op: "log", Input: r.Input, Stream: uint8(r.Stream)}, []byte(r.Line)) != nil {
					return
				}
			}
		}
		for _, index := range finished {
			if p.send(message{Op: "done", Input: index}, nil) != nil {
				return
			}
		}
		done += len(finished)
		if usage != used {
			used = usage
			if p.send(message{Op: "usage", Usage: &usage}, nil) != nil {
				return
			}
		}
		if end != nil {
			if p.send(message{Op: "outcome", Lease: w.lease, Outcome: end, Ending: final}, nil) == nil && end.LogKept > keepLog {
				p.shim.do(func() { p.shim.forget(w) })
			}
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}
