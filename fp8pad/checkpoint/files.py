"""Open files: exact reads and writes, the permissions of copies, and how to tell that a file was changed."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fp8pad.errors import CheckpointError, OutputError

Buffer: TypeAlias = bytes | memoryview
Advance: TypeAlias = Callable[[int], None]

BUFFER_BYTES = 1 << 20  # two of them fit into a core's cache
KERNEL_COPY_BYTES = 64 << 20  # small enough to report progress and stop soon, and below the kernel's 2 GiB
WRITE_BACK_BYTES = 32 << 20  # write-back is started each time this much was written


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What changes when a file is written to or replaced; `size` is in bytes."""

    size: int
    mtime_ns: int
    inode: int  # without the device, whose number differs between nodes that mount the same file system

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """Return the identity of a file from its status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    @classmethod
    def of_content(cls, size: int, digest: str) -> "FileIdentity":
        """Return the identity of a file from a hexadecimal digest of its bytes, independent of its location."""
        return cls(size, int(digest[:15], 16), 0)

    def is_that_of(self, found: "FileIdentity") -> bool:
        """Return whether a file that is found may be this one; without an inode, only its size is compared."""
        return self == found or (self.inode == 0 and self.size == found.size)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file descriptor and the name of its file, for messages."""

    descriptor: int
    file: str

    @property
    def identity(self) -> FileIdentity:
        """The identity of the open file, even if its path leads to another file by now."""
        return FileIdentity.of(os.fstat(self.descriptor))

    def copied_mode(self, group: int | None) -> int:
        """Return the permissions to create a copy with; see the function `copied_mode`."""
        return copied_mode(os.fstat(self.descriptor), group)

    def read(self, offset: int, num_bytes: int) -> memoryview:
        """Read exactly `num_bytes` bytes at `offset`; `CheckpointError` if the file ends early or cannot be read."""
        return self.read_into(offset, memoryview(bytearray(num_bytes)))

    def read_into(self, offset: int, buffer: memoryview) -> memoryview:
        """Fill `buffer` with the bytes at `offset`, and return it; raises as `read` does."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.file}: byte {offset + done}: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{self.file}: ends early: expected {len(buffer)} bytes at {offset}, got {done}")
            done += count
        return buffer

    def data_ranges(self, offset: int, num_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the offset and size of each stored part of these bytes; the rest are holes, which read as zeros.

        Bytes beyond the end of the file count as stored, so that reading them fails.
        """
        end = offset + num_bytes
        while offset < end:
            try:
                begin = min(os.lseek(self.descriptor, offset, os.SEEK_DATA), end)
                stop = min(os.lseek(self.descriptor, begin, os.SEEK_HOLE), end) if begin < end else end
            except OSError as error:  # ENXIO: a hole up to the file's end; else not supported
                begin, stop = end if error.errno == errno.ENXIO and self.identity.size >= end else offset, end
            if begin < stop:
                yield begin, stop - begin
            offset = stop

    def resize(self, num_bytes: int) -> None:
        """Set the file's final size, so that whatever is not written is a hole; `OutputError` if that fails."""
        with writing(self.file):
            os.ftruncate(self.descriptor, num_bytes)

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data` at `offset`; `OutputError` if that fails."""
        view = memoryview(data)
        with writing(self.file):
            while view:
                count = os.pwrite(self.descriptor, view, offset)
                view, offset = view[count:], offset + count

    def start_write_back(self, begin: int, end: int) -> None:
        """Start write-back of the bytes from `begin` to `end`, so that the sync at the end has less to wait for.

        It is only a hint: if it is ignored, the sync writes everything; if the disk fails, the sync reports it.
        """
        with suppress(OSError):  # starts write-back on Linux; Python has no sync_file_range
            os.posix_fadvise(self.descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def copied_mode(status: os.stat_result, group: int | None) -> int:
    """Return the permissions to create a copy of a file or folder with, before the umask is applied.

    They are those of the original. If the copy belongs to another `group`, the group and others get only what both have
    on the original, so that nothing private becomes readable by others; ACLs are ignored. The owner may always read and
    write, and others may never write.
    """
    owner = stat.S_IRWXU if stat.S_ISDIR(status.st_mode) else stat.S_IRUSR | stat.S_IWUSR
    mode = stat.S_IMODE(status.st_mode) & 0o775
    if group not in {None, status.st_gid}:
        both = mode & (mode >> 3) & stat.S_IRWXO
        mode = (both << 3) | both
    return mode | owner


@contextmanager
def writing(file: str | Path) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from error


@contextmanager
def open_file(path: Path, file: str, expected: FileIdentity | None = None) -> Iterator[OpenFile]:
    """Open a regular file for reading; `CheckpointError` names it as `file` if that fails.

    If it was read before, `expected` is its identity then; a different one is a `CheckpointError` too.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a device can have side effects
            raise CheckpointError(f"{file}: expected a regular file")
        # It can be replaced before it is open, and opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        cause = "is a dangling symbolic link" if path.is_symlink() else "is missing"
        raise CheckpointError(f"{file}: {cause}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{file}: expected a regular file")
        opened = OpenFile(descriptor, file)
        if expected:
            check_identity(file, expected, opened.identity)
        yield opened
    finally:
        os.close(descriptor)


@contextmanager
def create_file(path: str | Path, file: str, mode: int = 0o664, dir_fd: int | None = None) -> Iterator[OpenFile]:
    """Create a file, relative to an open folder if one is given, and sync it at the end.

    `OutputError` names it as `file` if that fails, or if the file exists.
    """
    with writing(file):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        yield OpenFile(descriptor, file)
        with writing(file):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path, file: str, expected: FileIdentity | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raises as `open_file` does."""
    with open_file(path, file, expected) as opened, os.fdopen(os.dup(opened.descriptor), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Return the SHA-256, in hexadecimal, of a file with this text."""
    digest = hashlib.sha256()
    for part in encoded(text):
        digest.update(part)
    return digest.hexdigest()


def text_bytes(text: str) -> int:
    """Return the size of a file with this text, in bytes."""
    return sum(map(len, encoded(text)))


def encoded(text: str) -> Iterator[bytes]:
    """Yield a text in UTF-8, in parts: an index or a config can be as large as all headers."""
    for begin in range(0, len(text), BUFFER_BYTES):
        yield text[begin : begin + BUFFER_BYTES].encode()


def check_identity(file: str, expected: FileIdentity, found: FileIdentity) -> None:
    """Raise `CheckpointError` unless a file is still the one that was read before."""
    if not expected.is_that_of(found):
        raise CheckpointError(f"{file}: was changed while it was being read")
