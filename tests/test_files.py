"""Open files: a file that was read once must not change."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import llama

from fp8pad.checkpoint.files import open_file
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import CheckpointError
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy


def append(path: Path) -> None:
    """Make a file longer."""
    with path.open("ab") as file:
        file.write(b"x")


def replace(path: Path) -> None:
    """Replace a file with another one of the same bytes and times."""
    status, content = path.stat(), path.read_bytes()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def overwrite(path: Path) -> None:
    """Write different bytes of the same length."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


CHANGES = [append, replace, overwrite]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_changed_between_two_readings_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, change: Callable[[Path], None]
) -> None:
    """The identity of a file is taken when it is read, and compared when it is opened again and at the end."""
    model = llama(tmp_path / "model")
    for path in model.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    change(model / file)
    with pytest.raises(CheckpointError, match=f"{file}: was changed while it was being read"):
        convert(PlanReport(source, plan, card=False), tmp_path / "out", WriteOptions(), Progress())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_is_stamped_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """A change right after the bytes were read is noticed too."""
    model = llama(tmp_path / "model")
    os.utime(model / file, ns=(10**18, 10**18))
    before, read = (model / file).stat(), os.preadv

    def read_then_change(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = read(descriptor, buffers, offset)
        if os.path.samestat(os.fstat(descriptor), before):
            os.utime(model / file)
        return count

    monkeypatch.setattr(os, "preadv", read_then_change)
    source = read_unconverted(model)
    assert source.identities[file].mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Opening a pipe for reading would block, and opening some devices has side effects."""
    path = tmp_path / "config.json"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            monkeypatch.chdir(tmp_path)  # the path of a socket must be short
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/null")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(CheckpointError, match=r"config\.json: expected a regular file"), open_file(path, path.name):
        pytest.fail("it was opened")


def test_what_became_a_device_before_it_was_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be replaced between the check and the opening."""
    path, open_path = tmp_path / "config.json", os.open
    path.write_text("{}")

    def swap_then_open(*arguments: Any) -> int:
        path.unlink()
        path.symlink_to("/dev/zero")
        return open_path(*arguments)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(CheckpointError, match=r"config\.json: expected a regular file"), open_file(path, path.name):
        pytest.fail("it was taken for a file")
