"""A sample of `make faults` and `make races`: every fault and every event, always at the same operations."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import fast_folder

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
sys.path.append(str(Path(__file__).parent / "faults"))

from faults import FAULTS, count, inject, scenarios
from races import EVENTS, replay
from syscalls import Call, is_supported, supervise

SURVIVED = ("EACCES", "EINTR", "short")  # only these can leave a run to its end where they are injected here
pytestmark = pytest.mark.skipif(not is_supported(), reason="needs seccomp's user notification on x86-64")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep syncing here, unlike in other tests, and restore HOME, for which the harness sets a temporary folder."""
    monkeypatch.setenv("HOME", os.environ.get("HOME", "/"))


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder in memory, which is HOME too: syncing costs nothing there."""
    with tempfile.TemporaryDirectory(prefix="fp8pad-faults-", dir=fast_folder()) as folder:
        monkeypatch.setenv("HOME", folder)
        yield Path(folder).resolve()


@pytest.mark.parametrize(
    ("name", "faults"), [("overwrite, 1 jobs", tuple(FAULTS)), ("overwrite, 1 jobs, no exchange", SURVIVED)]
)
def test_faults_lose_nothing(base: Path, name: str, faults: tuple[str, ...]) -> None:
    """OUT_DIR is absent, old or complete, one line says what failed, and the same command then succeeds.

    Each fault is injected at one operation, two thirds through those that it can hit: while shards are written. Whether
    folders can be exchanged matters only after that, so only for a run that such a fault does not end.
    """
    scenario = next(scenario for scenario in scenarios(base) if scenario.name == name)
    calls = count(scenario, base)
    for fault in faults:
        kinds = FAULTS[fault]
        numbers = [call.number for call in calls if kinds is None or call.name in kinds]
        call, ending, wrong = inject(scenario, numbers[len(numbers) * 2 // 3], fault, base)
        assert call is not None, fault
        assert wrong == [], f"{fault} at {call}"
        assert ending != "succeeded" or fault in SURVIVED, f"{fault} at {call}"


def test_races_lose_nothing() -> None:
    """No file of another process is lost, in any order of events."""
    endings, wrong = replay(every=499, first=250)
    assert wrong == []
    assert len(endings) >= len(EVENTS) // 2


@pytest.mark.parametrize("fault", [28, "short", "SIGKILL"])
def test_the_supervisor_decides_about_system_calls(tmp_path: Path, fault: int | str) -> None:
    """The harness injects an error, a partial write, or the process's death instead of the call."""

    def write() -> int:
        descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        try:
            return os.pwrite(descriptor, b"12345678", 0)
        except OSError as error:
            return 100 + (error.errno or 0)

    def decide(call: Call) -> int | str | None:
        return fault if call.name == "pwrite64" else None

    ended = supervise(write, tmp_path, decide)
    assert [call.name for call in ended.calls] == ["openat", "pwrite64"]
    assert ended.status == {28: 128, "short": 4, "SIGKILL": -9}[fault]
    assert (tmp_path / "file").read_bytes() == (b"1234" if fault == "short" else b"")
    assert list(ended.unsynced.values()) == ([str(tmp_path / "file")] if fault == "short" else [])
