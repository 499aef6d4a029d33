"""A supervisor of system calls: it sees every file operation of a child process before the kernel does.

It uses seccomp's user notification (seccomp_unotify(2)): the child's calls wait until this process decides whether they
are made, fail with an error, do half of their work, or the child dies instead. It sees and changes system calls,
whichever library or thread makes them. Linux on x86-64.
"""

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# asm/unistd_64.h
NUMBERS = {
    "read": 0, "write": 1, "open": 2, "stat": 4, "fstat": 5, "lstat": 6, "ioctl": 16, "pread64": 17, "pwrite64": 18,
    "readv": 19, "writev": 20, "access": 21, "sendfile": 40, "flock": 73, "fsync": 74, "fdatasync": 75, "truncate": 76,
    "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "readlink": 89, "chmod": 90, "fchmod": 91, "statfs": 137, "getdents64": 217, "openat": 257, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267,
    "fchmodat": 268, "faccessat": 269, "preadv": 295, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
    "preadv2": 327, "pwritev2": 328, "statx": 332, "openat2": 437, "faccessat2": 439,
}  # fmt: skip
NAMES = {number: name for name, number in NUMBERS.items()}
# Where the paths of a call are: pairs of arguments, a folder's descriptor and a name.
PATHS: dict[str, list[tuple[int | None, int]]] = {}
for _name in ("open", "stat", "lstat", "access", "truncate", "mkdir", "rmdir", "creat", "unlink", "readlink", "chmod"):
    PATHS[_name] = [(None, 0)]
for _name in ("openat", "mkdirat", "newfstatat", "unlinkat", "readlinkat", "fchmodat", "faccessat", "statx", "openat2"):
    PATHS[_name] = [(0, 1)]
PATHS |= {"statfs": [(None, 0)], "faccessat2": [(0, 1)], "symlink": [(None, 1)], "symlinkat": [(1, 2)]}
PATHS |= {"rename": [(None, 0), (None, 1)], "link": [(None, 0), (None, 1)]}
PATHS |= {"renameat": [(0, 1), (2, 3)], "renameat2": [(0, 1), (2, 3)], "linkat": [(0, 1), (2, 3)]}
WRITING = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "ioctl"}

FICLONE = 0x40049409  # linux/fs.h

_SECCOMP, _PIDFD_OPEN, _PIDFD_GETFD = 317, 434, 438
_NEW_LISTENER, _USER_NOTIF, _ALLOW, _CONTINUE = 8, 0x7FC00000, 0x7FFF0000, 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV, _SEND
_X86_64 = 0xC000003E
_libc = ctypes.CDLL(None, use_errno=True)


def is_supported() -> bool:
    """Return whether this system can supervise a child; otherwise the tests say so and are skipped."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        return False
    child = os.fork()
    if child == 0:
        try:
            os.close(_install())
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


@dataclass(frozen=True)
class Call:
    """A file operation: the name of the system call, its arguments, and its paths."""

    number: int
    thread: int
    name: str
    arguments: tuple[int, ...]
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"#{self.number} {self.name}({', '.join(self.paths)})"


Decide = Callable[[Call], "int | str | None"]


@dataclass
class Supervised:
    """How a child ended: its status as from `os.waitstatus_to_exitcode`, and its operations."""

    status: int = 0
    calls: list[Call] = field(default_factory=list)
    unsynced: dict[int, str] = field(default_factory=dict)


def supervise(action: Callable[[], int], area: Path, decide: Decide) -> Supervised:
    """Run `action` in a child; ask `decide` about each of its operations on files below `area`, by number from 1.

    `decide` returns None to let it proceed, an error number, "short", or the name of a signal; SIGKILL comes instead of
    the call. Files that were written to and not synced are listed by inode.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            listener = _install()
            socket.send_fds(theirs, [b"x"], [listener])
            os.close(listener)
            os._exit(action())
        finally:
            os._exit(99)
    theirs.close()
    _, (listener, *_), *_ = socket.recv_fds(ours, 1, 1)
    ours.close()
    supervisor = _Supervisor(child, listener, area, decide)
    try:
        supervisor.run()
    finally:
        os.close(listener)
    supervisor.result.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return supervisor.result


