# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Drives runner.py over a socket pair, as the sandbox does."""
import json
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCH = "import os, sys; fd = int(sys.argv[1]); fd == 3 or (os.dup2(fd, 3), os.close(fd)); os.execv(sys.argv[2], sys.argv[2:])"


class Runner:
    """A running runner.py and our end of its socket."""

    def __init__(self, code, handler, **load):
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(20)
        argv = [sys.executable, "-I", "-B", os.path.join(HERE, "runner.py")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(theirs.fileno()), *argv], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        )
        theirs.close()
        self.buffer = bytearray()
        if handler:
            self.send({"op": "load", "handler": handler, "on_start": "", "code": code, "workers": 1, "fork": True, "env": {}, **load})
            self.ready, _ = self.frame()

    def send(self, header, payload=b""):
        head = json.dumps(header).encode()
        self.ours.sendall(struct.pack(">II", len(head), len(payload)) + head + payload)

    def frame(self):
        head, body = struct.unpack(">II", self.take(8))
        return json.loads(self.take(head)), self.take(body)

    def take(self, n):
        while len(self.buffer) < n:
            data = self.ours.recv(1 << 20)
            if not data:
                raise EOFError
            self.buffer += data
        part = bytes(self.buffer[:n])
        del self.buffer[:n]
        return part

    def run(self, index, *args, **more):
        payload = more.pop("payload", None)
        if payload is None:
            payload = pickle.dumps({"args": args, "kwargs": more.pop("kwargs", {})})
        header = {"op": "run", "input": index, "task": "task-%d" % index, "encoding": "pickle", "timeout_ms": 10000, "attempt": 1}
        self.send({**header, **more}, payload)

    def result(self, index=None):
        """The next result, with what was logged for its input before it."""
        logs = {}
        while True:
            header, payload = self.frame()
            if header["op"] == "log":
                logs.setdefault((header["input"], header["stream"]), bytearray()).extend(payload)
                continue
            assert header["op"] == "result" and index in (None, header["input"]), header
            header["stdout"] = bytes(logs.get((header["input"], 1), b""))
            header["stderr"] = bytes(logs.get((header["input"], 2), b""))
            header["payload"] = payload
            if header["reason"] == "done":
                header["value"] = json.loads(payload) if header["encoding"] == "json" else pickle.loads(payload)
            return header

    def call(self, *args, **more):
        self.run(0, *args, **more)
        return self.result(0)

    def close(self):
        self.ours.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stderr.close()


class Case(unittest.TestCase):
    def setUp(self):
        self.code = os.path.realpath(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.code)

    def write(self, text, name="app.py"):
        with open(os.path.join(self.code, name), "w") as f:
            f.write(textwrap.dedent(text))

    def start(self, text="", handler="app:f", **load):
        if text:
            self.write(text)
        runner = Runner(self.code, handler, **load)
        self.addCleanup(runner.close)
        return runner

    def value(self, text, *args, **more):
        got = self.start(text).call(*args, **more)
        self.assertEqual(("done", 0), (got["reason"], got["exit"]), got.get("text"))
        return got["value"]

    def failed(self, text, reason="exit_nonzero", code=1, **more):
        got = self.start(text).call(**more)
        self.assertEqual((reason, code), (got["reason"], got["exit"]), got)
        return got.get("text", "")


