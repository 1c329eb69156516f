package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gridbeam/gridbeam/internal/beamclient"
	"github.com/gridbeam/gridbeam/node/executor"
	"github.com/gridbeam/gridbeam/node/executor/sandbox"
	"github.com/gridbeam/gridbeam/protocol"
)

// measureSandbox runs chunks of one input on a warm Python runner, through the node's backend alone, beside a bare
// Python that answers on a pipe.
func measureSandbox(ctx context.Context, b *bench) ([]result, error) {
	dir, err := os.MkdirTemp(b.dir, "sandbox-")
	if err != nil {
		return nil, err
	}
	code := filepath.Join(dir, "code")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(code, 0o755), os.WriteFile(filepath.Join(code, "app.py"), []byte(doubling), 0o644)); err != nil {
		return nil, err
	}
	cfg := sandbox.DefaultConfig()
	cfg.Dir, cfg.Shim, cfg.Init = filepath.Join(dir, "state"), []string{b.exe, "shim"}, []string{b.exe, "sandbox-init"}
	back, err := sandbox.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() { _ = back.Close() }() // the process ends
	p, err := newPipe(ctx)
	if err != nil {
		return nil, err
	}
	defer p.close()
	lease := func(n int) (time.Duration, error) {
		out := filepath.Join(dir, "out")
		if err := errors.Join(os.RemoveAll(out), os.Mkdir(out, 0o700)); err != nil {
			return 0, err
		}
		began := time.Now()
		prep, err := back.Prepare(ctx, executor.Task{
			Lease: protocol.NewLeaseID(), Tenant: "bench", OutDir: out, Limits: executor.DefaultLimits(time.Minute),
			Inputs:   []executor.Input{{Index: uint64(n), Args: beamclient.PickleCall(n), Encoding: protocol.EncodingPickle}},
			Function: &executor.Function{Runtime: "python3", Handler: "app:double", Code: code, Spec: "bench", Workers: 1},
		})
		if err != nil {
			return 0, err
		}
		h, err := back.Start(ctx, prep)
		if err != nil {
			return 0, err
		}
		end, err := h.Wait(ctx)
		took := time.Since(began)
		if err == nil && end.Reason != protocol.ReasonDone {
			err = fmt.Errorf("%w: a chunk ended with %s: %s", errProof, end.Reason, end.FirstCause)
		}
		if err == nil {
			var raw []byte
			if raw, err = os.ReadFile(filepath.Join(out, fmt.Sprint(n), protocol.ResultFile)); err == nil {
				var got int
				if got, err = beamclient.PickledInt(raw); err == nil && got != 2*n {
					err = fmt.Errorf("%w: double(%d) is %d", errProof, n, got)
				}
			}
		}
		return took, err
	}
	if _, err := lease(0); err != nil {
		return nil, err
	}
	var ours, bare []float64
	for range b.rounds {
		var a, c []float64
		for n := range 200 {
			d, err := lease(n)
			if err != nil {
				return nil, err
			}
			a = append(a, milliseconds(d))
			if d, err = p.ask(); err != nil {
				return nil, err
			}
			c = append(c, milliseconds(d))
		}
		ours, bare = append(ours, median(a)-median(c)), append(bare, median(c))
	}
	return []result{measured("exec.sandbox_warm_ms", median(ours), median(bare), "overhead: the median of %d rounds of 200 chunks, less that of the pipe; each result compared", b.rounds)}, nil
}

// pipe is a bare Python that doubles numbers on a pipe.
type pipe struct {
	cmd *exec.Cmd
	in  *bufio.Writer
	out *bufio.Reader
	end func() error
}

func newPipe(ctx context.Context) (*pipe, error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-uc", "import sys\nfor line in sys.stdin: print(2*int(line))")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("a bare Python: %w", err)
	}
	p := &pipe{cmd, bufio.NewWriter(in), bufio.NewReader(out), in.Close}
	_, err = p.ask() // it has started
	return p, err
}

func (p *pipe) ask() (time.Duration, error) {
	began := time.Now()
	if _, err := p.in.WriteString("21\n"); err != nil {
		return 0, err
	}
	if err := p.in.Flush(); err != nil {
		return 0, err
	}
	line, err := p.out.ReadString('\n')
	if err == nil && line != "42\n" {
		err = fmt.Errorf("%w: a bare Python answered %q", errProof, line)
	}
	return time.Since(began), err
}

func (p *pipe) close() {
	_ = p.end()
	_ = p.cmd.Wait()
}
