package picklescan

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
)

// argument is what follows an opcode: so many bytes, or so many as a number of that width says, or lines.
type argument uint8

const (
	argNone    argument = 0
	argWidth   argument = 0x0f // mask of the bytes of a fixed argument or of a count
	argCounted argument = 0x10 // the bytes are a count, and that many follow
	argSigned  argument = 0x20 // the count must not be negative
	argLine    argument = 0x40 // one line
	argLines   argument = 0x80 // two lines
)

const opFrame = 0x95

// opcode is one row of the table.
type opcode struct {
	arg argument
	do  func(*machine, span) error
}

// opcodes are all that CPython knows (Lib/pickletools.py). INST and OBJ made instances of Python 2's old classes: no
// Python 3 writes them.
var opcodes = [256]opcode{
	// what frames the rest
	0x80: {1, (*machine).protocol}, opFrame: {8, (*machine).frame}, '.': {argNone, (*machine).stop},
	// plain values
	'N': {argNone, push(value{kind: kindNone})}, 0x88: {argNone, push(value{kind: kindBool, off: 1, lo: 1})}, 0x89: {argNone, push(value{kind: kindBool})},
	'I': {argLine, (*machine).decimal}, 'L': {argLine, (*machine).decimal}, 'F': {argLine, (*machine).float},
	'J': {4, (*machine).integer}, 'K': {1, (*machine).integer}, 'M': {2, (*machine).integer},
	0x8a: {1 | argCounted, (*machine).integer}, 0x8b: {4 | argCounted | argSigned, (*machine).integer},
	'G': {8, (*machine).double},
	// text and bytes; those of Python 2 are decoded by who loads them, so their content counts as unknown
	'S': {argLine, (*machine).quoted}, 'T': {4 | argCounted | argSigned, (*machine).foreign},
	'U': {1 | argCounted, (*machine).foreign}, 'V': {argLine, (*machine).escaped},
	'X': {4 | argCounted, pushText(kindText)}, 0x8c: {1 | argCounted, pushText(kindText)}, 0x8d: {8 | argCounted, pushText(kindText)},
	'B': {4 | argCounted, pushText(kindBytes)}, 'C': {1 | argCounted, pushText(kindBytes)}, 0x8e: {8 | argCounted, pushText(kindBytes)},
	0x96: {8 | argCounted, func(m *machine, s span) error { return m.push(value{kind: kindByteArray, off: uint32(s.n)}) }},
	// containers
	')':  {argNone, func(m *machine, _ span) error { return m.push(m.tuple(nil)) }},
	0x85: {argNone, lastTuple(1)}, 0x86: {argNone, lastTuple(2)}, 0x87: {argNone, lastTuple(3)}, 't': {argNone, (*machine).markTuple},
	']': {argNone, empty(kindList)}, 'l': {argNone, markInto(kindList, 1)},
	'}': {argNone, empty(kindDict)}, 'd': {argNone, markInto(kindDict, 2)},
	0x8f: {argNone, empty(kindSet)}, 0x91: {argNone, (*machine).frozen},
	'a': {argNone, addLast(1, takesValues)}, 'e': {argNone, addMarked(1, takesValues)},
	's': {argNone, addLast(2, takesPairs)}, 'u': {argNone, addMarked(2, takesPairs)},
	0x90: {argNone, addMarked(1, takesElements)},
	// stack and memo
	'(': {argNone, (*machine).mark}, '0': {argNone, (*machine).drop}, '1': {argNone, func(m *machine, _ span) error { _, err := m.popMark(); return err }},
	'2': {argNone, (*machine).dup},
	'p': {argLine, memoLine((*machine).remember)}, 'g': {argLine, memoLine((*machine).recall)},
	'q': {1, memoNumber((*machine).remember)}, 'h': {1, memoNumber((*machine).recall)},
	'r': {4, memoNumber((*machine).remember)}, 'j': {4, memoNumber((*machine).recall)},
	0x94: {argNone, func(m *machine, _ span) error { return m.remember(uint64(m.set)) }},
	// globals, calls and state
	'c': {argLines, (*machine).global}, 0x93: {argNone, (*machine).stackGlobal},
	'R': {argNone, (*machine).reduce}, 0x81: {argNone, (*machine).newObject}, 0x92: {argNone, (*machine).newObjectEx}, 'b': {argNone, (*machine).build},
	// what never passes
	'i': {argLines, (*machine).instance}, 'o': {argNone, refused("an instance of an old class")},
	'P': {argLine, refused("a persistent ID")}, 'Q': {argNone, refused("a persistent ID")},
	0x82: {1, refused("a code of the extension registry")}, 0x83: {2, refused("a code of the extension registry")}, 0x84: {4, refused("a code of the extension registry")},
	0x97: {argNone, refused("an out-of-band buffer")}, 0x98: {argNone, refused("an out-of-band buffer")},
}

