package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strconv"
)

const (
	dataFile = "digits.csv.gz"
	// pixels is the number of inputs: an 8×8 image, row by row.
	pixels = 64
	// maxPixel is the darkest grey value of a pixel.
	maxPixel = 16
	// classes is the number of outputs, the digits 0..9.
	classes = 10
	// splitSeed fixes the shuffle: every configuration is judged on the same rows.
	splitSeed = 1998
	// maxDataBytes bounds the decompressed file, whose true size is 264,712 bytes.
	maxDataBytes = 16 << 20
)

// example is one image with pixels scaled to 0..1 and its digit.
type example struct {
	x     [pixels]float64
	label int
}

// dataset is the split data and the SHA-256 of the bytes that it was made of.
type dataset struct {
	train, validation, test []example
	sum                     [sha256.Size]byte
}

// loadDataset reads and splits dataFile of a directory.
func loadDataset(dir fs.FS) (*dataset, error) {
	packed, err := fs.ReadFile(dir, dataFile)
	if err != nil {
		return nil, fmt.Errorf("reading the data set (mount the volume with %s at --data): %w", dataFile, err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", dataFile, err)
	}
	text, err := io.ReadAll(io.LimitReader(unpacked, maxDataBytes+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", dataFile, err)
	}
	if len(text) > maxDataBytes {
		return nil, fmt.Errorf("unpacking %s: more than %d bytes", dataFile, maxDataBytes)
	}
	all, err := parseExamples(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dataFile, err)
	}
	data := split(all)
	// The sum is over the values, not over the gzip bytes: how they were compressed changes no result.
	data.sum = sha256.Sum256(text)
	return data, nil
}

// parseExamples reads comma-separated rows of 64 pixels and a digit.
func parseExamples(text []byte) ([]example, error) {
	all := make([]example, 0, bytes.Count(text, []byte{'\n'})+1)
	for row := range bytes.Lines(text) {
		e, err := parseExample(bytes.TrimRight(row, "\r\n"))
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", len(all)+1, err)
		}
		all = append(all, e)
	}
	if len(all) < classes {
		return nil, fmt.Errorf("%d rows are too few to train on", len(all))
	}
	return all, nil
}

func parseExample(row []byte) (e example, err error) {
	for i := range pixels {
		field, rest, more := bytes.Cut(row, []byte{','})
		if !more {
			return e, fmt.Errorf("%d fields, want %d", i+1, pixels+1)
		}
		n, err := parseNumber(field, maxPixel)
		if err != nil {
			return e, fmt.Errorf("field %d: %w", i+1, err)
		}
		e.x[i], row = float64(n)/maxPixel, rest
	}
	if e.label, err = parseNumber(row, classes-1); err != nil {
		return e, fmt.Errorf("field %d: %w", pixels+1, err)
	}
	return e, nil
}

func parseNumber(field []byte, most int) (int, error) {
	n, err := strconv.Atoi(string(field))
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%q is no integer of 0..%d", field, most)
	}
	return n, nil
}

// split shuffles with the fixed seed and cuts 60/20/20.
func split(all []example) *dataset {
	shuffled := make([]example, len(all))
	for to, from := range rand.New(rand.NewPCG(splitSeed, 0)).Perm(len(all)) {
		shuffled[to] = all[from]
	}
	train, validation := len(all)*3/5, len(all)/5
	return &dataset{
		train:      shuffled[:train],
		validation: shuffled[train : train+validation],
		test:       shuffled[train+validation:],
	}
}
