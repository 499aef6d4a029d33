"""What is wrong with vLLM is reported by name; symbols of the standard library stand in for vLLM's."""

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.describe import describe, lookup

from fp8pad.errors import EngineError
from fp8pad.runtime import contract
from fp8pad.runtime.contract import FIRST_VERSION, LAST_VERSION, EngineSymbol, installed, slower, untried

DESCRIBED = Path(__file__).parent / "contract"

DUMPS = EngineSymbol("json", "dumps(obj)", "writes a document")


@pytest.fixture
def symbols(monkeypatch: pytest.MonkeyPatch) -> list[EngineSymbol]:
    """Let the contract have one symbol, which is as expected, and those that a test adds."""
    entries = [DUMPS]
    monkeypatch.setattr(contract, "ENGINE_SYMBOLS", entries)
    return entries


NEWEST, NEXT = (f"{major}.{minor}" for major, minor in (LAST_VERSION, (LAST_VERSION[0], LAST_VERSION[1] + 1)))


def test_the_extra_allows_the_versions_that_were_tried() -> None:
    """From the oldest to the newest, and no others."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = ".".join(map(str, FIRST_VERSION))
    assert project["optional-dependencies"]["vllm"] == [f"vllm>={oldest},<{NEXT}"]


@pytest.mark.parametrize("end", [".0", ".0+cpu", ".1.dev7+g0123abc", ".0rc1", ".0.post1"])
def test_versions_that_were_tried(end: str) -> None:
    """Local, development and candidate builds count by their first two numbers."""
    assert untried("0.26" + end) is None
    assert untried(NEWEST + end) is None


@pytest.mark.parametrize("version", [f"{NEXT}.0", "0.99", "1.0.0", "dev", "0.x"])
def test_versions_that_were_not_tried_are_named_with_those_that_were(version: str) -> None:
    """Newer ones, and builds without a version number."""
    assert untried(version)
    assert all(part in str(untried(version)) for part in (version, f"0.26 to {NEWEST}"))


@pytest.mark.parametrize("version", ["0.25.1", "0.9"])
def test_older_versions_are_refused(version: str) -> None:
    """The message names the installed version and the oldest supported one."""
    with pytest.raises(EngineError, match=rf"vLLM {version}: .*0\.26"):
        untried(version)


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (EngineSymbol("json", "gone", "did things"), r"json.gone, which did things, is missing"),
        (EngineSymbol("json.gone", "dumps", "did things"), r"json.gone.dumps, which did things, is missing"),
        (EngineSymbol("json", "dumps(document)", "writes"), r"json.dumps, which writes: expected .*\(document\)"),
        (EngineSymbol("json", "JSONEncoder.encode(self, x)", "writes"), r"\(self, x\), got \(self, o\)"),
        (EngineSymbol("json", "JSONEncoder.gone", "writes"), r"JSONEncoder.gone, which writes, is missing"),
    ],
)
def test_a_symbol_that_differs_is_named(symbols: list[EngineSymbol], symbol: EngineSymbol, message: str) -> None:
    """The message has the version, the symbol and its purpose, and the parameters if these differ."""
    symbols.append(symbol)
    with pytest.raises(EngineError, match=rf"vLLM 0\.30\.1: .*{message}"):
        slower("0.30.1")


def test_what_only_speed_needs_is_a_remark(symbols: list[EngineSymbol]) -> None:
    """Nothing is raised; each line says what is missing and what the effect is."""
    symbols.append(EngineSymbol("json", "gone", "did things", without="things take longer"))
    symbols.append(EngineSymbol("json", "dumps(text)", "writes", without="writing takes longer"))
    missing, changed = slower("0.30.1")
    assert "json.gone, which did things, is missing" in missing
    assert missing.endswith("things take longer")
    assert "expected parameters (text), got (obj, " in changed


def test_a_symbol_may_have_had_another_name(symbols: list[EngineSymbol]) -> None:
    """Either name is accepted."""
    symbols.append(EngineSymbol("json", "write(obj)", "writes", older="dumps"))
    assert slower("0.30.1") == []


def test_methods_are_compared_without_what_they_are_bound_to(symbols: list[EngineSymbol]) -> None:
    """A caller does not pass a class method's first parameter."""
    symbols.append(EngineSymbol("fractions", "Fraction.from_float(f)", "reads a number"))
    assert slower("0.33.0") == []


def test_attributes_of_instances_are_found() -> None:
    """Including those that only an inherited constructor sets."""
    assert installed("json", "JSONEncoder.sort_keys") is None
    assert installed("http.client", "HTTPSConnection.timeout") is None


def _described() -> list[str]:
    return [f"{FIRST_VERSION[0]}.{minor}.0" for minor in range(FIRST_VERSION[1], LAST_VERSION[1] + 1)]


