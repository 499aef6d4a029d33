"""Fixtures and settings for every test."""

import gc
import itertools
import os
import re
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the time of an example depends on how busy the machine is. The same code always gets the same examples,
# so that a failure here was caused by a change; `make fuzz` looks for older bugs.
settings.register_profile("fp8pad", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fp8pad")

# Settings of the caller that would reach the processes that tests start: colours, a proxy in front of the fake hub, a
# token, and ignored signals, as with `nohup` and `&`.
_SET_ELSEWHERE = re.compile(
    r"COLUMNS|FORCE_COLOR|NO_COLOR|PY_COLORS|TERMINAL_WIDTH|GITHUB_ACTIONS|FP8PAD_DEBUG|HF_.*|\w+_PROXY", re.IGNORECASE
)
for _name in filter(_SET_ELSEWHERE.fullmatch, list(os.environ)):
    del os.environ[_name]
# Each process that imports numpy starts a thread per core, which first waits busily: longer than the import takes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_report_header() -> str:
    """Report which checkpoints of other tools the tests read, so that a smaller set is never used silently."""
    named = os.environ.get("FP8PAD_CASES")
    return f"checkpoints of other tools: {named or 'tests/cases (set FP8PAD_CASES to a folder of more, whole ones)'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need torch if it is not installed."""
    if find_spec("torch"):
        return
    for item in items:
        if item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="needs torch (make test-vllm)"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from what stays until the end: modules, and thousands of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def example() -> Path:
    """The checkpoint that comes with the repository, made by llm-compressor."""
    return Path(__file__).parent.parent / "examples" / "llama-fp8"


_FOLDERS = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of the test's own; pytest's fixture would list all earlier folders to find a free number."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder = tmp_path_factory.getbasetemp() / f"{name}{next(_FOLDERS)}"
    folder.mkdir(0o700)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_inherited_group(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the folders that tests make the mode bits that they ask for, wherever the temporary folder is."""
    tmp_path_factory.getbasetemp().chmod(0o700)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, which is very slow on a busy machine; `make faults` tests what is synced when."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
