package picklescan

import (
	"encoding/binary"
	"math"
	"slices"
)

// kind is what the walk knows of a value.
type kind uint8

const (
	kindOther     kind = iota // what a call makes and nothing more is needed of; off is what copying it takes
	kindNone                  // None
	kindBool                  // off is 0 or 1
	kindInt                   // off holds the int32
	kindLong                  // an integer beyond an int32; off is how many bytes it has
	kindFloat                 // a float; lo, hi are its bits
	kindNumber                // a number whose hash is known
	kindFair                  // as kindOther, where only what is equal has equal hashes
	kindText                  // off, n: its bytes in the input; if n is untracked, off is how many
	kindBytes                 // the same; or bytes that a call makes of a text, which has them too if it is ASCII
	kindByteArray             // a bytearray; off is how many bytes
	kindTuple                 // off, n: its elements in the arena; if n is untracked, off is how many
	kindList                  // off is its place in machine.boxes
	kindDict                  // the same
	kindSet                   // the same
	kindFrozen                // a frozenset
	kindGlobal                // off is its rule; n its entry, for messages
	kindException             // an exception
	kindUUID                  // a uuid.UUID, empty until its state is set; off is its place in machine.boxes
	kindDtype                 // off, n: its type's text in the input; lo is its place in machine.boxes
	kindArray                 // numpy.ndarray, empty until its state is set
	kindMapping               // takes items: OrderedDict, defaultdict; off is its place in machine.boxes
	kindDeque                 // takes appended values
	kindAllowed               // made by a class that the options name: takes anything
)

// untracked as a length says that a value's content is not kept.
const untracked = math.MaxUint16

// Limits of one walk, so that memory stays in proportion to what CPython would take.
const (
	maxStack   = 8 << 20 // values; one is 20 bytes
	maxMarks   = 100_000
	maxTracked = 64      // elements of a tuple whose elements are kept
	maxText    = 4 << 10 // bytes of a text whose content is kept
)

// value is an element of the symbolic stack.
type value struct {
	kind   kind
	depth  uint8 // how deep immutable values lie in it, at most maxDepth
	n      uint16
	off    uint32
	more   uint32 // elements beyond itself that hashing or comparing it goes through, as far as they fit
	lo, hi uint32 // its hash
}

// span is a part of the input.
type span struct{ off, n int }

// machine is one walk.
type machine struct {
	in    []byte
	allow []string

	at       int // where the current opcode begins
	next     int // where the following one does
	frameEnd int // 0 outside of a frame
	proto    byte

	stack []value
	marks []int
	memo  []value
	known []bool // of memo: whether the entry is set
	set   int    // entries of memo that are set
	arena []value
	names []entry // globals that were looked up, for messages

	boxes  []box
	tables map[uint32]*probes  // by box: of the dicts and sets with many keys
	keys   map[uint32][]uint64 // by box: the hashes of a list's elements, below protocol 4
	ints   map[uint32]uint64   // by box of a dict: the hash of its "int"
	uuids  map[uint32]uint64   // by box: the hashes of UUIDs
	argv   value               // the arguments of the call that is looked at
	serial uint64              // numbers what has a hash of its own

	hashed, copied, steps uint64 // the accounts of cost.go

	done  bool
	trace func(at int, op byte) // told of each opcode by tests
}

// entry is a global that passed.
type entry struct {
	module, attr string
	rule         *rule
}

// run walks the whole input.
func (m *machine) run() error {
	for !m.done {
		m.at = m.next
		if m.at >= len(m.in) {
			return m.malformed("it ends without STOP")
		}
		if m.at == m.frameEnd {
			m.frameEnd = 0
		}
		code := m.in[m.at]
		op := &opcodes[code]
		if op.do == nil {
			return m.malformed("there is no opcode %#02x", code)
		}
		m.next++
		arg, err := m.argument(op.arg)
		if err != nil {
			return err
		}
		if m.frameEnd > 0 && m.next > m.frameEnd && code != opFrame {
			return m.malformed("an opcode reaches out of its frame")
		}
		if m.trace != nil {
			m.trace(m.at, code)
		}
		if err := op.do(m, arg); err != nil {
			return err
		}
	}
	m.at = m.next
	if m.next != len(m.in) {
		return m.malformed("%d bytes follow STOP", len(m.in)-m.next)
	}
	if m.frameEnd > m.next {
		return m.malformed("STOP comes before the end of its frame")
	}
	return nil
}

// argument reads what follows an opcode.
func (m *machine) argument(a argument) (span, error) {
	switch a {
	case argNone:
		return span{}, nil
	case argLine:
		return m.line()
	case argLines: // the second line is read by who wants it
		return m.line()
	}
	width := int(a & argWidth)
	head, err := m.take(width)
	if err != nil || a&argCounted == 0 {
		return head, err
	}
	var n uint64
	switch b := m.bytes(head); width {
	case 1:
		n = uint64(b[0])
	case 4:
		n = uint64(binary.LittleEndian.Uint32(b))
	case 8:
		n = binary.LittleEndian.Uint64(b)
	}
	if n > uint64(len(m.in)-m.next) || (a&argSigned != 0 && n > math.MaxInt32) {
		return span{}, m.malformed("a value of %d bytes where %d are left", n, len(m.in)-m.next)
	}
	return m.take(int(n))
}

