"""Fault injection at every file operation: `make faults ARGS="--every 1"`; a sample of it is in the test suite.

Each scenario is run once to count its file operations (system calls on files of its folder), then once for every
operation and every fault: the operation fails with an error, does half of its work, or the process is killed or asked
to end at that point. After each, `check` checks the invariants, and the same command is run again without faults.
"power" is a kill plus the loss of data that were not synced: metadata are assumed to reach the disk in the order of the
calls, as in file systems with a journal, so that every state that a power loss can leave is one of these.
"""

import argparse
import contextlib
import errno
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fake_hub import fake_hub
from helpers import fast_folder, files_of, linear, llama, write_checkpoint
from huggingface_hub import constants
from syscalls import Call, Supervised, is_supported, supervise

from fp8pad.cli.main import main as fp8pad_main

Files = dict[str, bytes]

CREATING = {
    "openat",
    "open",
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "write",
    "pwrite64",
}
WRITING = {"write", "pwrite64", "copy_file_range", "fsync", "ftruncate", "sendfile"}
OPENING = {"open", "openat", "openat2"}
NAMING = {"stat", "lstat", "newfstatat", "statx", "unlink", "unlinkat", "rmdir", "access", "faccessat", "faccessat2"}
MOVING = {"read", "pread64", "preadv", "write", "pwrite64", "copy_file_range"}
WAITING = OPENING | MOVING | {"fsync", "flock", "rename", "renameat", "renameat2"}
# The operations on which each fault is tried; None means all.
FAULTS: dict[str, set[str] | None] = {
    "SIGKILL": None,
    "SIGTERM": None,
    "EIO": None,
    "ENOSPC": CREATING | WRITING,
    "EDQUOT": CREATING | WRITING,
    "EMFILE": OPENING,
    "EACCES": OPENING | NAMING | CREATING - MOVING,
    "EINTR": WAITING,
    "short": MOVING,
    "power": None,
}


@dataclass(frozen=True)
class Scenario:
    """A command and the contents of its folder: `old` is OUT_DIR before, `expected` is OUT_DIR after success."""

    name: str
    arguments: tuple[str, ...]
    template: Path
    prepare: Callable[[Path], object]
    old: Files | None
    expected: Files
    can_exchange: bool = True


@dataclass
class Report:
    """How many faults ended in which way, and what was wrong."""

    endings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run(arguments: tuple[str, ...], area: Path) -> int:
    """Run the command line in this process, in `area`; its messages go to a file next to it."""
    os.chdir(area)
    tempfile.tempdir = str(area / "tmp")
    with open(f"{area}.stderr", "w") as messages, contextlib.redirect_stdout(io.StringIO()):
        sys.stderr, sys.argv = messages, ["fp8pad", *arguments]
        try:
            fp8pad_main()
        except SystemExit as ended:
            messages.flush()
            return ended.code if isinstance(ended.code, int) else 0
        finally:
            messages.flush()
    return 0


def undisturbed(_: Call) -> None:
    """Let every call proceed."""


def supervised(scenario: Scenario, area: Path, decide: Callable[[Call], int | str | None]) -> Supervised:
    """Run a scenario's command, without folder exchange if the scenario says so."""

    def decide_all(call: Call) -> int | str | None:
        decision = decide(call)
        is_refused = not scenario.can_exchange and call.name == "renameat2" and call.arguments[4] & 2
        return errno.EINVAL if is_refused and decision is None else decision

    return supervise(lambda: run(scenario.arguments, area), area, decide_all)


def check(scenario: Scenario, area: Path, source: Files, ended: Supervised, fault: str) -> Iterator[str]:
    """Yield what is wrong after a fault, and after the same command has run again."""
    if _files_below(area, "model") != source:
        yield "the source was changed"
    found = files_of(area / "out") if (area / "out").exists() else None
    if found not in (None, scenario.old, scenario.expected):
        yield f"OUT_DIR is neither absent nor old nor complete: {sorted(found or ())}"
    if found is None and scenario.old is not None and not _holds(area, scenario.old):
        yield "the old output is gone"
    messages = Path(f"{area}.stderr").read_text() if fault not in ("SIGKILL", "power") else ""
    yield from _check_messages(scenario, ended.status, messages, found)
    if ended.status == 0 and sorted(os.listdir(area)) != _names(scenario):
        yield f"something is left after success: {sorted(os.listdir(area))}"
    for folder in (path for name in ("files.*", "replaced") for path in area.glob(f".*.fp8pad/{name}")):
        if (folder / "config.json").exists() and files_of(folder) not in (scenario.old, scenario.expected):
            yield f"{folder}: what is half-done could be loaded"
    if again := in_child(scenario.arguments, area):
        yield f"the same command run again ended with {again}: {Path(f'{area}.stderr').read_text()}"
    if not (area / "out").exists() or files_of(area / "out") != scenario.expected:
        yield "the same command run again did not complete OUT_DIR"
    if sorted(os.listdir(area)) != _names(scenario):
        yield f"something is left after all: {sorted(os.listdir(area))}"


