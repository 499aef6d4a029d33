"""A sample of `make fuzz` with hypothesis, and every input that it has found something with."""

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("FUZZ_CASES", "4")
sys.path.append(str(Path(__file__).parent / "fuzz"))

from edits import Choices
from malformed import ATTEMPTS, judge
from targets import TARGETS

UNIQUE = dict(TARGETS)


class Bytes:
    """What atheris' FuzzedDataProvider does, as far as the targets use it, from any bytes."""

    def __init__(self, data: bytes) -> None:
        """Take choices from the beginning of `data`; where it ends, they are the lowest."""
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


QUICK = [name for name in ATTEMPTS if not any(word in name for word in ("0,000", "2^30", "memory"))]


@pytest.mark.parametrize("first", range(4))
def test_hostile_checkpoints_end_as_they_should(first: int, tmp_path: Path) -> None:
    """A sample of `make malformed`, another one every day."""
    name = QUICK[(datetime.now(UTC).toordinal() * 4 + first) % len(QUICK)]
    ending = judge(name, tmp_path)
    assert ending.wrong == "", (name, ending)


@pytest.mark.parametrize("name", UNIQUE)
@settings(deadline=None, max_examples=15)
@given(data=st.binary(max_size=300))
def test_any_input_ends_in_a_result_or_in_one_of_our_errors(name: str, data: bytes) -> None:
    """What else is asked of each target stands there."""
    target: Callable[[Choices], str] = UNIQUE[name]
    assert target(Bytes(data))
