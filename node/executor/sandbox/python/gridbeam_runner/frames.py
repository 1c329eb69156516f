# Copyright gridbeam contributors. SPDX-License-Identifier: Apache-2.0
"""Frames: how the two sides of a socket, or a child and its parent, talk."""
import json
import os
import struct

MAX_HEADER = 64 << 10
MAX_PAYLOAD = 16 << 20


ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once: json.dumps makes one each time


class BadFrame(Exception):
    """What came on the socket breaks the rules of frames."""


def pack(header, payload=b""):
    """The bytes of one frame but for its payload, which follows as it is."""
    head = ENCODE(header).encode("utf-8", "backslashreplace")
    return struct.pack(">II", len(head), len(payload)) + head


def unpack(buffer, limit=MAX_PAYLOAD):
    """The first frame of a bytearray as (header, payload), cut off it; None if it is not all there yet."""
    if len(buffer) < 8:
        return None
    head, body = struct.unpack_from(">II", buffer)
    if head > MAX_HEADER or body > limit:
        raise BadFrame("a frame of %d + %d bytes" % (head, body))
    if len(buffer) < 8 + head + body:
        return None
    try:
        header = json.loads(bytes(buffer[8 : 8 + head]))
    except (ValueError, RecursionError) as err:
        raise BadFrame("a header that is no JSON: %s" % err) from None
    if not isinstance(header, dict):
        raise BadFrame("a header that is no object")
    payload = bytes(memoryview(buffer)[8 + head : 8 + head + body])
    del buffer[: 8 + head + body]
    return header, payload


def field(header, name, kind, default=None):
    """A header's field of the given type; BadFrame if it is missing or of another."""
    value = header.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadFrame("%s has %s=%r" % (header.get("op"), name, value))
    return value


def write_all(fd, *parts):
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def scratch_file(name):
    """A file without a name in memory, or in /tmp where the kernel has none."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        path = "/tmp/.gridbeam-%s-%d" % (name, os.getpid())
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(path)
        return fd


def lock_file(fd):
    """Lets nobody change a file of scratch_file any more, whoever opens it again."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except OSError:  # one without seals, in /tmp
        pass
