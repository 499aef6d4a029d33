"""Lock the staging folder of a destination, for one run or for several that each write some of the shards."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fp8pad.checkpoint.directory import DISCARDED, Directory, is_file, is_folder, open_directory
from fp8pad.checkpoint.files import writing
from fp8pad.checkpoint.staging import (
    LOCK,
    PUBLICATION,
    REPLACED,
    STAGED,
    Staging,
    is_files,
    is_kept,
    is_staged,
    staging_path,
)
from fp8pad.errors import OutputError

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})  # a network file system may not support locks
_FOR_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_EXPECTED = "expected a folder that you own and that nobody else can write to; move it away"


@contextmanager
def hold_staging(out_dir: Path, shared: bool = False, path: Path | None = None) -> Iterator[Staging]:
    """Open the staging folder of `out_dir`, created if needed, and lock it against other processes.

    Processes that each write some of the shards hold the lock together (`shared`). Folders above `out_dir` are created
    too, and removed at the end if they are empty. Raises `OutputError` if that fails, if the folder is not fp8pad's
    own, or if another process holds the lock. `path` is another private folder next to `out_dir`, held in the same way.
    """
    path = path or staging_path(out_dir)
    with ExitStack() as above:
        _create_parents(out_dir, above)
        with writing(path):
            parent = above.enter_context(open_directory(out_dir.parent))
        with ExitStack() as opened:
            with writing(path):
                root = _locked(parent, path.name, above, opened, shared)
                _make_staged(root, shared)
                staged = opened.enter_context(root.open(STAGED))
            yield Staging(root, staged, parent, out_dir)


def _make_staged(root: Directory, shared: bool) -> None:
    try:
        root.make(STAGED, 0o700)
    except FileExistsError:  # of an earlier run, or of another process that shares the lock
        pass
    except OSError:
        if not shared:
            root.unlink(LOCK)
        raise


@contextmanager
def join_staging(out_dir: Path) -> Iterator[Staging]:
    """Open the staging folder of `out_dir` on behalf of the process that holds its lock; raises as `hold_staging`."""
    path = staging_path(out_dir)
    with ExitStack() as opened:
        with writing(path):
            parent = opened.enter_context(open_directory(out_dir.parent))
            root = opened.enter_context(parent.open(path.name))
            _check_own(root)
            staged = opened.enter_context(root.open(STAGED))
        yield Staging(root, staged, parent, out_dir)


def _create_parents(out_dir: Path, opened: ExitStack) -> None:
    for folder in reversed([folder for folder in out_dir.parents if not folder.is_dir()]):
        with writing(folder):
            folder.mkdir(0o775, exist_ok=True)
            opened.callback(_remove_if_empty, folder)
            with open_directory(folder.parent) as above:
                above.sync()


def _remove_if_empty(folder: Path | str, above: Directory | None = None) -> None:
    with suppress(OSError):
        os.rmdir(folder, dir_fd=above.descriptor if above else None)


def _locked(parent: Directory, name: str, above: ExitStack, opened: ExitStack, shared: bool) -> Directory:
    """Return the staging folder, locked until `opened` is closed; if it is empty by then, `above` removes it."""
    while True:
        with suppress(FileExistsError):
            parent.make(name, 0o700)
            _check_kept(parent, name)
        with suppress(FileNotFoundError):  # its holder removed it when done
            try:
                root = opened.enter_context(parent.open(name))
            except NotADirectoryError as error:  # also for a symbolic link
                raise OutputError(f"{parent.path / name}: {_EXPECTED}") from error
            _check_own(root)
            above.callback(_remove_if_empty, name, parent)  # on NFS, a removed lock file stays until it is closed
            lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root.descriptor)
            opened.callback(os.close, lock)
            if _lock(lock, root, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                return root


def _check_kept(parent: Directory, name: str) -> None:
    """Refuse a file system that makes the new private folder writable for others, or a umask that locks us out."""
    status = parent.status(name)
    if status and status.st_mode & _FOR_OTHERS:
        os.rmdir(name, dir_fd=parent.descriptor)
        raise OutputError(
            f"{parent.path}: anyone can write to files created there; mount it with your uid and umask=077"
        )
    if status and ~status.st_mode & stat.S_IRWXU:
        os.rmdir(name, dir_fd=parent.descriptor)
        raise OutputError(f"{parent.path}: your umask denies you access to what you create there; set it to 022")


def _check_own(root: Directory) -> None:
    """Refuse a staging folder that others can write to, or that holds anything that fp8pad did not put there."""
    status = os.fstat(root.descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & _FOR_OTHERS:
        raise OutputError(f"{root.path}: {_EXPECTED}")
    for name in root.names():
        _check_entry(root, name, is_file if name in {LOCK, PUBLICATION} else is_folder if _is_known(name) else None)
    if root.status(STAGED):
        with root.open(STAGED) as staged:
            for name in staged.names():
                _check_entry(staged, name, is_file if is_staged(name) else None)


def _is_known(name: str) -> bool:
    before = name.removesuffix(DISCARDED)  # `Directory.discard` was killed; subfolders have numbers there
    is_number = before != name and before.isdecimal()
    return before in {STAGED, REPLACED} or is_files(before) or is_kept(before) or is_number


def _check_entry(folder: Directory, name: str, is_expected: Callable[[os.stat_result | None], bool] | None) -> None:
    status = folder.status(name)  # None: its holder has just removed it
    if status and not (is_expected and is_expected(status)):
        raise OutputError(f"{folder.path / name}: was not put there by fp8pad; move the staging folder away")


def _lock(lock: int, root: Directory, operation: int) -> bool:
    """Lock an open file; return False if it is no longer the lock file of `root`."""
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"{root.path}: locked by another fp8pad process") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    status = root.status(LOCK)
    return status is not None and os.path.samestat(os.fstat(lock), status)
