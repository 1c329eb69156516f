package picklescan

import "strings"

// rule says what may be done with a global.
type rule struct {
	// call checks a call's arguments and says what comes of it; nil: it is a name only.
	call func(m *machine, e *entry, args []value, known bool) (value, error)
	// make is what object.__new__ of the class with no arguments is; kindOther: it is not made so.
	make kind
	// factory says that defaultdict may call it without arguments.
	factory bool
}

// table holds every global that passes, by module and name. Names of Python 2, which CPython translates below protocol
// 3, are in legacy.
var table = map[string]map[string]*rule{}

// legacy gives the module and name that stand for one of Python 2 (Lib/_compat_pickle.py).
var legacy = map[string]map[string][2]string{}

// Exceptions that Python 2 has too: the others cannot be looked up by its module's name.
const oldExceptions = `ArithmeticError AssertionError AttributeError BaseException BufferError BytesWarning
	DeprecationWarning EOFError EnvironmentError Exception FloatingPointError FutureWarning GeneratorExit IOError
	ImportError ImportWarning IndentationError IndexError KeyError KeyboardInterrupt LookupError MemoryError NameError
	NotImplementedError OSError OverflowError PendingDeprecationWarning ReferenceError RuntimeError RuntimeWarning
	StopIteration SyntaxError SyntaxWarning SystemError SystemExit TabError TypeError UnboundLocalError
	UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError UnicodeWarning UserWarning ValueError
	Warning ZeroDivisionError`

const newExceptions = `BlockingIOError BrokenPipeError ChildProcessError ConnectionAbortedError ConnectionError
	ConnectionRefusedError ConnectionResetError EncodingWarning FileExistsError FileNotFoundError InterruptedError
	IsADirectoryError ModuleNotFoundError NotADirectoryError PermissionError ProcessLookupError RecursionError
	ResourceWarning StopAsyncIteration TimeoutError`

func init() {
	add := func(module, names string, r rule) {
		if table[module] == nil {
			table[module] = map[string]*rule{}
		}
		for n := range strings.FieldsSeq(names) {
			table[module][n] = &r
		}
	}
	add("builtins", "int float str bool object", rule{factory: true})
	add("builtins", "list", rule{call: callList, factory: true})
	add("builtins", "tuple", rule{call: callTuple, factory: true})
	add("builtins", "set", rule{call: callSet(kindSet), factory: true})
	add("builtins", "frozenset", rule{call: callSet(kindFrozen), factory: true})
	add("builtins", "dict", rule{call: callDict(kindDict), factory: true})
	add("builtins", "bytes", rule{call: callBytes(kindBytes), factory: true})
	add("builtins", "bytearray", rule{call: callBytes(kindByteArray), factory: true})
	add("builtins", "complex", rule{call: callComplex})
	add("builtins", "range", rule{call: callRange})
	add("builtins", "slice", rule{call: callSlice})
	add("builtins", oldExceptions+" "+newExceptions, rule{call: callException})
	add("builtins", "ExceptionGroup BaseExceptionGroup", rule{call: callGroup})
	add("datetime", "date time datetime timedelta timezone", rule{call: callTime})
	add("decimal", "Decimal", rule{call: callDecimal})
	add("fractions", "Fraction", rule{call: callFraction})
	add("uuid", "UUID", rule{make: kindUUID})
	for _, module := range []string{"pathlib", "pathlib._local"} {
		add(module, "PurePath PurePosixPath PureWindowsPath Path PosixPath WindowsPath", rule{call: callPath})
	}
	add("collections", "OrderedDict Counter", rule{call: callDict(kindMapping), factory: true})
	add("collections", "defaultdict", rule{call: callDefaultDict})
	add("collections", "deque", rule{call: callDeque, factory: true})
	add("copyreg", "_reconstructor", rule{call: callReconstructor})
	add("_codecs", "encode", rule{call: callEncode})
	add("numpy", "dtype", rule{call: callDtype})
	add("numpy", "ndarray", rule{})
	for _, core := range []string{"numpy.core.", "numpy._core."} {
		add(core+"multiarray", "_reconstruct", rule{call: callReconstruct})
		add(core+"multiarray", "scalar", rule{call: callScalar})
		add(core+"numeric", "_frombuffer", rule{call: callFromBuffer})
	}
	old := func(module, names, to string) {
		if legacy[module] == nil {
			legacy[module] = map[string][2]string{}
		}
		for n := range strings.FieldsSeq(names) {
			legacy[module][n] = [2]string{to, n}
		}
	}
	old("__builtin__", "int float str bool object list tuple set frozenset dict bytes bytearray complex slice", "builtins")
	old("__builtin__", oldExceptions+" "+newExceptions+" ExceptionGroup BaseExceptionGroup", "builtins")
	for was, is := range map[string]string{"xrange": "range", "long": "int", "unicode": "str"} {
		legacy["__builtin__"][was] = [2]string{"builtins", is}
	}
	old("exceptions", oldExceptions, "builtins")
	old("copy_reg", "_reconstructor", "copyreg")
}

var allowedRule = &rule{call: callAllowed, make: kindAllowed, factory: true}

