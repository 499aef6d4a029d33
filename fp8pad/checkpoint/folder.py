"""The files of a checkpoint folder: which are copied, which are excluded, and their text."""

import re
import stat
from collections.abc import Container
from fnmatch import fnmatchcase
from pathlib import Path

from fp8pad.checkpoint.directory import open_directory
from fp8pad.checkpoint.files import FileIdentity, open_file
from fp8pad.errors import CheckpointError, ConfigError
from fp8pad.record import RECORD_FILE

INDEX_FILE = "model.safetensors.index.json"
SHARD_SUFFIX = ".safetensors"

# The same weights in other formats, with their indexes, in the root of a checkpoint.
OTHER_FORMS = (
    "pytorch_model*.bin",
    "pytorch_model*.bin.index*.json",
    "consolidated*",
    "tf_model*.h5",
    "tf_model*.h5.index*.json",
    "flax_model*",
    "*.gguf",
    "rust_model.ot",
)
OTHER_FORM_FOLDERS = frozenset({"original", "onnx"})
# A git clone's history holds the original weights again; .cache belongs to huggingface_hub.
NEVER_COPIED = frozenset({".git", ".cache"})

# Limits in bytes of texts that are read whole; parsed, they take up to 60 times as much memory. An index of 200,000
# tensors has 20 MB; if 60,000 Linears are padded, an indented config.json has 23 MB and fp8pad.json 62 MB.
_MAX_TEXT_BYTES, _MAX_LIST_BYTES = 32_000_000, {INDEX_FILE: 64_000_000, RECORD_FILE: 128_000_000}


def list_folder(
    root: Path, own_files: Container[str], follow_links: bool = False
) -> tuple[dict[str, FileIdentity], list[str]]:
    """List the files of `root` and its subfolders to be copied, with their identities, and the excluded ones.

    `own_files`, which are read or rewritten, are in neither list. Excluded are other formats of the same weights, links
    to folders, sockets, pipes, devices and, unless `follow_links`, links out of the folder (`leads_out`). Raises
    `CheckpointError` for a dangling link, a name that is not UTF-8 or a folder that cannot be read.
    """
    identities: dict[str, FileIdentity] = {}
    excluded: list[str] = []
    for name in _names(root):
        if name in own_files:
            continue
        try:
            status = (root / name).stat()
        except OSError as error:
            raise CheckpointError(f"{name}: cannot be read: {error.strerror}") from error
        if is_other_form(name) or not stat.S_ISREG(status.st_mode) or (not follow_links and leads_out(root, name)):
            excluded.append(name)
        else:
            identities[name] = FileIdentity.of(status)
    return identities, excluded


def is_shard(name: str) -> bool:
    """Return whether a shard can have this name: a safetensors file in the folder itself."""
    return name.endswith(SHARD_SUFFIX) and "/" not in name and "\0" not in name and name != SHARD_SUFFIX


def is_other_form(name: str) -> bool:
    """Return whether a file, by its relative name, holds the weights of the shards in another format."""
    folder, _, _ = name.partition("/")
    if folder != name:
        return folder in OTHER_FORM_FOLDERS
    return any(fnmatchcase(name.lower(), pattern) for pattern in OTHER_FORMS)


def is_excluded_link(root: Path, name: str) -> bool:
    """Return whether an excluded file is excluded only because it is a link out of the folder `root`."""
    return not is_other_form(name) and (root / name).is_file() and leads_out(root, name)


def leads_out(root: Path, name: str) -> bool:
    """Return whether a file is a link out of the folder `root`; links from a snapshot to its own blobs do not count."""
    path = root / name
    return path.is_symlink() and not path.resolve().is_relative_to(root.resolve()) and not leads_to_blob(root, name)


def leads_to_blob(root: Path, name: str) -> bool:
    """Return whether a file is a link to the folder where huggingface_hub's cache keeps files of the snapshot `root`.

    A snapshot is `models--org--name/snapshots/COMMIT`, and its files are links to `models--org--name/blobs`.
    """
    *_, entry, snapshots, _commit = ("", "", "", *root.resolve().parts)
    if snapshots != "snapshots" or not re.match("(models|datasets)--", entry):
        return False
    blobs = root.resolve().parent.parent / "blobs"  # not resolved: it could be a link itself
    return (root / name).resolve().is_relative_to(blobs)


def max_text_bytes(file: str) -> int:
    """Return the maximum size in bytes of a text that is read whole, by the name of its file."""
    return _MAX_LIST_BYTES.get(file, _MAX_TEXT_BYTES)


def read_text(root: Path, file: str) -> str:
    """Return the text of a file of the folder `root`; `ConfigError` if it cannot be read, is too large or not UTF-8."""
    return read_text_and_identity(root, file)[0]


def read_text_and_identity(root: Path, file: str) -> tuple[str, FileIdentity]:
    """Return the text of a file, and the identity of the file that was read; raises as `read_text` does."""
    try:
        with open_file(root / file, file) as opened:
            identity = opened.identity
            if identity.size > (limit := max_text_bytes(file)):
                raise ConfigError(f"{file}: expected at most {limit} bytes of text, got {identity.size}")
            return str(opened.read(0, identity.size), "utf-8"), identity
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: expected UTF-8: {error}") from error
    except ConfigError:
        raise
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _names(root: Path) -> list[str]:
    """Return the relative names of all files and links below a folder, and of subfolders that are not entered."""
    try:
        with open_directory(root.resolve()) as folder:
            names = sorted(folder.files(NEVER_COPIED))
    except OSError as error:
        place = root / error.filename if isinstance(error.filename, str) else root  # else a descriptor
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from error
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{name!r}: expected a file name in UTF-8") from error
    return names
