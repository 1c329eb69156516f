package picklescan

import "strings"

type call = func(m *machine, e *entry, args []value, known bool) (value, error)

func (m *machine) badCall(e *entry) (value, error) {
	return value{}, m.refuse("it calls %s with other arguments than Python does", name(e.module, e.attr))
}

// loose makes what a call makes: whoever copies it takes so many bytes, and comparing it takes so many steps.
func loose(k kind, bytes, more uint64) value {
	return value{kind: k, off: saturate(bytes), more: saturate(more)}.hashed(hashLoose)
}

// flats is what copying arguments takes, and how many bytes of it are long integers. Where they are not kept it is more
// than that.
func (m *machine) flats(args []value, known bool) (total, longs uint64) {
	if !known {
		total = 64 * m.argv.size()
		return total, total
	}
	for _, v := range args {
		total += m.flat(v)
		if v.kind == kindLong {
			longs += m.flat(v)
		}
	}
	return total, longs
}

// numeric says that values are integers, or floats too.
func numeric(args []value, floats bool) bool {
	for _, v := range args {
		switch v.kind {
		case kindInt, kindBool, kindLong:
		case kindFloat, kindNumber:
			if !floats {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// finite says that walking through a value takes no more than its bytes did: a range of two numbers can be endless.
func finite(v value) bool {
	switch v.kind {
	case kindList, kindTuple, kindDict, kindSet:
		return true
	}
	return false
}

// one passes nothing or one container.
func (m *machine) one(args []value, known bool, takes func(value) bool) bool {
	return known && len(args) <= 1 && (len(args) == 0 || takes(args[0]))
}

// callList copies what it is given.
func callList(m *machine, e *entry, args []value, known bool) (value, error) {
	if !m.one(args, known, finite) {
		return m.badCall(e)
	}
	bytes, _ := m.flats(args, known)
	return loose(kindOther, bytes, 0), m.chargeCopy(bytes)
}

func callTuple(m *machine, e *entry, args []value, known bool) (value, error) {
	if !m.one(args, known, finite) {
		return m.badCall(e)
	}
	if len(args) == 0 {
		return m.tuple(nil), nil
	}
	from, n := args[0], m.count(args[0])
	v := value{kind: kindTuple, n: untracked, off: saturate(n), more: from.more, depth: from.depth}
	if b := m.box(from); b != nil {
		v.more, v.depth = b.weight, deeper(b.deepest)
	}
	return v.hashed(hashLoose), m.chargeCopy(8 * n)
}

// callSet hashes what it is given.
func callSet(k kind) call {
	return func(m *machine, e *entry, args []value, known bool) (value, error) {
		if !m.one(args, known, finite) {
			return m.badCall(e)
		}
		var n, weight uint64
		var depth uint8
		if len(args) > 0 {
			var err error
			n = m.count(args[0])
			if weight, depth, err = m.setOf(args[0]); err != nil {
				return value{}, err
			}
		}
		if k == kindFrozen {
			return value{kind: k, more: saturate(weight), depth: deeper(depth)}.hashed(hashLoose), nil
		}
		v, err := m.container(k)
		if err == nil {
			m.boxes[v.off] = box{n: saturate(n), weight: saturate(weight), deepest: depth, flags: fullIf(n)}
		}
		return v, err
	}
}

// fullIf says that what a call has filled takes nothing more: its table is not followed.
func fullIf(n uint64) uint8 {
	if n > 0 {
		return flagFull
	}
	return 0
}

// callDict passes nothing or a dict, whose hashes it takes over.
func callDict(k kind) call {
	return func(m *machine, e *entry, args []value, known bool) (value, error) {
		if !m.one(args, known, func(v value) bool { return v.kind == kindDict }) {
			return m.badCall(e)
		}
		v, err := m.container(k)
		if err != nil || len(args) == 0 {
			return v, err
		}
		from := *m.box(args[0])
		from.flags |= fullIf(uint64(from.n))
		m.boxes[v.off] = from
		if t := m.tables[args[0].off]; t != nil {
			if err := m.chargeSteps(t.spent); err != nil {
				return v, err
			}
		}
		return v, m.chargeCopy(8 * uint64(from.n))
	}
}

// callBytes passes nothing, bytes, a list, or a text to be encoded as Latin-1. A number would be a length.
func callBytes(k kind) call {
	return func(m *machine, e *entry, args []value, known bool) (value, error) {
		ok := known && len(args) <= 2
		if ok && len(args) > 0 {
			first := args[0].kind
			ok = (len(args) == 1 && (first == kindBytes || first == kindList)) ||
				(len(args) == 2 && first == kindText && m.latin1(args[1]))
		}
		if !ok {
			return m.badCall(e)
		}
		bytes := uint64(0)
		if len(args) > 0 {
			bytes = m.flat(args[0])
		}
		v := loose(k, bytes, bytes/64)
		v.n = untracked
		return v, m.chargeCopy(bytes)
	}
}

func (m *machine) latin1(v value) bool {
	s, ok := m.text(v)
	return ok && v.kind == kindText && (s == "latin1" || s == "latin-1")
}

// callEncode passes a text and Latin-1, which is how bytes are written below protocol 3. Other codecs are looked up
// by name among modules.
func callEncode(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 2 || args[0].kind != kindText || !m.latin1(args[1]) {
		return m.badCall(e)
	}
	v := args[0].hashed(hashLoose)
	v.kind = kindBytes
	return v, m.chargeCopy(m.flat(v))
}

// callException passes anything: the arguments are kept, or the call fails. A bytearray is copied by some.
func callException(m *machine, _ *entry, args []value, known bool) (value, error) {
	m.serial++
	v := value{kind: kindException}.hashed(mix(m.serial))
	copied := uint64(0)
	if !known {
		copied, _ = m.flats(args, known)
	}
	for _, a := range args {
		if a.kind == kindByteArray {
			copied += m.flat(a)
		}
	}
	return v, m.chargeCopy(copied)
}

// callGroup passes a text and a list of exceptions.
func callGroup(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 2 || args[0].kind != kindText || !finite(args[1]) {
		return m.badCall(e)
	}
	if err := m.chargeCopy(m.flat(args[1])); err != nil {
		return value{}, err
	}
	return callException(m, e, nil, true)
}

// chargeLong charges arithmetic that takes the square of its numbers' lengths: 16 KiB squared in about 1 ms.
func (m *machine) chargeLong(bytes uint64) error { return m.chargeSteps(bytes * bytes / 1024) }

// callFraction passes "3/4" or two integers: with an exponent a few digits make gigabytes.
func callFraction(m *machine, e *entry, args []value, known bool) (value, error) {
	bytes, longs := m.flats(args, known)
	ok := known
	if ok && len(args) == 1 {
		s, isText := m.text(args[0])
		ok = isText && args[0].kind == kindText && strings.Trim(s, "-0123456789/") == ""
		longs = uint64(len(s))
	} else if ok {
		ok = len(args) == 2 && numeric(args, false)
	}
	if !ok {
		return m.badCall(e)
	}
	return loose(kindOther, bytes, 15+bytes/16), m.chargeLong(longs)
}

// callDecimal passes a text. Of an integer it would take the square of its length.
func callDecimal(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 1 || args[0].kind != kindText {
		return m.badCall(e)
	}
	bytes := m.flat(args[0])
	return loose(kindOther, bytes, 3+bytes/16), m.chargeCopy(2 * bytes)
}

func callComplex(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) > 2 || !numeric(args, true) {
		return m.badCall(e)
	}
	_, longs := m.flats(args, known)
	return loose(kindOther, 0, 0), m.chargeLong(longs)
}

// callRange passes integers; how many there are is a division.
func callRange(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) < 1 || len(args) > 3 || !numeric(args, false) {
		return m.badCall(e)
	}
	_, longs := m.flats(args, known)
	return loose(kindOther, 0, 3+longs/16), m.chargeLong(longs)
}

// maxSlice is how deep slices may lie in slices: C code takes them apart by a call within a call.
const maxSlice = 8

func callSlice(m *machine, e *entry, args []value, known bool) (value, error) {
	ok := known && len(args) >= 1 && len(args) <= 3
	for _, v := range args {
		switch v.kind {
		case kindNone, kindBool, kindInt, kindLong, kindFloat, kindNumber, kindText, kindBytes, kindFair:
		case kindOther:
			ok = ok && v.depth < maxSlice
		default:
			ok = false
		}
	}
	if !ok {
		return m.badCall(e)
	}
	more, _ := sum(args)
	return loose(kindOther, 0, uint64(more)), nil
}

// callTime passes anything: what is no time fails. The canonical forms have the hash of their content.
func callTime(m *machine, e *entry, args []value, known bool) (value, error) {
	bytes, _ := m.flats(args, known)
	v := loose(kindFair, bytes, bytes/64+3)
	switch e.attr {
	case "date", "time", "datetime":
		if s, ok := m.text(first(args)); ok && len(args) == 1 && args[0].kind == kindBytes && args[0].hash() != hashLoose {
			want := map[string]int{"date": 4, "time": 6, "datetime": 10}[e.attr]
			folded := e.attr == "time" && len(s) > 0 && s[0]&0x80 != 0 || e.attr == "datetime" && len(s) > 2 && s[2]&0x80 != 0
			if len(s) == want && !folded {
				v = v.hashed(m.lane(args[0]))
			}
		}
	case "timedelta":
		if len(args) == 3 && args[0].kind == kindInt && within32(args[1], 86_400) && within32(args[2], 1_000_000) {
			v = v.hashed(m.tupleHash(args))
		}
	}
	return v, m.chargeCopy(bytes)
}

func within32(v value, below int32) bool {
	return v.kind == kindInt && int32(v.off) >= 0 && int32(v.off) < below
}

func first(args []value) value {
	if len(args) == 0 {
		return value{}
	}
	return args[0]
}

// callPath passes anything: what is no path fails. A path is taken apart at its slashes.
func callPath(m *machine, _ *entry, args []value, known bool) (value, error) {
	bytes, _ := m.flats(args, known)
	return loose(kindFair, bytes, bytes+3), m.chargeCopy(copiedPerByte * bytes)
}

func callAllowed(*machine, *entry, []value, bool) (value, error) {
	return value{kind: kindAllowed}.hashed(hashLoose), nil
}

func callDefaultDict(m *machine, e *entry, args []value, known bool) (value, error) {
	ok := known && len(args) <= 1
	if ok && len(args) == 1 && args[0].kind != kindNone {
		f := m.entry(args[0])
		ok = f != nil && f.rule.factory
	}
	if !ok {
		return m.badCall(e)
	}
	return m.container(kindMapping)
}

func callDeque(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) > 2 || (len(args) > 0 && !finite(args[0])) ||
		(len(args) == 2 && args[1].kind != kindInt && args[1].kind != kindNone) {
		return m.badCall(e)
	}
	bytes := uint64(0)
	if len(args) > 0 {
		bytes = m.flat(args[0])
	}
	return value{kind: kindDeque}, m.chargeCopy(bytes)
}

// callReconstructor passes (class, object, None): how an object is made below protocol 2.
func callReconstructor(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 3 || args[2].kind != kindNone {
		return m.badCall(e)
	}
	class, base := m.entry(args[0]), m.entry(args[1])
	if class == nil || base == nil || class.rule.make == kindOther || base.rule != table["builtins"]["object"] {
		return m.badCall(e)
	}
	return m.made(class.rule.make)
}

// made is what object.__new__ makes.
func (m *machine) made(k kind) (value, error) {
	if k == kindUUID {
		v, err := m.container(k)
		v.more = 15 // its hash and its comparison are written in Python
		return v, err
	}
	return value{kind: k}.hashed(hashLoose), nil
}
