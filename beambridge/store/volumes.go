package store

import (
	"time"

	"github.com/ipfs/go-cid"
)

// Volume is a tree under a name.
type Volume struct {
	Name    string    // Name is the key.
	Root    cid.Cid   // Root is the tree.
	Bytes   uint64    // Bytes is the content of all files.
	Blocks  uint64    // Blocks counts distinct blocks.
	Files   uint64    // Files counts files.
	Created time.Time // Created is when it was imported.
}

const volumeColumns = "name, root, bytes, blocks, files, created"

var (
	putVolume = &query{`INSERT INTO volumes (` + volumeColumns + `) VALUES (?,?,?,?,?,?)
ON CONFLICT (name) DO UPDATE SET root=excluded.root, bytes=excluded.bytes, blocks=excluded.blocks, files=excluded.files, created=excluded.created`}
	getVolume    = &query{"SELECT " + volumeColumns + " FROM volumes WHERE name=?"}
	listVolumes  = &query{"SELECT " + volumeColumns + " FROM volumes ORDER BY name"}
	deleteVolume = &query{"DELETE FROM volumes WHERE name=?"}
)

// PutVolume inserts a volume or replaces it by name.
func (t *Tx) PutVolume(v Volume) error {
	return putAll(t, putVolume, []Volume{v}, func(a *args, v *Volume) {
		a.text(v.Name)
		a.root("Volume.Root", v.Root)
		a.uint("Volume.Bytes", v.Bytes)
		a.uint("Volume.Blocks", v.Blocks)
		a.uint("Volume.Files", v.Files)
		a.time(v.Created)
	})
}

func scanVolume(r *row) Volume {
	return Volume{Name: r.text(), Root: r.cid(), Bytes: r.uint(), Blocks: r.uint(), Files: r.uint(), Created: r.time()}
}

// GetVolume returns a volume by name, or ErrNotFound.
func (t *Tx) GetVolume(name string) (Volume, error) {
	return one(t, getVolume, scanVolume, "volume", name, name)
}

// Volumes returns all volumes by name.
func (t *Tx) Volumes() ([]Volume, error) { return collect(list(t, listVolumes, scanVolume)) }

// DeleteVolume takes a name away, or returns ErrNotFound; the tree's blocks are not this package's.
func (t *Tx) DeleteVolume(name string) error {
	n, err := t.write(deleteVolume, func(a *args) { a.text(name) })
	if err == nil && n == 0 {
		err = notFound("volume", name)
	}
	return err
}
