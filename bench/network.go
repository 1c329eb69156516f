package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gridbeam/gridbeam/beambridge/client"
	"github.com/gridbeam/gridbeam/node"
	"github.com/gridbeam/gridbeam/protocol"
)

// grid is a network of processes on loopback: one bridge, and nodes of the same operator.
type grid struct {
	b      *bench
	dir    string
	bridge *child
	listen string // TCP ports that a restart takes again
	api    string
	pprof  string
	nodes  []*worker
	client *client.Client
	beam   string // the address of Beam's gateway
	token  string
	module string // CID of the module of the row
}

type worker struct {
	*child
	name  string
	id    protocol.PeerID
	pprof string
}

// newGrid starts a bridge and nodes with empty stores, and sends a module.
func (b *bench) newGrid(ctx context.Context, nodes int, module []byte) (g *grid, err error) {
	g = &grid{b: b}
	if g.dir, err = os.MkdirTemp(b.dir, "grid-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	for _, p := range []*string{&g.listen, &g.api, &g.pprof} {
		if *p, err = freePort(ctx); err != nil {
			return nil, err
		}
	}
	if err := g.startBridge(ctx); err != nil {
		return nil, err
	}
	for i := range nodes {
		w := &worker{name: fmt.Sprintf("node-%d", i+1)}
		g.nodes = append(g.nodes, w)
		if err := g.startNode(ctx, w); err != nil {
			return nil, err
		}
	}
	if err := g.awaitNodes(ctx); err != nil {
		return nil, err
	}
	if module != nil {
		path := filepath.Join(g.dir, "job.wasm")
		if err := os.WriteFile(path, module, 0o600); err != nil {
			return nil, err
		}
		m, err := g.client.PutModule(ctx, path, nil)
		if err != nil {
			return nil, fmt.Errorf("sending the module: %w", err)
		}
		g.module = m.CID
	}
	return g, nil
}

func freePort(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

func (g *grid) config() string { return filepath.Join(g.dir, "config") }

// startBridge starts the bridge on its store, be it empty or from before.
func (g *grid) startBridge(ctx context.Context) (err error) {
	g.bridge, err = spawn("bridge", g.dir, g.b.exe, "bridge", "run", "--data", filepath.Join(g.dir, "bridge"), "--listen", "/ip4/127.0.0.1/tcp/"+g.listen,
		"--api", "127.0.0.1:"+g.api, "--beam", "127.0.0.1:0", "--api-rate", "0", "--pprof", "127.0.0.1:"+g.pprof, "--mdns=false", "--config-dir", g.config(), "--log-level", "warn", "--output", "json")
	if err != nil {
		return err
	}
	var ready struct{ Beam string }
	if _, err := g.bridge.awaitReady(ctx, &ready); err != nil {
		return err
	}
	g.beam = ready.Beam
	var settings struct{ API, Token string }
	b, err := os.ReadFile(filepath.Join(g.config(), "client.json"))
	if err != nil {
		return fmt.Errorf("finding the bridge's API: %w", err)
	}
	if err := json.Unmarshal(b, &settings); err != nil {
		return fmt.Errorf("finding the bridge's API: %w", err)
	}
	if g.client != nil {
		g.client.Close()
	}
	g.token = settings.Token
	g.client, err = client.New(client.DefaultConfig(settings.API, settings.Token))
	return err
}

// startNode starts a node on its store, be it empty or from before.
func (g *grid) startNode(ctx context.Context, w *worker) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	w.pprof = port
	w.child, err = spawn(w.name, g.dir, g.b.exe, "node", "run", "--data", g.data(w), "--local", "--price", "0", "--min-isolation", "shared", "--drain", "0s", "--pprof", "127.0.0.1:"+port, "--mdns=false",
		"--config-dir", g.config(), "--log-level", "warn", "--output", "json")
	if err != nil {
		return err
	}
	var ready struct{ Status node.Status }
	if _, err := w.awaitReady(ctx, &ready); err != nil {
		return err
	}
	w.id = ready.Status.PeerID
	return nil
}

func (g *grid) data(w *worker) string { return filepath.Join(g.dir, w.name) }

// awaitNodes waits until the bridge counts on every node.
func (g *grid) awaitNodes(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, 60*time.Second)
	defer stop()
	for {
		list, err := g.client.Nodes(ctx, "")
		if err != nil {
			return fmt.Errorf("asking for the nodes: %w", err)
		}
		ready := 0
		for _, n := range list.Nodes {
			for _, w := range g.nodes {
				if n.PeerID == w.id && n.State == string(node.StateReady) && n.Connected {
					ready++
				}
			}
		}
		if ready == len(g.nodes) {
			return nil
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the bridge has heard %d of %d nodes; its log ends:\n%s", ready, len(g.nodes), g.bridge.tail())
		}
	}
}

