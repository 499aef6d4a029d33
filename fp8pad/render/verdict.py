"""What an engine does with a checkpoint at each tensor-parallel size, in words."""

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from fp8pad.planned import PlanReport
from fp8pad.planning.comparison import AtSize
from fp8pad.planning.engines import OUTCOMES, Outcome
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Finding, Judge
from fp8pad.render.console import added, shortened
from fp8pad.render.folding import name_patterns
from fp8pad.render.screen import Row, Screen
from fp8pad.text import printable

Cell = tuple[Outcome | None, str]

FORMS = ("as it is", "padded (plugin)", "absorbed")
NOT_ABSORBED = "not absorbed"
CONVERTED_FOR = "padded, absorbed: converted for the size of the row, with -tp TP"

STYLES: dict[Outcome, str] = {
    "serves": "green",
    "pads in every forward": "yellow",
    "Triton only": "yellow",
    "not known": "yellow",
    "answers wrongly": "bold red",
    "refuses": "bold red",
}


def show_verdicts(screen: Screen, report: PlanReport) -> None:
    """Show what the engine does: a row for each tensor-parallel size, and the reasons below."""
    sizes, plan = report.sizes, report.plan
    screen.section(f"What {report.engine.title} does with it")
    if not any(at.original.findings for at in sizes):
        served = ", ".join(str(at.num_ranks) for at in sizes)
        screen.paragraph(Text(f"serves it as it is, at TP {served}", style=STYLES["serves"]), 2)
        return
    rows: list[Row] = [(f"TP {at.num_ranks}", *(_cell(*cell) for cell in cells(at, plan))) for at in sizes]
    screen.rows(rows, header=("", *FORMS[:-1], f"{FORMS[-1]} (--absorb)"))
    screen.paragraph(Text(CONVERTED_FOR, style="dim"), 2)
    screen.section("Why, by TP size")
    for at_sizes, found in reasons(sizes):
        screen.paragraph(at_sizes, 2)
        for finding, forms in found:
            screen.paragraph(_outcome(finding).append(f" ({forms}): {_why(finding)}"), 4, hang=2)
    if helpless := list(unabsorbed(sizes, plan)):
        screen.paragraph(NOT_ABSORBED, 2)
    for why, names in helpless:
        screen.paragraph(printable(why) + (f": {patterns(names)}" if names else ""), 4, hang=2)


def cells(at: AtSize, plan: CheckpointPlan) -> tuple[Cell, Cell, Cell]:
    """Return the row of a size: what the engine does with the original, and with each converted form.

    The text of the last cell says what an absorbed checkpoint needs and costs, or why there is none.
    """
    original, padded = (at.original.outcome, ""), (at.padded.outcome, "")
    if at.refused:
        return original, padded, (at.refused.outcome, "")
    if at.absorbed is None:
        return original, padded, (None, NOT_ABSORBED if at.original.findings else "no need")
    plugin = "with the plugin" if at.absorbed.needs_runtime else "without a plugin"
    experts = ", experts too" if at.absorbed.experts else ""
    costs = added(at.absorbed.added_bytes, plan.bytes_before)
    outcome = at.absorbed.verdict.outcome
    return original, padded, (outcome, f"{' ' if outcome == 'serves' else ', '}{plugin}{experts}, {costs}")


def _cell(outcome: Outcome | None, more: str) -> Text:
    if outcome is None:
        return Text(more, style="dim")
    return Text.assemble((outcome, STYLES[outcome]), more)


def reasons(sizes: Iterable[AtSize]) -> Iterator[tuple[str, Sequence[tuple[Finding, str]]]]:
    """Yield the sizes that share the same findings, with these findings, the worst first.

    Each finding, a reason why the engine does not simply serve a checkpoint, has the forms that it applies to.
    """
    alike: dict[tuple[tuple[Finding, str], ...], list[str]] = {}
    for at in sizes:
        if found := tuple(_found(at)):
            alike.setdefault(found, []).append(str(at.num_ranks))
    return ((f"TP {', '.join(at_sizes)}", found) for found, at_sizes in alike.items())


def unabsorbed(sizes: Iterable[AtSize], plan: CheckpointPlan) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield why nothing is absorbed where an engine does not simply serve the original, with the layers.

    Reasons that the list of layers has, since absorbing was asked for, are not repeated. The last one is a general one.
    """
    helpless = [at for at in sizes if not (at.absorbed or at.refused)]
    found = [found for at in helpless for found in at.original.findings if not found.of_whole_model]
    names = {name for each in found for name in each.layers}
    layers = [layer for layer in plan.layers if layer.name in names]
    alike: dict[str, list[str]] = {}
    for layer in layers:
        if layer.unabsorbed and layer.unabsorbed not in layer.reason:
            alike.setdefault(layer.unabsorbed, []).append(layer.name)
    for count in plan.shared_counts:
        if count.unabsorbed and not all(count.is_shared_by(at.num_ranks) for at in helpless):
            alike.setdefault(count.unabsorbed, [])
    yield from ((why, of_why) for why, of_why in alike.items() if why not in plan.notes)
    if layers:
        yield "only inner sizes of MLPs can be absorbed", ()


def _found(at: AtSize) -> list[tuple[Finding, str]]:
    verdicts = at.original, at.padded, at.absorbed.verdict if at.absorbed else at.refused
    forms: dict[Finding, list[str]] = {}
    for form, verdict in zip(("as it is", "padded", "absorbed"), verdicts, strict=True):
        for finding in verdict.findings if verdict else ():
            forms.setdefault(finding, []).append(form)
    found = [(finding, ", ".join(of_finding)) for finding, of_finding in forms.items()]
    return sorted(found, key=lambda item: -OUTCOMES.index(item[0].outcome))


def show_refusal(screen: Screen, judge: Judge) -> bool:
    """Show why the engine refuses the converted checkpoint at the plan's TP size; return whether it does."""
    refusals = judge.converted.refusals
    if refusals:
        screen.section(f"Not served by {judge.engine.title} at TP {judge.plan.policy.tensor_parallel_size}")
    for refusal in refusals:
        screen.paragraph(_outcome(refusal).append(f": {_why(refusal)}"), 2, hang=2)
    return bool(refusals)


def _outcome(finding: Finding) -> Text:
    return Text.assemble((finding.outcome, STYLES[finding.outcome]))  # assembled, so that appended text has no style


def show_advice(screen: Screen, steps: Iterable[tuple[str, str]]) -> None:
    """Show what to do next, if there is anything."""
    steps = list(steps)
    if steps:
        screen.section("Next")
    for said, command in steps:
        if said:
            screen.paragraph(said, 2)
        if command:
            screen.command(command)


def where(finding: Finding) -> list[str]:
    """Return the layers that a finding is about as patterns; none if it is about the whole model."""
    return [] if finding.of_whole_model else name_patterns(finding.layers)


def _why(finding: Finding) -> str:
    layers = shortened(where(finding))
    return printable(finding.why) + (f": {layers}" if layers else "")


def patterns(names: Iterable[str]) -> str:
    """Return names folded into patterns, only the first few if there are many, safe to print."""
    return shortened(name_patterns(names))
