"""The checkpoint that `convert` and `unpad` write: staged next to its destination, then published in one step."""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint, check_unchanged
from fp8pad.checkpoint.compare import compare_files
from fp8pad.checkpoint.contents import Contents
from fp8pad.checkpoint.destination import Replaced, check_destination, check_replaceable, check_space
from fp8pad.checkpoint.files import Advance, FileIdentity, text_sha256
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.publish import forget_publication, is_published, publish, recover
from fp8pad.checkpoint.staging import hold_staging, join_staging, staging_path
from fp8pad.checkpoint.transfer import Hashes, Sums
from fp8pad.checkpoint.writer import Writer, Written, is_hashed
from fp8pad.errors import OutputError, VerifyError
from fp8pad.hub import SentCheckpoint
from fp8pad.parallel import run_all, work_on_all
from fp8pad.record import RECORD_FILE, CheckpointRecord

PART = 1 << 20  # characters of a text that are encoded at a time


@dataclass(slots=True)
class Output:
    """A checkpoint that is being written; `resumed` are shards that an earlier run had finished.

    `others` counts shards that are still staged in the end, for a run with other options.
    `written_bytes` counts its files, once they are written.
    Where `is_there`, an earlier run has published it already, as far as names, sizes and texts tell: its bytes are
    compared instead of written.
    """

    contents: Contents
    options: WriteOptions
    writer: Writer
    is_there: bool
    resumed: tuple[str, ...] = ()
    written_bytes: int = 0
    is_published: bool = False
    others: int = 0
    _keys: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """What tells a run that writes the same files again from all others."""
        contents = self.contents
        keys = [self.writer.key(layout) for layout in contents.layouts]
        texts = {file: text_sha256(text) for file, text in contents.texts.items()}
        how = (contents.record.policy, contents.record.fp8pad_version) if contents.record else None
        written = contents.source.identities, keys, contents.other_files, texts, how
        return hashlib.sha256(repr(written).encode()).hexdigest()

    @property
    def outdated_keys(self) -> set[str]:
        """The keys of shards whose source was changed since it was read."""
        layouts, source = self.contents.layouts, self.contents.source
        return {self.writer.key(layout) for layout in layouts if not _is_unchanged(source, layout.file)}

    @property
    def out_dir(self) -> Path:
        """The destination, without symbolic links."""
        return self.writer.staging.out_dir

    def write_files(self, progress: Progress) -> dict[str, Hashes]:
        """Write shards and other files; return their hashes, or nothing where they were not asked for."""
        if self.is_there:
            self._compare_files(progress)
            return {}
        contents, writer, jobs = self.contents, self.writer, self.options.jobs
        total_bytes = sum(map(writer.work_bytes, contents.layouts)) + contents.other_bytes
        total_bytes += sum(map(contents.source.fetched_bytes, contents.other_files))
        progress.start(
            _label(contents.layouts, self.options), total_bytes, len(contents.layouts) + len(contents.other_files)
        )
        shards = self._write_shards(progress)
        other_files = run_all(writer.copy_other_file, contents.other_files, jobs, progress)
        self._keys.update({layout.file: writer.key(layout) for layout in contents.layouts})
        self._keys.update({file: writer.file_key(file) for file in contents.other_files})
        written = dict(zip(self._keys, (*shards, *other_files), strict=True))
        self.written_bytes = sum(layout.target_bytes for layout in contents.layouts) + contents.other_bytes
        self.resumed = tuple(file for file, entry in written.items() if entry.resumed)
        return {file: entry.hashes for file, entry in written.items() if entry.hashes}

    def _compare_files(self, progress: Progress) -> None:
        """Raise `OutputError` if a file is not what would be written."""
        source, target = self.contents.source, self.out_dir
        progress.say(f"{target}: is complete as it seems; comparing its bytes")

        def compare(checked: ShardLayout | str, advance: Advance) -> bool:
            if isinstance(checked, str):
                with source.fetched(checked):
                    return not list(compare_files(checked, source.root / checked, target / checked))
            with source.fetched(checked.file, advance):
                return not self.writer.mismatches(checked, target / checked.file, Sums("none"), advance)

        layouts = self.contents.layouts
        data_bytes = sum(layout.data_bytes() + source.fetched_bytes(layout.file) for layout in layouts)
        files: tuple[ShardLayout | str, ...] = (*layouts, *self.contents.other_files)
        progress.start("comparing", data_bytes, len(files))
        if not all(run_all(compare, files, self.options.jobs, progress)):
            raise OutputError(f"{target}: is not empty; use --overwrite to replace it")
        self.resumed = tuple(layout.file for layout in layouts)
        found = (target / file for file in self.contents.files)
        self.written_bytes = sum(path.stat().st_size for path in found)

    def _write_shards(self, progress: Progress) -> list[Written]:
        workers, writer = self.options.workers, self.writer
        if workers.executor == "local":
            return run_all(writer.write_shard, self.contents.layouts, workers.jobs, progress)
        source = SentCheckpoint.of(writer.source)
        sent = SentWriter(source, str(self.out_dir), replace(self.options, shards=None))
        return work_on_all(sent, self.contents.layouts, workers, progress)

    def write_texts(self, record: CheckpointRecord | None = None) -> None:
        """Write the text files, the one without which nothing can be loaded last, and the record before them."""
        if self.is_there:
            return
        if record:
            self._write_text(RECORD_FILE, record.text_parts())
        for file, text in self.contents.texts.items():
            self._write_text(file, (text[begin : begin + PART] for begin in range(0, len(text), PART)))

    def _write_text(self, file: str, parts: Iterable[str]) -> None:
        self.written_bytes += self.writer.write_text(file, parts)
        self._keys[file] = self.writer.file_key(file)

    def publish(self) -> Replaced | None:
        """Put what was written in the place of `out_dir`; return what was replaced."""
        check_unchanged(self.contents.source)
        staging, replaced = self.writer.staging, None
        if not self.is_there:
            overwrite = self.options.overwrite or is_published(staging, self.run)
            replaced = publish(staging, self._keys, self.run, overwrite)
        self.is_published = True
        return replaced


