"""Checkpoints by hub id: a folder with the names and sizes of the hub's files, of which headers and texts are fetched.

`plan` needs no more. The rest of a file is a hole until `Checkpoint.fetched` asks for it, and one again afterwards, so
that a conversion needs the disk for its output and for the shards that it works on. The next run reuses what was
fetched in part. Requests go through huggingface_hub, and so do tokens, HF_ENDPOINT, retries and offline mode.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fp8pad.checkpoint.checkpoint import OPTIONAL_CONFIG_FILES, Checkpoint
from fp8pad.checkpoint.destination import existing_parent
from fp8pad.checkpoint.files import FileIdentity, writing
from fp8pad.checkpoint.folder import INDEX_FILE, MAX_TEXT_BYTES, SHARD_SUFFIX, is_other_form
from fp8pad.checkpoint.headers import LENGTH_BYTES, MAX_HEADER_BYTES
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import CheckpointError, HubError, OutputError
from fp8pad.record import CONFIG_FILE, RECORD_FILE

if TYPE_CHECKING:
    import hashlib as hashes

TEXTS = frozenset({CONFIG_FILE, INDEX_FILE, RECORD_FILE, *OPTIONAL_CONFIG_FILES, "adapter_config.json"})
FIRST_BYTES = 1 << 17  # of a shard: nearly every header is shorter
REQUESTS = 8  # at a time, while headers are fetched
ATTEMPTS = 5  # of fetching a file, without a byte more than before
CHUNK_BYTES = 1 << 20

Read = Callable[[Path], Checkpoint]


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the hub; `revision` is a branch, a tag or a commit, None the main branch."""

    repo: str
    revision: str | None

    @classmethod
    def parse(cls, model: str | os.PathLike[str]) -> "HubId | None":
        """Return the hub id that `model` is, None if it is a folder; a folder of that name is one."""
        text = os.fspath(model)
        is_url = re.match(r"hf:/+", text)
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text[is_url.end() :] if is_url else text)
        if match is None or (not is_url and (Path(text).exists() or text.startswith((".", "/")))):
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it: `hash` is its SHA-256 if the hub keeps it apart (LFS, Xet), else that of git."""

    name: str
    size: int
    hash: str
    is_sha256: bool

    @property
    def identity(self) -> FileIdentity:
        """The identity of the file, in this run and in the next."""
        return FileIdentity.of_content(self.size, self.hash)

    def digest(self) -> "hashes._Hash":
        """Return a digest that is `hash` once all bytes of the file are in it."""
        if self.is_sha256:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


@contextmanager
def opened(
    model: str | os.PathLike[str],
    read: Read,
    work_dir: Path | None = None,
    use_cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[Checkpoint]:
    """Yield the checkpoint that `model` names, a folder or a hub id, read by `read`.

    Files of the hub are fetched into its cache if `use_cache`, else into `work_dir`, which is made as needed and
    removed afterwards, unless the work in here fails after a file was begun; without one, into a temporary folder.
    Raises `HubError` if the hub cannot be reached or has no such model, and what `read` raises.
    """
    hub_id = HubId.parse(model)
    if hub_id is None:
        yield read(Path(model))
        return
    with hub_errors(hub_id):
        found = _Repo.of(hub_id) if not _is_offline() else _from_cache(hub_id)
    if isinstance(found, Path):
        yield replace(read(found), name=str(hub_id))
        return
    with tempfile.TemporaryDirectory(prefix="fp8pad-") as temporary, _work_folder(work_dir, temporary) as parts:
        root = Path(temporary, "model")
        with hub_errors(hub_id):
            found.outline(root)
        try:
            checkpoint = read(root)
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(root), str(hub_id))) from error
        remote = _Fetcher(found, hub_id, root, parts, use_cache, progress or Progress())
        identities = {name: found.files[name].identity for name in checkpoint.identities}
        yield replace(checkpoint, name=str(hub_id), remote=remote, identities=identities)


@contextmanager
def _work_folder(work_dir: Path | None, temporary: str) -> Iterator[Path]:
    """Yield where files are fetched to; it is removed at the end, unless files that were begun help the next run."""
    parts = work_dir or Path(temporary, "parts")
    if parts.is_symlink() or (parts.exists() and not _is_ours(parts)):
        raise OutputError(f"{parts}: is not a folder that only you may write to; remove it")
    try:
        yield parts
    except BaseException:
        if parts.is_dir() and not any(parts.iterdir()):
            parts.rmdir()
        raise
    if parts.is_dir():
        shutil.rmtree(parts)


def work_folder(out_dir: Path) -> Path:
    """Return where files are fetched to while `out_dir` is written: on the same disk, in a folder that exists."""
    target = out_dir.absolute()
    return existing_parent(target) / f".{target.name}.fp8pad-hub"


def _is_ours(folder: Path) -> bool:
    status = folder.lstat()
    return folder.is_dir() and status.st_uid == os.getuid() and not status.st_mode & 0o022


@dataclass(frozen=True, slots=True)
class _Repo:
    """A model at one commit; whatever its branch becomes meanwhile, files of this commit are read."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, hub_id: HubId) -> "_Repo":
        from huggingface_hub import HfApi

        info = HfApi().model_info(hub_id.repo, revision=hub_id.revision, files_metadata=True)
        files: dict[str, HubFile] = {}
        for sibling in info.siblings or ():
            name = _safe_name(sibling.rfilename, hub_id)
            digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
            if sibling.size is None or not re.fullmatch("[0-9a-f]{40,64}", digest):
                raise HubError(f"{hub_id}: {name}: the hub tells no size or no hash of it")
            files[name] = HubFile(name, sibling.size, digest, sibling.lfs is not None)
        return cls(hub_id.repo, info.sha or hub_id.revision or "main", files)

    def outline(self, root: Path) -> None:
        """Make a folder of the files: texts whole, headers of safetensors, and holes of the right size."""
        for file in self.files.values():
            path = root / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_hole(path, file.size)
        wanted = [file for file in self.files.values() if _is_text(file.name) or _has_header(file.name)]
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(lambda file: self._fill(root / file.name, file), wanted))

    def _fill(self, path: Path, file: HubFile) -> None:
        if _is_text(file.name):
            data = self.read(file.name, 0, min(file.size, MAX_TEXT_BYTES))
        else:
            data = self.read(file.name, 0, min(file.size, FIRST_BYTES))
            end = min(LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little"), file.size)
            if len(data) < end <= LENGTH_BYTES + MAX_HEADER_BYTES:
                data += self.read(file.name, len(data), end)
        with path.open("r+b") as opened_file:
            opened_file.write(data)

    def read(self, file: str, begin: int, end: int) -> bytes:
        """Read bytes `[begin, end)` of a file."""
        data = b""
        for _ in range(ATTEMPTS):
            for chunk in self.chunks(file, begin + len(data), end):
                data += chunk[: end - begin - len(data)]
            if len(data) == end - begin:
                return data
        raise HubError(f"{self.repo}: {file}: ends early: expected {end - begin} bytes at {begin}, got {len(data)}")

    def chunks(self, file: str, begin: int, end: int) -> Iterator[bytes]:
        """Yield bytes `[begin, end)` of a file, or less where the connection is cut."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.errors import HfHubHTTPError, HTTPError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        if begin >= end:
            return
        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repo, file, revision=self.commit)
        options: dict[str, Any] = {"headers": headers, "follow_redirects": True, "timeout": HF_HUB_DOWNLOAD_TIMEOUT}
        with http_stream_backoff("GET", url, **options) as response:
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == 206 else begin  # a server that does not know ranges
            try:
                for chunk in response.iter_bytes():
                    yield chunk[skipped:]
                    skipped = max(0, skipped - len(chunk))
            except HfHubHTTPError:
                raise
            except HTTPError:
                return


@dataclass(frozen=True, slots=True)
class _Fetcher:
    """Puts whole files in the place of their outlines, and takes them away again."""

    repo: _Repo
    hub_id: HubId
    root: Path
    parts: Path
    use_cache: bool
    progress: Progress

    @contextmanager
    def fetched(self, name: str) -> Iterator[bool]:
        """Have the file `name` whole in here; whether it is a copy of our own."""
        file = self.repo.files.get(name)
        if file is None or _is_text(name):
            yield False
            return
        part, path = self.parts / file.hash, self.root / name
        with hub_errors(self.hub_id):
            cached = self._cached(name)
            if cached is None:
                self._download(file, part)
        path.unlink()
        path.symlink_to(cached or part.resolve())
        yield cached is None  # what was fetched stays for the next run if this one fails in here
        if cached is None:
            part.unlink()
        path.unlink()
        _make_hole(path, file.size)

    def remember(self, key: str, sha256: str, source_sha256: str) -> None:
        """Note the hashes of a file that was written, beside what is fetched."""
        self.parts.mkdir(mode=0o700, exist_ok=True)
        note = self._note(key)
        note.with_suffix(".new").write_text(f"{sha256} {source_sha256}")
        note.with_suffix(".new").replace(note)

    def recall(self, key: str) -> tuple[str, str] | None:
        """Return what was noted."""
        try:
            sha256, source_sha256 = self._note(key).read_text().split()
        except (OSError, ValueError):
            return None
        return sha256, source_sha256

    def _note(self, key: str) -> Path:
        return self.parts / f"{hashlib.sha256(key.encode()).hexdigest()}.note"

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        found = try_to_load_from_cache(self.repo.repo, name, revision=self.repo.commit)
        if isinstance(found, str):
            return Path(found).resolve()
        if not self.use_cache:
            return None
        return Path(hf_hub_download(self.repo.repo, name, revision=self.repo.commit)).resolve()

    def _download(self, file: HubFile, part: Path) -> None:
        """Fetch what is missing of a file, and check the hub's own hash of all of it."""
        self.parts.mkdir(mode=0o700, exist_ok=True)
        self.progress.say(f"fetching {file.name} ({file.size} bytes)")
        digest = file.digest()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(part):
            descriptor = os.open(part, flags, 0o600)
        with open(descriptor, "r+b", buffering=0) as opened_part:  # noqa: PTH123  a descriptor, not a path
            while chunk := opened_part.read(CHUNK_BYTES):
                digest.update(chunk)
            attempts = 0
            while opened_part.tell() < file.size and attempts < ATTEMPTS:
                begin = opened_part.tell()
                for chunk in self.repo.chunks(file.name, begin, file.size):
                    with writing(part):
                        _write(opened_part, chunk)
                    digest.update(chunk)
                attempts = attempts + 1 if opened_part.tell() == begin else 0
            num_bytes = opened_part.tell()
        if num_bytes < file.size:
            raise HubError(f"{self.hub_id}: {file.name}: ends early: expected {file.size} bytes, got {num_bytes}")
        if digest.hexdigest() != file.hash:
            part.unlink()
            raise HubError(f"{self.hub_id}: {file.name}: {digest.name}: expected {file.hash}, got {digest.hexdigest()}")


def _write(opened_file: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[opened_file.write(view) :]


def _make_hole(path: Path, size: int) -> None:
    with writing(path), path.open("wb") as hole:
        hole.truncate(size)


def _is_text(name: str) -> bool:
    return PurePosixPath(name).name in TEXTS


def _has_header(name: str) -> bool:
    return name.endswith(SHARD_SUFFIX) and not is_other_form(name)


def _safe_name(name: str, hub_id: HubId) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise HubError(f"{hub_id}: lists a file that lies outside of it: {name!r}")
    return str(path)


def _is_offline() -> bool:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise HubError("huggingface_hub is not installed") from error
    return bool(constants.is_offline_mode())


def _from_cache(hub_id: HubId) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id.repo, revision=hub_id.revision, local_files_only=True))


@contextmanager
def hub_errors(hub_id: HubId) -> Iterator[None]:
    """Say in a line what the hub answered, or that it did not."""
    try:
        from huggingface_hub import constants, errors
    except ImportError as error:
        hint = "to read a model of the hub, install huggingface_hub"
        raise HubError(f"{hub_id}: no such folder; {hint}") from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{hub_id}: is gated; accept its terms on {constants.ENDPOINT}, and `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        hint = "if it is private, `hf auth login`"
        raise HubError(f"{hub_id}: no such folder, and no such model on {constants.ENDPOINT}; {hint}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{hub_id}: there is no revision {hub_id.revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{hub_id}: offline mode is on, and not all of it is in the cache") from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"{hub_id}: {_first_line(error)}") from error
    except (errors.HTTPError, errors.HFValidationError, ConnectionError) as error:
        raise HubError(f"{hub_id}: {constants.ENDPOINT} cannot be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
