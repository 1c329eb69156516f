# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""What a sandbox runs to prove itself: each test tries what must not be possible and tells how it went."""
import ctypes
import errno
import os
import platform
import signal
import socket

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {  # mount, unshare, ptrace
    "x86_64": (165, 272, 101),
    "aarch64": (40, 97, 117),
}


def refused(name, number, *args):
    """A system call has to be refused by the filter, whatever its arguments are worth."""
    ctypes.set_errno(0)
    got = LIBC.syscall(number, *args)
    err = ctypes.get_errno()
    if got != -1 or err != errno.EPERM:
        return "%s returned %d, errno %d" % (name, got, err)
    return ""


def canary(path):
    for there in (path, "/proc/1/root" + path, "/etc/shadow", "/root", "/home", "/proc/1/environ"):
        try:
            found = os.listdir(there) if os.path.isdir(there) else open(there, "rb").read(16)
        except OSError:
            continue
        if there == "/proc/1/environ":  # the first process inside is the sandbox's own
            continue
        return "read %s: %r" % (there, found)
    return ""


def loopback(port):
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", port)),
        (socket.AF_INET6, ("::1", port)),
        (socket.AF_UNIX, "\0gridbeam-probe-%d" % port),
    ):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as s:
                s.settimeout(1)
                s.connect(address)
                return "connected to %r" % (address,)
        except OSError:
            pass
    return ""


def calls():
    mount, unshare, ptrace = CALLS[platform.machine()]
    raw = ""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
        raw = "opened a raw socket"
    except OSError:
        pass
    return (
        refused("mount", mount, b"none", b"/tmp", b"tmpfs", 0, None)
        or refused("unshare", unshare, 0x10000000)
        or refused("ptrace", ptrace, 0, 0, 0, 0)
        or raw
    )


def user():
    with open("/proc/self/status") as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    if os.getuid() != 1000 or os.getgid() != 1000:
        return "uid %d, gid %d" % (os.getuid(), os.getgid())
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(status[name], 16):
            return "%s is %s" % (name, status[name])
    if status["NoNewPrivs"] != "1" or status["Seccomp"] != "2":
        return "NoNewPrivs %s, Seccomp %s" % (status["NoNewPrivs"], status["Seccomp"])
    return ""


def files():
    for path in ("/canary", "/usr/canary", "/etc/canary", "/run/gridbeam/python/canary", "/proc/sys/kernel/core_pattern"):
        try:
            open(path, "w").close()
            return "wrote %s" % path
        except OSError:
            pass
    with open("/tmp/here", "w") as f:
        f.write("x")
    with open("/mnt/code/here", "w") as f:
        f.write("x")
    return ""


def bomb(most):
    children = []
    try:
        while len(children) <= most:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
        return "forked %d processes, the limit is %d" % (len(children), most)
    except OSError:
        return ""
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def check(path, port, most):
    return {
        "hides the host's files": canary(path),
        "hides the host's sockets": loopback(port),
        "refuses system calls": calls(),
        "drops all rights": user(),
        "keeps the system read-only": files(),
        "bounds processes": bomb(most),
    }
