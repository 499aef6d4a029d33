"""The project's page on a package index: README.md, whose relative links would lead nowhere there.

Releases are built with the repository's address in FP8PAD_REPOSITORY; links then lead to the released version's files.
Without it they become plain text.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")


class ProjectPage(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add what depends on where the repository is."""
        repository = os.environ.get("FP8PAD_REPOSITORY", "").rstrip("/")
        text = page((ROOT / "README.md").read_text("utf-8"), repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }


def page(readme: str, repository: str, version: str) -> str:
    """Return the README with absolute links to the files of a version, or without links where there is no address."""

    def absolute(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if not repository:
            return "" if image else text
        if target == ".":
            return f"[{text}]({repository})"
        return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/v{version}/{target})"

    return LINK.sub(absolute, readme)
