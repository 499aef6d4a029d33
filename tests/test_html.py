"""The plan as a page: everything in one file, names escaped, and readable in a real browser, if one is installed."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import copy_case

from fp8pad.checkpoint.checkpoint import Checkpoint, read_unconverted
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import find_engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import Policy
from fp8pad.render.html import plan_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Outline(HTMLParser):
    """Checks that tags are balanced, and collects text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a tag; remember where it leads."""
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect."""
        self.words.append(data)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Checkpoint, CheckpointPlan]:
    """A checkpoint with unaligned text and vision MLPs."""
    source = read_unconverted(copy_case("good/qwen2_5_vl_dyn", tmp_path))
    return source, plan_checkpoint(source.shards, source.configs, Policy())


def test_the_page_stands_alone(planned: tuple[Checkpoint, CheckpointPlan]) -> None:
    """Valid nesting, no script, nothing loaded from elsewhere; verdict, sizes, cost and the next command are there."""
    page = plan_page(*planned, find_engine(None))
    outline = Outline()
    outline.feed(page)
    assert (outline.open, outline.links) == ([], [])
    assert "<script" not in page
    assert "url(" not in page
    text = " ".join("".join(outline.words).split())
    assert "26 FP8 layers: 12 to pad, 14 aligned already" in text
    assert "visual.blocks.{0-1}.mlp.down_proj" in text
    assert "vision_config.intermediate_size 100 → 112" in text
    assert "fp8pad convert" in text
    assert set(re.findall(r"TP \d+", text)) >= {"TP 1", "TP 2", "TP 4", "TP 8", "TP 16"}


def test_names_are_text(planned: tuple[Checkpoint, CheckpointPlan]) -> None:
    """What a checkpoint says cannot become a part of the page."""
    source, plan = planned
    layers = (replace(plan.layers[0], name="<script>alert(1)</script>&\x1b"), *plan.layers[1:])
    page = plan_page(source, replace(plan, layers=layers, notes=("<b>note</b>",)), find_engine(None))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\x1b" in page
    assert "&lt;b&gt;note&lt;/b&gt;" in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(
    planned: tuple[Checkpoint, CheckpointPlan], tmp_path: Path, width: int
) -> None:
    """At the width of a phone and of a desktop the page is no wider than the window; a picture of it is not empty."""
    probe = "<script>document.title = String(document.documentElement.scrollWidth)</script></body>"
    (tmp_path / "page.html").write_text(
        plan_page(*planned, find_engine(None)).replace("</body>", probe), encoding="utf-8"
    )
    browser = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    url = (tmp_path / "page.html").as_uri()
    dump = subprocess.run([*browser, "--dump-dom", url], capture_output=True, text=True, check=True, timeout=120).stdout
    shown = re.search(r"<title>(\d+)</title>", dump)
    assert shown is not None
    assert int(shown[1]) <= max(width, 500)  # headless Chromium has no window narrower than 500
    picture = tmp_path / "page.png"
    subprocess.run([*browser, f"--screenshot={picture}", url], capture_output=True, check=True, timeout=120)
    assert picture.stat().st_size > 10_000
