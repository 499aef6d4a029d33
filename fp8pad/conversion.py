"""Convert a checkpoint: derive every file from source and plan, then write, read back and publish them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.destination import Replaced
from fp8pad.checkpoint.options import VerifyDepth, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.converted import converted_files, record_with
from fp8pad.planned import PlanReport
from fp8pad.record import CARD_FILE, REPORT_VERSION
from fp8pad.staged import staged, write_slice
from fp8pad.summary import output_files


@dataclass(frozen=True, kw_only=True)
class ConvertReport(PlanReport):
    """What was planned, and what was written: counts of tensors and bytes over all files, and file names.

    `rewritten` files differ from the source's, `kept` ones do not, `excluded` ones were not copied, and `resumed`
    shards were finished by an earlier run. `replaced` is what was at `out_dir` before. If `was_complete`, nothing was
    written: every byte was compared.
    """

    out_dir: Path
    tensors_padded: int
    source_bytes: int
    written_bytes: int
    rewritten: tuple[str, ...] = field(repr=False)
    kept: tuple[str, ...] = field(repr=False)
    excluded: tuple[str, ...]
    resumed: tuple[str, ...]
    verified: VerifyDepth
    replaced: Replaced | None = None
    was_complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad convert --json` prints."""
        return {
            **super().to_json(),
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
    """The names of the shards that are finished by now, whichever run wrote them, and the number of all shards."""

    out_dir: Path
    finished: tuple[str, ...]
    num_shards: int

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad convert --shards --json` prints."""
        return {
            "format_version": REPORT_VERSION,
            "out_dir": str(self.out_dir),
            "files_finished": list(self.finished),
            "num_shards": self.num_shards,
        }


def convert(planned: PlanReport, out_dir: Path, options: WriteOptions, progress: Progress) -> ConvertReport:
    """Write the planned checkpoint to `out_dir`, which appears when it is complete and verified.

    A plan that changes nothing gives an equal checkpoint without records. Raises `PlanError` if the plan does not fit
    the source, `CheckpointError` if the source cannot be read or changes meanwhile, `OutputError` if `out_dir` cannot
    be written, and `VerifyError` if what was read back is wrong.
    """
    source, plan = planned.source, planned.plan
    contents = converted_files(source, plan, planned.card)
    files = output_files(source, plan, with_card=CARD_FILE in contents.texts)
    with staged(contents, out_dir, options) as out:
        hashes = out.write_files(progress)
        out.write_texts(record_with(contents, hashes))
        replaced = out.publish()
    given = {"--hash": options.hash, "--absorb": plan.policy.absorb, "--absorb-experts": plan.policy.absorb_experts}
    idle = [name for name, is_given in given.items() if is_given and plan.changes_nothing]
    for note in (*out.notes, *([f"{', '.join(idle)}: no effect, since nothing was changed"] if idle else [])):
        progress.say(note)
    return ConvertReport(
        source,
        plan,
        planned.engine,
        planned.card,
        out_dir=out_dir,
        tensors_padded=len(contents.record.tensors) if contents.record else 0,
        source_bytes=sum(sizes.source_size for sizes in contents.files.values()),
        written_bytes=out.written_bytes,
        rewritten=files.rewritten,
        kept=files.kept,
        excluded=files.excluded,
        resumed=out.resumed,
        verified=options.verify,
        replaced=replaced,
        was_complete=out.was_complete,
    )


def convert_slice(
    planned: PlanReport, out_dir: Path, options: WriteOptions, progress: Progress, shards: range
) -> SliceReport:
    """Stage the shards at these positions of the sorted names for a run that `finishes`; see `write_slice`."""
    contents = converted_files(planned.source, planned.plan, planned.card)
    return SliceReport(out_dir, write_slice(contents, out_dir, options, progress, shards), len(contents.layouts))
