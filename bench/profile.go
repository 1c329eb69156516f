package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// profileIfMissed runs a load once more when a target was missed, and leaves where the processor's time went in
// the bridge and in one node as bench/profiles/ROW.txt. Nothing that is timed runs beside it.
func (g *grid) profileIfMissed(ctx context.Context, r result, length time.Duration, load func(context.Context) error) error {
	if r.Met || g.b.quick {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	ended := make(chan struct{}) // the profiles are there
	var text strings.Builder
	_, _ = text.WriteString("where the processor's time went while it was measured once more.\n")
	type part struct {
		name, port, text string
		err              error
	}
	parts := []*part{{name: "bridge", port: g.pprof}}
	for _, w := range g.nodes[:1] {
		parts = append(parts, &part{name: w.name, port: w.pprof})
	}
	for _, p := range parts {
		wg.Go(func() { p.text, p.err = g.b.cpuProfile(ctx, r.Name+"."+p.name, p.port, length) })
	}
	go func() { wg.Wait(); close(ended) }()
	for busy := true; busy; {
		select {
		case <-ended:
			busy = false
		default:
			if err := load(ctx); err != nil {
				stop()
				<-ended
				return err
			}
		}
	}
	var errs []error
	for _, p := range parts {
		_, _ = fmt.Fprintf(&text, "\n%s\n\n%s", p.name, p.text)
		errs = append(errs, p.err)
	}
	return errors.Join(errors.Join(errs...), g.b.keepProfile(r, text.String()))
}

// heapIfMissed leaves what the memory of a process is made of.
func (b *bench) heapIfMissed(ctx context.Context, r result, whose, port string) error {
	if r.Met || b.quick {
		return nil
	}
	text, err := b.profile(ctx, r.Name, fmt.Sprintf("http://127.0.0.1:%s/debug/pprof/heap?gc=1", port), "-sample_index=inuse_space")
	if err != nil {
		return err
	}
	return b.keepProfile(r, fmt.Sprintf("what Go's heap held in %s, after a collection; the rest of the resident memory is code, stacks, and what was free just then.\n\n%s", whose, text))
}

// keepProfile writes bench/profiles/ROW.txt.
func (b *bench) keepProfile(r result, text string) error {
	dir := filepath.Join(b.root, "bench", "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keeping a profile: %w", err)
	}
	text = fmt.Sprintf("%s is %s %s, the target %s: %s", r.Name, number(r.Value), r.Unit, find(r.Name).goal(), text)
	if err := os.WriteFile(filepath.Join(dir, r.Name+".txt"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("keeping a profile: %w", err)
	}
	return nil
}

// cpuProfile takes a CPU profile of a process and returns its text.
func (b *bench) cpuProfile(ctx context.Context, name, port string, length time.Duration) (string, error) {
	return b.profile(ctx, name, fmt.Sprintf("http://127.0.0.1:%s/debug/pprof/profile?seconds=%d", port, int(length.Seconds())))
}

// profile gets a profile and returns it as text, the costliest first.
func (b *bench) profile(ctx context.Context, name, url string, args ...string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("profiling %s: %w", name, err)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	path := filepath.Join(b.dir, name+".pb.gz")
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("profiling %s: %w", name, err)
	}
	return pprofText(ctx, b.exe, path, args...)
}

// pprofText is a profile of a program as text, the costliest first.
func pprofText(ctx context.Context, exe, path string, args ...string) (string, error) {
	args = append(append([]string{"tool", "pprof", "-top", "-cum", "-nodecount=70"}, args...), exe, path)
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("reading the profile %s: %w", filepath.Base(path), err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "File:") && !strings.HasPrefix(line, "Build ID:") && !strings.HasPrefix(line, "Time:") {
			_, _ = text.WriteString(line)
		}
	}
	return text.String(), nil
}
