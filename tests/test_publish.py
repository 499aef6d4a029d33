"""Publication: how a complete folder replaces the destination, and what happens to what was there."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import files_of, llama
from test_staging import HIDDEN, names, stage

import fp8pad
from fp8pad.checkpoint.directory import Directory
from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.publish import is_published, publish, recover
from fp8pad.checkpoint.staging import Staging
from fp8pad.errors import OutputError

NEW = {"sub/deep/config.json": b"data", "model.safetensors": b"data", "config.json": b"data"}
KEYS = {"model.safetensors": "a", "sub/deep/config.json": "b", "config.json": "c"}


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Staging]:
    """Hold a staging folder in which a shard and two other files are complete."""
    with hold_staging(tmp_path / "out") as held:
        for key in KEYS.values():
            stage(held, key, is_resumable=key == "a")
        yield held


@pytest.fixture(params=["exchanging", "renaming twice"])
def replacing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with a file system that can exchange folders, and with one that cannot."""
    if request.param != "exchanging":
        monkeypatch.setattr(Directory, "exchange", lambda *_: False)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines that a run prints while it works."""
    lines: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, line: lines.append(line))
    return lines


def fill(folder: Path, *files: str) -> Path:
    """Write files that contain their own names."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    return folder


def test_files_get_their_names_at_once(staging: Staging, tmp_path: Path) -> None:
    """The folder appears complete, with subfolders; nothing is left once the run's own files are removed."""
    assert publish(staging, KEYS, overwrite=False, folder_mode=lambda _: 0o755) is None
    assert is_published(staging)
    recover(staging)
    staging.remove()
    assert names(tmp_path) == ["out"]
    assert files_of(tmp_path / "out") == NEW


def test_an_empty_folder_gives_way(staging: Staging, tmp_path: Path) -> None:
    """The user may have created it for the output."""
    (tmp_path / "out").mkdir()
    publish(staging, KEYS, overwrite=False, folder_mode=lambda _: 0o755)
    assert files_of(tmp_path / "out") == NEW


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_appeared_meanwhile_does_not(staging: Staging, tmp_path: Path, what: str) -> None:
    """Nothing is replaced without --overwrite; finished shards stay."""
    match what:
        case "folder":
            fill(tmp_path / "out", "mine")
        case "file":
            (tmp_path / "out").write_text("mine")
        case _:
            fill(tmp_path / "elsewhere", "mine")
            (tmp_path / "out").symlink_to("elsewhere")
    before = {name: content for name, content in files_of(tmp_path).items() if HIDDEN not in name}
    with pytest.raises(OutputError):
        publish(staging, KEYS, overwrite=False, folder_mode=lambda _: 0o755)
    recover(staging)
    assert {name: content for name, content in files_of(tmp_path).items() if HIDDEN not in name} == before
    assert staging.num_finished == 1


@pytest.mark.usefixtures("replacing")
def test_replacing_leaves_only_the_new_folder(staging: Staging, tmp_path: Path) -> None:
    """The report names the replaced files, which are removed once the new folder is in place."""
    fill(tmp_path / "out", "config.json", "model.safetensors", "sub/deep/config.json")
    replaced = publish(staging, KEYS, overwrite=True, folder_mode=lambda _: 0o755)
    assert replaced
    assert replaced.files == ("config.json", "model.safetensors", "sub/deep/config.json")
    recover(staging)
    staging.remove()
    assert names(tmp_path) == ["out"]
    assert files_of(tmp_path / "out") == NEW


@pytest.mark.usefixtures("replacing")
@pytest.mark.parametrize("file", ["thesis", "sub/thesis", "a/b/thesis", "sub/deep/.hidden"])
def test_a_file_that_appeared_after_the_check_brings_the_old_folder_back(
    staging: Staging, tmp_path: Path, file: str
) -> None:
    """The exchange detects it."""
    before = files_of(fill(tmp_path / "out", "config.json", "sub/deep/config.json", file))
    inode = (tmp_path / "out").stat().st_ino
    with pytest.raises(OutputError, match=f"holds 1 file that fp8pad did not write: {file};"):
        publish(staging, KEYS, overwrite=True, folder_mode=lambda _: 0o755)
    assert files_of(tmp_path / "out") == before
    assert (tmp_path / "out").stat().st_ino == inode
    recover(staging)
    assert files_of(tmp_path / "out") == before
    assert names(staging.root.path) == ["lock", "publication", "staged"]


