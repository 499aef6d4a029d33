"""Replace the outlines of the hub's files with the complete files while they are needed."""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.files import Advance, OpenFile, open_file, writing
from fp8pad.errors import HubError, OutputError
from fp8pad.hub.ids import hub_errors
from fp8pad.hub.repo import TEXTS, Beginning, HubFile, Repo, make_hole
from fp8pad.text import size

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a model, and where they are fetched to: `parts`, None for a temporary folder, or the hub's cache.

    `beginnings` are those that the plan was made from.
    """

    repo: Repo
    beginnings: Mapping[str, Beginning]
    parts: str | None
    use_cache: bool


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Puts complete files into the folder `root`, in place of their outlines, and removes them again."""

    files: HubFiles
    root: Path
    say: Callable[[str], object]

    @property
    def parts(self) -> Path:
        """The folder for fetched files."""
        return Path(self.files.parts) if self.files.parts else self.root.parent / "parts"

    @property
    def num_bytes(self) -> int:
        """Bytes that earlier runs have fetched."""
        return sum(part.stat().st_size for part in self.parts.iterdir()) if self.parts.is_dir() else 0

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
        part = self.parts / part_name(file)
        with hub_errors(self.files.repo.hub_id):
            cached = self._cached(file, advance)
            if cached is None:
                self._download(file, part, (lambda _: None) if name in TEXTS else advance)
            else:
                advance(self.fetched_bytes(name))
            self._check_beginning(name, cached or part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(cached or part.resolve())
        yield cached is None  # if the block raises, the fetched file stays for the next run
        if cached is None:
            part.unlink()
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

    def _download(self, file: HubFile, part: Path, advance: Advance) -> None:
        """Fetch the missing part of a file, and check the whole file against the hub's hash.

        The part that an earlier run left may be damaged, perhaps by a power loss: then the whole file is fetched again.
        """
        self.parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        was_begun = part.exists()
        self._check_space(file, part.stat().st_size if was_begun else 0)
        self.say(f"fetching {file.name} ({size(file.size)})")
        found = self._fetch(file, part, advance)
        if was_begun and found != file.hash:
            part.unlink()
            found = self._fetch(file, part, lambda _: None)
        if found != file.hash:
            part.unlink()
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
        needed_bytes, free_bytes = file.size - done_bytes, shutil.disk_usage(self.parts).free
        if needed_bytes > free_bytes:
            place, hint = self.parts, ""
            if not self.files.parts:
                place, hint = Path(tempfile.gettempdir()), "; set TMPDIR to a folder with more space"
            needs = f"{size(needed_bytes)} needed, {size(free_bytes)} free{hint}"
            raise OutputError(f"{place}: not enough disk space for {file.name}: {needs}")

    def _fetch(self, file: HubFile, part: Path, advance: Advance) -> str:
        """Fetch the missing part of a file; return the hash of the whole file, in hexadecimal."""
        digest = file.digest()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(part):
            descriptor = os.open(part, flags, 0o664)  # it may be hard-linked into the output
        with open(descriptor, "r+b", buffering=0) as opened_part:  # noqa: PTH123  a descriptor, not a path
            while chunk := opened_part.read(CHUNK_BYTES):
                digest.update(chunk)
                advance(len(chunk))
            target, offset = OpenFile(descriptor, str(part)), opened_part.tell()
            for chunk in self.files.repo.chunks(file.name, offset, file.size):
                target.write(offset, chunk)
                offset += len(chunk)
                digest.update(chunk)
                advance(len(chunk))
            with writing(part):
                os.fsync(descriptor)
        return digest.hexdigest()


def part_name(file: HubFile) -> str:
    """Return the name of a fetched file in the folder `parts`."""
    return hashlib.sha256(f"{file.name} {file.hash}".encode()).hexdigest()


def is_part(path: Path) -> bool:
    """Return whether a path is a fetched file, by its name and file type."""
    return re.fullmatch("[0-9a-f]{64}", path.name) is not None and path.is_file() and not path.is_symlink()
