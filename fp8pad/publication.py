"""The road that `convert` and `unpad` share: check the destination, stage every file, read it back, publish."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fp8pad.checkpoint.checkpoint import Checkpoint, check_unchanged
from fp8pad.checkpoint.destination import can_clone, check_destination, check_space
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import Link, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.staging import Staging
from fp8pad.checkpoint.transfer import Hashes
from fp8pad.checkpoint.writer import Writer, Written
from fp8pad.parallel import run_all

Texts: TypeAlias = Callable[[Mapping[str, Hashes]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Draft:
    """A checkpoint that is to be written: shards padded, or logical again where it `unpads`.

    `texts` returns the text files, the one without which nothing can be loaded last; it is given the hashes of the
    other files, which is empty unless they were asked for.
    """

    source: Checkpoint
    layouts: tuple[ShardLayout, ...]
    other_files: tuple[str, ...]
    texts: Texts
    unpads: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that is complete: its folder, and the shards that an earlier run had finished."""

    out_dir: Path
    resumed: tuple[str, ...]


def publish(draft: Draft, out_dir: Path, options: WriteOptions, progress: Progress) -> Published:
    """Write a checkpoint beside `out_dir` and rename it when it is complete; `out_dir` changes in that moment only.

    Raises `OutputError` if it cannot be written, before anything is created where that can be known, `CheckpointError`
    if the source cannot be read or changes meanwhile, and `VerifyError` if what was read back is wrong.
    """
    target = check_destination(draft.source, out_dir, options.overwrite)
    staging = Staging.beside(target)
    writer = Writer(draft.source, staging, options.link, options.verify)
    check_space(target, _needed_bytes(draft, target, options.link), staging.num_bytes)
    with staging.held(options.resume):
        finished = [layout for layout in draft.layouts if writer.is_finished(layout)]
        staging.keep_only({writer.staged(layout) for layout in finished})
        written = _write_files(draft, writer, options.jobs, progress)
        hashes = {file: entry.hashes for file, entry in written.items() if entry.hashes}
        texts = draft.texts(hashes)
        for file, text in texts.items():
            writer.write_text(file, text)
        check_unchanged(draft.source)
        shards = {layout.file: writer.staged(layout) for layout in draft.layouts}
        staging.publish({**shards, **{file: staging.staged(file) for file in texts}}, options.overwrite)
    return Published(target, tuple(file for file, entry in written.items() if entry.resumed))


def _write_files(draft: Draft, writer: Writer, jobs: int, progress: Progress) -> dict[str, Written]:
    total_bytes = sum(writer.work_bytes(layout) for layout in draft.layouts) + _other_bytes(draft)
    progress.start("unpadding" if draft.unpads else "padding", total_bytes)
    shards = run_all(writer.write_shard, draft.layouts, jobs, progress)
    other_files = run_all(writer.copy_other_file, draft.other_files, jobs, progress)
    files = (*(layout.file for layout in draft.layouts), *draft.other_files)
    return dict(zip(files, (*shards, *other_files), strict=True))


def _needed_bytes(draft: Draft, target: Path, link: Link) -> int:
    written = [layout for layout in draft.layouts if not layout.is_untouched]
    untouched = [layout for layout in draft.layouts if layout.is_untouched]
    is_linked = link in {"hardlink", "reflink"} or (
        link == "auto" and untouched and can_clone(draft.source.root / untouched[0].file, target)
    )
    files = written if is_linked else draft.layouts
    return sum(layout.target.file_bytes for layout in files) + _other_bytes(draft)


def _other_bytes(draft: Draft) -> int:
    return sum(draft.source.identities[file].size for file in draft.other_files)
