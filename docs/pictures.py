"""Take the picture of the HTML report again, docs/plan.png: `make pictures`. Needs Chromium (apt install chromium).

The picture holds the headings of the page that it shows, so that a test sees when today's page has others.
"""

import re
import runpy
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import fp8pad
from fp8pad.render.html import plan_page

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "plan.png"
MODEL, WINDOW = "Qwen2.5-72B", "1000,1200"
SIGNATURE_BYTES, IHDR_BYTES = 8, 25
KEYWORD = b"fp8pad headings\0"


def main() -> None:
    """Show the page in Chromium, and keep what is seen."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs Chromium: apt install chromium")
    text = page()
    with tempfile.TemporaryDirectory() as folder:
        shown, taken = Path(folder, "plan.html"), Path(folder, "plan.png")
        shown.write_text(text, "utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WINDOW}")
        subprocess.run([chromium, *options, f"--screenshot={taken}", shown.as_uri()], check=True, capture_output=True)
        PICTURE.write_bytes(with_headings(taken.read_bytes(), headings(text)))


def page() -> str:
    """The page of a model by its published sizes, with everything absorbed that can be."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, MODEL)
        runpy.run_path(str(ROOT / "examples" / "real_models.py"))["write"](MODEL, model)
        found = fp8pad.plan(model, tensor_parallel_size=8, absorb=True)
        return plan_page(found).replace(f"{folder}/", "")


def headings(text: str) -> str:
    """The titles of a page's sections, and of the columns of its tables."""
    return "; ".join(re.findall(r"<(?:h2|th)>([^<]+)<", text))


def with_headings(png: bytes, text: str) -> bytes:
    """Put a text into a PNG: a chunk of its length, type, content and checksum, behind the first one."""
    content = b"tEXt" + KEYWORD + text.encode("latin-1")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[: SIGNATURE_BYTES + IHDR_BYTES] + chunk + png[SIGNATURE_BYTES + IHDR_BYTES :]


if __name__ == "__main__":
    main()
