"""The command line as users and their scripts see it: results, messages and exit statuses."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from helpers import copy_case, files_of, llama, write_checkpoint
from plans import CHANNELS

from fp8pad import __version__
from fp8pad.checkpoint import writer
from fp8pad.checkpoint.files import Advance, OpenFile
from fp8pad.checkpoint.layout import Transfer
from fp8pad.checkpoint.moving import Sums
from fp8pad.cli.main import COMMANDS, GOLDEN_COMMANDS, main
from fp8pad.errors import Fp8padError
from fp8pad.planning.engines import engines, find_engine

VLLM = find_engine().title
README = Path(__file__).parents[1] / "README.md"
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@dataclass(frozen=True)
class Finished:
    """How a command ended: its exit status and what it printed."""

    status: int
    stdout: str
    stderr: str


Fp8pad = Callable[..., Finished]


@pytest.fixture
def fp8pad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fp8pad:
    """Return a function that runs the command line in this process: `fp8pad("plan", path)`."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["fp8pad", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 0
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture
def converted(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> Path:
    """Convert the example checkpoint."""
    out_dir = tmp_path / "converted"
    assert fp8pad("convert", example, out_dir).status == 0
    return out_dir


def test_plan_json_says_what_the_contract_promises(fp8pad: Fp8pad, example: Path) -> None:
    """One document, with literal numbers for one layer, the bytes and the files."""
    finished = fp8pad("plan", example, "--json")
    document = json.loads(finished.stdout)
    assert (finished.status, finished.stderr) == (0, "")
    assert (document["format_version"], document["model"]) == (1, str(example))
    assert document["policy"] == {
        "alignment": "auto",
        "tensor_parallel_size": 1,
        "absorb": False,
        "absorb_experts": False,
    }
    assert document["layers"][0] == {
        "name": "model.layers.0.mlp.down_proj",
        "scheme": "channel",
        "logical_shape": [136, 213],
        "padded_shape": [144, 224],
        "alignment": [16, 16],
        "disposition": {"n": "pad", "k": "pad"},
        "reason": "N = 136 is not a multiple of 16 and K = 213 is not a multiple of 16",
    }
    assert len(document["layers"]) == 14
    assert document["config_edits"] == []
    # For two layers: FP8 weights (down, gate, up; q, k, v; o), and 2 bytes for each added row's BF16 scale.
    weights = 2 * (3 * (144 * 224 - 136 * 213) + (128 + 2 * 64) * 8 + 8 * 128)
    scales = 2 * 2 * (8 + 2 * 11 + 8)
    assert document["bytes_after"] - document["bytes_before"] == weights + scales
    assert document["files_rewritten"] == ["README.md", "config.json", "model.safetensors"]
    assert document["files_kept"] == [
        "generation_config.json",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_options_reach_the_policy(fp8pad: Fp8pad, example: Path) -> None:
    """Alignment and TP size reach the plan's policy."""
    for name in ("-tp", "--tp", "--tensor-parallel-size"):
        document = json.loads(fp8pad("plan", example, "--json", "--alignment", "64", name, "2").stdout)
        assert (document["policy"]["alignment"], document["policy"]["tensor_parallel_size"]) == (64, 2)
        assert document["layers"][0]["padded_shape"] == [192, 256]


def test_ranks_may_be_written_without_a_blank(fp8pad: Fp8pad, example: Path) -> None:
    """`-tp2`, like `-j2`, means `-tp 2`."""
    documents = {fp8pad("plan", example, "--json", *words).stdout for words in (["-tp", "2"], ["-tp2"], ["-tp=2"])}
    (document,) = map(json.loads, documents)
    assert document["policy"]["tensor_parallel_size"] == 2


def test_dry_run_prints_the_plan_and_writes_nothing(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> None:
    """`convert --dry-run` prints the plan of `plan`, and its command writes to the given folder."""
    finished = fp8pad("convert", example, tmp_path / "out", "--dry-run")
    assert finished.status == 0
    suggested = f"{example}-padded"
    assert finished.stdout == fp8pad("plan", example).stdout.replace(suggested, str(tmp_path / "out"))
    assert finished.stdout.endswith(f"fp8pad convert {example} {tmp_path / 'out'}\n")
    assert list(tmp_path.iterdir()) == []


def test_convert_says_what_it_wrote_and_what_is_next(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> None:
    """The result is on stdout, progress on stderr, and the next commands can be pasted."""
    model, out_dir = tmp_path / "my model", tmp_path / "out"
    shutil.copytree(example, model)
    (model / "pytorch_model.bin").write_bytes(b"old")
    finished = fp8pad("convert", model, out_dir)
    assert finished.status == 0
    assert "  padded     22 tensors" in finished.stdout
    assert "  excluded   other forms of the weights: pytorch_model.bin" in finished.stdout
    assert f"fp8pad verify '{model}' {out_dir}" in finished.stdout
    assert f"vllm serve {out_dir}" in finished.stdout
    assert finished.stderr.startswith("padding and reading back: ")


def test_the_suggested_folder_lies_beside_the_model(
    fp8pad: Fp8pad, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model given as the current folder, a folder outside of it is suggested."""
    monkeypatch.chdir(example)
    assert f"fp8pad convert . {example}-padded" in fp8pad("plan", ".").stdout


def test_convert_json_is_one_document(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> None:
    """It has the plan's keys and what was written; stdout has nothing else."""
    document = json.loads(fp8pad("convert", example, tmp_path / "out", "--json", "--verify", "full").stdout)
    assert document["tensors_padded"] == 22
    assert document["verified"] == "full"
    assert document["layers"][0]["name"] == "model.layers.0.mlp.down_proj"


def test_verify_unpad_and_inspect_end_well(fp8pad: Fp8pad, example: Path, converted: Path, tmp_path: Path) -> None:
    """Every command of a round trip exits with 0, and the checkpoint is restored."""
    verified = json.loads(fp8pad("verify", example, converted, "--json").stdout)
    assert verified == {
        "format_version": 1,
        "out_dir": str(converted),
        "model": str(example),
        "ok": True,
        "tensors_checked": 35,
        "files_hashed": 0,
        "has_records": True,
        "mismatches": [],
        "is_complete": True,
        "notes": [],
    }
    alone = json.loads(fp8pad("verify", converted, "--json").stdout)
    note = "fp8pad.json holds no hashes (`convert --hash`): without the source, only padded bytes can be checked"
    assert alone == verified | {"model": None, "notes": [note]}
    assert fp8pad("verify", example, converted, converted).status == 2
    inspected = json.loads(fp8pad("inspect", converted, "--json").stdout)
    assert (inspected["ok"], len(inspected["tensors"])) == (True, 22)
    assert fp8pad("inspect", converted).status == 0
    restored = tmp_path / "restored"
    assert fp8pad("unpad", converted, restored).status == 0
    for path in example.iterdir():
        assert (restored / path.name).read_bytes() == path.read_bytes()


def test_a_mismatch_is_shown_and_ends_with_1(fp8pad: Fp8pad, example: Path, converted: Path) -> None:
    """One flipped byte of a weight is reported with tensor and position."""
    shard = converted / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[300_000] ^= 0x01
    shard.write_bytes(data)
    finished = fp8pad("verify", example, converted)
    assert finished.status == 1
    assert "model.safetensors: model.layers.0.self_attn.v_proj.weight[42, 24]: expected byte" in finished.stdout
    place = "model.safetensors: model.layers.0.self_attn.v_proj.weight[42, 24]: expected byte"
    assert f"error: {converted}: 1 mismatch, the first: {place}" in finished.stderr
    document = json.loads(fp8pad("verify", example, converted, "--json").stdout)
    assert (document["ok"], len(document["mismatches"])) == (False, 1)


def test_a_record_that_lies_is_shown_by_inspect(fp8pad: Fp8pad, converted: Path) -> None:
    """A disagreement between records is reported as a sentence, with exit status 1."""
    record = converted / "fp8pad.json"
    record.write_text(record.read_text().replace("[\n    136,\n    213\n   ]", "[\n    136,\n    212\n   ]"))
    finished = fp8pad("inspect", converted)
    assert finished.status == 1
    weight = "model.layers.0.mlp.down_proj.weight"
    place = f"model.safetensors: __metadata__.fp8pad: {weight}: logical_shape: expected [136, 212]"
    assert f"disagrees  {place}" in finished.stdout
    assert finished.stderr.startswith(f"error: {converted}: ")
    assert f"the first: {place}" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "convert", "verify", "unpad", "inspect"])
@pytest.mark.parametrize("model", ["missing", "file"])
def test_what_is_no_checkpoint_folder_is_one_line(
    fp8pad: Fp8pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, model: str
) -> None:
    """A missing folder, or a file, ends with status 1, one line on stderr, and nothing on stdout or disk."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    out_dir = Path(__file__).parent.parent / "examples" / "llama-fp8" if command == "verify" else Path("out")
    finished = fp8pad(command, model, *([] if command in ("plan", "inspect") else [out_dir]))
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"error: {model}: ")
    assert finished.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_converted_checkpoint_is_refused_with_a_hint(fp8pad: Fp8pad, converted: Path, tmp_path: Path) -> None:
    """Converting twice would nest records."""
    finished = fp8pad("convert", converted, tmp_path / "again")
    assert finished.status == 1
    assert "fp8pad unpad" in finished.stderr


def test_debug_shows_the_traceback(fp8pad: Fp8pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FP8PAD_DEBUG=1 the exception is raised."""
    monkeypatch.setenv("FP8PAD_DEBUG", "1")
    with pytest.raises(Exception, match="no such folder"):
        fp8pad("plan", "missing")


def test_steering_characters_of_a_name_are_escaped(fp8pad: Fp8pad) -> None:
    """A name can neither break an error's single line nor colour the terminal."""
    assert (
        fp8pad("plan", "a\nb\x1b[31m").stderr
        == "error: a\\nb\\x1b[31m: no such folder; models on the hub are named ORG/NAME\n"
    )


def test_a_mistyped_path_gets_a_suggestion(
    fp8pad: Fp8pad, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that differs by one letter is suggested; nothing is if no name is similar."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(example, "llama-fp8")
    unknown = "no such folder; models on the hub are named ORG/NAME"
    assert fp8pad("plan", "lama-fp8").stderr == f"error: lama-fp8: {unknown}; did you mean llama-fp8?\n"
    assert fp8pad("plan", "mistral").stderr == f"error: mistral: {unknown}\n"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "models").mkdir()
    shutil.move("llama-fp8", "models/llama-fp8")
    taken_for_a_hub_id = fp8pad("plan", "models/lama-fp8").stderr
    assert taken_for_a_hub_id.startswith("error: models/lama-fp8: ")
    assert taken_for_a_hub_id.endswith("; did you mean models/llama-fp8?\n")


@pytest.mark.parametrize("form", ["./{}", "../here/{}", "{}/", "./{}/", "~/{}", "/none/{}"])
@pytest.mark.parametrize("command", [("plan",), ("convert", "--dry-run"), ("verify",)])
def test_what_is_clearly_a_path_is_never_asked_of_the_hub(
    fp8pad: Fp8pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, command: tuple[str, ...]
) -> None:
    """The error does not call it a hub id either."""
    llama(tmp_path / "here" / "models" / "opt-dyn")
    (tmp_path / "here" / "models" / "opt_dyn.txt").touch()  # no folder, so it is not suggested
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("fp8pad.hub._found", lambda _: pytest.fail("it was asked"))
    model = form.format("models/opt_dyn")
    name, *options = command
    if name == "verify":
        llama(tmp_path / "out")
    arguments = [name, model, *(["../out"] if name in {"convert", "verify"} else []), *options]
    finished = fp8pad(*arguments)
    meant = "" if form[0] in "~" or "none" in form else f"; did you mean {Path(model).with_name('opt-dyn')}?"
    assert finished.stderr == f"error: {model}: no such folder{meant}\n"


def test_what_may_be_a_folder_or_a_hub_id_is_said_to_be_neither(
    fp8pad: Fp8pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suggested folder comes before the hub's answer, unless the name can only be a hub's."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = fp8pad("plan", "god/opt_dyn").stderr
    assert said.startswith("error: god/opt_dyn: no such folder, and on the hub: offline mode is on")
    assert fp8pad("plan", "hf://god/opt_dyn").stderr.startswith("error: god/opt_dyn: offline mode is on")


def test_a_linked_folder_says_how_its_links_come_along(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> None:
    """Otherwise a checkpoint of links would lack its tokenizer without a reason; other forms have their own reason."""
    model = tmp_path / "model"
    model.mkdir()
    for file in example.iterdir():
        (model / file.name).symlink_to(file)
    (model / "pytorch_model.bin").symlink_to(example / "config.json")
    (model / "folder").symlink_to(example)
    link_row = "  excluded   links out of MODEL, which --follow-links copies: "
    for command in (("plan", model), ("convert", model, tmp_path / "out")):
        rows = [line for line in fp8pad(*command).stdout.splitlines() if line.startswith("  excluded")]
        assert [row.split(": ")[0] for row in rows] == [
            "  excluded   folder",
            link_row.removesuffix(": "),
            "  excluded   other forms of the weights",
        ]
        assert "tokenizer.json" in rows[1]
        assert rows[2].endswith(": pytorch_model.bin")
    left_out = json.loads(fp8pad("plan", model, "--json").stdout)["files_left_out"]
    assert {"folder", "pytorch_model.bin", "tokenizer.json"} <= {*left_out}
    followed = fp8pad("plan", model, "--follow-links").stdout
    assert "links out" not in followed
    assert "other forms of the weights: pytorch_model.bin" in followed


def test_an_equal_copy_comes_with_the_hint_of_its_plan(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """If nothing needs padding at one TP size, both commands name a size at which something does."""
    model = llama(tmp_path / "model", n=32, k=16)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": CHANNELS}))
    planned, done = fp8pad("plan", model).stdout, fp8pad("convert", model, tmp_path / "out").stdout
    _, same, *hint = planned[planned.index("\nNext\n") :].lstrip().splitlines()
    assert same == "  nothing to convert for TP 1: the checkpoint would stay as it is"
    assert "--tensor-parallel-size 2" in hint[-1]
    assert "\n".join(["Next", *hint]) in done


def test_an_address_is_named_as_it_was_typed(fp8pad: Fp8pad) -> None:
    """A URL keeps its double slash in messages; `Path` would drop it."""
    url = "https://huggingface.co/org/none"
    expected = f"error: {url}: no such folder; models on the hub are named ORG/NAME\n"
    assert fp8pad("plan", url).stderr == expected


@pytest.mark.parametrize(("arguments", "meant"), [(["plan", "x", "--absorbe"], "--absorb"), (["pln", "x"], "'plan'")])
def test_a_mistyped_option_or_command_gets_a_suggestion(fp8pad: Fp8pad, arguments: list[str], meant: str) -> None:
    """typer suggests the right word."""
    finished = fp8pad(*arguments)
    assert (finished.status, meant in finished.stderr) == (2, True)


def test_other_systems_get_one_line(fp8pad: Fp8pad, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the error would be a missing module somewhere deep in the imports."""
    monkeypatch.setattr(sys, "platform", "darwin")
    finished = fp8pad("plan", example)
    expected = "error: fp8pad needs Linux, for its file system calls; this is darwin\n"
    assert (finished.status, finished.stdout, finished.stderr) == (1, "", expected)


def test_quiet_prints_errors_only(fp8pad: Fp8pad, example: Path, tmp_path: Path) -> None:
    """No progress and no summary; a failure is still one line, and --json still prints a document."""
    assert fp8pad("convert", example, tmp_path / "out", "--dry-run", "-q") == Finished(0, "", "")
    assert fp8pad("convert", example, tmp_path / "out", "--quiet") == Finished(0, "", "")
    assert fp8pad("verify", example, tmp_path / "out", "-q") == Finished(0, "", "")
    assert fp8pad("unpad", tmp_path / "out", tmp_path / "restored", "-q") == Finished(0, "", "")
    assert fp8pad("unpad", tmp_path / "out", tmp_path / "restored", "-q") == Finished(0, "", "")  # compared
    (tmp_path / "restored" / "config.json").write_text("{}")
    failed = fp8pad("unpad", tmp_path / "out", tmp_path / "restored", "-q")
    assert (failed.status, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert json.loads(fp8pad("verify", example, tmp_path / "out", "--quiet", "--json").stdout)["ok"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "x", "--alignment", "17"],
        ["plan", "x", "-tp", "0"],
        ["plan", "x", "-tp", "1025"],
        ["convert", "x"],
        ["pad"],
        ["--nothing"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(fp8pad: Fp8pad, arguments: list[str]) -> None:
    """Missing and unknown arguments have another status than bad checkpoints."""
    assert fp8pad(*arguments).status == 2


@pytest.mark.parametrize("arguments", [["plan", ""], ["convert", "MODEL", "", "--overwrite"], ["unpad", "x", ""]])
def test_an_empty_path_is_wrong_usage(
    fp8pad: Fp8pad, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """An unset variable must not become the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("kept").write_text("mine")
    finished = fp8pad(*(example if word == "MODEL" else word for word in arguments))
    assert (finished.status, finished.stdout) == (2, "")
    assert "an empty name" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("out_dir", [".", ".."])
def test_the_current_folder_is_never_replaced(
    fp8pad: Fp8pad, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_dir: str
) -> None:
    """Neither it nor a parent folder is replaced, even with --overwrite."""
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    finished = fp8pad("convert", example, out_dir, "--overwrite")
    assert finished.status == 1
    assert finished.stderr == f"error: {out_dir}: is the current folder, or contains it; choose another folder\n"


@pytest.mark.parametrize("module", ["typer", "rich", "numpy"])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path, example: Path, module: str) -> None:
    """Imports take a few tenths of a second, before the command itself can handle signals."""
    (tmp_path / "first" / module).mkdir(parents=True)
    (tmp_path / "first" / module / "__init__.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "first"), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "fp8pad", "convert", str(example), str(tmp_path / "out")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "interrupted\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_can_be_resumed_and_says_so(
    fp8pad: Fp8pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    """One line, and the status that shells expect for the signal; the same command then resumes."""
    model = llama(tmp_path / "model", num_shards=3)
    default = signal.default_int_handler if end == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(end, default)  # the caller of the tests may have ignored it
    write_shard = writer.write_shard  # type: ignore[attr-defined]

    def signalled(transfer: Transfer, source: OpenFile, target: OpenFile, sums: Sums, advance: Advance) -> None:
        write_shard(transfer, source, target, sums, advance)
        if transfer.layout.file == "model-00002-of-00003.safetensors":
            os.kill(os.getpid(), end)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:  # until the other thread has stopped this one
                advance(0)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", signalled)
        stopped = fp8pad("convert", model, tmp_path / "out", "--jobs", "1")
    finished = f"1 of 3 shards are finished in {tmp_path}/.out.fp8pad"
    assert (stopped.status, stopped.stdout) == (128 + end, "")
    assert stopped.stderr.splitlines()[-1] == f"interrupted; run the same command to resume: {finished}"
    assert signal.getsignal(end) == default
    signal.signal(end, before)
    resumed = fp8pad("convert", model, tmp_path / "out", "--jobs", "1", "--json")
    assert resumed.status == 0
    assert json.loads(resumed.stdout)["files_resumed"] == ["model-00001-of-00003.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_what_was_replaced_is_told(fp8pad: Fp8pad, example: Path, converted: Path) -> None:
    """The summary says how many files were replaced, and which were edited after fp8pad wrote them."""
    (converted / "tokenizer_config.json").write_text("edited")
    files = sorted(path.name for path in converted.iterdir())
    assert "that were there" not in fp8pad("convert", example, converted.with_name("other")).stdout
    finished = fp8pad("convert", example, converted, "--overwrite")
    assert f"{len(files)} files that were there" in finished.stdout
    (converted / "tokenizer_config.json").write_text("edited again")
    document = json.loads(fp8pad("convert", example, converted, "--overwrite", "--json").stdout)
    assert document["files_replaced"] == files
    assert document["files_edited"] == ["tokenizer_config.json"]


@pytest.mark.parametrize(("closed", "status"), [(">&-", 1), ("2>&-", 0)])
def test_closed_streams_are_no_traceback(example: Path, closed: str, status: int) -> None:
    """A result that cannot be printed is an error in one line; other output that cannot be printed is dropped."""
    command = f"{shlex.quote(sys.executable)} -m fp8pad plan {shlex.quote(str(example))} {closed}"
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    expected = "error: stdout is closed; redirect it to /dev/null if the result is not wanted\n" if status else ""
    assert (run.returncode, run.stderr) == (status, expected)


@pytest.mark.parametrize("num_shards", [1, 60])
def test_a_result_that_does_not_fit_is_a_line(tmp_path: Path, num_shards: int) -> None:
    """The line names stdout, not a file of the checkpoint, however long the result is."""
    model = llama(tmp_path / "model", num_shards=num_shards)
    with Path("/dev/full").open("w") as full:
        run = forked.command("plan", model, "--json", stdout=full.fileno())
    assert (run.returncode, run.stderr) == (1, "error: stdout: No space left on device\n")


@pytest.mark.parametrize(("stdout", "cause"), [("/dev/full", "No space left on device"), ("", "Broken pipe")])
def test_what_is_done_is_said_if_the_result_cannot_be_printed(tmp_path: Path, stdout: str, cause: str) -> None:
    """Otherwise the exit status looks as if nothing had been written."""
    llama(tmp_path / "model")
    for words, done in (
        ("convert model out --shards 0", "the shards are finished"),
        ("convert model out", "out is complete"),
        ("unpad out restored", "restored is complete"),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(os.open(stdout, os.O_WRONLY) if stdout else os.dup(writer)) as unwritable:
            run = forked.command(*words.split(), cwd=tmp_path, stdout=unwritable.fileno())
        os.close(writer)
        assert (run.returncode, run.stderr.splitlines()[-1]) == (1, f"error: stdout: {cause}; {done}")


def test_a_current_folder_that_is_gone_is_a_line(
    fp8pad: Fp8pad, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was removed by someone else; absolute paths still work."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    finished = fp8pad("convert", example, "out")
    assert finished.status == 1
    assert finished.stderr == "error: the current folder: No such file or directory\n"
    assert fp8pad("convert", example, tmp_path / "out").status == 0


@pytest.mark.parametrize("planted", [".plan.html.fp8pad-unfinished", "plan.html"])
def test_a_page_is_written_through_no_link_that_somebody_put_in_its_way(
    fp8pad: Fp8pad, example: Path, tmp_path: Path, planted: str
) -> None:
    """The temporary name can be guessed; the page's own name may be a link, which stays one."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / planted).symlink_to(tmp_path / "precious")
    page = tmp_path / "pages" / "plan.html"
    run = fp8pad("plan", example, "--html", page)
    assert (run.status, run.stderr) == (0, f"{page}: written\n")
    is_page = planted == "plan.html"
    assert ((tmp_path / "precious").read_text() == "mine") != is_page
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["plan.html"]
    assert (tmp_path / "pages" / "plan.html").is_symlink() == is_page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages", "precious"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link"])
def test_what_is_no_file_is_not_replaced_by_a_page(fp8pad: Fp8pad, example: Path, tmp_path: Path, kind: str) -> None:
    """For example /dev/stdout, as root."""
    page = tmp_path / "page"
    match kind:
        case "pipe":
            os.mkfifo(page)
        case "folder":
            page.mkdir()
        case "link":
            page.symlink_to("/dev/null")
        case _:
            page = Path("/dev/null")
    finished = fp8pad("plan", example, "--html", page)
    assert (finished.status, finished.stderr) == (1, f"error: {page}: cannot be written: expected a regular file\n")
    assert not page.is_file()


@pytest.mark.parametrize("way", ["config.json", "model.safetensors", "README.md", "2_Dense/weights.json", "link"])
def test_no_page_takes_the_place_of_a_file_of_a_checkpoint(fp8pad: Fp8pad, tmp_path: Path, way: str) -> None:
    """Not through a link from elsewhere either; a page with a new name is allowed in that folder."""
    model = llama(tmp_path / "model")
    (model / "2_Dense").mkdir()
    for name in ("README.md", "2_Dense/weights.json"):
        (model / name).write_text("kept")
    (tmp_path / "page.html").symlink_to(model / "config.json")
    before = files_of(model)
    page = tmp_path / "page.html" if way == "link" else model / way
    for command in (["plan", model, "--html", page], ["golden", "record", model, "-o", page]):
        finished = fp8pad(*command)
        assert finished.status == 1
        assert finished.stderr == f"error: {page}: is a file of a checkpoint; choose another file name\n"
    assert files_of(model) == before
    assert fp8pad("plan", model, "--html", model / "plan.html").status == 0


def test_failing_files_are_one_line(fp8pad: Fp8pad, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the operating system names its file and cause."""

    def read_unconverted(_: Path, **__: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/model.safetensors")

    monkeypatch.setattr("fp8pad.planned.read_unconverted", read_unconverted)
    finished = fp8pad("plan", example)
    assert (finished.status, finished.stderr) == (1, "error: /disk/model.safetensors: No space left on device\n")


def test_the_unforeseen_is_one_line(fp8pad: Fp8pad, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error prints its type and how to see the traceback, but no traceback."""

    def read_unconverted(_: Path, **__: bool) -> None:
        raise RecursionError("too deep\nfor a line")

    monkeypatch.setattr("fp8pad.planned.read_unconverted", read_unconverted)
    finished = fp8pad("plan", example)
    expected = (
        "error: unexpected RecursionError: too deep\\nfor a line; please report it with what FP8PAD_DEBUG=1 shows\n"
    )
    assert (finished.status, finished.stdout, finished.stderr) == (1, "", expected)


NAMES = [command.__name__ for command, *_ in COMMANDS]
NAMES += [f"golden {command.__name__}" for command, *_ in GOLDEN_COMMANDS]


@pytest.mark.parametrize("command", NAMES)
def test_help_fits_80_columns_and_shows_an_example(
    fp8pad: Fp8pad, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Plain columns: no line is longer than 80, nothing is cropped, and the example is a command that parses."""
    monkeypatch.setenv("COLUMNS", "80")
    finished = fp8pad(*command.split(), "--help")
    assert finished.status == 0
    assert max(map(len, finished.stdout.splitlines())) <= 80
    assert "…" not in finished.stdout
    assert f"\n  Examples:\n    fp8pad {command} " in finished.stdout


def test_the_readme_names_every_exit_status() -> None:
    """Those of errors and of signals, and that of success."""
    (line,) = re.findall("^Exit status: .*$", README.read_text("utf-8"), re.MULTILINE)
    errors: list[type[Fp8padError]] = [Fp8padError, *Fp8padError.__subclasses__()]
    signals = {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert {int(status) for status in re.findall(r"\b\d+\b", line)} == {0, *(e.exit_status for e in errors), *signals}


def test_interrupting_ends_with_130(fp8pad: Fp8pad, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is not an error: no traceback, and the status that shells expect."""

    def read_unconverted(_: Path, **__: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fp8pad.planned.read_unconverted", read_unconverted)
    finished = fp8pad("plan", example)
    assert (finished.status, finished.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        ("plan m", "fp8pad.library.plan"),
        ("convert m out", "fp8pad.library.convert"),
        ("convert m out --shards 0", "fp8pad.library.convert_shards"),
        ("verify m", "fp8pad.library.verify"),
        ("unpad m out", "fp8pad.library.unpad"),
        ("push m org/name", "fp8pad.library.push"),
        ("inspect m", "fp8pad.library.inspect"),
        ("golden record m -o g.json", "fp8pad.golden.runs.record"),
        ("golden check m g.json", "fp8pad.golden.runs.read_golden"),
        ("golden compare m n", "fp8pad.golden.runs.compare"),
    ],
)
def test_ctrl_c_is_a_line_in_every_command(
    fp8pad: Fp8pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, called: str
) -> None:
    """One line and status 130, whatever was running."""

    def ended(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(called, ended)
    assert fp8pad(*arguments.split()) == Finished(130, "", "interrupted\n")


def test_what_fp8pad_does_not_take_is_a_usage_error(fp8pad: Fp8pad, example: Path) -> None:
    """Exit status 2, as for unknown options, with a suggestion."""
    finished = fp8pad("plan", example, "--engine", "vlm")
    known = f"expected one of {', '.join(engines())}"
    assert (finished.status, finished.stdout) == (2, "")
    assert re.fullmatch(rf"error: engine vlm: {known}; did you mean vllm-[\d.]+\?\n", finished.stderr)
    finished = fp8pad("plan", example, "--engine", "vllm-0.1")
    versions = ", ".join(engine.version for engine in engines().values() if engine.name == "vLLM")
    said = f"error: engine vllm-0.1: {known}; of its versions only {versions} is described\n"
    assert finished == Finished(2, "", said)
    for command in (["plan", example, "--html", "-"], ["golden", "record", example, "-o", "-"]):
        assert fp8pad(*command) == Finished(2, "", "error: -: expected the name of a file\n")
    for name in ("padded", "org/name@v1", "https://hub/org/name"):
        finished = fp8pad("push", example, name)
        assert finished == Finished(2, "", f"error: {name}: expected the name of a model on the hub, org/name\n")


def test_push_says_what_its_own_card_option_does(fp8pad: Fp8pad) -> None:
    """Unlike convert, it writes no card but requires one."""
    assert "Require that README.md says what was" in " ".join(fp8pad("push", "--help").stdout.split())


def test_help_names_every_engine_that_is_described(fp8pad: Fp8pad) -> None:
    """A new engine file adds its name to the help, where a line may end after a hyphen in it."""
    unbroken = "".join(fp8pad("plan", "--help").stdout.split())
    assert engines().keys() == {name for name in engines() if name in unbroken}


@pytest.mark.parametrize("arguments", [["plan", "MODEL", "--json"], ["plan", "MODEL"], ["--version"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(example: Path, arguments: list[str]) -> None:
    """`fp8pad plan ... | head` ends quietly, whether the pipe breaks midway or at the last flush."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        run = forked.command(*(example if word == "MODEL" else word for word in arguments), stdout=write_end)
    finally:
        os.close(write_end)
    assert (run.returncode, run.stderr) == (1, "")


def test_names_that_the_locale_lacks_are_escaped(example: Path, tmp_path: Path) -> None:
    """Printing to an ASCII terminal works with any folder name."""
    shutil.copytree(example, tmp_path / "späces")
    run = subprocess.run(
        [sys.executable, "-m", "fp8pad", "plan", "späces"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert run.stdout.startswith(b"sp\\xe4ces: 14 FP8 layers")


def test_version_and_module() -> None:
    """`python -m fp8pad` runs the command, and --version works."""
    run = subprocess.run([sys.executable, "-m", "fp8pad", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"fp8pad {__version__}\n"


@pytest.mark.parametrize(
    ("shell", "question"),
    [
        ("bash", {"COMP_WORDS": "fp8pad ver", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "fp8pad ver"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "fp8pad ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_can_complete(shell: str, question: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's request for words that begin with `ver` returns the command, and no other."""
    for name, value in {**question, "_FP8PAD_COMPLETE": f"complete_{shell}"}.items():
        monkeypatch.setenv(name, value)
    run = forked.command()
    assert "verify" in run.stdout
    assert not [name for name in ("plan", "convert", "unpad") if re.search(rf"\b{name}\b", run.stdout)]


def test_names_of_engines_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--engine v` is completed with every version, and without one."""
    monkeypatch.setenv("COMP_WORDS", "fp8pad plan x --engine v")
    monkeypatch.setenv("COMP_CWORD", "4")
    monkeypatch.setenv("_FP8PAD_COMPLETE", "complete_bash")
    run = forked.command()
    assert run.stdout.split() == ["vllm", *sorted(name for name in engines() if name.startswith("vllm"))]


def test_zsh_completes_at_the_first_tab(monkeypatch: pytest.MonkeyPatch) -> None:
    """zsh loads the script at the first TAB: it must complete then, not only define itself."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    lines = forked.command("--show-completion", "zsh").stdout.strip().splitlines()
    assert lines[0] == "#compdef fp8pad"
    assert lines[-1] == '[ "$funcstack[1]" = "_fp8pad" ] && _fp8pad_completion "$@"'


def test_help_is_quick() -> None:
    """It loads only what options and examples need: none of the commands' own modules, and nothing slow."""
    command = [sys.executable, "-X", "importtime", "-m", "fp8pad", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert {"typer", "fp8pad.cli.checkpoints"} <= loaded
    slow = {"numpy", "rich", "safetensors", "huggingface_hub"}
    work = {f"fp8pad.{name}" for name in ("conversion", "hub", "parallel", "planning", "render", "verification")}
    assert not loaded & (slow | work)


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """Write a checkpoint that vLLM refuses on two ranks, because each gets one and a half blocks."""
    name, config = "model.layers.0.self_attn.o_proj.weight", {"model_type": "llama", "quantization_config": BLOCKS}
    shard = {name: ("F8_E4M3", (128, 384)), f"{name}_scale_inv": ("F32", (1, 3))}
    return write_checkpoint(tmp_path / "refused", {"model.safetensors": shard}, config)


def test_a_conversion_that_will_not_serve_is_not_begun(fp8pad: Fp8pad, refused: Path, tmp_path: Path) -> None:
    """Its layers are named, the exit status is 1, as in a dry run, and nothing is written without --force."""
    run = fp8pad("convert", refused, tmp_path / "out", "-tp", "2")
    assert run.status == 1
    assert f"Not served by {VLLM} at TP 2" in run.stdout
    assert "model.layers.0.self_attn.o_proj" in run.stdout
    assert "vllm serve" not in run.stdout
    assert f"error: not served by {VLLM} at TP 2: 1 layer, the first: model.layers.0.self_attn.o_proj" in run.stderr
    assert "nothing was written; use --force to convert anyway" in run.stderr
    as_json = fp8pad("convert", refused, tmp_path / "out", "-tp", "2", "--json")
    assert (as_json.status, json.loads(as_json.stdout)["refused"]) == (1, ["model.layers.0.self_attn.o_proj"])
    assert fp8pad("convert", refused, tmp_path / "out", "-tp", "2", "--dry-run").status == 1
    assert fp8pad("convert", refused, tmp_path / "out", "-tp", "2", "--dry-run", "--force").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]
    forced = fp8pad("convert", refused, tmp_path / "out", "-tp", "2", "--force")
    assert (forced.status, (tmp_path / "out" / "model.safetensors").exists()) == (0, True)
    assert f"Not served by {VLLM} at TP 2" in forced.stdout


@pytest.mark.parametrize("options", [("--strict",), ("-tp", "2")])
def test_what_is_refused_is_shown_in_the_same_way(
    fp8pad: Fp8pad, tmp_path: Path, refused: Path, options: tuple[str, ...]
) -> None:
    """By `convert`, a dry run and a plan that is checked: the plan as text or JSON, then the error."""
    config = {"model_type": "llama", "quantization_config": BLOCKS}
    unknown = {"model.layers.0.self_attn.o_proj.weight": ("F8_E4M3", (128, 384))}
    model = write_checkpoint(tmp_path / "unknown", {"model.safetensors": unknown}, config)
    if "--strict" not in options:
        model = refused
    out_dir = tmp_path / "out"
    runs = [
        fp8pad("convert", model, out_dir, *options),
        fp8pad("convert", model, out_dir, *options, "--dry-run"),
        fp8pad("plan", model, *options, "--check"),
    ]
    for run in runs:
        assert (run.status, run.stdout.splitlines()[2]) == (1, f"What {VLLM} does with it")
    assert len({run.stdout.replace(str(out_dir), f"{model}-padded") for run in runs}) == 1
    assert len({run.stderr.splitlines()[0] for run in runs}) == 1
    documents = [
        fp8pad("convert", model, out_dir, *options, "--json").stdout,
        fp8pad("plan", model, *options, "--json").stdout,
    ]
    assert len(set(documents)) == 1
    assert json.loads(documents[0])["format_version"] == 1
    assert not out_dir.exists()


def test_of_a_folder_of_models_one_is_named(fp8pad: Fp8pad, example: Path) -> None:
    """The folder itself has no config.json."""
    run = fp8pad("plan", example.parent)
    assert run.stderr == f"error: {example.parent}: config.json: is missing; did you mean {example}?\n"


def test_a_line_that_quotes_a_million_sizes_is_cut(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """Long words are cut elsewhere; here there are many words."""
    shard = {"a": ("U8", (1,) * 20_000)}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard}, {"model_type": "llama"})
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[0,1]", b"[0,2]").replace(b"[0, 1]", b"[0, 2]") + b"\0")
    run = fp8pad("plan", model)
    assert run.status == 1
    assert " ... " in run.stderr
    assert len(run.stderr) < 5000


def test_what_the_engine_refuses_in_every_form_is_converted(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """It may be for another engine. The summary says that this one refuses it, as `plan --check` does."""
    model, out_dir = copy_case("good/llama_tf_block4", tmp_path / "model"), tmp_path / "out"
    assert fp8pad("convert", model, out_dir, "--dry-run").status == 0
    run = fp8pad("convert", model, out_dir)
    assert run.status == 0
    assert f"Not served by {VLLM} at TP 1" in run.stdout
    assert "vllm serve" not in run.stdout
    assert fp8pad("plan", model, "--check").status == 1


@pytest.mark.parametrize("engine", ["sglang-0.5.23", "transformers-5.24"])
def test_what_the_engine_serves_only_as_it_is_is_not_converted(fp8pad: Fp8pad, tmp_path: Path, engine: str) -> None:
    """The engine has no plugin, and no family describes an MLP to absorb: exit status 1, nothing written."""
    name = "model.layers.0.mlp.down_proj.weight"
    config = {"model_type": "unknown", "quantization_config": CHANNELS}
    shard = {name: ("F8_E4M3", (216, 200)), f"{name}_scale": ("F32", (216, 1))}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard}, config)
    run = fp8pad("convert", model, tmp_path / "out", "--engine", engine)
    assert run.status == 1
    assert "nothing was written" in run.stderr
    assert "do not convert it for this engine" in run.stdout
    assert "fp8pad convert" not in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert fp8pad("convert", model, tmp_path / "out", "--engine", engine, "--force").status == 0


def test_fewer_ranks_that_serve_the_original_need_no_command(fp8pad: Fp8pad, refused: Path, tmp_path: Path) -> None:
    """If one rank serves the original, nothing has to be converted for it."""
    run = fp8pad("convert", refused, tmp_path / "out", "-tp", "2")
    assert run.stdout.endswith(f"\nNext\n  TP 1: {VLLM} serves the FP8 layers of the original as they are\n")


def test_no_command_is_advised_that_would_make_an_equal_copy(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """Nothing is padded, and two ranks cannot share N: at one rank the original works, and converting is no help."""
    name, config = "model.layers.0.self_attn.o_proj.weight", {"model_type": "llama", "quantization_config": CHANNELS}
    shard = {name: ("F8_E4M3", (32, 25)), f"{name}_scale": ("F32", (32, 1))}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard}, config)
    run = fp8pad("convert", model, tmp_path / "out", "-tp", "2", "--skip", "*")
    assert "TP 1: the original works ('pads in every forward'), and there is nothing to convert" in run.stdout
    assert "fp8pad convert" not in run.stdout


def test_the_command_that_helps_can_be_run(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """It converts for the TP size that works, and can replace what --force wrote."""
    name, config = "model.layers.0.self_attn.o_proj.weight", {"model_type": "llama", "quantization_config": BLOCKS}
    shard = {name: ("F8_E4M3", (128, 320)), f"{name}_scale_inv": ("F32", (1, 3))}
    refused = write_checkpoint(tmp_path / "refused", {"model.safetensors": shard}, config)
    for options, more in ([], []), (["--overwrite"], ["--overwrite"]), (["--force", "--overwrite"], ["--overwrite"]):
        run = fp8pad("convert", refused, tmp_path / "out", "-tp", "2", *options)
        _, _, after = run.stdout.partition("\nNext\n  TP 1: its FP8 layers are served with:\n")
        helps = shlex.split(after.splitlines()[0])
        assert helps == ["fp8pad", "convert", str(refused), str(tmp_path / "out"), *more]
        assert fp8pad(*helps[1:]).status == 0


def test_usage_is_written_as_it_is_elsewhere(fp8pad: Fp8pad) -> None:
    """Names of arguments have no braces, in help and in errors."""
    assert "fp8pad convert [OPTIONS] MODEL OUT_DIR\n" in fp8pad("convert", "--help").stdout
    assert "fp8pad verify [OPTIONS] [MODEL] OUT_DIR\n" in fp8pad("verify", "--help").stdout
    for arguments, wrong in (
        (["convert", "x"], "missing argument 'OUT_DIR'"),
        (["convert", "x", "y", "--link", "z"], "invalid value for '--link': 'z' is not one of 'auto', "),
        (["convert", "x", "y", "--shards", "z"], "invalid value for '--shards': expected the number of a shard, or "),
        (["convert", "x", "y", "--lonk", "z"], "no such option"),
    ):
        finished = fp8pad(*arguments)
        assert (finished.status, finished.stdout) == (2, "")
        error, usage = finished.stderr.splitlines()
        assert error.startswith(f"error: {wrong}")
        # click calls the program what python was told to run
        assert re.fullmatch(r"  usage: .*fp8pad convert \[OPTIONS\] MODEL OUT_DIR; see .*fp8pad convert --help", usage)
    assert "fp8pad golden [OPTIONS] COMMAND" in fp8pad("golden").stderr


def test_what_is_not_assessed_is_not_said_to_be_served(fp8pad: Fp8pad, tmp_path: Path) -> None:
    """The verdict covers only layers whose scales are understood, and names those that it leaves out."""
    name, config = "model.layers.0.self_attn.o_proj.weight", {"model_type": "llama", "quantization_config": BLOCKS}
    shard = {name: ("F8_E4M3", (128, 384))}
    run = fp8pad("plan", write_checkpoint(tmp_path / "unknown", {"model.safetensors": shard}, config))
    assert run.status == 0
    said = "not known (as it is, padded): fp8pad does not know this layout of scales"
    assert f"{said}: model.layers.0.self_attn.o_proj" in run.stdout


def test_a_plan_can_be_checked_in_ci(fp8pad: Fp8pad, refused: Path, tmp_path: Path) -> None:
    """The exit status is 0 or 1, depending on whether OUT_DIR would be served at this TP size; 0 without --check."""
    assert [fp8pad("plan", refused, "-tp", size, "--check").status for size in ("1", "2", "3")] == [0, 1, 0]
    assert fp8pad("plan", refused, "-tp", "2").status == 0
    run = fp8pad("plan", refused, "-tp", "2", "--check", "--json")
    assert run.status == 1
    assert json.loads(run.stdout)["refused"] == ["model.layers.0.self_attn.o_proj"]
    assert fp8pad("convert", refused, tmp_path / "out", "-tp", "2", "--dry-run").status == 1
