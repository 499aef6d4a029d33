"""Draw the output of `fp8pad bench --json`: the time of each form relative to an aligned layer.

    python examples/gpu/chart.py REPORT.json CHART.svg

Needs matplotlib, no GPU. The suffix of CHART decides the format (svg, png, pdf).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit(f"{sys.argv[0]}: {error}; it needs matplotlib") from error

from fp8pad.bench.report import Case, Machine, Report, Timing
from fp8pad.bench.shapes import LayerShape

COLORS = {"vllm": "#c2543d", "runtime": "#2f6db3"}
LABELS = {"vllm": "vLLM's own path", "runtime": "fp8pad's runtime"}
TITLES = {"K": "K unaligned", "N": "only N unaligned"}


def read_report(document: dict[str, Any]) -> Report:
    """Return the report in the output of `fp8pad bench --json`."""
    cases = (
        Case(
            LayerShape(case["layer"], *case["logical_shape"], case.get("num_matrices", 1)),
            case["num_tokens"],
            {name: Timing(**timing) for name, timing in case["timings"].items()},
        )
        for case in document["cases"]
    )
    return Report(Machine(**document["machine"]), document["dtype"], tuple(cases))


def draw_layers(report: Report, path: Path) -> None:
    """Write a chart of all cases to `path`, in the format of its suffix (svg, png, pdf).

    A line is the median over the layers, and the band around it is their range.
    """
    groups = report.groups()
    figure, panels = new_figure(len(groups))
    for panel, (name, cases) in zip(panels, groups.items(), strict=True):
        num_layers = len({case.shape for case in cases})
        panel.set_title(f"{TITLES[name]}: {num_layers} layers", fontsize=10)
        for candidate, label in LABELS.items():
            draw_range(panel, _ratios(cases, candidate), COLORS[candidate], label)
        panel.axhline(1.0, color="#555", linewidth=0.8, linestyle="--")
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("time / time of an aligned layer")
    panels[0].legend(frameon=False, fontsize=9)
    save(figure, report.machine, path)


def _ratios(cases: Sequence[Case], candidate: str) -> dict[int, list[float]]:
    ratios: dict[int, list[float]] = {}
    for case in cases:
        ratios.setdefault(case.num_tokens, []).append(case.ratio(candidate))
    return ratios


def new_figure(num_panels: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure of panels side by side that share their vertical axis; the other is the number of tokens."""
    mpl.rcParams["svg.hashsalt"] = "fp8pad"  # the same data give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(4.2 * num_panels, 3.4), layout="constrained")
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#ddd", linewidth=0.6)
    return figure, panels


def draw_range(panel: Any, values: Mapping[int, Sequence[float]], color: str, label: str) -> None:
    """Draw the median and the range of the values at each number of tokens."""
    tokens = sorted(values)
    panel.plot(tokens, [median(values[m]) for m in tokens], marker="o", markersize=4, color=color, label=label)
    lowest, highest = [min(values[m]) for m in tokens], [max(values[m]) for m in tokens]
    panel.fill_between(tokens, lowest, highest, color=color, alpha=0.15, linewidth=0)
    panel.set_xticks(tokens, [str(m) for m in tokens])


def save(figure: Any, machine: Machine, path: Path) -> None:
    """Write the figure, with the device, vLLM's version and the date below it."""
    caption = f"{machine.device}, vLLM {machine.versions['vllm']}, {machine.date}"
    figure.supxlabel(caption, fontsize=8, color="#555")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Draw the chart of a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("chart", type=Path)
    arguments = parser.parse_args()
    draw_layers(read_report(json.loads(arguments.report.read_text())), arguments.chart)


if __name__ == "__main__":
    main()
