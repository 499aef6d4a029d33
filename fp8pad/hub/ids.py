"""Hub ids, and readable messages for the hub's errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8pad.errors import CheckpointError, HubError


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the hub; `revision` is a branch, a tag or a commit, or None for the main branch."""

    repo: str
    revision: str | None

    @classmethod
    def parse(cls, model: str | os.PathLike[str]) -> "HubId | None":
        """Parse a hub id; return None if `model` is a path, or if a folder of that name exists."""
        text = os.fspath(model)
        is_url = re.match(r"hf:/+", text)
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text[is_url.end() :] if is_url else text)
        if match is None or (not is_url and (Path(text).exists() or text.startswith((".", "/")))):
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def check_path(model: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` if a path that is no hub id does not exist: `./a/b`, a URL, or a bare name."""
    text = re.sub(r"^(\w+):/+", r"\1://", os.fspath(model))  # pathlib merges slashes
    if not Path(model).exists():
        is_path = text.startswith((".", "/", "~")) or (text.endswith("/") and "://" not in text)
        hint = "" if is_path else "; models on the hub are named ORG/NAME"
        raise CheckpointError(f"{text}: no such folder{hint}")


@contextmanager
def hub_errors(hub_id: HubId, or_folder: bool = False) -> Iterator[None]:
    """Turn errors of the hub's client into one-line `HubError`s; `or_folder` if a folder may have been meant."""
    begin = f"{hub_id}: no such folder, and on the hub: " if or_folder else f"{hub_id}: "
    try:
        from huggingface_hub import constants, errors
    except ImportError as error:
        hint = "models on the hub need huggingface_hub: pip install 'huggingface_hub>=1.0'"
        no_folder = "no such folder; " if or_folder else ""
        raise HubError(f"{hub_id}: {no_folder}{hint}") from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{hub_id}: is gated; accept its terms on {constants.ENDPOINT} and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = "if it is private, run `hf auth login`"
        no_folder = "no such folder, and " if or_folder else ""
        raise HubError(f"{hub_id}: {no_folder}no such model on {constants.ENDPOINT}; {hint}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{hub_id}: there is no revision {hub_id.revision or 'main'}") from error
    except errors.LocalEntryNotFoundError as error:
        cause = "offline mode is on" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise HubError(f"{begin}{cause}, and the model is not completely in the cache") from error
    except errors.HfHubHTTPError as error:
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())  # the hub's reason is last
        is_denied = error.response is not None and error.response.status_code in (401, 403)
        hint = "; run `hf auth login` with a token that may do this" if is_denied else ""
        raise HubError(f"{begin}{said or type(error).__name__}{hint}") from error
    except errors.HFValidationError as error:
        raise HubError(f"{begin}is not the name of a model: {_first_line(error)}") from error
    except (errors.HTTPError, ConnectionError) as error:
        raise HubError(f"{begin}{constants.ENDPOINT} cannot be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
