# ruff: noqa: E402 (what this test needs is looked for before it is imported)
"""A Mamba mixer on a CUDA device: its kernels take a view of the padded projection's rows, and give the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("vllm", reason="serves the original and the padded model")

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

from serving import serve_apart
from tiny_models import build

pytestmark = pytest.mark.gpu

PROMPTS = [{"prompt_token_ids": [(7 * i + n) % 400 + 8 for i in range(n)]} for n in (1, 5, 33, 300, 1000, 3000)]
OPTIONS = {
    "max_model_len": 4096,
    "max_num_batched_tokens": 8192,
    "gpu_memory_utilization": 0.05,
    "kv_cache_memory_bytes": 2 << 30,
}


def test_a_mamba_mixer_gives_the_originals_bits(tmp_path: Path) -> None:
    """3352 of 3360 columns, as in Mamba2-130m: tokens and logprobs equal the original's."""
    original, padded = build("mamba2", tmp_path / "original"), tmp_path / "padded"
    subprocess.run([sys.executable, "-m", "fp8pad", "convert", str(original), str(padded)], check=True)
    expected, got = (serve_apart(model, PROMPTS, **OPTIONS) for model in (original, padded))
    assert got.answers == expected.answers
    assert got.padded_layers == ("backbone.layers.0.mixer.in_proj", "backbone.layers.1.mixer.in_proj")
