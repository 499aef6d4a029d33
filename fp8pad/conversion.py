"""Convert a checkpoint: derive every file from source and plan, then write, read back and publish them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.contents import Contents
from fp8pad.checkpoint.destination import Replaced
from fp8pad.checkpoint.options import VerifyDepth, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.converted import Converted, converted_files
from fp8pad.output import Output, others_left, staged, write_slice
from fp8pad.planning.engines import find_engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import CONFIG_FILE, FORMAT_VERSION
from fp8pad.summary import plan_document


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was written: counts of tensors and of bytes, over all files, and the names of files.

    `rewritten` files differ from the source's, `kept` ones do not, `excluded` ones did not come along, `resumed` shards
    had been finished by an earlier run. `replaced` is what stood at `out_dir` before, `engine` the one
    that is planned for. Where `was_complete`, nothing was written: every byte was compared.
    """

    source: Checkpoint
    plan: CheckpointPlan
    out_dir: Path
    tensors_padded: int
    source_bytes: int
    written_bytes: int
    rewritten: tuple[str, ...]
    kept: tuple[str, ...]
    excluded: tuple[str, ...]
    resumed: tuple[str, ...]
    verified: VerifyDepth
    replaced: Replaced | None = None
    engine: str | None = None
    was_complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad convert --json` prints."""
        return {
            **plan_document(self.source, self.plan, find_engine(self.engine)),
            "out_dir": str(self.out_dir),
            "tensors_padded": self.tensors_padded,
            "source_bytes": self.source_bytes,
            "written_bytes": self.written_bytes,
            "files_rewritten": list(self.rewritten),
            "files_kept": list(self.kept),
            "files_left_out": list(self.excluded),
            "files_resumed": list(self.resumed),
            "verified": self.verified,
            **({"was_complete": True} if self.was_complete else {}),
            **(self.replaced.to_json() if self.replaced else {}),
        }


@dataclass(frozen=True, slots=True)
class SliceReport:
    """The names of the shards that are finished by now, whoever wrote them, and how many there are."""

    out_dir: Path
    finished: tuple[str, ...]
    num_shards: int

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad convert --shards --json` prints."""
        return {
            "format_version": FORMAT_VERSION,
            "out_dir": str(self.out_dir),
            "files_finished": list(self.finished),
            "num_shards": self.num_shards,
        }


def convert(
    source: Checkpoint, plan: CheckpointPlan, out_dir: Path, options: WriteOptions, progress: Progress
) -> ConvertReport:
    """Write the checkpoint that `plan` makes of `source` to `out_dir`, which appears when it is complete and verified.

    A plan that changes nothing gives an equal checkpoint without records. Raises `PlanError` if plan and source do not
    fit, `CheckpointError` if the source cannot be read or changes meanwhile, `OutputError` if `out_dir` cannot be
    written, and `VerifyError` if what was read back is wrong.
    """
    design = converted_files(source, plan, with_card=options.card)
    with staged(_contents(design), out_dir, options) as out:
        hashes = out.write_files(progress)
        out.write_texts(design.record_with(hashes) if design.record else None)
        replaced = out.publish()
    if out.others:
        progress.say(others_left(out.others, out.writer.staging.root.path))
    return _report(plan, design, out, out_dir=out_dir, replaced=replaced)


def convert_slice(
    source: Checkpoint, plan: CheckpointPlan, out_dir: Path, options: WriteOptions, progress: Progress
) -> SliceReport:
    """Write those shards that `options` name, and leave them for a run that `finishes`; see `write_slice`."""
    design = converted_files(source, plan, with_card=options.card)
    finished = write_slice(_contents(design), out_dir, options, progress)
    return SliceReport(out_dir, finished, len(design.layouts))


def _contents(design: Converted) -> Contents:
    """Return the files to write, config.json last, so that nothing loads before."""
    texts = dict(design.texts)
    texts[CONFIG_FILE] = texts.pop(CONFIG_FILE)
    return Contents(design.source, design.layouts, design.source.other_files, texts, design.record)


def _report(
    plan: CheckpointPlan, design: Converted, out: Output, *, out_dir: Path, replaced: Replaced | None
) -> ConvertReport:
    source = design.source
    rewritten = {layout.file for layout in design.layouts if not layout.is_untouched}
    rewritten |= {file for file, text in design.texts.items() if text != design.source_texts[file]}
    return ConvertReport(
        source=source,
        plan=plan,
        out_dir=out_dir,
        tensors_padded=len(design.record.tensors) if design.record else 0,
        source_bytes=sum(file.source_size for file in design.files.values()),
        written_bytes=out.written_bytes,
        rewritten=tuple(sorted(rewritten)),
        kept=tuple(sorted(design.files.keys() - rewritten)),
        excluded=source.excluded,
        resumed=out.resumed,
        verified=out.options.verify,
        replaced=replaced,
        was_complete=out.is_there,
    )
