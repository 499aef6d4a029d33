"""A host that the runtime cannot rely on is refused by name; symbols of the standard library stand in for vLLM's."""

import pytest

from fp8pad.errors import EngineError
from fp8pad.runtime import contract
from fp8pad.runtime.contract import EngineSymbol, check_engine

DUMPS = EngineSymbol("json", "dumps", ("obj",), "writes a document")


@pytest.fixture(autouse=True)
def symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the contract have one entry, which holds."""
    monkeypatch.setattr(contract, "ENGINE_SYMBOLS", (DUMPS,))


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0+cpu", "0.33.1.dev7+g0123abc", "0.33.0rc1"])
def test_supported_versions_pass(version: str) -> None:
    """Local, development and candidate builds count by their first two numbers."""
    check_engine(version)


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.0.0", "0.9", "dev", "0.x"])
def test_other_versions_are_refused_by_number(version: str) -> None:
    """The message names the version that is there and those that would do, or says that it cannot be read."""
    with pytest.raises(EngineError, match=rf"vLLM {version}: .*(0\.26 to 0\.33|cannot be read)"):
        check_engine(version)


@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (EngineSymbol("json", "gone", None, "did things"), "json.gone, which did things, is missing"),
        (EngineSymbol("json.gone", "dumps", None, "did things"), "json.gone.dumps, which did things, is missing"),
        (EngineSymbol("json", "dumps", ("document",), "writes"), r"json.dumps, which writes: expected .*\(document\)"),
        (
            EngineSymbol("json", "JSONEncoder.encode", ("self", "x"), "writes"),
            r"expected .*\(self, x\), got \(self, o\)",
        ),
    ],
)
def test_a_symbol_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, symbol: EngineSymbol, message: str) -> None:
    """Version, symbol and purpose are in the message, and the parameters where they are what differs."""
    monkeypatch.setattr(contract, "ENGINE_SYMBOLS", (DUMPS, symbol))
    with pytest.raises(EngineError, match=rf"vLLM 0\.30\.1: .*{message}"):
        check_engine("0.30.1")


def test_methods_are_compared_without_what_they_are_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class method's own first parameter is no part of what its caller passes."""
    symbol = EngineSymbol("fractions", "Fraction.from_float", ("f",), "reads a number")
    monkeypatch.setattr(contract, "ENGINE_SYMBOLS", (symbol,))
    check_engine("0.33.0")
