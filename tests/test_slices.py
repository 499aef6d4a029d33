"""Shards that several processes write, each some of them, and that a last process publishes."""

import errno
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import files_of, llama, write_checkpoint
from typer.testing import CliRunner

from fp8pad import library
from fp8pad.checkpoint import writer
from fp8pad.checkpoint.files import writing
from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.checkpoint.staging import Staging
from fp8pad.cli.main import app
from fp8pad.conversion import ConvertReport, SliceReport, convert, convert_slice
from fp8pad.errors import OutputError, UsageError
from fp8pad.output import Output
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.unpadding import unpad
from fp8pad.verification import verify


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint of five shards."""
    return llama(tmp_path / "model", num_shards=5)


PADDED_TO_64 = Policy(alignment=64)


def converted(model: Path, out_dir: Path, policy: Policy = Policy(), **options: Any) -> ConvertReport:  # noqa: B008
    """Convert a checkpoint."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    return convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(**options), Progress())


def write_slice(
    model: Path,
    out_dir: Path,
    shards: range,
    policy: Policy = Policy(),  # noqa: B008
    **options: Any,
) -> SliceReport:
    """Write some shards."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    planned = PlanReport(source, plan, card=False)
    return convert_slice(planned, out_dir, WriteOptions(**options), Progress(), shards)


def staged(out_dir: Path) -> list[str]:
    """Return the names of what is staged for `out_dir`."""
    return sorted(path.name for path in (out_dir.parent / f".{out_dir.name}.fp8pad" / "staged").iterdir())


DEPTHS: list[dict[str, Any]] = [{}, {"verify": "none"}, {"verify": "full"}, {"hash": True}]


@pytest.mark.parametrize("last", DEPTHS, ids=str)
@pytest.mark.parametrize("first", DEPTHS, ids=str)
def test_slices_give_what_one_run_gives(
    model: Path, tmp_path: Path, first: dict[str, Any], last: dict[str, Any]
) -> None:
    """In any order, overlapping or not; only the last run publishes, and its options say what is hashed."""
    converted(model, tmp_path / "expected", **last)
    for shards, finished in ((range(3, 5), 2), (range(2), 4), (range(1, 3), 5)):
        report = write_slice(model, tmp_path / "out", shards, **first)
        assert (len(report.finished), report.num_shards) == (finished, 5)
        assert not (tmp_path / "out").exists()
    assert len(converted(model, tmp_path / "out", finishes=True, **last).resumed) == 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "model", "out"]


def test_finishing_reads_no_shard_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice has read back what it wrote; otherwise the last run would have to read everything."""
    write_slice(model, tmp_path / "out", range(5))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "compare_data", lambda *_: pytest.fail("a shard was compared"))
        converted(model, tmp_path / "out", finishes=True)
    assert verify(model, tmp_path / "out", Progress()).ok


