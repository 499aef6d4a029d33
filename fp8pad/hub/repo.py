"""A model of the hub at one commit: its list of files, and ranges of their bytes, through huggingface_hub's client."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from fp8pad.checkpoint.files import FileIdentity, OpenFile, writing
from fp8pad.checkpoint.folder import INDEX_FILE, SHARD_SUFFIX, is_other_form, max_text_bytes
from fp8pad.checkpoint.headers import LENGTH_BYTES, MAX_HEADER_BYTES
from fp8pad.checkpoint.staging import MAX_NAME_BYTES
from fp8pad.errors import HubError, shown
from fp8pad.hub.ids import HubId
from fp8pad.record import CONFIG_FILE, MODELOPT_FILE, RECORD_FILE

TEXTS = frozenset({CONFIG_FILE, INDEX_FILE, RECORD_FILE, MODELOPT_FILE})  # fetched whole before anything else
FIRST_BYTES = 1 << 17  # of a shard: nearly every header is shorter
REQUESTS = 8  # at a time, while headers are fetched
RETRIED = (408, 429, 500, 502, 503, 504)  # huggingface_hub's default; its version 1.0 retried only 503
MAX_FILE_BYTES = 1 << 60  # more than file systems support
MAX_PATH_BYTES = 3000  # the kernel's limit is 4,095, including the folder above
MAX_FOLDERS = 100  # in each other; Python's makedirs calls itself for each level
ATTEMPTS = 5  # to fetch a file without receiving a new byte


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it: `hash` is its SHA-256 if it is stored in LFS or Xet, else git's hash (SHA-1)."""

    name: str
    size: int
    hash: str

    @property
    def identity(self) -> FileIdentity:
        """The identity of the file, the same in every run."""
        return FileIdentity.of_content(self.size, self.hash)

    def digest(self) -> "hashlib._Hash":
        """Return a hash object that gives `hash` after it is updated with all bytes of the file."""
        if len(self.hash) == hashlib.sha256().digest_size * 2:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The number of first bytes of a file that were fetched to plan, and their SHA-256."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Repo:
    """A model at one commit; its files are read at that commit even if its branch moves."""

    hub_id: HubId
    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, hub_id: HubId) -> "Repo":
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        try:
            info = HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
        except HFValidationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # the client does not check answers
            raise HubError(f"{hub_id}: the hub's answer cannot be read: {shown(error)}") from error
        if not _is_hash(info.sha):
            raise HubError(f"{hub_id}: expected the hub to name a commit, got {shown(info.sha)}")
        files: dict[str, HubFile] = {}
        for sibling in info.siblings or ():
            name = _safe_name(sibling.rfilename, hub_id)
            if name in files or name != sibling.rfilename:
                raise HubError(f"{hub_id}: lists {shown(name)} twice, or in two spellings: {shown(sibling.rfilename)}")
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            has_size = type(sibling.size) is int and 0 <= sibling.size < MAX_FILE_BYTES
            if not has_size or not _is_hash(digest):
                raise HubError(f"{hub_id}: {name}: the hub gives no size or no hash for it")
            files[name] = HubFile(name, sibling.size, digest)
        _check_folders(files.keys(), hub_id)
        return cls(hub_id, info.sha, files)

    def check(self, file: HubFile, found: str) -> None:
        """Raise `HubError` unless the hash `found` of a file's bytes is the hub's."""
        if found != file.hash:
            raise HubError(f"{self.hub_id}: {file.name}: {file.digest().name}: expected {file.hash}, got {found}")

    def outline(self, root: Path) -> dict[str, Beginning]:
        """Make a folder of the files: complete texts, headers of safetensors files, and holes of the right size.

        Returns what texts and shards begin with: the hub has hashes only of complete files.
        """
        with writing(root):
            root.mkdir()
        for file in self.files.values():
            make_hole(root / file.name, file.size)
        wanted = [file for file in self.files.values() if file.name in TEXTS or _has_header(file.name)]
        with ThreadPoolExecutor(REQUESTS) as pool:
            beginnings = pool.map(lambda file: self._fill(root / file.name, file), wanted)
            return {file.name: each for file, each in zip(wanted, beginnings, strict=True)}

    def _fill(self, path: Path, file: HubFile) -> Beginning:
        """Fetch a text, or the header of a shard, chunk by chunk: several at a time could need a lot of memory."""
        offset, end = 0, min(file.size, max_text_bytes(file.name) if file.name in TEXTS else FIRST_BYTES)
        first, sha256, digest = b"", hashlib.sha256(), file.digest()
        with writing(path):
            opened_outline = path.open("r+b", buffering=0)
        with opened_outline:
            outline = OpenFile(opened_outline.fileno(), str(path))
            while offset < end:
                for chunk in self.chunks(file.name, offset, end):
                    outline.write(offset, chunk)
                    offset += len(chunk)
                    first += chunk[: LENGTH_BYTES - len(first)]
                    sha256.update(chunk)
                    digest.update(chunk)
                header_end = LENGTH_BYTES + int.from_bytes(first, "little")
                if file.name not in TEXTS and header_end <= LENGTH_BYTES + MAX_HEADER_BYTES:
                    end = max(end, min(header_end, file.size))
        if offset == file.size:
            self.check(file, digest.hexdigest())
        return Beginning(offset, sha256.hexdigest())

    def chunks(self, file: str, begin: int, end: int) -> Iterator[bytes]:
        """Yield bytes `[begin, end)` of a file; if the connection breaks, the rest is requested again."""
        done, attempts = begin, 0
        while done < end:
            if attempts == ATTEMPTS:
                where = f"{self.hub_id}: {file}"
                raise HubError(f"{where}: ends early: expected {end - begin} bytes at {begin}, got {done - begin}")
            attempts += 1
            for chunk in self._some_chunks(file, done, end):
                yield chunk
                done, attempts = done + len(chunk), 0

    def _some_chunks(self, file: str, begin: int, end: int) -> Iterator[bytes]:
        """Yield bytes `[begin, end)`, or fewer if the connection breaks; more bytes from the server are ignored."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.errors import HfHubHTTPError, HTTPError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.hub_id.repo, file, revision=self.commit)
        options: dict[str, Any] = {"headers": headers, "follow_redirects": True, "timeout": HF_HUB_DOWNLOAD_TIMEOUT}
        with http_stream_backoff("GET", url, retry_on_status_codes=RETRIED, **options) as response:
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == 206 else begin  # the server ignored the range
            missing = end - begin
            try:
                for chunk in response.iter_bytes():
                    if wanted := chunk[skipped : skipped + missing]:
                        yield wanted
                    skipped, missing = max(0, skipped - len(chunk)), missing - len(wanted)
                    if not missing:  # whatever else the server sends
                        return
            except HfHubHTTPError:
                raise
            except HTTPError:
                return


def make_hole(path: Path, size: int) -> None:
    """Create a sparse file of `size` bytes, and folders above it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as hole:
            hole.truncate(size)


