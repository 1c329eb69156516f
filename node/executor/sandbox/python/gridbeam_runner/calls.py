# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""The user's code and one call of it: all that runs in a child."""
import _signal  # what is below signal: its signal makes enumerations, which takes 0.1 ms of each child
import atexit
import gc
import io
import json
import os
import pickle
import signal
import sys
import traceback
import types

from gridbeam_runner.frames import field, pack, unpack, write_all

try:
    import cloudpickle
except ImportError:
    cloudpickle = None

MAX_RESULT = 15 << 20  # of what a function returns; Beam's clients take messages of 16 MiB
MAX_TEXT = 60 << 10  # of a traceback, written as JSON

EXIT_ERROR, EXIT_CANNOT_LOAD = 1, 2

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHIM = os.path.join(HERE, "shim")


# ---- what the user is told of an exception ----


def fit(text):
    """Text that is valid UTF-8 and at most MAX_TEXT bytes as JSON: the middle goes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT // 3] + "\n[...]\n" + text[-MAX_TEXT // 3 :]
    while len(json.dumps(text, ensure_ascii=False).encode()) > MAX_TEXT:
        third = len(text) // 3
        text = text[:third] + "\n[...]\n" + text[-third:]
    return text


def ours(filename):
    return filename.startswith((HERE + "/", "<frozen importlib"))


def tidy(te, root, seen):
    """Takes the runner's frames out of a TracebackException and names files from the code directory on."""
    if te is None or id(te) in seen:
        return
    seen.add(id(te))
    if te.stack is not None:
        kept = []
        for frame in te.stack:
            if not ours(frame.filename):
                frame.line  # read while the name is still the file's
                frame.filename = relative(frame.filename, root)
                kept.append(frame)
        te.stack[:] = kept
        if not kept:
            te.stack = None
    if getattr(te, "filename", None):  # of a SyntaxError
        te.filename = relative(te.filename, root)
    tidy(te.__cause__, root, seen)
    tidy(te.__context__, root, seen)
    for sub in getattr(te, "exceptions", None) or ():
        tidy(sub, root, seen)


def relative(filename, root):
    return filename[len(root) + 1 :] if filename.startswith(root + "/") else filename


def explain(exc, root):
    """The traceback as its user would see it at home."""
    try:
        te = traceback.TracebackException(type(exc), exc, exc.__traceback__)
        tidy(te, root, set())
        return "".join(te.format())
    except BaseException:  # a hostile __str__, or no memory
        return "%s (it cannot be shown)\n" % type(exc).__name__


# ---- the code ----


class Code:
    """The function that a stub names, imported and ready to be called."""

    def __init__(self, spec):
        self.root = field(spec, "code", str)
        self.env = field(spec, "env", dict, {})
        os.environ.update(self.env)
        os.environ.setdefault("HANDLER", field(spec, "handler", str))
        os.environ.setdefault("PYTHON_VERSION", "python%d.%d" % sys.version_info[:2])
        os.chdir(self.root)
        for path in (SHIM, self.root):
            if path in sys.path:
                sys.path.remove(path)
            sys.path.insert(0, path)
        sys.argv = [self.root]
        os.environ["BETA9_IMPORTING_USER_CODE"] = "true"  # a stub that is called meanwhile does nothing
        try:
            self.func = self.resolve(field(spec, "handler", str))
            start = field(spec, "on_start", str, "")
            start = self.resolve(start) if start else None
        finally:
            del os.environ["BETA9_IMPORTING_USER_CODE"]
        self.wants_context = self.inspect()
        self.on_start_value = finish(start()) if start else None

    def resolve(self, handler):
        module, _, name = handler.rpartition(":")
        if module.endswith(".pkl"):
            with open(os.path.join(self.root, module), "rb") as f:
                func = (cloudpickle or pickle).load(f)
        else:
            func = getattr(__import__(module, fromlist=["_"]), name)
        if getattr(type(func), "_gridbeam_stub", False):
            func = func.func
        if not callable(func):
            raise TypeError("%s is a %s and cannot be called" % (handler, type(func).__name__))
        return func

    def inspect(self):
        """Whether the function has a parameter named context, which Beam's runner fills."""
        import inspect

        if inspect.iscoroutinefunction(self.func):
            import asyncio  # noqa: F401, here rather than in each child
        try:
            return "context" in inspect.signature(self.func).parameters
        except (TypeError, ValueError):
            return False

    def call(self, args, kwargs, run):
        kwargs.pop("callback_url", None)  # the bridge's, as with Beam's runner
        if self.wants_context:
            kwargs["context"] = self.context(run)
        return finish(self.func(*args, **kwargs))

    def context(self, run):
        env = os.environ.get
        return types.SimpleNamespace(
            container_id=env("CONTAINER_ID"), stub_id=env("STUB_ID"), stub_type=env("STUB_TYPE"),
            callback_url=env("CALLBACK_URL"), task_id=run.get("task"), timeout=run.get("timeout_ms", 0) // 1000,
            on_start_value=self.on_start_value, bind_port=int(env("BIND_PORT") or 0),
            python_version=env("PYTHON_VERSION"),
        )


def finish(value):
    """What a coroutine returns in the end; any other value as it is."""
    if isinstance(value, types.CoroutineType):
        import asyncio

        return asyncio.run(value)
    return value


