//go:build linux

package gpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Prover has GPUs compute, each in a process of its own, so that a driver that crashes or hangs harms nobody else.
type Prover struct {
	command []string
	library string
	patient time.Duration

	mu    sync.Mutex
	stuck map[string]bool // by UUID: a killed child that has not ended
}

// NewProver returns a Prover. command begins the child's command line, such as this program and its hidden command; the
// child calls RunProof. library is CUDA's driver library, empty for the system's.
func NewProver(command []string, library string) *Prover {
	return &Prover{command: command, library: library, patient: proofTime, stuck: map[string]bool{}}
}

// Prove has the GPU or MIG slice with a UUID compute, and says what came of it, within some 12 s; it is Config.Prove. When ctx
// ends the child is killed and the verdict says nothing of the GPU. A child that the kernel cannot kill, as it waits in the
// driver, is left behind, and its GPU fails all tests until it has ended.
func (p *Prover) Prove(ctx context.Context, uuid string) Proof {
	began := time.Now()
	out := p.prove(ctx, uuid)
	out.At, out.TookMs = time.Now(), time.Since(began).Milliseconds()
	return out
}

func (p *Prover) prove(ctx context.Context, uuid string) Proof {
	p.mu.Lock()
	stuck := p.stuck[uuid]
	p.mu.Unlock()
	switch {
	case len(p.command) == 0:
		return Proof{Verdict: Unable, Why: "no command for the test is configured"}
	case stuck:
		return Proof{Verdict: Failed, Why: "the process of an earlier test hangs in the driver and cannot be killed: reboot"}
	}
	said, noise := &bounded{}, &bounded{}
	c := exec.Command(p.command[0], append(p.command[1:len(p.command):len(p.command)], uuid, p.library)...) //nolint:noctx // its whole group is killed, below
	c.Dir, c.Stdout, c.Stderr = "/", said, noise
	// Nothing of this process's surroundings: they could make the driver another one.
	c.Env = []string{"CUDA_VISIBLE_DEVICES=" + uuid, "CUDA_CACHE_DISABLE=1"}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = time.Second // should somebody else hold its output
	if err := c.Start(); err != nil {
		return Proof{Verdict: Failed, Why: "the test could not be started: " + err.Error()}
	}
	ended := make(chan string, 1) // how the one child has
	go func() {
		awaitEnd(c.Process.Pid)
		killGroup(c.Process.Pid) // what it may have started; not reaped yet, it still has its number
		ended <- how(c.Wait())
	}()
	deadline := time.NewTimer(p.patient)
	defer deadline.Stop()
	select {
	case end := <-ended:
		return judgeProof(said.all(), end, lastLine(noise.all()))
	case <-ctx.Done():
		p.kill(c.Process.Pid, uuid, ended)
		return Proof{Verdict: Unable, Why: "the test was ended"}
	case <-deadline.C:
		if p.kill(c.Process.Pid, uuid, ended) {
			return judgeProof(said.all(), fmt.Sprintf("hung for %s", p.patient), "")
		}
		return judgeProof(said.all(), fmt.Sprintf("hung for %s and cannot be killed", p.patient), "")
	}
}

// kill ends a child and all that it has started; false when it does not end, and is waited for beside.
func (p *Prover) kill(pid int, uuid string, ended <-chan string) bool {
	killGroup(pid)
	grace := time.NewTimer(proofGrace)
	defer grace.Stop()
	select {
	case <-ended:
		return true
	case <-grace.C:
	}
	p.mu.Lock()
	p.stuck[uuid] = true
	p.mu.Unlock()
	go func() {
		<-ended
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.stuck, uuid)
	}()
	return false
}

// awaitEnd returns when a child has ended, without reaping it.
func awaitEnd(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killGroup kills a child that was not reaped, and all that it has started.
func killGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) }

// how a child has ended, empty when in good order.
func how(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &exit):
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return fmt.Sprintf("crashed (%s)", s.Signal())
		}
		return fmt.Sprintf("ended with %s", exit)
	}
	return "failed (" + err.Error() + ")"
}

// lastLine is the last line that says something, for people.
func lastLine(text []byte) string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(text), "?")), "\n")
	return clip(strings.TrimSpace(lines[len(lines)-1]), 256)
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	mu   sync.Mutex // a child that is left behind may still write
	kept bytes.Buffer
}

// Write implements io.Writer; what does not fit is left out.
func (b *bounded) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept.Write(text[:min(len(text), max(0, proofLines-b.kept.Len()))])
	return len(text), nil
}

func (b *bounded) all() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.kept.Bytes())
}
