"""`fp8pad bench`: what it prints, which layers of a checkpoint it times, and what it says if it cannot run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def report() -> object:
    """Return a benchmark of a layer that is unaligned along K, and of one that is unaligned along N."""
    from fp8pad.bench.report import Case, Machine, Report, Timing
    from fp8pad.bench.shapes import LayerShape

    def case(shape: LayerShape, vllm_us: float) -> Case:
        medians = {"aligned": 10.0, "vllm": vllm_us, "runtime": 10.1, "kept": 10.0, "absorbed": 10.0}
        return Case(shape, 16, {name: Timing(us, us - 1, us + 1, 21) for name, us in medians.items()})

    cases = case(LayerShape("down [a]", 1280, 3420), 15.0), case(LayerShape("up", 3420, 1280), 12.0)
    return Report(Machine("GPU [x]", "2026-01-01", {"vllm": "0.33.0"}), "bfloat16", cases)


@pytest.mark.torch
def test_a_benchmark_is_shown_against_the_aligned_layer(report: object, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows a row for each layer and number of tokens, summaries by axis, and the machine."""
    from fp8pad.render.bench import bench_screen
    from fp8pad.render.terminal import show

    show(report, bench_screen, as_json=False)  # type: ignore[type-var, arg-type]
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[2].split() == [
        "down",
        "[a]",
        "[1280,",
        "3420]",
        "16",
        "10.0",
        "9.0-11.0",
        "1.500",
        "1.010",
        "1.000",
        "1.000",
    ]
    assert "K unaligned  vllm: 1.500 x median, 1.500 x at worst" in lines
    assert "N unaligned  vllm: 1.200 x median, 1.200 x at worst" in lines
    assert any(line.endswith("GPU [x]") for line in lines)


@pytest.mark.torch
def test_the_json_is_one_document(report: object, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints the report and nothing else."""
    from fp8pad.render.bench import bench_screen
    from fp8pad.render.terminal import show

    show(report, bench_screen, as_json=True)  # type: ignore[type-var, arg-type]
    assert json.loads(capsys.readouterr().out)["cases"][0]["ratio_to_aligned"]["vllm"] == 1.5


@pytest.mark.torch
def test_the_layers_of_a_checkpoint_are_those_of_a_rank(example: Path) -> None:
    """Each unaligned shape appears once; at TP 2 the heads are split, and 213 cannot be."""
    from fp8pad.cli.bench import _shapes

    assert {shape.logical_shape for shape in _shapes(example, 1)} == {
        (136, 213),
        (213, 136),
        (64, 136),
        (136, 128),
        (128, 136),
    }
    assert {shape.logical_shape for shape in _shapes(example, 2)} == {(64, 136), (32, 136), (136, 64)}


def test_without_torch_the_command_says_what_to_install(tmp_path: Path) -> None:
    """One line says what is needed, without a traceback."""
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from fp8pad.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", script, "bench"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("error: fp8pad bench: No module named torch; it needs torch and vLLM with a GPU")
    assert run.stderr.count("\n") == 1
