"""What an engine does with a checkpoint at each tensor-parallel size, in words."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.text import Text

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.planning.comparison import AtSize, nearest_served_policy
from fp8pad.planning.engines import Engine, Outcome
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Finding, Verdict, converted_verdict
from fp8pad.render.console import added, convert_command, shortened
from fp8pad.render.folding import name_patterns
from fp8pad.render.screen import Row, Screen
from fp8pad.text import printable

CONVERTED_FOR = "padded, absorbed: converted for the size of the row, with -tp TP"

STYLES: dict[Outcome, str] = {
    "serves": "green",
    "pads in every forward": "yellow",
    "Triton only": "yellow",
    "not known": "yellow",
    "answers wrongly": "bold red",
    "refuses": "bold red",
}


def show_verdicts(screen: Screen, sizes: Sequence[AtSize], plan: CheckpointPlan, engine: Engine) -> None:
    """Show what is wrong and for whom: a row for each tensor-parallel size, and below it the layers and reasons."""
    screen.section(f"What {engine.title} does with it")
    if not any(at.original.findings for at in sizes):
        served = ", ".join(str(at.num_ranks) for at in sizes)
        screen.paragraph(Text(f"serves it as it is, at TP {served}", style=STYLES["serves"]), 2)
        return
    rows = [(f"TP {at.num_ranks}", _outcome(at.original), _outcome(at.padded), _absorbed(at, plan)) for at in sizes]
    screen.rows(rows, header=("", "as it is", "padded (plugin)", "absorbed (--absorb)"))
    screen.paragraph(Text(CONVERTED_FOR, style="dim"), 2)
    screen.paragraph("")
    screen.rows(_explanations(sizes))


def _outcome(verdict: Verdict | Finding) -> Text:
    return Text.assemble((verdict.outcome, STYLES[verdict.outcome]))  # what is appended has no style


def _absorbed(at: AtSize, plan: CheckpointPlan) -> Text:
    if at.absorbed is None:
        return Text(absorbed_how(at, plan), style="dim")
    return _outcome(at.absorbed.verdict).append(f" {absorbed_how(at, plan)}")


def absorbed_how(at: AtSize, plan: CheckpointPlan) -> str:
    """Return what an absorbed checkpoint needs, and what it costs; without one, why there is none."""
    absorbed = at.absorbed
    if absorbed is None:
        return "does not help" if at.original.findings else "no need"
    plugin = "with the plugin" if absorbed.needs_runtime else "without a plugin"
    return f"{plugin}{', experts too' if absorbed.experts else ''}, {added(absorbed.added_bytes, plan.bytes_before)}"


def _explanations(sizes: Iterable[AtSize]) -> Iterator[Row]:
    for at, finding in findings(sizes):
        said = _outcome(finding).append(f": {printable(finding.why)}: {patterns(finding.layers)}")
        yield at, said


def findings(sizes: Iterable[AtSize]) -> Iterator[tuple[str, Finding]]:
    """Yield at which sizes, for which layers, and why the engine does not serve the original as it is."""
    found: dict[Finding, list[str]] = {}
    for at in sizes:
        for finding in at.original.findings:
            found.setdefault(finding, []).append(str(at.num_ranks))
    return ((f"TP {', '.join(at_sizes)}", finding) for finding, at_sizes in found.items())


def show_refusal(
    screen: Screen, source: Checkpoint, plan: CheckpointPlan, out_dir: Path | str, engine: Engine, *options: str
) -> bool:
    """Show for which layers the engine refuses the converted checkpoint at the plan's size, and what helps.

    Return whether it refuses it.
    """
    refusals = converted_verdict(plan, engine).refusals
    if not refusals:
        return False
    screen.section(f"Not served by {engine.title} at TP {plan.policy.tensor_parallel_size}")
    for refusal in refusals:
        screen.paragraph(_outcome(refusal).append(f": {refusal.why}: {patterns(refusal.layers)}"), 2)
    if policy := nearest_served_policy(plan, engine):
        screen.paragraph(f"TP {policy.tensor_parallel_size} works with:", 2)
        screen.command(convert_command(source, out_dir, policy, *options))
    else:
        screen.paragraph(f"no option makes it work in {engine.title}, nor do fewer ranks", 2)
    return True


def patterns(names: Iterable[str]) -> str:
    """Return names folded into patterns, the first few of many, safe to print."""
    return shortened(name_patterns(names))