func refused(what string) func(*machine, span) error {
	return func(m *machine, _ span) error { return m.refuse("%s", what) }
}

func push(v value) func(*machine, span) error {
	return func(m *machine, _ span) error { return m.push(v) }
}

func pushText(k kind) func(*machine, span) error {
	return func(m *machine, s span) error { return m.push(m.tracked(k, s)) }
}

func (m *machine) protocol(s span) error {
	if m.proto = m.in[s.off]; m.proto > 5 {
		return m.malformed("protocol %d", m.proto)
	}
	return nil
}

func (m *machine) frame(s span) error {
	n := binary.LittleEndian.Uint64(m.bytes(s))
	switch {
	case m.frameEnd != 0:
		return m.malformed("a frame within a frame")
	case n > uint64(len(m.in)-m.next):
		return m.malformed("a frame of %d bytes where %d are left", n, len(m.in)-m.next)
	case n > 0:
		m.frameEnd = m.next + int(n)
	}
	return nil
}

func (m *machine) stop(span) error {
	if len(m.stack) != 1 || len(m.marks) != 0 {
		return m.malformed("STOP with %d values and %d marks", len(m.stack), len(m.marks))
	}
	m.done = true
	return nil
}

// integer reads the little-endian forms: unsigned of 1 and 2 bytes, signed of 4, two's complement of any length.
func (m *machine) integer(s span) error {
	b, v := m.bytes(s), int64(0)
	if len(b) > 4 {
		return m.push(long(len(b)).hashed(longHash(b)))
	}
	for i, c := range b {
		v |= int64(c) << (8 * i)
	}
	if op := m.in[m.at]; op != 'K' && op != 'M' && len(b) > 0 && b[len(b)-1]&0x80 != 0 {
		v -= 1 << (8 * len(b))
	}
	return m.push(integer(int32(v)))
}

func integer(v int32) value { return value{kind: kindInt, off: uint32(v)}.hashed(intHash(int64(v))) }

// long is an integer of so many bytes.
func long(n int) value { return value{kind: kindLong, off: uint32(n), more: uint32(n / 16)} }

// double reads the big-endian form of a float.
func (m *machine) double(s span) error {
	return m.push(float(math.Float64frombits(binary.BigEndian.Uint64(m.bytes(s)))))
}

// float keeps the bits; they are hashed when somebody asks.
func float(f float64) value { return value{kind: kindFloat}.hashed(math.Float64bits(f)) }

// decimal reads I and L: digits, or I's 00 and 01, which are booleans. CPython reads at most 4300 digits.
func (m *machine) decimal(s span) error {
	text := string(m.bytes(s))
	if m.in[m.at] == 'I' && (text == "00" || text == "01") {
		bit := uint32(text[1] - '0')
		return m.push(value{kind: kindBool, off: bit, lo: bit})
	}
	if m.in[m.at] == 'L' {
		text = strings.TrimSuffix(text, "L")
	}
	digits := strings.TrimPrefix(text, "-")
	if digits == "" || len(digits) > 4300 || strings.Trim(digits, "0123456789") != "" || (digits[0] == '0' && digits != "0") {
		return m.malformed("an integer that is no decimal number")
	}
	if v, err := strconv.ParseInt(text, 10, 32); err == nil {
		return m.push(integer(int32(v)))
	}
	return m.push(long(len(digits)*5/12 + 1).hashed(decimalHash(text)))
}

func (m *machine) float(s span) error {
	text := string(m.bytes(s))
	if len(text) > 400 || strings.Trim(text, "0123456789+-.einfa") != "" {
		return m.malformed("a float that is no number")
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return m.malformed("a float that is no number")
	}
	return m.push(float(f))
}

func (m *machine) quoted(s span) error {
	b := m.bytes(s)
	if len(b) < 2 || b[0] != b[len(b)-1] || (b[0] != '\'' && b[0] != '"') {
		return m.malformed("a string without its quotes")
	}
	return m.foreign(s)
}

// foreign is a text whose content is not what stands in the input.
func (m *machine) foreign(s span) error {
	return m.push(value{kind: kindText, n: untracked, off: uint32(s.n), more: uint32(s.n / 64)}.hashed(hashLoose))
}

// escaped reads V, whose content is known if it has no escape.
func (m *machine) escaped(s span) error {
	for _, c := range m.bytes(s) {
		if c == '\\' || c >= 0x80 {
			return m.foreign(s)
		}
	}
	return m.push(m.tracked(kindText, s))
}

