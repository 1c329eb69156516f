package picklescan

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
)

// What a key costs depends on its hash: CPython does not seed the hashes of numbers and of tuples of them, so whoever
// writes a pickle chooses them. They are computed here as CPython does (Python 3.8 to 3.14, 64 bits). Texts and bytes
// are seeded there; here they have some hash of their content.

// Hashes that stand for something.
const (
	// hashLoose is that of what may have any: keys with it count as colliding.
	hashLoose uint64 = 0x9d5ba1c377e10f2d
	// hashNever is that of what has none, as a list.
	hashNever uint64 = 0x51c3e0aa1fd8b6e7
	hashNone  uint64 = 0xfca86420
)

// modulus is that of numbers: 2^61 - 1.
const modulus = 1<<61 - 1

var textSeed = maphash.MakeSeed() // whoever writes a pickle cannot know it

func (v value) hash() uint64 { return uint64(v.hi)<<32 | uint64(v.lo) }

func (v value) hashed(h uint64) value {
	v.lo, v.hi = uint32(h), uint32(h>>32)
	return v
}

// numberHash makes a hash of what a number is modulo the modulus, and of its sign.
func numberHash(residue uint64, negative bool) uint64 {
	h := int64(residue)
	if negative {
		h = -h
	}
	if h == -1 { // C's mark of an error
		h = -2
	}
	return uint64(h)
}

func reduce61(x uint64) uint64 {
	x = x&modulus + x>>61
	if x >= modulus {
		x -= modulus
	}
	return x
}

func intHash(v int64) uint64 {
	if v < 0 {
		return numberHash(reduce61(uint64(-v)), true)
	}
	return numberHash(reduce61(uint64(v)), false)
}

// longHash is that of a little-endian two's complement of any length.
func longHash(b []byte) uint64 {
	if len(b) == 0 {
		return 0
	}
	r, end := uint64(0), len(b)
	for end%8 != 0 {
		end--
		r = reduce61(r<<8&(1<<61-1) + r>>53 + uint64(b[end]))
	}
	for ; end > 0; end -= 8 {
		r = reduce61(reduce61(r<<3&modulus+r>>58) + reduce61(binary.LittleEndian.Uint64(b[end-8:])))
	}
	if b[len(b)-1]&0x80 == 0 {
		return numberHash(r, false)
	}
	whole := uint64(1) << (8 * len(b) % 61)
	return numberHash(reduce61(whole+modulus-r), true)
}

// decimalHash is that of an integer in digits.
func decimalHash(text string) uint64 {
	negative := text[0] == '-'
	if negative {
		text = text[1:]
	}
	r := uint64(0)
	for i := range len(text) {
		r = reduce61(reduce61(r<<3) + reduce61(r<<1) + uint64(text[i]-'0'))
	}
	return numberHash(r, negative)
}

func floatHash(f float64) uint64 {
	switch {
	case math.IsNaN(f):
		return 0 // before 3.10; its address since
	case math.IsInf(f, 1):
		return 314159
	case math.IsInf(f, -1):
		return numberHash(314159, true)
	case f == 0:
		return 0
	}
	frac, exp := math.Frexp(math.Abs(f))
	mantissa := uint64(frac * (1 << 53)) // whole
	shift := ((exp-53)%61 + 61) % 61
	hi, lo := bits.Mul64(mantissa, 1<<shift)
	return numberHash(reduce61(reduce61(lo)+reduce61(hi<<3)), f < 0)
}

// contentHash is that of a text or bytes: the same of both, as in CPython.
func contentHash(b []byte) uint64 {
	if len(b) == 0 {
		return 0
	}
	return maphash.Bytes(textSeed, b)
}

// maxLazy is how many bytes of a text are hashed only when somebody asks: few texts are keys.
const maxLazy = 256

// lane is the hash of a value as an element of a tuple.
func (m *machine) lane(v value) uint64 {
	switch v.kind {
	case kindNone:
		return hashNone
	case kindList, kindDict, kindSet, kindByteArray, kindMapping, kindDeque, kindArray:
		return hashNever
	case kindDtype, kindAllowed, kindOther:
		return hashLoose
	case kindFloat:
		return floatHash(math.Float64frombits(v.hash()))
	case kindText, kindBytes:
		if v.n <= maxLazy && v.hash() == 0 {
			return contentHash(m.in[v.off : v.off+uint32(v.n)])
		}
	case kindGlobal:
		return mix(uint64(v.off))
	case kindUUID:
		if h, ok := m.uuids[v.off]; ok {
			return h
		}
		return hashLoose
	}
	return v.hash()
}

// mix spreads a number.
func mix(x uint64) uint64 {
	x = (x + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	return (x ^ x>>29) * 0x94d049bb133111eb
}

// tupleHash is that of a tuple (Objects/tupleobject.c), or what its elements leave it.
func (m *machine) tupleHash(items []value) uint64 {
	const prime1, prime2, prime5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
	h, loose := uint64(prime5), false
	for _, v := range items {
		lane := m.lane(v)
		switch lane {
		case hashNever:
			return hashNever
		case hashLoose:
			loose = true
		}
		h = bits.RotateLeft64(h+lane*prime2, 31) * prime1
	}
	if loose {
		return hashLoose
	}
	h += uint64(len(items)) ^ (prime5 ^ 3527539)
	if h == math.MaxUint64 {
		h = 1546275796
	}
	return h
}

// frozenHash is that of a frozenset (Objects/setobject.c) of a few elements. Those that collide may be equal or not,
// which makes the whole loose.
func (m *machine) frozenHash(items []value) uint64 {
	lanes := make([]uint64, 0, maxTracked)
	for _, v := range items {
		lane := m.lane(v)
		if lane == hashLoose || len(items) > maxTracked {
			return hashLoose
		}
		lanes = append(lanes, lane)
	}
	slices.Sort(lanes)
	h := uint64(0)
	for i, lane := range lanes {
		if i > 0 && lane == lanes[i-1] {
			return hashLoose
		}
		h ^= (lane ^ 89869747 ^ lane<<16) * 3644798167
	}
	h ^= uint64(len(lanes)+1) * 1927868237
	h ^= h>>11 ^ h>>25
	h = h*69069 + 907133923
	if h == math.MaxUint64 {
		h = 590923713
	}
	return h
}
