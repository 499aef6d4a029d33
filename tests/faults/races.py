"""Races, replayed at every file operation: `make races`. While `convert` waits there, something else happens.

Each `Event` happens at one operation of one run: another conversion to the same OUT_DIR from beginning to end; a shard
of the source replaced, truncated or appended to; OUT_DIR made by somebody else; a file put into the old one. What must
hold afterwards: nobody's file is lost; OUT_DIR is absent, old or complete; and a success is one.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import Files, Scenario, count, fast_folder, in_child, scenarios, supervised
from helpers import files_of
from syscalls import Call, is_supported

SHARD = "model/model-00002-of-00004.safetensors"
MINE = b"mine"


@dataclass(frozen=True)
class Event:
    """Something that happens in a run's folder, and whether it changes what the run reads."""

    name: str
    happen: Callable[[Scenario, Path], object]
    changes_source: bool = False
    leaves_file: bool = False


def _replace(_: Scenario, area: Path) -> None:
    new = area.parent / "new"
    new.write_bytes(bytes(byte ^ 1 for byte in (area / SHARD).read_bytes()))
    new.rename(area / SHARD)


def _append(_: Scenario, area: Path) -> None:
    with (area / SHARD).open("ab") as shard:
        shard.write(b"\0")


def _put_file(_: Scenario, area: Path) -> None:
    (area / "out" / "sub").mkdir(parents=True, exist_ok=True)
    (area / "out" / "sub" / "thesis.tex").write_bytes(MINE)


def _make_folder(_: Scenario, area: Path) -> None:
    (area / "out").mkdir(exist_ok=True)


EVENTS = (
    Event("another conversion", lambda scenario, area: in_child(scenario.arguments, area)),
    Event("a shard is replaced", _replace, changes_source=True),
    Event("a shard is truncated", lambda _, area: os.truncate(area / SHARD, 100), changes_source=True),
    Event("a shard is appended to", _append, changes_source=True),
    Event("an empty OUT_DIR appears", _make_folder),
    Event("a file appears in OUT_DIR", _put_file, leaves_file=True),
)


def race(scenario: Scenario, event: Event, number: int, base: Path) -> tuple[str, list[str]]:
    """Let an event happen before the operation of that number; return how the run ended, and what was wrong."""
    area = base / "area"
    shutil.rmtree(area, ignore_errors=True)
    shutil.copytree(scenario.template, area)
    scenario.prepare(area)

    def decide(call: Call) -> None:
        if call.number == number:
            event.happen(scenario, area)

    ended = supervised(scenario, area, decide)
    found = files_of(area / "out") if (area / "out").exists() else None
    return f"exit status {ended.status}", list(_check(scenario, event, area, ended.status, found))


def _check(scenario: Scenario, event: Event, area: Path, status: int, found: Files | None) -> Iterator[str]:
    if status not in (0, 1):
        yield f"exit status {status}"
    complete = scenario.expected | ({"sub/thesis.tex": MINE} if event.leaves_file else {})
    old = scenario.old | ({"sub/thesis.tex": MINE} if event.leaves_file else {}) if scenario.old is not None else None
    alone = [{"sub/thesis.tex": MINE}] if event.leaves_file else [{}]
    if found not in (None, complete, scenario.expected, old, *alone):
        yield f"OUT_DIR is neither absent nor old nor complete: {sorted(found or ())}"
    if event.leaves_file and MINE not in files_of(area).values():
        yield "a file that somebody else wrote is gone"
    if status == 0 and found not in (complete, scenario.expected):
        yield "a success that is none"
    if status == 0 and [name for name in os.listdir(area) if name.startswith(".")]:
        yield "something is left after success"
    if status == 1 and scenario.old is not None and found is None:
        yield "the old output is not there"


def main() -> int:
    """Replay races and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every Nth operation")
    arguments = parser.parse_args()
    if not is_supported():
        print("races: needs Linux on x86-64 with seccomp's user notification")
        return 1
    endings, wrong = replay(arguments.every)
    print(f"{sum(endings.values())} races: {dict(endings)}; {len(wrong)} wrong")
    return 1 if wrong else 0


def replay(every: int, first: int = 1) -> tuple[Counter[str], list[str]]:
    """Let every event happen at every operation whose number is `first` plus a multiple of `every`."""
    endings: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fp8pad-races-", dir=fast_folder()) as folder:
        base = Path(folder).resolve()
        os.environ["HOME"] = folder
        for scenario in scenarios(base):
            if scenario.name not in ("convert, 1 jobs", "overwrite, 1 jobs", "overwrite, 1 jobs, no exchange"):
                continue
            num_calls = len(count(scenario, base))
            for event in EVENTS:
                for number in range(first, num_calls + 1, every):
                    ending, found = race(scenario, event, number, base)
                    endings[f"{event.name}: {ending}"] += 1
                    wrong += [f"{scenario.name}: {event.name} at #{number}: {line}" for line in found]
                    for line in wrong[len(wrong) - len(found) :]:
                        print(line, flush=True)
    return endings, wrong


if __name__ == "__main__":
    sys.exit(main())
