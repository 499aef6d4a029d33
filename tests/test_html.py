"""The plan as a page: everything in one file, names escaped, and readable in a real browser if one is installed."""

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import copy_case

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import Policy
from fp8pad.render.console import stdout_console
from fp8pad.render.html import plan_page
from fp8pad.render.plan import plan_screen
from fp8pad.render.terminal import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Outline(HTMLParser):
    """Checks that tags are balanced, and collects text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a tag; collect its links."""
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        """Close the last opened tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.words.append(data)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Checkpoint, CheckpointPlan]:
    """Return a checkpoint with unaligned text and vision MLPs, and its plan."""
    source = read_unconverted(copy_case("good/qwen2_5_vl_dyn", tmp_path))
    return source, plan_checkpoint(source.shards, source.configs, Policy())


def test_the_page_stands_alone(planned: tuple[Checkpoint, CheckpointPlan]) -> None:
    """Tags are nested correctly, and nothing is loaded; verdict, sizes, costs and the next command are shown."""
    page = plan_page(PlanReport(*planned))
    outline = Outline()
    outline.feed(page)
    assert (outline.open, outline.links) == ([], [])
    assert "<script" not in page
    assert "url(" not in page
    text = " ".join("".join(outline.words).split())
    assert "26 FP8 layers: 12 to pad, 14 aligned already" in text
    assert "visual.blocks.{0-1}.mlp.down_proj" in text
    assert "vision_config.intermediate_size 100 → 112" in text
    assert re.search(r"TP 1(\+\d+\.\d kB \(\+\d+\.\d%\)){2}text_config\.intermediate_size", text)  # padded, absorbed
    assert "fp8pad convert" in text
    assert "converted for the size of the row, with -tp TP" in text
    assert "(as it is, padded): a size that ranks cannot share evenly: model.layers.{0-1}.mlp." in text
    assert "refuses (absorbed): a size that ranks cannot share evenly: model.layers.{0-1}.self_attn.q_proj" in text
    assert set(re.findall(r"TP \d+", text)) >= {"TP 1", "TP 2", "TP 4", "TP 8", "TP 16"}


@pytest.mark.parametrize("name", ["qwen2_5_vl_dyn", "deepseek_v3_block", "llama_mixed_fp8_int8"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_page_shows_what_the_screen_shows(
    name: str, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell and paragraph of the plan is on the page, in the same order."""
    source = read_unconverted(copy_case(f"good/{name}", tmp_path))
    plan = plan_checkpoint(source.shards, source.configs, Policy(tensor_parallel_size=ranks, absorb=True))
    report = PlanReport(source, plan)
    write(plan_screen(report, show_all=True), stdout_console())
    first, *lines = capsys.readouterr().out.splitlines()
    outline = Outline()
    outline.feed(plan_page(report))
    page = re.sub(r"\s+", "", "".join(outline.words)).replace("→", "->")
    at = 0
    for cell in [first.removeprefix(f"{source}: "), *(cell for line in lines for cell in line.split("  ") if cell)]:
        at = page.find(cell.replace(" ", ""), at)
        assert at >= 0, cell


def test_names_are_text(planned: tuple[Checkpoint, CheckpointPlan]) -> None:
    """Names from a checkpoint are escaped."""
    source, plan = planned
    layers = (plan.layers[0]._replace(name="<script>alert(1)</script>&\x1b"), *plan.layers[1:])
    page = plan_page(PlanReport(source, replace(plan, layers=layers, notes=("<b>note</b>",))))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\x1b" in page
    assert "&lt;b&gt;note&lt;/b&gt;" in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(
    planned: tuple[Checkpoint, CheckpointPlan], tmp_path: Path, width: int
) -> None:
    """The page is not wider than the window of a phone, a tablet or a desktop."""
    # In an iframe: headless Chromium has no window narrower than 500.
    page = escape(plan_page(PlanReport(*planned)))
    probe = "document.title = document.querySelector('iframe').contentDocument.documentElement.scrollWidth"
    size = f'style="border:0" width="{width}" height="9000"'
    (tmp_path / "frame.html").write_text(f'<body><iframe srcdoc="{page}" {size} onload="{probe}"></iframe></body>')
    dump = chromium("--window-size=1400,900", "--dump-dom", (tmp_path / "frame.html").as_uri())
    shown = re.search(r"<title>(\d+)</title>", dump)
    assert shown is not None
    assert int(shown[1]) == width


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
def test_pictures_and_paper_hold_something(planned: tuple[Checkpoint, CheckpointPlan], tmp_path: Path) -> None:
    """In light mode, in dark mode and printed, the page is not empty; dark mode looks different."""
    (tmp_path / "page.html").write_text(plan_page(PlanReport(*planned)), "utf-8")
    url = (tmp_path / "page.html").as_uri()
    chromium(f"--screenshot={tmp_path / 'day.png'}", url)
    chromium("--blink-settings=preferredColorScheme=0", f"--screenshot={tmp_path / 'night.png'}", url)
    chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", url)
    day, night, paper = ((tmp_path / name).read_bytes() for name in ("day.png", "night.png", "page.pdf"))
    assert min(map(len, (day, night, paper))) > 10_000
    assert day != night


def chromium(*arguments: str) -> str:
    """Run headless Chromium, and return its output."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