class Calls(Case):
    def test_arguments_and_result_are_pickles(self):
        got = self.start("def f(a, b=2): return {'sum': a + b, 'set': {a}}").call(1, kwargs={"b": 5})
        self.assertEqual({"sum": 6, "set": {1}}, got["value"])
        self.assertEqual("pickle", got["encoding"])
        for name in ("run_us", "memory_bytes"):
            self.assertGreater(got[name], 0)

    def test_json_calls_answer_in_json_if_they_can(self):
        r = self.start("def f(x): return eval(x)")
        for text, encoding in (
            ("[1, 2.5, None, 'a']", "json"), ("{'a': (1,)}", "json"), ("{'base64': 'x'}", "pickle"), ("{1, 2}", "pickle"),
            ("float('nan')", "pickle"), ("b'x'", "pickle"), ("'\\ud800'", "json"),
        ):
            got = r.call(encoding="json", payload=json.dumps({"args": [text], "kwargs": {}}).encode())
            self.assertEqual(encoding, got["encoding"], text)
            if text != "float('nan')":
                self.assertEqual(json.loads(json.dumps(eval(text))) if encoding == "json" else eval(text), got["value"])

    def test_missing_arguments_are_none(self):
        r = self.start("def f(): return 1")
        self.assertEqual(1, r.call(encoding="json", payload=b"{}")["value"])
        self.assertEqual(1, r.call(payload=pickle.dumps({"args": None, "kwargs": None}))["value"])

    def test_each_input_meets_a_fresh_module(self):
        r = self.start("n = 0\ndef f():\n  global n\n  n += 1\n  return n")
        self.assertEqual([1, 1, 1], [r.call()["value"] for _ in range(3)])

    def test_random_differs_between_inputs(self):
        r = self.start("import random\ndef f(): return random.random()")
        self.assertNotEqual(r.call()["value"], r.call()["value"])

    def test_coroutines_are_awaited(self):
        self.assertEqual(3, self.value("import asyncio\nasync def f(x):\n  await asyncio.sleep(0)\n  return x + 1", 2))

    def test_environment_directory_and_path(self):
        r = self.start(
            """
            import os, sys
            def f(): return [os.environ[k] for k in ("CONTAINER_ID", "TASK_ID", "HANDLER")], os.getcwd(), sys.path[0], __name__
            """,
            env={"CONTAINER_ID": "c1"},
        )
        self.assertEqual((["c1", "task-0", "app:f"], self.code, self.code, "app"), r.call()["value"])

    def test_context_is_given_to_who_asks_for_it(self):
        r = self.start(
            "def start(): return 'model'\ndef f(x, context): return x, context.task_id, context.stub_id, context.on_start_value",
            on_start="app:start", env={"STUB_ID": "s"},
        )
        self.assertEqual((1, "task-0", "s", "model"), r.call(1)["value"])

    def test_on_start_runs_once(self):
        r = self.start("n = []\ndef start(): n.append(1)\ndef f(): return len(n)", on_start="app:start")
        self.assertEqual([1, 1], [r.call()["value"] for _ in range(2)])

    def test_pickled_functions(self):
        try:
            import cloudpickle
        except ImportError:
            self.skipTest("cloudpickle is not installed")
        k = 5
        with open(os.path.join(self.code, "f.pkl"), "wb") as f:
            cloudpickle.dump(lambda x: x + k, f)
        self.assertEqual(7, self.start(handler="f.pkl:f").call(2)["value"])

    def test_large_results_arrive_and_larger_ones_do_not(self):
        r = self.start("def f(n): return b'x' * n")
        self.assertEqual(15 << 20, len(r.call((15 << 20) - 100)["payload"]) + 100 - (len(pickle.dumps(b"x" * 70000)) - 70000))
        got = r.call(15 << 20)
        self.assertEqual(("exit_nonzero", 1), (got["reason"], got["exit"]))
        self.assertIn("write it to a volume", got["text"])
        self.assertEqual(1, len(r.call(1)["value"]))

    def test_a_process_forked_by_the_function_cannot_answer(self):
        self.assertEqual("parent", self.value("import os\ndef f():\n  return 'child' if os.fork() == 0 else (os.wait(), 'parent')[1]"))

    def test_files_left_open_are_written(self):
        self.value("log = open('log', 'w')\ndef f():\n  global new\n  new = open('new', 'w')\n  log.write('a'); new.write('b')")
        for name, text in (("log", "a"), ("new", "b")):
            with open(os.path.join(self.code, name)) as f:
                self.assertEqual(text, f.read())

    def test_threads_and_exit_handlers_of_the_call_end_first(self):
        got = self.start(
            """
            import atexit, threading, time
            atexit.register(print, "import")
            def work():
                time.sleep(0.2)
                print("worked")
            def f():
                atexit.register(print, "bye")
                threading.Thread(target=work).start()
            """
        ).call()
        self.assertEqual(b"worked\nbye\n", got["stdout"])

    def test_a_thread_pool_left_open_does_not_hold_the_result(self):
        self.assertEqual(4, self.value(
            "from concurrent.futures import ThreadPoolExecutor as P\ndef f():\n  global p\n  p = P(2)\n  return p.submit(lambda: 4).result()"))

    def test_multiprocessing_works_inside(self):
        self.assertEqual([1, 4], self.value("import multiprocessing as m\ndef sq(x): return x*x\ndef f():\n  with m.get_context('fork').Pool(2) as p: return p.map(sq, [1, 2])"))


