"""Changes in the other files of a checkpoint since it was converted: tokenizers, licences, code, configs.

A model card may be edited, and harmless files may be added. It is a mismatch if another file that the record names was
changed or removed, or if a file was added that an engine loads, runs or obeys.
"""

from collections.abc import Container, Iterator, Mapping
from pathlib import PurePath

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch
from fp8pad.checkpoint.folder import NEVER_COPIED, leads_out, leads_to_blob
from fp8pad.record import CARD_FILE, RECORD_FILE, FileRecord
from fp8pad.text import matches

# Files that an engine loads, runs or obeys: weights, pickles, code, configs and chat templates, in subfolders too.
# Tokenizers are not among them, since people do add those.
DANGEROUS = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot"),
    *("*.pkl", "*.pickle", "*.joblib", "*.dill", "*.npy", "*.npz"),
    *("*.py", "*.pyc", "*.so", "*.sh"),
    *("*config*.json", "*.index.json", "params.json", "modules.json", "*.jinja", "*.jinja2", "chat_template*"),
)
HARMLESS = ("tokenizer_config.json",)


def is_dangerous(file: str) -> bool:
    """Return whether a file, by its relative name, changes what an engine does with the checkpoint."""
    name = PurePath(file).name.lower()
    return name not in HARMLESS and matches((name,), DANGEROUS)


def is_wrong(file: str, named: Container[str]) -> bool:
    """Return whether a change of `file` is a mismatch, not only a note; `named` are the files that the record names."""
    return is_dangerous(file) or (file in named and file != CARD_FILE)


def changed_files(converted: Checkpoint, files: Mapping[str, FileRecord]) -> Iterator[Mismatch]:
    """Yield files and links that were added or removed, or that have a different size than `files` says.

    Shards, config.json and the index are skipped if they are there: `examine` checks them.
    """
    own_files = {RECORD_FILE, *converted.text_files, *converted.shard_files}
    found = {file: converted.identities[file].size for file in converted.other_files}
    for file in sorted((files.keys() | found.keys()) - own_files):
        if file not in found and file not in converted.excluded:
            yield Mismatch.missing(file, files[file].size)
        elif file not in found:
            yield Mismatch(file, "file", f"a file of {files[file].size} bytes", _form(converted, file))
        elif file not in files:
            yield Mismatch.added(file, f"{found[file]} bytes")
        elif found[file] != files[file].size:
            yield Mismatch(file, "size", f"{files[file].size} bytes", f"{found[file]} bytes")
    for file in sorted(set(converted.excluded) - files.keys()):
        if PurePath(file).name not in NEVER_COPIED or (converted.root / file).is_symlink():
            yield Mismatch.added(file, _form(converted, file))


def _form(converted: Checkpoint, file: str) -> str:
    """Return what an excluded file is."""
    if leads_out(converted.root, file):
        return "a link out of the folder"
    return "another form of the weights" if (converted.root / file).is_file() else "not a regular file"


def notes_on_files(converted: Checkpoint) -> Iterator[str]:
    """Yield notes on what others could change unnoticed: links, and files that every user may write to."""
    for file in converted.identities:
        path = converted.root / file
        if path.is_symlink() and not leads_to_blob(converted.root, file):
            yield f"{file}: is a link to {path.resolve()}"
        if path.stat().st_mode & 0o002:
            yield f"{file}: is writable by every user"
