package picklescan

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
)

// numpy's constructors trust their arguments: a dtype whose flags hide that its elements are objects makes an array
// read bytes as addresses. So a dtype has one of numpy's own types, a fresh copy of it, and exactly that type's state.

// Flags of a dtype's state (numpy/_core/include/numpy/ndarraytypes.h).
const (
	flagsPlain  = 0
	flagsText   = 8  // NPY_NEEDS_INIT
	flagsObject = 63 // all that objects need
)

// sizes are the types and how many bytes an element may have; V, S and U have any.
var sizes = map[byte]string{
	'b': "1", 'i': "1 2 4 8", 'u': "1 2 4 8", 'f': "2 4 8 12 16", 'c': "8 16 24 32", 'O': "8", 'M': "8", 'm': "8",
}

// dtypeOf reads a type as numpy writes it: a letter and a number of bytes, of characters for U.
func dtypeOf(s string) (letter byte, size int, ok bool) {
	if len(s) < 1 || len(s) > 8 {
		return 0, 0, false
	}
	letter = s[0]
	digits := s[1:]
	if strings.Trim(digits, "0123456789") != "" {
		return 0, 0, false
	}
	size, err := strconv.Atoi(digits)
	if err != nil {
		return 0, 0, false
	}
	switch letter {
	case 'S', 'U', 'V':
		return letter, size, digits == strconv.Itoa(size)
	}
	if slices.Contains(strings.Fields(sizes[letter]), digits) {
		return letter, size, true
	}
	return 0, 0, false
}

// isFlag says that a value is a boolean, or the integer that old protocols write for it.
func isFlag(v value, want uint32) bool {
	return (v.kind == kindBool || v.kind == kindInt) && v.off == want
}

func (v value) isInt(want int) bool { return v.kind == kindInt && int(int32(v.off)) == want }

// callDtype passes (type, False, True): not aligned, and a copy, as state set on numpy's own would change it for all.
func callDtype(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 3 || args[0].kind != kindText || !isFlag(args[1], 0) || !isFlag(args[2], 1) {
		return m.badCall(e)
	}
	s, ok := m.text(args[0])
	if ok {
		_, _, ok = dtypeOf(s)
	}
	if !ok {
		return m.badCall(e)
	}
	var err error
	v := args[0]
	v.kind, v.more = kindDtype, 0
	v.lo, err = m.newBox()
	return v, err
}

// dtypeState passes (version, byte order, None, None, None, bytes, alignment, flags) and, for times, their unit.
func (m *machine) dtypeState(on, state value) error {
	s, _ := m.text(on)
	letter, size, _ := dtypeOf(s)
	bad := func() error { return m.refuse("it sets a state of numpy.dtype %q that is not numpy's own", s) }
	st, known := m.elements(state)
	if !known || len(st) < 8 || len(st) > 9 || !(st[0].isInt(3) || st[0].isInt(4)) || st[1].kind != kindText {
		return bad()
	}
	order, ok := m.text(st[1])
	if !ok || len(order) != 1 || !strings.Contains("<>|=", order) {
		return bad()
	}
	if order == ">" {
		m.box(on).flags |= flagSwapped
	}
	for _, v := range st[2:5] { // shape, names and fields of structured types
		if v.kind != kindNone {
			return m.refuse("it makes a structured numpy.dtype")
		}
	}
	bytes, align, flags := -1, -1, flagsPlain
	switch letter {
	case 'S', 'V':
		bytes, align = size, 1
	case 'U':
		bytes, align, flags = 4*size, 4, flagsText
	case 'O':
		flags = flagsObject
	}
	if !st[5].isInt(bytes) || !st[6].isInt(align) || !st[7].isInt(flags) {
		return bad()
	}
	if len(st) == 9 && !m.timeUnit(letter, st[8]) {
		return bad()
	}
	return nil
}

// timeUnit says that a value is ({}, (unit, 1, 1, 1)) and the type a time.
func (m *machine) timeUnit(letter byte, v value) bool {
	pair, known := m.elements(v)
	if (letter != 'M' && letter != 'm') || !known || len(pair) != 2 || (pair[0].kind != kindDict && pair[0].kind != kindNone) {
		return false
	}
	unit, known := m.elements(pair[1])
	if !known || len(unit) != 4 || unit[0].kind != kindBytes {
		return false
	}
	for _, v := range unit[1:] {
		if v.kind != kindInt || int32(v.off) < 1 {
			return false
		}
	}
	return true
}

