"""Races, replayed at every file operation: `make races`. While `convert` waits at one, something else happens.

Each `Event` happens at one operation of one run: another complete conversion to the same OUT_DIR; a shard of the source
replaced, truncated or appended to; OUT_DIR created by somebody else; a file put into the old one. What must hold
afterwards: nobody's file is lost; OUT_DIR is absent, old or complete; and a reported success is real.

`--no-lock` replays two conversions that do not see each other's lock, as on two machines whose file system has no
locks: one is stopped at one operation, the other begins and is stopped at another, the first ends, then the other.
"""

import argparse
import errno
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from faults import Files, Scenario, count, in_child, scenarios, supervised
from helpers import fast_folder, files_of
from syscalls import Call, is_supported

SHARD = "model/model-00002-of-00004.safetensors"
MINE = b"mine"

# A race's name in the counts, where it happened, how it ended, and what was wrong.
Race = tuple[str, str, str, list[str]]


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
    """Let an event happen before the operation with this number; return how the run ended, and what was wrong."""
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


@dataclass(frozen=True)
class Pair:
    """Two commands that write to one OUT_DIR, and the output of each."""

    name: str
    scenario: Scenario
    other: Scenario


def meet(pair: Pair, number: int, other_number: int, base: Path) -> tuple[str, list[str]]:
    """Stop one run at an operation, let another begin and stop, then let both end; neither sees the other's lock."""
    area, other = base / "area", None
    shutil.rmtree(area, ignore_errors=True)
    shutil.copytree(pair.scenario.template, area)
    source = files_of(area / "model")

    def decide(call: Call) -> int | None:
        nonlocal other
        if call.number == number:
            other = Stopped(pair.other, area, other_number)
        return errno.ENOLCK if call.name == "flock" else None

    ended = supervised(pair.scenario, area, decide)
    statuses = [ended.status, *([other.end()] if other else [])]
    found = files_of(area / "out") if (area / "out").exists() else None
    complete = pair.scenario.expected, pair.other.expected
    wrong = [] if files_of(area / "model") == source else ["the source was changed"]
    if not set(statuses) <= {0, 1}:
        wrong.append(f"exit statuses {statuses}")
    if found not in (None, pair.scenario.old, *complete):
        wrong.append(f"OUT_DIR is neither absent nor old nor complete: {sorted(found or ())}")
    if 0 in statuses and found not in complete:
        wrong.append("a success that is none")
    if pair.scenario.old is not None and pair.scenario.old not in (found, *_staged_folders(area)) and found is None:
        wrong.append("the old output is gone")
    others = found == pair.other.expected != pair.scenario.expected and pair.scenario.old is None
    if (again := in_child(pair.scenario.arguments, area)) != (1 if others else 0):  # not without --overwrite
        wrong.append(f"the same command run again ended with {again}: {Path(f'{area}.stderr').read_text()}")
    return f"exit statuses {sorted(statuses)}", wrong


def _staged_folders(area: Path) -> list[Files]:
    return [files_of(folder) for folder in area.glob(".*.fp8pad/*") if folder.is_dir()]


class Stopped:
    """A run that waits for `end` at one of its operations."""

    def __init__(self, scenario: Scenario, area: Path, number: int) -> None:
        come, self._go = os.pipe(), os.pipe()

        def decide(call: Call) -> int | None:
            if call.number == number:
                os.write(come[1], b"x")
                os.read(self._go[0], 1)
            return errno.ENOLCK if call.name == "flock" else None

        self._process = os.fork()
        if self._process == 0:
            try:
                os.close(come[0])
                os.close(self._go[1])
                os._exit(supervised(scenario, area, decide).status % 256)
            finally:
                os._exit(99)
        os.close(come[1])
        os.read(come[0], 1)  # it has arrived there, or ended
        os.close(come[0])
        os.close(self._go[0])

    def end(self) -> int:
        """Let it run to its end; return its exit status."""
        os.close(self._go[1])
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])


def pairs(base: Path) -> Iterator[Pair]:
    """Yield pairs of runs that could meet: the same command twice, and one with another alignment."""
    for scenario in scenarios(base):
        if scenario.name not in ("convert, 1 jobs", "overwrite, 1 jobs", "overwrite, 1 jobs, no exchange"):
            continue
        area = base / "other"
        shutil.copytree(scenario.template, area)
        arguments = (*scenario.arguments, "--alignment", "64")
        if status := in_child(arguments, area):
            raise RuntimeError(f"{arguments}: {status}")
        other = replace(scenario, arguments=arguments, expected=files_of(area / "out"))
        shutil.rmtree(area)
        yield Pair(f"{scenario.name}, twice", scenario, scenario)
        yield Pair(f"{scenario.name}, and with another alignment", scenario, other)


def replay_without_lock(every: int, first: int = 1, names: str = "") -> tuple[Counter[str], list[str]]:
    """Let two runs meet at every pair of operations whose numbers are `first` plus multiples of `every`."""

    def meetings(base: Path) -> Iterator[Race]:
        for pair in pairs(base):
            if names not in pair.name:
                continue
            num_calls, num_other_calls = len(count(pair.scenario, base)), len(count(pair.other, base))
            for number in range(first, num_calls + 1, every):
                for other_number in range(first, num_other_calls + 1, every):
                    place = f"{pair.name} at #{number} and #{other_number}"
                    yield pair.name, place, *meet(pair, number, other_number, base)

    return collected(meetings)


def replay(every: int, first: int = 1) -> tuple[Counter[str], list[str]]:
    """Let every event happen at every operation whose number is `first` plus a multiple of `every`."""

    def races(base: Path) -> Iterator[Race]:
        for scenario in scenarios(base):
            if scenario.name not in ("convert, 1 jobs", "overwrite, 1 jobs", "overwrite, 1 jobs, no exchange"):
                continue
            num_calls = len(count(scenario, base))
            for event in EVENTS:
                for number in range(first, num_calls + 1, every):
                    place = f"{scenario.name}: {event.name} at #{number}"
                    yield event.name, place, *race(scenario, event, number, base)

    return collected(races)


def collected(races: Callable[[Path], Iterator[Race]]) -> tuple[Counter[str], list[str]]:
    """Run races in a temporary folder; count how they ended, and print and return what went wrong."""
    endings: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fp8pad-races-", dir=fast_folder()) as folder:
        os.environ["HOME"] = folder
        for name, place, ending, found in races(Path(folder).resolve()):
            endings[f"{name}: {ending}"] += 1
            for line in found:
                wrong.append(f"{place}: {line}")
                print(wrong[-1], flush=True)
    return endings, wrong


def main() -> int:
    """Replay races and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every Nth operation")
    parser.add_argument("--first", type=int, default=1, help="the first operation")
    parser.add_argument("--no-lock", action="store_true", help="two runs that see no lock of each other")
    arguments = parser.parse_args()
    if not is_supported():
        print("races: needs Linux on x86-64 with seccomp's user notification")
        return 1
    replaying = replay_without_lock if arguments.no_lock else replay
    endings, wrong = replaying(arguments.every, arguments.first)
    print(f"{sum(endings.values())} races: {dict(endings)}; {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
