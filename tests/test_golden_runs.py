"""Golden runs from the command line to the exit status, with a fake engine that runs in a process of its own."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import forked
import pytest

from fp8pad import convert
from fp8pad.cli.main import main

FAKE_ENGINE = Path(__file__).parent / "fake_engine"
EXAMPLE = Path(__file__).parents[1] / "examples" / "llama-fp8"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `fp8pad golden` in this process, where the only engine is the fake one.

    The engine still runs in a process of its own; the current folder is the test's own.
    """
    monkeypatch.setenv("PYTHONPATH", str(FAKE_ENGINE), prepend=os.pathsep)
    monkeypatch.syspath_prepend(FAKE_ENGINE)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = ["fp8pad", "golden", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(command, int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Record the golden file of the example once."""
    file = tmp_path_factory.mktemp("golden") / "golden.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FAKE_ENGINE), prepend=os.pathsep)
        patch.syspath_prepend(FAKE_ENGINE)
        assert forked.command("golden", "record", EXAMPLE, "-o", file).returncode == 0
    return file.read_text()


@pytest.fixture
def recorded(recording: str, tmp_path: Path) -> Path:
    """Write the golden file of the example."""
    (tmp_path / "golden.json").write_text(recording)
    return tmp_path / "golden.json"


def failure(run: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return the lines of stderr from the error on, after checking the exit status."""
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    lines = run.stderr.splitlines()
    return lines[[line.startswith("error: ") for line in lines].index(True) :]


def test_record_writes_everything_that_repeating_takes(recorded: Path) -> None:
    """The file has the engine, versions, device, dtype, mode, seed, ranks, lengths, prompts and answers."""
    document = json.loads(recorded.read_text())
    assert document["settings"] == {
        "engine": "vllm",
        "mode": "eager",
        "dtype": "bfloat16",
        "seed": 0,
        "tensor_parallel_size": 1,
        "max_model_len": 81,
        "max_tokens": 16,
        "top_k": 5,
    }
    assert document["environment"]["engine_version"] == "0.32.0"
    assert document["environment"]["device"].startswith("CPU ")
    assert document["model"] == "llama-fp8"
    assert [len(answer["prompt_token_ids"]) for answer in document["answers"]][:4] == [1, 2, 3, 5]


def test_check_passes_on_equal_answers(golden: Run, recorded: Path, example: Path) -> None:
    """Status 0, the verdict on stdout, and progress on stderr."""
    run = golden("check", example, recorded, "--junit", "report.xml")
    assert run.returncode == 0, run.stderr
    assert "llama-fp8: the same outputs as recorded" in run.stdout
    assert "16 of 16 outputs are bitwise equal" in run.stdout
    assert "16 prompts to vllm, eager" in run.stderr
    assert ElementTree.parse(recorded.parent / "report.xml").getroot().get("failures") == "0"  # noqa: S314 - our own


def test_what_an_engine_prints_stays_out_of_the_output(
    recorded: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is printed by Python, by C, by a child process or to the terminal directly."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE_ENGINE), prepend=os.pathsep)
    check = [sys.executable, "-m", "fp8pad", "golden", "check", str(example), str(recorded)]
    monkeypatch.syspath_prepend(FAKE_ENGINE)
    run = forked.command("golden", "check", example, recorded)
    assert run.returncode == 0
    assert "stray" not in run.stdout + run.stderr
    # On a terminal, one line of progress is replaced repeatedly, and removed at the end.
    command = ["script", "--quiet", "--return", "--command", shlex.join(check), "/dev/null"]
    shown = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout.decode()
    assert "the same outputs as recorded" in shown
    assert not [line for line in shown.split("\n") if "stray" in line.rpartition("\r")[2].rpartition("\x1b[2K")[2]]
    assert "on the terminal" not in shown


def test_the_ci_script_can_be_run_again_and_again(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original is run once, whatever the options of later conversions; reports are written each time."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fp8pad").write_text(f'#!/bin/sh\nexec {sys.executable} -m fp8pad "$@"\n')
    (tmp_path / "bin" / "fp8pad").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(FAKE_ENGINE), prepend=os.pathsep)
    script = example.parent / "ci" / "golden.sh"
    asked = []
    for options in ("", "--absorb"):
        monkeypatch.setenv("CONVERT_OPTIONS", options)
        command = [str(script), str(example), "out", "golden.json"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        asked.append(run.stderr.count("prompts to vllm"))
        for name in ("verify.json", "golden.xml"):
            (tmp_path / "reports" / name).unlink()
    assert asked == [2, 1]


def test_names_of_files_need_not_be_utf_8(golden: Run, recorded: Path, example: Path, tmp_path: Path) -> None:
    """The request to the engine and its reply accept them; output files have the names escaped."""
    model, prompts = tmp_path / os.fsdecode(b"b\xff"), tmp_path / os.fsdecode(b"p\xff.jsonl")
    try:
        shutil.copytree(example, model)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    prompts.write_text('{"prompt_token_ids": [3, 4]}\n')
    assert golden("check", model, recorded, "--junit", "report.xml").returncode == 0
    assert "fp8pad golden.b\\udcff" in (tmp_path / "report.xml").read_text()
    run = golden("record", model, "--prompts", prompts, "-o", "bytes.json")
    assert run.returncode == 0, run.stderr
    document = json.loads((tmp_path / "bytes.json").read_text())
    assert (document["model"], document["prompts_from"]) == ("b\\udcff", "p\\udcff.jsonl")


def test_check_fails_on_a_moved_logprob(
    golden: Run, recorded: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1, a table of the first ten differences, and the same in JSON and JUnit."""
    monkeypatch.setenv("FAKE_SHIFT", "-0.0625")
    run = golden("check", example, recorded, "--junit", "report.xml")
    assert run.returncode == 1
    assert "llama-fp8: 16 of 16 outputs differ" in run.stdout
    assert run.stdout.count(" logprob ") == 10
    assert ElementTree.parse(recorded.parent / "report.xml").getroot().get("failures") == "16"  # noqa: S314 - our own
    run = golden("check", example, recorded, "--json")
    assert (run.returncode, json.loads(run.stdout)["max_abs_difference"]) == (1, 0.0625)
    assert golden("check", example, recorded, "--atol", "0.0625").returncode == 0


def test_another_version_is_a_warning_and_loosens_the_bound(
    golden: Run, recorded: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwise equality is expected for one version only, so the documented tolerance applies."""
    monkeypatch.setenv("FAKE_VERSION", "0.33.0")
    monkeypatch.setenv("FAKE_SHIFT", "-0.0625")
    run = golden("check", example, recorded)
    assert run.returncode == 0
    assert "warning: engine version: recorded with 0.32.0, here 0.33.0" in run.stderr
    assert "0.5 is allowed" in run.stdout


def test_another_version_is_an_error_where_that_is_asked(
    golden: Run, recorded: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--strict refuses before the engine is started."""
    monkeypatch.setenv("FAKE_VERSION", "0.33.0")
    monkeypatch.setenv("FAKE_FAULT", "raise")
    assert failure(golden("check", example, recorded, "--strict")) == [
        "error: engine version: recorded with 0.32.0, here 0.33.0"
    ]


def test_another_setting_is_an_error_where_that_is_asked(golden: Run, recorded: Path, example: Path) -> None:
    """--strict also refuses changes that the user requested."""
    run = golden("check", example, recorded, "--strict", "--mode", "compiled", "-tp", "2")
    assert failure(run) == [
        "error: mode: recorded with eager, here compiled; tensor parallel size: recorded with 1, here 2"
    ]


def test_another_model_is_refused(golden: Run, recorded: Path, example: Path, tmp_path: Path) -> None:
    """A golden file is checked only with the model that it was recorded with, or a conversion of it."""
    shutil.copytree(example, tmp_path / "other")
    config = (example / "config.json").read_text().replace('"silu"', '"gelu"')
    (tmp_path / "other" / "config.json").write_text(config)
    (line,) = failure(golden("check", "other", recorded))
    assert line.startswith("error: other: is not the model that was recorded (llama-fp8): expected fingerprint sha256:")
    (line,) = failure(golden("compare", example, "other"))
    assert line == f"error: other: is not the same model as {example}: their fingerprints differ"


def test_compare_does_both(golden: Run, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts an engine twice and writes no file; the status is that of the check."""
    run = golden("compare", example, example, "--max-tokens", "4", "--json")
    assert (run.returncode, json.loads(run.stdout)["num_tokens"]) == (0, 64)
    assert run.stderr.count("16 prompts to vllm") == 2


def test_prompts_of_token_ids_need_no_tokenizer(golden: Run, example: Path, tmp_path: Path) -> None:
    """The fake engine has no transformers; token ids are used unchanged."""
    (tmp_path / "p.jsonl").write_text('{"prompt_token_ids": [5, 6]}\n')
    run = golden("record", example, "-o", "g.json", "--prompts", "p.jsonl", "--max-tokens", "3", "--top-k", "2")
    assert run.returncode == 0, run.stderr
    document = json.loads((tmp_path / "g.json").read_text())
    assert (document["prompts_from"], document["settings"]["max_model_len"]) == ("p.jsonl", 5)
    assert document["answers"][0]["token_ids"] == [17, 68, 82]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "error: p.jsonl: expected one prompt per line, found none"),
        (b'{"prompt_token_ids": [300]}', "error: prompt 1: a token id is not below the vocabulary size, 258"),
        (b"\xff", "error: p.jsonl: not UTF-8: byte 0xff at 0"),
    ],
)
def test_prompts_that_cannot_be_asked_are_one_line(
    golden: Run, example: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    """The error comes before an engine starts, and no file is left."""
    (tmp_path / "p.jsonl").write_bytes(content)
    assert failure(golden("record", example, "-o", "g.json", "--prompts", "p.jsonl")) == [message]
    assert not (tmp_path / "g.json").exists()


def test_a_prompt_that_is_too_long_is_one_line(golden: Run, example: Path, tmp_path: Path) -> None:
    """The model's own limit applies."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt_token_ids": [5] * 250}))
    assert failure(golden("record", example, "-o", "g.json", "--prompts", "p.jsonl")) == [
        "error: prompt 1: 250 tokens plus an answer of 16 exceed the context length of 256"
    ]


@pytest.mark.parametrize(
    "fault",
    [
        ("raise", "failed on {model}: RuntimeError: no kernel for this [layer]", "  SomeError: the cause, far above"),
        ("kill", "failed on {model}: ended by SIGKILL", "  Loading {model} with"),
        ("nan", "'s reply: answers[0]: logprobs[0][0][1]: expected a finite number, got NaN", None),
        ("lose", " did not return one answer for each prompt, in the order of the prompts", None),
    ],
)
def test_an_engine_that_fails_is_one_line_and_its_last_lines(
    golden: Run, example: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str, str | None]
) -> None:
    """The cause comes first, then the engine's last lines, including exceptions that it printed earlier."""
    name, message, note = fault
    monkeypatch.setenv("FAKE_FAULT", name)
    line, *notes = failure(golden("record", example, "-o", "g.json"))
    assert message.format(model=example) in line
    assert notes[0].startswith(note.format(model=example)) if note else not notes


def test_an_engine_that_is_not_installed_is_named(golden: Run, example: Path) -> None:
    """The error says how to install it."""
    (line,) = failure(golden("record", example, "-o", "g.json", "--engine", "transformers"))
    assert line == "error: transformers is not installed in this environment: pip install torch transformers"


def test_a_padded_model_is_not_given_to_transformers(golden: Run, recorded: Path, example: Path) -> None:
    """It lacks the quantization method, and its own error would not help; fp8pad's line says what works."""
    converted = recorded.parent / "padded"
    convert(example, converted)
    (line,) = failure(golden("check", "padded", recorded, "--engine", "transformers"))
    assert line.startswith(
        "error: padded: is padded, so only vLLM with the fp8pad plugin can run it, not transformers;"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("record", "gone", "-o", "g.json"), "error: gone: no such folder"),
        (("record", "{example}", "-o", "gone/g.json"), "error: gone/g.json: gone is not a folder"),
        (("record", "{example}", "-o", "."), "error: .: cannot be written"),
        (("check", "{example}", "gone.json"), "error: gone.json: No such file or directory"),
        (("check", "{example}", "{example}/config.json"), "error: config.json: not a golden file"),
        (
            ("check", "{example}", "{example}/model.safetensors"),
            "error: model.safetensors: not a golden file: not UTF-8",
        ),
        (("check", "{example}", "golden.json", "--junit", "gone/r.xml"), "error: gone/r.xml: gone is not a folder"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    golden: Run, recorded: Path, example: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Each line names the file and the reason."""
    (line,) = failure(golden(*(argument.format(example=example) for argument in arguments)))
    assert line.startswith(message)


@pytest.mark.parametrize(
    "arguments",
    [
        ("record", "m"),
        ("check", "m"),
        ("record", "m", "-o", "g", "--engine", "sglang"),
        ("check", "m", "g", "--atol", "-1"),
    ],
)
def test_wrong_usage_has_status_2(golden: Run, arguments: tuple[str, ...]) -> None:
    """As for all fp8pad commands."""
    assert golden(*arguments).returncode == 2


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_engine_behind(example: Path, tmp_path: Path, end: signal.Signals) -> None:
    """The engine's whole process group ends with the run that started it, even if that was killed."""

    fake = tmp_path / "fake"
    shutil.copytree(FAKE_ENGINE, fake)
    (fake / "vllm" / "__init__.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "fp8pad", "golden", "record", str(example), "-o", str(tmp_path / "g.json")]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(fake), *sys.path])}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(end)
    process.wait(120)
    deadline = time.monotonic() + 120
    engine = Path("/proc", (tmp_path / "pid").read_text())
    while engine.exists() and "Z (zombie)" not in (engine / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
