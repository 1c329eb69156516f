# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Loads each pickle that a line names in a process of its own and writes, as one line of JSON, the processor seconds that
loading and dropping it took, the signal that ended it (0 for none) and what was raised. argv: seconds at most, MiB at most."""
import json, os, pickle, resource, sys, time

seconds, mib = int(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    with open(line.strip(), "rb") as f:
        b = f.read()
    r, w = os.pipe()
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        said = ""
        try:
            x = pickle.loads(b)
            del x
        except BaseException as err:
            said = type(err).__name__
        os.write(w, said.encode())
        os._exit(0)
    os.close(w)
    said = b""
    while part := os.read(r, 4096):
        said += part
    os.close(r)
    _, status, used = os.wait3(0)
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "signal": signal, "raised": said.decode()}), flush=True)
