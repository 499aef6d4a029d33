"""A sample of `make fuzz` with hypothesis, and every input that ever found a bug."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("FUZZ_CASES", "4")
sys.path.append(str(Path(__file__).parent / "fuzz"))

import fuzz
import targets
from edits import Choices
from malformed import judge, run

UNIQUE = dict(targets.TARGETS)


class Bytes:
    """The part of atheris' FuzzedDataProvider that the targets use, for any bytes."""

    def __init__(self, data: bytes) -> None:
        """Take choices from the start of `data`; after its end, they are the lowest."""
        self.data = data

    def ConsumeBytes(self, count: int) -> bytes:  # noqa: N802
        """Return at most `count` bytes."""
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def ConsumeIntInRange(self, low: int, high: int) -> int:  # noqa: N802
        """Return a number from `low` to `high`."""
        num_bytes = ((high - low).bit_length() + 7) // 8
        return low + int.from_bytes(self.ConsumeBytes(num_bytes), "little") % (high - low + 1)

    def ConsumeUnicode(self, count: int) -> str:  # noqa: N802
        """Return a text of at most `count` characters."""
        return "".join(chr(self.ConsumeIntInRange(0, 0xFFFF)) for _ in range(min(count, len(self.data) // 2)))


SAMPLE = (
    "a stack of 2^50 experts of size 0",
    "the largest config.json, of empty lists, convert",
    "numbers in 90 lists that get an indent of 16",
    "3 GiB of fp8pad.json, unpad",
    "a name of a megabyte in an error",
    "code that became a link, verify",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_hostile_checkpoints_end_as_they_should(name: str, tmp_path: Path) -> None:
    """A sample of `make malformed`: sizes, files, names and links."""
    ending = judge(name, tmp_path)
    assert ending.wrong == "", ending


def test_the_memory_of_an_attempt_is_its_own(tmp_path: Path) -> None:
    """It is not that of the parent process, which may be large."""
    held = b"held" * (1 << 25)
    assert judge("terminal escapes in the folder's name", tmp_path).mebibytes < len(held) >> 20


def test_what_an_earlier_attempt_told_is_not_taken_for_one_that_a_signal_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that a signal ends reports nothing, so the kernel's number is used."""
    monkeypatch.setattr("malformed.PROGRAM", "import os; os.kill(os.getpid(), 9)")
    (tmp_path / "status").write_text(f"VmHWM:\t{1 << 40} kB\n")
    ending = run((), tmp_path)
    assert ending.status == -9
    assert 0 < ending.mebibytes < 1 << 20


@pytest.mark.parametrize("name", UNIQUE)
@settings(deadline=None, max_examples=15)
@given(data=st.binary(max_size=300))
def test_any_input_ends_in_a_result_or_in_one_of_our_errors(name: str, data: bytes) -> None:
    """Each target checks more than that; see there."""
    target: Callable[[Choices], str] = UNIQUE[name]
    assert target(Bytes(data))


def test_fuzzing_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after Ctrl-C, while libFuzzer, which removes nothing, works in the folder that it was given."""

    def interrupted(*_: object, env: dict[str, str], **__: object) -> None:
        folder = Path(env["FUZZ_FOLDER"])
        assert folder.parent == tmp_path
        (folder / "area").mkdir()
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fuzz.py"])
    monkeypatch.setattr(fuzz, "fast_folder", lambda: str(tmp_path))
    monkeypatch.setattr(subprocess, "run", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        fuzz.main()
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
    assert targets.FOLDER.name in str(targets.MODELS[0])
