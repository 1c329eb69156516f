package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gridbeam/gridbeam/protocol"
)

// ErrModule means that the file of run.wasm is no module that can be run; the text says why.
var ErrModule = errors.New("client: the module cannot be run")

// Progress is told how many bytes of a transfer have passed; total is 0 where it is not known. It may be nil
// and must be quick.
type Progress func(bytes, total int64)

// JobFile is a job file with what it refers to on this machine.
type JobFile struct {
	// Job is what the file says.
	Job protocol.Job
	// Module is the path of the module, "" when the job runs none.
	Module string
	// Lines are the inputs of inputs.lines.
	Lines []string
}

// maxLines bounds the bytes of a file of inputs.
const maxLines = 48 << 20

// LoadJob reads a job file (protocol.ParseJob) and the files that it refers to, whose paths count from its
// directory. The error is protocol.JobErrors with everything that is wrong, or says which file cannot be read.
func LoadJob(path string) (JobFile, error) {
	text, err := readFile(path, protocol.MaxJobFile)
	if err != nil {
		return JobFile{}, fmt.Errorf("reading the job file: %w", err)
	}
	job, err := protocol.ParseJob(text, path)
	if err != nil {
		return JobFile{}, err
	}
	f := JobFile{Job: job}
	near := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(filepath.Dir(path), filepath.FromSlash(p))
	}
	var wrong protocol.JobErrors
	if job.Run.Wasm != "" {
		f.Module = near(job.Run.Wasm)
		if err := checkModule(f.Module); err != nil {
			wrong = append(wrong, protocol.JobError{File: path, Field: "run.wasm", Value: job.Run.Wasm, Problem: problem(err)})
		}
	}
	if job.Inputs.Lines != "" {
		if f.Lines, err = readLines(near(job.Inputs.Lines)); err != nil {
			wrong = append(wrong, protocol.JobError{File: path, Field: "inputs.lines", Value: job.Inputs.Lines, Problem: problem(err)})
		}
	}
	if len(wrong) > 0 {
		return f, wrong
	}
	return f, nil
}

// problem is an error without the operation's name.
func problem(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Path + ": " + p.Err.Error()
	}
	return strings.TrimPrefix(err.Error(), "client: ")
}

func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, fmt.Errorf("%s has more than %s", path, protocol.ByteSize(most))
	}
	return b, err
}

// checkModule looks at the first bytes of a module.
func checkModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, protocol.ModuleHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if p := protocol.ModuleProblem(head[:n]); p != "" {
		return fmt.Errorf("%w: %s: %s", ErrModule, path, p)
	}
	return nil
}

// readLines reads inputs: each line without its end; a last line without an end counts, an empty rest does not.
func readLines(path string) ([]string, error) {
	text, err := readFile(path, maxLines)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(text) || strings.ContainsRune(string(text), 0) {
		return nil, fmt.Errorf("%s is no UTF-8 text", path)
	}
	var lines []string
	for l := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimSuffix(strings.TrimSuffix(l, "\n"), "\r"))
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%s is empty: a job without inputs has nothing to do", path)
	}
	return lines, nil
}

// Prepare sends a job's module and returns what Submit takes.
func (c *Client) Prepare(ctx context.Context, f JobFile, progress Progress) (protocol.SubmitRequest, error) {
	req := protocol.SubmitRequest{Job: f.Job, Lines: f.Lines}
	if f.Module == "" {
		return req, nil
	}
	info, err := c.PutModule(ctx, f.Module, progress)
	req.ModuleCID = info.CID
	return req, err
}

// PutModule sends a WebAssembly module. It returns ErrModule before anything is sent when the file is none.
func (c *Client) PutModule(ctx context.Context, path string, progress Progress) (m protocol.ModuleInfo, err error) {
	if err := checkModule(path); err != nil {
		return m, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return m, err
	}
	body := func() (io.ReadCloser, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return &countedFile{file: f, total: info.Size(), progress: progress}, nil
	}
	return m, c.call(ctx, request{method: "POST", path: "/modules", body: body, size: info.Size(), kind: "application/wasm", large: true}, &m)
}

// countedFile is a file that tells how far it was read. It does not embed the file: the network would then be
// sent its descriptor, past Read.
type countedFile struct {
	file         *os.File
	bytes, total int64
	progress     Progress
}

// Close implements io.Closer.
func (f *countedFile) Close() error { return f.file.Close() }

