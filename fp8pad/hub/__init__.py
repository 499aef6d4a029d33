"""Checkpoints by hub id: a folder of sparse files with the hub's names and sizes, and with headers and texts.

`plan` needs no more. The rest of a file is a hole until `Checkpoint.fetched` asks for it, and again afterwards, so that
a conversion needs disk space only for its output and for the shards that it is working on. The next run reuses what was
downloaded. Requests go through huggingface_hub, which handles tokens, HF_ENDPOINT, retries and offline mode.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.destination import existing_parent
from fp8pad.checkpoint.files import FileIdentity
from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.staging import hidden_name
from fp8pad.errors import CheckpointError, OutputError
from fp8pad.hub.fetcher import Fetcher, HubFiles
from fp8pad.hub.ids import HubId, check_path, hub_errors
from fp8pad.hub.repo import Repo


@contextmanager
def opened(
    model: str | os.PathLike[str],
    read: Callable[[Path], Checkpoint],
    downloads: Path | None = None,
    use_cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[Checkpoint]:
    """Yield the checkpoint that `model` names, a folder or a hub id, read by `read`.

    Files of the hub are fetched into its cache if `use_cache`, else into `downloads`, or a temporary folder if there is
    none. `downloads` is created if needed and removed afterwards, unless the `with` block fails after a file was begun.
    Raises `HubError` if the hub cannot be reached or has no such model, and what `read` raises.
    """
    hub_id = HubId.parse(model)
    if hub_id is None:
        check_path(model)
        yield read(Path(model))
        return
    with hub_errors(hub_id, or_folder=not os.fspath(model).startswith("hf:")):
        found = _found(hub_id)
    if isinstance(found, Path):
        yield replace(read(found), name=str(hub_id))
        return
    with _temporary_folder() as temporary, _hold_downloads(downloads) as folder:
        root = Path(temporary, "model")
        try:
            with hub_errors(hub_id):
                beginnings = found.outline(root)
        except OutputError as error:
            raise OutputError(f"{error}; set TMPDIR to a folder with room for config.json and headers") from error
        try:
            checkpoint = read(root)
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(root), str(hub_id))) from error
        files = HubFiles(found, beginnings, folder, use_cache)
        remote = Fetcher(files, root, (progress or Progress()).say)
        identities = {name: found.files[name].identity for name in checkpoint.identities}
        yield replace(checkpoint, name=str(hub_id), remote=remote, identities=identities)


@dataclass(frozen=True, slots=True)
class SentCheckpoint:
    """What another thread, process or machine needs to read a checkpoint's files: where they are, or are fetched from.

    Files of the hub are fetched on that machine, with the token that huggingface_hub finds there.
    """

    root: str
    identities: Mapping[str, FileIdentity]
    hub: HubFiles | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "SentCheckpoint":
        """Return what has to be sent of a checkpoint."""
        hub = checkpoint.remote.files if isinstance(checkpoint.remote, Fetcher) else None
        return cls(str(checkpoint.root.absolute()), checkpoint.identities, hub)

    @contextmanager
    def opened(self) -> Iterator[Checkpoint]:
        """Yield the checkpoint; its files can be read, but nothing else is known about it."""
        nothing = Checkpoint(Path(self.root), (), {}, False, (), (), self.identities)
        if self.hub is None:
            yield nothing
            return
        with _temporary_folder() as temporary:
            root = Path(temporary, "model")
            yield replace(nothing, root=root, remote=Fetcher(self.hub, root, Progress().say))


@contextmanager
def _hold_downloads(downloads: Path | None) -> Iterator[str | None]:
    """Hold the private folder `downloads`, and yield the one in it for fetched files.

    It is locked as a staging folder is, and removed at the end, unless the next run can reuse files in it.
    """
    if downloads is None:
        yield None
        return
    with hold_staging(downloads, path=downloads) as staging:
        try:
            yield str(staging.staged.path)
        except BaseException:
            with suppress(OSError, OutputError):
                if not staging.staged.names():
                    staging.remove()
            raise
        try:
            staging.remove()
        except OutputError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            raise OutputError(f"{downloads}: cannot be removed: {reason}; what was asked for is complete") from error


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Yield a temporary folder; it is not an error if it cannot be removed at the end."""
    folder = tempfile.mkdtemp(prefix="fp8pad-")
    try:
        yield folder
    finally:
        with suppress(OSError):  # rmtree does not ignore the errors of all its calls
            shutil.rmtree(folder, ignore_errors=True)


def download_folder(out_dir: Path, shards: range | None = None) -> Path:
    """Return the folder for fetched files while `out_dir` is written: on the same disk, in a folder that exists.

    Each process that writes some of the `shards` has its own. They are not in the staging folder: slices share its
    lock, two would fetch into one file, and it is not there while a plan is made, for which files may be fetched too.
    """
    target = out_dir.absolute()
    which = f"-{shards.start}-{shards.stop - 1}" if shards is not None else ""
    return existing_parent(target).resolve() / hidden_name(target.name, f".fp8pad-hub{which}")


def _found(hub_id: HubId) -> Repo | Path:
    """Return a model on the hub, or, in offline mode, its folder in the cache."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True))
    return Repo.of(hub_id)
