package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// errNoFile means something else than a file, such as a pipe, from which reading might never end.
var errNoFile = errors.New("not a regular file")

// openFile opens a regular file; reading from it ends when ctx does.
func openFile(ctx context.Context, path string) (io.ReadCloser, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, errNoFile)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &reading{ctx, f}, nil
}

// readFile reads a regular file.
func readFile(ctx context.Context, path string) ([]byte, error) {
	f, err := openFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

type reading struct {
	ctx context.Context
	f   *os.File
}

// Read implements io.Reader.
func (r *reading) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(b)
}

// Close implements io.Closer.
func (r *reading) Close() error { return r.f.Close() }
