"""Which parts may import which: the architecture's directions, checked in the source and in a fresh interpreter."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import fp8pad

ROOT = Path(fp8pad.__file__).parent
EXAMPLE = ROOT.parent / "examples" / "llama-fp8"

# What each part may import, from this project and from others; the first name that matches a module decides.
RECORDS = {"errors", "geometry", "padded", "parsing", "quantization_config", "reading", "record"}
PURE = RECORDS | {"scales", "tensors", "text"}
READING = PURE | {"planning", "checkpoint"}
WRITING = READING | {"converted", "hub", "output", "parallel", "staged"}
JUDGING = WRITING | {"card", "verification"}
RESULTS = {"conversion", "verification", "unpadding", "inspection", "planned", "upload", "golden", "bench"}
ALLOWED: dict[str, set[str]] = {
    "__init__": {"conversion", "errors", "inspection", "library", "planned", "unpadding", "upload", "verification"},
    "__main__": {"cli"},
    "errors": set(),
    "geometry": set(),
    "text": set(),
    "tensors": set(),
    "scales": {"geometry"},
    "parsing": {"errors"},
    "reading": {"errors", "parsing"},
    "padded": {"geometry", "reading"},
    "record": {"errors", "padded", "reading"},
    "quantization_config": {"errors", "padded", "reading", "record"},
    "planning": PURE | {"__init__", "planning"},
    "checkpoint": PURE | {"checkpoint", "numpy", "safetensors"},
    "parallel": {"", "__init__", "checkpoint", "errors", "parallel", "ray", "reading"},
    "card": READING | {"__init__"},
    "converted": READING | {"__init__", "card"},
    "adapters": READING,
    "output": WRITING,
    "staged": WRITING,
    "conversion": WRITING | {"card", "planned", "summary"},
    "hub": READING | {"hub", "huggingface_hub"},
    "integrations": READING | {"__init__", "hub", "torch", "tqdm"},
    "planned": READING | {"adapters", "hub", "summary"},
    "library": READING | RESULTS | {"hub", "integrations"},
    "verification": JUDGING,
    "upload": JUDGING | {"huggingface_hub"},
    "unpadding": JUDGING,
    "inspection": JUDGING | {"summary"},
    "golden": READING | {"__init__", "golden", "torch", "transformers", "vllm"},
    "bench": PURE | {"__init__", "bench", "runtime", "torch", "triton", "vllm"},
    "runtime": {
        "__init__",
        "errors",
        "geometry",
        "packaging",
        "quantization_config",
        "runtime",
        "scales",
        "torch",
        "triton",
        "vllm",
    },
    "summary": READING | {"card"},
    "render": READING | RESULTS | {"__init__", "card", "render", "rich", "summary"},
    "cli": READING | RESULTS | {"__init__", "cli", "library", "output", "render", "typer"},
}
# Runs the commands in a list, and prints the exit status of each, on a line of its own.
ONE_BY_ONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from fp8pad.cli.main import main
for words in json.loads(sys.argv[2]):
    sys.argv = ["fp8pad", *words]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        print(f"\\n{end.code}")
"""
# Heavy or optional: parts that may import them do so inside functions.
LAZY = {"ray", "huggingface_hub", "vllm", "transformers"}
FILES = {"io", "os", "pathlib", "shutil", "subprocess", "tempfile"}


@dataclass(frozen=True)
class Import:
    """One import statement's target: a part of fp8pad, or another package."""

    importer: str
    line: int
    target: str
    is_lazy: bool


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a module once for all tests."""
    return ast.parse(path.read_text(), str(path))


def imports_of(path: Path) -> Iterator[Import]:
    """Yield what a module imports at run time; imports under `if TYPE_CHECKING` do not count."""
    importer = path.relative_to(ROOT).with_suffix("").parts[0]
    pending: list[tuple[ast.AST, bool]] = [(tree_of(path), False)]
    while pending:
        node, is_lazy = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for name in imported_names(node):
            yield Import(importer, getattr(node, "lineno", 0), part_of(name), is_lazy)
        is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, is_lazy) for child in ast.iter_child_nodes(node)]


def imported_names(node: ast.AST) -> list[str]:
    """Return the dotted names that a statement imports; relative imports are not used here."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        if node.module == "fp8pad":
            return [f"fp8pad.{alias.name}" for alias in node.names]
        return [str(node.module)]
    return []


