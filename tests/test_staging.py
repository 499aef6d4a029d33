# ruff: noqa: PT012 - what is raised has to be raised while the folder is held
"""Staging: what is visible while a checkpoint grows, what is found again, and how it takes its place."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from helpers import files_of

from fp8pad.checkpoint import staging as staging_module
from fp8pad.checkpoint.staging import Staging
from fp8pad.errors import OutputError

HIDDEN = ".out.fp8pad"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """The staging folder of a destination that does not exist yet."""
    return Staging.beside(tmp_path / "out")


def names(folder: Path) -> list[str]:
    """Return what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_is_beside_its_destination_and_found_by_name(staging: Staging, tmp_path: Path) -> None:
    """On the same file system, so that it can be renamed, and hidden; nothing is created before it is held."""
    assert staging.root == tmp_path / HIDDEN
    assert names(tmp_path) == []


def test_publishing_gives_shards_their_names_and_leaves_nothing_else(staging: Staging, tmp_path: Path) -> None:
    """Before, no file in the folder ends as a shard does."""
    with staging.held(resume=True):
        staged = staging.staged("model.safetensors", "0a1b")
        staged.write_text("data")
        (staging.files / "sub").mkdir()
        (staging.files / "sub" / "config.json").write_text("{}")
        assert not list(staging.root.rglob("*.safetensors"))
        assert not staging.unfinished("model.safetensors").name.endswith(".safetensors")
        staging.publish({"model.safetensors": staged}, overwrite=False)
    assert names(tmp_path) == ["out"]
    assert files_of(tmp_path / "out") == {"model.safetensors": b"data", "sub/config.json": b"{}"}


def test_an_error_removes_everything(staging: Staging, tmp_path: Path) -> None:
    """Finished shards included: a full disk must not stay full."""
    with pytest.raises(OutputError, match="full"), staging.held(resume=True):
        staging.staged("x", "0").write_text("data")
        raise OutputError("full")
    assert names(tmp_path) == []


def test_an_interrupted_run_keeps_its_finished_shards(staging: Staging, tmp_path: Path) -> None:
    """The next run takes them up, and removes what is not among those it can use."""
    with pytest.raises(KeyboardInterrupt), staging.held(resume=True):
        staging.staged("x", "0").write_text("data")
        staging.staged("y", "0").write_text("data")
        staging.unfinished("z").write_text("da")
        (staging.files / "sub").mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == [HIDDEN]
    assert names(staging.root) == ["lock", "staged"]
    assert staging.num_bytes == 8
    with pytest.raises(KeyboardInterrupt), staging.held(resume=True):
        staging.keep_only({staging.staged("y", "0")})
        assert names(staging.root / "staged") == ["y.0.staged"]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), staging.held(resume=False):
        assert names(staging.root / "staged") == []
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_two_runs_cannot_write_to_one_destination(staging: Staging, tmp_path: Path) -> None:
    """The second one is refused and harms nothing; a lock file that a killed run left does not count."""
    staging.root.mkdir()
    (staging.root / "lock").write_text("")
    with staging.held(resume=True):
        staging.staged("x", "0").write_text("data")
        with pytest.raises(OutputError, match="another fp8pad"), staging.held(resume=False):
            pytest.fail("both hold it")
        assert names(staging.root / "staged") == ["x.0.staged"]
        staging.publish({}, overwrite=False)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_lock_that_its_holder_removed_is_taken_again(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """Between opening and locking, the holder may finish: then the lock file that was opened counts no more."""
    flock = fcntl.flock
    calls: list[int] = []

    def locked_late(descriptor: int, operation: int) -> None:
        if not calls:
            (staging.root / "lock").unlink()
            if is_new:
                (staging.root / "lock").write_text("")
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with staging.held(resume=True):
        assert len(calls) == 2
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_written_to_all_the_same(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems know none."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staging.held(resume=True):
        staging.publish({}, overwrite=False)
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_gives_way(staging: Staging, tmp_path: Path) -> None:
    """It may have been made for the purpose."""
    (tmp_path / "out").mkdir()
    with staging.held(resume=True):
        (staging.files / "new").write_text("")
        staging.publish({}, overwrite=False)
    assert names(tmp_path / "out") == ["new"]


def test_a_folder_that_was_filled_meanwhile_does_not(staging: Staging, tmp_path: Path) -> None:
    """What appeared while the checkpoint was written is not replaced unasked."""
    with pytest.raises(OutputError, match="not empty"), staging.held(resume=True):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("")
        staging.publish({}, overwrite=False)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replacing_leaves_only_the_new_folder(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    """In one step where the kernel can, in two elsewhere."""
    if not can_exchange:
        monkeypatch.setattr(staging_module, "_exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    with staging.held(resume=True):
        (staging.files / "new").write_text("")
        staging.publish({}, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_leaves_the_old_folder(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the two renames fails, the old folder is in its place afterwards."""
    rename, calls = os.rename, []

    def rename_or_fail(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise PermissionError(13, "Permission denied")
        rename(*paths)

    monkeypatch.setattr(staging_module, "_exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    with pytest.raises(OutputError, match="Permission denied"), staging.held(resume=True):
        monkeypatch.setattr(os, "rename", rename_or_fail)
        staging.publish({}, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_replacement_that_was_killed_half_way_is_undone_or_finished(
    staging: Staging, tmp_path: Path, is_replaced: bool
) -> None:
    """The old folder comes back if nothing took its place, and goes if something did."""
    (staging.root / "replaced").mkdir(parents=True)
    (staging.root / "replaced" / "old").write_text("")
    if is_replaced:
        (tmp_path / "out").mkdir()
    with staging.held(resume=True):
        assert names(tmp_path / "out") == ([] if is_replaced else ["old"])
    assert names(tmp_path) == ["out"]


def test_a_file_in_the_way_is_an_error_that_names_it(staging: Staging) -> None:
    """Somebody else's file is not removed."""
    staging.root.write_text("mine")
    with pytest.raises(OutputError, match=HIDDEN), staging.held(resume=True):
        pytest.fail("it is a file")
    assert staging.root.read_text() == "mine"


def test_parents_are_created(tmp_path: Path) -> None:
    """As deep as they are asked for."""
    staging = Staging.beside(tmp_path / "a" / "b" / "out")
    with staging.held(resume=True):
        staging.publish({}, overwrite=False)
    assert names(tmp_path / "a" / "b") == ["out"]
