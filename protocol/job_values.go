package protocol

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ByteSize is a number of bytes; its text has a unit: 4GiB, 40GB, 512 KiB, or is a plain number.
type ByteSize uint64

// Duration is a length of time; its text is that of time.Duration, such as 2m or 40ms, and may use days: 7d.
type Duration time.Duration

// Money is micro-USD; its text is dollars: "5.00".
type Money int64

// VRAM is a device's memory in nominal GB, as cards are sold; its text is 40GB. GiB counts the same: what is
// sold as 40 GB holds 40 GiB.
type VRAM uint32

// Cores is thousandths of a processor core; its text is cores: 2 or 0.5.
type Cores uint32

// NodeRange is the least and the largest size of a cluster; its text is 4..16, or 4 for exactly four. Zero
// leaves it open.
type NodeRange struct {
	// Min is the least size.
	Min uint32
	// Max is the largest.
	Max uint32
}

// GPUNames are names of GPUs; its JSON is a list, and a single text is read as a list of one.
type GPUNames []string

// RegionShares are places, in the order of their names. With shares its JSON is an object of them, without it is a
// list.
type RegionShares []RegionShare

// RegionShare is a place and its part of a cluster.
type RegionShare struct {
	// Place is what ParsePlace reads.
	Place string
	// Share is positive, in any one unit, or 0 in all entries: anywhere among them.
	Share float64
}

// byteUnits are the units of ByteSize in lower case.
var byteUnits = map[string]uint64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15,
	"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
}

// decimal splits a text into a plain decimal number and the rest, in lower case and without spaces.
func decimal(s string) (num *big.Rat, unit string, ok bool) {
	s = strings.TrimSpace(s)
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	if end == 0 || end > 24 || s[0] == '.' || s[end-1] == '.' { // 24 digits hold every amount that is meant
		return nil, "", false
	}
	num, ok = new(big.Rat).SetString(s[:end])
	return num, strings.ToLower(strings.TrimSpace(s[end:])), ok
}

// ParseByteSize reads a size such as 4GiB, 1.5 GB or 4096. Units without i are powers of 1000 (GB), with it or
// alone (G) powers of 1024.
func ParseByteSize(s string) (ByteSize, error) {
	num, unit, ok := decimal(s)
	scale, known := byteUnits[unit]
	if !ok || !known {
		return 0, fmt.Errorf("%.64q is no size: write bytes with a unit, such as 512MiB, 4GiB or 40GB", s)
	}
	num.Mul(num, new(big.Rat).SetInt(new(big.Int).SetUint64(scale)))
	n := new(big.Int).Quo(num.Num(), num.Denom())
	if !n.IsInt64() {
		return 0, fmt.Errorf("%.64q is more than 8 EiB", s)
	}
	return ByteSize(n.Int64()), nil
}