class Failures(Case):
    def test_the_traceback_is_the_users_own(self):
        text = self.failed("def g():\n  raise ValueError('no')\n\ndef f():\n  g()\n")
        lines = [line for line in text.splitlines() if "^" not in line and "~" not in line]
        self.assertEqual([
            "Traceback (most recent call last):", '  File "app.py", line 5, in f', "    g()", '  File "app.py", line 2, in g',
            "    raise ValueError('no')", "ValueError: no"], lines)

    def test_causes_are_told(self):
        text = self.failed("def f():\n  try: {}['k']\n  except KeyError as e: raise RuntimeError('outer') from e")
        for part in ("KeyError: 'k'", "direct cause", "RuntimeError: outer"):
            self.assertIn(part, text)
        self.assertNotIn("calls.py", text)

    def test_endings(self):
        for body, reason, code, part in (
            ("import sys; sys.exit(3)", "exit_nonzero", 1, "SystemExit: 3"), ("import sys; sys.exit('why')", "exit_nonzero", 1, "why"),
            ("import os; os._exit(7)", "exit_nonzero", 1, "exit code 7"), ("import os; os._exit(0)", "exit_nonzero", 1, "exit code 0"),
            ("raise MemoryError", "oom", 1, "MemoryError"), ("import os; os.kill(os.getpid(), 9)", "signal", -9, "SIGKILL"),
            ("import os; os.abort()", "signal", -9, "SIGABRT"), ("return lambda: (yield)", None, 0, ""), ("return (x for x in [])", "exit_nonzero", 1, "plain data"),
            ("raise KeyboardInterrupt", "exit_nonzero", 1, "KeyboardInterrupt"), ("raise type('E', (Exception,), {'__str__': lambda s: 1/0})()", "exit_nonzero", 1, "E"),
            ("raise ValueError('\\ud800' + 'x' * 10**6)", "exit_nonzero", 1, "[...]"), ("raise ValueError('\\0' * 10**5)", "exit_nonzero", 1, "[...]"),
        ):
            with self.subTest(body):
                if reason:
                    self.assertIn(part, self.failed("def f():\n  " + body, reason, code))

    def test_exit_without_a_code_is_a_result(self):
        self.assertIsNone(self.value("import sys\ndef f(): sys.exit()"))

    def test_arguments_that_cannot_be_read(self):
        self.assertIn("arguments cannot be read", self.failed("def f(): pass", payload=b"\x80\x05cnowhere\nX\n."))
        self.assertIn("arguments cannot be read", self.failed("def f(): pass", payload=b"{", encoding="json"))

    def test_code_that_cannot_be_loaded(self):
        for text, kind, part in (
            ("import nowhere", "ModuleNotFoundError", "No module named 'nowhere'"), ("def f(:", "SyntaxError", 'File "app.py", line 1'),
            ("x = 1", "AttributeError", "'f'"), ("f = 3", "TypeError", "cannot be called"), ("import sys; sys.exit(1)", "SystemExit", "1"),
        ):
            with self.subTest(text):
                r = self.start(text)
                self.assertEqual(kind, r.ready["error"]["type"])
                self.assertIn(part, r.ready["error"]["text"])
                self.assertNotIn(HERE, r.ready["error"]["text"])
                got = r.call()
                self.assertEqual(("exit_nonzero", 2), (got["reason"], got["exit"]))
                shutil.rmtree(os.path.join(self.code, "__pycache__"), ignore_errors=True)


