package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/gridbeam/gridbeam/protocol"
)

// ModuleFile is the only file of a module's tree.
const ModuleFile = "module.wasm"

const uploadPrefix = "upload-"

// upload runs f with an empty directory that is gone afterwards, when a place for an upload is free.
func (s *Server) upload(c *call, f func(dir *os.Root) error) error {
	ctx, stop := context.WithTimeout(c.r.Context(), s.cfg.BodyIdle)
	defer stop()
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	case <-ctx.Done():
		return &protocol.APIError{
			Code: protocol.CodeUnavailable, Text: fmt.Sprintf("%d uploads are on their way in already", cap(s.uploads)), Fix: "try again in a moment", RetryMS: 1000,
		}
	}
	dir, err := os.MkdirTemp(s.cfg.Spool, uploadPrefix)
	if err != nil {
		return fmt.Errorf("making room for an upload: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("api leaves an upload behind", "dir", dir, "err", err)
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("making room for an upload: %w", err)
	}
	defer func() { _ = root.Close() }() // holds no data
	return f(root)
}

// Sweep removes uploads that an earlier process left in Config.Spool; nobody else may be using it.
func (s *Server) Sweep() error {
	left, err := filepath.Glob(filepath.Join(s.cfg.Spool, uploadPrefix+"*"))
	if err != nil {
		return fmt.Errorf("looking for old uploads: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing an old upload: %w", err)
		}
	}
	return nil
}

// putModule takes a raw WebAssembly module. What is none is refused by its first bytes.
func (s *Server) putModule(c *call) error {
	src, err := s.body(c, s.cfg.ModuleBytes)
	if err != nil {
		return err
	}
	head := make([]byte, protocol.ModuleHead)
	n, err := io.ReadFull(src, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return bodyError(err)
	}
	if problem := protocol.ModuleProblem(head[:n]); problem != "" {
		return &protocol.APIError{Code: protocol.CodeBadModule, Field: "run.wasm", Text: protocol.ReasonBadModule.Text() + ": " + problem}
	}
	return s.upload(c, func(dir *os.Root) error {
		f, err := dir.Create(ModuleFile)
		if err != nil {
			return fmt.Errorf("storing a module: %w", err)
		}
		_, err = f.Write(head)
		if err == nil {
			_, err = io.Copy(f, src)
		}
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return bodyError(err)
		}
		info, err := s.bridge.Volumes.PutModule(c.r.Context(), c.who, dir.FS())
		if err != nil {
			return err
		}
		c.object = info.CID
		return c.json(http.StatusCreated, info)
	})
}

// putVolume takes a tar stream.
func (s *Server) putVolume(c *call) error {
	name, err := c.volumeName()
	if err != nil {
		return err
	}
	// A tar has headers and padding besides the files.
	src, err := s.body(c, s.cfg.VolumeBytes+int64(s.cfg.VolumeEntries)*2048)
	if err != nil {
		return err
	}
	return s.upload(c, func(dir *os.Root) error {
		limits := protocol.TreeLimits{Bytes: s.cfg.VolumeBytes, Entries: s.cfg.VolumeEntries}
		if err := protocol.UnpackTree(src, dir, limits, nil); err != nil {
			return bodyError(err)
		}
		if _, err := io.CopyN(io.Discard, src, 1<<20); err != nil && !errors.Is(err, io.EOF) { // what pads a tar
			return bodyError(err)
		}
		fsys, ok := dir.FS().(fs.ReadLinkFS)
		if !ok {
			return errors.New("api: a directory shows no links")
		}
		info, err := s.bridge.Volumes.PutVolume(c.r.Context(), c.who, name, fsys)
		if err != nil {
			return err
		}
		return c.json(http.StatusCreated, info)
	})
}

func (c *call) volumeName() (string, error) {
	name := c.r.PathValue("name")
	if !protocol.ValidVolumeName(name) {
		return "", badRequest("name", "use 1 to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit", "%.80q is no name of a volume", name)
	}
	c.object = name
	return name, nil
}

func (s *Server) volume(c *call) error {
	name, err := c.volumeName()
	if err != nil {
		return err
	}
	info, err := s.bridge.Volumes.Volume(c.r.Context(), c.who, name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, info)
}

func (s *Server) listVolumes(c *call) error {
	list, err := s.bridge.Volumes.ListVolumes(c.r.Context(), c.who)
	if err != nil {
		return err
	}
	if list.Volumes == nil {
		list.Volumes = []protocol.VolumeInfo{}
	}
	return c.json(http.StatusOK, list)
}
