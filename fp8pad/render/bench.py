"""What a benchmark found: microseconds of the aligned layer, and how many times as long the others take."""

import sys
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from fp8pad.bench.report import Case, Report
from fp8pad.render.console import fact_table, print_json, print_parts, stdout_console
from fp8pad.text import printable

_OTHERS = ("vllm", "runtime", "kept", "absorbed")


def tell_case(case: Case) -> None:
    """Say on stderr that a case is done."""
    ratios = ", ".join(f"{name} {case.ratio(name):.2f}" for name in _OTHERS)
    sys.stderr.write(f"{printable(case.shape.name)}, {case.num_tokens} tokens: {ratios}\n")


def show_bench(report: Report, as_json: bool = False) -> None:
    """Print a row for each layer and number of tokens, then the medians and the worst."""
    if as_json:
        print_json(report.to_json())
        return
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    facts = [
        (f"{axis} unaligned", f"{name}: {summary.median[name]:.3f} x median, {summary.worst[name]:.3f} x at worst")
        for axis, summary in report.summaries().items()
        for name in _OTHERS
    ]
    facts += [("machine", printable(machine.device)), ("versions", printable(versions)), ("date", machine.date)]
    headline = f"Microseconds of an aligned layer ({report.dtype}), and how many times as long the others take"
    print_parts(stdout_console(), Text(headline, style="bold"), _case_table(report.cases), fact_table(facts))


def _case_table(cases: Iterable[Case]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("[N, K]", no_wrap=True)
    for header in ("tokens", "aligned", "quartiles", *_OTHERS):
        table.add_column(header, justify="right", no_wrap=True)
    for case in cases:
        aligned = case.timings["aligned"]
        ratios = [f"{case.ratio(name):.3f}" for name in _OTHERS]
        spread = f"{aligned.lower_us:.1f}-{aligned.upper_us:.1f}"
        shape = str(list(case.shape.logical_shape))
        table.add_row(
            printable(case.shape.name), shape, str(case.num_tokens), f"{aligned.median_us:.1f}", spread, *ratios
        )
    return table