class Logs(Case):
    def test_all_that_is_printed_comes_before_the_result(self):
        got = self.start(
            "import os, sys\nprint('import')\ndef f():\n  print('out'); sys.stderr.write('err'); os.system('echo shell'); os.write(1, b'\\xff')"
        ).call()
        self.assertEqual((b"import\nout\nshell\n\xff", b"err"), (got["stdout"], got["stderr"]))

    def test_what_the_import_prints_is_told_once_and_bounded(self):
        r = self.start("print('x' * 10**6)\ndef f(): pass")
        self.assertEqual([64 << 10, 0], [len(r.call()["stdout"]) for _ in range(2)])

    def test_a_line_without_an_end_comes_at_once(self):
        r = self.start("import time\ndef f():\n  print('waiting', end='')\n  time.sleep(1)")
        r.run(0)
        began = time.monotonic()
        self.assertEqual(b"waiting", r.frame()[1])
        self.assertLess(time.monotonic() - began, 0.6)
        r.result()

    def test_who_reads_slowly_gets_all_and_the_runner_stays_small(self):
        r = self.start("def f():\n  for _ in range(64): print('x' * (1 << 20))\n  return 1")
        r.run(0)
        select.select([r.ours], [], [], 5)
        time.sleep(0.5)
        with open("/proc/%d/status" % r.process.pid) as f:
            rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
        self.assertLess(rss, 64 << 10)
        got = r.result()
        self.assertEqual((64 * ((1 << 20) + 1), 1), (len(got["stdout"]), got["value"]))


class Times(Case):
    def test_who_runs_too_long_is_ended_with_all_it_started(self):
        r = self.start(
            """
            import os, signal, subprocess, time
            def f():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
                time.sleep(60)
            """
        )
        began = time.monotonic()
        got = r.call(timeout_ms=300)
        self.assertEqual(("timeout", 4), (got["reason"], got["exit"]))
        self.assertIn("0.3 s", got["text"])
        self.assertTrue(2 < time.monotonic() - began < 5)
        self.assert_gone(int(got["stdout"]))

    def assert_gone(self, pid):
        for _ in range(100):
            try:
                with open("/proc/%d/stat" % pid) as f:
                    if f.read().rsplit(")", 1)[1].split()[0] == "Z":
                        return
            except FileNotFoundError:
                return
            time.sleep(0.02)
        self.fail("process %d is still there" % pid)

    def test_what_an_input_leaves_behind_is_killed(self):
        got = self.start("import subprocess\ndef f(): return subprocess.Popen(['sleep', '60']).pid").call()
        self.assert_gone(got["value"])

    def test_cancel(self):
        r = self.start("import time\ndef f(): time.sleep(60)")
        for i in range(3):
            r.run(i)
        for index, header in (
            (1, {"op": "cancel", "input": 1, "grace_ms": 100}), (0, {"op": "cancel", "input": 0, "grace_ms": 100}), (2, {"op": "stop"})
        ):
            r.send({"op": "cancel", "input": 9, "grace_ms": 0})  # nobody knows it
            r.send(header)
            got = r.result(index)
            self.assertEqual(("cancelled", 3), (got["reason"], got["exit"]))
        self.assertEqual(0, r.process.wait(10))

    def test_a_result_handed_over_is_kept_though_a_thread_hangs(self):
        r = self.start("import threading\ndef f():\n  threading.Thread(target=threading.Event().wait).start()\n  return 5")
        self.assertEqual(5, r.call(timeout_ms=1000)["value"])

    def test_so_many_at_a_time(self):
        r = self.start("import time\ndef f():\n  a = time.monotonic(); time.sleep(0.4); return a, time.monotonic()", workers=2)
        for i in range(4):
            r.run(i)
        spans = [r.result()["value"] for _ in range(4)]
        most = max(sum(a <= t < b for a, b in spans) for t, _ in spans)
        self.assertEqual(2, most)

    def test_when_the_socket_closes_all_ends(self):
        r = self.start("import os, time\ndef f():\n  print(os.getpid(), flush=True)\n  time.sleep(60)")
        r.run(0)
        pid = int(r.frame()[1])
        r.ours.close()
        self.assertEqual(0, r.process.wait(10))
        self.assert_gone(pid)


