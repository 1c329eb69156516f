package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a gridbeam daemon that this process has started.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string // its standard error

	lines chan []byte   // what it says on standard output, a JSON object a line
	done  chan struct{} // closed when it has ended
	err   error         // how, once done is closed

	mu     sync.Mutex
	killed bool
}

// launcher starts daemons that know nothing of this user's own files.
type launcher struct {
	exe    string
	dir    string   // logs and configuration of all of them
	common []string // arguments of every one
}

// start runs gridbeam with arguments; its log goes to a file of its own.
func (l *launcher) start(name string, args ...string) (*child, error) {
	logPath := filepath.Join(l.dir, name+".log")
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the log of %s: %w", name, err)
	}
	defer logFile.Close() // the child has its own
	p := &child{name: name, log: logPath, lines: make(chan []byte, 16), done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.Background(), l.exe, append(args, l.common...)...) // ended by stop and kill alone
	p.cmd.Stderr = logFile
	p.cmd.SysProcAttr = ownGroup()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go p.read(out)
	return p, nil
}

// read passes lines on until the child's output ends, then collects its end.
func (p *child) read(out io.Reader) {
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		select {
		case p.lines <- bytes.Clone(s.Bytes()):
		default: // nobody waits for it
		}
	}
	_, _ = io.Copy(io.Discard, out)
	p.err = p.cmd.Wait()
	close(p.done)
}

// ready waits for the line with event "ready" and decodes it into v.
func (p *child) ready(ctx context.Context, v any) error {
	for {
		select {
		case line := <-p.lines:
			var head struct {
				Event string `json:"event"`
			}
			if json.Unmarshal(line, &head) == nil && head.Event == "ready" {
				if err := json.Unmarshal(line, v); err != nil {
					return fmt.Errorf("reading the start of %s: %w", p.name, err)
				}
				return nil
			}
		case <-p.done:
			return fmt.Errorf("%s ended at its start (%w):\n%s", p.name, p.err, p.tail(20))
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; its log ends:\n%s", p.name, context.Cause(ctx), p.tail(20))
		}
	}
}

// tail returns the last lines of the child's log.
func (p *child) tail(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (p *child) pid() int { return p.cmd.Process.Pid }

// kill ends the child with SIGKILL, as a power cut would.
func (p *child) kill() error {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// stop asks the child to end, and kills it after grace.
func (p *child) stop(grace time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %s and was killed; its log ends:\n%s", p.name, grace, p.tail(5))
	}
	if e, ok := errors.AsType[*exec.ExitError](p.err); ok && e.ExitCode() != exitOK {
		return fmt.Errorf("%s ended with exit code %d:\n%s", p.name, e.ExitCode(), p.tail(5))
	}
	return nil
}

// wasKilled says whether kill was called: then the way it ended is no fault.
func (p *child) wasKilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}
