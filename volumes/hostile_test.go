package volumes_test

import (
	"crypto/sha256"
	"testing"

	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"

	"github.com/gridbeam/gridbeam/volumes"
)

// putNode stores hand-made dag-pb bytes.
func putNode(t *testing.T, s *volumes.Store, block []byte) cid.Cid {
	t.Helper()
	sum := sha256.Sum256(block)
	h, err := mh.Encode(sum[:], mh.SHA2_256)
	if err != nil {
		t.Fatal(err)
	}
	c := cid.NewCidV1(cid.DagProtobuf, h)
	if err := s.PutBlocks(t.Context(), []volumes.Block{{CID: c, Data: block}}); err != nil {
		t.Fatal(err)
	}
	return c
}

// hostileDir is a directory with one entry of any name.
func hostileDir(t *testing.T, s *volumes.Store, name string, child cid.Cid) cid.Cid {
	t.Helper()
	link := append([]byte{0x0a, byte(child.ByteLen())}, child.Bytes()...)
	link = append(link, 0x12, byte(len(name)))
	link = append(link, name...)
	link = append(link, 0x18, 4)
	block := append([]byte{0x12, byte(len(link))}, link...)
	return putNode(t, s, append(block, 0x0a, 2, 0x08, 1))
}

// hostileLink is a symbolic link with any target.
func hostileLink(t *testing.T, s *volumes.Store, target string) cid.Cid {
	t.Helper()
	data := append([]byte{0x08, 4, 0x12, byte(len(target))}, target...)
	return putNode(t, s, append([]byte{0x0a, byte(len(data))}, data...))
}