// String returns the size in the largest unit that holds it exactly.
func (b ByteSize) String() string {
	for _, u := range []struct {
		name string
		size ByteSize
	}{
		{"PiB", 1 << 50}, {"PB", 1e15}, {"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3},
	} {
		if b >= u.size && b%u.size == 0 {
			return strconv.FormatUint(uint64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(b), 10) + "B"
}

// ParseDuration reads a duration such as 40ms, 2m, 1h30m or 7d.
func ParseDuration(s string) (Duration, error) {
	t := strings.TrimSpace(s)
	var days time.Duration
	if head, tail, ok := strings.Cut(t, "d"); ok {
		n, err := strconv.ParseUint(head, 10, 16)
		if err != nil {
			return 0, badDuration(s)
		}
		if days = time.Duration(n) * 24 * time.Hour; tail == "" {
			return Duration(days), nil
		}
		t = tail
	}
	d, err := time.ParseDuration(t)
	if err != nil || d < 0 || t[0] == '+' || d > math.MaxInt64-days {
		return 0, badDuration(s)
	}
	return Duration(days + d), nil
}

func badDuration(s string) error {
	return fmt.Errorf("%.64q is no duration: write a number with a unit, such as 40ms, 90s, 2m, 1h30m or 7d", s)
}

// String returns the duration without zero parts: 2m rather than 2m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// maxMoney bounds an amount of a job file: a billion dollars, in micro-USD.
const maxMoney = 1e15

// ParseMoney reads an amount of US dollars such as 5, 5.00 or 0.000125, to the micro-dollar.
func ParseMoney(s string) (Money, error) {
	num, unit, ok := decimal(strings.TrimPrefix(strings.TrimSpace(s), "$"))
	if ok && (unit == "" || unit == "usd") {
		num.Mul(num, big.NewRat(1e6, 1))
		if num.IsInt() && num.Num().IsInt64() && num.Num().Int64() <= maxMoney {
			return Money(num.Num().Int64()), nil
		}
	}
	return 0, fmt.Errorf(`%.64q is no amount: write US dollars with at most 6 decimals, such as "5.00"`, s)
}

// String returns dollars with at least two decimals.
func (m Money) String() string {
	sign, u := "", uint64(m)
	if m < 0 {
		sign, u = "-", -uint64(m)
	}
	frac := fmt.Sprintf("%06d", u%1e6)
	frac = frac[:2] + strings.TrimRight(frac[2:], "0")
	return sign + strconv.FormatUint(u/1e6, 10) + "." + frac
}

// maxVRAM bounds a device's memory in GB.
const maxVRAM = 4096

// ParseVRAM reads a nominal device memory such as 40GB.
func ParseVRAM(s string) (VRAM, error) {
	num, unit, ok := decimal(s)
	if ok && num.IsInt() && num.Num().IsInt64() {
		if n := num.Num().Int64(); n >= 1 && n <= maxVRAM && (unit == "gb" || unit == "gib" || unit == "g") {
			return VRAM(n), nil
		}
	}
	return 0, fmt.Errorf("%.64q is no device memory: write whole GB as cards are sold, 1GB to %dGB, such as 24GB or 80GB", s, maxVRAM)
}

// String returns the size with its unit.
func (v VRAM) String() string { return strconv.FormatUint(uint64(v), 10) + "GB" }

// maxCores bounds the cores of one chunk.
const maxCores = 4096

// ParseCores reads a number of cores such as 2 or 0.5, to the thousandth.
func ParseCores(s string) (Cores, error) {
	num, unit, ok := decimal(s)
	if ok && unit == "" {
		num.Mul(num, big.NewRat(1000, 1))
		if n := num.Num(); num.IsInt() && n.IsInt64() && n.Int64() >= 1 && n.Int64() <= maxCores*1000 {
			return Cores(n.Int64()), nil
		}
	}
	return 0, fmt.Errorf("%.64q is no number of cores: write 0.001 to %d, such as 2 or 0.5", s, maxCores)
}

// String returns cores, with as many decimals as needed.
func (c Cores) String() string { return strconv.FormatFloat(float64(c)/1000, 'f', -1, 64) }

// maxNodes bounds the size of a cluster.
const maxNodes = 100_000

// ParseNodeRange reads the size of a cluster: 4 or 4..16.
func ParseNodeRange(s string) (NodeRange, error) {
	lo, hi, two := strings.Cut(strings.TrimSpace(s), "..")
	if !two {
		hi = lo
	}
	a, err := strconv.ParseUint(strings.TrimSpace(lo), 10, 32)
	b, err2 := strconv.ParseUint(strings.TrimSpace(hi), 10, 32)
	if err != nil || err2 != nil || a < 1 || b < a || b > maxNodes {
		return NodeRange{}, fmt.Errorf("%.64q is no cluster size: write a number or a range such as 4..16, 1 to %d", s, maxNodes)
	}
	return NodeRange{uint32(a), uint32(b)}, nil
}

// String returns the range, or one number when both ends are equal.
func (r NodeRange) String() string {
	if r.Min == r.Max {
		return strconv.FormatUint(uint64(r.Min), 10)
	}
	return fmt.Sprintf("%d..%d", r.Min, r.Max)
}

// ParseIntRange reads a range of integers such as 0..63, both ends included.
func ParseIntRange(s string) (IntRange, error) {
	lo, hi, ok := strings.Cut(strings.TrimSpace(s), "..")
	a, err := strconv.ParseInt(strings.TrimSpace(lo), 10, 64)
	b, err2 := strconv.ParseInt(strings.TrimSpace(hi), 10, 64)
	r := IntRange{a, b}
	switch {
	case !ok || err != nil || err2 != nil:
		return IntRange{}, fmt.Errorf("%.64q is no range: write the first and the last integer, such as 0..63 for 64 inputs", s)
	case b < a:
		return IntRange{}, fmt.Errorf("%.64q is empty: the first integer has to be the smaller one", s)
	case r.Len() == 0 || r.Len() > math.MaxInt64:
		return IntRange{}, fmt.Errorf("%.64q has more than 2^63 inputs", s)
	}
	return r, nil
}

// String returns First..Last.
func (r IntRange) String() string { return fmt.Sprintf("%d..%d", r.First, r.Last) }

// MarshalText implements encoding.TextMarshaler.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (m Money) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (v VRAM) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// MarshalText implements encoding.TextMarshaler.
func (r IntRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// MarshalJSON writes cores as a number.
func (c Cores) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }

// MarshalJSON writes an exact size as a number, a range as a text.
func (r NodeRange) MarshalJSON() ([]byte, error) {
	if r.Min == r.Max {
		return []byte(r.String()), nil
	}
	return json.Marshal(r.String())
}

// MarshalJSON writes a list, or an object when there are shares.
func (r RegionShares) MarshalJSON() ([]byte, error) {
	places, shares := make([]string, len(r)), make(map[string]float64, len(r))
	for i, s := range r {
		places[i] = s.Place
		if s.Share > 0 {
			shares[s.Place] = s.Share
		}
	}
	if len(shares) > 0 {
		return json.Marshal(shares)
	}
	return json.Marshal(places)
}

// MarshalJSON writes an object of lists; equal names, which Validate refuses, are written once.
func (g Grid) MarshalJSON() ([]byte, error) {
	axes := make(map[string][]json.RawMessage, len(g))
	for _, a := range g {
		axes[a.Name] = slices.Concat(axes[a.Name], a.Values)
	}
	return json.Marshal(axes)
}
