package picklescan

import "math"

// Unpickling can cost far more than the bytes that ask for it: a tuple of itself, twice, twenty times over, has a million
// elements to whoever hashes it; a value of a megabyte can be copied by five bytes. So the walk counts what CPython
// would do, in three accounts that Check ends.

// Bounds of the accounts. What Python writes stays below them: there each value comes once.
const (
	// maxHashed are the elements that are hashed or compared, those of a tuple within a tuple each time: about a second.
	maxHashed = 64 << 20
	// hashedPerByte is what each byte of the pickle adds to it.
	hashedPerByte = 4
	// maxCopied are the bytes that calls copy.
	maxCopied = 8 << 20
	// copiedPerByte is what each byte adds: one of a text is copied once, a list's element of two bytes has eight.
	copiedPerByte = 8
	// maxSteps are the comparisons of keys with others in their container, and the like of quadratic arithmetic.
	maxSteps = 100_000_000
	// maxDepth is how deep tuples, frozensets, slices and what calls make may lie in one another where C code goes
	// through them by itself; deeper ones are counted as this.
	maxDepth = math.MaxUint8
)

// What the keys of a dict say if it becomes an exception's state, which sets attributes.
const (
	// flagSetter: a key that is no plain name, or one whose value is converted or chained.
	flagSetter uint8 = 1 << iota
	// flagMember: an exception in a field that C code keeps.
	flagMember
	// flagFull: a call has filled it, it takes no more.
	flagFull
	// flagSwapped: the bytes of a dtype are in the other order.
	flagSwapped
)

// box is what is known of something that changes after its creation: a list, a dict, a set, a UUID, a dtype.
type box struct {
	n       uint32 // elements or pairs
	weight  uint32 // all elements' weights, as far as they fit
	deepest uint8  // the greatest of their depths
	flags   uint8
}

// size is how many elements hashing or comparing a value goes through.
func (v value) size() uint64 { return 1 + uint64(v.more) }

func saturate(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }

func deeper(d uint8) uint8 {
	if d < maxDepth {
		d++
	}
	return d
}

// newBox makes a box; its number fits a value's off.
func (m *machine) newBox() (uint32, error) {
	if len(m.boxes) >= maxStack {
		return 0, m.refuse("more than %d containers", maxStack)
	}
	m.boxes = append(m.boxes, box{})
	return uint32(len(m.boxes) - 1), nil
}

// container makes an empty one.
func (m *machine) container(k kind) (value, error) {
	i, err := m.newBox()
	return value{kind: k, off: i}, err
}

// box is that of a value that has one, else nil.
func (m *machine) box(v value) *box {
	switch v.kind {
	case kindList, kindDict, kindSet, kindMapping, kindUUID:
		return &m.boxes[v.off]
	case kindDtype:
		return &m.boxes[v.lo]
	}
	return nil
}

func (m *machine) chargeHash(n uint64) error {
	if m.hashed += n; m.hashed > maxHashed+hashedPerByte*uint64(len(m.in)) {
		return m.refuse("loading it would hash and compare more than %d values", maxHashed)
	}
	return nil
}

func (m *machine) chargeCopy(n uint64) error {
	if m.copied += n; m.copied > maxCopied+copiedPerByte*uint64(len(m.in)) {
		return m.refuse("loading it would copy what it holds again and again, more than %d bytes", maxCopied)
	}
	return nil
}

func (m *machine) chargeSteps(n uint64) error {
	if m.steps += n; m.steps > maxSteps {
		return m.refuse("loading it would compare keys that collide, or compute, for more than %d steps", maxSteps)
	}
	return nil
}

// flat is how many bytes whoever copies a value takes, its elements apart.
func (m *machine) flat(v value) uint64 {
	switch v.kind {
	case kindText, kindBytes:
		if v.n != untracked {
			return uint64(v.n)
		}
		return uint64(v.off)
	case kindByteArray, kindLong, kindOther, kindFair:
		return uint64(v.off)
	case kindTuple:
		return 8 * m.count(v)
	case kindList, kindSet, kindDict, kindMapping:
		return 8 * m.count(v)
	}
	return 0
}

// count is how many elements a container has.
func (m *machine) count(v value) uint64 {
	switch {
	case v.kind == kindTuple && v.n != untracked:
		return uint64(v.n)
	case v.kind == kindTuple:
		return uint64(v.off)
	case v.kind == kindDtype:
		return 0
	}
	if b := m.box(v); b != nil {
		return uint64(b.n)
	}
	return 0
}

// hashable charges one hash of a key and returns it.
func (m *machine) hashable(v value) (uint64, error) {
	h := m.keyHash(v)
	switch {
	case h == hashNever:
		return 0, m.refuse("a key or an element of a set that cannot be hashed")
	case v.depth == maxDepth:
		return 0, m.refuse("a key or an element of a set that is nested more than %d deep", maxDepth-1)
	}
	return h, m.chargeHash(v.size())
}

