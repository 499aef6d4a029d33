"""How the terminal shows the reports of `convert`, `verify`, `unpad` and `push`."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from fp8pad.card import hub_repo
from fp8pad.checkpoint.destination import Replaced
from fp8pad.conversion import ConvertReport, SliceReport
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import CARD_FILE, RECORD_FILE
from fp8pad.render.advice import advice
from fp8pad.render.console import Fact, command, growth, shell_command, shortened
from fp8pad.render.plan import excluded_facts, not_understood_facts, note_facts, skipped_facts
from fp8pad.render.screen import Command, Paragraph, Rows, Screen, Section
from fp8pad.render.verdict import next_steps, refusal
from fp8pad.text import counted, printable
from fp8pad.unpadding import UnpadReport
from fp8pad.upload import PushReport
from fp8pad.verification import VerifyReport

_VERIFIED = {
    "padded": "every header, size and padded tensor read back",
    "full": "every byte read back, every file hashed",
    "none": "not read back",
}


def conversion_screen(report: ConvertReport) -> Screen:
    """Lay out what was written, what was checked, what was excluded, and what to do next."""
    source, plan, out_dir = report.source, report.plan, report.out_dir
    copy = ", an equal copy since nothing needs padding" if plan.changes_nothing else ""
    done = "every byte compared" if report.was_complete else _VERIFIED[report.verified]
    verdict = f"complete{' already' if report.was_complete else ''}{copy}, {done}"
    facts = [("padded", counted(report.tensors_padded, "tensor"))] if report.tensors_padded else []
    facts += [*not_understood_facts(plan), *skipped_facts(plan)]
    facts.append(("files", growth(report.source_bytes, report.written_bytes)))
    named = ("rewritten", report.rewritten), ("resumed", () if report.was_complete else report.resumed)
    facts += [(label, shortened(names)) for label, names in named if names]
    facts += excluded_facts(report.excluded, source.links_out)
    facts += [*_replaced_facts(report.replaced), *note_facts(plan)]
    if CARD_FILE in report.rewritten and not hub_repo(source):
        facts.append(("note", f"{CARD_FILE}: before you publish it, set base_model to the original's name on the hub"))
    yield from _screen(out_dir, verdict, facts)
    yield from refusal(report.judge) if report.judge.converted.refused else _serving(plan, out_dir)
    yield from next_steps(advice(report, out_dir, "--overwrite", is_written=True) if plan.layers else ())
    yield Section("How to check it")
    yield Command(command("verify", source, out_dir))


def _screen(folder: Path, verdict: str, facts: Sequence[Fact] = ()) -> Screen:
    return Paragraph(Text(printable(f"{folder}: {verdict}"), style="bold")), Rows(facts)


def _serving(plan: CheckpointPlan, out_dir: Path) -> Screen:
    size = plan.policy.tensor_parallel_size
    ranks = ["--tensor-parallel-size", str(size)] if size > 1 else []
    needs = ", in an environment with vLLM and fp8pad" if plan.needs_runtime else ", no plugin needed"
    yield Section(f"How to serve it{needs}")
    yield Command(shell_command("vllm", "serve", out_dir, *ranks))


def slice_screen(report: SliceReport, finish: str) -> Screen:
    """Lay out how many shards are finished, and the `finish` command to run when all are."""
    yield from _screen(report.out_dir, f"{len(report.finished)} of {report.num_shards} shards are finished")
    yield Section("When all are finished")
    yield Command(finish)


def verification_screen(report: VerifyReport) -> Screen:
    """Lay out what was compared, and whether all matches; if not, what differs."""
    facts = [("differs", printable(str(mismatch))) for mismatch in report.mismatches]
    facts += [("note", printable(note)) for note in report.notes]
    return _screen(report.out_dir, _verdict(report), facts)


def _verdict(report: VerifyReport) -> str:
    against = f"{report.model}" if report.model else "its records"
    if not report.ok:
        return f"differs from {against}; the first differences are:"
    tensors = counted(report.tensors_checked, "tensor")
    if not report.has_records:
        return f"an equal copy of {report.model}: {tensors}; it has no fp8pad records"
    checked = "every byte" if report.model else "every padded byte"
    hashes = f", and the SHA-256 of {counted(report.files_hashed, 'file')}" if report.files_hashed else ""
    source = f" of {report.model}" if report.model else ""
    return f"matches: the records of {tensors}, {checked}{source}{hashes}"


def restoration_screen(report: UnpadReport) -> Screen:
    """Lay out what was restored and what was excluded."""
    done = "complete already" if report.was_complete else "restored"
    verdict = f"{done}, {counted(report.tensors_unpadded, 'tensor')} as before padding"
    facts = [("resumed", shortened(report.resumed))] if report.resumed and not report.was_complete else []
    facts += excluded_facts(report.excluded, others="links out of the folder, or never copied: ")
    facts += [*_replaced_facts(report.replaced), *(("note", printable(note)) for note in report.notes)]
    return _screen(report.restored_dir, verdict, facts)


def _replaced_facts(replaced: Replaced | None) -> list[Fact]:
    """Return how many existing files were replaced, and which of them had been edited."""
    if not replaced:
        return []
    facts = [("replaced", f"{counted(len(replaced.files), 'file')} that were there")]
    return facts + ([("", f"edited since: {shortened(replaced.edited)}")] if replaced.edited else [])


def push_screen(report: PushReport) -> Screen:
    """Lay out where the checkpoint is now, and what was excluded."""
    facts = [("commit", printable(report.url))]
    facts += [("excluded", f"not named in {RECORD_FILE}: {shortened(report.excluded)}")] if report.excluded else []
    facts += [("note", printable(note)) for note in report.notes]
    return _screen(report.out_dir, f"pushed to {report.repo}", facts)