// lookup pushes a global, if it passes.
func (m *machine) lookup(module, attr string) error {
	r := table[module][attr]
	if r == nil && m.proto < 3 {
		if to, ok := legacy[module][attr]; ok {
			r = table[to[0]][to[1]]
		}
	}
	// Below protocol 3 CPython may take the name for one of Python 2 and look up another: nothing of the user's is
	// written so.
	if r == nil && m.proto >= 3 && m.allowed(module, attr) {
		r = allowedRule
	}
	if r == nil {
		return m.refuse("it names %s", name(module, attr))
	}
	for i := range m.names {
		if m.names[i].module == module && m.names[i].attr == attr && m.names[i].rule == r {
			return m.push(value{kind: kindGlobal, off: uint32(i)})
		}
	}
	m.names = append(m.names, entry{module, attr, r})
	return m.push(value{kind: kindGlobal, off: uint32(len(m.names) - 1)})
}

func (m *machine) global(first span) error {
	second, err := m.line()
	if err != nil {
		return err
	}
	if m.frameEnd > 0 && m.next > m.frameEnd {
		return m.malformed("an opcode reaches out of its frame")
	}
	return m.lookup(string(m.bytes(first)), string(m.bytes(second)))
}

func (m *machine) instance(first span) error {
	second, err := m.line()
	if err != nil {
		return err
	}
	return m.refuse("an instance of an old class, %s", name(string(m.bytes(first)), string(m.bytes(second))))
}

func (m *machine) stackGlobal(span) error {
	attr, err := m.pop()
	if err != nil {
		return err
	}
	module, err := m.pop()
	if err != nil {
		return err
	}
	a, okA := m.text(attr)
	b, okB := m.text(module)
	if !okA || !okB || attr.kind != kindText || module.kind != kindText {
		return m.refuse("it names a global by what is no plain text")
	}
	return m.lookup(b, a)
}

// entry is the global that a value is, or nil.
func (m *machine) entry(v value) *entry {
	if v.kind != kindGlobal {
		return nil
	}
	return &m.names[v.off]
}

func (m *machine) reduce(span) error {
	args, err := m.pop()
	if err != nil {
		return err
	}
	callable, err := m.pop()
	if err != nil {
		return err
	}
	e := m.entry(callable)
	if e == nil {
		return m.refuse("it calls what is no global")
	}
	if args.kind != kindTuple {
		return m.malformed("a call whose arguments are no tuple")
	}
	if e.rule.call == nil {
		return m.refuse("it calls %s", name(e.module, e.attr))
	}
	items, known := m.elements(args)
	m.argv = args
	v, err := e.rule.call(m, e, items, known)
	if err != nil {
		return err
	}
	switch v.kind {
	case kindException, kindOther, kindFair:
		// C code takes some of them apart by a call within a call, as deep as they lie in one another.
		if v.depth = deeper(args.depth); v.depth == maxDepth {
			return m.refuse("it calls %s with what is nested more than %d deep", name(e.module, e.attr), maxDepth-1)
		}
	}
	return m.push(v)
}

// object makes what cls.__new__(cls, *args) does.
func (m *machine) object(class, args value, plain bool) error {
	e := m.entry(class)
	if e == nil || e.rule.make == kindOther {
		return m.refuse("it makes an object of %s", m.describe(class))
	}
	if items, known := m.elements(args); e.rule != allowedRule && (!plain || !known || len(items) != 0) {
		return m.refuse("it makes an object of %s with arguments", m.describe(class))
	}
	v, err := m.made(e.rule.make)
	if err != nil {
		return err
	}
	return m.push(v)
}

func (m *machine) describe(v value) string {
	if e := m.entry(v); e != nil {
		return name(e.module, e.attr)
	}
	return "what is no global"
}

func (m *machine) newObject(span) error {
	args, err := m.pop()
	if err != nil {
		return err
	}
	class, err := m.pop()
	if err != nil {
		return err
	}
	if args.kind != kindTuple {
		return m.malformed("an object whose arguments are no tuple")
	}
	return m.object(class, args, true)
}

func (m *machine) newObjectEx(span) error {
	if _, err := m.pop(); err != nil { // keyword arguments
		return err
	}
	args, err := m.pop()
	if err != nil {
		return err
	}
	class, err := m.pop()
	if err != nil {
		return err
	}
	return m.object(class, args, false)
}

// build sets the state of what is below it.
func (m *machine) build(span) error {
	state, err := m.pop()
	if err != nil {
		return err
	}
	on, err := m.top()
	if err != nil {
		return err
	}
	switch on.kind {
	case kindAllowed:
		return nil
	case kindException:
		if state.kind == kindDict {
			return m.exceptionState(state)
		}
	case kindUUID:
		if state.kind == kindDict {
			return m.uuidState(on, state)
		}
	case kindDtype:
		return m.dtypeState(on, state)
	case kindArray:
		return m.arrayState(state)
	}
	return m.refuse("it sets the state of what has none")
}

// exceptionState sets an attribute for each key.
func (m *machine) exceptionState(state value) error {
	b := m.boxes[state.off]
	if b.flags&(flagSetter|flagMember) != 0 {
		return m.refuse("it sets attributes of an exception that Python does not write")
	}
	return m.chargeCopy(32 * uint64(b.n))
}

// uuidState passes a number of 128 bits, once.
func (m *machine) uuidState(on, state value) error {
	h, ok := m.ints[state.off]
	if _, again := m.uuids[on.off]; !ok || again {
		return m.refuse("it sets a state of uuid.UUID that is not Python's own")
	}
	if m.uuids == nil {
		m.uuids = map[uint32]uint64{}
	}
	m.uuids[on.off] = h
	return nil
}