// keyHash is the hash of a value that is itself a key. Unlike in a tuple, what is seeded, or equal wherever its hash is,
// does not collide.
func (m *machine) keyHash(v value) uint64 {
	h := m.lane(v)
	if h == hashLoose && (v.kind == kindText || v.kind == kindBytes || v.kind == kindFair || v.kind == kindAllowed) {
		m.serial++
		h = mix(m.serial)
	}
	return h
}

// key puts a key into a dict or a set, which is not there yet as far as Python writes pickles.
func (m *machine) key(in, v value) error {
	h, err := m.hashable(v)
	if err != nil {
		return err
	}
	b := &m.boxes[in.off]
	if b.flags&flagFull != 0 {
		return m.refuse("values put into what a call has filled")
	}
	b.weight, b.deepest, b.n = saturate(uint64(b.weight)+v.size()), max(b.deepest, v.depth), b.n+1
	if b.n <= fewKeys {
		return nil
	}
	t := m.tables[in.off]
	if t == nil {
		if m.tables == nil {
			m.tables = map[uint32]*probes{}
		}
		t = newProbes(in.kind == kindSet)
		m.tables[in.off] = t
	}
	steps := t.add(h, v.size(), maxSteps-m.steps)
	t.spent += steps
	return m.chargeSteps(steps)
}

// pair puts a key and its value into a dict.
func (m *machine) pair(in, k, v value) error {
	if err := m.key(in, k); err != nil || in.kind != kindDict {
		return err
	}
	b := &m.boxes[in.off]
	name, known := m.plain(k)
	switch {
	case !known || len(name) <= 18 && settersOf[string(name)] || len(name) > 1 && name[0] == '_' && name[1] == '_' && string(name) != "__notes__":
		b.flags |= flagSetter
	case (v.kind == kindException || v.kind == kindAllowed) && membersOf[string(name)]:
		b.flags |= flagMember
	case string(name) == "int" && (v.kind == kindInt || v.kind == kindLong && v.off <= maxUUID):
		if m.ints == nil {
			m.ints = map[uint32]uint64{}
		}
		m.ints[in.off] = v.hash()
	}
	return nil
}

// maxUUID are the bytes of a UUID's number in two's complement.
const maxUUID = 17

// plain is the content of a text as it stands in the input; false if it is not kept.
func (m *machine) plain(v value) ([]byte, bool) {
	if v.kind != kindText || v.n == untracked {
		return nil, false
	}
	return m.in[v.off : v.off+uint32(v.n)], true
}

// settersOf are attributes of exceptions that convert what they are given: a tuple is made of args.
var settersOf = map[string]bool{"args": true, "characters_written": true}

// membersOf are those that C code keeps outside of args and __dict__: a chain of exceptions through them is
// taken apart by a call within a call.
var membersOf = map[string]bool{
	"errno": true, "strerror": true, "filename": true, "filename2": true, "winerror": true, "msg": true, "name": true, "path": true, "name_from": true, "value": true,
	"code": true, "lineno": true, "offset": true, "text": true, "end_lineno": true, "end_offset": true, "print_file_and_line": true, "encoding": true, "object": true,
	"reason": true, "start": true, "end": true, "obj": true, "metadata": true,
}

// extend notes values that are put into a list, and their hashes where a set may be made of it: protocols below 4 do so.
func (m *machine) extend(in value, items []value) {
	b := &m.boxes[in.off]
	keys := m.keys[in.off]
	follow := m.proto < 4 && uint32(len(keys)) == b.n
	for _, v := range items {
		b.weight, b.deepest = saturate(uint64(b.weight)+v.size()), max(b.deepest, v.depth)
		if follow {
			h := m.keyHash(v)
			keys, follow = append(keys, h), h != hashNever
		}
	}
	b.n = saturate(uint64(b.n) + uint64(len(items)))
	if m.proto < 4 && len(keys) > 0 {
		if m.keys == nil {
			m.keys = map[uint32][]uint64{}
		}
		m.keys[in.off] = keys
	}
}

// setOf charges what making a set or frozenset of a value's elements takes.
func (m *machine) setOf(v value) (weight uint64, depth uint8, err error) {
	n, w := m.count(v), v.size()
	depth = v.depth
	if b := m.box(v); b != nil {
		w, depth = uint64(b.weight), b.deepest
	}
	if depth == maxDepth {
		return 0, 0, m.refuse("an element of a set that is nested more than %d deep", maxDepth-1)
	}
	if err := m.chargeHash(w); err != nil {
		return 0, 0, err
	}
	if err := m.chargeCopy(8 * n); err != nil {
		return 0, 0, err
	}
	keys := m.keys[v.off]
	switch {
	case n <= fewKeys:
		return w, depth, nil
	case v.kind == kindList && uint64(len(keys)) == n:
		t := newProbes(true)
		for _, h := range keys[fewKeys:] {
			if err := m.chargeSteps(t.add(h, w/n+1, maxSteps-m.steps)); err != nil {
				return 0, 0, err
			}
		}
		return w, depth, nil
	}
	return w, depth, m.chargeSteps(n * n / 2 * (w/n + 1))
}
