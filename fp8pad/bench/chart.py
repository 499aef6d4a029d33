"""Draw a benchmark: the time of each form relative to an aligned layer. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from fp8pad.bench.report import Case, Machine, Report

COLORS = {"vllm": "#c2543d", "runtime": "#2f6db3"}
LABELS = {"vllm": "vLLM's own path", "runtime": "fp8pad's runtime"}
TITLES = {"K": "K unaligned", "N": "only N unaligned"}


def draw_layers(report: Report, path: Path) -> None:
    """Write a chart of all cases to `path`, in the format of its ending (svg, png, pdf).

    A line is the median over the layers, and the band around it their range.
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
    """Return a figure of panels side by side that share their vertical axis, over numbers of tokens."""
    mpl.rcParams["svg.hashsalt"] = "fp8pad"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(4.2 * num_panels, 3.4), layout="constrained")
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#ddd", linewidth=0.6)
    return figure, panels


def draw_range(panel: Any, values: Mapping[int, Sequence[float]], color: str, label: str) -> None:
    """Draw the median of the values at each number of tokens, and their range."""
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
