"""The files of a checkpoint folder: which come along, which are left out, and what tells that one was changed."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from fp8pad.errors import CheckpointError, ConfigError

INDEX_FILE = "model.safetensors.index.json"
SHARD_SUFFIX = ".safetensors"
# Weights that would no longer match those of the converted checkpoint.
WEIGHT_SUFFIXES = frozenset({".bin", ".pth", ".pt", ".gguf", ".onnx", ".h5", ".msgpack", SHARD_SUFFIX})
# A clone's history holds the original weights once more.
HISTORY_FOLDERS = frozenset({".git"})


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What changes when a file is written to or replaced; `size` is in bytes."""

    size: int
    mtime_ns: int
    inode: int


def file_identity(path: Path) -> FileIdentity:
    """Return the file_identity of the file that `path` leads to."""
    status = path.stat()
    return FileIdentity(status.st_size, status.st_mtime_ns, status.st_ino)


def list_folder(root: Path, own_files: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the files of `root` and its subfolders that come along and those that are left out, sorted.

    Names are relative to `root`; `own_files`, which are read or rewritten, are in neither list. Symbolic links to files
    are followed. Weight files of other formats, links to folders, sockets, pipes and devices are left out. Raises
    `CheckpointError` for a dangling link, a name that is not UTF-8 or a folder that cannot be read.
    """
    other_files: list[str] = []
    excluded: list[str] = []
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        if name not in own_files:
            (other_files if _comes_along(path, name) else excluded).append(name)
    return tuple(sorted(other_files)), tuple(sorted(excluded))


def is_weight_file(name: str) -> bool:
    """Return whether a file holds weights, in safetensors or in another format."""
    return PurePath(name).suffix.lower() in WEIGHT_SUFFIXES


def read_text(root: Path, file: str) -> str:
    """Return the text of a file of the folder `root`; `ConfigError` if it is missing, not a file, or not UTF-8."""
    path = root / file
    try:
        if not path.is_file():
            cause = "is missing" if not path.exists() else "expected a regular file"
            raise ConfigError(f"{file}: {cause} in {root}")
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: expected UTF-8: {error}") from error


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        not_entered = [name for name in subfolders if name in HISTORY_FOLDERS or Path(folder, name).is_symlink()]
        subfolders[:] = [name for name in subfolders if name not in not_entered]
        yield from (Path(folder, name) for name in (*files, *not_entered))


def _comes_along(path: Path, name: str) -> bool:
    if is_weight_file(name):
        return False
    try:
        name.encode()
        return stat.S_ISREG(path.stat().st_mode)
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{name!r}: expected a file name in UTF-8") from error
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error
