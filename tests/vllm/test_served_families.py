"""Experts, layouts and mixers that no other test serves, on one rank; `serve_families.py` serves 46 such models."""

from collections.abc import Callable
from pathlib import Path

import pytest
from served_models import build
from serving import serve

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [("qwen3_moe", "fp8, block"), ("nemotron_h", "modelopt, tensor"), ("granite", "auto-round")],
)
def test_a_family_answers_as_before(
    model_type: str, layout: str, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    """Padded and absorbed for two ranks."""
    original = build(model_type, layout, tmp_path / "model")
    expected = serve(original).answers
    for options in ((), ("--absorb", "--absorb-experts")):
        assert serve(converted(original, "-tp", "2", *options)).answers == expected
