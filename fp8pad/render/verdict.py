"""What an engine does with a checkpoint at each tensor-parallel size, in words."""

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from fp8pad.planned import PlanReport
from fp8pad.planning.comparison import AtSize
from fp8pad.planning.engines import OUTCOMES, Outcome
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Finding, Judge, Verdict
from fp8pad.render.console import added, shortened
from fp8pad.render.folding import name_patterns
from fp8pad.render.screen import LAYERS, Command, Paragraph, Row, Rows, Screen, Section, Subsection
from fp8pad.text import printable

FORMS = ("as it is", "padded", "absorbed")
NOT_ABSORBED = "not absorbed"

STYLES: dict[Outcome, str] = {
    "serves": "green",
    "pads in every forward": "yellow",
    "Triton only": "yellow",
    "not known": "yellow",
    "answers wrongly": "bold red",
    "refuses": "bold red",
}


def verdicts(report: PlanReport) -> Screen:
    """Yield what the engine does: a row for each tensor-parallel size, and the reasons below."""
    sizes, plan = report.sizes, report.plan
    yield Section(f"What {report.engine.title} does with it")
    if not any(at.original.findings for at in sizes):
        served = ", ".join(str(at.num_ranks) for at in sizes)
        yield Paragraph(Text(f"serves it as it is, at TP {served}", style=STYLES["serves"]), 2)
        return
    needs = {"padded": " (plugin)" if report.engine.has_runtime else "", "absorbed": " (--absorb)"}
    yield Rows([_cells(at, plan) for at in sizes], ("", *(form + needs.get(form, "") for form in FORMS)))
    yield Paragraph(Text("padded, absorbed: converted for the size of the row, with -tp TP", style="dim"), 2)
    yield Section("Why, by TP size")
    for at_sizes, found in reasons(sizes):
        yield Subsection(at_sizes)
        for finding, forms in found:
            yield Paragraph(_said(finding, f" ({forms})"), 4, hang=2)
    if helpless := list(unabsorbed(sizes, plan)):
        yield Subsection(NOT_ABSORBED)
    for why, names in helpless:
        yield Paragraph(_with_layers(Text(printable(why)), names), 4, hang=2)


def _cells(at: AtSize, plan: CheckpointPlan) -> Row:
    """Return the row of a size: what the engine does with the original, and with each converted form.

    The last cell says what an absorbed checkpoint needs and costs, or why there is none.
    """
    absorbed = at.absorbed
    if at.refused:
        last = _outcome(at.refused)
    elif absorbed is None:
        last = Text(NOT_ABSORBED if at.original.findings else "no need", style="dim")
    else:
        plugin = "with the plugin" if absorbed.needs_runtime else "without a plugin"
        experts = ", experts too" if absorbed.experts else ""
        costs = added(absorbed.added_bytes, plan.bytes_before)
        separator = " " if absorbed.verdict.outcome == "serves" else ", "
        last = _outcome(absorbed.verdict).append(f"{separator}{plugin}{experts}, {costs}")
    return f"TP {at.num_ranks}", _outcome(at.original), _outcome(at.padded), last


def _outcome(said: Verdict | Finding) -> Text:
    return Text.assemble((said.outcome, STYLES[said.outcome]))  # assembled, so that appended text has no style


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

    The last reason is a general one.
    """
    helpless = [at for at in sizes if not (at.absorbed or at.refused)]
    found = [found for at in helpless for found in at.original.findings if not found.of_whole_model]
    names = {name for each in found for name in each.layers}
    layers = [name for name, _ in plan.layers if name in names]
    counts = [count for count in plan.shared_counts if not all(count.is_shared_by(at.num_ranks) for at in helpless)]
    alike: dict[str, list[str]] = {}
    for name in layers:
        if name in plan.unabsorbed:
            alike.setdefault(plan.unabsorbed[name], []).append(name)
    of_counts = (plan.unabsorbed[count.module] for count in counts if count.module in plan.unabsorbed)
    yield from (alike | {why: alike.get(why, []) for why in of_counts}).items()
    if layers:
        yield "only inner sizes of MLPs can be absorbed", ()


def _found(at: AtSize) -> list[tuple[Finding, str]]:
    of_forms = at.original, at.padded, at.absorbed.verdict if at.absorbed else at.refused
    forms: dict[Finding, list[str]] = {}
    for form, verdict in zip(FORMS, of_forms, strict=True):
        for finding in verdict.findings if verdict else ():
            forms.setdefault(finding, []).append(form)
    found = [(finding, ", ".join(of_finding)) for finding, of_finding in forms.items()]
    return sorted(found, key=lambda item: -OUTCOMES.index(item[0].outcome))


def refusal(judge: Judge) -> Screen:
    """Yield why the engine refuses the converted checkpoint at the plan's TP size, if it does."""
    refusals = judge.converted.refusals
    if refusals:
        yield Section(f"Not served by {judge.engine.title} at TP {judge.plan.policy.tensor_parallel_size}")
    for found in refusals:
        yield Paragraph(_said(found), 2, hang=2)


def next_steps(steps: Iterable[tuple[str, str]]) -> Screen:
    """Yield what to do next, if there is anything."""
    for number, (said, command) in enumerate(steps):
        if number == 0:
            yield Section("Next")
        if said:
            yield Paragraph(said, 2)
        if command:
            yield Command(command)


def _said(finding: Finding, forms: str = "") -> Text:
    """Return an outcome and why, with the layers that it is about, unless that is the whole model."""
    text = _outcome(finding).append(f"{forms}: {printable(finding.why)}")
    return _with_layers(text, () if finding.of_whole_model else finding.layers)


def _with_layers(text: Text, names: Sequence[str]) -> Text:
    return text.append(": ").append(patterns(names), LAYERS) if names else text


def patterns(names: Iterable[str]) -> str:
    """Return names folded into patterns, only the first few if there are many, safe to print."""
    return shortened(name_patterns(names))
