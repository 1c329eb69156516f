package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// measureBlock is what is written and read at a time: large enough for drives that like long requests.
const measureBlock = 4 << 20

// How the system's cache was kept out.
const (
	howDirect  = "direct"  // O_DIRECT
	howDropped = "dropped" // written through, and dropped from the cache before it is read
)

// pages is memory at a page's boundary, as O_DIRECT wants it.
func pages(n int) (block []byte, free func(), err error) {
	block, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("taking memory: %w", err)
	}
	return block, func() { _ = unix.Munmap(block) }, nil
}

// openDirect opens a file past the cache, or where its file system cannot do that with it.
func openDirect(name string, flags int) (*os.File, string, error) {
	f, err := os.OpenFile(name, flags|oDirect, 0)
	if err == nil && oDirect != 0 {
		return f, howDirect, nil
	}
	if err == nil {
		return f, howDropped, nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return nil, "", err
	}
	f, err = os.OpenFile(name, flags, 0)
	return f, howDropped, err
}

// writeThrough writes so many bytes to a file until they are safe, for as long as most at most; an end of ctx ends it early.
func writeThrough(ctx context.Context, name string, size uint64, most time.Duration) (n uint64, took time.Duration, how string, err error) {
	block, free, err := pages(measureBlock)
	if err != nil {
		return 0, 0, "", err
	}
	defer free()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(block); i += 8 { // what a file system cannot make smaller
		for k, x := 0, rnd.Uint64(); k < 8; k, x = k+1, x>>8 {
			block[i+k] = byte(x)
		}
	}
	f, how, err := openDirect(name, os.O_WRONLY)
	if err != nil {
		return 0, 0, "", err
	}
	defer f.Close()
	began := time.Now()
	for n < size && time.Since(began) < most && ctx.Err() == nil {
		k, err := f.Write(block)
		n += uint64(k)
		if err != nil {
			if n == 0 && how == howDirect && errors.Is(err, unix.EINVAL) { // opened, but not to be written so
				_ = f.Close()
				if f, err = os.OpenFile(name, os.O_WRONLY, 0); err != nil {
					return 0, 0, "", err
				}
				defer f.Close()
				how, began = howDropped, time.Now()
				continue
			}
			return n, 0, how, err
		}
	}
	if err := syncData(f); err != nil {
		return n, 0, how, err
	}
	return n, time.Since(began), how, nil
}

// readThrough reads a file from its disk, for as long as most at most.
func readThrough(ctx context.Context, name, how string, most time.Duration) (n uint64, took time.Duration, err error) {
	block, free, err := pages(measureBlock)
	if err != nil {
		return 0, 0, err
	}
	defer free()
	flags := os.O_RDONLY
	if how == howDirect {
		flags |= oDirect
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if how == howDropped {
		if err := dropCached(f); err != nil {
			return 0, 0, fmt.Errorf("dropping it from the cache: %w", err)
		}
	}
	began := time.Now()
	for time.Since(began) < most && ctx.Err() == nil {
		k, err := f.Read(block)
		n += uint64(k)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, 0, err
		}
	}
	return n, time.Since(began), nil
}

// Bounds of the arrays of the memory's measurement, in numbers of 8 bytes over all processors: far more than caches hold.
const (
	triadLeast = 1 << 20
	triadMost  = 8 << 20
)

// memoryBandwidth is the rate of a[i] = b[i] + s·c[i] over arrays far larger than the caches, all processors together, in GB/s
// of 10^9 bytes: the best of several rounds within a time.
func memoryBandwidth(ctx context.Context, most time.Duration) float64 {
	workers := runtime.GOMAXPROCS(0)
	each := max(triadLeast, triadMost/workers)
	arrays := make([][3][]float64, workers)
	parallel(workers, func(i int) {
		for k := range arrays[i] {
			arrays[i][k] = make([]float64, each)
			for j := range arrays[i][k] { // the system gives memory when it is touched
				arrays[i][k][j] = float64(k)
			}
		}
	})
	best := time.Duration(0)
	for began := time.Now(); time.Since(began) < most && ctx.Err() == nil; {
		round := time.Now()
		parallel(workers, func(i int) { triad(arrays[i][0], arrays[i][1], arrays[i][2], 3) })
		if took := time.Since(round); best == 0 || took < best {
			best = took
		}
	}
	return rate(uint64(workers)*uint64(each)*3*8, best, 1e9)
}

func triad(a, b, c []float64, s float64) {
	b, c = b[:len(a)], c[:len(a)]
	for i := range a {
		a[i] = b[i] + s*c[i]
	}
}

// processorSpeed is what compiled Go code reaches in double precision, all processors together, in 10^9 operations a second.
func processorSpeed(ctx context.Context, most time.Duration) float64 {
	const chunk = 1 << 16
	workers := runtime.GOMAXPROCS(0)
	rounds := make([]uint64, workers)
	sums := make([]float64, workers)
	began := time.Now()
	parallel(workers, func(i int) {
		for time.Since(began) < most && ctx.Err() == nil {
			sums[i] += multiplyAdd(chunk)
			rounds[i]++
		}
	})
	took := time.Since(began)
	total := uint64(0)
	for i := range rounds {
		if sums[i] != sums[i] { // the compiler must not leave out what nobody looks at
			return 0
		}
		total += rounds[i]
	}
	return rate(total*chunk*16, took, 1e9)
}

// multiplyAdd does 16 operations in each of n rounds, in eight chains that do not wait for one another.
func multiplyAdd(n int) float64 {
	a, b, c, d, e, f, g, h := 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7
	const x, y = 0.999999, 1e-7
	for range n {
		a, b, c, d = a*x+y, b*x+y, c*x+y, d*x+y
		e, f, g, h = e*x+y, f*x+y, g*x+y, h*x+y
	}
	return a + b + c + d + e + f + g + h
}

// parallel runs something n times side by side and waits for all.
func parallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
