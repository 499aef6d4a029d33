"""Putting a complete folder in the place of the destination in one step, and removing or restoring what was replaced.

Whatever stands at the destination is moved, never removed, before the new folder has taken its place. A run can end
between any two of these steps: the next one sees from the folders' inodes how far it came.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from fp8pad.checkpoint.destination import Replaced, check_replaced
from fp8pad.checkpoint.directory import DISCARDED, Directory, is_discarded, is_folder
from fp8pad.checkpoint.files import copied_mode, create_file, writing
from fp8pad.checkpoint.staging import PUBLICATION, REPLACED, Staging, is_files
from fp8pad.errors import OutputError
from fp8pad.record import CONFIG_FILE

_MAX_PUBLICATION_BYTES = 1000


def publish(
    staging: Staging, keys: Mapping[str, str], overwrite: bool, folder_mode: Callable[[str], int]
) -> Replaced | None:
    """Give staged files their names, by the key of each, then put their folder in the place of `out_dir` in one step.

    The file without which nothing can be loaded has to be the last of `keys`. `folder_mode` is asked for the
    permissions of each folder, by its relative name, "" for `out_dir` itself: a folder that stands there keeps out whom
    it keeps out. With `overwrite`, returns what was replaced; raises `OutputError`, and puts back what stood there, if
    it holds files that are neither fp8pad's nor in the new folder.
    """
    with writing(staging.out_dir):
        _name_files(staging, keys, folder_mode)
        if overwrite and staging.parent.status(staging.out_dir.name):
            replaced = _replace(staging)
        else:
            staging.root.rename(staging.files, staging.parent, staging.out_dir.name)  # an empty folder may stand there
            replaced = None
        staging.parent.sync()
    return replaced


def is_published(staging: Staging) -> bool:
    """Return whether `out_dir` is the folder that was last published from here.

    Only as long as `out_dir` stays: a folder that is made after it was removed may get its inode.
    """
    status = staging.parent.status(staging.out_dir.name)
    return status is not None and is_folder(status) and status.st_ino == _publication(staging).get("folder")


def forget_publication(staging: Staging, keeps_shards: bool = False) -> None:
    """Remove what the run that published `out_dir` left, once `recover` has dealt with what it replaced.

    `keeps_shards` leaves what is staged, where others may have written since.
    """
    if is_published(staging) and not keeps_shards:
        staging.keep_finished(lambda _: False)
    with writing(staging.root.path):
        staging.root.unlink(PUBLICATION)


def recover(staging: Staging) -> None:
    """Finish or undo what a run that ended between two steps of publishing left; staged files stay.

    What stood at `out_dir` before is put back if nothing took its place, and removed only if the new folder did. Raises
    `OutputError` if something else stands there by now.
    """
    root, announced = staging.root, _publication(staging)
    with writing(root.path):
        for name in filter(is_files, root.names()):
            status = root.status(name)
            if name == announced.get("files") and status and status.st_ino != announced.get("folder"):
                if root.status(REPLACED):
                    raise OutputError(_move_away(staging, name))
                root.rename(name, root, REPLACED)  # it was exchanged with `out_dir`
        if root.status(REPLACED):
            _finish_replacing(staging)
        for name in filter(is_files, root.names()):
            if name in (announced.get("files"), staging.files) or not _has_config(root, name):
                _discard(staging, name)
        for name in filter(is_discarded, root.names()):
            root.discard(name)


def _has_config(root: Directory, name: str) -> bool:
    """Return whether a folder is complete: if it is not announced, another run without our lock will move it."""
    with root.open(name) as folder:
        return folder.status(CONFIG_FILE) is not None


def _discard(staging: Staging, name: str) -> None:
    """Remove a folder that nobody moves any more, first the file without which nothing in it can be loaded.

    It gets another name before: once a part of it is gone, it must neither be checked nor published.
    """
    discarded = name + DISCARDED
    staging.root.discard(discarded)  # another run without our lock may have left one
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
    """Return what was replaced, if nothing is found against it; the new folder is at `place`."""
    with staging.root.open(REPLACED) as old, place.open(name) as new:
        return check_replaced(old, set(new.files()), staging.out_dir)


def _check_or_put_back(staging: Staging, place: Directory, name: str) -> Replaced:
    """Return as `_check_replaced` does; put back what was replaced if that finds something against it."""
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
        except OutputError as error:  # what is published may have been worked on since: both stay
            raise OutputError(_move_away(staging, REPLACED)) from error
        _discard(staging, REPLACED)
        return
    try:
        _put_back(staging)  # nothing stands there, or an empty folder
    except OSError as error:
        raise OutputError(_move_away(staging, REPLACED)) from error


def _move_away(staging: Staging, name: str) -> str:
    return f"{staging.out_dir}: what stood there lies in {staging.root.path / name}: move it away first"
