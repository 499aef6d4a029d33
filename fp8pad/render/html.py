"""A plan as one HTML page, without scripts or external files; made for print, dark mode and phones too."""

from collections.abc import Sequence
from html import escape
from typing import assert_never

from fp8pad import __version__
from fp8pad.planned import PlanReport
from fp8pad.render.plan import plan_screen
from fp8pad.render.screen import LAYERS, Bar, Block, Cell, Command, Paragraph, Row, Rows, Section, Subsection
from fp8pad.summary import headline
from fp8pad.text import printable

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
p { margin: .4rem 0; } .dim { color: var(--soft); } .bold { font-weight: 600; }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem;
  white-space: pre-wrap; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } th, td:first-child:not(:has(code)) { white-space: nowrap; }
.green { color: var(--good); } .yellow { color: var(--fair); } .red { color: var(--bad); }
.cyan, .magenta { color: var(--logical); }
.bar { display: flex; height: .8rem; margin: .2rem 0 .1rem; } .bar i { display: block; min-width: 1px; }
.logical { background: var(--logical); } .added { background: var(--added); }
.key i { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .9rem; vertical-align: -1px; }
@media (max-width: 40rem) { table:has(.bar) thead { display: none; }
  table:has(.bar) :is(tr, td) { display: block; border: 0; padding: .1rem 0; }
  table:has(.bar) tr { border-bottom: 1px solid var(--line); padding: .6rem 0; } }
@media print { body { max-width: none; font-size: 11px; } .bar i, .key i { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; } h2, tr { break-inside: avoid; break-after: auto; } }
"""


def plan_page(report: PlanReport) -> str:
    """Return the page: everything that the screen shows, and how large each group of layers is."""
    source = report.source
    name = _text(printable(source.name if source.remote else source.root.resolve().name))
    _, *blocks = plan_screen(report, show_all=True, is_page=True)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fp8pad plan: {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(map(_block, [Paragraph(headline(report.plan)), *blocks]))
        + f'\n<p class="dim">fp8pad {__version__}; from headers and config.json alone</p>\n</body>\n</html>\n'
    )


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, _, hang):
            return f'<p class="dim">{_cell(text)}</p>' if hang else f"<p>{_cell(text)}</p>"
        case Section(title):
            return f"<h2>{_text(title)}</h2>"
        case Subsection(title):
            return f"<h3>{_text(title)}</h3>"
        case Command(command):
            return f"<pre><code>{escape(command)}</code></pre>"
        case Rows(rows, header):
            return _table(rows, header) if rows else ""
    assert_never(block)


def _table(rows: Sequence[Row], header: Sequence[str]) -> str:
    has_bars = any(isinstance(cell, Bar) for row in rows for cell in row)
    key = '<p class="key dim"><i class="logical"></i>logical<i class="added"></i>padding</p>\n' if has_bars else ""
    head = f"<thead><tr>{''.join(f'<th>{_text(cell)}</th>' for cell in header)}</tr></thead>" if header else ""
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'{key}<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        added = f'<i class="added" style="width:{(cell.after - cell.before) / cell.longest:.2%}"></i>'
        bar = f'<i class="logical" style="width:{cell.before / cell.longest:.2%}"></i>'
        return f'<div class="bar">{bar}{added if cell.after != cell.before else ""}</div>{_text(str(cell))}'
    if isinstance(cell, str):
        return _text(cell)
    pieces = cell.divide(sorted({edge for span in cell.spans for edge in (span.start, span.end)}))
    return "".join(_styled(piece.plain, str(piece.spans[0].style if piece.spans else piece.style)) for piece in pieces)


def _styled(text: str, style: str) -> str:
    """Return text with the words of its style as classes."""
    if style == LAYERS:
        return f"<code>{_text(text)}</code>"
    return f'<span class="{style}">{_text(text)}</span>' if style else _text(text)


def _text(text: str) -> str:
    return escape(text).replace("-&gt;", "&rarr;")