def fork_is_safe():
    """Whether this process has one thread and no GPU open.

    Libraries such as OpenBLAS end their threads before a fork and start them anew when they need them. A fork that does nothing
    tells them apart from threads that would be missing in a child.
    """
    try:
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink("/proc/self/fd/" + fd).startswith(("/dev/nvidia", "/dev/dri", "/dev/kfd")):
                    return False
            except OSError:
                pass
        if len(os.listdir("/proc/self/task")) == 1:
            return True
        if "threading" in sys.modules and sys.modules["threading"].active_count() > 1:
            return False
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


# ---- a child ----


def invoke(code, run, payload):
    """Calls the function with one input's arguments; returns the result's header and payload."""
    try:
        args, kwargs = arguments(run["encoding"], payload)
    except BaseException as err:
        return failure(code, err, "the arguments cannot be read\n")
    del payload
    try:
        value = code.call(args, kwargs, run)
    except SystemExit as err:
        if err.code is not None and err.code != 0:
            return failure(code, err, "")
        value = None
    except BaseException as err:
        return failure(code, err, "")
    try:
        return outcome(run["encoding"], value)
    except BaseException as err:
        return failure(code, err, "the result cannot be sent back: return plain data\n")


def arguments(encoding, payload):
    call = json.loads(payload) if encoding == "json" else (cloudpickle or pickle).loads(payload)
    args, kwargs = call.get("args") or (), call.get("kwargs") or {}
    return list(args), dict(kwargs)


def outcome(encoding, value):
    body = None
    if encoding == "json" and not (isinstance(value, dict) and "base64" in value):
        try:
            body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            encoding = "pickle"
    if body is None:
        encoding, body = "pickle", (cloudpickle or pickle).dumps(value)
    if len(body) > MAX_RESULT:
        text = "the result has %d bytes, at most %d are sent: write it to a volume\n" % (len(body), MAX_RESULT)
        return {"reason": "exit_nonzero", "exit": EXIT_ERROR, "text": text}, b""
    return {"reason": "done", "exit": 0, "encoding": encoding}, body


def failure(code, err, before):
    reason = "oom" if isinstance(err, MemoryError) else "exit_nonzero"
    return {"reason": reason, "exit": EXIT_ERROR, "text": fit(before + explain(err, code.root))}, b""


def child(code, run, payload, out):
    """Runs one input in this process, which ends with it."""
    pid = os.getpid()
    header, body = invoke(code, run, payload)
    if os.getpid() != pid:  # a process that the function forked came back from it
        os._exit(header["exit"])
    try:
        write_all(out, pack(header, body), body)
        os.close(out)
        leave()
    finally:
        os._exit(0)


def leave():
    """What a Python process does at its end, but for what was registered before the fork: that is the parent's."""
    flush(open_files())  # before a thread that hangs can prevent it
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # as multiprocessing's children do
    if atexit._ncallbacks():
        atexit._run_exitfuncs()
        flush(open_files())


def open_files():
    """File objects that may hold unwritten bytes: those of the import, which gc.freeze hides, and newer ones."""
    return IMPORTED_FILES + [o for o in gc.get_objects() if issubclass(type(o), io.IOBase)]


def flush(files):
    for file in files:
        try:
            file.flush()
        except Exception:  # closed, or the user's own class
            pass


IMPORTED_FILES = []


PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4  # linux/prctl.h


def close_door():
    """Takes /proc/PID/fd and /proc/PID/mem of this process from others of the same user: another input's code among them.

    What this process forks inherits it; a program that it starts does not, and has no descriptor that matters.
    """
    import _ctypes  # without ctypes, whose import takes milliseconds

    prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")
    _ctypes.call_function(prctl, (PR_SET_DUMPABLE, 0, 0, 0, 0))
    if _ctypes.call_function(prctl, (PR_GET_DUMPABLE, 0, 0, 0, 0)) != 0:
        raise OSError("this process cannot be closed to others")


def become_child(run):
    """Makes a fresh process the leader of its own session, without the parent's ways."""
    os.setsid()
    _signal.set_wakeup_fd(-1)
    for sig in (_signal.SIGCHLD, _signal.SIGTERM):
        _signal.signal(sig, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    for name, value in ("TASK_ID", run.get("task") or ""), ("GRIDBEAM_ATTEMPT", str(run.get("attempt", 0))):
        if os.environ.get(name) != value:
            os.environ[name] = value
    atexit._clear()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:  # Python reseeds its own generator in a child
        try:
            numpy_random.seed()
        except Exception:
            pass


def once(request, result):
    """A child that is an interpreter of its own: reads a load and a run, answers with the result."""
    close_door()
    for fd in (request, result):
        os.set_inheritable(fd, False)
    buffer = bytearray()
    while True:
        data = os.read(request, 1 << 20)
        if not data:
            break
        buffer += data
    os.close(request)
    spec, _ = unpack(buffer)
    run, payload = unpack(buffer)
    become_child(run)
    try:
        code = Code(spec)
    except BaseException as err:
        header = {"reason": "exit_nonzero", "exit": EXIT_CANNOT_LOAD, "text": fit(explain(err, spec["code"]))}
        write_all(result, pack(header))
        os._exit(0)
    child(code, run, payload, result)
