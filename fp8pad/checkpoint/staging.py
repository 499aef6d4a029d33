"""A hidden folder next to the destination that holds the files of a checkpoint until all are complete.

What a killed run leaves in it cannot be loaded: files get their names only when all are complete. The folder's name is
derived from the destination's, so that the next run finds it; a finished shard's name is a digest of what it was made
from.

    .OUT_DIR.fp8pad/    only its owner may use it
      lock              locked by one process, or shared by several that each write some of the shards
      staged/           KEY.finished: shards that a later run can use; KEY.TOKEN.complete, .unfinished: files of one run
      files.TOKEN/      every file under its own name, just before the folder becomes OUT_DIR
      replaced/         the former OUT_DIR, until it is removed
      kept.TOKEN/       a former OUT_DIR that can be neither put back nor removed
      publication       which folder becomes OUT_DIR
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fp8pad.checkpoint.directory import CANNOT_LINK, Directory, is_file
from fp8pad.checkpoint.files import OpenFile, create_file, writing
from fp8pad.errors import CheckpointError

MAX_NAME_BYTES = 255
MAX_NOTE_BYTES = 1 << 16
FILES, REPLACED, KEPT, PUBLICATION = "files", "replaced", "kept", "publication"
LOCK, STAGED = "lock", "staged"
_FINISHED, _COMPLETE, _UNFINISHED, _NOTE = ".finished", ".complete", ".unfinished", ".note"
_SUFFIXES = (_FINISHED, _COMPLETE, _UNFINISHED, _NOTE)
_HEX = "[0-9a-f]+"  # keys and tokens


@dataclass(frozen=True, slots=True)
class Staging:
    """The locked staging folder `root` of `out_dir`, its subfolder `staged` and its `parent`, all open.

    A file is identified by its key, which is unique in a run; the key of a shard depends on what it is made from. All
    other names contain the `token`, so that they do not clash with those of a lost worker that may still be writing, or
    of another run if the file system does not support locks.
    """

    root: Directory
    staged: Directory
    parent: Directory
    out_dir: Path
    token: str = field(default_factory=lambda: os.urandom(8).hex())

    @property
    def files(self) -> str:
        """The name of this run's folder that becomes `out_dir`."""
        return f"{FILES}.{self.token}"

    @property
    def group(self) -> int:
        """The id of the group that new files belong to, -1 if it is unknown."""
        status = os.fstat(self.root.descriptor)
        is_known = status.st_mode & stat.S_ISGID or status.st_gid == os.getegid()
        return status.st_gid if is_known else -1

    @property
    def num_bytes(self) -> int:
        """Total size of all staged files, in bytes."""
        return sum(status.st_size for name in self.staged.names() if (status := self.staged.status(name)))

    @property
    def num_finished(self) -> int:
        """The number of finished shards."""
        return sum(name.endswith(_FINISHED) for name in self.staged.names())

    def finished(self, key: str) -> os.stat_result | None:
        """Return the status of a finished shard; None if there is none or it is not a regular file."""
        status = self.staged.status(key + _FINISHED)
        return status if is_file(status) else None

    @contextmanager
    def create(self, key: str, file: str, mode: int = 0o664) -> Iterator[OpenFile]:
        """Create what becomes `file`, and sync it at the end; `OutputError` names it as `file` if that fails."""
        with writing(file):
            self.staged.unlink(self._unfinished(key))
        with create_file(self._unfinished(key), file, mode, self.staged.descriptor) as target:
            yield target

    def link_from(self, origin: Path, key: str, file: str) -> bool:
        """Create what becomes `file` as a hard link to `origin`; raises as `create` does.

        Returns False if that is impossible: between file systems, or on one that does not support hard links.
        """
        if not origin.exists():
            raise CheckpointError(f"{file}: is missing")
        with writing(file):
            self.staged.unlink(self._unfinished(key))
            try:
                os.link(origin, self._unfinished(key), dst_dir_fd=self.staged.descriptor)
            except OSError as error:
                if error.errno not in CANNOT_LINK:
                    raise
                return False
            return True

    def unfinished_path(self, key: str) -> Path:
        """Return the path of a file that is being written, to read it back."""
        return self.staged.path / (self._unfinished(key))

    def finished_path(self, key: str) -> Path:
        """Return the path of a finished shard."""
        return self.staged.path / (key + _FINISHED)

    def complete(self, key: str, file: str, is_resumable: bool = False) -> None:
        """Keep a written file for publication, and for later runs if it `is_resumable`; raises as `create` does."""
        with writing(file):
            self.staged.rename(
                self._unfinished(key), self.staged, key + _FINISHED if is_resumable else self._complete(key)
            )

    def link(self, key: str, folder: Directory, file: str) -> None:
        """Give a complete file its name in `folder`; with hard links, it also stays here."""
        self.staged.link(key + _FINISHED if self.finished(key) else self._complete(key), folder, file)

    def _complete(self, key: str) -> str:
        return f"{key}.{self.token}{_COMPLETE}"

    def _unfinished(self, key: str) -> str:
        return f"{key}.{self.token}{_UNFINISHED}"

    def note(self, key: str, text: str) -> None:
        """Store a note about a finished shard next to it; raises as `create` does."""
        with self.create(key, key + _NOTE) as target:
            target.write(0, text.encode())
        with writing(key + _NOTE):
            self.staged.rename(self._unfinished(key), self.staged, key + _NOTE)

    def noted(self, key: str) -> str | None:
        """Return the note about a finished shard, None if there is none."""
        status = self.staged.status(key + _NOTE)
        if status is None or not is_file(status) or status.st_size > MAX_NOTE_BYTES:
            return None
        return (self.staged.path / (key + _NOTE)).read_text(errors="replace")

    def discard_unfinished(self) -> None:
        """Remove the files that this process began and did not finish."""
        self._keep(lambda name: not name.endswith(f".{self.token}{_UNFINISHED}"))

    def keep_finished(self, is_wanted: Callable[[str], bool]) -> None:
        """Remove all staged files except the finished shards, with their notes, whose keys are to be kept."""
        self._keep(lambda name: name.endswith((_FINISHED, _NOTE)) and is_wanted(name.partition(".")[0]))

    def _keep(self, is_wanted: Callable[[str], bool]) -> None:
        with writing(self.staged.path):
            for name in self.staged.names():
                if not is_wanted(name):
                    self.staged.unlink(name)

    def remove(self) -> None:
        """Remove everything but folders that were set aside; the publication and the lock go last."""
        with writing(self.root.path):
            self.root.discard(STAGED)
            self.root.unlink(PUBLICATION)
            self.root.unlink(LOCK)
            try:
                os.rmdir(self.root.path.name, dir_fd=self.parent.descriptor)
            except OSError as error:
                # Another process came to lock, or a folder was set aside.
                if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}:
                    raise


