"""Push a converted checkpoint to the hub, if it verifies and its model card says what was changed."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8pad.card import BEGIN
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.folder import INDEX_FILE, is_shard, leads_out
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint
from fp8pad.errors import HubError, RecordError, UsageError, VerifyError
from fp8pad.hub.ids import HubId, hub_errors
from fp8pad.hub.repo import Repo
from fp8pad.record import CARD_FILE, RECORD_FILE, REPORT_VERSION
from fp8pad.verification import verify


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was pushed, the URL of the commit, which files of the folder were not uploaded, and notes of `verify`."""

    out_dir: Path
    repo: str
    url: str
    excluded: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad push --json` prints."""
        return {
            "format_version": REPORT_VERSION,
            "out_dir": str(self.out_dir),
            "repo": self.repo,
            "url": self.url,
            "files_left_out": list(self.excluded),
            "notes": list(self.notes),
        }


def push(out_dir: Path, repo: str, private: bool, needs_card: bool, progress: Progress) -> PushReport:
    """Upload what fp8pad wrote to `out_dir` to the model repository `repo`, which is created if it does not exist.

    First the checkpoint is verified against its own records; if `needs_card`, its model card must say what was changed.
    Raises `UsageError` if `repo` is not a name, `VerifyError` or `RecordError` if a check fails, and `HubError` if the
    upload does, cannot succeed without a login, or would leave other weights beside these: nothing is deleted.
    """
    hub_id = HubId.parse(f"hf://{repo}")
    if hub_id is None or hub_id.revision:
        raise UsageError(f"{repo}: expected the name of a model on the hub, org/name")
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    except ImportError as error:
        raise HubError("push needs huggingface_hub: pip install 'huggingface_hub>=1.0'") from error
    if not (out_dir / RECORD_FILE).exists() and read_checkpoint(out_dir).read_record() is None:
        hint = f"convert it first; an equal copy is published with `hf upload {repo} {shlex.quote(str(out_dir))}`"
        raise RecordError(f"{out_dir}: has no {RECORD_FILE}, so it is not a converted checkpoint; {hint}")
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo}: nothing can be pushed: offline mode is on (HF_HUB_OFFLINE)")
    if get_token() is None:
        raise HubError(f"{repo}: not logged in: run `hf auth login`")
    report = verify(None, out_dir, progress)
    if not report.ok:
        raise VerifyError(f"{out_dir}: is not pushed: {report.mismatches[0]}")
    card = out_dir / CARD_FILE
    if needs_card and not (card.is_file() and BEGIN in card.read_text("utf-8", errors="replace")):
        raise RecordError(f"{out_dir}: is not pushed: {CARD_FILE} does not say what fp8pad changed; see --no-card")
    converted = read_checkpoint(out_dir)
    files = _files_to_push(converted)
    for note in report.notes:
        progress.say(note)
    with hub_errors(hub_id):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if others := sorted(filter(_is_weights, Repo.of(hub_id).files.keys() - {*files})):
            raise HubError(
                f"{repo}: has other weights, which engines would load too, or instead: {', '.join(others[:3])}"
                f"{', ...' if len(others) > 3 else ''}; delete them there first, or push to another repository"
            )
        added = [CommitOperationAdd(file, str(out_dir / file)) for file in files]
        commit = api.create_commit(repo, added, commit_message="Pad with fp8pad")
    excluded = {*converted.identities, *converted.excluded} - {*files}
    return PushReport(out_dir, repo, commit.commit_url, tuple(sorted(excluded)), report.notes)


def _files_to_push(converted: Checkpoint) -> list[str]:
    """Return the files fp8pad.json names, itself and the model card; `VerifyError` for a link out of the folder."""
    record = converted.read_record()
    known = {*(record.files if record else ()), RECORD_FILE, CARD_FILE}
    for file in sorted(known & {*converted.identities, *converted.excluded}):
        if leads_out(converted.root, file):
            target = (converted.root / file).resolve()
            raise VerifyError(f"{converted.root}: is not pushed: {file}: is a link out of the folder, to {target}")
    return sorted(known & converted.identities.keys())


def _is_weights(file: str) -> bool:
    """Return whether engines load a file by its name as weights of the model, or as the list of them."""
    return file == INDEX_FILE or (is_shard(file) and not file.startswith("adapter_"))