@dataclass(frozen=True, slots=True)
class SentWriter:
    """Writes shards as a `Writer` does into the staging folder of `out_dir`, which another process holds."""

    source: SentCheckpoint
    out_dir: str
    options: WriteOptions

    def __call__(self, layout: ShardLayout, advance: Advance) -> Written:
        """Write a shard; see `Writer.write_shard`."""
        with join_staging(Path(self.out_dir)) as staging, self.source.opened() as source:
            return Writer(source, staging, self.options).write_shard(layout, advance)


@contextmanager
def staged(contents: Contents, out_dir: Path, options: WriteOptions) -> Iterator[Output]:
    """Hold the staging folder of `out_dir` while a checkpoint is written; `out_dir` changes when it is published.

    A run that ends early leaves its finished shards for the next one, unless the disk is full; a note at the error says
    so. Raises `OutputError` if nothing can be written to `out_dir`, before anything is created where that can be known.
    """
    target = check_destination(contents.source, out_dir)
    is_there = not options.overwrite and contents.seems_written(target, is_hashed(contents.source, options))
    if not staging_path(target).exists() and not is_there:
        check_replaceable(target, out_dir, contents.files, options.overwrite)
    with hold_staging(target) as staging:
        out = Output(contents, options, Writer(contents.source, staging, options), is_there)
        try:
            recover(staging)
            if not is_there:
                _begin(out, out_dir)
            yield out
            recover(staging)
            out.others = _remove_own(out)
        except BaseException as error:
            if note := _end_early(out, error):
                error.add_note(note)
            raise


def _remove_own(out: Output) -> int:
    """Remove the staging folder at the end; a run that finishes leaves other shards in it, and returns how many."""
    staging = out.writer.staging
    if out.options.finishes:
        staging.keep_finished(without={out.writer.key(layout) for layout in out.contents.layouts})
        if others := staging.num_finished:
            return others
    staging.remove()
    return 0


def write_slice(contents: Contents, out_dir: Path, options: WriteOptions, progress: Progress) -> tuple[str, ...]:
    """Write some shards into the staging folder and leave them there; return the names of all that are finished.

    Other processes may write others at the same time, and one has to publish them at the end. Raises as `staged` does,
    and `OutputError` if there are not so many shards.
    """
    shards, num_shards = options.shards or range(0), len(contents.layouts)
    if shards.stop > num_shards:
        raise OutputError(f"--shards: expected positions from 0 to {num_shards - 1}, got {shards.stop - 1}")
    target, source = check_destination(contents.source, out_dir), contents.source
    layouts = contents.layouts[shards.start : shards.stop]
    check_replaceable(target, out_dir, contents.files, options.overwrite)
    fetched_bytes = replace(contents, layouts=layouts, other_files=()).fetched_bytes(options.jobs)
    stored_bytes = sum(map(contents.stored_bytes, layouts))
    check_space(target, stored_bytes + fetched_bytes, source.remote.num_bytes if source.remote else 0)
    with hold_staging(target, shared=True) as staging:
        writer = Writer(source, staging, options)
        progress.start(_label(layouts, options), sum(map(writer.work_bytes, layouts)), len(layouts))
        try:
            run_all(writer.write_shard, layouts, options.jobs, progress)
        finally:
            staging.discard_unfinished()
        return tuple(layout.file for layout in contents.layouts if writer.is_finished(layout))