// shape is how many elements an array of these sizes has; false if a value is no tuple of sizes or they are too many.
func (m *machine) shape(v value) (int64, bool) {
	dims, known := m.elements(v)
	if !known {
		return 0, false
	}
	n := int64(1)
	for _, d := range dims {
		if d.kind != kindInt || int32(d.off) < 0 {
			return 0, false
		}
		if n *= int64(d.off); n > 1<<31 {
			return 0, false
		}
	}
	return n, true
}

// letter is a dtype's, or 0.
func (m *machine) letter(v value) byte {
	s, ok := m.text(v)
	if v.kind != kindDtype || !ok {
		return 0
	}
	return s[0]
}

// callReconstruct passes (ndarray, (0,), b"b"): an empty array, to be filled by its state.
func callReconstruct(m *machine, e *entry, args []value, known bool) (value, error) {
	if known && len(args) == 3 {
		class, typ := m.entry(args[0]), args[2]
		shape, knownShape := m.elements(args[1])
		s, ok := m.text(typ)
		if class != nil && class.rule == table["numpy"]["ndarray"] && knownShape && len(shape) == 1 && shape[0].isInt(0) &&
			typ.kind == kindBytes && ok && s == "b" {
			return value{kind: kindArray}, nil
		}
	}
	return m.badCall(e)
}

// arrayState passes (version, shape, dtype, Fortran order, content); content is a list for objects alone.
func (m *machine) arrayState(state value) error {
	st, known := m.elements(state)
	if known && len(st) == 5 && st[0].kind == kindInt && (isFlag(st[3], 0) || isFlag(st[3], 1)) {
		letter, content := m.letter(st[2]), st[4]
		n, ok := m.shape(st[1])
		if ok && letter == 'O' && content.kind == kindList && n == int64(m.count(content)) || ok && letter != 0 && letter != 'O' && content.kind == kindBytes {
			return m.chargeCopy(m.flat(content))
		}
	}
	return m.refuse("it sets a state of numpy.ndarray that is not numpy's own")
}

// callScalar passes (dtype, bytes). Of objects old versions of numpy would unpickle the bytes.
func callScalar(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 2 || args[1].kind != kindBytes {
		return m.badCall(e)
	}
	letter := m.letter(args[0])
	if letter == 0 || letter == 'O' {
		return m.badCall(e)
	}
	bytes := m.flat(args[1])
	if letter == 'U' || letter == 'S' { // they hash as text and bytes do
		return loose(kindFair, bytes, bytes/64), m.chargeCopy(bytes)
	}
	return m.scalar(letter, args[0], args[1]), m.chargeCopy(bytes)
}

// scalar is a number, which hashes as the number that it is; or loose.
func (m *machine) scalar(letter byte, dtype, content value) value {
	s, ok := m.text(content)
	if !ok || len(s) > 8 || content.hash() == hashLoose {
		return loose(kindOther, m.flat(content), 1)
	}
	b := []byte(s)
	if m.box(dtype).flags&flagSwapped != 0 {
		slices.Reverse(b)
	}
	var h uint64
	switch {
	case letter == 'b' || letter == 'u':
		h = longHash(append(b, 0))
	case letter == 'i':
		h = longHash(b)
	case letter == 'f' && len(b) == 8:
		h = floatHash(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	case letter == 'f' && len(b) == 4:
		h = floatHash(float64(math.Float32frombits(binary.LittleEndian.Uint32(b))))
	default:
		return loose(kindOther, uint64(len(s)), 1)
	}
	return value{kind: kindNumber, more: 1}.hashed(h)
}

// callFromBuffer passes (bytes, dtype, shape, order), how protocol 5 writes an array.
func callFromBuffer(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 4 || (args[0].kind != kindBytes && args[0].kind != kindByteArray) || args[3].kind != kindText {
		return m.badCall(e)
	}
	if _, ok := m.shape(args[2]); !ok {
		return m.badCall(e)
	}
	if letter := m.letter(args[1]); letter == 0 || letter == 'O' {
		return m.badCall(e)
	}
	return loose(kindOther, 0, 0), nil
}
