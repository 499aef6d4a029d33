"""A hidden folder beside the destination, where a checkpoint grows until it is complete, and its publication.

What a killed run leaves cannot be loaded: shards have their names only at the end. The folder's name follows from the
destination's, so that the next run finds it: a finished shard's staged name holds a digest of what it was made from.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.files import writing
from fp8pad.errors import OutputError

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # a network file system may know none
UNFINISHED = ".unfinished"
STAGED = ".staged"


@dataclass(frozen=True, slots=True)
class Staging:
    """The hidden folder `root` in which the future `out_dir` grows; one process at a time holds it."""

    root: Path
    out_dir: Path

    @classmethod
    def beside(cls, out_dir: Path) -> "Staging":
        """Return the staging folder of `out_dir`, a resolved path; nothing is created."""
        return cls(out_dir.with_name(f".{out_dir.name}.fp8pad"), out_dir)

    @property
    def files(self) -> Path:
        """The folder that is to become `out_dir`."""
        return self.root / "files"

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that an earlier run left."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def staged(self, file: str, digest: str = "") -> Path:
        """Return where `file` lies when it is complete; `digest` stands for what a shard was made from."""
        return self._shelf / f"{file}.{digest}{STAGED}"

    def unfinished(self, file: str) -> Path:
        """Return where `file` lies while it is written."""
        return self._shelf / f"{file}{UNFINISHED}"

    @contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """Create the folder and keep other processes out; with `resume`, take up what a killed run left in it.

        Everything in it is removed at the end; if the run is interrupted, finished files stay. Raises `OutputError` if
        it cannot be created or another process holds it.
        """
        with writing(self.root):
            lock = self._lock()
        try:
            with writing(self.root):
                self._undo_half_replacement()
                self._clear(self.files, self._replaced, *([] if resume else [self._shelf]))
                self.files.mkdir()
                self._shelf.mkdir(exist_ok=True)
            yield
            with writing(self.root):
                self._remove()
        except BaseException as error:
            with suppress(OSError, OutputError):
                self._leave(keep_staged=not isinstance(error, Exception))
            raise
        finally:
            os.close(lock)

    def keep_only(self, staged: set[Path]) -> None:
        """Remove every staged file but those that can be used."""
        with writing(self.root):
            for path in set(self._shelf.iterdir()) - staged:
                path.unlink()

    def publish(self, staged: Mapping[str, Path], overwrite: bool) -> None:
        """Give the staged files their names, in order, then put the whole folder in the place of `out_dir` in one step.

        The file without which nothing can be loaded has to be the last.
        """
        with writing(self.out_dir):
            for file, path in staged.items():
                path.rename(self.files / file)
            for folder, _, _ in os.walk(self.files):
                sync_folder(Path(folder))
            if overwrite and self.out_dir.exists():
                self._replace()
            else:
                self.files.rename(self.out_dir)  # an empty folder may stand there
            sync_folder(self.out_dir.parent)

    @property
    def _shelf(self) -> Path:
        return self.root / "staged"

    @property
    def _replaced(self) -> Path:
        return self.root / "replaced"

    def _lock(self) -> int:
        path = self.root / "lock"  # a file, since folders cannot be locked on NFS
        while True:
            self.root.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # its holder removes it when it is done
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                if _is_locked(descriptor, path):
                    return descriptor
                os.close(descriptor)

    def _replace(self) -> None:
        if _exchange(self.files, self.out_dir):
            return
        self.out_dir.rename(self._replaced)
        try:
            self.files.rename(self.out_dir)
        except BaseException:
            self._replaced.rename(self.out_dir)
            raise

    def _undo_half_replacement(self) -> None:
        if self._replaced.exists() and not self.out_dir.exists():
            self._replaced.rename(self.out_dir)

    def _leave(self, keep_staged: bool) -> None:
        staged = set(self._shelf.glob(f"*{STAGED}"))
        if not keep_staged or not staged:
            self._remove()
            return
        self.keep_only(staged)
        self._clear(self.files, self._replaced)

    def _remove(self) -> None:
        self._clear(self.files, self._replaced, self._shelf)
        (self.root / "lock").unlink()
        with suppress(OSError):  # another process may have come to lock it
            self.root.rmdir()

    def _clear(self, *folders: Path) -> None:
        for folder in folders:
            if folder.exists():
                shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, path: Path) -> bool:
    """Lock an open file; False if `path` is another file by now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"{path.parent}: another fp8pad is writing there") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the C library, kernel or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))
