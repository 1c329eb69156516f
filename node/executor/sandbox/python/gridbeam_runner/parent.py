# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""The process that imports the user's code and starts, relays, times and ends its children."""
import _socket  # what is below socket: its enumerations take a millisecond of each start
import collections
import gc
import json
import os
import select
import signal
import struct
import sys
import time

from gridbeam_runner import calls
from gridbeam_runner.calls import EXIT_CANNOT_LOAD, EXIT_ERROR, MAX_RESULT, Code, explain, fit
from gridbeam_runner.frames import MAX_HEADER, MAX_PAYLOAD, BadFrame, field, lock_file, pack, scratch_file, unpack, write_all

EXIT_CANCELLED, EXIT_TIMEOUT, EXIT_KILLED = 3, 4, -9
BAD_FRAME_EXIT = 70

LOAD_LOG = 64 << 10  # of each stream that is kept of what an import prints
RELAY = 64 << 10  # read from a pipe at a time, and a log frame's largest payload
LOGS_WAIT = 1 << 20  # bytes on their way out above which what children print stays in their pipes
RUNS_WAIT = 32 << 20  # the same above which no further input starts
INPUTS_WAIT = 64 << 20  # bytes of queued arguments above which no more frames are read
LAST_WORDS = 1 << 20  # read at most of each stream once a child has ended: more than a pipe holds
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
LINGER = 5.0  # seconds a child may stay once it has handed over its result
HEARTBEAT = 0.25  # seconds between two looks at children, should a SIGCHLD be lost


class Run:
    """One input on its way: queued, then a process with two pipes for what it prints and a socket for its result.

    A pipe can be opened again by who may look into /proc/PID/fd, a socket by nobody.
    """

    def __init__(self, header, payload):
        self.header, self.payload = header, payload
        self.index = field(header, "input", int)
        self.timeout = field(header, "timeout_ms", int, 0) / 1000
        if field(header, "encoding", str) not in ("pickle", "json"):
            raise BadFrame("run has encoding=%r" % header["encoding"])
        self.pid = 0
        self.logs = {}  # descriptor -> 1 or 2
        self.result_fd = -1
        self.result = bytearray()
        self.whole = False  # the result is all there
        self.why = None  # why it is being ended: timeout or cancelled
        self.deadline = self.kill_at = None
        self.started = 0.0


class Hunger:
    """Who dies first when memory is short: children before this process. A child inherits what this process has at the fork,
    for it may not write its own: the file belongs to root once calls.close_door is done."""

    def __init__(self):
        try:
            self.fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
            own = int(os.read(self.fd, 16))
        except (OSError, ValueError):
            self.fd = os.open("/dev/null", os.O_RDWR)
            own = 0
        self.own, self.child = b"%d" % own, b"%d" % max(500, min(1000, own + 200))

    def set(self, score):
        try:
            os.write(self.fd, score)
        except OSError:
            pass