def _check_messages(scenario: Scenario, status: int, messages: str, found: Files | None) -> Iterator[str]:
    errors = [line for line in messages.splitlines() if line.startswith("error: ")]
    if "Traceback" in messages or "unexpected" in messages:
        yield f"an exception: {messages!r}"
    if status not in (0, 1, 143, -9, -15):  # -15: nothing was begun yet
        yield f"exit status {status}: {messages}"
    if status == 1:
        if len(errors) != 1 or ": None" in messages:
            yield f"no line that names the cause: {messages!r}"
        if found == scenario.expected != scenario.old and "is complete" not in messages:
            yield f"OUT_DIR is complete, and the line does not say so: {messages!r}"


def _files_below(area: Path, name: str) -> Files:
    return files_of(area / name)


def _names(scenario: Scenario) -> list[str]:
    return sorted({path.name for path in scenario.template.iterdir()} | {"out"})


def _holds(area: Path, old: Files) -> bool:
    return any(files_of(folder) == old for folder in area.glob(".*.fp8pad/*") if folder.is_dir())


def inject(scenario: Scenario, number: int, fault: str, base: Path) -> tuple[Call | None, str, list[str]]:
    """Try one fault at one operation; return the call, how the command ended, and what was wrong."""
    area = base / "area"
    shutil.rmtree(area, ignore_errors=True)
    shutil.copytree(scenario.template, area, symlinks=True)
    scenario.prepare(area)
    source = _files_below(area, "model")
    hit: list[Call] = []

    def decide(call: Call) -> int | str | None:
        if call.number != number or (FAULTS[fault] is not None and call.name not in FAULTS[fault]):  # type: ignore[operator]
            return None
        hit.append(call)
        return "SIGKILL" if fault == "power" else getattr(errno, fault, fault)

    Path(f"{area}.stderr").write_text("")
    ended = supervised(scenario, area, decide)
    if not hit:
        return None, "", []
    if fault == "power":
        _lose(area, ended.unsynced)
    ending = {0: "succeeded", 1: "one line", 143: "ended as asked", -15: "ended as asked", -9: "killed"}.get(
        ended.status, str(ended.status)
    )
    return hit[0], ending, list(check(scenario, area, source, ended, fault))


def _lose(area: Path, unsynced: dict[int, str]) -> None:
    """Overwrite with zeros everything that was not synced."""
    for path in area.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_ino in unsynced:
            path.write_bytes(bytes(path.stat().st_size))


def scenarios(base: Path) -> Iterator[Scenario]:
    """Yield every scenario, with a checkpoint of four shards and a subfolder; a hub runs meanwhile."""
    shards = {
        f"model-{number:05}-of-00004.safetensors": linear(
            f"model.layers.{number}.mlp.down_proj", 21 if number < 4 else 32, 32
        )
        for number in range(1, 5)
    }
    fresh = base / "fresh"
    model = write_checkpoint(fresh / "model", shards)
    (fresh / "tmp").mkdir()
    (model / "sub").mkdir()
    (model / "sub" / "config.json").write_text("{}")
    original = files_of(model)
    convert = ("convert", "model", "out", "--jobs")

    def nothing(_: Path) -> None:
        pass

    def interrupted(area: Path) -> None:
        supervise(lambda: run((*convert, "1"), area), area, lambda call: "SIGKILL" if call.number == 150 else None)

    def sliced(area: Path) -> None:
        for shards in ("0-1", "2-3"):
            run_in_child((*convert, "1", "--shards", shards), area)

    warm_up(fresh, base)
    run_in_child((*convert, "1"), fresh)
    converted = files_of(fresh / "out")
    shutil.rmtree(fresh / "out")
    for jobs in ("1", "4"):
        yield Scenario(f"convert, {jobs} jobs", (*convert, jobs), fresh, nothing, None, converted)
        yield Scenario(f"resume, {jobs} jobs", (*convert, jobs), fresh, interrupted, None, converted)
        links = (*convert, jobs, "--link", "hardlink")
        yield Scenario(f"hard links, {jobs} jobs", links, fresh, nothing, None, converted)
    yield Scenario("finish, 1 jobs", (*convert, "1", "--finish"), fresh, sliced, None, converted)
    replaced = base / "replaced"
    shutil.copytree(fresh, replaced)
    llama(replaced / "other", num_shards=5)  # other shards: the old folder has files that the new one lacks
    run_in_child(("convert", "other", "out", "--alignment", "64"), replaced)
    shutil.rmtree(replaced / "other")
    old = files_of(replaced / "out")
    for jobs, can_exchange in (("1", True), ("4", True), ("1", False)):
        name = f"overwrite, {jobs} jobs" + ("" if can_exchange else ", no exchange")
        yield Scenario(name, (*convert, jobs, "--overwrite"), replaced, nothing, old, converted, can_exchange)
    with fake_hub() as hub:
        hub.add("org/name", model)
        for jobs in ("1", "4"):
            yield from_hub(base, fresh, jobs, hub.endpoint)
    padded = base / "padded"
    shutil.copytree(fresh / "tmp", padded / "tmp")
    shutil.copytree(fresh / "model", padded / "source")
    run_in_child(("convert", "source", "model"), padded)
    shutil.rmtree(padded / "source")
    for jobs in ("1", "4"):
        yield Scenario(
            f"unpad, {jobs} jobs", ("unpad", "model", "out", "--jobs", jobs), padded, nothing, None, original
        )
    restored = base / "restored"
    shutil.copytree(padded, restored)
    shutil.copytree(fresh / "model", restored / "out")
    (restored / "out" / "config.json").write_text("{}")
    command = ("unpad", "model", "out", "--jobs", "1", "--overwrite")
    yield Scenario("unpad, overwrite", command, restored, nothing, files_of(restored / "out"), original)


