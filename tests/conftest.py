"""What every test may use."""

from pathlib import Path

import pytest


@pytest.fixture
def example() -> Path:
    """The checkpoint that comes with the repository, made by llm-compressor."""
    return Path(__file__).parent.parent / "examples" / "llama-fp8"