class Runner:
    def __init__(self, control, console):
        self.control, self.console = control, console
        self.inbox = bytearray()
        self.outbox, self.outbox_bytes = collections.deque(), 0
        self.queue, self.queued_bytes = collections.deque(), 0
        self.running = {}  # input -> Run
        self.code = self.load_error = self.load_spec = None
        self.load_log = []
        self.workers, self.fork = 1, True
        self.stopping = self.told_to_stop = False
        self.wake, self.waker = os.pipe()
        self.hunger = Hunger()
        for fd in (control, self.wake, self.waker):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    # -- the loop --

    def serve(self):
        """Returns the exit code once the socket is closed or a stop has been obeyed."""
        self.listen_for_children()
        while True:
            if self.told_to_stop and not self.stopping:
                self.stop()
            self.start_queued()
            if self.stopping and not self.running and not self.queue and not self.outbox:
                return 0
            for fd, events in self.wait():
                if fd == self.control:
                    if events & select.POLLOUT:
                        self.send()
                    if events & ~select.POLLOUT and not self.receive():
                        return self.abandon()
                elif fd == self.wake:
                    self.swallow(fd)
                else:
                    self.read_pipe(fd)
            self.keep_time(time.monotonic())
            for run in list(self.running.values()):
                self.reap(run)
            if self.outbox:
                self.send()

    def listen_for_children(self):
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told_to_stop", True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)

    def wait(self):
        poll = select.poll()
        events = select.POLLIN if self.queued_bytes < INPUTS_WAIT else 0
        poll.register(self.control, events | (select.POLLOUT if self.outbox else 0))
        poll.register(self.wake, select.POLLIN)
        for run in self.running.values():
            if run.result_fd >= 0:
                poll.register(run.result_fd, select.POLLIN)
            if self.outbox_bytes < LOGS_WAIT:
                for fd in run.logs:
                    poll.register(fd, select.POLLIN)
        timeout = None
        if self.running:
            now = time.monotonic()
            timeout = HEARTBEAT
            for run in self.running.values():
                for at in (run.deadline, run.kill_at):
                    if at is not None:
                        timeout = min(timeout, max(0.0, at - now))
            timeout = int(timeout * 1000) + 1
        return poll.poll(timeout)

    def swallow(self, fd):
        try:
            while os.read(fd, 4096):
                pass
        except BlockingIOError:
            pass

    # -- the socket --

    def receive(self):
        """Takes what the socket has; False once it is closed."""
        try:
            data = os.read(self.control, 1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self.inbox += data
        while True:
            frame = unpack(self.inbox)
            if frame is None:
                return True
            self.obey(*frame)

    def emit(self, header, payload=b""):
        for part in (pack(header, payload), payload):
            if part:
                self.outbox.append(memoryview(part))
                self.outbox_bytes += len(part)

    def send(self):
        try:
            while self.outbox:
                sent = os.writev(self.control, [self.outbox[i] for i in range(min(16, len(self.outbox)))])
                self.outbox_bytes -= sent
                while sent:
                    first = self.outbox[0]
                    if len(first) > sent:
                        self.outbox[0] = first[sent:]
                        break
                    sent -= len(first)
                    self.outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:  # closed: the next read says so
            self.outbox.clear()
            self.outbox_bytes = 0

    def obey(self, header, payload):
        op = header.get("op")
        if op == "load" and self.load_spec is None:
            self.load(header)
        elif op == "run" and self.load_spec is not None:
            self.enqueue(Run(header, payload))
        elif op == "cancel":
            self.cancel(field(header, "input", int), field(header, "grace_ms", int, 0) / 1000)
        elif op == "stop":
            self.stop()
        else:
            raise BadFrame("op %r, out of its place" % (op,))

    # -- load --

    def load(self, spec):
        self.load_spec = spec
        self.workers = max(1, field(spec, "workers", int, 1))
        self.fork = field(spec, "fork", bool, True)
        for name in ("handler", "code"):
            field(spec, name, str)
        if not all(isinstance(v, str) for v in field(spec, "env", dict, {}).values()):
            raise BadFrame("load has an env value that is no text")
        began = time.monotonic()
        ready = {"op": "ready", "python": "%d.%d.%d" % sys.version_info[:3]}
        ready["cloudpickle"] = getattr(calls.cloudpickle, "__version__", "")
        prints = self.divert()
        try:
            self.code = Code(spec)
        except BadFrame:
            raise
        except BaseException as err:
            self.load_error = fit(explain(err, spec["code"]))
            ready["error"] = {"type": type(err).__name__, "text": self.load_error}
        self.restore(prints)
        self.listen_for_children()  # an import may have taken them over
        if self.code is not None:
            self.settle()
        calls.close_door()  # inputs come now, and an import may have opened it
        ready["import_ms"] = int((time.monotonic() - began) * 1000)
        self.emit(ready)

    def divert(self):
        """Lets what the import prints go into two files, kept for the first input's log."""
        files = [scratch_file("stdout"), scratch_file("stderr")]
        for fd, file in enumerate(files, 1):
            os.dup2(file, fd, inheritable=True)
        return files

    def restore(self, files):
        for file in (sys.stdout, sys.stderr):
            try:
                file.flush()
            except Exception:
                pass
        null = os.open("/dev/null", os.O_RDWR)
        for fd, file in enumerate(files, 1):
            os.dup2(null, fd, inheritable=True)
            os.lseek(file, 0, os.SEEK_SET)
            text = os.read(file, LOAD_LOG)
            if text:
                self.load_log.append((fd, text))
            os.close(file)
        os.close(null)

    def settle(self):
        """Leaves as little as possible for children to copy, and nothing half written."""
        self.fork = self.fork and calls.fork_is_safe()
        gc.collect()
        calls.IMPORTED_FILES.extend(calls.open_files())
        calls.flush(calls.IMPORTED_FILES)
        gc.freeze()

    # -- inputs --

    def enqueue(self, run):
        if run.index in self.running or any(q.index == run.index for q in self.queue):
            raise BadFrame("run of input %d, which is on its way" % run.index)
        if self.stopping:
            self.report(run, {"reason": "cancelled", "exit": EXIT_CANCELLED})
        elif self.load_error is not None:
            self.report(run, {"reason": "exit_nonzero", "exit": EXIT_CANNOT_LOAD, "text": self.load_error})
        else:
            self.queue.append(run)
            self.queued_bytes += len(run.payload)

    def start_queued(self):
        while self.queue and len(self.running) < self.workers and self.outbox_bytes < RUNS_WAIT:
            run = self.queue.popleft()
            self.queued_bytes -= len(run.payload)
            try:
                self.start(run)
            except OSError as err:  # no process or descriptor left
                self.close_pipes(run)
                self.report(run, {"reason": "exit_nonzero", "exit": EXIT_ERROR, "text": "no process can be started: %s\n" % err})

    def start(self, run):
        ends = []
        try:
            for stream in (1, 2, 0):
                mine, theirs = os.pipe() if stream else (s.detach() for s in _socket.socketpair(_socket.AF_UNIX))
                ends.append(theirs)
                os.set_blocking(mine, False)
                if stream:
                    run.logs[mine] = stream
                else:
                    run.result_fd = mine
            run.started = time.monotonic()
            self.running[run.index] = run
            for stream, text in self.load_log:
                self.emit({"op": "log", "input": run.index, "stream": stream}, text)
            self.load_log = []
            self.hunger.set(self.hunger.child)
            run.pid = self.forked(run, *ends) if self.fork else self.spawned(run, *ends)
        except OSError:
            self.running.pop(run.index, None)
            raise
        finally:
            self.hunger.set(self.hunger.own)
            for fd in ends:
                os.close(fd)
        run.payload = b""
        if run.timeout > 0:
            run.deadline = run.started + run.timeout

    def forked(self, run, out, err, result):
        pid = os.fork()
        if pid:
            return pid
        try:  # in the child, which never returns
            calls.become_child(run.header)
            os.dup2(out, 1, inheritable=True)
            os.dup2(err, 2, inheritable=True)
            mine = [self.control, self.console, self.wake, self.waker, self.hunger.fd, out, err]
            for other in self.running.values():
                mine += [*other.logs, other.result_fd]
            for fd in mine:
                if fd > 2:
                    os.close(fd)
            self.outbox.clear()
            self.queue.clear()
            code, header, payload, run.payload = self.code, run.header, run.payload, b""
            calls.child(code, header, payload, result)
        finally:
            os._exit(BAD_FRAME_EXIT)

    def spawned(self, run, out, err, result):
        request = scratch_file("request")
        try:
            for header, payload in ((self.load_spec, b""), (run.header, run.payload)):
                write_all(request, pack(header, payload), payload)
            os.lseek(request, 0, os.SEEK_SET)
            lock_file(request)  # the new process can be looked into until it has closed its door
            flags = ["-I"] if sys.flags.isolated else []
            flags += ["-S"] if sys.flags.no_site else []
            argv = [sys.executable, *flags, os.path.join(calls.HERE, "runner.py"), "--once", str(request), str(result)]
            os.set_inheritable(request, True)
            os.set_inheritable(result, True)
            actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
            return os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
        finally:
            os.close(request)

    def read_pipe(self, fd):
        for run in self.running.values():
            if fd in run.logs:
                return self.relay(run, fd, RELAY)
            if fd == run.result_fd:
                return self.collect(run)
        return None

    def relay(self, run, fd, limit):
        """Passes on at most limit bytes of what a child printed, and forgets a pipe that is closed."""
        while limit > 0:
            try:
                data = os.read(fd, min(limit, RELAY))
            except BlockingIOError:
                return
            if not data:
                os.close(fd)
                del run.logs[fd]
                return
            limit -= len(data)
            self.emit({"op": "log", "input": run.index, "stream": run.logs[fd]}, data)

    def collect(self, run):
        """Takes what there is of a child's result; one that is too long is not taken."""
        try:
            while True:
                data = os.read(run.result_fd, 1 << 20)
                run.result += data
                if not data or len(run.result) > MAX_PAYLOAD + MAX_HEADER:
                    break
        except BlockingIOError:
            pass
        else:
            os.close(run.result_fd)
            run.result_fd = -1
        if not run.whole and len(run.result) >= 8:
            head, body = struct.unpack_from(">II", run.result)
            if len(run.result) == 8 + head + body:
                run.whole = True
                run.deadline = None
                if run.why is None:
                    run.kill_at = time.monotonic() + LINGER

    # -- endings --

    def keep_time(self, now):
        for run in list(self.running.values()):
            if run.deadline is not None and now >= run.deadline:
                self.end(run, "timeout", GRACE, now)
            if run.kill_at is not None and now >= run.kill_at:
                self.kill(run, signal.SIGKILL)
                run.kill_at = now + 1

    def end(self, run, why, grace, now):
        """Asks a child to end and sees to it. Who has handed over a result keeps it."""
        run.deadline = None
        if run.whole:
            run.kill_at = min(now + grace, run.kill_at or now + grace)
        elif run.why is None:
            run.why = why
            run.kill_at = now + grace
            self.kill(run, signal.SIGTERM)

    def kill(self, run, sig):
        """Signals a child and all it started. Its number is its own until reap has waited for it."""
        try:
            os.killpg(run.pid, sig)
        except ProcessLookupError:
            try:
                os.kill(run.pid, sig)  # not yet the leader of its group
            except ProcessLookupError:
                pass
        except PermissionError:
            pass

    def cancel(self, index, grace):
        for run in self.queue:
            if run.index == index:
                self.queue.remove(run)
                self.queued_bytes -= len(run.payload)
                self.report(run, {"reason": "cancelled", "exit": EXIT_CANCELLED})
                return
        run = self.running.get(index)
        if run is not None:
            self.end(run, "cancelled", max(0.0, grace), time.monotonic())

    def stop(self):
        self.stopping = True
        for run in list(self.queue):
            self.cancel(run.index, 0)
        for run in list(self.running.values()):
            self.cancel(run.index, GRACE)

    def abandon(self):
        """The other side is gone: nobody wants what is still running."""
        for run in self.running.values():
            self.kill(run, signal.SIGKILL)
        return 0

    def reap(self, run):
        if os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        self.kill(run, signal.SIGKILL)  # what it left behind, while its number is still taken
        _, status, usage = os.wait4(run.pid, 0)
        for fd in list(run.logs):
            self.relay(run, fd, LAST_WORDS)
        if run.result_fd >= 0:
            self.collect(run)
        self.close_pipes(run)
        del self.running[run.index]
        header, payload = self.verdict(run, status)
        header["run_us"] = int((time.monotonic() - run.started) * 1e6)
        header["cpu_ms"] = int((usage.ru_utime + usage.ru_stime) * 1000)
        header["memory_bytes"] = usage.ru_maxrss * 1024
        self.report(run, header, payload)

    def close_pipes(self, run):
        for fd in (*run.logs, run.result_fd):
            if fd >= 0:
                os.close(fd)
        run.logs, run.result_fd = {}, -1

    def verdict(self, run, status):
        """How an input ended; the first cause counts. What a child says of itself is checked."""
        if run.why == "timeout":
            return {"reason": "timeout", "exit": EXIT_TIMEOUT, "text": "it ran longer than %g s\n" % run.timeout}, b""
        if run.why == "cancelled":
            return {"reason": "cancelled", "exit": EXIT_CANCELLED}, b""
        if run.whole:
            try:
                header, payload = unpack(run.result)
                return said(header, payload), payload
            except BadFrame:
                pass
        if os.WIFSIGNALED(status):
            sig = os.WTERMSIG(status)
            text = "the process was killed by %s\n" % (signal.Signals(sig).name if sig in SIGNALS else "signal %d" % sig)
            return {"reason": "signal", "exit": EXIT_KILLED, "text": text}, b""
        text = "the process ended with exit code %d before the function returned\n" % os.WEXITSTATUS(status)
        return {"reason": "exit_nonzero", "exit": EXIT_ERROR, "text": text}, b""

    def report(self, run, header, payload=b""):
        header = {"op": "result", "input": run.index, "run_us": 0, "cpu_ms": 0, "memory_bytes": 0, **header}
        self.emit(header, payload)


SIGNALS = {int(s) for s in signal.Signals}


def said(header, payload):
    """A child's own header, rebuilt of what it may say; BadFrame if it says anything else."""
    reason = header.get("reason")
    if reason == "done" and header.get("encoding") in ("pickle", "json") and len(payload) <= MAX_RESULT:
        return {"reason": "done", "exit": 0, "encoding": header["encoding"]}
    if reason in ("exit_nonzero", "oom") and header.get("exit") in (EXIT_ERROR, EXIT_CANNOT_LOAD) and not payload:
        return {"reason": reason, "exit": header["exit"], "text": fit(field(header, "text", str))}
    raise BadFrame("a child's result")