def part_of(name: str) -> str:
    """Return `planning` for `fp8pad.planning.plan`, `__init__` for `fp8pad.__version__`, `numpy` for `numpy.typing`."""
    package, _, rest = name.partition(".")
    if package != "fp8pad":
        return package
    part = rest.partition(".")[0]
    return part if (ROOT / part).is_dir() or (ROOT / f"{part}.py").is_file() else "__init__"


MODULES = sorted(ROOT.rglob("*.py"))


def test_imports_go_in_the_allowed_directions() -> None:
    """A module imports only what its part of the architecture may import."""
    wrong = [
        f"{path}, line {found.line}: {found.target}"
        for path in MODULES
        for found in imports_of(path)
        if found.target not in ALLOWED[found.importer] | sys.stdlib_module_names
    ]
    assert wrong == []


def test_planning_knows_no_files() -> None:
    """Plans are made from data alone: neither planning nor what it imports can open, list or run anything."""
    pure = [path for path in MODULES if path.relative_to(ROOT).with_suffix("").parts[0] in PURE | {"planning"}]
    assert len(pure) > len(PURE)
    assert not [found for path in pure for found in imports_of(path) if found.target in FILES]


def test_engines_are_imported_inside_functions() -> None:
    """Importing a module never loads vLLM or transformers."""
    found = [found for path in MODULES for found in imports_of(path) if found.target in LAZY]
    assert found
    assert not [eager for eager in found if not eager.is_lazy]


# Modules that run code, or create objects of any class, from their input.
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "runpy", "code"}
RUNNING = {"eval", "exec", "compile", "__import__"}


def code_runners(path: Path) -> list[str]:
    """Return where a module could run what it reads: pickles, `eval` and the like, a shell, a model's code."""
    found = [f"line {i.line}: {i.target}" for i in imports_of(path) if i.target in RUNS_CODE]
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {str(word.arg): ast.unparse(word.value) for word in node.keywords}
        if name in RUNNING or (name in {"torch.load", "np.load"} and keywords.get("weights_only") != "True"):
            found.append(f"line {node.lineno}: {name}")
        if keywords.get("shell") == "True" or keywords.get("trust_remote_code") == "True":
            found.append(f"line {node.lineno}: {name} with {sorted(keywords)}")
    return found


def test_nothing_that_is_read_is_run() -> None:
    """No module unpickles or evaluates data or passes it to a shell, not even data from our own processes."""
    assert [(path, found) for path in MODULES for found in code_runners(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from cloudpickle import loads",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_the_scan_sees_what_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Each of these is found, at module level and in functions."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "convert.py"
    module.write_text(line)
    assert len(code_runners(module)) == 1


def test_the_scan_sees_lazy_and_eager_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan finds imports in functions and at module level, and ignores type checking."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "convert.py"
    module.write_text("import vllm\nif TYPE_CHECKING:\n    import jax\ndef f():\n    import torch.nn\n")
    found = {(found.target, found.is_lazy) for found in imports_of(module)}
    assert found == {("vllm", False), ("torch", True)}


@pytest.mark.parametrize(
    ("commands", "forbidden"),
    [
        (["--help", "convert --help"], ["torch", "vllm", "numpy", "safetensors", "rich"]),
        (["plan MODEL"], ["torch", "vllm", "numpy"]),
        (["convert MODEL OUT_DIR", "verify MODEL MODEL"], ["torch", "vllm"]),
    ],
    ids=lambda value: value[0],
)
def test_commands_do_not_load_what_they_do_not_need(tmp_path: Path, commands: list[str], forbidden: list[str]) -> None:
    """Each command finishes although importing a heavy package is fatal; they run in a new process, one by one."""
    for package in forbidden:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise SystemExit('{package} was imported')")
    paths = {"MODEL": str(EXAMPLE), "OUT_DIR": str(tmp_path / "out")}
    words = [[paths.get(word, word) for word in command.split()] for command in commands]
    run = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, str(tmp_path), json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "was imported" not in run.stderr
    assert (run.returncode, run.stdout.count("\n0\n")) == (0, len(commands)), run.stderr


def test_the_plugin_module_loads_neither_vllm_nor_the_converter(tmp_path: Path) -> None:
    """vLLM swallows import errors of plugins, so importing ours must not be able to fail because of vLLM."""
    script = (
        "import sys, fp8pad.runtime;"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('vllm', 'torch', 'rich', 'typer')"
        " or name in ('fp8pad.planning', 'fp8pad.library', 'fp8pad.render', 'fp8pad.cli')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
