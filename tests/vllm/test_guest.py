"""The plugin does not disturb vLLM: unknown versions of vLLM start every model that is not padded."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import serve_apart

from fp8pad.errors import EngineError
from fp8pad.quantization_config import QuantizationRecord
from fp8pad.runtime import contract, patches, register
from fp8pad.runtime.config import RECORD_KEY, Fp8padConfigMethods
from fp8pad.runtime.contract import LAST_VERSION, EngineSymbol

pytestmark = pytest.mark.vllm

BASE = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Reset what was claimed, and make the messages of vLLM's loggers visible."""
    patches.activate.cache_clear()
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vllm.fp8pad")
    yield
    patches.activate.cache_clear()


def _claim() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(QuantizationRecord({}, BASE, "1.0").to_json()))
    Fp8padConfigMethods.override_quantization_method(config, None, hf_config=SimpleNamespace())
    return config


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the plugin logged; vLLM's own modules warn when they are imported."""
    return [record.getMessage() for record in caplog.records if record.name == "vllm.fp8pad"]


def test_nothing_is_changed_before_a_padded_checkpoint_is_claimed() -> None:
    """Registering does not change vLLM's loader or its reader of weights."""
    from vllm.model_executor.layers.quantization.utils import quant_utils
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    script = (
        "from vllm.model_executor.layers.quantization.utils import quant_utils\n"
        "from vllm.model_executor.model_loader.default_loader import DefaultModelLoader\n"
        "before = quant_utils.get_and_maybe_dequant_weights, DefaultModelLoader.load_weights\n"
        "import fp8pad.runtime\n"
        "fp8pad.runtime.register()\n"
        "assert before == (quant_utils.get_and_maybe_dequant_weights, DefaultModelLoader.load_weights)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    register()
    _claim()
    assert hasattr(quant_utils.get_and_maybe_dequant_weights, "__wrapped__")
    assert hasattr(DefaultModelLoader.load_weights, "__wrapped__")


def test_a_newer_vllm_is_served_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the tested versions, once per process."""
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    register()
    assert not _said(caplog)
    for _ in range(2):
        assert RECORD_KEY in _claim()
    (message,) = _said(caplog)
    newest = ".".join(map(str, LAST_VERSION))
    assert f"vLLM 0.99.0 is newer than the versions that fp8pad was tested with, 0.26 to {newest}" in message


def test_a_newer_vllm_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """FP8PAD_STRICT=1 refuses padded checkpoints, and nothing else."""
    monkeypatch.setattr("vllm.__version__", "0.99.0")
    monkeypatch.setenv("FP8PAD_STRICT", "1")
    register()
    assert Fp8padConfigMethods.override_quantization_method(dict(BASE), None, hf_config=None) is None
    with pytest.raises(EngineError, match=r"0\.26 to 0\.33; refused because FP8PAD_STRICT=1"):
        _claim()


def test_a_version_that_was_tried_is_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """The installed vLLM fulfils the whole contract."""
    _claim()
    assert not _said(caplog)


def test_what_only_speed_needs_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A missing symbol is named, with the effect."""
    symbol = EngineSymbol("vllm.model_executor.layers.linear", "Gone", "is fast", without="layers are slow")
    monkeypatch.setattr(contract, "ENGINE_SYMBOLS", (*contract.ENGINE_SYMBOLS, symbol))
    _claim()
    (message,) = _said(caplog)
    assert "linear.Gone, which is fast, is missing" in message
    assert message.endswith("layers are slow")


def test_another_vllm_starts_other_models_and_says_why_no_padded_one(
    tmp_path: Path, tiny: Callable[[str], Path], converted: Callable[..., Path]
) -> None:
    """Complete engines, each in a process whose vLLM lacks a symbol when plugins are loaded."""
    change = "from vllm.model_executor.models.utils import WeightsMapper; del WeightsMapper.apply_list"
    environment = _environment_of_another_vllm(tmp_path, change)
    assert serve_apart(tiny("llama"), environment=environment).answers
    with pytest.raises(RuntimeError, match=r"WeightsMapper\.apply_list"):
        serve_apart(converted(tiny("llama")), environment=environment)


def test_a_newer_vllm_serves_a_padded_model(
    tmp_path: Path, tiny: Callable[[str], Path], converted: Callable[..., Path]
) -> None:
    """A complete engine whose vLLM reports 0.99, and has everything that is expected."""
    environment = _environment_of_another_vllm(tmp_path, "import vllm; vllm.__version__ = '0.99.0'")
    assert serve_apart(converted(tiny("llama")), environment=environment).padded_layers


def _environment_of_another_vllm(tmp_path: Path, change: str) -> dict[str, str]:
    """Return an environment in which a plugin changes vLLM before fp8pad's plugin is used."""
    (tmp_path / "another_vllm.py").write_text(f"def register():\n    {change}\n")
    metadata = tmp_path / "another_vllm-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: another-vllm\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[vllm.general_plugins]\nanother = another_vllm:register\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