// Read implements io.Reader.
func (f *countedFile) Read(p []byte) (int, error) {
	n, err := f.file.Read(p)
	f.bytes += int64(n)
	if f.progress != nil && n > 0 {
		f.progress(f.bytes, f.total)
	}
	switch {
	case errors.Is(err, io.EOF) && f.bytes < f.total:
		err = &sourceError{fmt.Errorf("%s shrank while it was sent; try again when nothing writes to it", f.file.Name())}
	case err != nil && !errors.Is(err, io.EOF):
		err = &sourceError{err}
	}
	return n, err
}

// PutVolume sends a directory, which is not left whatever links say, and names it as a volume. The error is
// protocol.ErrBadTree for what a volume cannot hold.
func (c *Client) PutVolume(ctx context.Context, name, dir string, progress Progress) (v protocol.VolumeInfo, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return v, err
	}
	defer func() { _ = root.Close() }() // only read
	total, err := treeSize(root.FS())
	if err != nil {
		return v, err
	}
	var sending sync.WaitGroup
	defer sending.Wait() // before the directory is closed
	body := func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		// Ends when the tree is sent, or when the transport closes the body, which it always does.
		sending.Go(func() { _ = w.CloseWithError(packInto(w, root.FS(), total, progress)) }) // never fails
		return r, nil
	}
	return v, c.call(ctx, request{method: "PUT", path: "/volumes/" + url.PathEscape(name), body: body, size: -1, kind: "application/x-tar", large: true}, &v)
}

// packInto writes a tree in pieces that are worth a system call.
func packInto(w io.Writer, fsys fs.FS, total int64, progress Progress) error {
	buffered := bufio.NewWriterSize(w, 256<<10)
	err := protocol.PackTree(buffered, fsys, func(_ int, n int64) {
		if progress != nil {
			progress(n, total)
		}
	})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return &sourceError{err}
	}
	return err
}

func treeSize(fsys fs.FS) (total int64, err error) {
	err = fs.WalkDir(fsys, ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// Volume returns what a name stands for.
func (c *Client) Volume(ctx context.Context, name string) (v protocol.VolumeInfo, err error) {
	return v, c.call(ctx, request{method: "GET", path: "/volumes/" + url.PathEscape(name)}, &v)
}

// Volumes returns the user's volumes.
func (c *Client) Volumes(ctx context.Context) (list protocol.VolumeList, err error) {
	return list, c.call(ctx, request{method: "GET", path: "/volumes"}, &list)
}

// Results writes a job's outputs into a directory, which is made if absent, and returns their root CID. It never
// writes outside of it; files that were there under the same names are replaced, others are left alone.
func (c *Client) Results(ctx context.Context, id protocol.JobID, dir string, progress Progress) (root string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	into, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = into.Close() }() // holds no data
	r := request{method: "GET", path: "/jobs/" + id.String() + "/results"}
	return root, c.repeat(ctx, r, func() error {
		var err error
		root, err = c.results(ctx, r, func(body io.Reader) error {
			return protocol.UnpackTree(body, into, protocol.TreeLimits{}, func(_ int, n int64) {
				if progress != nil {
					progress(n, 0)
				}
			})
		})
		return err
	})
}

// ResultsTar writes a job's outputs as a tar stream and returns their root CID.
func (c *Client) ResultsTar(ctx context.Context, id protocol.JobID, w io.Writer) (root string, err error) {
	return c.results(ctx, request{method: "GET", path: "/jobs/" + id.String() + "/results"}, func(body io.Reader) error {
		_, err := io.Copy(w, body)
		return err
	})
}

func (c *Client) results(ctx context.Context, r request, take func(io.Reader) error) (root string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(c.cfg.Timeout, func() { cancel(errSilent) })
	defer silent.Stop()
	resp, err := c.send(ctx, r)
	if err != nil {
		return "", heard(ctx, err, c)
	}
	defer func() { _ = resp.Body.Close() }() // only read
	body := &cutOff{beating: beating{resp.Body, silent, c.cfg.Silence}}
	if err := take(body); err != nil {
		if body.err != nil { // the stream's end is the cause of what was found in it
			return "", heard(ctx, c.broken(ctx, body.err), c)
		}
		return "", err
	}
	if _, err := io.Copy(io.Discard, body); err != nil { // a tar ends before its stream; a stream that was cut off says so here
		return "", heard(ctx, c.broken(ctx, err), c)
	}
	return resp.Header.Get("Gridbeam-Root"), nil
}

// cutOff remembers how its stream broke.
type cutOff struct {
	beating
	err error
}

// Read implements io.Reader.
func (b *cutOff) Read(p []byte) (int, error) {
	n, err := b.beating.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}