def key_of(*made_from: object) -> str:
    """Return the key of a file in the staging folder, a digest of its name and of what else it is made from."""
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]


def hidden_name(name: str, suffix: str) -> str:
    """Return the name of a hidden folder that belongs to a folder called `name`, which is hashed if it is too long."""
    hidden = f".{name}{suffix}"
    if len(os.fsencode(hidden)) > MAX_NAME_BYTES:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()}{suffix}"
    return hidden


def staging_path(out_dir: Path) -> Path:
    """Return the path of the staging folder of `out_dir`, a resolved path; the folder need not exist."""
    return out_dir.with_name(hidden_name(out_dir.name, ".fp8pad"))


def is_kept(name: str) -> bool:
    """Return whether a folder of that name was set aside for good."""
    return re.fullmatch(rf"{KEPT}\.{_HEX}", name) is not None


def is_files(name: str) -> bool:
    """Return whether a folder of that name is one that becomes `out_dir`, in this run or in another."""
    return re.fullmatch(rf"{FILES}\.{_HEX}", name) is not None


def is_staged(name: str) -> bool:
    """Return whether a file of that name is a shard, or a note on one, that some run wrote to `staged`."""
    return re.fullmatch(rf"{_HEX}(\.{_HEX})?({'|'.join(map(re.escape, _SUFFIXES))})", name) is not None
