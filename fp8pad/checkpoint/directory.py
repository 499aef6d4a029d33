"""A folder held by its descriptor: operations stay inside it even if its path is replaced, and follow no links."""

import ctypes
import errno
import os
import stat
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

RENAME_EXCHANGE = 2  # linux/fs.h
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CANNOT_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
CANNOT_LINK = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV})
DISCARDED = ".discarded"


@dataclass(frozen=True, slots=True)
class Directory:
    """An open folder, closed by `with`; names are relative to it, `path` is for messages. Methods raise `OSError`."""

    descriptor: int
    path: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def open(self, name: str) -> "Directory":
        """Open a folder in this one; symbolic links are not followed."""
        return Directory(os.open(name, _OPEN_FOLDER, dir_fd=self.descriptor), self.path / name)

    def make(self, name: str, mode: int) -> None:
        """Create a folder."""
        os.mkdir(name, mode, dir_fd=self.descriptor)

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of an entry (of a link, not of its target); None if there is no such entry."""
        with suppress(FileNotFoundError):
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        return None

    def names(self) -> list[str]:
        """Return the names of all entries, sorted."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208  a path cannot hold a descriptor

    def rename(self, name: str, other: "Directory", other_name: str) -> None:
        """Move an entry to another folder; a folder replaces an empty folder of that name."""
        os.rename(name, other_name, src_dir_fd=self.descriptor, dst_dir_fd=other.descriptor)

    def exchange(self, name: str, other: "Directory", other_name: str) -> bool:
        """Exchange two entries in one step; return False if the C library, kernel or file system cannot."""
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "renameat2"):
            return False
        names = os.fsencode(name), os.fsencode(other_name)
        if libc.renameat2(self.descriptor, names[0], other.descriptor, names[1], RENAME_EXCHANGE) == 0:
            return True
        if (code := ctypes.get_errno()) in _CANNOT_EXCHANGE:
            return False
        raise OSError(code, os.strerror(code), str(other.path / other_name))

    def link(self, name: str, other: "Directory", other_name: str) -> None:
        """Hard-link a file into another folder, or move it there if the file system has no hard links.

        A name that is taken is an error, also if it differs only in case on a file system that ignores case.
        """
        try:
            os.link(name, other_name, src_dir_fd=self.descriptor, dst_dir_fd=other.descriptor, follow_symlinks=False)
        except OSError as error:
            if error.errno not in CANNOT_LINK or other.status(other_name):
                raise
            self.rename(name, other, other_name)

    def unlink(self, name: str) -> None:
        """Remove a file or a link, if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def files(self, not_entered: Container[str] = ()) -> Iterator[str]:
        """Yield the relative names of all entries below this folder; other folders than `not_entered` are entered."""
        pending = [""]  # strings: neither recursion nor splitting paths limits how deeply folders can be nested
        while pending:
            folder = pending.pop()
            descriptor = os.open(folder or ".", _OPEN_FOLDER, dir_fd=self.descriptor)
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.is_dir(follow_symlinks=False) and entry.name not in not_entered:
                            pending.append(f"{name}/")
                        else:
                            yield name
            finally:
                os.close(descriptor)

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Return the content of a regular file; None if there is none, or if it is larger than `max_bytes`."""
        status = self.status(name)
        if is_file(status) and status and status.st_size <= max_bytes:
            with (
                suppress(FileNotFoundError),
                os.fdopen(os.open(name, _OPEN_FILE, dir_fd=self.descriptor), "rb") as file,
            ):
                return file.read(max_bytes)
        return None

    def sync(self) -> None:
        """Wait until the names in this folder are on disk."""
        os.fsync(self.descriptor)

    def discard(self, name: str) -> None:
        """Remove a folder and everything in it, if it exists.

        Each subfolder is moved into this folder before it is opened, which the kernel refuses for a mount point. So
        nothing outside is reached, neither through a link nor in another file system, and the depth is not limited. Our
        own folders that are locked by their permissions, such as 0555, are unlocked.
        """
        pending = [name] if self.status(name) else []
        while pending:
            discarded = pending.pop()
            with self.open(discarded) as folder, os.scandir(folder.descriptor) as entries:
                folder._unlock()
                for entry in list(entries):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{entry.inode()}{DISCARDED}")
                        folder._move_out(entry.name, self, pending[-1])
                    else:
                        folder.unlink(entry.name)
            os.rmdir(discarded, dir_fd=self.descriptor)

    def _unlock(self) -> None:
        with suppress(OSError):  # another user's folder: the next operation reports it
            os.fchmod(self.descriptor, stat.S_IRWXU)

    def _move_out(self, name: str, other: "Directory", other_name: str) -> None:
        """Move a folder that may be locked; the error names it."""
        try:
            self.rename(name, other, other_name)
        except PermissionError:
            with self.open(name) as folder:
                if os.fstat(folder.descriptor).st_dev == os.fstat(self.descriptor).st_dev:  # not a mount point
                    folder._unlock()
            try:
                self.rename(name, other, other_name)
            except PermissionError as error:
                raise PermissionError(error.errno, f"{self.path / name}: {error.strerror}") from error


def is_discarded(name: str) -> bool:
    """Return whether a folder of that name was left by a killed `Directory.discard`."""
    return name.endswith(DISCARDED)


def open_directory(path: Path) -> Directory:
    """Open a folder; symbolic links are not followed."""
    return Directory(os.open(path, _OPEN_FOLDER), path)


def is_folder(status: os.stat_result | None) -> bool:
    """Return whether an entry exists and is a folder."""
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_file(status: os.stat_result | None) -> bool:
    """Return whether an entry exists and is a regular file."""
    return status is not None and stat.S_ISREG(status.st_mode)
