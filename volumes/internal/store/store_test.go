package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(dir string) Config {
	return Config{Dir: dir, PackSize: 1 << 20, Inline: 1024, SyncBytes: 64 << 20}
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func block(seed uint64, size int) Block {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(data)
	return Block{Digest: sha256.Sum256(data), Data: data}
}

func TestBlocksSurviveReopen(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	var blocks []Block
	for i := range uint64(50) {
		blocks = append(blocks, block(i, int(i)*300)) // inline and packed, several packs
	}
	root := Root{Digest: blocks[49].Digest, Codec: 0x70, Bytes: 1, Blocks: 2, Files: 3, Added: 4}
	if err := s.Put(&root, blocks...); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for _, b := range blocks {
			got, err := s.Get(b.Digest)
			if err != nil || !bytes.Equal(got, b.Data) {
				t.Fatalf("block of %d bytes: %v", len(b.Data), err)
			}
			if n, err := s.Size(b.Digest); err != nil || n != len(b.Data) {
				t.Fatalf("size %d of %d, %v", n, len(b.Data), err)
			}
			part := make([]byte, 10)
			if n, _ := s.ReadAt(b.Digest, part, 5); n != min(10, max(0, len(b.Data)-5)) || !bytes.Equal(part[:n], b.Data[min(5, len(b.Data)):][:n]) {
				t.Fatalf("part of %d bytes differs", len(b.Data))
			}
		}
		if r, err := s.Root(root.Digest); err != nil || r != root {
			t.Fatalf("root %+v, %v", r, err)
		}
	}
	check() // before any sync
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(nil, blocks[0]); !errors.Is(err, ErrClosed) {
		t.Fatalf("put after close: %v", err)
	}
	s = open(t, cfg)
	defer s.Close()
	check()
	if _, err := s.Get(Digest{}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("absent block: %v", err)
	}
}

func TestSecondProcessIsNamedThePid(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	defer s.Close()
	_, err := Open(cfg, slog.New(slog.DiscardHandler))
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("second open: %v", err)
	}
}

func TestUnknownFormatIsRefusedByName(t *testing.T) {
	cfg := config(t.TempDir())
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, "format.json")
	for _, bad := range []string{`{"format":2,"features":[]}`, `{"format":1,"features":["shiny"]}`, `nonsense`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(cfg, slog.New(slog.DiscardHandler))
		if !errors.Is(err, ErrFormat) || (strings.Contains(bad, "shiny") && !strings.Contains(err.Error(), "shiny")) {
			t.Fatalf("%s: %v", bad, err)
		}
	}
}

// A stopped process leaves its packs' unsynced records and the tail that a torn write left.
func TestTornTailIsDroppedAndWholeRecordsAdopted(t *testing.T) {
	for _, cut := range []int64{0, 1, 47, 48, 49, 3000} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			mem := vfs.NewMem()
			cfg := config("/s")
			cfg.FS = mem
			s := open(t, cfg)
			a, b, c := block(1, 5000), block(2, 5000), block(3, 5000)
			if err := errors.Join(s.Put(nil, a), s.Sync(t.Context()), s.Put(nil, b), s.Put(nil, c)); err != nil {
				t.Fatal(err)
			}
			// The image of the directory at this moment, with the pack cut inside the last record.
			image := vfs.NewMem()
			if err := cloneDir(mem, image, "/s"); err != nil {
				t.Fatal(err)
			}
			cutFile(t, image, "/s/pack/0.dat", 2*5048+cut)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			cfg.FS = image
			s = open(t, cfg)
			defer s.Close()
			for _, have := range []Block{a, b} {
				if got, err := s.Get(have.Digest); err != nil || !bytes.Equal(got, have.Data) {
					t.Fatalf("whole record is lost: %v", err)
				}
			}
			if has, err := s.Has(c.Digest); has || err != nil {
				t.Fatalf("torn record is had: %v", err)
			}
			if err := errors.Join(s.Put(nil, c), s.Sync(t.Context())); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Get(c.Digest); err != nil || !bytes.Equal(got, c.Data) {
				t.Fatal("block put after recovery is unreadable")
			}
		})
	}
}