def _begin(out: Output, out_dir: Path) -> None:
    """Check once more, now that nobody else writes there; remove what an earlier run left and this one cannot use.

    A run that finishes removes nothing: it might have been given other options than the slices by mistake.
    """
    contents, options, writer, target = out.contents, out.options, out.writer, out.out_dir
    if not is_published(writer.staging, out.run):
        forget_publication(writer.staging, keeps_shards=options.finishes)
    overwrite = options.overwrite or is_published(writer.staging)
    check_replaceable(target, out_dir, contents.files, overwrite)
    needed_bytes = contents.needed_bytes(target, options.link) + contents.fetched_bytes(options.jobs)
    remote = contents.source.remote
    check_space(target, needed_bytes, writer.staging.num_bytes + (remote.num_bytes if remote else 0))
    if options.finishes:
        _check_finished(out)
    else:
        reused = filter(writer.is_finished, contents.layouts if options.resume else ())
        writer.staging.keep_only({writer.key(layout) for layout in reused})


def _check_finished(out: Output) -> None:
    """Raise `OutputError` if shards are missing that other processes should have finished."""
    layouts = out.contents.layouts
    missing = [number for number, layout in enumerate(layouts) if not out.writer.is_finished(layout)]
    if missing:
        count = f"{len(missing)} of {len(layouts)} shards"
        raise OutputError(f"{count} are not finished; the first is written by --shards {missing[0]}")


def _end_early(out: Output, error: BaseException) -> str | None:
    """Leave what the next run can use, and nothing else; return what there is to say about it."""
    staging = out.writer.staging
    try:
        recover(staging)
        out.is_published = out.is_published or (is_published(staging) and not out.is_there)
        gives_up = not out.options.finishes and (is_disk_full(error) or _fails_again(out, error))
        if not (out.is_published or gives_up):
            staging.keep_finished(without=out.outdated_keys)
            if staging.num_finished:
                return _resumable(out)
        staging.remove()
    except (OSError, OutputError) as failure:
        left = f"{staging.root.path} could not be removed: {failure}"
        return f"{out.out_dir} is complete; {left}" if out.is_published else left
    return f"{out.out_dir} is complete" if out.is_published else None


def _fails_again(out: Output, error: BaseException) -> bool:
    """Return whether the next run would end like this one: every shard is finished, and one is wrong."""
    return isinstance(error, VerifyError) and _num_finished(out) == len(out.contents.layouts)


def _num_finished(out: Output) -> int:
    return sum(out.writer.staging.finished(out.writer.key(layout)) is not None for layout in out.contents.layouts)


def _resumable(out: Output) -> str:
    staging, num_shards, num_finished = out.writer.staging, len(out.contents.layouts), _num_finished(out)
    if not num_finished:
        return others_left(staging.num_finished, staging.root.path)
    if out.options.finishes and num_finished < num_shards:
        return f"{num_finished} of {num_shards} shards are finished in {staging.root.path}"
    command = "the same command" if out.options.resume else "the same command without --no-resume"
    return f"run {command} to resume: {num_finished} of {num_shards} shards are finished in {staging.root.path}"


def others_left(num_finished: int, folder: Path) -> str:
    """Say where shards lie that do not belong to this run."""
    return f"{num_finished} shards that were written with other options, or from another source, lie in {folder}"


def _is_unchanged(source: Checkpoint, file: str) -> bool:
    with suppress(OSError):
        return source.identities[file].is_that_of(FileIdentity.of((source.root / file).stat()))
    return False


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error was caused by a full disk or a quota."""
    while error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        error = error.__cause__
    return False


def _label(layouts: Iterable[ShardLayout], options: WriteOptions) -> str:
    """Name the step whose bytes are counted: more than the files have, where they are read back too."""
    label = "unpadding" if any(layout.unpads for layout in layouts) else "padding"
    return label if options.verify == "none" else f"{label} and reading back"