func (m *machine) take(n int) (span, error) {
	if n > len(m.in)-m.next {
		return span{}, m.malformed("it ends within an opcode")
	}
	s := span{m.next, n}
	m.next += n
	return s, nil
}

// line reads up to a newline, which it leaves out.
func (m *machine) line() (span, error) {
	for i := m.next; i < len(m.in); i++ {
		if m.in[i] == '\n' {
			s := span{m.next, i - m.next}
			m.next = i + 1
			return s, nil
		}
	}
	return span{}, m.malformed("it ends within a line")
}

func (m *machine) bytes(s span) []byte { return m.in[s.off : s.off+s.n] }

// text is the content of a text or of bytes; false if it is not kept.
func (m *machine) text(v value) (string, bool) {
	if (v.kind != kindText && v.kind != kindBytes && v.kind != kindDtype) || v.n == untracked {
		return "", false
	}
	return string(m.in[v.off : v.off+uint32(v.n)]), true
}

// tracked makes a text or bytes of a part of the input.
func (m *machine) tracked(k kind, s span) value {
	v := value{kind: k, n: uint16(s.n), off: uint32(s.off), more: uint32(s.n / 64)}
	if s.n > maxText {
		v.n, v.off = untracked, uint32(s.n)
	}
	if s.n > maxLazy {
		v = v.hashed(contentHash(m.bytes(s)))
	}
	return v
}

func (m *machine) push(v value) error {
	if len(m.stack) >= maxStack {
		return m.refuse("more than %d values at a time", maxStack)
	}
	if len(m.stack) == cap(m.stack) {
		m.stack = slices.Grow(m.stack, max(64, len(m.stack)))
	}
	m.stack = append(m.stack, v)
	return nil
}

// floor is how far the stack can be popped: to the last mark.
func (m *machine) floor() int {
	if len(m.marks) == 0 {
		return 0
	}
	return m.marks[len(m.marks)-1]
}

func (m *machine) pop() (value, error) {
	if len(m.stack) <= m.floor() {
		return value{}, m.malformed("the stack is empty")
	}
	v := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	return v, nil
}

func (m *machine) top() (value, error) {
	if len(m.stack) <= m.floor() {
		return value{}, m.malformed("the stack is empty")
	}
	return m.stack[len(m.stack)-1], nil
}

// popMark takes off the last mark and what is above it; the slice holds until the next push.
func (m *machine) popMark() ([]value, error) {
	if len(m.marks) == 0 {
		return nil, m.malformed("there is no mark")
	}
	at := m.floor()
	m.marks = m.marks[:len(m.marks)-1]
	items := m.stack[at:]
	m.stack = m.stack[:at]
	return items, nil
}

// tuple makes a tuple of values, which it keeps if they are few.
func (m *machine) tuple(items []value) value {
	v := value{kind: kindTuple, n: untracked, off: uint32(len(items))}
	if len(items) <= maxTracked {
		v.n, v.off = uint16(len(items)), uint32(len(m.arena))
		m.arena = append(m.arena, items...)
	}
	v.more, v.depth = sum(items)
	return v.hashed(m.tupleHash(items))
}

// sum is the weight of values, as far as it fits, and the depth of what is made of them.
func sum(items []value) (more uint32, depth uint8) {
	total := uint64(0)
	for _, v := range items {
		total += v.size()
		depth = max(depth, v.depth)
	}
	return saturate(total), deeper(depth)
}

// elements are a tuple's; false if it is none or they are not kept.
func (m *machine) elements(v value) ([]value, bool) {
	if v.kind != kindTuple || v.n == untracked {
		return nil, false
	}
	return m.arena[v.off : v.off+uint32(v.n)], true
}

// remember sets an entry of the memo to the top of the stack. CPython numbers entries one after another; others
// would let a few bytes make an unpickler take gigabytes.
func (m *machine) remember(i uint64) error {
	v, err := m.top()
	if err != nil {
		return err
	}
	if i > uint64(len(m.memo))+1 || i > maxStack {
		return m.refuse("memo entry %d where %d is next", i, len(m.memo))
	}
	if len(m.memo) == cap(m.memo) {
		m.memo = slices.Grow(m.memo, max(64, len(m.memo)))
	}
	for uint64(len(m.memo)) <= i {
		m.memo, m.known = append(m.memo, value{}), append(m.known, false)
	}
	if !m.known[i] {
		m.known[i] = true
		m.set++
	}
	m.memo[i] = v
	return nil
}

func (m *machine) recall(i uint64) error {
	if i >= uint64(len(m.memo)) || !m.known[i] {
		return m.malformed("memo entry %d is not set", i)
	}
	return m.push(m.memo[i])
}