func cloneDir(from, to vfs.FS, dir string) error {
	_, err := vfs.Clone(from, to, dir, dir)
	return err
}

func cutFile(t *testing.T, fs vfs.FS, path string, size int64) {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if f, err = fs.Create(path, vfs.WriteCategoryUnspecified); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestPackCutBelowItsSyncedLengthLosesOnlyWhatIsCut(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	a, b := block(1, 5000), block(2, 5000)
	root := Root{Digest: b.Digest}
	if err := errors.Join(s.Put(&root, a, b), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(cfg.Dir, "pack", "0.dat"), 7000); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	defer s.Close()
	if got, err := s.Get(a.Digest); err != nil || !bytes.Equal(got, a.Data) {
		t.Fatalf("first block: %v", err)
	}
	if has, _ := s.Has(b.Digest); has {
		t.Fatal("the cut block is still had")
	}
	if _, err := s.Root(b.Digest); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a tree that may be incomplete is still recorded: %v", err)
	}
}

func TestRotIsFoundOnRead(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	b := block(1, 5000)
	if err := errors.Join(s.Put(nil, b), s.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(cfg.Dir, "pack", "0.dat"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b.Data[100] ^ 1}, headerSize+100); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	s = open(t, cfg)
	defer s.Close()
	if _, err := s.Get(b.Digest); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("rotten block: %v", err)
	}
	if err := s.Drop(b.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(nil, b); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(b.Digest); err != nil || !bytes.Equal(got, b.Data) {
		t.Fatalf("healed block: %v", err)
	}
}

