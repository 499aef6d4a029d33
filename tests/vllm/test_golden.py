"""Golden runs on real engines: the CI script on the example, text prompts, transformers, and what a check catches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from corruptions import CORRUPTIONS, with_biases

pytestmark = pytest.mark.vllm

REPOSITORY = Path(__file__).parent.parent.parent
EXAMPLE = REPOSITORY / "examples" / "llama-fp8"

Finished = subprocess.CompletedProcess[str]


def fp8pad(*arguments: object) -> Finished:
    """Run fp8pad as a user would."""
    command = [sys.executable, "-m", "fp8pad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_ci_script_proves_the_example(tmp_path: Path) -> None:
    """Convert, verify, record, check; and again into the same folder, with the existing golden file."""
    script = REPOSITORY / "examples" / "ci" / "golden.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "REPORTS": "reports"}

    def run(out_dir: str, convert_options: str) -> Finished:
        command = [str(script), str(EXAMPLE), out_dir, "golden.json"]
        env = environment | {"CONVERT_OPTIONS": convert_options}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    first = run("padded", "")
    assert first.returncode == 0, first.stderr
    assert "16 of 16 outputs are bitwise equal" in first.stdout
    second = run("padded", "--absorb")
    assert second.returncode == 0, second.stderr
    assert "16 of 16 outputs are bitwise equal" in second.stdout
    assert " 16 prompts" in second.stderr
    assert second.stderr.count(" prompts to vllm") == 1
    assert json.loads((tmp_path / "reports" / "verify.json").read_text())["ok"]
    report = ElementTree.parse(tmp_path / "reports" / "golden.xml").getroot()  # noqa: S314 - written a line above
    assert (report.get("tests"), report.get("failures")) == ("16", "0")


def test_prompts_of_text_are_asked_through_the_models_tokenizer(tmp_path: Path) -> None:
    """The token ids are stored in the file, so that checking needs no tokenizer."""
    (tmp_path / "prompts.txt").write_text("Padding changes nothing.\nzero times anything\n")
    golden = tmp_path / "golden.json"
    run = fp8pad("golden", "record", EXAMPLE, "-o", golden, "--prompts", tmp_path / "prompts.txt", "--max-tokens", 4)
    assert run.returncode == 0, run.stderr
    answers = json.loads(golden.read_text())["answers"]
    assert [len(answer["token_ids"]) for answer in answers] == [4, 4]
    assert all(token_id < 258 for answer in answers for token_id in answer["prompt_token_ids"])


def test_transformers_repeats_itself(tmp_path: Path) -> None:
    """The other engine gives the same bits in two processes; a recording of vLLM is clearly reported as different."""
    golden = tmp_path / "golden.json"
    run = fp8pad("golden", "record", EXAMPLE, "-o", golden, "--engine", "transformers", "--max-tokens", 4)
    assert run.returncode == 0, run.stderr
    check = fp8pad("golden", "check", EXAMPLE, golden, "--json")
    assert check.returncode == 0, check.stderr
    assert json.loads(check.stdout)["num_identical"] == 16
    strict = fp8pad("golden", "check", EXAMPLE, golden, "--engine", "vllm", "--strict")
    assert strict.returncode == 1
    assert strict.stderr.splitlines()[-1] == "error: engine: recorded with transformers, here vllm"


def test_an_engine_that_refuses_says_why(tmp_path: Path) -> None:
    """The error has one line with the cause, then vLLM's own lines."""
    run = fp8pad("golden", "record", EXAMPLE, "-o", tmp_path / "golden.json", "--dtype", "float7")
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: vllm failed on {EXAMPLE}: ")
    assert "float7" in line
    assert "Traceback (most recent" not in line


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the example with biases, absorbed, and a golden file of the original."""
    root = tmp_path_factory.mktemp("golden")
    model = with_biases(EXAMPLE, root / "model")
    for command in (("convert", model, root / "out", "--absorb"), ("golden", "record", model, "-o", root / "g.json")):
        run = fp8pad(*command)
        assert run.returncode == 0, run.stderr
    return root / "out", root / "g.json"


def claims() -> dict[str, bool]:
    """Return which corruptions `golden check` catches according to docs/equality.md."""
    rows = [line.split("|")[1:-1] for line in (REPOSITORY / "docs" / "equality.md").read_text().splitlines()]
    return {row[0].strip(): row[2].strip().startswith("yes") for row in rows if row and row[0].strip() in CORRUPTIONS}


@pytest.mark.parametrize("name", [None, *CORRUPTIONS])
def test_what_a_golden_check_catches_is_as_documented(
    name: str | None, recorded: tuple[Path, Path], tmp_path: Path
) -> None:
    """The converted checkpoint passes; each corruption fails or passes as docs/equality.md says."""
    out_dir, golden = recorded
    wrong = tmp_path / "wrong"
    shutil.copytree(out_dir, wrong)
    if name:
        CORRUPTIONS[name](wrong)
    run = fp8pad("golden", "check", wrong, golden)
    assert run.returncode == (claims()[name] if name else 0), run.stdout + run.stderr