def _install() -> int:
    """Install the filter in this process; return the descriptor for notifications of its calls."""
    numbers = sorted(NAMES)
    program = [struct.pack("HBBI", 0x20, 0, 0, 4), struct.pack("HBBI", 0x15, 0, len(numbers) + 1, _X86_64)]
    program.append(struct.pack("HBBI", 0x20, 0, 0, 0))
    program += [struct.pack("HBBI", 0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [struct.pack("HBBI", 0x06, 0, 0, _ALLOW), struct.pack("HBBI", 0x06, 0, 0, _USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    _libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    listener = int(_libc.syscall(_SECCOMP, 1, _NEW_LISTENER, header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


class _Supervisor:
    def __init__(self, child: int, listener: int, area: Path, decide: Decide) -> None:
        self.child, self.listener, self.decide = child, listener, decide
        self.area = str(area)
        self.result = Supervised()
        self.pidfd = int(_libc.syscall(_PIDFD_OPEN, child, 0))

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        try:
            while True:
                ((_, event),) = poll.poll()
                if not event & select.POLLIN:
                    return
                self._answer()
        finally:
            os.close(self.pidfd)

    def _answer(self) -> None:
        buffer = array.array("B", bytes(80))
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:  # the child died meanwhile
            return
        identifier, thread, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", buffer.tobytes())
        name = NAMES[number]
        paths = tuple(path for path in self._paths(thread, name, arguments) if self._is_inside(path))
        value, error, flags = 0, 0, _CONTINUE
        if paths:
            call = Call(len(self.result.calls) + 1, thread, name, tuple(arguments), paths)
            self.result.calls.append(call)
            value, error, flags = self._carry_out(call, self.decide(call))
        try:
            fcntl.ioctl(self.listener, _SEND, struct.pack("QqiI", identifier, value, error, flags))
        except OSError as failure:
            if failure.errno != errno.ENOENT:  # the child died meanwhile
                raise

    def _carry_out(self, call: Call, decision: int | str | None) -> tuple[int, int, int]:
        """Return the result of a call, its error, and whether the kernel makes it."""
        if isinstance(decision, int):
            return 0, -decision, 0
        if decision == "short":
            done = self._short(call)
            self._track(call)
            return (0, 0, _CONTINUE) if done is None else (done, 0, 0)
        if decision is not None:
            os.kill(self.child, getattr(signal, decision))
        if decision == "SIGKILL":
            return 0, -errno.EINTR, 0  # if the answer came before the signal, the kernel would make the call
        self._track(call)
        return 0, 0, _CONTINUE

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self.area + "/") or path == self.area

    def _paths(self, thread: int, name: str, arguments: list[int]) -> list[str]:
        try:
            if name in PATHS:
                return [self._path(thread, arguments, *place) for place in PATHS[name]]
            descriptors = arguments[0:3:2] if name == "copy_file_range" else arguments[:1]
            return [os.readlink(f"/proc/{thread}/fd/{descriptor}") for descriptor in descriptors]
        except OSError:
            return []

    def _path(self, thread: int, arguments: list[int], folder: int | None, name: int) -> str:
        text = os.fsdecode(self._read(thread, arguments[name], 4096).split(b"\0")[0])
        if os.path.isabs(text):
            return text
        descriptor = -100 if folder is None else ctypes.c_int(arguments[folder]).value
        base = os.readlink(f"/proc/{thread}/cwd" if descriptor == -100 else f"/proc/{thread}/fd/{descriptor}")
        return os.path.join(base, text) if text else base

    def _read(self, thread: int, address: int, count: int) -> bytes:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            try:
                return memory.read(count)
            except OSError:  # the end of the mapping
                memory.seek(address)
                return memory.read(4096 - address % 4096)

    def _write(self, thread: int, address: int, data: bytes) -> None:
        with open(f"/proc/{thread}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(data)

    def _descriptor(self, number: int) -> int:
        """Return a copy of one of the child's descriptors."""
        return int(_libc.syscall(_PIDFD_GETFD, self.pidfd, number, 0))

    def _short(self, call: Call) -> int | None:
        """Do half of what a call requests; None if it cannot be halved."""
        if call.name == "copy_file_range":
            return self._short_copy(call)
        if call.name not in {"read", "pread64", "preadv", "write", "pwrite64"}:
            return None
        number, address, count, offset = call.arguments[:4]
        if call.name == "preadv":
            address, count = struct.unpack("QQ", self._read(call.thread, address, 16))
        if count < 2:
            return None
        descriptor = self._descriptor(number)
        try:
            half = count // 2
            if call.name == "pwrite64":
                return os.pwrite(descriptor, self._read(call.thread, address, half), offset)
            if call.name == "write":
                return os.write(descriptor, self._read(call.thread, address, half))
            data = os.read(descriptor, half) if call.name == "read" else os.pread(descriptor, half, offset)
            self._write(call.thread, address, data)
            return len(data)
        finally:
            os.close(descriptor)

    def _short_copy(self, call: Call) -> int | None:
        source, target = self._descriptor(call.arguments[0]), self._descriptor(call.arguments[2])
        try:
            places = [call.arguments[1], call.arguments[3]]
            if not all(places):
                return None
            begin, end = (struct.unpack("q", self._read(call.thread, place, 8))[0] for place in places)
            half = min(call.arguments[4], os.fstat(source).st_size - begin) // 2
            if half < 1:
                return None
            done = os.copy_file_range(source, target, half, begin, end)
            for place, offset in zip(places, (begin, end), strict=True):
                self._write(call.thread, place, struct.pack("q", offset + done))
            return done
        finally:
            os.close(source)
            os.close(target)

    def _track(self, call: Call) -> None:
        """Keep track of files that are written to and not synced."""
        if call.name not in WRITING | {"copy_file_range", "fsync", "fdatasync"}:
            return
        if call.name == "ioctl" and call.arguments[1] != FICLONE:
            return
        number = call.arguments[2 if call.name == "copy_file_range" else 0]
        try:
            status = os.stat(f"/proc/{call.thread}/fd/{number}")
        except FileNotFoundError:  # the child is dying of a signal
            return
        if call.name in {"fsync", "fdatasync"}:
            self.result.unsynced.pop(status.st_ino, None)
        elif stat.S_ISREG(status.st_mode):
            self.result.unsynced[status.st_ino] = call.paths[-1]
