"""A plan as one HTML page, without scripts or external files; made for print, dark mode and phones too."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import prod

from fp8pad import __version__
from fp8pad.planned import PlanReport
from fp8pad.planning.comparison import AtSize
from fp8pad.planning.engines import Engine, Outcome
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.render.advice import advice
from fp8pad.render.console import added, growth
from fp8pad.render.folding import name_patterns
from fp8pad.render.plan import layer_how, proposed_out_dir
from fp8pad.render.verdict import CONVERTED_FOR, FORMS, NOT_ABSORBED, cells, reasons, unabsorbed, where
from fp8pad.summary import action, headline
from fp8pad.text import printable, size

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #6a7380; --line: #d9dee5; --card: #f6f8fa;
  --good: #1a7f37; --fair: #9a6700; --bad: #cf222e; --logical: #4a7fb5; --added: #e2893b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9aa4b0; --line: #30363d;
  --card: #161b22; --good: #3fb950; --fair: #d29922; --bad: #ff7b72; --logical: #5b93cc; --added: #f0a35e; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 70rem; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1rem 0 0; }
p { margin: .4rem 0; } .soft { color: var(--soft); }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem;
  white-space: pre-wrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th, td:first-child:not(:has(code)) { white-space: nowrap; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); font-weight: 600; }
.bar { display: flex; height: .8rem; margin: .2rem 0 .1rem; } .bar i { display: block; min-width: 1px; }
.logical { background: var(--logical); } .added { background: var(--added); }
.key i { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .9rem; vertical-align: -1px; }
@media (max-width: 40rem) { table:has(.bar) thead { display: none; }
  table:has(.bar) :is(tr, td) { display: block; border: 0; padding: .1rem 0; }
  table:has(.bar) tr { border-bottom: 1px solid var(--line); padding: .6rem 0; } }
@media print { body { max-width: none; font-size: 11px; } .bar i, .key i { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; } h2, tr { break-inside: avoid; break-after: auto; } }
"""

_CLASSES = {"serves": "good", "refuses": "bad", "answers wrongly": "bad"}


def plan_page(report: PlanReport) -> str:
    """Return the page: the verdict, sizes by group of layers, what absorbing costs, and the next command."""
    source, plan = report.source, report.plan
    name = _text(source.name if source.remote else source.root.resolve().name)
    body = [
        f"<h1>{name}</h1>",
        f"<p>{_text(headline(plan))}</p>",
        *_verdict(report.sizes, plan, report.engine),
        *_sizes(plan),
        *_costs(report),
        *_notes(plan),
        *_next(report),
        f'<p class="soft">fp8pad {__version__}; from headers and config.json alone</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fp8pad plan: {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _verdict(sizes: Sequence[AtSize], plan: CheckpointPlan, engine: Engine) -> Iterator[str]:
    yield f"<h2>What {_text(engine.title)} does with it</h2>"
    rows = [(f"TP {at.num_ranks}", *(_cell(*cell) for cell in cells(at, plan))) for at in sizes]
    yield _table(("", *FORMS), rows)
    yield f'<p class="soft">{_text(CONVERTED_FOR)}</p>'
    for at_sizes, found in reasons(sizes):
        yield f"<h3>{_text(at_sizes)}</h3>"
        for finding, forms in found:
            layers = _code(where(finding))
            why = _text(f"({forms}): {finding.why}") + (f": {layers}" if layers else "")
            yield f'<p class="soft">{_outcome(finding.outcome)} {why}</p>'
    if helpless := list(unabsorbed(sizes, plan)):
        yield f"<h3>{_text(NOT_ABSORBED)}</h3>"
    for reason, names in helpless:
        yield f'<p class="soft">{_text(reason)}{": " if names else ""}{_code(name_patterns(names))}</p>'


def _cell(outcome: Outcome | None, more: str) -> str:
    return f"{_outcome(outcome)}{_text(more)}" if outcome else f'<span class="soft">{_text(more)}</span>'


def _outcome(outcome: Outcome) -> str:
    return f'<span class="{_CLASSES.get(outcome, "fair")}">{_text(outcome)}</span>'


def _sizes(plan: CheckpointPlan) -> Iterator[str]:
    groups = _groups(plan.layers)
    if not groups:
        return
    yield "<h2>Weights, logical and padded</h2>"
    yield '<p class="key soft"><i class="logical"></i>logical<i class="added"></i>padding</p>'
    widest = max(_num_bytes(layers, padded=True) for layers in groups)
    yield _table(("layers", "[N, K]", "how", "size"), (_size_row(layers, widest) for layers in groups))


def _groups(layers: Iterable[LayerPlan]) -> list[list[LayerPlan]]:
    groups: dict[tuple[object, ...], list[LayerPlan]] = {}
    for layer in layers:
        groups.setdefault((action(layer), layer.logical_shape, layer.padded_shape, layer.axes), []).append(layer)
    return list(groups.values())


def _num_bytes(layers: Sequence[LayerPlan], padded: bool) -> int:
    shape = layers[0].padded_shape if padded else layers[0].logical_shape
    return len(layers) * prod(shape)


def _size_row(layers: Sequence[LayerPlan], widest: int) -> Sequence[str]:
    before, after = _num_bytes(layers, padded=False), _num_bytes(layers, padded=True)
    first = layers[0]
    shapes = str(list(first.logical_shape))
    shapes += f" &rarr; {list(first.padded_shape)}" if after != before else ""
    added = f'<i class="added" style="width:{(after - before) / widest:.2%}"></i>' if after != before else ""
    bar = f'<div class="bar"><i class="logical" style="width:{before / widest:.2%}"></i>{added}</div>'
    total = growth(before, after) if after != before else size(before)
    patterns = name_patterns(layer.name for layer in layers)
    return _code(patterns), shapes, _text(layer_how(first)), f"{bar}{_text(total)}"


def _costs(report: PlanReport) -> Iterator[str]:
    plan = report.plan
    yield "<h2>What it costs</h2>"
    yield f"<p>Tensors, by this plan: {_text(growth(plan.bytes_before, plan.bytes_after))}</p>"
    padded = added(report.judge.added_bytes({}), plan.bytes_before)
    rows = [
        (
            f"TP {at.num_ranks}",
            padded,
            added(found.added_bytes, plan.bytes_before),
            "<br>".join(
                f"<code>{_text(grown.key)}</code> {grown.old} &rarr; {grown.new}: +{size(grown.added_bytes)}"
                for grown in found.growths
            ),
        )
        for at in report.sizes
        if (found := at.absorbed)
    ]
    if rows:
        yield _table(("", "padded, on disk", "absorbed", "absorbed weights by config key"), rows)


def _next(report: PlanReport) -> Iterator[str]:
    yield "<h2>Next</h2>"
    for said, command in advice(report, proposed_out_dir(report.source)):
        yield (f"<p>{_text(said)}</p>" if said else "") + (
            f"<pre><code>{_text(command)}</code></pre>" if command else ""
        )


def _notes(plan: CheckpointPlan) -> Iterator[str]:
    if plan.notes:
        yield "<h2>Notes</h2>" + "".join(f"<p>{_text(note)}</p>" for note in plan.notes)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _code(patterns: Iterable[str]) -> str:
    return ", ".join(f"<code>{_text(pattern)}</code>" for pattern in patterns)


def _text(text: str) -> str:
    return escape(printable(text)).replace("-&gt;", "&rarr;")
