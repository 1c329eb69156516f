package beambridge

import (
	"archive/zip"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/gridbeam/gridbeam/beambridge/beamapi"
	"github.com/gridbeam/gridbeam/volumes"
)

// Bounds of an archive of code (beam-interface.md 9.1).
const (
	codeFiles = 10_000
	codeBytes = 2 << 30
	codeRatio = 200  // of what is inside to the archive, beyond the first MiB
	codeName  = 1024 // bytes of a name
	codeDepth = 64   // directories above a file
)

// keepArchive makes a tree of the files of a zip archive that has the given hash.
func (b *Bridge) keepArchive(ctx context.Context, hash string, r io.Reader) (volumes.Tree, int64, error) {
	dir := filepath.Join(b.cfg.Data, "spool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return volumes.Tree{}, 0, fmt.Errorf("making the directory for uploads: %w", err)
	}
	f, err := os.CreateTemp(dir, "code-*.zip")
	if err != nil {
		return volumes.Tree{}, 0, fmt.Errorf("keeping an archive: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // its files are in the store
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, codeBytes+1))
	switch {
	case err != nil:
		return volumes.Tree{}, n, fmt.Errorf("receiving an archive: %w", err)
	case n > codeBytes:
		return volumes.Tree{}, n, refuse("the code has more than %d GiB; leave data out of the directory and put it into a volume", codeBytes>>30)
	case hex.EncodeToString(sum.Sum(nil)) != hash:
		return volumes.Tree{}, n, refuse("the archive that came does not have the hash %.12s…; send it again", hash)
	}
	z, err := zip.NewReader(f, n)
	if err != nil {
		return volumes.Tree{}, n, refuse("the code is no zip archive: %v", err)
	}
	if err := checkArchive(z, n); err != nil {
		return volumes.Tree{}, n, err
	}
	t, err := b.importTree(ctx, z)
	if damaged(err) {
		err = refuse("the zip archive is damaged: %v", err)
	}
	return t, n, err
}

// damaged says that an archive cannot be unpacked as it says of itself.
func damaged(err error) bool {
	_, deflate := errors.AsType[flate.CorruptInputError](err)
	return deflate || errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrAlgorithm) || errors.Is(err, io.ErrUnexpectedEOF)
}

func refuse(format string, args ...any) error {
	return &beamapi.Refusal{Text: fmt.Sprintf(format, args...)}
}

// checkArchive refuses what must not be unpacked, naming the entry.
func checkArchive(z *zip.Reader, size int64) error {
	if len(z.File) > codeFiles {
		return refuse("the code has %d files, at most %d are taken; leave data out of the directory and put it into a volume", len(z.File), codeFiles)
	}
	seen, dirs := make(map[string]bool, len(z.File)), map[string]bool{}
	total := uint64(0)
	for _, f := range z.File {
		name := strings.TrimSuffix(f.Name, "/")
		mode := f.Mode()
		switch {
		case name != "" && name != "." && !fs.ValidPath(name), strings.ContainsAny(name, "\\\x00"):
			return refuse("the archive holds %.80q, which leaves its directory", f.Name)
		case len(name) > codeName || strings.Count(name, "/") > codeDepth:
			return refuse("the archive holds %.80q…, a name of %d bytes in %d directories; at most %d and %d are taken", f.Name, len(name), strings.Count(name, "/"), codeName, codeDepth)
		case mode&(fs.ModeSymlink|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket|fs.ModeCharDevice|fs.ModeIrregular) != 0:
			return refuse("the archive holds %.80q, which is no plain file", f.Name)
		case seen[name] && !mode.IsDir():
			return refuse("the archive holds %.80q twice", f.Name)
		case f.Flags&1 != 0:
			return refuse("the archive holds %.80q encrypted", f.Name)
		}
		seen[name] = true
		for dir := path.Dir(name); dir != "." && dir != "/" && !dirs[dir]; dir = path.Dir(dir) {
			dirs[dir] = true
		}
		if len(dirs) > codeFiles {
			return refuse("the code has more than %d directories; leave data out of the directory and put it into a volume", codeFiles)
		}
		if total += f.UncompressedSize64; f.UncompressedSize64 > codeBytes || total > codeBytes {
			return refuse("the code has more than %d GiB; leave data out of the directory and put it into a volume", codeBytes>>30)
		}
	}
	if total > 1<<20 && total > codeRatio*uint64(size) {
		return refuse("the archive of %d bytes unpacks to %d; that is no code", size, total)
	}
	return nil
}