// close ends every process and forgets their data.
func (g *grid) close() {
	var wg sync.WaitGroup
	for _, w := range g.nodes {
		if w.child != nil {
			wg.Go(w.stop) // in order: a killed node leaves its scratch files in memory
		}
	}
	wg.Wait()
	if g.bridge != nil {
		g.bridge.kill()
	}
	if g.client != nil {
		g.client.Close()
	}
	_ = os.RemoveAll(g.dir)
}

// status asks a node where it stands.
func (g *grid) status(ctx context.Context, w *worker) (node.Status, error) {
	c, err := node.Dial(ctx, g.data(w))
	if err != nil {
		return node.Status{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}

// nonces are inputs that nobody could know before.
func nonces(n int) []string {
	salt := rand.Text()[:10]
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", salt, i)
	}
	return out
}

// request is a job that runs the module once for each input, one input a chunk.
func (g *grid) request(name string, inputs []string) protocol.SubmitRequest {
	return protocol.SubmitRequest{
		Job: protocol.Job{
			Name: name, Kind: protocol.JobMap, Chunk: 1, Inputs: protocol.JobInputs{List: inputs},
			Run: protocol.JobRun{Wasm: "job.wasm", Command: []string{"job", "{input}"}},
		},
		ModuleCID: g.module,
	}
}

// complete runs a job to its end and returns how long that took, submission included.
func (g *grid) complete(ctx context.Context, name string, inputs []string) (protocol.JobStatus, time.Duration, error) {
	req := g.request(name, inputs)
	began := time.Now()
	s, err := g.client.SubmitAndWait(ctx, req, nil)
	took := time.Since(began)
	if err == nil {
		err = whole(&s, len(inputs))
	}
	if err != nil {
		return s, took, fmt.Errorf("job %s: %w; the bridge's log ends:\n%s", name, err, g.bridge.tail())
	}
	return s, took, nil
}

// whole checks that every chunk of a job of single inputs is done and counted once.
func whole(s *protocol.JobStatus, inputs int) error {
	n := uint64(inputs)
	if s.State != "done" || s.ChunksDone != n || s.ChunksTotal != n || s.InputsDone != n || s.Inputs != n {
		return fmt.Errorf("%w: the job is %s (%s) with %d of %d chunks and %d of %d inputs done, want %d", errProof, s.State, s.Text, s.ChunksDone, s.ChunksTotal, s.InputsDone, s.Inputs, n)
	}
	sum := uint64(0)
	for i := range s.Nodes {
		sum += s.Nodes[i].Chunks
	}
	if sum != n {
		return fmt.Errorf("%w: the nodes account for %d chunks, the job for %d", errProof, sum, n)
	}
	return nil
}

// proveOutputs fetches what a job wrote and compares every output with the hash of its input.
func (g *grid) proveOutputs(ctx context.Context, id protocol.JobID, inputs []string) error {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := g.client.ResultsTar(ctx, id, w)
		_ = w.CloseWithError(err) // never fails
	}()
	err := compare(r, inputs)
	_ = r.Close() // ends the sender, if it has more; never fails
	<-done
	if err != nil {
		return fmt.Errorf("outputs of %s: %w", id, err)
	}
	return nil
}

// compare reads a tar stream of outputs: h for a single input, else INDEX/h.
func compare(r io.Reader, inputs []string) error {
	seen := make([]bool, len(inputs))
	missing := len(inputs)
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		index := 0
		name := strings.TrimPrefix(h.Name, "./")
		if len(inputs) > 1 {
			dir, _ := strings.CutSuffix(name, "/"+noncePath)
			if index, err = strconv.Atoi(dir); err != nil {
				return fmt.Errorf("%w: output %q belongs to no input", errProof, h.Name)
			}
		} else if name != noncePath {
			return fmt.Errorf("%w: output %q belongs to no input", errProof, h.Name)
		}
		got, err := io.ReadAll(io.LimitReader(t, 64))
		if err != nil {
			return err
		}
		if index < 0 || index >= len(inputs) || seen[index] || !bytes.Equal(got, nonceOutput(inputs[index])) {
			return fmt.Errorf("%w: output %q is %x", errProof, h.Name, got)
		}
		seen[index] = true
		missing--
	}
	_, err := io.Copy(io.Discard, r)
	if err == nil && missing > 0 {
		err = fmt.Errorf("%w: %d of %d inputs have no output", errProof, missing, len(inputs))
	}
	return err
}