class Walls(Case):
    def test_a_child_has_no_way_to_the_socket(self):
        r = self.start(
            """
            import json, os, stat, struct
            def f():
                head = json.dumps({"op": "result", "input": 1, "reason": "done", "exit": 0, "encoding": "json"}).encode()
                sockets = []
                for fd in map(int, os.listdir("/proc/self/fd")):
                    try:
                        if stat.S_ISSOCK(os.fstat(fd).st_mode): sockets.append(fd)
                    except OSError: pass
                for fd in sockets: os.write(fd, struct.pack(">II", len(head), 1) + head + b"1")
                print(len(sockets))
                os._exit(0)
            """
        )
        got = r.call()  # of a frame for the runner's own socket no more than a child may say counts, and for itself alone
        self.assertEqual((b"1\n", "done", 1), (got["stdout"], got["reason"], got["value"]))

    FORGER = """
        import json, os, struct, threading, time
        if IMPORT_THREAD: threading.Thread(target=threading.Event().wait, daemon=True).start()
        def forged():
            head = json.dumps({"reason": "done", "exit": 0, "encoding": "json"}).encode()
            return struct.pack(">II", len(head), 8) + head + b'"forged"'
        def others(own, runner):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try: parent = open("/proc/%s/stat" % pid).read().rpartition(") ")[2].split()[1]
                except OSError: continue
                if pid == runner or parent == runner and pid != own: yield pid
        def attack(seconds):
            own, runner, until, opened = str(os.getpid()), str(os.getppid()), time.monotonic() + seconds, set()
            while time.monotonic() < until:
                for pid in others(own, runner):
                    for fd in range(3, 40):
                        path = "/proc/%s/fd/%d" % (pid, fd)
                        try: # never a file with a name: as root this could write to the Python that is being started
                            kind = os.readlink(path).split(":")[0]
                            if kind not in ("pipe", "/memfd"): continue
                            f = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                        except OSError: continue
                        try:
                            if os.readlink("/proc/self/fd/%d" % f).split(":")[0] in ("pipe", "/memfd"):
                                opened.add(kind)
                                os.write(f, forged())
                        except OSError: pass
                        finally: os.close(f)
            return sorted(opened)
        def f(what, n):
            if what == "attack": return attack(n)
            time.sleep(n)
            return "honest"
    """

    def forge(self, import_thread):
        r = self.start(self.FORGER.replace("IMPORT_THREAD", str(import_thread)), workers=2)
        r.run(0, "attack", 3)
        for n in range(1, 9):
            r.run(n, "sleep", 0.3)
        results = [r.result() for _ in range(9)]
        for got in results:
            if got["input"] > 0:
                self.assertEqual(("done", "honest"), (got["reason"], got.get("value")), got)
        return next(got for got in results if got["input"] == 0)["value"]

    def test_no_input_can_answer_for_another(self):
        opened = self.forge(False)
        if os.getuid():  # root may open what it likes
            self.assertEqual([], opened)

    def test_no_input_can_answer_for_one_in_a_new_process(self):
        self.forge(True)  # what the other prints it may reach until that has closed its door

    def test_rubbish_on_the_result_socket_fails_that_input_only(self):
        r = self.start(
            """
            import json, os, stat, struct
            def frame(h, p=b""): h = json.dumps(h).encode(); return struct.pack(">II", len(h), len(p)) + h + p
            def f(kind):
                bad = {"big": b"\\xff" * 64, "list": frame([1]), "done": frame({"reason": "done", "exit": 0, "encoding": "gif"}),
                       "timeout": frame({"reason": "timeout", "exit": 4}), "text": frame({"reason": "oom", "exit": 1, "text": 5}),
                       "other": frame({"op": "result", "input": 1, "reason": "done", "exit": 0, "encoding": "json"}, b"1") + b"x"}[kind]
                for fd in range(3, 64):
                    try:
                        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, bad)
                    except OSError: pass
                os._exit(0)
            def g(): return 1
            """
        )
        for kind in ("big", "list", "done", "timeout", "text", "other"):
            got = r.call(kind)
            self.assertEqual(("exit_nonzero", 1), (got["reason"], got["exit"]), kind)

    def test_bad_frames_end_the_runner(self):
        load = {"op": "load", "handler": "app:f", "code": self.code}
        self.write("def f(): pass")
        for name, b in {
            "no json": struct.pack(">II", 1, 0) + b"x", "no object": struct.pack(">II", 2, 0) + b"[]", "long header": struct.pack(">II", 1 << 20, 0),
            "long payload": struct.pack(">II", 2, 1 << 30), "no op": {}, "unknown op": {"op": "x"}, "run before load": {"op": "run", "input": 0, "encoding": "json"},
            "load twice": [load, load], "no input": [load, {"op": "run"}], "encoding": [load, {"op": "run", "input": 0, "encoding": "xml"}],
            "twice": [load] + [{"op": "run", "input": 0, "encoding": "json"}] * 2, "no handler": {"op": "load", "code": "/"},
            "env": {**load, "env": {"A": 1}},
        }.items():
            with self.subTest(name):
                r = self.start(handler=None)
                if isinstance(b, bytes):
                    r.ours.sendall(b)
                else:
                    for header in b if isinstance(b, list) else [b]:
                        r.send(header)
                self.assertEqual(70, r.process.wait(10))
                self.assertIn(b"bad frame", r.process.stderr.read())

    def test_threads_of_the_import_make_each_input_a_new_process(self):
        text = "import os, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('hi')\ndef f(x): return os.getppid(), x"
        r = self.start(text)
        r.call(0)
        got = r.call(7)
        self.assertEqual(((r.process.pid, 7), b"hi\n"), (got["value"], got["stdout"]))

    def test_no_fork_when_told_so(self):
        r = self.start("import os\npid = os.getpid()\ndef f(x):\n  assert x != 1, 'one'\n  return pid", fork=False)
        a, b = r.call(0)["value"], r.call(0)["value"]
        self.assertEqual(3, len({a, b, r.process.pid}))
        got = r.call(1)
        self.assertEqual("exit_nonzero", got["reason"])
        self.assertNotIn(HERE, got["text"])
        self.assertEqual("timeout", self.start("import time\ndef f(): time.sleep(60)", fork=False).call(timeout_ms=200)["reason"])


