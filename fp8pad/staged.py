"""Staging a checkpoint: what is checked before writing, and what a run that ends early leaves for the next one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.contents import Contents
from fp8pad.checkpoint.destination import check_destination, check_replaceable, check_space
from fp8pad.checkpoint.files import FileIdentity, writing
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.publish import forget_publication, is_published, recover
from fp8pad.checkpoint.staging import Staging, is_files, is_kept, staging_path
from fp8pad.checkpoint.writer import Writer, is_hashed
from fp8pad.errors import AlteredPaddingError, OutputError, UsageError, VerifyError
from fp8pad.output import CompleteOutput, Output, label_of
from fp8pad.parallel import run_on_threads
from fp8pad.text import counted


@contextmanager
def staged(contents: Contents, out_dir: Path, options: WriteOptions) -> Iterator[Output]:
    """Lock the staging folder of `out_dir` while a checkpoint is written; `out_dir` changes only when it is published.

    A run that ends early leaves its finished shards for the next one; a note on the error says so. Raises `OutputError`
    if nothing can be written to `out_dir`, if possible before anything is created.
    """
    target = check_destination(contents.source, out_dir)
    there = None if options.overwrite else contents.found_at(target, is_hashed(contents.source, options))
    if not staging_path(target).exists() and not there:
        check_replaceable(target, out_dir, contents.names, options.overwrite)
    with hold_staging(target) as staging:
        writer = Writer(contents.source, staging, options)
        out = CompleteOutput(there, options, writer, asked=out_dir) if there else Output(contents, options, writer)
        try:
            recover(staging)
            if not there:
                _begin(out, out_dir)
            yield out
            recover(staging)
            out.notes = _remove_own(out)
        except BaseException as error:
            if note := _end_early(out, error):
                error.add_note(note)
            raise


def _remove_own(out: Output) -> tuple[str, ...]:
    """Remove the staging folder at the end; return notes about what is left in it.

    These are complete folders that no run announced and, if this run `finishes`, shards that are not its own.
    """
    staging = out.writer.staging
    folders = tuple(_folders_left(staging, lambda name: is_files(name) or is_kept(name)))
    if out.options.finishes:
        own = {out.writer.key(layout) for layout in out.contents.layouts}
        staging.keep_finished(lambda key: key not in own)
        if others := staging.num_finished:
            return (*folders, others_left(others, staging.root.path))
    staging.remove()
    return folders


def write_slice(
    contents: Contents, out_dir: Path, options: WriteOptions, progress: Progress, shards: range
) -> tuple[str, ...]:
    """Write the shards at some positions into the staging folder; return the names of all that are finished there.

    Other processes may write other shards at the same time; a last run must publish all of them. Raises what `staged`
    raises, and `UsageError` if there are fewer shards.
    """
    if shards.stop > (num_shards := len(contents.layouts)):
        raise UsageError(f"--shards: expected positions from 0 to {num_shards - 1}, got {shards.stop - 1}")
    target, source = check_destination(contents.source, out_dir), contents.source
    layouts = contents.layouts[shards.start : shards.stop]
    check_replaceable(target, out_dir, contents.names, options.overwrite)
    written = replace(contents, layouts=layouts, source=replace(source, other_files=()))
    if not staging_path(target).exists():
        _check_room(written, target, options)
    with hold_staging(target, shared=True) as staging:
        writer = Writer(source, staging, options, is_slice=True)
        missing = tuple(layout for layout in layouts if not writer.is_finished(layout))
        _check_room(replace(written, layouts=missing), target, options)
        progress.start(label_of(layouts, options), sum(map(writer.work_bytes, layouts)), len(layouts))
        try:
            run_on_threads(writer.write_shard, layouts, options.jobs, progress)
        except BaseException as error:
            with suppress(OSError):
                usable = [layout for layout in layouts if not _is_outdated(layout, source)]
                if num_finished := _num_finished(writer, usable):
                    error.add_note(f"run the same command to resume: {_finished(num_finished, writer, layouts)}")
            raise
        finally:
            staging.discard_unfinished()
        return tuple(layout.file for layout in contents.layouts if writer.is_finished(layout))


def _begin(out: Output, out_dir: Path) -> None:
    """Check again, now under the lock; remove what an earlier run left that this one cannot use.

    A run that `finishes` removes no shards: its options might differ from those of the slices by mistake.
    """
    contents, options, writer, target = out.contents, out.options, out.writer, out.out_dir
    forget_publication(writer.staging, keeps_shards=options.finishes)
    check_replaceable(target, out_dir, contents.names, options.overwrite)
    _check_room(contents, target, options, writer.staging.num_bytes)
    if options.finishes:
        _check_finished(out)
    else:
        reused = filter(writer.is_finished, contents.layouts if options.resume else ())
        keys = {writer.key(layout) for layout in reused}
        writer.staging.keep_finished(keys.__contains__)


def _check_room(contents: Contents, target: Path, options: WriteOptions, staged_bytes: int = 0) -> None:
    remote = contents.source.remote
    check_space(target, contents.needed_bytes(target, options), staged_bytes + (remote.num_bytes if remote else 0))


def _check_finished(out: Output) -> None:
    """Raise `OutputError` if shards are missing that other processes should have finished."""
    layouts = out.contents.layouts
    missing = [number for number, layout in enumerate(layouts) if not out.writer.is_finished(layout)]
    if missing:
        count = f"{len(missing)} of {len(layouts)} shards"
        raise OutputError(f"{count} are not finished; write the first one with --shards {missing[0]}")


def _end_early(out: Output, error: BaseException) -> str | None:
    """Leave only what the next run can use; return a note about it, if there is anything to say."""
    staging, left = out.writer.staging, list[str]()
    try:
        recover(staging)
        left += _folders_left(staging, is_kept)
        out.is_published = out.is_published or (is_published(staging) and not out.was_complete)
        if not (out.is_published or _fails_again(out, error)):
            layouts, source = out.contents.layouts, out.contents.source
            outdated = {out.writer.key(layout) for layout in layouts if _is_outdated(layout, source)}
            staging.keep_finished(lambda key: key not in outdated)
            if staging.num_finished:
                return "; ".join((_resumable(out, error), *left))
        staging.remove()
    except (OSError, OutputError) as failure:
        if str(failure) != str(error):  # `recover` may fail twice for the same reason
            left.append(f"{staging.root.path} could not be removed: {failure}")
    done = [f"{out.out_dir} is complete"] if out.is_published else []
    return "; ".join((*done, *left)) or None


def _fails_again(out: Output, error: BaseException) -> bool:
    """Return whether the next run would end like this one: every shard is finished, and one is wrong."""
    is_wrong = isinstance(error, VerifyError) and not out.options.finishes
    return is_wrong and _num_finished(out.writer, out.contents.layouts) == len(out.contents.layouts)


def _num_finished(writer: Writer, layouts: Sequence[ShardLayout]) -> int:
    return sum(writer.staging.finished(writer.key(layout)) is not None for layout in layouts)


def _finished(num_finished: int, writer: Writer, layouts: Sequence[ShardLayout]) -> str:
    return f"{num_finished} of {len(layouts)} shards are finished in {writer.staging.root.path}"


def _resumable(out: Output, error: BaseException) -> str:
    writer, layouts = out.writer, out.contents.layouts
    num_finished = _num_finished(writer, layouts)
    if not num_finished:
        return others_left(writer.staging.num_finished, writer.staging.root.path)
    finished = _finished(num_finished, writer, layouts)
    # Running the same command again would not help.
    if (out.options.finishes and num_finished < len(layouts)) or isinstance(error, AlteredPaddingError):
        return finished
    command = "the same command" if out.options.resume else "the same command without --no-resume"
    return f"run {command} to resume: {finished}"


def _folders_left(staging: Staging, is_left: Callable[[str], bool]) -> Iterator[str]:
    """Yield notes on the complete folders in the staging folder that are not removed."""
    with writing(staging.root.path):
        for folder in (staging.root.path / name for name in staging.root.names() if is_left(name)):
            yield (
                f"{folder} was left by another run, or was at its OUT_DIR: "
                "move it away if you need it, otherwise remove it"
            )


def others_left(num_finished: int, folder: Path) -> str:
    """Return a note on the shards in `folder` that do not belong to this run."""
    return f"{folder} holds {counted(num_finished, 'shard')} written with other options or from another source"


def _is_outdated(layout: ShardLayout, source: Checkpoint) -> bool:
    """Return whether the source of a shard has changed since it was read."""
    with suppress(OSError):
        return not source.identities[layout.file].is_that_of(FileIdentity.of((source.root / layout.file).stat()))
    return True
