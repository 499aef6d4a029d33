"""What the documentation promises: links work, and tables and printed output are up to date."""

import re
import runpy
import sys
from pathlib import Path

import forked
import pytest

from fp8pad.planning.families import families
from fp8pad.runtime.contract import ENGINE_SYMBOLS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "fp8pad/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings on which GitHub and mkdocs agree: mkdocs joins hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    formed = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return {f"#{anchor}" for anchor in formed if "--" not in anchor}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    """Every link that is not to another site names a file of the repository, and a heading in it if it has a `#`."""
    for target, anchor in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target + anchor


def test_the_package_page_has_no_relative_links() -> None:
    """With the repository's address every link is absolute and leads to a file; without it, all are removed."""
    pytest.importorskip("hatchling", reason="what builds the package is not installed")
    page = runpy.run_path(str(ROOT / "hatch_build.py"))["page"]
    readme = (ROOT / "README.md").read_text("utf-8")
    with_address = page(readme, "https://forge.example/fp8pad", "1.2.3")
    links = [target for target, _ in LINK.findall(with_address)]
    assert "clone of [this repository](https://forge.example/fp8pad):" in with_address
    assert all(target.startswith("https://") for target in links)
    prefix = "https://forge.example/fp8pad/blob/v1.2.3/"
    ours = [target.removeprefix(prefix) for target in links if target.startswith(prefix)]
    assert len(ours) > 5
    assert all((ROOT / target).exists() for target in ours)
    without = page(readme, "", "1.2.3")
    assert all(target.startswith("https://") for target, _ in LINK.findall(without))
    assert "[tested schemes" not in without


def test_what_is_patched_in_vllm_is_part_of_the_contract() -> None:
    """Each symbol of the table in CONTRIBUTING.md is one that the plugin checks before it changes anything."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.partition("### What is patched in vLLM")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith(("| `", "| the"))]
    assert len(rows) >= 4
    known = {symbol.name for symbol in ENGINE_SYMBOLS}
    for symbol, file in rows:
        (module,) = re.findall(r"`(runtime/\w+\.py)`", file)
        assert (ROOT / "fp8pad" / module).is_file()
        names = [name for name in re.findall(r"`([\w.]+)`", symbol) if name != "quantization_config"]
        assert set(names) <= known, names


def test_what_the_readme_shows_of_a_plan_is_what_is_printed(tmp_path: Path) -> None:
    """The block under `$ fp8pad plan Qwen2.5-72B-FP8 -tp 8`, except for omissions, with the model's real sizes."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^```\n\$ fp8pad plan (Qwen2.5-72B-FP8) -tp 8\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    runpy.run_path(str(ROOT / "examples" / "real_models.py"))["write"]("Qwen2.5-72B", tmp_path / block[1])
    printed = forked.command("plan", block[1], "-tp", "8", cwd=tmp_path).stdout.splitlines()
    for line in block[2].splitlines():
        assert line == "..." or line in printed


def test_the_messages_of_fp8pad_in_troubleshooting_are_its_own() -> None:
    """Each row of the table quotes a message in the code, except for names that are filled in."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").partition("## fp8pad itself\n")[2]
    quoted = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(quoted) > 10
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "fp8pad").rglob("*.py"))
    for message in quoted:
        assert message.replace("fp8pad.json", "{RECORD_FILE}").replace("...Error", "{type(error).__name__}") in code, (
            message
        )


def test_the_picture_of_the_report_shows_what_the_report_has_today() -> None:
    """It has the same sections and columns; `make pictures` updates it."""
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    assert f"{pictures['headings'](pictures['page']())}".encode() in (ROOT / "docs" / "plan.png").read_bytes()


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """`make docs` would refuse a page that is missing; this finds it without mkdocs."""
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"[\w-]+\.md", nav))


def test_the_page_of_coverage_names_every_model_type_that_has_a_family() -> None:
    """examples/coverage.py updates it after files were added."""
    page = (ROOT / "docs" / "coverage.md").read_text("utf-8")
    rows = re.findall(r"^\| ([*`].*?) \| .*\|$", page, re.MULTILINE)
    assert {name for cell in rows for name in re.findall(r"`(.+?)`", cell)} == set(families())


def test_drawings_have_a_width() -> None:
    """A figure of the site is as wide as its content: a drawing without a width is invisible."""
    drawings = [tag for page in PAGES for tag in re.findall(r"<svg[^>]*>", page.read_text("utf-8"))]
    assert len(drawings) >= 2
    assert all(re.search(r' width="\d+"', tag) for tag in drawings)


@pytest.mark.parametrize("script", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/**/*.py")))
def test_help_of_an_example_is_help_or_one_line(script: str) -> None:
    """If a package is missing, one line names it and what the script needs."""

    def program() -> None:
        sys.argv, sys.path[:0] = [script, "--help"], [str((ROOT / script).parent)]
        runpy.run_path(script, run_name="__main__")

    run = forked.run(program, cwd=ROOT)
    assert run.returncode == 0 or re.fullmatch(r"\S+\.py: No module named '\S+'; it needs .*\n", run.stderr)
