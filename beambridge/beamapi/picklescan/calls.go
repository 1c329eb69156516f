package picklescan

import "strings"

type call = func(m *machine, e *entry, args []value, known bool) (value, error)

func (m *machine) badCall(e *entry) (value, error) {
	return value{}, m.refuse("it calls %s with other arguments than Python does", name(e.module, e.attr))
}

// anything passes any arguments: the callable keeps them or fails.
func anything(k kind) call {
	return func(*machine, *entry, []value, bool) (value, error) { return value{kind: k}, nil }
}

// finite says that walking through a value takes no more than its bytes did: a range of two numbers can be endless.
func finite(v value) bool {
	switch v.kind {
	case kindList, kindTuple, kindDict, kindSet:
		return true
	}
	return false
}

// collect passes nothing or one container.
func collect(k kind) call {
	return func(m *machine, e *entry, args []value, known bool) (value, error) {
		if !known || len(args) > 1 || (len(args) == 1 && !finite(args[0])) {
			return m.badCall(e)
		}
		return value{kind: k}, nil
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
		return value{kind: k, n: untracked}, nil
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
	v := args[0]
	v.kind = kindBytes
	return v, nil
}

// callGroup passes a text and a list of exceptions.
func callGroup(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) != 2 || args[0].kind != kindText || !finite(args[1]) {
		return m.badCall(e)
	}
	return value{kind: kindException}, nil
}

// callFraction passes "3/4" or two integers: with an exponent a few digits make gigabytes.
func callFraction(m *machine, e *entry, args []value, known bool) (value, error) {
	ok := known
	if ok && len(args) == 1 {
		s, isText := m.text(args[0])
		ok = isText && args[0].kind == kindText && strings.Trim(s, "-0123456789/") == ""
	} else if ok {
		ok = len(args) == 2
		for _, a := range args {
			ok = ok && (a.kind == kindInt || a.kind == kindOther)
		}
	}
	if !ok {
		return m.badCall(e)
	}
	return value{kind: kindOther}, nil
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
	return value{kind: kindMapping}, nil
}

func callDeque(m *machine, e *entry, args []value, known bool) (value, error) {
	if !known || len(args) > 2 || (len(args) > 0 && !finite(args[0])) ||
		(len(args) == 2 && args[1].kind != kindInt && args[1].kind != kindNone) {
		return m.badCall(e)
	}
	return value{kind: kindDeque}, nil
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
	return value{kind: class.rule.make}, nil
}