class Shim(Case):
    def test_decorated_functions_run_inline(self):
        for package in ("beta9", "beam"):
            self.assertEqual((3, 3, [2, 5], "double"), self.value(
                """
                from %s import function, Image, Volume, GpuType, PythonVersion, QueueDepthAutoscaler, TaskPolicy, env
                @function(gpu=GpuType.A100_40, image=Image(python_version=PythonVersion.Python311).add_python_packages(["x"]))
                def double(a, b=1): return a + b
                assert double(1) is None and list(double.map([1])) == [], "the import of the file makes no calls"
                @function(cpu=1, volumes=[Volume(name="v", mount_path="./v")], task_policy=TaskPolicy(max_retries=1))
                def f(): return double(1, 2), double.remote(2), list(double.map([1, (2, 3)])), double.__name__
                assert env.is_remote()
                """ % package))

    def test_what_needs_the_bridge_says_so_when_it_is_used(self):
        for use, name in (
            ("beta9.Map(name='m')['a']", "Map"), ("beta9.Queue(name='q').put(1)", "Queue.put"), ("beta9.Output.from_file(1)", "Output.from_file"),
            ("f.put(1)", "f.put"), ("len(beta9.Map(name='m'))", "Map"), ("beta9.Later().run()", "Later.run"), ("f.deploy(name='x')", "f.deploy"),
        ):
            text = self.failed("import beta9\n@beta9.task_queue(cpu=1)\ndef f(): return %s" % use)
            self.assertIn("NotAvailable: beta9.%s is not available on a node" % name, text)

    def test_other_names_can_be_imported(self):
        self.assertTrue(self.value(
            """
            from beta9 import experimental, schema, integrations, SandboxProcessError
            from beta9.abstractions.image import Image as A
            from beta9.type import GpuType as T
            from beam.env import is_local
            from beam.integrations import VLLM
            import beta9, beam
            class Input(schema.Schema):
                x = schema.String()
            def f():
                try: raise SandboxProcessError
                except Exception: pass
                return A is beam.Image and T("T4") is beta9.GpuType.T4 and T.T4 == "T4" and not is_local()
            """))


if __name__ == "__main__":
    unittest.main()