@pytest.mark.parametrize("version", _described())
def test_every_version_holds_the_contract(version: str) -> None:
    """According to its wheel, nothing is missing that correct outputs or speed depend on."""
    description = json.loads((DESCRIBED / f"vllm-{version}.json").read_text())
    assert description["vllm"] == version
    assert slower(version, lookup(description)) == []


@pytest.mark.parametrize("symbol", contract.ENGINE_SYMBOLS, ids=lambda symbol: symbol.name)
def test_each_symbol_is_missed(symbol: EngineSymbol) -> None:
    """Without a symbol for correct outputs padded checkpoints are refused; without another there is one remark."""
    there = lookup(json.loads((DESCRIBED / f"vllm-{LAST_VERSION[0]}.{LAST_VERSION[1]}.0.json").read_text()))

    def find(module: str, name: str) -> tuple[str, ...] | None:
        if (module, name) == (symbol.module, symbol.name):
            raise LookupError("it is gone")
        return there(module, name)

    if symbol.without is None:
        with pytest.raises(EngineError, match=rf"{symbol.name}, which .*, is missing \(it is gone\)"):
            slower("0.34.0", find)
    else:
        (remark,) = slower("0.34.0", find)
        assert f"{symbol.name}, which {symbol.why}, is missing" in remark
        assert remark.endswith(symbol.without)


def test_what_is_read_from_a_source_is_what_its_import_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbols: list[EngineSymbol]
) -> None:
    """Functions, methods, properties, attributes, base classes of other modules, and missing names."""
    (tmp_path / "engine_base.py").write_text(
        "class Base:\n"
        "    def __init__(self):\n        self.inherited = 1\n"
        "    def method(self, x, *, y=1):\n        pass\n"
    )
    (tmp_path / "engine_kernel.py").write_text(
        "from typing import Generic, TypeVar\nfrom engine_base import Base as Parent\nT = TypeVar('T')\nNAMES = ['a']\n"
        "def function(a, b=1, **others):\n    pass\n"
        "class Kernel(Parent, Generic[T]):\n    kind = 'x'\n"
        "    @classmethod\n    def make(cls, size):\n        pass\n"
        "    @property\n    def width(self):\n        return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["function", "NAMES", "Parent", "Kernel.method", "Kernel.make", "Kernel.kind", "Kernel.width"]
    names += ["Kernel.inherited", "Kernel.gone", "gone", "Gone.method"]
    symbols[:] = [EngineSymbol("engine_kernel", name, "is tried") for name in names]

    def read(module: str) -> str | None:
        path = tmp_path / f"{module}.py"
        return path.read_text() if path.exists() else None

    described = lookup(describe("1.0", read))
    for name in names:
        outcomes = []
        for look in (installed, described):
            try:
                outcomes.append(look("engine_kernel", name))
            except LookupError:
                outcomes.append(("missing",))
        expected, got = outcomes
        assert got == expected, name


ENGINE = {
    "vllm/__init__.py": "__version__ = '0.99.0'\n",
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/layers/__init__.py": "",
    "vllm/model_executor/layers/quantization/__init__.py": (
        "registered = {}\n"
        "def register_quantization_config(quantization):\n"
        "    return lambda cls: registered.setdefault(quantization, cls)\n"
    ),
    "vllm/model_executor/layers/quantization/base_config.py": "class QuantizationConfig:\n    pass\n",
}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a fake vLLM 0.99 that lacks nearly everything."""
    for name, text in ENGINE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.mark.torch
def test_a_vllm_that_lacks_everything_starts_other_models(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The method is registered silently; a padded checkpoint gets an error that names the missing symbol."""
    from fp8pad.quantization_config import QuantizationRecord
    from fp8pad.runtime import register

    register()
    assert not caplog.records
    from vllm.model_executor.layers.quantization import registered

    claim = registered["fp8pad"].override_quantization_method
    other = {"quant_method": "fp8"}
    assert claim(other, None, hf_config=None, something_new=1) is None
    assert other == {"quant_method": "fp8"}
    padded = QuantizationRecord({}, other, "1.0").to_json()
    with pytest.raises(EngineError, match=r"vLLM 0\.99\.0: vllm\.model_executor.*which .* is missing"):
        claim(padded, None, hf_config=None)
    assert padded["quant_method"] == "fp8pad"


def test_a_vllm_that_cannot_be_registered_with_starts(engine: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is one warning; nothing is raised, since vLLM does not catch errors of `register()`."""
    from fp8pad.runtime import register

    (engine / "vllm/model_executor/layers/quantization/__init__.py").write_text("")
    register()
    (record,) = caplog.records
    assert "cannot register" in record.getMessage()
