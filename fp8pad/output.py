"""The checkpoint that `convert` and `unpad` write: staged next to its destination, then published in one step."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fp8pad.checkpoint.compare import compare_files
from fp8pad.checkpoint.contents import Contents
from fp8pad.checkpoint.copying import copy_range
from fp8pad.checkpoint.destination import Replaced
from fp8pad.checkpoint.files import Advance, file_sha256, open_file
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.lock import join_staging
from fp8pad.checkpoint.moving import Hashes, Sums
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.publish import publish
from fp8pad.checkpoint.staging import key_of
from fp8pad.checkpoint.writer import Writer, Written
from fp8pad.errors import OutputError, VerifyError
from fp8pad.hub import SentCheckpoint
from fp8pad.parallel import run_on_threads, run_on_workers
from fp8pad.record import RECORD_FILE, CheckpointRecord


@dataclass(slots=True)
class Output:
    """A checkpoint that is being written; `resumed` are shards that an earlier run finished.

    `notes` are sentences about what is left in the staging folder at the end; `record_bytes` is the size of
    fp8pad.json.
    """

    was_complete: ClassVar[bool] = False

    contents: Contents
    options: WriteOptions
    writer: Writer
    resumed: tuple[str, ...] = ()
    is_published: bool = False
    notes: tuple[str, ...] = ()
    record_bytes: int = 0

    @property
    def out_dir(self) -> Path:
        """The destination, with symbolic links resolved."""
        return self.writer.staging.out_dir

    @property
    def written_bytes(self) -> int:
        """Bytes of all files once written; no file is looked at, since nothing may fail after publishing."""
        return sum(sizes.size for sizes in self.contents.files.values()) + self.record_bytes

    def write_files(self, progress: Progress) -> dict[str, Hashes]:
        """Write shards and other files; return their hashes, or nothing if hashes were not asked for."""
        contents, source, writer = self.contents, self.contents.source, self.writer
        total_bytes = sum(map(writer.work_bytes, contents.layouts)) + contents.other_bytes
        total_bytes += sum(map(source.fetched_bytes, source.other_files))
        files = (*(layout.file for layout in contents.layouts), *source.other_files)
        progress.start(label_of(contents.layouts, self.options), total_bytes, len(files))
        shards = self._write_shards(progress)
        others = run_on_threads(self._copy_other_file, source.other_files, self.options.jobs, progress)
        written = dict(zip(files, (*shards, *others), strict=True))
        self.resumed = tuple(file for file, entry in written.items() if entry.resumed)
        return {file: entry.hashes for file, entry in written.items() if entry.hashes}

    def _write_shards(self, progress: Progress) -> list[Written]:
        options, writer = self.options, self.writer
        sent = SentWriter(SentCheckpoint.of(writer.source), str(self.out_dir), options)
        return run_on_workers(writer.write_shard, self.contents.layouts, options, progress, sent)

    def write_texts(self, record: CheckpointRecord | None = None) -> None:
        """Write the record, then the text files, config.json last: without it nothing can be loaded."""
        if record:
            self.record_bytes = self._write_text(
                RECORD_FILE, (part.encode() for part in record.text_parts()), record.originals
            )
        for file, text in self.contents.texts.items():
            self._write_text(file, text.parts())

    def _copy_other_file(self, file: str, advance: Advance) -> Written:
        """Copy a file unchanged; raises as `Writer.write_shard` does."""
        checkpoint, staging, key, hashes = self.contents.source, self.writer.staging, key_of(file), None
        origin, expected = checkpoint.root / file, checkpoint.identities[file]
        with checkpoint.fetched(file, advance):
            with (
                open_file(origin, file, expected) as source,
                staging.create(key, file, source.copied_mode(self.writer.group)) as target,
            ):
                copy_range(source, target, (0, 0), expected.size, advance)
            if self.writer.is_hashed:
                hashes = Hashes(file_sha256(staging.unfinished_path(key), file), file_sha256(origin, file))
        if hashes and hashes.sha256 != hashes.source_sha256:
            raise VerifyError(f"{file}: what was read back differs from what was written")
        staging.complete(key, file)
        return Written(hashes)

    def _write_text(self, file: str, parts: Iterable[bytes], holds: Iterable[str] = ()) -> int:
        """Write a text file and read it back; return its size in bytes. Raises as `Writer.write_shard` does.

        Its permissions are no wider than those of the files whose text it `holds`.
        """
        staging, key, digest, num_bytes = self.writer.staging, key_of(file), hashlib.sha256(), 0
        mode = self.contents.source.copied_mode(file, self.writer.group, holds)
        with staging.create(key, file, mode) as target:
            for part in parts:
                target.write(num_bytes, part)
                digest.update(part)
                num_bytes += len(part)
        if file_sha256(staging.unfinished_path(key), file) != digest.hexdigest():
            raise VerifyError(f"{file}: what was read back differs from what was written")
        staging.complete(key, file)
        return num_bytes

    def publish(self) -> Replaced | None:
        """Move what was written to `out_dir`; return what was replaced."""
        contents, writer = self.contents, self.writer
        contents.source.check_unchanged()
        keys = {layout.file: writer.key(layout) for layout in contents.layouts}
        others = (*contents.source.other_files, *([RECORD_FILE] if contents.record else []), *contents.texts)
        keys |= {file: key_of(file) for file in others}
        mode, group = contents.source.copied_folder_mode, writer.group
        replaced = publish(writer.staging, keys, self.options.overwrite, lambda folder: mode(folder, group))
        self.is_published = True
        return replaced


@dataclass(slots=True)
class CompleteOutput(Output):
    """What an earlier run published, as far as names, sizes and texts tell: its bytes are compared, not written.

    `contents` has the record that was found, hashes included. `asked` is the destination as the user wrote it.
    """

    was_complete: ClassVar[bool] = True
    asked: Path = field(kw_only=True)

    def write_files(self, progress: Progress) -> dict[str, Hashes]:
        """Return hashes if asked for or recorded; raise `OutputError` if a file differs from what would be written."""
        source, target, record = self.contents.source, self.out_dir, self.contents.record
        progress.say(f"{self.asked}: seems complete; comparing its bytes")
        is_hashed = self.writer.is_hashed or (record is not None and record.has_hashes)

        def compare(checked: ShardLayout | str, advance: Advance) -> Hashes | None:
            if isinstance(checked, str):
                with source.fetched(checked):
                    if list(compare_files(checked, source.root / checked, target / checked)):
                        raise self._not_empty
                digest = file_sha256(target / checked, checked) if is_hashed else None
                return Hashes(digest, digest) if digest else None
            self.writer.check_dropped(checked, advance)
            sums = Sums("none", hashed=is_hashed)
            with source.fetched(checked.file, advance):
                if self.writer.first_mismatch(checked, target / checked.file, sums, advance):
                    raise self._not_empty
            return sums.hashes

        layouts = self.contents.layouts
        data_bytes = sum(layout.data_bytes() + source.fetched_bytes(layout.file) for layout in layouts)
        files: tuple[ShardLayout | str, ...] = (*layouts, *source.other_files)
        progress.start("comparing", data_bytes, len(files))
        found = run_on_threads(compare, files, self.options.jobs, progress)
        self.resumed = tuple(layout.file for layout in layouts)
        self.record_bytes = (target / RECORD_FILE).stat().st_size if record else 0
        names = (*self.resumed, *source.other_files)
        return {file: hashes for file, hashes in zip(names, found, strict=True) if hashes}

    def write_texts(self, record: CheckpointRecord | None = None) -> None:
        """Raise `OutputError` unless the record that was found equals `record`; its texts did."""
        if record != self.contents.record:
            raise self._not_empty

    def publish(self) -> None:
        """Check that the source did not change; there is nothing to move."""
        self.contents.source.check_unchanged()
        self.is_published = True

    @property
    def _not_empty(self) -> OutputError:
        return OutputError(f"{self.asked}: is not empty; use --overwrite to replace it")


@dataclass(frozen=True, slots=True)
class SentWriter:
    """Writes shards like a `Writer` into the staging folder of `out_dir`, which another process has locked."""

    source: SentCheckpoint
    out_dir: str
    options: WriteOptions

    def __call__(self, layout: ShardLayout, advance: Advance) -> Written:
        """Write a shard; see `Writer.write_shard`."""
        with join_staging(Path(self.out_dir)) as staging, self.source.opened() as source:
            return Writer(source, staging, self.options).write_shard(layout, advance)


def label_of(layouts: Iterable[ShardLayout], options: WriteOptions) -> str:
    """Return the name of the step whose bytes are counted; bytes that are read back are counted again."""
    changed = [layout for layout in layouts if not layout.is_untouched]
    label = ("unpadding" if changed[0].unpads else "padding") if changed else "copying"
    return label if options.verify == "none" else f"{label} and reading back"
