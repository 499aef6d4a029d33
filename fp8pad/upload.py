"""Push a converted checkpoint to the hub, if it verifies and its model card says what was changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8pad.card import BEGIN, CARD_FILE
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import RecordError, VerifyError
from fp8pad.hub.ids import HubId, hub_errors
from fp8pad.record import FORMAT_VERSION
from fp8pad.verification import verify


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was pushed, and where it is now."""

    out_dir: Path
    repo: str
    url: str

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad push --json` prints."""
        return {"format_version": FORMAT_VERSION, "out_dir": str(self.out_dir), "repo": self.repo, "url": self.url}


def push(out_dir: Path, repo: str, private: bool, needs_card: bool, progress: Progress) -> PushReport:
    """Upload `out_dir` to the model `repo`, which is made if there is none.

    First it is verified by its own records, and its model card has to say what was changed if `needs_card`. Raises
    `VerifyError` or `RecordError` if it is not fit, and `HubError` if the hub does not take it.
    """
    hub_id = HubId.parse(f"hf://{repo}")
    if hub_id is None or hub_id.revision:
        raise RecordError(f"{repo}: expected the name of a model on the hub, org/name")
    report = verify(None, out_dir, progress)
    if not report.ok:
        raise VerifyError(f"{out_dir}: is not pushed: {report.mismatches[0]}")
    card = out_dir / CARD_FILE
    if needs_card and not (card.is_file() and BEGIN in card.read_text("utf-8", errors="replace")):
        raise RecordError(f"{out_dir}: is not pushed: {CARD_FILE} does not say what fp8pad changed; see --no-card")
    with hub_errors(hub_id):
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=out_dir, commit_message="Pad with fp8pad")
    return PushReport(out_dir, repo, commit.commit_url)