// Whatever part of the unsynced writes reaches the disk, a synced block is there, every block that is had
// reads right, and a recorded root has its blocks.
func TestCrashAtAnyMomentKeepsSyncedBlocks(t *testing.T) {
	for seed := range uint64(40) {
		mem := vfs.NewCrashableMem()
		cfg := config("/s")
		cfg.FS, cfg.PackSize = mem, 20000
		s := open(t, cfg)
		rng := rand.New(rand.NewPCG(seed, 1))
		synced, all := []Block{}, []Block{}
		for i := range uint64(30) {
			b := block(seed<<8|i, rng.IntN(6000))
			if err := s.Put(&Root{Digest: b.Digest}, b); err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
			if rng.IntN(6) == 0 {
				if err := s.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				synced = append(synced[:0], all...)
			}
			if rng.IntN(20) == 0 {
				break
			}
		}
		after := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		cfg.FS = after
		s = open(t, cfg)
		for _, b := range synced {
			if got, err := s.Get(b.Digest); err != nil || !bytes.Equal(got, b.Data) {
				t.Fatalf("seed %d: a synced block of %d bytes is lost: %v", seed, len(b.Data), err)
			}
		}
		for _, b := range all {
			got, err := s.Get(b.Digest)
			if err == nil && !bytes.Equal(got, b.Data) || err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatalf("seed %d: a block reads wrong: %v", seed, err)
			}
			if _, rerr := s.Root(b.Digest); rerr == nil && err != nil {
				t.Fatalf("seed %d: a root is recorded without its block", seed)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConcurrentPutsAndSyncs(t *testing.T) {
	s := open(t, config(t.TempDir()))
	defer s.Close()
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(50) {
				b := block(w<<8|i, int(i)*100)
				if err := errors.Join(s.Put(nil, b), s.Sync(context.Background())); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(b.Digest); err != nil || !bytes.Equal(got, b.Data) {
					t.Errorf("block: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if s.unsynced != 0 || len(s.pending) != 0 {
		t.Fatalf("%d bytes and %d places wait after the last sync", s.unsynced, len(s.pending))
	}
}

func TestSweepKeepsLiveBlocksAndFreesPacks(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.PackSize = 20000
	s := open(t, cfg)
	defer s.Close()
	live := map[Digest]bool{}
	var blocks []Block
	for i := range uint64(60) {
		b := block(i, 500+int(i%2)*4000)
		b.Children = nil
		blocks = append(blocks, b)
		live[b.Digest] = i >= 40
		if err := s.Put(&Root{Digest: b.Digest}, b); err != nil {
			t.Fatal(err)
		}
	}
	freed, err := s.Sweep(t.Context(), func(d Digest) bool { return live[d] })
	if err != nil || freed.Blocks != 40 {
		t.Fatalf("freed %+v, %v", freed, err)
	}
	for _, b := range blocks {
		if has, _ := s.Has(b.Digest); has != live[b.Digest] {
			t.Fatal("wrong block swept")
		}
		if _, err := s.Root(b.Digest); (err == nil) != live[b.Digest] {
			t.Fatal("wrong root swept")
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "pack", "0.dat")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("dead pack is still there: %v", err)
	}
}

func TestReserveIsKeptFree(t *testing.T) {
	mem := vfs.NewMem()
	cfg := config("/s")
	cfg.FS, cfg.Reserve = mem, 1<<20
	s := open(t, cfg)
	defer s.Close()
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1<<20 + 100})
	b := block(1, 5000)
	if err := s.Put(&Root{Digest: b.Digest}, b); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("put on a full disk: %v", err)
	}
	if has, _ := s.Has(b.Digest); has {
		t.Fatal("half recorded")
	}
	if _, err := s.Root(b.Digest); !errors.Is(err, ErrNotFound) {
		t.Fatalf("root half recorded: %v", err)
	}
}

func TestFullDiskIsToldAndNothingIsHalfRecorded(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skipf("SKIPPED, the full disk is not tested: mounting a tmpfs needs root: %v", err)
	}
	defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
	cfg := config(filepath.Join(dir, "s"))
	cfg.PackSize, cfg.Reserve = 8<<20, 24<<20
	s := open(t, cfg)
	var kept []Block
	var err error
	for i := range uint64(200) {
		b := block(i, 1<<20)
		if err = s.Put(&Root{Digest: b.Digest}, b); err != nil {
			if has, _ := s.Has(b.Digest); has {
				t.Error("the refused block is had")
			}
			break
		}
		kept = append(kept, b)
	}
	if !errors.Is(err, ErrNoSpace) || len(kept) < 10 {
		t.Fatalf("after %d MiB: %v", len(kept), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	defer s.Close()
	for _, b := range kept {
		if got, err := s.Get(b.Digest); err != nil || !bytes.Equal(got, b.Data) {
			t.Fatalf("an accepted block is lost: %v", err)
		}
	}
}

func FuzzRecords(f *testing.F) {
	b := make([]byte, headerSize)
	header{length: 7, crc: 9}.encode(b)
	f.Add(b)
	f.Add(place{packed: true, length: 5, offset: 48}.encode())
	f.Add(place{inline: []byte("x")}.encode())
	f.Add(Root{Bytes: 1 << 60}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHeader(b); err == nil {
			again := make([]byte, headerSize)
			h.encode(again)
			if !bytes.Equal(again, b[:headerSize]) {
				t.Fatal("header does not survive a round trip")
			}
		}
		if p, err := decodePlace(b); err == nil && !bytes.Equal(p.encode(), b) {
			t.Fatal("place does not survive a round trip")
		}
		_, _ = decodeRoot(Digest{}, b)
	})
}

func TestFrozenRecordVectors(t *testing.T) {
	h := header{length: 5, digest: sha256.Sum256([]byte("hello")), crc: 0x9a71bb4c}
	b := make([]byte, headerSize)
	h.encode(b)
	if got := fmt.Sprintf("%x", b); got != "4762706b050000002cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b98244cbb719aac4962dd" {
		t.Errorf("header %s", got)
	}
	if got := fmt.Sprintf("%x", place{packed: true, pack: 7, offset: 48, length: 5, crc: 0x9a71bb4c}.encode()); got != "01070000003000000000000000050000004cbb719a" {
		t.Errorf("place %s", got)
	}
	if got := fmt.Sprintf("%x", Root{Codec: 0x70, Bytes: 300, Blocks: 2, Files: 1, Added: 1}.encode()); got != "70ac02020101" {
		t.Errorf("root %s", got)
	}
}
