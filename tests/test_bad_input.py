"""Bad input on the command line: exit status 1, one clear line, no traceback, nothing left behind."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import forked
import numpy as np
import pytest
from helpers import case_names, cases_dir, copy_case, files_of, llama, tensor_rows
from test_verify import convert_to

from fp8pad import staged
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.cli.main import main
from fp8pad.errors import Fp8padError, OutputError
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.verification import verify

# One layer of each has a scale that fp8pad does not understand: it is carried unchanged, with a reason.
CARRIED = {
    "b_fp8_no_scale": "an FP8 weight without a scale of its own",
    "b_scale_wrong_len": "scales BF16 [137, 1] where a channel scale [136, 1] is expected",
    "b_scale_transposed": "scales BF16 [1, 136] where a channel scale [136, 1] is expected",
    "b_block_scale_grid": "scales BF16 [1, 1] where a block scale [2, 2] is expected",
}


def bad_cases() -> list[str]:
    """Return the paths of the malformed checkpoints in the folder of cases."""
    names = (path.name for path in sorted((cases_dir() / "bad").glob("b_*")))
    return [f"bad/{name}" for name in names if name not in CARRIED]


class Refusal(Protocol):
    """Runs the command line, which must refuse with one line, and returns that line."""

    def __call__(self, *arguments: object) -> str:
        """Take arguments as on a command line."""


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run the command line in this process."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["fp8pad", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output, errors = capsys.readouterr()
        assert stopped.value.code == 1
        assert output == ""
        *progress, line = errors.strip().split("\n")
        assert line.startswith("error: ")
        assert not any("error" in other or "Traceback" in other for other in progress)
        return line

    return run


@pytest.mark.parametrize("path", bad_cases())
def test_malformed_checkpoints_are_refused(path: str, tmp_path: Path, refused: Refusal) -> None:
    """The error names the folder and the file, tensor or key; nothing is changed, and nothing left behind."""
    model = copy_case(path, tmp_path / "in")
    before = files_of(model)
    line = refused("convert", model, tmp_path / "out")
    assert line.startswith(f"error: {model}: ")
    assert any(word in line for word in (".json", ".safetensors", "model.", "b_only_bin", "fp8pad"))
    assert files_of(model) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", CARRIED)
def test_a_layer_that_is_not_understood_is_carried(
    name: str, tmp_path: Path, refused: Refusal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is counted and named with its reason, and its bytes stay; the others are padded; --strict refuses it."""
    model, out_dir = copy_case(f"bad/{name}", tmp_path / "in"), tmp_path / "out"
    strict = refused("convert", "--strict", "--quiet", model, out_dir)
    assert "1 FP8 layer is not understood: model.layers.1.mlp.down_proj: " + CARRIED[name] in strict
    assert not out_dir.exists()
    for arguments in (["plan"], ["convert", str(out_dir)]):
        monkeypatch.setattr(sys, "argv", ["fp8pad", arguments[0], str(model), *arguments[1:]])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "1 FP8 layer not understood: carried unchanged" in shown
        assert f"{CARRIED[name]}: model.layers.1.mlp.down_proj" in shown
    monkeypatch.setattr(sys, "argv", ["fp8pad", "convert", "-q", str(model), str(tmp_path / "quiet")])
    with pytest.raises(SystemExit):
        main()
    warning = "warning: 1 FP8 layer not understood: carried unchanged, the first: model.layers.1.mlp.down_proj\n"
    assert capsys.readouterr() == ("", warning)
    kept, padded = (tensor_rows_of(model, out_dir, f"model.layers.{number}.mlp.down_proj.weight") for number in (1, 0))
    assert np.array_equal(kept[0], kept[1])
    assert padded[0].shape != padded[1].shape
    assert verify(model, out_dir, Progress()).ok


def tensor_rows_of(model: Path, out_dir: Path, name: str) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return one tensor of the source and of the converted checkpoint."""
    return [tensor_rows(folder / "model.safetensors", name) for folder in (model, out_dir)]


def test_what_is_no_checkpoint_folder_is_refused(tmp_path: Path, refused: Refusal) -> None:
    """A missing folder and a file are refused."""
    (tmp_path / "file").write_text("")
    assert "no such folder" in refused("convert", tmp_path / "none", tmp_path / "out")
    assert "expected a folder" in refused("convert", tmp_path / "file", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_converted_checkpoint_is_refused_with_a_hint(tmp_path: Path, refused: Refusal) -> None:
    """Padding twice would lose the first record."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"
    convert_to(model, out_dir)
    for arguments in (["convert", out_dir, tmp_path / "again"], ["plan", out_dir]):
        error = refused(*map(str, arguments))
        assert "`fp8pad inspect` shows what was done, `fp8pad unpad` restores the original" in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_an_output_inside_the_input_is_refused(tmp_path: Path, refused: Refusal) -> None:
    """The output would become part of the model."""
    model = llama(tmp_path / "model")
    before = files_of(model)
    assert "is inside the model folder" in refused("convert", model, model / "out")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "fp8pad.json").write_text("{}")
    assert "which fp8pad wrote" in refused("convert", model, tmp_path / "converted" / "in" / "out")
    assert files_of(model) == before


def test_bad_input_ends_a_process_with_status_one(tmp_path: Path) -> None:
    """The same in a separate process, where a limit on file sizes simulates a full disk."""
    model = llama(tmp_path / "model")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        forked.run_main("convert", model, tmp_path / "out")

    found = forked.run(limited)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.endswith("error: model.safetensors: cannot be written: File too large\n")
    assert "Traceback" not in found.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with room for a hundred kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_refused(
    tmp_path: Path, small_disk: Path, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before writing if that is known, otherwise when the disk is full; what fits is written."""
    model = llama(tmp_path / "model", num_shards=2, n=200, k=400)
    assert "not enough disk space" in refused("convert", model, small_disk / "out")
    with monkeypatch.context() as patch:
        patch.setattr(staged, "check_space", lambda *_: None)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            convert_to(model, small_disk / "out")
    assert not (small_disk / "out").exists()
    assert verify(llama(tmp_path / "small"), convert_to(tmp_path / "small", small_disk / "out"), Progress()).ok


def _places(value: object, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where the keys of nested objects are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*place, key)
            yield from _places(inner, (*place, key))


def _with(document: Any, place: tuple[str, ...], value: object) -> Any:
    """Return a copy of nested objects with another value at one place."""
    first, *rest = place
    return {**document, first: _with(document[first], tuple(rest), value) if rest else value}


def test_any_key_of_a_config_may_have_any_value(tmp_path: Path) -> None:
    """Each of a case is a list once, and an object or a number once: it ends in a plan or in one of our errors."""
    tried: set[tuple[str, ...]] = set()
    policy = Policy(absorb=True, absorb_experts=True, tensor_parallel_size=8)
    for number, name in enumerate(case_names("good", "variants")):
        source = read_unconverted(copy_case(name, tmp_path / str(number)))
        config = source.configs["config.json"]
        for place in sorted(set(_places(config)) - tried):
            odd_values: tuple[object, ...] = ([], {} if len(tried) % 2 else -1)
            tried.add(place)
            for value in odd_values:
                with suppress(Fp8padError):
                    configs = {**source.configs, "config.json": _with(config, place, value)}
                    plan = plan_checkpoint(source.shards, configs, policy)
                    json.dumps(PlanReport(source, plan).to_json())
    assert len(tried) > 100
