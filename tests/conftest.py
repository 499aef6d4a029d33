"""What every test may use."""

import os
import re
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. The same code gets the same examples each time: what fails
# here was broken by a change; `make fuzz` looks for what was broken before.
settings.register_profile("fp8pad", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fp8pad")

# What whoever starts the tests has set would reach the processes that they start: colours, a proxy before the hub that
# is a stand-in, a token, and signals that are ignored, as `nohup` and `&` have it.
_SET_ELSEWHERE = re.compile(
    r"COLUMNS|FORCE_COLOR|NO_COLOR|PY_COLORS|TERMINAL_WIDTH|GITHUB_ACTIONS|FP8PAD_DEBUG|HF_.*|\w+_PROXY", re.IGNORECASE
)
for _name in filter(_SET_ELSEWHERE.fullmatch, list(os.environ)):
    del os.environ[_name]
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_report_header() -> str:
    """Say which checkpoints of other tools the tests read: a smaller set is never used without a word."""
    named = os.environ.get("FP8PAD_CASES")
    return f"checkpoints of other tools: {named or 'tests/cases (set FP8PAD_CASES to a folder of more, whole ones)'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs torch where there is none."""
    if find_spec("torch"):
        return
    for item in items:
        if item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="needs torch (make test-vllm)"))


@pytest.fixture
def example() -> Path:
    """The checkpoint that comes with the repository, made by llm-compressor."""
    return Path(__file__).parent.parent / "examples" / "llama-fp8"


@pytest.fixture(scope="session", autouse=True)
def _no_inherited_group(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the folders that tests make have the bits that they ask for, wherever the temporary folder lies."""
    tmp_path_factory.getbasetemp().chmod(0o700)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, which a busy machine makes very slow; `make faults` tells what is synced when."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
