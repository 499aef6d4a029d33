"""What was done, and what was found."""

import shlex
from pathlib import Path

from rich.text import Text

from fp8pad.checkpoint.source import Source
from fp8pad.convert import ConvertReport
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.render.console import command, fact_table, growth, print_json, print_parts, shortened, stdout_console
from fp8pad.summary import conversion_document, plan_document
from fp8pad.text import printable

_VERIFIED = {
    "padded": "every header, size and padded tensor read back",
    "full": "every byte read back, every file hashed",
    "none": "not read back",
}


def show_conversion(source: Source, plan: CheckpointPlan, report: ConvertReport, as_json: bool = False) -> None:
    """Print what was written, what was checked, what did not come along, and what to do next."""
    if as_json:
        print_json(plan_document(source, plan) | conversion_document(report))
        return
    verdict = f"complete, {_VERIFIED[report.verified]}"
    if plan.changes_nothing:
        verdict = f"nothing to pad: an equal copy, {verdict}"
    facts = [("padded", f"{report.tensors_padded} tensors")] if report.tensors_padded else []
    facts.append(("bytes", growth(report.source_bytes, report.written_bytes)))
    named = ("rewritten", report.rewritten), ("resumed", report.resumed), ("left out", report.left_out)
    facts += [(label, shortened(names)) for label, names in named if names]
    facts.append(("next", f"{command('verify', source.root, report.out_dir)}  # compares every byte"))
    facts.append(("next", _serve(plan, report.out_dir)))
    print_parts(stdout_console(), Text(f"{printable(str(report.out_dir))}: {verdict}", style="bold"), fact_table(facts))


def _serve(plan: CheckpointPlan, out_dir: Path) -> str:
    how = "  # with fp8pad installed beside vLLM" if plan.needs_runtime else ""
    return shlex.join(["vllm", "serve", str(out_dir)]) + how
