# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Runs a user's Python function once for each input, inside a sandbox.

1. The node's side sends frames on one inherited stream socket, descriptor 3: u32 length of a JSON header, u32 length
   of a payload, both big-endian, header, payload. Operations: load, run, cancel, stop; answers: ready, log, result.
2. load imports the user's code, once. What it prints is the first input's log.
3. run forks a child: fresh module state, its own session, pipes for what it prints and what it returns. If the import
   left threads or a GPU open, a fork would be unsafe and the child is a new interpreter (`runner.py --once`).
4. This process relays, keeps time, kills and reports. It runs the import and nothing else of the user's; it has no
   thread and never blocks. A child has no descriptor of the socket, so it can speak for its own input only.

A frame that breaks the rules ends the process with exit code 70. Needs Python 3.9; cloudpickle is used if it is there.
"""
import io
import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from gridbeam_runner import calls, frames, parent  # noqa: E402

sys.path.remove(HERE)

CONTROL_FD = 3


def own_streams():
    """stdout and stderr that pass on each write at once: the descriptors below them are pipes."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(fd, "wb", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        stream.mode = "w"
        setattr(sys, name, stream)
        setattr(sys, "__%s__" % name, stream)


def fresh_main():
    """Gives user code an empty __main__: the runner's names are none of its business, nor multiprocessing's."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    return own


def main():
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0, inheritable=True)
    if null > 2:
        os.close(null)
    own_streams()
    own_module = fresh_main()  # noqa: F841, the functions here need it
    if sys.argv[1:2] == ["--once"]:
        return calls.once(int(sys.argv[2]), int(sys.argv[3]))
    console = os.dup(2)
    runner = parent.Runner(os.dup(CONTROL_FD), console)
    os.close(CONTROL_FD)
    try:
        return runner.serve()
    except frames.BadFrame as err:
        runner.abandon()
        frames.write_all(console, ("gridbeam runner: bad frame: %s\n" % err).encode("utf-8", "backslashreplace"))
        return parent.BAD_FRAME_EXIT


if __name__ == "__main__":
    os._exit(main())