def warm_up(fresh: Path, base: Path) -> None:
    """Import in this process what commands import when they run, so that children need not."""
    for module in ("huggingface_hub.hf_api", "huggingface_hub._snapshot_download", "huggingface_hub.file_download"):
        importlib.import_module(module)
    kept = os.getcwd(), sys.stderr, sys.argv, tempfile.tempdir
    shutil.copytree(fresh, base / "warm")
    for arguments in (("convert", "model", "out"), ("unpad", "out", "restored")):
        run(arguments, base / "warm")
    shutil.rmtree(base / "warm")
    sys.stderr, sys.argv, tempfile.tempdir = kept[1:]
    os.chdir(kept[0])


def from_hub(base: Path, fresh: Path, jobs: str, endpoint: str) -> Scenario:
    """Return a conversion of a model that is fetched from a hub."""
    arguments = "convert", "hf://org/name", "out", "--jobs", jobs
    constants.ENDPOINT, constants.HF_HUB_CACHE = endpoint, str(base / "cache")
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    run_in_child(arguments, fresh)
    expected = files_of(fresh / "out")
    shutil.rmtree(fresh / "out")
    return Scenario(f"from a hub, {jobs} jobs", arguments, fresh, lambda _: None, None, expected)


def in_child(arguments: tuple[str, ...], area: Path) -> int:
    """Run the command line in a child process, and return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(run(arguments, area))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_child(arguments: tuple[str, ...], area: Path) -> None:
    """Run the command line in a child process; it must succeed."""
    if status := in_child(arguments, area):
        raise RuntimeError(f"{arguments}: {status}: {Path(f'{area}.stderr').read_text()}")


def count(scenario: Scenario, base: Path) -> list[Call]:
    """Return the operations of an undisturbed run."""
    area = base / "counted"
    shutil.rmtree(area, ignore_errors=True)
    shutil.copytree(scenario.template, area, symlinks=True)
    scenario.prepare(area)
    return supervised(scenario, area, undisturbed).calls


def try_all(every: int, first: int = 1, names: str = "", seconds: float = float("inf")) -> Report:
    """Try every fault at every operation whose number is `first` plus a multiple of `every`."""
    report, begun = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fp8pad-faults-", dir=fast_folder()) as folder:
        base = Path(folder).resolve()
        os.environ["HOME"] = folder
        for scenario in scenarios(base):
            if names not in scenario.name:
                continue
            calls = count(scenario, base)
            for fault, kinds in FAULTS.items():
                if fault == "power" and "1" not in scenario.arguments:
                    continue  # unsynced data are known for one operation at a time
                for number in range(first, len(calls) + 1, every):
                    if kinds is not None and calls[number - 1].name not in kinds:
                        continue
                    if time.monotonic() - begun > seconds:
                        return report
                    _try(scenario, number, fault, base, report)
            print(f"{scenario.name}: {len(calls)} operations; so far {sum(report.endings.values())} faults", flush=True)
    return report


def _try(scenario: Scenario, number: int, fault: str, base: Path, report: Report) -> None:
    call, ending, wrong = inject(scenario, number, fault, base)
    if call:
        report.endings[f"{fault}: {ending}"] += 1
    for line in wrong:
        report.wrong.append(f"{scenario.name}: {fault} at {call}: {line}")
        print(report.wrong[-1], flush=True)


def main() -> int:
    """Try faults, print how they ended, and write build/faults/report.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every Nth operation")
    parser.add_argument("--first", type=int, default=1, help="the first operation")
    parser.add_argument("--scenario", default="", help="only scenarios whose name holds this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after that time")
    arguments = parser.parse_args()
    if not is_supported():
        print("faults: needs Linux on x86-64 with seccomp's user notification")
        return 1
    report = try_all(arguments.every, arguments.first, arguments.scenario, arguments.minutes * 60)
    path = Path("build/faults/report.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"faults": sum(report.endings.values()), "endings": dict(report.endings), "wrong": report.wrong}
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
