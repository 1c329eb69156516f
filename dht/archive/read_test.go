//go:build unix

package archive

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestAPipeInACrawlIsRefusedAndReadingEndsWithItsContext(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	dir, _, _ := written(t, false)
	if _, err := Verify(over, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("verifying after the end: %v", err)
	}
	if _, err := Open(over, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("opening after the end: %v", err)
	}
	for _, name := range []string{ManifestFile, CrawlFile, RecordsFile, VisitsFile} {
		dir, _, _ := written(t, false)
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), dir); !errors.Is(err, errNoFile) {
			t.Errorf("verifying with a pipe as %s: %v", name, err)
		}
		if _, err := Open(t.Context(), dir); !errors.Is(err, errNoFile) {
			t.Errorf("opening with a pipe as %s: %v", name, err)
		}
	}
}
