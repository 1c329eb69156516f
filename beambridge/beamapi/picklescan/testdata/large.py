# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Writes large results, as functions return them, into the directory of argv[1]: one pickle a file, up to a result's size
where argv[2] is 1, less where it is less. argv[3] holds the protocols."""
import collections, datetime, decimal, fractions, os, pathlib, pickle, random, sys, uuid

scale = float(sys.argv[2])

r = random.Random(1)
day = datetime.date(2000, 1, 1)
days = [day + datetime.timedelta(days=i) for i in range(5000)]
deep = []
for _ in range(300):
    deep = [deep]
tree = (1,)
for _ in range(200):
    tree = (tree, 2)
errors = []
for i in range(20_000):
    e = ValueError("no %d" % i, i)
    e.code, e.where = i, {"row": i}
    errors.append(e)
errors.append(ImportError("no", name="x", path="y"))
try:
    {}["missing"]
except KeyError as err:
    errors.append(err)


def k(n):
    return max(1, int(n * scale))


def values():
    """Pairs of name and value."""
    yield "int keys", {i: None for i in range(k(1_000_000))}
    yield "spread int keys", {r.randrange(1 << 62): i for i in range(k(400_000))}
    yield "large int keys", {r.randrange(1 << 200): i for i in range(k(200_000))}
    yield "negative int keys", {-i: i for i in range(k(400_000))}
    yield "steps of int keys", {i << 20: i for i in range(k(400_000))}
    yield "text keys", {"k%07d" % i: None for i in range(k(1_000_000))}
    yield "odd text keys", {"k\u00e9\u4e00%05d" % i: i for i in range(k(50_000))}
    yield "bytes keys", {b"k%07d" % i: i for i in range(k(200_000))}
    yield "long text keys", {("x" * 300) + "%07d" % i: i for i in range(k(30_000))}
    yield "float keys", {i / 7: i for i in range(k(400_000))}
    yield "whole float keys", {float(i): i for i in range(k(400_000))}
    yield "pair keys", {(i, j): i * j for i in range(k(400)) for j in range(500)}
    yield "negative pair keys", {(i, j): 1 for i in range(-k(100), k(100)) for j in range(-200, 200)}
    yield "float pair keys", {(r.random(), r.random()): i for i in range(k(200_000))}
    yield "text pair keys", {("a%d" % i, j): 1 for i in range(k(400)) for j in range(400)}
    yield "date keys", {d: i for i, d in enumerate(days)}
    yield "date pair keys", {(d, "s%d" % i): 1.5 for d in days[: k(1500)] for i in range(60)}
    yield "datetime keys", {datetime.datetime(2000, 1, 1) + datetime.timedelta(minutes=i): i for i in range(k(200_000))}
    yield "aware datetime keys", {datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(minutes=i): i for i in range(k(100_000))}
    yield "timedelta keys", {datetime.timedelta(seconds=i): i for i in range(k(100_000))}
    yield "Decimal keys", {decimal.Decimal(i) / 7: i for i in range(5000)}
    yield "Decimal pair keys", {(decimal.Decimal(i), i): i for i in range(4000)}
    yield "Fraction keys", {fractions.Fraction(i, 7): i for i in range(2500)}
    yield "complex keys", {complex(i, 1): i for i in range(10_000)}
    yield "uuid keys", {uuid.UUID(int=r.randrange(1 << 128)): i for i in range(k(100_000))}
    yield "path keys", {pathlib.PurePosixPath("/data/%d/file.txt" % i): i for i in range(k(60_000))}
    yield "frozenset keys", {frozenset((i, i + j + 1)): 1 for i in range(k(1000)) for j in range(60)}
    yield "frozensets of texts", {frozenset(("a%d" % i, "b%d" % j)): 1 for i in range(k(200)) for j in range(200)}
    yield "exception keys", {e: 1 for e in errors}
    yield "class keys", {int: 1, str: 2, ValueError: 3}
    yield "mixed keys", {x: 1 for i in range(k(20_000)) for x in (i, str(i), i + 0.5, (i,), None, True)}
    yield "set of ints", set(range(k(1_000_000)))
    yield "set of texts", {"t%d" % i for i in range(k(500_000))}
    yield "set of odd texts", {"t\u00e9%d" % i for i in range(k(60_000))}
    yield "set of pairs", {(i, j) for i in range(k(400)) for j in range(400)}
    yield "frozenset of ints", frozenset(range(k(400_000)))
    yield "many sets", [set(range(i, i + 50)) for i in range(k(20_000))]
    yield "Decimals", [decimal.Decimal(i) / 7 for i in range(k(100_000))]
    yield "long Decimals", [decimal.Decimal("1." + "3" * 3000)] * 1000 + [decimal.Decimal("%d." % i + "3" * 3000) for i in range(k(1000))]
    yield "Fractions", [fractions.Fraction(i, i + 7) for i in range(1, k(60_000))]
    yield "long Fractions", [fractions.Fraction(3 ** (i + 100), 2 ** (i + 100)) for i in range(k(1500))]
    yield "complexes", [complex(i, i) for i in range(k(100_000))]
    yield "ranges", [range(i, i + 5) for i in range(k(100_000))]
    yield "slices", [slice(i, i + 5) for i in range(k(100_000))]
    yield "datetimes", [datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(minutes=i) for i in range(k(200_000))]
    yield "uuids", [uuid.UUID(int=i) for i in range(k(100_000))]
    yield "paths", [pathlib.Path("/srv/data/part-%05d/of/many.parquet" % i) for i in range(k(80_000))]
    yield "long path", pathlib.PurePosixPath("/".join("d%d" % i for i in range(300)))
    yield "rows", [{"id": i, "name": "n%d" % i, "value": i / 3, "at": None, "tags": ["a", "b"]} for i in range(k(100_000))]
    yield "rows with long names", [{("column %d " % c) * 20: i for c in range(20)} for i in range(k(20_000))]
    yield "columns", {"c%d" % c: [float(i) for i in range(k(40_000))] for c in range(30)}
    yield "floats", [r.random() for _ in range(k(1_000_000))]
    yield "tuple of floats", tuple(float(i) for i in range(k(1_000_000)))
    yield "tuples", [(i, str(i), i / 3) for i in range(k(300_000))]
    yield "lists", [[i] for i in range(k(1_000_000))]
    yield "empty lists", [[] for _ in range(k(2_000_000))]
    yield "deep list", deep
    yield "deep tuple key", {tree: 1}
    yield "bytes", b"x" * (k(14_000_000))
    yield "bytearrays", [bytearray(b"x" * 100_000) for _ in range(k(100))]
    yield "text", "\u00e9" * (k(3_000_000))
    yield "texts", ["some words of a text, number %d" % i for i in range(k(200_000))]
    yield "large ints", [1 << 4000 for _ in range(k(5000))] + [7 ** 3000 + i for i in range(k(5000))]
    yield "exceptions", errors
    yield "Counter", collections.Counter(i * i for i in range(k(200_000)))
    yield "Counter of texts", collections.Counter("w%d" % i for i in range(k(200_000)))
    yield "OrderedDict", collections.OrderedDict((i, i) for i in range(k(200_000)))
    yield "defaultdict", collections.defaultdict(list, {i: [i] for i in range(k(200_000))})
    yield "deque", collections.deque(range(k(500_000)))
    yield "one key in many", [{"same": 1}] * 10 + [{"same": i} for i in range(k(400_000))]
    yield "adjacency", {i: {i + 1: 1.0, i + 2: 2.0} for i in range(k(200_000))}


# Below protocol 4 these are made by calls whose hashes nobody follows: some ten thousand in a container pass.
loose = ("frozenset keys", "frozensets of texts", "date pair keys")
for protocol in map(int, sys.argv[3]):
    for name, value in values():
        if protocol < 4 and isinstance(value, (dict, list, set)) and len(value) > 60_000:
            # Beam's runner writes protocol 5: old ones are here for the forms that they have, not for the size.
            cut = list(value.items() if isinstance(value, dict) else value)[:60_000]
            value = type(value)(cut) if type(value) in (dict, list, set) else dict(cut) if isinstance(value, dict) else value
        b = pickle.dumps(value, protocol)
        if len(b) <= 15 << 20 and not (protocol < 4 and name in loose):
            with open(os.path.join(sys.argv[1], "%s.%d" % (name.replace(" ", "_"), protocol)), "wb") as f:
                f.write(b)
