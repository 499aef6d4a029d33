"""Every block of code on every page: commands and Python run, JSON and TOML can be parsed; the notebook too."""

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from fake_hub import TOKEN, fake_hub, let_client_use
from helpers import llama

ROOT = Path(__file__).parents[1]
FAKE_ENGINE = ROOT / "tests" / "fake_engine"
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "fp8pad/**/*.md") for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What is not run here, and what runs it.
ELSEWHERE = {
    "pip install": ".ci/matrix",
    "make": "CI, and people",
    ".ci/run": "CI",
    "vllm serve": "tests/vllm",
    "hf auth login": "people, once",
    "ray start": "tests/cluster",
    "fp8pad convert /shared/MODEL": "tests/cluster",
    "examples/ci/golden.sh": "tests/test_golden_runs.py",
    "RUN pip install": "docker",
}


@dataclass(frozen=True)
class Block:
    """A block of code on a page, with its language."""

    page: Path
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.number}"


BLOCKS = [
    Block(page, number, *found) for page in PAGES for number, found in enumerate(BLOCK.findall(page.read_text("utf-8")))
]


def blocks_of(*languages: str) -> list[Block]:
    """Return the blocks in one of these languages."""
    return [block for block in BLOCKS if block.language in languages]


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page to run here, after checking that every other one runs elsewhere."""
    lines = [
        line
        for block in blocks_of("sh", "dockerfile")
        if block.page == page
        for line in block.text.splitlines()
        if line and not line.startswith("#")
    ]
    ours = [line for line in lines if not line.startswith(tuple(ELSEWHERE))]
    assert not [line for line in ours if not line.startswith("fp8pad ")], "neither run here nor known to run elsewhere"
    return ours


@pytest.fixture
def workplace(tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder with MODEL in it, a hub with org/name, and a fake engine."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    shutil.copytree(example, tmp_path / "MODEL")
    shutil.copytree(example, tmp_path / "examples" / "llama-fp8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE_ENGINE), str(ROOT)]))
    monkeypatch.syspath_prepend(FAKE_ENGINE)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub() as hub:
        hub.add("org/name", llama(tmp_path / "of-the-hub", num_shards=2))
        let_client_use(hub, tmp_path / "hub", monkeypatch)
        yield tmp_path


@pytest.mark.parametrize(
    "page", sorted({block.page for block in blocks_of("sh", "dockerfile")}), ids=lambda page: page.name
)
def test_the_commands_of_a_page_run_in_their_order(page: Path, workplace: Path) -> None:
    """Each exits with 0, on the checkpoint of examples/ or on as many shards as the page mentions."""
    if re.search(r"--shards \d", page.read_text("utf-8")):
        shutil.rmtree(workplace / "MODEL")
        llama(workplace / "MODEL", num_shards=100)
    for line in commands_of(page):
        words = shlex.split(line, comments=True)[1:]
        # The example has four attention heads, which eight ranks cannot share; one OUT_DIR serves the whole page.
        words = ["2" if word == "8" else word for word in words]
        if words[0] == "convert" and "--shards" not in words:
            words.append("--overwrite")
        run = forked.command(*words, cwd=workplace)
        assert run.returncode == 0, (words, run.stderr)


def needs_engine(block: Block) -> bool:
    """Return whether a block imports an engine: tests/vllm/test_upstream.py runs it."""
    return any(f"from {name}." in block.text for name in ("vllm", "transformers"))


@pytest.mark.parametrize("block", [block for block in blocks_of("python") if not needs_engine(block)], ids=str)
def test_python_runs(block: Block, workplace: Path) -> None:
    """Every block runs to its end, including its assertions."""
    program = compile(block.text, str(block), "exec")
    run = forked.run(lambda: exec(program, {"__name__": "__main__"}), workplace)  # noqa: S102  our own pages
    assert run.returncode == 0, run.stderr


def test_engines_are_imported_where_that_is_tested() -> None:
    """Only the page that tests/vllm/test_upstream.py reads imports them."""
    assert {block.page.name for block in blocks_of("python") if needs_engine(block)} == {"upstream.md"}


@pytest.mark.parametrize("block", blocks_of("json", "toml"), ids=str)
def test_data_can_be_read(block: Block) -> None:
    """Every block is valid JSON or TOML."""
    parse = {"json": json.loads, "toml": tomllib.loads}[block.language]
    assert parse(block.text)


def test_every_language_is_known() -> None:
    """A block without a language is a drawing or the output of a program."""
    assert {block.language for block in BLOCKS} <= {"", "sh", "dockerfile", "python", "json", "toml"}
    assert not [block for block in blocks_of("") if re.search(r"^(fp8pad|pip|vllm) ", block.text, re.MULTILINE)]


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs in order, with the variables of earlier cells; there are no outputs that could be stale."""
    monkeypatch.chdir(ROOT / "examples")
    cells = [
        cell for cell in json.loads(Path("library.ipynb").read_text("utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert len(cells) > 4
    names: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"] == []
        exec("".join(cell["source"]), names)  # noqa: S102  our own notebook
