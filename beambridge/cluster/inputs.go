package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// ErrBadInputs means that inputs cannot be a sequence; the text names what is wrong.
var ErrBadInputs = errors.New("cluster: bad inputs")

// Axis is one key of a grid with its values.
type Axis struct {
	Name   string            // Name is the key.
	Values []json.RawMessage // Values are JSON scalars as the job file wrote them: 0.10 stays 0.10.
}

// Inputs is a job's input sequence, computed item by item: a range or grid of ten million points costs no
// memory.
type Inputs struct {
	n     uint64
	first int64
	list  []string
	axes  []Axis
	keys  []string // the axes' names as JSON
}

// IntegerInputs returns the n integers from first on; the text of an item is its decimal form. It returns
// ErrBadInputs when the last does not fit int64.
func IntegerInputs(first int64, n uint64) (Inputs, error) {
	if n > 0 && (n-1 > math.MaxInt64 || first > 0 && n-1 > uint64(math.MaxInt64-first)) {
		return Inputs{}, fmt.Errorf("%w: %d integers from %d do not fit 64 bits", ErrBadInputs, n, first)
	}
	return Inputs{n: n, first: first}, nil
}

// ListInputs returns the items of a list or the lines of a file as they are; it keeps the slice.
func ListInputs(items []string) Inputs { return Inputs{n: uint64(len(items)), list: items} }

// GridInputs returns every combination of the axes' values. Keys are sorted by name and the last of them
// varies fastest (row-major); an item is canonical JSON with sorted keys and no spaces, for example
// {"epochs":20,"hidden":32,"lr":0.1,"seed":1}, its values as they were written. It returns ErrBadInputs for a
// repeated or empty name, a value that is no JSON scalar, or more than 2^63 points.
func GridInputs(axes []Axis) (Inputs, error) {
	in := Inputs{n: 1, axes: slices.Clone(axes)}
	slices.SortFunc(in.axes, func(a, b Axis) int { return strings.Compare(a.Name, b.Name) })
	for i := range in.axes {
		a := &in.axes[i]
		switch {
		case a.Name == "":
			return Inputs{}, fmt.Errorf("%w: a grid key is empty", ErrBadInputs)
		case i > 0 && in.axes[i-1].Name == a.Name:
			return Inputs{}, fmt.Errorf("%w: grid key %q is there twice", ErrBadInputs, a.Name)
		}
		a.Values = slices.Clone(a.Values)
		for k, v := range a.Values {
			v = bytes.TrimSpace(v)
			if !json.Valid(v) || v[0] == '{' || v[0] == '[' {
				return Inputs{}, fmt.Errorf("%w: grid %s: %q is no number, string, true, false or null", ErrBadInputs, a.Name, v)
			}
			a.Values[k] = v
		}
		hi, lo := bits.Mul64(in.n, uint64(len(a.Values)))
		if hi != 0 || lo > 1<<63 {
			return Inputs{}, fmt.Errorf("%w: the grid has more than 2^63 points", ErrBadInputs)
		}
		in.n = lo
		var key bytes.Buffer
		enc := json.NewEncoder(&key)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(a.Name); err != nil {
			return Inputs{}, fmt.Errorf("%w: grid key %q: %w", ErrBadInputs, a.Name, err)
		}
		in.keys = append(in.keys, strings.TrimSpace(key.String()))
	}
	if len(in.axes) == 0 {
		in.n = 0
	}
	return in, nil
}

// Len returns the number of items.
func (in Inputs) Len() uint64 { return in.n }

// At returns the text of item i, which has to be below Len.
func (in Inputs) At(i uint64) string {
	switch {
	case in.axes != nil:
		return in.point(i)
	case in.list != nil:
		return in.list[i]
	}
	return strconv.FormatInt(in.first+int64(i), 10)
}

// Slice returns the texts of a chunk's items.
func (in Inputs) Slice(r Range) []string {
	out := make([]string, 0, r.Len())
	for i := r.First; i < r.End; i++ {
		out = append(out, in.At(i))
	}
	return out
}

func (in Inputs) point(i uint64) string {
	at := make([]int, len(in.axes))
	for k := len(in.axes) - 1; k >= 0; k-- {
		n := uint64(len(in.axes[k].Values))
		at[k], i = int(i%n), i/n
	}
	var b strings.Builder
	for k := range in.axes {
		if k == 0 {
			b.WriteByte('{')
		} else {
			b.WriteByte(',')
		}
		b.WriteString(in.keys[k])
		b.WriteByte(':')
		b.Write(in.axes[k].Values[at[k]])
	}
	b.WriteByte('}')
	return b.String()
}
