"""Shards written by several processes, each some of them, and published by a last one."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import files_of, llama
from typer.testing import CliRunner

from fp8pad.checkpoint import writer
from fp8pad.checkpoint.checkpoint import read_unconverted
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.staging import hold_staging
from fp8pad.cli.main import app
from fp8pad.conversion import ConvertReport, SliceReport, convert, convert_slice
from fp8pad.errors import OutputError
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.verification import verify


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of five shards."""
    return llama(tmp_path / "model", num_shards=5)


def converted(model: Path, out_dir: Path, **options: Any) -> ConvertReport:
    """Convert a checkpoint."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    return convert(source, plan, out_dir, WriteOptions(**options), Progress())


def write_slice(model: Path, out_dir: Path, shards: range, **options: Any) -> SliceReport:
    """Write some shards."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    return convert_slice(source, plan, out_dir, WriteOptions(shards=shards, **options), Progress())


@pytest.mark.parametrize("depth", ["none", "padded", "full"])
def test_slices_give_what_one_run_gives(model: Path, tmp_path: Path, depth: str) -> None:
    """In any order, overlapping or not; nothing is published before the end, and hashes are kept until then."""
    converted(model, tmp_path / "expected", verify=depth)
    for shards, finished in ((range(3, 5), 2), (range(2), 4), (range(1, 3), 5)):
        report = write_slice(model, tmp_path / "out", shards, verify=depth)
        assert (len(report.finished), report.num_shards) == (finished, 5)
        assert not (tmp_path / "out").exists()
    assert len(converted(model, tmp_path / "out", finishes=True, verify=depth).resumed) == 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "model", "out"]


def test_finishing_reads_no_shard_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice has read back what it wrote: the last run would else have to read everything."""
    write_slice(model, tmp_path / "out", range(5))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "compare_data", lambda *_: pytest.fail("a shard was compared"))
        converted(model, tmp_path / "out", finishes=True)
    assert verify(model, tmp_path / "out", Progress()).ok


@pytest.mark.parametrize("options", [{"finishes": True, "verify": "full"}, {}])
def test_deeper_wishes_are_read_again(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """A slice that was not read back as deep is compared with its source; a plain run believes no note at all."""
    write_slice(model, tmp_path / "out", range(5), verify="none")
    altered = next((tmp_path / ".out.fp8pad" / "staged").glob("*.finished"))
    altered.write_bytes(altered.read_bytes()[:-1] + bytes([altered.read_bytes()[-1] ^ 1]))
    assert len(converted(model, tmp_path / "out", **options).resumed) == 4
    assert verify(model, tmp_path / "out", Progress()).ok


def test_a_shard_that_was_altered_after_its_slice_is_written_again(model: Path, tmp_path: Path) -> None:
    """Its note speaks of another file, so that it is compared."""
    write_slice(model, tmp_path / "out", range(5))
    altered = next((tmp_path / ".out.fp8pad" / "staged").glob("*.finished"))
    altered.write_bytes(altered.read_bytes()[:-1] + bytes([altered.read_bytes()[-1] ^ 1]))
    for note in (tmp_path / ".out.fp8pad" / "staged").glob("*.note"):
        if note.name.split(".")[0] != altered.name.split(".")[0]:
            note.write_text("{")
            break
    assert len(converted(model, tmp_path / "out", finishes=True).resumed) == 4
    assert verify(model, tmp_path / "out", Progress()).ok


def test_finishing_too_early_says_which_shards_are_missing(model: Path, tmp_path: Path) -> None:
    """And keeps those that are there."""
    write_slice(model, tmp_path / "out", range(2, 4))
    with pytest.raises(OutputError, match="3 of 5 shards are not finished; the first is written by --shards 0"):
        converted(model, tmp_path / "out", finishes=True)
    assert len(write_slice(model, tmp_path / "out", range(2)).finished) == 4


def test_slices_work_together_and_a_whole_run_alone(model: Path, tmp_path: Path) -> None:
    """Slices hold the staging folder together; whoever publishes holds it alone."""
    with hold_staging(tmp_path / "out", shared=True):
        write_slice(model, tmp_path / "out", range(1))
        with pytest.raises(OutputError, match="locked by another fp8pad process"):
            converted(model, tmp_path / "out")
    with hold_staging(tmp_path / "out"), pytest.raises(OutputError, match="locked by another fp8pad process"):
        write_slice(model, tmp_path / "out", range(1))


def test_a_slice_that_fails_leaves_the_others_what_they_have(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes only what it has begun itself."""
    write_slice(model, tmp_path / "out", range(2))

    def full(*_: object) -> None:
        raise OutputError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", full)
        with pytest.raises(OutputError, match="No space left"):
            write_slice(model, tmp_path / "out", range(2, 4))
    names = [path.suffix for path in (tmp_path / ".out.fp8pad" / "staged").iterdir()]
    assert sorted(names) == [".finished"] * 2 + [".note"] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--shards", "4-5"], 1, "expected positions from 0 to 4, got 5"),
        (["--shards", "2-1"], 2, "expected a shard's position"),
        (["--shards", "x"], 2, "expected a shard's position"),
        (["--shards", "0", "--finish"], 2, "goes neither with --finish"),
        (["--finish"], 1, "5 of 5 shards are not finished"),
    ],
)
def test_wrong_slices_are_one_line(
    model: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    """Nothing is left behind."""
    run = CliRunner().invoke(app, ["convert", str(model), str(tmp_path / "out"), *arguments])
    assert run.exit_code == status
    assert message in (run.output if status == 2 else str(run.exception))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_slice_on_the_command_line(model: Path, tmp_path: Path) -> None:
    """Says how far all slices are, and what comes last."""
    arguments = ["convert", str(model), str(tmp_path / "out"), "--shards"]
    run = CliRunner().invoke(app, [*arguments, "0-3"])
    assert run.exit_code == 0
    assert "4 of 5 shards are finished" in run.stdout
    assert "--finish" in run.stdout
    run = CliRunner().invoke(app, [*arguments, "4", "--json"])
    document = json.loads(run.stdout)
    assert (document["num_shards"], len(document["files_finished"])) == (5, 5)
    assert CliRunner().invoke(app, ["convert", str(model), str(tmp_path / "out"), "--finish"]).exit_code == 0
    assert verify(model, tmp_path / "out", Progress()).ok
