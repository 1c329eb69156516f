# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Writes safe.txt and hostile.txt beside it: one pickle a line, its name and its bytes in hexadecimal.

Run it with a Python that has numpy and, for protocol 5 of Beam's runner, cloudpickle.
"""
import array, collections, datetime, decimal, fractions, os, pathlib, pickle, pickletools, struct, subprocess, sys, types, uuid

HERE = os.path.dirname(os.path.abspath(__file__))


class Point:
    def __init__(self):
        self.x = 1


class Reduce:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def safe():
    shared = [1, 2]
    loop = []
    loop.append(loop)
    err = ValueError("no", 3)
    err.note = "kept"
    values = {
        "none": None, "bools": [True, False], "ints": [0, 1, 255, 256, 65536, -1, -129, 2**31, -(2**31), 2**63, -(2**70), 2**3000],
        "floats": [0.0, -1.5, 1e300, float("inf"), float("-inf"), float("nan")], "text": ["", "a", "é\n\\", "x" * 300, "\ud800"],
        "bytes": [b"", b"a", bytes(range(256)), b"x" * 70000], "bytearray": [bytearray(), bytearray(b"abc")],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), tuple(range(100))], "lists": [[], [1], list(range(3000))],
        "dicts": [{}, {"a": 1}, {i: str(i) for i in range(3000)}], "sets": [set(), {1, 2}, frozenset(), frozenset({1}), set(range(3000))],
        "shared": [shared, shared], "loop": loop, "nested": [[[[{"a": ({"b": [1]},)}]]]], "complex": 1 + 2j, "range": range(3, 9, 2),
        "slice": slice(1, None, 2), "types": [int, str, list, dict, object], "exception": err, "oserror": FileNotFoundError(2, "gone", "f"),
        "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "exit": SystemExit(3),
        "date": [datetime.date(2024, 2, 29), datetime.time(1, 2, 3), datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
                 datetime.timedelta(days=-3), datetime.timezone(datetime.timedelta(hours=2), "x"), datetime.datetime(1, 1, 1)],
        "decimal": [decimal.Decimal("1.5"), decimal.Decimal("NaN")], "fraction": fractions.Fraction(-3, 4), "uuid": uuid.UUID(int=5),
        "path": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/x"), pathlib.Path("rel/x")],
        "ordered": collections.OrderedDict(a=1, b=2), "counter": collections.Counter("hello"), "deque": collections.deque([1, 2], 5),
        "default": collections.defaultdict(list, {"a": [1]}), "defaultint": collections.defaultdict(int), "deques": collections.deque(range(3)),
    }
    if sys.version_info >= (3, 11):
        values["group"] = ExceptionGroup("several", [ValueError(1), KeyError("k")])
    for name, value in values.items():
        for protocol in range(6):
            if name == "text" and protocol == 0:
                value = value[:-1]
            yield "%s/%d" % (name, protocol), pickle.dumps(value, protocol)
            yield "%s/%d/python" % (name, protocol), pickle._dumps(value, protocol)
            yield "%s/%d/short" % (name, protocol), pickletools.optimize(pickle.dumps(value, protocol))
    try:
        import cloudpickle

        yield "cloudpickle", cloudpickle.dumps(values)
    except ImportError:
        pass
    yield from numpy_safe()


def numpy_safe():
    import numpy as np

    a = np.arange(12.0).reshape(3, 4)
    arrays = {
        "f8": a, "fortran": np.asfortranarray(a), "strided": a[:, ::2], "empty": np.empty((0, 3)), "zero": np.array(5), "bool": np.array([True]),
        "i1": np.array([1], "i1"), "u2": np.array([1], "u2"), "big": np.array([1], ">i4"), "f2": np.array([1], "f2"), "c16": np.array([1j]),
        "g": np.array([1], "g"), "U": np.array(["ab", "c"]), "S": np.array([b"ab"]), "V": np.array([b"ab"], "V4"), "O": np.array([1, "a", None], object),
        "M8": np.array(["2024-01-01"], "M8[ns]"), "m8": np.array([1], "m8[s]"), "scalar": np.float32(3), "int": np.int64(3), "str": np.str_("x"),
        "time": np.datetime64("2024-01-01"), "dtype": np.dtype("f4"), "dtypes": [np.dtype(t) for t in ("U3", "S0", "V7", "O", "M8[D]", "?")],
        "mixed": {"a": a, "b": [np.float64(1), a]}, "class": np.ndarray,
    }
    for name, value in arrays.items():
        for protocol in range(6):
            b = pickle.dumps(value, protocol)
            yield "numpy/%s/%d" % (name, protocol), b
            if protocol < 4:  # numpy 2 has the same under another name
                yield "numpy2/%s/%d" % (name, protocol), b.replace(b"numpy.core.", b"numpy._core.")


def g(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def u(text):
    b = text.encode()
    return b"\x8c" + bytes([len(b)]) + b


def frame(b, n=None):
    return b"\x80\x04\x95" + struct.pack("<Q", len(b) if n is None else n) + b


def hostile():
    for protocol in range(6):
        for name, r in {
            "system": (os.system, ("true",)), "eval": (eval, ("1",)), "exec": (exec, ("1",)), "getattr": (getattr, (1, "real")),
            "import": (__import__, ("os",)), "popen": (subprocess.Popen, (["true"],)), "open": (open, ("/etc/passwd",)),
            "loads": (pickle.loads, (b"N.",)), "bytes": (bytes, (10**12,)), "bytearray": (bytearray, (10**12,)), "list": (list, (range(10**12),)),
            "codec": (__import__("codecs").encode, ("x", "rot13")), "point": (Point, ()), "map": (map, (print, [1])),
            "simple": (types.SimpleNamespace, ()), "array": (array.array, ("d", [1.0])),
        }.items():
            yield "%s/%d" % (name, protocol), pickle.dumps(Reduce(*r), protocol)
            yield "%s/%d/nested" % (name, protocol), pickle.dumps({"a": [(1, Reduce(*r))]}, protocol)
    yield "fraction", pickle.dumps(Reduce(fractions.Fraction, ("1E1000000000",)))
    yield "own", pickle.dumps(Point())
    yield "function", pickle.dumps(Point.__init__, 4)
    yield "state", pickle.dumps(Reduce(collections.OrderedDict, (), {"a": 1}))
    yield "slots", pickle.dumps(Reduce(ValueError, (), (None, {"__class__": int})))
    yield "torch", pickle.dumps([1], 2).replace(b"]", g("torch._utils", "_rebuild_tensor_v2") + b"(]", 1)
    yield "dotted", b"\x80\x04" + u("builtins") + u("str.format") + b"\x93."
    yield "dottedmodule", b"\x80\x04" + u("datetime.sys") + u("exit") + b"\x93."
    yield "memo", b"\x80\x04" + u("os") + b"\x940" + u("system") + b"\x940h\x00h\x01\x93" + u("true") + b"\x85R."
    yield "memoswap", b"\x80\x04" + u("builtins") + b"\x94" + u("int") + b"q\x000" + u("eval") + b"\x93."
    yield "computed", b"\x80\x04" + g("builtins", "bytes") + b")R" + u("int") + b"\x93."
    yield "computedname", b"\x80\x04" + u("builtins") + b"C\x03int\x93."
    yield "quoted", b"S'os'\nS'system'\n\x93."
    yield "escaped", b"V\\u006fs\nVsystem\n\x93."
    yield "oldname", b"c__builtin__\neval\n."
    yield "oldreduce", b"c__builtin__\nreduce\n."
    yield "oldcommands", b"ccommands\ngetoutput\n(Vtrue\ntR."
    yield "oldmodern", b"\x80\x03" + g("__builtin__", "set") + b"."
    yield "return", b"cbuiltins\r\nint\n."
    yield "inst", b"(Vtrue\nios\nsystem\n."
    yield "instsafe", b"(ibuiltins\nValueError\n."
    yield "obj", b"(" + g("os", "system") + b"Vtrue\no."
    yield "persid", b"Pabc\n."
    yield "binpersid", b"NQ."
    for n, b in (("ext1", b"\x82\x01"), ("ext2", b"\x83\x01\x00"), ("ext4", b"\x84\x01\x00\x00\x00")):
        yield n, b"\x80\x02" + b + b"."
    yield "buffer", b"\x80\x05\x97."
    yield "callresult", b"\x80\x04" + g("builtins", "object") + b")R)R."
    yield "callint", b"\x80\x04K\x01)R."
    yield "calllist", b"\x80\x04" + g("builtins", "set") + b"]R."
    yield "buildglobal", b"\x80\x04" + g("builtins", "ValueError") + b"}b."
    yield "buildlist", b"\x80\x04]}b."
    yield "appendglobal", b"\x80\x04" + g("builtins", "list") + b"K\x01a."
    yield "appendexception", b"\x80\x04" + g("builtins", "ValueError") + b")RK\x01a."
    yield "setglobal", b"\x80\x04" + g("builtins", "dict") + b"NNs."
    yield "newobj", b"\x80\x04" + g("builtins", "int") + b")\x81."
    yield "newobjex", b"\x80\x04" + g("uuid", "UUID") + b")}\x92."
    yield "uuidargs", b"\x80\x04" + g("uuid", "UUID") + b"N\x85\x81."
    yield "reconstructor", g("copyreg", "_reconstructor") + b"(" + g("uuid", "UUID") + g("builtins", "list") + b"NtR."
    yield "reconstructstate", g("copyreg", "_reconstructor") + b"(" + g("uuid", "UUID") + g("builtins", "object") + b"K\x01tR."
    yield "factory", b"\x80\x04" + g("collections", "defaultdict") + g("numpy.core.multiarray", "scalar") + b"\x85R."
    yield "two", b"N.N."
    yield "trailing", b"N.\n"
    yield "left", b"NN."
    yield "openmark", b"N(."
    yield "nothing", b""
    yield "onlystop", b"."
    yield "belowmark", b"](Na."
    yield "unset", b"h\x05."
    yield "putempty", b"q\x00N."
    yield "hugememo", b"Nr\xff\xff\xff\x7f."
    yield "oddmemo", b"Np-1\n."
    yield "protocol", b"\x80\x06N."
    yield "unknown", b"\xffN."
    yield "longtext", b"X\xff\xff\xff\x7fa."
    yield "longtext8", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffa."
    yield "neglong", b"\x80\x02\x8b\xff\xff\xff\xff."
    yield "negstring", b"T\xff\xff\xff\xff."
    yield "framelong", frame(b"N.", 3)
    yield "framehuge", frame(b"N.", 2**63)
    yield "framesplit", frame(b"X\x03\x00\x00\x00abc.", 3)
    yield "framenested", frame(frame(b"N")[2:] + b"NN.", 12)
    yield "frameglobal", frame(b"cos\nsystem\n.", 4)
    yield "frameline", frame(b"cbuiltins\nint\n.", 11)
    yield "oddpairs", b"(NNNd."
    yield "oddset", b"}(Nu."
    yield "badint", b"I1e5\n."
    yield "longint", b"L" + b"9" * 5000 + b"L\n."
    yield "badfloat", b"F__import__\n."
    yield from numpy_hostile()


def numpy_hostile():
    def dtype(text="f8", copy=b"\x89\x88\x87", state=None):
        b = g("numpy", "dtype") + u(text) + copy + b"R"
        return b + (state or b"")

    def state(size=-1, align=-1, flags=0, names=b"NNN", order="<"):
        return b"(K\x03" + u(order) + names + b"J" + struct.pack("<i", size) + b"J" + struct.pack("<i", align) + b"K" + bytes([flags]) + b"tb"

    def array(d, content, shape=b"K\x01\x85"):
        return (b"\x80\x04" + g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
                b"(K\x01" + shape + d + b"\x89" + content + b"tb.")

    eight = b"C\x08\x41\x41\x41\x41\x41\x41\x41\x41"
    yield "numpy/object flags gone", array(dtype("O8", state=state(flags=0, order="|")), eight)
    yield "numpy/object from bytes", array(dtype("O8", state=state(flags=63, order="|")), eight)
    yield "numpy/counted bytes", array(dtype("f8", state=state(flags=1)), eight)
    yield "numpy/wrong size", array(dtype("S8", state=state(800, 1)), eight)
    yield "numpy/negative size", array(dtype("S8", state=state(-8, 1)), eight)
    yield "numpy/negative shape", array(dtype("f8"), eight, b"J\xff\xff\xff\xff\x85")
    yield "numpy/structured", array(dtype("V8", state=state(8, 1, 16, b"N" + u("a") + b"\x85}")), eight)
    yield "numpy/number for dtype", array(b"K\x01", eight)
    yield "numpy/list for numbers", array(dtype("f8"), b"]")
    objects = dtype("O8", state=state(flags=63, order="|"))
    yield "numpy/list too short", array(objects, b"](K\x01K\x02e", b"K\x03\x85")
    yield "numpy/list too long", array(objects, b"](K\x01K\x02e", b"K\x01\x85")
    yield "numpy/list shrunk by shape", array(objects, b"](K\x01K\x02e", b"K\x02K\x02\x86")
    yield "numpy/list of a tuple", array(objects, b"K\x01\x85", b"K\x01\x85")
    yield "numpy/not a copy", b"\x80\x04" + dtype("f8", b"\x89\x89\x87", state(order=">")) + b"."
    yield "numpy/commas", b"\x80\x04" + dtype("i4,O") + b"."
    yield "numpy/object scalar", b"\x80\x04" + g("numpy.core.multiarray", "scalar") + dtype("O8") + b"C\x02N.\x86R."
    yield "numpy/frombuffer", b"\x80\x04" + g("numpy.core.numeric", "_frombuffer") + b"(" + eight + dtype("O8") + b"K\x01\x85" + u("C") + b"tR."
    yield "numpy/reconstruct class", b"\x80\x04" + g("numpy.core.multiarray", "_reconstruct") + g("builtins", "list") + b"K\x00\x85C\x01b\x87R."
    yield "numpy/reconstruct type", b"\x80\x04" + g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x09\x85C\x01O\x87R."
    yield "numpy/load", b"\x80\x04" + g("numpy", "load") + b"."
    yield "numpy/call ndarray", b"\x80\x04" + g("numpy", "ndarray") + b"K\x01\x85\x85R."


def main():
    for name, lines in (("safe", safe()), ("hostile", hostile())):
        seen = set()
        with open(os.path.join(HERE, name + ".txt"), "w") as f:
            for label, b in lines:
                if b not in seen and len(b) < 20000:
                    seen.add(b)
                    f.write("%s\t%s\n" % (label, b.hex()))


main()
