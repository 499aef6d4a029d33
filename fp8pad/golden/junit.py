"""A comparison as a JUnit file, which CI systems show."""

from xml.etree import ElementTree

from fp8pad.golden.compare import Comparison

_SUITE = "fp8pad golden"


def to_junit(comparison: Comparison) -> str:
    """Return XML with a test case for each prompt; the warnings go into `system-out`."""
    counts = {"tests": str(len(comparison.prompts)), "failures": str(len(comparison.differing)), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _SUITE, **counts})
    for result in comparison.prompts:
        name = f"prompt {result.prompt} ({result.num_prompt_tokens} tokens)"
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"{_SUITE}.{comparison.model}", "name": name})
        if difference := result.difference:
            found = f"step {difference.step}: {difference.kind}: expected {difference.expected}, got {difference.got}"
            failure = ElementTree.SubElement(case, "failure", {"type": difference.kind, "message": found})
            delta = f"largest difference of logprobs {result.max_abs_difference:.6g}"
            failure.text = f"{found}\n{delta}, allowed {comparison.atol:.6g}"
    if comparison.warnings:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(comparison.warnings)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