def _has_header(name: str) -> bool:
    return name.endswith(SHARD_SUFFIX) and not is_other_form(name)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value) is not None


def _safe_name(name: object, hub_id: HubId) -> str:
    """Return the name of a model's file; `HubError` if it leads out of the folder or a file system cannot take it."""
    path = PurePosixPath(name if isinstance(name, str) else "")
    parts = str(path).replace("\\", "/").split("/")  # as huggingface_hub does for Windows
    if path.is_absolute() or ".." in parts or "\0" in str(path) or not path.parts:
        raise HubError(f"{hub_id}: lists a file outside the repository: {shown(name)}")
    try:
        encoded = str(path).encode()
    except UnicodeEncodeError as error:
        raise HubError(f"{hub_id}: lists a file whose name is not UTF-8: {shown(name)}") from error
    if (
        len(encoded) > MAX_PATH_BYTES
        or len(parts) > MAX_FOLDERS
        or any(len(part) > MAX_NAME_BYTES for part in encoded.split(b"/"))
    ):
        raise HubError(f"{hub_id}: lists a file whose name is too long: {shown(name)}")
    return str(path)


def _check_folders(files: Collection[str], hub_id: HubId) -> None:
    """Raise `HubError` if a file is listed as the folder of another file."""
    in_order = sorted(files, key=lambda name: name.replace("/", "\0"))  # a folder comes right before its files
    for folder, name in pairwise(in_order):
        if name.startswith(f"{folder}/"):
            raise HubError(f"{hub_id}: lists {shown(folder)} as a file, and as the folder of {shown(name)}")
