"""The table of real models in docs/absorb.md equals the output of the example."""

import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess

import forked

import fp8pad

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "real_models.py"


def example(*arguments: str) -> "CompletedProcess[str]":
    """Run the example."""

    def run() -> None:
        sys.argv = [str(SCRIPT), *arguments]
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return forked.run(run)


def test_the_documentation_shows_what_the_example_prints() -> None:
    """Nine models' published sizes, at tensor-parallel sizes 1 to 16."""
    table = example().stdout
    assert len(table.splitlines()) == 29
    assert table in (ROOT / "docs" / "absorb.md").read_text("utf-8")


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    """Models have the names that --help lists, and nothing is written into a folder that exists."""
    assert "Qwen2.5-72B" in example("--help").stdout
    for name, said in ("Qwen", "Qwen: expected one of "), ("Qwen2.5-72B", f"{tmp_path}: exists already"):
        run = example("--write", name, str(tmp_path))
        assert (run.returncode, run.stdout) == (2, "")
        assert f"error: {said}" in run.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_as_large_as_the_model(tmp_path: Path) -> None:
    """It has all 64 experts in each of 26 layers, with 3 matrices each, so that the costs in `plan` are right."""
    write = runpy.run_path(str(SCRIPT))["write"]
    write("DeepSeek-Coder-V2-Lite", tmp_path / "model")
    document = fp8pad.plan(tmp_path / "model").to_json()
    experts = [layer for layer in document["layers"] if ".experts." in layer["name"]]
    assert len(experts) == 26 * 64 * 3
    assert 15e9 < document["bytes_before"] < 16e9
