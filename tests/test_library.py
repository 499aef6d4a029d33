"""The library: the commands as functions, loaded when used, that print nothing and return what the commands print."""

import inspect
import json
import pydoc
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import files_of, llama
from test_cli import Fp8pad, fp8pad  # noqa: F401  a fixture

import fp8pad as library
from fp8pad import errors
from fp8pad.checkpoint.progress import progress_of
from fp8pad.cli import checkpoints, main
from fp8pad.errors import CheckpointError, Fp8padError, HeaderError, OutputError, UsageError
from fp8pad.planning.engines import find_engine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint of two shards that needs padding."""
    return llama(tmp_path / "model", num_shards=2)


def test_there_and_back(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Plan, convert, verify with and without the source, inspect and unpad, with strings and paths; prints nothing."""
    out_dir, restored = tmp_path / "out", tmp_path / "restored"
    planned = library.plan(str(model), alignment=32)
    converted = library.convert(str(model), out_dir, alignment=32, jobs=1)
    assert planned.plan == converted.plan
    assert library.verify(model, str(out_dir)).ok
    assert library.verify(out_dir).ok
    assert library.verify(out_dir=out_dir).model is None
    assert library.inspect(str(out_dir)).disagreements == ()
    assert library.unpad(str(out_dir), restored).tensors_unpadded == 6
    assert files_of(restored) == files_of(model)
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_any_file_is_found_without_the_source(model: Path, tmp_path: Path) -> None:
    """With recorded hashes, each is a mismatch, in other files too; an edit of a model card is a note."""
    (model / "modeling_llama.py").write_text("x = 1\n")
    out_dir = tmp_path / "out"
    library.convert(model, out_dir, hash=True)
    report = library.verify(out_dir)
    assert (report.ok, report.notes, report.files_hashed) == (True, (), len(files_of(out_dir)) - 1)
    for name, content in files_of(out_dir).items():
        for position in (len(content) // 3, len(content) - 2):
            damaged = bytearray(content)
            damaged[position] ^= 1
            (out_dir / name).write_bytes(damaged)
            try:
                found = library.verify(out_dir)
                noticed = bool(found.notes) if name == "README.md" else not found.ok
            except CheckpointError:
                noticed = True
            assert noticed, f"{name}: byte {position}"
        (out_dir / name).write_bytes(content)


def test_links_out_of_the_model_are_followed_on_request(model: Path, tmp_path: Path) -> None:
    """By plan, convert and the command; `verify` compares their targets."""
    (tmp_path / "code.py").write_text("x = 1\n")
    (model / "code.py").symlink_to("../code.py")
    assert library.plan(model).source.excluded == ("code.py",)
    assert library.plan(model, follow_links=True).source.excluded == ()
    assert library.convert(model, tmp_path / "without").excluded == ("code.py",)
    assert library.verify(model, tmp_path / "without").ok
    out_dir = tmp_path / "out"
    assert library.convert(model, out_dir, follow_links=True).excluded == ()
    assert (out_dir / "code.py").read_text() == "x = 1\n"
    assert not (out_dir / "code.py").is_symlink()
    assert library.verify(model, out_dir).ok
    (out_dir / "code.py").write_text("x = 2\n")
    assert [mismatch.file for mismatch in library.verify(model, out_dir).mismatches] == ["code.py"]


def test_a_followed_link_verifies_in_an_equal_copy(tmp_path: Path, fp8pad: Fp8pad) -> None:  # noqa: F811
    """There is no record that names the file."""
    (tmp_path / "code.py").write_text("x = 1\n")
    aligned, out_dir = llama(tmp_path / "aligned", n=32, k=32), tmp_path / "out"
    (aligned / "code.py").symlink_to("../code.py")
    assert fp8pad("convert", aligned, out_dir, "--follow-links").status == 0
    assert (out_dir / "code.py").is_file()
    assert not (out_dir / "fp8pad.json").exists()
    assert fp8pad("verify", aligned, out_dir).status == 0


def test_errors_are_exceptions(model: Path, tmp_path: Path) -> None:
    """Each cause has its own class, and nothing exits."""
    with pytest.raises(CheckpointError, match="no such folder"):
        library.plan(tmp_path / "missing")
    with pytest.raises(UsageError, match="patterns match whole names"):
        library.convert(model, tmp_path / "out", skip=["nothing"])
    with pytest.raises(OutputError, match="model folder itself"):
        library.convert(model, model)
    with pytest.raises(UsageError, match="expected a folder"):
        library.verify()
    with pytest.raises(
        UsageError, match="--finish cannot be combined with --no-resume, which would remove the shards to publish"
    ):
        library.convert(model, tmp_path / "out", finish=True, resume=False)


def test_errors_can_be_caught_by_what_fp8pad_offers() -> None:
    """Every error class that a function of the library raises is exported."""
    elsewhere = {"GoldenError", "EngineError", "UnsupportedLayerError"}  # of the command line, and inside vLLM
    kinds = {name for name, found in vars(errors).items() if inspect.isclass(found) and issubclass(found, Fp8padError)}
    assert {name for name in dir(library) if name.endswith("Error")} == kinds - elsewhere
    assert all(getattr(library, name) is getattr(errors, name) for name in kinds - elsewhere)


def test_help_is_one_screen_that_names_everything_once() -> None:
    """It has a line for each function, with its return type, and for each error; then pydoc's list of modules."""
    said, _, modules = re.sub(".\x08", "", pydoc.render_doc(library)).partition("PACKAGE CONTENTS")
    assert len(said.splitlines()) <= 40
    named = re.findall(r"^ {8,}([A-Za-z_]+)(?= )", re.sub(r" -> ", "\n        ", said), re.MULTILINE)
    assert sorted([*named, "Fp8padError", "__version__"]) == sorted(dir(library))
    assert "CLASSES" not in modules


def test_what_a_notebook_shows_of_a_report_is_short(model: Path, tmp_path: Path) -> None:
    """It shows names and counts, not every layer or record."""
    planned, out_dir = library.plan(model), tmp_path / "out"
    assert repr(planned) == (
        f"PlanReport(source=Checkpoint({str(model)!r}), plan=CheckpointPlan(4 layers, 4 changed tensors),"
        f" engine={find_engine()!r}, card=True)"
    )
    reports = library.convert(model, out_dir), library.inspect(out_dir), library.verify(model, out_dir)
    assert max(len(repr(report)) for report in reports) < 700


def test_a_fault_names_the_folder_it_is_in(model: Path, tmp_path: Path) -> None:
    """`verify` reads two folders, and says which one holds a Git LFS pointer instead of a shard."""
    library.convert(model, tmp_path / "out")
    for folder in (model, tmp_path / "out"):
        shard = min(folder.glob("*.safetensors"))
        content = shard.read_bytes()
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
        with pytest.raises(
            HeaderError, match=f"^{folder}: {shard.name}: is a Git LFS pointer.*; run `git lfs pull` there"
        ):
            library.verify(model, tmp_path / "out")
        shard.write_bytes(content)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alignment": 48}, r"^alignment: expected one of \['auto', 16, .*, 'deepgemm'\], got 48$"),
        ({"alignment": "16"}, '^alignment: expected one of .*, got "16"$'),
        ({"alignment": [{}]}, r"^alignment: .*, got \[\{\}\]$"),
        ({"tensor_parallel_size": 2000}, "^tensor_parallel_size: expected 1 to 1024, got 2000$"),
        ({"tensor_parallel_size": 0}, "^tensor_parallel_size: expected 1 to 1024, got 0$"),
        ({"tensor_parallel_size": True}, "^tensor_parallel_size: expected int, got true$"),
        ({"absorb": 1}, "^absorb: expected bool, got 1$"),
        ({"skip": [1]}, r"^skip\[0\]: expected str, got 1$"),
        ({"skip": b"x"}, r"^skip\[0\]: expected str, got 120$"),
        ({"skip": 5}, "^skip: expected a pattern, or several, got 5$"),
        ({"engine": "vlm"}, r"^engine vlm: expected one of .*; did you mean vllm-[\d.]+\?$"),
        ({"engine": 5}, "^engine 5: expected one of "),
        ({"verify": "Full"}, '^verify: expected one of .*, got "Full"$'),
        ({"link": "symlink"}, "^link: expected one of "),
        ({"executor": "Ray"}, "^executor: expected one of "),
        ({"ray_address": "a:1"}, "^ray_address: expected auto, unless the executor is ray, got a:1$"),
        ({"jobs": 0}, "^jobs: expected a positive size, got 0$"),
    ],
)
def test_options_that_cannot_be_had_are_refused_at_first(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    """Each is a `UsageError` before a model is read; otherwise a record could not be read again."""
    out_dir, tried = tmp_path / "out", 0
    functions: list[tuple[Callable[..., Any], tuple[object, ...]]] = [
        (library.plan, ()),
        (library.convert, (out_dir,)),
        (library.convert_shards, (out_dir, range(1))),
        (library.unpad, (out_dir,)),
        (library.verify, (out_dir,)),
    ]
    for function, arguments in functions:
        if option.keys() <= inspect.signature(function).parameters.keys():
            with pytest.raises(UsageError, match=message):
                function(tmp_path / "missing", *arguments, **option)
            tried += 1
    assert tried
    assert not list(tmp_path.iterdir())


def test_a_pattern_alone_is_one_pattern(model: Path) -> None:
    """A string is not taken for a list of letters."""
    assert library.plan(model, skip="*down_proj").plan.policy.skip == ("*down_proj",)
    assert library.plan(model, skip=["*down_proj", "*o_proj"]).plan.policy.skip == ("*down_proj", "*o_proj")


def test_shards_are_written_by_the_options_of_convert(model: Path, tmp_path: Path) -> None:
    """The published result equals that of a single run."""
    library.convert(model, tmp_path / "expected", alignment=64, hash=True)
    for shards in (range(1), range(1, 2)):
        written = library.convert_shards(model, tmp_path / "out", shards, alignment=64, hash=True)
        assert len(written.finished) == shards.stop
    library.convert(model, tmp_path / "out", alignment=64, hash=True, finish=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_progress_is_told_to_a_function(model: Path, tmp_path: Path) -> None:
    """It gets a label, the bytes that are done and their total; at the end, both are equal."""
    told: list[tuple[str, int, int]] = []
    library.convert(model, tmp_path / "out", progress=lambda *step: told.append(step))
    label, done, total = told[-1]
    assert (label, done) == ("padding and reading back", total)
    assert [step[1] for step in told] == sorted(step[1] for step in told)


def test_a_function_is_told_of_progress_by_one_thread_at_a_time() -> None:
    """It need not be thread-safe, and the done bytes never decrease."""
    told: list[int] = []
    running = threading.Lock()

    def tell(_label: str, done: int, _total: int) -> None:
        assert running.acquire(blocking=False)
        time.sleep(0.001)
        told.append(done)
        running.release()

    progress = progress_of(tell)
    progress.start("padding", 40)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(progress.advance, [1] * 40))
    assert told == list(range(41))


def test_progress_is_a_bar_if_tqdm_is_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on stderr, with a line for each step, full at the end; without tqdm there is none, and no error."""
    pytest.importorskip("tqdm", reason="needs tqdm")
    library.convert(model, tmp_path / "out", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "100%" in shown.err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "fp8pad.integrations.tqdm", None)
    library.convert(model, tmp_path / "again", progress=True)
    assert capsys.readouterr() == ("", "")


def test_documents_are_those_of_the_command_line(model: Path, tmp_path: Path, fp8pad: Fp8pad) -> None:  # noqa: F811
    """Each has a version, and paths as given."""
    (tmp_path / "x").mkdir()
    out_dir = tmp_path / "x" / ".." / "out"
    plan = library.plan(model)
    assert json.loads(fp8pad("plan", model, "--json").stdout) == json.loads(json.dumps(plan.to_json()))
    found = library.convert(model, out_dir)
    again = fp8pad("convert", model, out_dir, "--json", "--overwrite")
    documents = [
        (json.loads(again.stdout), found.to_json()),
        (json.loads(fp8pad("verify", model, out_dir, "--json").stdout), library.verify(model, out_dir).to_json()),
        (json.loads(fp8pad("inspect", out_dir, "--json").stdout), library.inspect(out_dir).to_json()),
        (
            json.loads(fp8pad("unpad", out_dir, tmp_path / "one", "--json").stdout),
            library.unpad(out_dir, tmp_path / "one", overwrite=True).to_json(),
        ),
    ]
    for printed, returned in documents:
        assert printed["format_version"] == 1
        for document in (printed, returned):
            for key in ("files_replaced", "files_edited"):
                document.pop(key, None)
        assert printed == json.loads(json.dumps(returned))
    assert documents[0][0]["out_dir"] == documents[1][0]["out_dir"] == documents[2][0]["path"] == str(out_dir)
    assert documents[0][0]["model"] == documents[1][0]["model"] == str(model)


def test_importing_loads_next_to_nothing() -> None:
    """A vLLM process imports fp8pad; the functions are loaded when used, whatever was imported before."""
    script = (
        "import sys, fp8pad\n"
        "heavy = ('numpy', 'rich', 'typer', 'huggingface_hub', 'fp8pad.library')\n"
        "print(*(name for name in heavy if name in sys.modules))\n"
        "import fp8pad.conversion, fp8pad.verification, fp8pad.unpadding, fp8pad.inspection, fp8pad.upload\n"
        "print(*(callable(getattr(fp8pad, name)) for name in dir(fp8pad) if name != '__version__'))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["", " ".join(["True"] * (len(dir(library)) - 1))]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        library.nothing  # noqa: B018


COMMANDS = [command.__name__ for command, *_ in main.COMMANDS if command.__name__ != "bench"]


def test_every_command_is_a_function() -> None:
    """Except those that run engines or a GPU."""
    assert set(COMMANDS) <= set(dir(library))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_function_is_one_of_its_command(name: str) -> None:
    """The defaults are equal; progress is shown by the command itself."""
    function, command = (inspect.signature(getattr(module, name)).parameters for module in (library, checkpoints))
    options = {key: option.default for key, option in function.items() if option.kind is option.KEYWORD_ONLY}
    options.pop("progress", None)
    assert options.items() <= {key: option.default for key, option in command.items()}.items()


def test_the_options_of_slices_are_those_of_convert() -> None:
    """The defaults are equal, so that the last run continues from their shards."""
    slices, whole = (inspect.signature(function).parameters for function in (library.convert_shards, library.convert))
    options = {key: option.default for key, option in slices.items() if option.kind is option.KEYWORD_ONLY}
    assert options.items() <= {key: option.default for key, option in whole.items()}.items()
