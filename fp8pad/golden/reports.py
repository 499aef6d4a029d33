"""The files that a golden run leaves, written whole or not at all; and a JUnit file, which CI systems show."""

import os
from pathlib import Path
from xml.etree import ElementTree

from fp8pad.errors import OutputError
from fp8pad.golden.compare import Comparison, PromptResult

_SUITE = "fp8pad golden"


def check_writable(file: Path) -> None:
    """Raise `OutputError` where `file` cannot be written, before an engine is started for it."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: {file.parent} is no folder")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OutputError(f"{file}: cannot be written")


def write_text(file: Path, text: str) -> None:
    """Write `text` beside `file` and rename it; `OutputError` if that fails."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(f"{file}: {error.strerror}") from error


def to_junit(comparison: Comparison) -> str:
    """Return a test case for each prompt as XML; what was not as recorded goes into `system-out`."""
    counts = {"tests": str(len(comparison.prompts)), "failures": str(len(comparison.differing)), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _SUITE, **counts})
    for result in comparison.prompts:
        _add_case(suite, comparison, result)
    if comparison.warnings:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(comparison.warnings)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, comparison: Comparison, result: PromptResult) -> None:
    name = f"prompt {result.prompt} ({result.num_prompt_tokens} tokens)"
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"{_SUITE}.{comparison.model}", "name": name})
    if difference := result.difference:
        message = f"step {difference.step}: {difference.kind}: expected {difference.expected}, got {difference.got}"
        ElementTree.SubElement(
            case, "failure", {"type": difference.kind, "message": message}
        ).text = (
            f"{message}\nlargest difference of logprobs {result.max_abs_difference:.6g}, allowed {comparison.atol:.6g}"
        )
