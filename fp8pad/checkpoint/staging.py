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

from fp8pad.checkpoint.transfer import writing
from fp8pad.errors import OutputError

AT_FDCWD = -100
RENAME_EXCHANGE = 2  # linux/fs.h
UNFINISHED = ".unfinished"
STAGED = ".staged"


@dataclass(frozen=True, slots=True)
class Staging:
    """The hidden folder `root` in which the future `out_dir` grows; this process alone holds it."""

    root: Path
    out_dir: Path

    @classmethod
    def beside(cls, out_dir: Path) -> "Staging":
        """Return the staging folder of `out_dir`, a resolved path; nothing is created."""
        return cls(out_dir.with_name(f".{out_dir.name}.fp8pad"), out_dir)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that an earlier run left."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def staged_shard(self, file: str, digest: str) -> Path:
        """Return where the shard `file`, made from what `digest` stands for, lies when it is complete."""
        return self.root / f"{file}.{digest}{STAGED}"

    def staged_text(self, file: str) -> Path:
        """Return where the text file `file` lies until the checkpoint is published."""
        return self.root / f"{file}{STAGED}"

    def unfinished_shard(self, file: str) -> Path:
        """Return where the shard `file` lies while it is written."""
        return self.root / f"{file}{UNFINISHED}"

    @contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """Create the folder, or take up what a killed run left in it if `resume`, and keep other processes out.

        It is removed if an error is raised inside; if the run is interrupted, finished shards stay. Raises
        `OutputError` if it cannot be created or another process holds it.
        """
        with writing(self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.root.with_name(f"{self.root.name}.lock")):
            with writing(self.root):
                _undo_half_replacement(self.out_dir)
                if not resume and self.root.exists():
                    shutil.rmtree(self.root)
                self.root.mkdir(exist_ok=True)
            try:
                yield
            except BaseException as error:
                staged = set(self.root.glob(f"*{STAGED}"))
                if isinstance(error, Exception) or not staged:
                    shutil.rmtree(self.root, ignore_errors=True)
                else:
                    self.keep_only(staged)
                raise

    def keep_only(self, staged: set[Path]) -> None:
        """Remove everything but the complete shards `staged`."""
        for path in self.root.iterdir():
            if path not in staged:
                _remove(path)

    def publish(self, staged: Mapping[str, Path], overwrite: bool) -> None:
        """Give the staged files their names, in order, then put the whole folder in the place of `out_dir` in one step.

        The file without which nothing can be loaded has to be the last.
        """
        with writing(self.out_dir):
            for file, path in staged.items():
                path.rename(self.root / file)
            for folder, _, _ in os.walk(self.root):
                sync_folder(Path(folder))
            if overwrite and self.out_dir.exists():
                self._replace()
            else:
                self.root.rename(self.out_dir)  # an empty folder may stand there
            sync_folder(self.out_dir.parent)
        if self.root.exists():
            with writing(f"{self.root}: the replaced checkpoint"):
                shutil.rmtree(self.root)

    def _replace(self) -> None:
        if not _exchange(self.root, self.out_dir):
            retired = _retired(self.out_dir)
            self.out_dir.rename(retired)
            try:
                self.root.rename(self.out_dir)
            except BaseException:
                retired.rename(self.out_dir)
                raise
            retired.rename(self.root)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is gone afterwards. Folders cannot be locked on NFS."""
    with writing(path):
        descriptor = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"{path}: another fp8pad is writing there") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its holder removed it between open and flock


def _retired(out_dir: Path) -> Path:
    return out_dir.with_name(f".{out_dir.name}.fp8pad-replaced")


def _undo_half_replacement(out_dir: Path) -> None:
    """Put back a folder that a killed run had moved away to replace it, where the kernel could not exchange them."""
    retired = _retired(out_dir)
    if retired.exists() and not out_dir.exists():
        retired.rename(out_dir)
    elif retired.exists():
        shutil.rmtree(retired)


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
