"""Put the results of bench_convert.py and measure_planning.py into tables, a chart and the documentation.

    python tests/bench/report.py [--convert FILE] [--planning FILE]

A file that is not given is skipped. Figures and the chart go to docs/benchmarks/; tables go between the marks
`<!-- convert -->` and `<!-- planning -->` and the next `<!-- end -->`, in docs/benchmarks.md and docs/scale.md.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

COPY = "cp -r; sync"
DOCS = Path(__file__).resolve().parents[2] / "docs"
COLORS = {COPY: "#8a8a8a", "fp8pad --verify none": "#9db8dc", "fp8pad --verify padded": "#2f6db3"}
COLORS |= {"fp8pad --verify full": "#1c4474", "safetensors": "#e0a08f", "compressed-tensors": "#c2543d"}
CHART = "[All runs](benchmarks/convert.json).\n\n![Wall times as ratios to those of a copy](benchmarks/convert.svg)"
ROW, BAR, LEFT, WIDTH = 22, 15, 190, 470  # pixels

Document = Mapping[str, Any]


def convert_table(document: Document) -> str:
    """Return medians as a table in Markdown, wall and CPU time as ratios to those of a copy in the same state."""
    lines = ["| padded | page cache | | wall, s (range) | x `cp` | CPU, s | x `cp` | peak, MiB | written, GB |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for padded, cache in dict.fromkeys((run["padded"], run["cache"]) for run in document["runs"]):
        alike = [run for run in document["runs"] if (run["padded"], run["cache"]) == (padded, cache)]
        for what in dict.fromkeys(run["what"] for run in alike):
            same = [run for run in alike if run["what"] == what]
            wall, cpu = (_middle(same, key) for key in ("seconds", "cpu_seconds"))
            spread = f"{min(run['seconds'] for run in same):.1f} to {max(run['seconds'] for run in same):.1f}"
            row = [padded, cache, f"`{what}`" if what in COLORS else what, f"{wall:.1f} ({spread})"]
            row += [_ratio(alike, what, "seconds"), f"{cpu:.1f}", _ratio(alike, what, "cpu_seconds")]
            peak, written = max(run["peak_bytes"] for run in same) / 2**20, _middle(same, "written_bytes") / 1e9
            row += [f"{peak:.0f}", f"{written:.1f}"]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _middle(runs: Sequence[Document], key: str) -> float:
    return float(median(run[key] for run in runs))


def _ratio(runs: Sequence[Document], what: str, key: str) -> str:
    """Return the median of one command divided by that of a copy."""
    same, copies = ([run for run in runs if run["what"] == each] for each in (what, COPY))
    return f"{_middle(same, key) / _middle(copies, key):.2f}"


def convert_chart(document: Document) -> str:
    """Return wall times as ratios to those of a copy, as bars in SVG."""
    bars: list[tuple[str, str, float]] = []
    for padded, cache in dict.fromkeys((run["padded"], run["cache"]) for run in document["runs"]):
        alike = [run for run in document["runs"] if (run["padded"], run["cache"]) == (padded, cache)]
        bars.append((f"{padded} padded, {cache} cache", "", 0.0))
        bars += [("", what, float(_ratio(alike, what, "seconds"))) for what in dict.fromkeys(r["what"] for r in alike)]
    scale = (WIDTH - 40) / max(ratio for _, _, ratio in bars)
    width, height, host = LEFT + WIDTH, ROW * len(bars) + 40, document["host"]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"']
    parts += [' font-family="sans-serif" font-size="12">', f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for number, (title, what, ratio) in enumerate(bars, 1):
        y, length, color = number * ROW, ratio * scale, COLORS.get(what, "#555")
        if title:
            parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(title)}</text>')
            continue
        parts.append(f'<text x="16" y="{y}">{escape(what)}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y - 12}" width="{length:.1f}" height="{BAR}" fill="{color}"/>')
        parts.append(f'<text x="{LEFT + length + 4:.1f}" y="{y}">{ratio:.2f}</text>')
    x, end = f"{LEFT + scale:.1f}", ROW * len(bars)
    parts.append(f'<line x1="{x}" y1="8" x2="{x}" y2="{end + 6}" stroke="#555" stroke-dasharray="3 3"/>')
    caption = f"wall time / {COPY}; {host['checkpoint_bytes'] / 1e9:.1f} GB; {_described(host)}"
    parts.append(f'<text x="8" y="{end + 28}" fill="#555" font-size="10">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"


def planning_table(document: Document) -> str:
    """Return the cost of planning as a table in Markdown."""
    lines = ["| checkpoint | command | CPU, s | peak, MiB |", "|---|---|---|---|"]
    for run in document["runs"]:
        figures = f"{run['cpu_seconds']:.1f} | {run['peak_bytes'] / 2**20:.0f}"
        lines.append(f"| {run['checkpoint']} | `{run['command']}` | {figures} |")
    return "\n".join(lines)


def _described(host: Document) -> str:
    return ", ".join(f"{host[key]}" for key in ("cpu", "file_system", "kernel", "python", "date") if key in host)


def fill(page: Path, mark: str, text: str) -> None:
    """Replace the text between a mark of a page and the end of its part."""
    part = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    after, num_places = re.subn(part, lambda m: f"{m[1]}{text}\n{m[2]}", page.read_text(), flags=re.DOTALL)
    if num_places != 1:
        raise SystemExit(f"{page}: expected one part {mark}, got {num_places}")
    page.write_text(after)


def main() -> None:
    """Fill the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert", type=Path, help="what bench_convert.py wrote")
    parser.add_argument("--planning", type=Path, help="what measure_planning.py wrote")
    options = parser.parse_args()
    if options.convert:
        document = json.loads(options.convert.read_text())
        (DOCS / "benchmarks" / "convert.json").write_text(options.convert.read_text())
        (DOCS / "benchmarks" / "convert.svg").write_text(convert_chart(document))
        host = document["host"]
        size = f"{host['checkpoint_bytes'] / 1e9:.1f} GB in {host['num_shards']} shards; {_described(host)}"
        size += f"; cold: {host['cold']}."
        fill(DOCS / "benchmarks.md", "convert", f"{size}\n\n{convert_table(document)}\n\n{CHART}")
    if options.planning:
        document = json.loads(options.planning.read_text())
        (DOCS / "benchmarks" / "planning.json").write_text(options.planning.read_text())
        fill(DOCS / "scale.md", "planning", f"{_described(document['host'])}.\n\n{planning_table(document)}")


if __name__ == "__main__":
    main()
