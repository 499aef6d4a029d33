"""Replace the outlines of the hub's files with the complete files while they are needed.

Only the hub's cache is filled by huggingface_hub's own download. As of 2.4 that begins an interrupted file again, gives
up at a status of 5xx, stores whatever a server sends, compares no hashes, and with hf_xet cannot be stopped from
another thread: an exception of its progress bar is only logged.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.files import Advance, OpenFile, open_file, writing
from fp8pad.checkpoint.staging import key_of
from fp8pad.errors import HubError, OutputError
from fp8pad.hub.ids import hub_errors
from fp8pad.hub.repo import TEXTS, Beginning, HubFile, Repo, make_hole
from fp8pad.text import size

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a model, and where they are fetched to: the folder `downloads` or the hub's cache.

    `downloads` is None for a temporary folder; `beginnings` are those that the plan was made from.
    """

    repo: Repo
    beginnings: Mapping[str, Beginning]
    downloads: str | None
    use_cache: bool


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Puts complete files into the folder `root`, in place of their outlines, and removes them again."""

    files: HubFiles
    root: Path
    say: Callable[[str], object]

    @property
    def downloads(self) -> Path:
        """The folder for fetched files."""
        return Path(self.files.downloads) if self.files.downloads else self.root.parent / "downloads"

    @property
    def num_bytes(self) -> int:
        """Bytes that earlier runs have fetched."""
        return sum(file.stat().st_size for file in self.downloads.iterdir()) if self.downloads.is_dir() else 0

    def fetched_bytes(self, name: str) -> int:
        """Return the number of bytes that `fetched` reports to `advance`."""
        file = self.files.repo.files.get(name)
        return 0 if file is None or name in TEXTS else file.size

    @contextmanager
    def fetched(self, name: str, advance: Advance) -> Iterator[bool]:
        """Provide the complete file `name` inside the `with` block; yield whether it is a temporary copy."""
        file, path = self.files.repo.files.get(name), self.root / name
        if file is None or (name in TEXTS and path.exists()):
            yield False
            return
        download, advance = self.downloads / download_name(file), (lambda _: None) if name in TEXTS else advance
        with hub_errors(self.files.repo.hub_id):
            cached = self._cached(file, advance)
            if cached is None:
                self._download(file, download, advance)
            else:
                advance(file.size)
            self._check_beginning(name, cached or download)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(cached or download.resolve())
        yield cached is None  # if the block raises, the fetched file stays for the next run
        if cached is None:
            download.unlink()
        path.unlink()
        make_hole(path, file.size)

    def _cached(self, file: HubFile, advance: Advance) -> Path | None:
        """Return the path of a file in the hub's cache, None if it is not there and not to be fetched into it.

        A file that is there already is trusted. One fetched now is hashed, and removed if wrong or if `advance` raises.
        """
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        repo, commit = self.files.repo.hub_id.repo, self.files.repo.commit
        found = try_to_load_from_cache(repo, file.name, revision=commit)
        if isinstance(found, str) and Path(found).stat().st_size == file.size:  # else it was cut short
            return Path(found).resolve()
        if not self.files.use_cache:
            return None
        try:
            link = Path(hf_hub_download(repo, file.name, revision=commit))
        except OSError as error:
            if error.errno is None or isinstance(error, ConnectionError):  # a network error, which hub_errors reports
                raise
            where = f"{constants.HF_HUB_CACHE}: cannot be written"
            raise OutputError(f"{where}: {error.strerror}, while fetching {file.name}") from error
        blob, digest, is_right = link.resolve(), file.digest(), False
        try:
            with blob.open("rb") as fetched:
                while chunk := fetched.read(CHUNK_BYTES):
                    digest.update(chunk)
                    advance(0)  # raises if another shard has failed, or on Ctrl-C
            is_right = digest.hexdigest() == file.hash
        finally:
            if not is_right:
                link.unlink()
                blob.unlink(missing_ok=True)
        self.files.repo.check(file, digest.hexdigest())
        return blob

    def _download(self, file: HubFile, path: Path, advance: Advance) -> None:
        """Fetch the missing part of a file, and check the whole file against the hub's hash.

        The part that an earlier run left may be damaged, perhaps by a power loss: then the whole file is fetched again.
        """
        self.downloads.mkdir(mode=0o700, parents=True, exist_ok=True)
        was_begun = path.exists()
        self._check_space(file, path.stat().st_size if was_begun else 0)
        self.say(f"fetching {file.name} ({size(file.size)})")
        found = self._fetch(file, path, advance)
        if was_begun and found != file.hash:
            path.unlink()
            found = self._fetch(file, path, lambda _: None)
        if found != file.hash:
            path.unlink()
        self.files.repo.check(file, found)

    def _check_beginning(self, name: str, path: Path) -> None:
        """Raise `HubError` if a complete file does not begin with the bytes that the plan was made from."""
        planned = self.files.beginnings.get(name)
        if planned:
            with open_file(path, name) as whole:
                found = hashlib.sha256(whole.read(0, planned.num_bytes)).hexdigest()
            if found != planned.sha256:
                raise HubError(f"{self.files.repo.hub_id}: {name}: its header differs from the first one sent")

    def _check_space(self, file: HubFile, done_bytes: int) -> None:
        needed_bytes, free_bytes = file.size - done_bytes, shutil.disk_usage(self.downloads).free
        if needed_bytes > free_bytes:
            place, hint = self.downloads, ""
            if not self.files.downloads:
                place, hint = Path(tempfile.gettempdir()), "; set TMPDIR to a folder with more space"
            needs = f"{size(needed_bytes)} needed, {size(free_bytes)} free{hint}"
            raise OutputError(f"{place}: not enough disk space for {file.name}: {needs}")

    def _fetch(self, file: HubFile, path: Path, advance: Advance) -> str:
        """Fetch the missing part of a file; return the hash of the whole file, in hexadecimal."""
        digest = file.digest()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(path):
            descriptor = os.open(path, flags, 0o664)  # it may be hard-linked into the output
        with open(descriptor, "r+b", buffering=0) as opened:  # noqa: PTH123  a descriptor, not a path
            while chunk := opened.read(CHUNK_BYTES):
                digest.update(chunk)
                advance(len(chunk))
            target, offset = OpenFile(descriptor, str(path)), opened.tell()
            for chunk in self.files.repo.chunks(file.name, offset, file.size):
                target.write(offset, chunk)
                offset += len(chunk)
                digest.update(chunk)
                advance(len(chunk))
            with writing(path):
                os.fsync(descriptor)
        return digest.hexdigest()


def download_name(file: HubFile) -> str:
    """Return the name of a fetched file in the folder `downloads`, which is one of a staging folder (`is_staged`)."""
    return f"{key_of(file.name, file.hash)}.unfinished"
