"""Move a complete folder to the destination in one step, and remove or restore what it replaced.

Until the new folder is in place, whatever was at the destination is moved, never removed. A run can end between any two
of these steps; the next one sees from the folders' inodes how far it got.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from fp8pad.checkpoint.destination import Replaced, check_replaced
from fp8pad.checkpoint.directory import DISCARDED, Directory, is_discarded, is_folder
from fp8pad.checkpoint.files import copied_mode, create_file, writing
from fp8pad.checkpoint.staging import KEPT, PUBLICATION, REPLACED, Staging, is_files
from fp8pad.errors import OutputError
from fp8pad.record import CONFIG_FILE

_MAX_PUBLICATION_BYTES = 1000
_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})  # if the destination of a rename is occupied


def publish(
    staging: Staging, keys: Mapping[str, str], overwrite: bool, folder_mode: Callable[[str], int]
) -> Replaced | None:
    """Give staged files their names (`keys` maps names to keys), then move their folder to `out_dir` in one step.

    The last of `keys` must be the file without which nothing can be loaded. `folder_mode` returns the permissions of a
    folder by its relative name, "" for `out_dir` itself, which gets no wider permissions than a folder that it
    replaces. With `overwrite`, returns what was replaced; raises `OutputError`, and puts the old folder back, if that
    holds files that are neither fp8pad's nor in the new folder.
    """
    with writing(staging.out_dir):
        _name_files(staging, keys, folder_mode)
        if overwrite and staging.parent.status(staging.out_dir.name):
            replaced = _replace(staging)
        else:
            staging.root.rename(staging.files, staging.parent, staging.out_dir.name)  # an empty folder may be there
            replaced = None
        staging.parent.sync()
    return replaced


def is_published(staging: Staging) -> bool:
    """Return whether `out_dir` is the folder that was last published from here.

    This holds only while `out_dir` exists: a folder created after it was removed may get the same inode.
    """
    status = staging.parent.status(staging.out_dir.name)
    return status is not None and is_folder(status) and status.st_ino == _publication(staging).get("folder")


def forget_publication(staging: Staging, keeps_shards: bool = False) -> None:
    """Remove what the run that published `out_dir` left, once `recover` has handled what it replaced.

    `keeps_shards` keeps staged files, which other processes may have written since.
    """
    if is_published(staging) and not keeps_shards:
        staging.keep_finished(lambda _: False)
    with writing(staging.root.path):
        staging.root.unlink(PUBLICATION)


def recover(staging: Staging) -> None:
    """Finish or undo the publication of a run that ended between two steps; staged files stay.

    The former `out_dir` is put back if nothing took its place, and removed only if the new folder did. Where something
    else is there by now, or either folder was edited so that files would be lost, it stays in `staging` for good.
    """
    root, announced = staging.root, _publication(staging)
    with writing(root.path):
        for name in filter(is_files, root.names()):
            status = root.status(name)
            if name == announced.get("files") and status and status.st_ino != announced.get("folder"):
                _keep(staging)
                root.rename(name, root, REPLACED)  # it was exchanged with `out_dir`
        if root.status(REPLACED):
            _finish_replacing(staging)
        for name in filter(is_files, root.names()):
            if name in (announced.get("files"), staging.files) or not _has_config(root, name):
                _discard(staging, name)
        for name in filter(is_discarded, root.names()):
            root.discard(name)


def _has_config(root: Directory, name: str) -> bool:
    """Return whether a folder is complete; if no run announced it, a run that holds no lock will still move it."""
    with root.open(name) as folder:
        return folder.status(CONFIG_FILE) is not None


def _discard(staging: Staging, name: str) -> None:
    """Remove a folder that no run will move any more, starting with the file without which nothing can be loaded.

    It is renamed first: once a part of it is gone, it must be neither checked nor published.
    """
    discarded = name + DISCARDED
    staging.root.discard(discarded)  # a run that holds no lock may have left one
    staging.root.rename(name, staging.root, discarded)
    staging.root.sync()
    with staging.root.open(discarded) as folder:
        folder.unlink(CONFIG_FILE)
    staging.root.discard(discarded)


def _name_files(staging: Staging, keys: Mapping[str, str], folder_mode: Callable[[str], int]) -> None:
    old = staging.parent.status(staging.out_dir.name)
    staging.root.make(staging.files, folder_mode("") & (copied_mode(old, staging.group) if old else ~0))
    with staging.root.open(staging.files) as files:
        folders = sorted({str(folder) for file in keys for folder in PurePosixPath(file).parents} - {"."})
        for name in folders:
            files.make(name, folder_mode(name))
        *others, last = keys
        for file in others:
            staging.link(keys[file], files, file)
        for name in folders:
            with files.open(name) as folder:
                folder.sync()
        _announce(staging, os.fstat(files.descriptor).st_ino)
        staging.link(keys[last], files, last)
        files.sync()


def _announce(staging: Staging, inode: int) -> None:
    staging.root.unlink(PUBLICATION)
    with create_file(PUBLICATION, PUBLICATION, 0o600, staging.root.descriptor) as target:
        target.write(0, json.dumps({"files": staging.files, "folder": inode}).encode())
    staging.root.sync()


def _publication(staging: Staging) -> Mapping[str, Any]:
    with suppress(ValueError, RecursionError):
        document = json.loads(staging.root.read(PUBLICATION, _MAX_PUBLICATION_BYTES) or b"{}")
        return document if isinstance(document, dict) else {}
    return {}


def _replace(staging: Staging) -> Replaced:
    root, parent, name = staging.root, staging.parent, staging.out_dir.name
    if root.exchange(staging.files, parent, name):
        root.rename(staging.files, root, REPLACED)
        return _check_or_put_back(staging, parent, name)
    parent.rename(name, root, REPLACED)
    replaced = _check_or_put_back(staging, root, staging.files)
    root.rename(staging.files, parent, name)
    return replaced


def _check_replaced(staging: Staging, place: Directory, name: str) -> Replaced:
    """Return what was replaced; raise `OutputError` if it must not be. The new folder is `name` in `place`."""
    with staging.root.open(REPLACED) as old, place.open(name) as new:
        return check_replaced(old, set(new.files()), staging.out_dir)


def _check_or_put_back(staging: Staging, place: Directory, name: str) -> Replaced:
    """Return as `_check_replaced` does; put the old folder back if that raises."""
    try:
        return _check_replaced(staging, place, name)
    except BaseException:
        _put_back(staging)
        raise


def _put_back(staging: Staging) -> None:
    root, parent, name = staging.root, staging.parent, staging.out_dir.name
    if not is_published(staging):
        root.rename(REPLACED, parent, name)
    elif root.exchange(REPLACED, parent, name):
        root.rename(REPLACED, root, staging.files)
    else:
        parent.rename(name, root, staging.files)
        root.rename(REPLACED, parent, name)


def _finish_replacing(staging: Staging) -> None:
    if is_published(staging):
        try:
            _check_replaced(staging, staging.parent, staging.out_dir.name)
        except OutputError as error:  # the published folder may have been edited since: both stay
            if isinstance(error.__cause__, OSError):
                raise
            _keep(staging)
        else:
            _discard(staging, REPLACED)
        return
    try:
        _put_back(staging)  # nothing is there, or an empty folder
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        _keep(staging)


def _keep(staging: Staging) -> None:
    """Set what was replaced aside for good, if there is such a folder."""
    if staging.root.status(REPLACED):
        staging.root.rename(REPLACED, staging.root, f"{KEPT}.{os.urandom(8).hex()}")
