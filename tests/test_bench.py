"""What a benchmark derives from its samples, on any machine: timings, ratios, groups, JSON and charts."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from fp8pad.bench.report import Case, Machine, Report, Timing
from fp8pad.bench.shapes import REAL_SHAPES, LayerShape

CHART = Path(__file__).parents[1] / "examples" / "gpu" / "chart.py"
DOWN = LayerShape("down", 1280, 3420)
GATE_UP = LayerShape("gate_up", 6840, 1280, 2)
MACHINE = Machine("a device", "2026-11-23", {"vllm": "0.33.0"})


def _case(shape: LayerShape, num_tokens: int, **medians: float) -> Case:
    return Case(shape, num_tokens, {name: Timing(us, us - 1, us + 1, 21) for name, us in medians.items()})


REPORT = Report(
    MACHINE,
    "bfloat16",
    (
        _case(DOWN, 1, aligned=10.0, vllm=15.0, runtime=9.0, kept=10.0, absorbed=10.0),
        _case(DOWN, 64, aligned=20.0, vllm=25.0, runtime=20.0, kept=20.0, absorbed=20.2),
        _case(DOWN, 4096, aligned=100.0, vllm=180.0, runtime=101.0, kept=100.0, absorbed=99.0),
        _case(GATE_UP, 1, aligned=10.0, vllm=10.0, runtime=11.0, kept=10.1, absorbed=10.0),
    ),
)


def test_timing_of_samples() -> None:
    """A timing is the median of its samples with the quartiles around it; one outlier hardly moves any of them."""
    assert Timing.of([4.0, 1.0, 3.0, 2.0, 1000.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_real_shapes_have_something_to_pad() -> None:
    """Every layer that is timed by default is unaligned, and is padded to sizes that CUTLASS accepts."""
    assert not any(shape.is_aligned for shape in REAL_SHAPES)
    assert DOWN.padded_shape == (1280, 3424)
    assert GATE_UP.padded_shape == GATE_UP.kept_shape == (6848, 1280)
    assert LayerShape("fc1, gated", 27306, 5120, 2).kept_shape == (27328, 5120)
    assert LayerShape("aligned", 1280, 3424).is_aligned


def test_summaries_part_unaligned_k_from_unaligned_n() -> None:
    """Layers with unaligned K, and with only N unaligned, are summarized separately: median and worst ratios."""
    summaries = REPORT.summaries()
    assert summaries["K"].num_cases == 3
    assert summaries["K"].median == {"vllm": 1.5, "runtime": 1.0, "kept": 1.0, "absorbed": 1.0}
    assert summaries["K"].worst == {"vllm": 1.8, "runtime": 1.01, "kept": 1.0, "absorbed": 1.01}
    assert summaries["N"].median == {"vllm": 1.0, "runtime": 1.1, "kept": 1.01, "absorbed": 1.0}


def test_report_comes_back_from_its_json() -> None:
    """A chart that is drawn on another machine gets the same report."""
    pytest.importorskip("matplotlib")
    read_report = runpy.run_path(str(CHART))["read_report"]
    assert read_report(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_chart(tmp_path: Path) -> None:
    """The chart names its device, and the same report gives the same file."""
    pytest.importorskip("matplotlib")
    (tmp_path / "report.json").write_text(json.dumps(REPORT.to_json()))
    for name in ("one.svg", "two.svg"):
        subprocess.run([sys.executable, CHART, tmp_path / "report.json", tmp_path / name], check=True)
    drawn = (tmp_path / "one.svg").read_text()
    assert "a device, vLLM 0.33.0, 2026-11-23" in drawn
    assert drawn == (tmp_path / "two.svg").read_text()


@pytest.mark.torch
def test_how_many_sets_of_data_outgrow_a_cache() -> None:
    """The sets together are four times as large as the cache, within a limit, and there is always one."""
    from fp8pad.bench.timing import rotation

    assert rotation(bytes_of_one=30, cache_bytes=50, most=64) == 7
    assert rotation(bytes_of_one=1, cache_bytes=50, most=64) == 64
    assert rotation(bytes_of_one=1000, cache_bytes=50, most=64) == 1