func lastTuple(n int) func(*machine, span) error {
	return func(m *machine, _ span) error {
		if len(m.stack)-n < m.floor() {
			return m.malformed("the stack is empty")
		}
		at := len(m.stack) - n
		t := m.tuple(m.stack[at:])
		m.stack = m.stack[:at]
		return m.push(t)
	}
}

func (m *machine) markTuple(span) error {
	items, err := m.popMark()
	if err != nil {
		return err
	}
	return m.push(m.tuple(items))
}

func empty(k kind) func(*machine, span) error {
	return func(m *machine, _ span) error {
		v, err := m.container(k)
		if err != nil {
			return err
		}
		return m.push(v)
	}
}

func markInto(k kind, group int) func(*machine, span) error {
	return func(m *machine, _ span) error {
		items, err := m.popMark()
		if err != nil {
			return err
		}
		v, err := m.container(k)
		if err != nil {
			return err
		}
		if err := m.fill(v, items, group); err != nil {
			return err
		}
		return m.push(v)
	}
}

// frozen makes a frozenset of what is above the mark.
func (m *machine) frozen(span) error {
	items, err := m.popMark()
	if err != nil {
		return err
	}
	set, err := m.container(kindSet) // for the time of its making
	if err != nil {
		return err
	}
	if err := m.fill(set, items, 1); err != nil {
		return err
	}
	delete(m.tables, set.off)
	v := value{kind: kindFrozen}
	v.more, v.depth = sum(items)
	return m.push(v.hashed(m.frozenHash(items)))
}

// fill puts values, in groups, into a container.
func (m *machine) fill(in value, items []value, group int) error {
	if len(items)%group != 0 {
		return m.malformed("a key without a value")
	}
	switch in.kind {
	case kindList:
		m.extend(in, items)
	case kindSet:
		for _, v := range items {
			if err := m.key(in, v); err != nil {
				return err
			}
		}
	case kindDict, kindMapping:
		for i := 0; i < len(items); i += 2 {
			if err := m.pair(in, items[i], items[i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func takesValues(k kind) bool   { return k == kindList || k == kindDeque || k == kindAllowed }
func takesPairs(k kind) bool    { return k == kindDict || k == kindMapping || k == kindAllowed }
func takesElements(k kind) bool { return k == kindSet || k == kindAllowed }

// addLast puts the last n values into what is below them.
func addLast(n int, takes func(kind) bool) func(*machine, span) error {
	return func(m *machine, _ span) error {
		at := len(m.stack) - n
		if at < m.floor() {
			return m.malformed("the stack is empty")
		}
		items := m.stack[at:]
		m.stack = m.stack[:at]
		return m.into(items, n, takes)
	}
}

// addMarked puts what is above the mark into what is below it, in groups of n.
func addMarked(n int, takes func(kind) bool) func(*machine, span) error {
	return func(m *machine, _ span) error {
		items, err := m.popMark()
		if err != nil {
			return err
		}
		return m.into(items, n, takes)
	}
}

func (m *machine) into(items []value, group int, takes func(kind) bool) error {
	v, err := m.top()
	if err != nil {
		return err
	}
	if !takes(v.kind) {
		return m.refuse("values put into what is no plain container")
	}
	return m.fill(v, items, group)
}

func (m *machine) mark(span) error {
	if len(m.marks) >= maxMarks {
		return m.refuse("more than %d marks at a time", maxMarks)
	}
	m.marks = append(m.marks, len(m.stack))
	return nil
}

// drop takes off the last value, or the mark if that is last.
func (m *machine) drop(span) error {
	if len(m.marks) > 0 && m.floor() == len(m.stack) {
		m.marks = m.marks[:len(m.marks)-1]
		return nil
	}
	_, err := m.pop()
	return err
}

func (m *machine) dup(span) error {
	v, err := m.top()
	if err != nil {
		return err
	}
	return m.push(v)
}

func memoLine(do func(*machine, uint64) error) func(*machine, span) error {
	return func(m *machine, s span) error {
		text := string(m.bytes(s))
		i, err := strconv.ParseUint(text, 10, 32)
		if err != nil || (len(text) > 1 && text[0] == '0') {
			return m.malformed("a memo entry that is no number")
		}
		return do(m, i)
	}
}

func memoNumber(do func(*machine, uint64) error) func(*machine, span) error {
	return func(m *machine, s span) error {
		i := uint64(m.in[s.off])
		if s.n == 4 {
			i = uint64(binary.LittleEndian.Uint32(m.bytes(s)))
		}
		if i > math.MaxInt32 {
			return m.malformed("memo entry %d", i)
		}
		return do(m, i)
	}
}
