# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Reads pickles in hexadecimal, one a line, and writes for each what CPython makes of it as one line of JSON: where its
opcodes begin (pickletools) and which globals loading looks up (pickle), by the names that they have."""
import io, json, pickle, pickletools, sys


class Watched(pickle.Unpickler):
    def find_class(self, module, name):
        found = super().find_class(module, name)
        names.append([found.__module__, getattr(found, "__qualname__", name)])
        return found


for line in sys.stdin:
    b, names, answer = bytes.fromhex(line.strip()), [], {}
    try:
        answer["ops"] = [pos for _, _, pos in pickletools.genops(b)]
    except Exception as err:
        answer["walk"] = "%s: %s" % (type(err).__name__, err)
    try:
        Watched(io.BytesIO(b)).load()
    except Exception as err:
        answer["load"] = "%s: %s" % (type(err).__name__, err)
    answer["names"] = names
    print(json.dumps(answer))
