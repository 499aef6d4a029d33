"""Results of a benchmark: microseconds for the aligned layer, and the ratio of the others to it."""

import sys
from collections.abc import Iterable, Iterator

from rich.text import Text

from fp8pad.bench.report import Case, Report
from fp8pad.render.screen import Paragraph, Row, Rows, Screen
from fp8pad.text import printable

_OTHERS = ("vllm", "runtime", "kept", "absorbed")


def tell_case(case: Case) -> None:
    """Print a finished case to stderr."""
    ratios = ", ".join(f"{name} {case.ratio(name):.2f}" for name in _OTHERS)
    sys.stderr.write(f"{printable(case.shape.name)}, {case.num_tokens} tokens: {ratios}\n")


def bench_screen(report: Report) -> Screen:
    """Lay out a row for each layer and number of tokens, then the median and worst ratios."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    facts = [
        (f"{axis} unaligned", f"{name}: {summary.median[name]:.3f} x median, {summary.worst[name]:.3f} x at worst")
        for axis, summary in report.summaries().items()
        for name in _OTHERS
    ]
    facts += [("machine", printable(machine.device)), ("versions", printable(versions)), ("date", machine.date)]
    headline = f"Microseconds for an aligned layer ({report.dtype}), and the other times relative to it"
    yield Paragraph(Text(headline, style="bold"))
    yield Rows([*_case_rows(report.cases)], ("layer", "[N, K]", "tokens", "aligned", "quartiles", *_OTHERS))
    yield Rows(facts)


def _case_rows(cases: Iterable[Case]) -> Iterator[Row]:
    for case in cases:
        aligned = case.timings["aligned"]
        ratios = [f"{case.ratio(name):.3f}" for name in _OTHERS]
        spread = f"{aligned.lower_us:.1f}-{aligned.upper_us:.1f}"
        shape = str(list(case.shape.logical_shape))
        yield printable(case.shape.name), shape, str(case.num_tokens), f"{aligned.median_us:.1f}", spread, *ratios
