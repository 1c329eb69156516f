//go:build !linux

package node

import (
	"errors"
	"os"
)

// oDirect is not known here.
const oDirect = 0

func syncData(f *os.File) error { return f.Sync() }

func dropCached(*os.File) error { return errors.New("the cache cannot be kept out on this system") }
