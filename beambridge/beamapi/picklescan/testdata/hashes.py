# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Writes for each of some values, whose hashes are not seeded, its pickle in hexadecimal and its hash, a line each."""
import pickle, random, uuid

r = random.Random(3)
ints = [0, 1, -1, -2, 2**31, -(2**31), 2**61 - 1, -(2**61 - 1), 2**61, 2**61 - 2, 2**64 - 1, -(2**64), 2**127, 10**40, True, False]
ints += [r.randrange(-(2**n), 2**n) for n in (8, 40, 60, 61, 62, 63, 64, 65, 100, 128, 500, 3000) for _ in range(20)]
floats = [0.0, -0.0, -1.0, 0.5, 1e300, -1e-300, 5e-324, float("inf"), float("-inf"), 2.0**61, 2.0**1000] + [r.uniform(-1, 1) * 10.0 ** r.randrange(-300, 300) for _ in range(200)]
numbers = ints + floats
tuples = [(), (1,), (-1, -2), ((1, 2), (3.5,))] + [tuple(r.choices(numbers, k=n)) for n in (1, 2, 3, 7, 20, 70) for _ in range(30)]
frozen = [frozenset(), frozenset([1])] + [frozenset(r.sample(range(10**6), n)) for n in (1, 2, 3, 4, 5, 6, 9, 20, 60) for _ in range(10)]
frozen += [frozenset([t]) for t in tuples[:8]] + [(f, 1) for f in frozen]
for value in numbers + tuples + frozen + [uuid.UUID(int=abs(x)) for x in ints if abs(x) < 2**127]:
    for protocol in (0, 2, 4, 5) if not isinstance(value, (frozenset, tuple)) else (4,):
        print(pickle.dumps(value, protocol).hex(), hash(value))