@pytest.mark.usefixtures("replacing")
def test_a_link_in_the_place_of_the_old_folder_is_not_replaced(staging: Staging, tmp_path: Path) -> None:
    """It appeared after the check; its target is not touched."""
    before = files_of(fill(tmp_path / "elsewhere", "config.json"))
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(OutputError):
        publish(staging, KEYS, overwrite=True, folder_mode=lambda _: 0o755)
    recover(staging)
    assert (tmp_path / "out").is_symlink()
    assert files_of(tmp_path / "elsewhere") == before


LEFT = "was at its OUT_DIR: move it away if you need it, otherwise remove it"


def failing(number: int) -> Callable[..., object]:
    """Return a system call that fails with that error."""

    def call(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return call


class StoppedError(Exception):
    """The run ends here."""


def stopping_at(number: int, original: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    """Return a stand-in for a system call that raises after `number` calls."""

    def call(*arguments: object, **keywords: object) -> object:
        calls.append(original.__name__)
        if len(calls) > number:
            raise StoppedError
        return original(*arguments, **keywords)

    return call


CHANGING = ("rename", "mkdir", "unlink", "rmdir", "link", "fsync", "open", "scandir", "stat")


@pytest.mark.usefixtures("replacing")
def test_a_replacement_that_ends_anywhere_loses_neither_folder(tmp_path: Path) -> None:
    """After any last call, the next run finds the old or the new folder in place, and nothing else."""
    for number in range(1, 500):
        area = tmp_path / str(number)
        old = files_of(fill(area / "out", "config.json", "model.safetensors"))
        calls: list[str] = []
        with hold_staging(area / "out") as staging:
            for key in KEYS.values():
                stage(staging, key, is_resumable=key == "a")
            with pytest.MonkeyPatch.context() as patch:
                for name in CHANGING:
                    patch.setattr(os, name, stopping_at(number, getattr(os, name), calls))
                try:
                    publish(staging, KEYS, overwrite=True, folder_mode=lambda _: 0o755)
                    recover(staging)
                    ended = True
                except StoppedError:
                    ended = False
        found = files_of(area / "out") if (area / "out").exists() else None
        assert found in (old, NEW, None)
        kept = [path for path in (area / HIDDEN).rglob("config.json") if files_of(path.parent) == old]
        assert found is not None or kept
        with hold_staging(area / "out") as staging:
            recover(staging)
            assert is_published(staging) == (files_of(area / "out") == NEW)
            assert is_published(staging) or staging.num_finished == 1
            staging.remove()
        assert files_of(area) in ({f"out/{name}": content for name, content in files.items()} for files in (old, NEW))
        if ended:
            break
    assert number > 30


def test_what_cannot_be_put_back_is_kept(tmp_path: Path, told: list[str]) -> None:
    """If something else is there by now, neither is touched, and every run says where the old folder is."""
    model = llama(tmp_path.with_name(f"{tmp_path.name}-model"))
    fill(tmp_path / HIDDEN / "replaced", "old")
    fill(tmp_path / "out", "mine")
    for _ in range(2):
        with pytest.raises(OutputError, match="is not empty") as caught:
            fp8pad.convert(model, tmp_path / "out")
        (kept,) = (tmp_path / HIDDEN).glob("kept.*")
        assert caught.value.__notes__ == [f"{kept} was left by another run, or {LEFT}"]
        assert names(kept) == ["old"]
        assert files_of(tmp_path / "out") == {"mine": b"mine"}
    shutil.rmtree(tmp_path / "out")
    fp8pad.convert(model, tmp_path / "out")
    assert told == [f"{kept} was left by another run, or {LEFT}"]
    assert names(kept) == ["old"]


def test_what_could_not_be_put_back_for_another_reason_is_put_back_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk says nothing about what is in its place."""
    fill(tmp_path / HIDDEN / "replaced", "old")
    with hold_staging(tmp_path / "out") as staging:
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing(errno.EIO))
            with pytest.raises(OutputError, match="Input/output error"):
                recover(staging)
        recover(staging)
        staging.remove()
    assert files_of(tmp_path) == {"out/old": b"old"}


def published_without_a_lock(tmp_path: Path) -> Path:
    """Make what two runs without a common lock can leave: a new folder in place, and an old one set aside."""
    fill(tmp_path / "out", "config.json")
    fill(tmp_path / HIDDEN / "replaced", "config.json")
    publication = {"files": "files.a", "folder": (tmp_path / "out").stat().st_ino}
    (tmp_path / HIDDEN / "publication").write_text(json.dumps(publication))
    return tmp_path / HIDDEN


def test_what_was_put_into_the_new_folder_since_is_kept(tmp_path: Path) -> None:
    """A kill came before the old folder, which has more files, was removed: both are kept, and the next run works."""
    hidden = published_without_a_lock(tmp_path)
    fill(hidden / "replaced", "config.json", "tokenizer.json")
    fill(tmp_path / "out", "thesis.tex")
    old, new = files_of(hidden / "replaced"), files_of(tmp_path / "out")
    for _ in range(2):
        with hold_staging(tmp_path / "out") as staging:
            recover(staging)
            staging.remove()
        (kept,) = hidden.iterdir()
        assert files_of(kept) == old
        assert files_of(tmp_path / "out") == new


def test_what_was_put_in_and_cannot_be_read_just_now_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk says nothing about unknown files."""
    hidden = published_without_a_lock(tmp_path)
    with hold_staging(tmp_path / "out") as staging:
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", failing(errno.EIO))
            with pytest.raises(OutputError, match="Input/output error"):
                recover(staging)
        assert "replaced" in names(hidden)
        recover(staging)
        staging.remove()
    assert names(tmp_path) == ["out"]


def test_of_two_folders_that_were_replaced_one_is_kept_and_named(tmp_path: Path, told: list[str]) -> None:
    """A replaced folder has only one name; the run continues, and says where the other one is."""
    hidden = published_without_a_lock(tmp_path)
    fill(hidden / "files.a", "config.json")
    old = files_of(hidden / "replaced")
    fp8pad.convert(llama(tmp_path.with_name(f"{tmp_path.name}-model")), tmp_path / "out", overwrite=True)
    (kept,) = hidden.iterdir()
    assert told == [f"{kept} was left by another run, or {LEFT}"]
    assert files_of(kept) == old


def test_a_folder_that_another_run_was_removing_is_in_nobodys_way(tmp_path: Path) -> None:
    """It has the name that the next folder to remove would get."""
    fill(published_without_a_lock(tmp_path) / "replaced.discarded", "model.safetensors")
    with hold_staging(tmp_path / "out") as staging:
        recover(staging)
        staging.remove()
    assert names(tmp_path) == ["out"]


def test_shards_are_found_again_by_a_run_after_one_that_ended_just_before_publishing(
    staging: Staging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They already have their final names, but still count as finished."""
    monkeypatch.setattr(Directory, "rename", stopping_at(0, Directory.rename, []))
    with pytest.raises(StoppedError):
        publish(staging, KEYS, overwrite=False, folder_mode=lambda _: 0o755)
    assert (tmp_path / HIDDEN / staging.files / "model.safetensors").exists()
    monkeypatch.undo()
    recover(staging)
    assert names(staging.root.path) == ["lock", "publication", "staged"]
    assert staging.num_finished == 1
    assert staging.staged.status("a.finished").st_nlink == 1  # type: ignore[union-attr]