@pytest.mark.parametrize("options", [{"finishes": True}, {"finishes": True, "verify": "full"}, {}])
def test_a_source_that_was_made_private_meanwhile_has_private_copies(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A finished shard loses the permissions that its source no longer has, whether it has a note or is compared."""
    write_slice(model, tmp_path / "out", range(5))
    for shard in model.glob("*.safetensors"):
        shard.chmod(0o600)
    assert len(converted(model, tmp_path / "out", **options).resumed) == 5
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").glob("*.safetensors")} == {0o600}


@pytest.mark.parametrize("options", [{"finishes": True, "verify": "full"}, {}])
def test_deeper_wishes_are_read_again(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """A slice that was verified less deeply is compared with its source; a plain run trusts no notes."""
    write_slice(model, tmp_path / "out", range(5), verify="none")
    altered = next((tmp_path / ".out.fp8pad" / "staged").glob("*.finished"))
    altered.write_bytes(altered.read_bytes()[:-1] + bytes([altered.read_bytes()[-1] ^ 1]))
    assert len(converted(model, tmp_path / "out", **options).resumed) == 4
    assert verify(model, tmp_path / "out", Progress()).ok


def test_a_shard_that_was_altered_after_its_slice_is_written_again(model: Path, tmp_path: Path) -> None:
    """Its note describes another file, so it is compared."""
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
    """The finished ones are kept."""
    write_slice(model, tmp_path / "out", range(2, 4))
    with pytest.raises(OutputError, match="3 of 5 shards are not finished; write the first one with --shards 0"):
        converted(model, tmp_path / "out", finishes=True)
    assert len(write_slice(model, tmp_path / "out", range(2)).finished) == 4


def test_a_folder_of_another_run_stays_and_is_named(model: Path, tmp_path: Path) -> None:
    """It may be an old OUT_DIR: after converting and after unpadding, the user decides."""
    for name in ("out", "restored"):
        folder = tmp_path / f".{name}.fp8pad" / "files.0123456789abcdef"
        folder.mkdir(parents=True)
        folder.parent.chmod(0o700)
        (folder / "config.json").write_text("theirs")
    result = CliRunner().invoke(app, ["convert", str(model), str(tmp_path / "out")])
    assert result.exit_code == 0
    assert f"{tmp_path}/.out.fp8pad/files.0123456789abcdef was left by another run" in " ".join(result.stderr.split())
    report = unpad(tmp_path / "out", tmp_path / "restored", WriteOptions(), Progress())
    assert f"{tmp_path}/.restored.fp8pad/files.0123456789abcdef was left by another run" in report.notes[-1]
    for name in ("out", "restored"):
        assert (tmp_path / f".{name}.fp8pad" / "files.0123456789abcdef" / "config.json").read_text() == "theirs"


def test_finishing_with_other_options_removes_nothing(model: Path, tmp_path: Path) -> None:
    """It says what is there, and the right options finish it."""
    write_slice(model, tmp_path / "out", range(5), PADDED_TO_64)
    before = staged(tmp_path / "out")
    with pytest.raises(OutputError, match="5 of 5 shards are not finished") as raised:
        converted(model, tmp_path / "out", finishes=True)
    folder = tmp_path / ".out.fp8pad"
    assert raised.value.__notes__ == [f"{folder} holds 5 shards written with other options or from another source"]
    assert staged(tmp_path / "out") == before
    assert len(converted(model, tmp_path / "out", PADDED_TO_64, finishes=True).resumed) == 5


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (Policy(tensor_parallel_size=4), Policy()),
        (Policy(), Policy(tensor_parallel_size=4)),
        (Policy(alignment="auto"), Policy(alignment=16)),
        (Policy(skip=("*.self_attn.o_proj",)), Policy()),
    ],
    ids=str,
)
def test_the_last_command_decides_where_shards_are_the_same(
    model: Path, tmp_path: Path, first: Policy, last: Policy
) -> None:
    """Options of slices count only by the bytes they gave: what is published has the last options."""
    converted(model, tmp_path / "expected", last)
    write_slice(model, tmp_path / "out", range(5), first)
    assert len(converted(model, tmp_path / "out", last, finishes=True).resumed) == 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


@pytest.mark.parametrize("is_complete", [True, False])
def test_slices_of_other_options_outlive_a_run_that_finishes(model: Path, tmp_path: Path, is_complete: bool) -> None:
    """Whether it publishes or finds everything complete; they can be finished afterwards."""
    if is_complete:
        converted(model, tmp_path / "out")
    write_slice(model, tmp_path / "out", range(5), PADDED_TO_64, overwrite=is_complete)
    if not is_complete:
        write_slice(model, tmp_path / "out", range(5))
    assert converted(model, tmp_path / "out", finishes=True).was_complete == is_complete
    report = converted(model, tmp_path / "out", PADDED_TO_64, finishes=True, overwrite=True)
    assert len(report.resumed) == 5
    assert verify(model, tmp_path / "out", Progress()).ok
    assert not (tmp_path / ".out.fp8pad").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_the_end_costs_no_slice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nor does a full one: this run must not remove what others wrote."""
    write_slice(model, tmp_path / "out", range(5))
    before = staged(tmp_path / "out")

    def fail(*_: object) -> None:
        with writing("config.json"):
            raise OSError(code, "the disk")

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_write_text", fail)
        with pytest.raises(OutputError, match="the disk"):
            converted(model, tmp_path / "out", finishes=True)
    assert staged(tmp_path / "out") == before


def test_what_a_killed_run_left_costs_no_slice(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed after publishing leaves a note about it, next to which slices are written."""
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "remove", lambda _: None)
        converted(model, tmp_path / "out")
    write_slice(model, tmp_path / "out", range(5), PADDED_TO_64, overwrite=True)
    report = converted(model, tmp_path / "out", PADDED_TO_64, finishes=True, overwrite=True)
    assert len(report.resumed) == 5
    assert verify(model, tmp_path / "out", Progress()).ok


def test_slices_work_together_and_a_whole_run_alone(model: Path, tmp_path: Path) -> None:
    """Slices share the lock of the staging folder; a run that publishes holds it exclusively."""
    with hold_staging(tmp_path / "out", shared=True):
        write_slice(model, tmp_path / "out", range(1))
        with pytest.raises(OutputError, match="locked by another fp8pad process"):
            converted(model, tmp_path / "out")
    with hold_staging(tmp_path / "out"), pytest.raises(OutputError, match="locked by another fp8pad process"):
        write_slice(model, tmp_path / "out", range(1))


def test_a_slice_that_fails_leaves_the_others_what_they_have(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes only what it has started itself, and says that the same command resumes what it has finished."""
    write_slice(model, tmp_path / "out", range(2))

    def full(*_: object) -> None:
        raise OutputError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", full)
        with pytest.raises(OutputError, match="No space left") as none:
            write_slice(model, tmp_path / "out", range(2, 4))
        with pytest.raises(OutputError, match="No space left") as one:
            write_slice(model, tmp_path / "out", range(1, 3))
    names = [path.suffix for path in (tmp_path / ".out.fp8pad" / "staged").iterdir()]
    assert sorted(names) == [".finished"] * 2 + [".note"] * 2
    assert not hasattr(none.value, "__notes__")
    folder = tmp_path / ".out.fp8pad"
    assert one.value.__notes__ == [f"run the same command to resume: 1 of 2 shards are finished in {folder}"]


def test_a_finished_shard_whose_source_changed_meanwhile_is_not_promised(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run would not use it."""
    write_slice(model, tmp_path / "out", range(2))
    first = sorted(model.glob("*.safetensors"))[0]

    def full(*_: object) -> None:
        (model / "copy").write_bytes(first.read_bytes())
        (model / "copy").replace(first)
        raise OutputError("No space left on device")

    monkeypatch.setattr(writer, "write_shard", full)
    with pytest.raises(OutputError, match="No space left") as error:
        write_slice(model, tmp_path / "out", range(3))
    assert [note.partition(" shards")[0] for note in error.value.__notes__] == [
        "run the same command to resume: 1 of 3"
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--shards", "2-1"], 2, "expected the number of a shard"),
        (["--shards", "x"], 2, "expected the number of a shard"),
        (["--shards", "0-"], 2, "expected the number of a shard"),
        (["--shards", "\u0661"], 2, "expected the number of a shard"),
        (["--shards", "0", "--finish"], 2, "--shards cannot be combined with --finish"),
        (["--shards", "0", "--executor", "ray"], 2, "--shards cannot be combined with --executor ray"),
        (["--shards", "0", "--no-resume"], 2, "--shards cannot be combined with --no-resume"),
        (["--shards", "0", "--dry-run"], 2, "--shards cannot be combined with --dry-run"),
        (["--shards", "0", "--ray-address", "a:1"], 2, "--shards cannot be combined with --ray-address a:1"),
        (["--ray-address", "a:1"], 1, "ray_address: expected auto, unless the executor is ray, got a:1"),
        (
            ["--finish", "--no-resume"],
            1,
            "--finish cannot be combined with --no-resume, which would remove the shards to publish",
        ),
        (["--shards", "0", "--engine", "x"], 1, "engine x: expected one of"),
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


def test_a_range_past_the_last_shard_is_wrong_usage(model: Path, tmp_path: Path) -> None:
    """As a range that cannot be read is: exit status 2."""
    with pytest.raises(UsageError, match="expected positions from 0 to 4, got 5"):
        write_slice(model, tmp_path / "out", range(4, 6))


@pytest.mark.parametrize("shards", [range(0, 4, 2), range(4, 0, -1), range(-2, 0), range(3, 1), range(0), None, 1])
def test_shards_that_no_slice_has_are_refused_at_first(model: Path, tmp_path: Path, shards: Any) -> None:
    """Nothing else than positions from one to another is written, so nothing else may be asked for."""
    with pytest.raises(UsageError, match="shards: expected a range of positions, one after the other, got "):
        library.convert_shards(model, tmp_path / "out", shards)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_slice_needs_room_for_what_is_not_finished(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that its finished shards have filled, it resumes; if none is finished, nothing is created."""
    write_slice(model, tmp_path / "out", range(3))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert len(write_slice(model, tmp_path / "out", range(3)).finished) == 3
    for out_dir in (tmp_path / "out", tmp_path / "deep" / "other"):
        with pytest.raises(OutputError, match="not enough disk space"):
            write_slice(model, out_dir, range(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.fp8pad", "model"]


def test_a_slice_asks_as_much_as_a_whole_run(tmp_path: Path) -> None:
    """With --strict, layers that are not understood are refused; without --force, what the engine refuses."""
    name = "model.layers.0.self_attn.o_proj.weight"
    blocks = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config = {"model_type": "llama", "quantization_config": blocks}
    unknown = write_checkpoint(tmp_path / "a" / "m", {"model.safetensors": {name: ("F8_E4M3", (128, 384))}}, config)
    shard = {name: ("F8_E4M3", (128, 384)), f"{name}_scale_inv": ("F32", (1, 3))}
    refused = write_checkpoint(tmp_path / "b" / "m", {"model.safetensors": shard}, config)
    for model, option, message in ((unknown, ["--strict"], "not understood"), (refused, ["-tp", "2"], "not served by")):
        run = CliRunner().invoke(app, ["convert", str(model), str(model.parent / "out"), "--shards", "0", *option])
        assert (run.exit_code, message in str(run.exception)) == (1, True)
        assert [path.name for path in model.parent.iterdir()] == ["m"]
    arguments = ["convert", str(refused), str(tmp_path / "b" / "out"), "-tp", "2", "--force", "--shards", "0"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--absorb", "-tp", "4", "--alignment", "64"],
        ["--skip", "*.0.mlp.*", "--skip", "*.[12].mlp.*", "--absorb-experts"],
        ["--hash", "--no-card", "--link", "hardlink", "--verify", "none"],
        ["--verify", "full", "--follow-links", "--strict", "--force", "--jobs", "3"],
        ["--overwrite", "--engine", "sglang-0.5.23", "--force"],
    ],
    ids=" ".join,
)
def test_the_command_that_finishes_has_all_options(model: Path, tmp_path: Path, options: list[str]) -> None:
    """It is printed, can be pasted, and gives the result of one run."""
    if "--overwrite" in options:
        converted(model, tmp_path / "out")
    run = CliRunner().invoke(app, ["convert", str(model), str(tmp_path / "out"), *options, "--shards", "0-4"])
    assert run.exit_code == 0, run.exception
    command = shlex.split(run.stdout.splitlines()[-1])
    assert command[:4] == ["fp8pad", "convert", str(model), str(tmp_path / "out")]
    assert CliRunner().invoke(app, command[1:]).exit_code == 0
    assert CliRunner().invoke(app, ["convert", str(model), str(tmp_path / "expected"), *options]).exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_a_slice_on_the_command_line(model: Path, tmp_path: Path) -> None:
    """It prints the progress of all slices, and the final command."""
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
