"""The staging folder: who owns it, what is visible while a checkpoint is written, and what the next run finds."""

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import files_of

from fp8pad.checkpoint.directory import Directory, open_directory
from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.staging import Staging, staging_path
from fp8pad.errors import OutputError

HIDDEN = ".out.fp8pad"


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def stage(staging: Staging, key: str, content: bytes = b"data", is_resumable: bool = True) -> None:
    """Write a file into the staging folder."""
    with staging.create(key, key) as target:
        target.write(0, content)
    staging.complete(key, key, is_resumable)


def test_the_folder_is_beside_its_destination_and_ours_alone(tmp_path: Path) -> None:
    """It is on the same file system, so that it can be renamed; it is hidden, and nobody else can enter it."""
    with hold_staging(tmp_path / "out"):
        assert names(tmp_path) == [HIDDEN]
        assert stat.S_IMODE((tmp_path / HIDDEN).stat().st_mode) == 0o700


@pytest.mark.parametrize("length", [1, 240, 247, 248, 255])
def test_every_name_that_a_folder_can_have_has_a_staging_folder(tmp_path: Path, length: int) -> None:
    """The longest names leave no room for a suffix, and the same holds for files."""
    out_dir = tmp_path / ("o" * length)
    with hold_staging(out_dir) as staging:
        stage(staging, "0" * 32)
        assert names(staging.root.path) == ["lock", "staged"]
    assert staging_path(out_dir) != staging_path(tmp_path / ("p" * length))


def test_no_name_in_it_is_one_that_can_be_loaded(tmp_path: Path) -> None:
    """Neither shards nor other files have their final names."""
    with hold_staging(tmp_path / "out") as staging:
        stage(staging, "a")
        stage(staging, "b", is_resumable=False)
        with staging.create("c", "config.json"):
            unfinished = f"c.{staging.token}.unfinished"
            assert names(staging.staged.path) == ["a.finished", f"b.{staging.token}.complete", unfinished]


def test_only_finished_shards_are_kept(tmp_path: Path) -> None:
    """Those that this run can use, or all of them, are kept."""
    with hold_staging(tmp_path / "out") as staging:
        for key in "abc":
            stage(staging, key, is_resumable=key != "c")
        staging.keep_finished(lambda key: key != "d")
        assert names(staging.staged.path) == ["a.finished", "b.finished"]
        assert (staging.num_finished, staging.num_bytes) == (2, 8)
        staging.keep_finished(lambda key: key == "b")
        assert names(staging.staged.path) == ["b.finished"]
        staging.remove()
    assert names(tmp_path) == []


def test_two_runs_cannot_write_to_one_destination(tmp_path: Path) -> None:
    """The second one is refused and changes nothing; a lock file of a killed run does not count."""
    (tmp_path / HIDDEN).mkdir()
    (tmp_path / HIDDEN / "lock").write_text("")
    with hold_staging(tmp_path / "out") as staging:
        stage(staging, "a")
        with pytest.raises(OutputError, match="locked by another fp8pad process"), hold_staging(tmp_path / "out"):
            pytest.fail("both hold it")
        assert names(staging.staged.path) == ["a.finished"]


@pytest.mark.parametrize("is_new", [True, False])
def test_a_lock_that_its_holder_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """Between opening and locking, the holder may finish: then the opened lock file no longer counts."""
    flock = fcntl.flock
    calls: list[int] = []
    lock = tmp_path / HIDDEN / "lock"

    def locked_late(descriptor: int, operation: int) -> None:
        if not calls:
            lock.unlink()
            if is_new:
                lock.write_text("")
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with hold_staging(tmp_path / "out"):
        assert len(calls) == 2


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems do not support locks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_staging(tmp_path / "out") as staging:
        stage(staging, "a")


def test_parents_are_created_and_go_again_if_nothing_was_written(tmp_path: Path) -> None:
    """At any depth; one that somebody else has used in the meantime stays."""
    with hold_staging(tmp_path / "a" / "b" / "c" / "out") as staging:
        (tmp_path / "a" / "mine").write_text("")
        staging.remove()
    assert files_of(tmp_path) == {"a/mine": b""}
    assert names(tmp_path / "a") == ["mine"]


@pytest.mark.parametrize("what", ["file", "link", "dangling link", "link to a file"])
def test_what_stands_in_the_way_is_not_touched(tmp_path: Path, what: str) -> None:
    """Another user's file is not removed, and a link is not followed, whatever its target."""
    (tmp_path / "private" / "staged").mkdir(parents=True)
    (tmp_path / "private" / "staged" / "photo.finished").write_text("mine")
    match what:
        case "file":
            (tmp_path / HIDDEN).write_text("mine")
        case "link":
            (tmp_path / HIDDEN).symlink_to("private")
        case "dangling link":
            (tmp_path / HIDDEN).symlink_to("nowhere")
        case _:
            (tmp_path / HIDDEN).symlink_to("private/staged/photo.finished")
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match=HIDDEN), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "inside", ["staged", "files", "replaced", "lock", "publication", "staged/x.finished", "7.discarded"]
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_link_inside_it_is_refused_wherever_it_lies(tmp_path: Path, inside: str, kind: str) -> None:
    """All files in its target stay, wherever the link is in the staging folder."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "photo.finished").write_text("mine")
    link = tmp_path / HIDDEN / inside
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "private" if kind == "folder" else tmp_path / "private" / "photo.finished")
    before = files_of(tmp_path)
    with pytest.raises(OutputError, match=HIDDEN), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")
    assert {"private/photo.finished": b"mine"}.items() <= before.items() <= files_of(tmp_path).items()


@pytest.mark.parametrize("foreign", ["thesis.docx", "staged/thesis.docx", "staged/sub/", "files", "lock/"])
def test_anything_unexpected_in_it_is_refused(tmp_path: Path, foreign: str) -> None:
    """A folder that has this name by accident is not ours."""
    path = tmp_path / HIDDEN / foreign
    path.parent.mkdir(parents=True)
    if foreign.endswith("/"):
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(OutputError, match=HIDDEN), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")
    assert path.exists()
    assert not (tmp_path / HIDDEN / "lock").is_file()


def test_nothing_stays_where_a_file_is_there_until_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and FUSE rename an open file instead of removing it, so that its folder is not empty yet."""
    silly, unlink, close = tmp_path / HIDDEN / ".nfs0001", Directory.unlink, os.close

    def rename(folder: Directory, name: str) -> None:
        if name == "lock":
            (folder.path / name).rename(silly)
        else:
            unlink(folder, name)

    def remove(descriptor: int) -> None:
        close(descriptor)
        silly.unlink(missing_ok=True)

    monkeypatch.setattr(Directory, "unlink", rename)
    monkeypatch.setattr(os, "close", remove)
    with hold_staging(tmp_path / "out") as staging:
        staging.remove()
        assert names(tmp_path / HIDDEN) == [".nfs0001"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("inodes", [1, 2])
def test_a_disk_that_is_full_at_once_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inodes: int
) -> None:
    """There is room for the folder, or for its lock too, and for nothing else."""
    opened, made = os.open, Directory.make

    def full(*arguments: Any, **named: Any) -> int:
        if arguments[0] == "lock" and inodes == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(*arguments, **named)

    def make(folder: Directory, name: str, mode: int) -> None:
        if name == "staged":
            raise OSError(errno.ENOSPC, "No space left on device")
        made(folder, name, mode)

    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr(Directory, "make", make)
    with pytest.raises(OutputError, match="No space left"), hold_staging(tmp_path / "out"):
        pytest.fail("there is no room")
    assert names(tmp_path) == []


def test_processes_that_share_the_lock_may_begin_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them finds that the other has just made what it wants to make."""
    made = Directory.make

    def make(folder: Directory, name: str, mode: int) -> None:
        if name == "staged":
            made(folder, name, mode)
        made(folder, name, mode)

    monkeypatch.setattr(Directory, "make", make)
    with hold_staging(tmp_path / "out", shared=True) as staging:
        stage(staging, "a")
        assert names(staging.staged.path) == ["a.finished"]


@pytest.mark.parametrize("mask", [0o777, 0o377, 0o177])
def test_a_umask_that_keeps_us_out_leaves_nothing(tmp_path: Path, mask: int) -> None:
    """Files created under this umask would be unusable anyway."""
    before = os.umask(mask)
    try:
        with pytest.raises(OutputError, match="your umask denies you access"), hold_staging(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert names(tmp_path) == []


def test_a_file_system_without_permissions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NTFS and exFAT mounts everybody could alter staged files. Nothing is left behind."""

    def make(folder: Directory, name: str, _: int) -> None:
        (folder.path / name).mkdir()
        (folder.path / name).chmod(0o777)

    monkeypatch.setattr(Directory, "make", make)
    with pytest.raises(OutputError, match=r"anyone can write .* umask=077"), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours alone")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    """A link to a folder is refused too, and not followed."""
    hidden = tmp_path / HIDDEN
    (tmp_path / "private").mkdir()
    if kind == "link":
        hidden.symlink_to("private")
    else:
        os.mknod(hidden, 0o600 | (stat.S_IFREG if kind == "file" else stat.S_IFIFO))
    with pytest.raises(OutputError, match="expected a folder that you own"), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")
    assert names(tmp_path) == [HIDDEN, "private"]
    assert not names(tmp_path / "private")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """They could put anything into the checkpoint."""
    (tmp_path / HIDDEN).mkdir()
    (tmp_path / HIDDEN).chmod(mode)
    with pytest.raises(OutputError, match="nobody else can write to"), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours alone")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """In a world-writable folder, anybody may have created it."""
    (tmp_path / HIDDEN).mkdir(mode=0o700)
    os.chown(tmp_path / HIDDEN, 12345, 12345)
    with pytest.raises(OutputError, match="folder that you own"), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")


@pytest.mark.parametrize(
    "foreign",
    ["files-from-alice/thesis", "kept.alice/thesis", "old.discarded/thesis", "staged/my.note", "staged/a.b"],
)
def test_what_others_put_there_is_refused_and_kept(tmp_path: Path, foreign: str) -> None:
    """Only the very names that fp8pad gives count as its own, not what begins or ends like them."""
    path = tmp_path / HIDDEN / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match="was not put there by fp8pad"), hold_staging(tmp_path / "out"):
        pytest.fail("it is not ours")
    assert path.read_text() == "mine"


def test_a_file_is_never_written_through_another_name_of_it(tmp_path: Path) -> None:
    """A hard link to a source's shard, under the name of the next file to write, keeps its contents."""
    (tmp_path / "shard").write_bytes(b"source")
    (tmp_path / HIDDEN / "staged").mkdir(parents=True)
    (tmp_path / HIDDEN / "staged" / "a.unfinished").hardlink_to(tmp_path / "shard")
    with hold_staging(tmp_path / "out") as staging:
        stage(staging, "a")
    assert (tmp_path / "shard").read_bytes() == b"source"


@pytest.fixture
def folder(tmp_path: Path) -> Directory:
    """Open a folder."""
    return open_directory(tmp_path)


def test_discarding_never_leaves_the_folder(folder: Directory, tmp_path: Path) -> None:
    """Links are removed, but not their targets; hidden files, empty folders and deep folders are removed too."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "photo").write_text("mine")
    deep = tmp_path / "gone" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "to folder").symlink_to(tmp_path / "kept")
    (tmp_path / "gone" / "to file").symlink_to("../kept/photo")
    (tmp_path / "gone" / "empty").mkdir()
    (tmp_path / "gone" / ".hidden").write_text("")
    folder.discard("gone")
    folder.discard("never there")
    assert names(tmp_path) == ["kept"]
    assert files_of(tmp_path) == {"kept/photo": b"mine"}


@pytest.mark.parametrize("mode", [0o555, 0o600, 0o444])
def test_discarding_removes_folders_that_are_read_only(tmp_path: Path, mode: int) -> None:
    """As a user who is bound by permissions, unlike root."""
    (tmp_path / "gone" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "gone" / "sub" / "deep" / "file").write_text("")
    for path in ("gone/sub/deep", "gone/sub"):
        (tmp_path / path).chmod(mode)
    if (child := os.fork()) == 0:
        try:
            with open_directory(tmp_path) as folder:
                if os.geteuid() == 0:
                    for path in (".", "gone", "gone/sub", "gone/sub/deep"):
                        os.chown(path, 65534, 65534, dir_fd=folder.descriptor)
                    os.setuid(65534)
                folder.discard("gone")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path) == []


def test_discarding_is_as_deep_as_folders_are(folder: Directory, tmp_path: Path) -> None:
    """Deeper than paths, recursion and open files allow."""
    (tmp_path / "gone").mkdir()
    descriptor = os.open(tmp_path / "gone", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    folder.discard("gone")
    assert names(tmp_path) == []


def test_discarding_never_enters_another_file_system(folder: Directory, tmp_path: Path) -> None:
    """Neither a mounted one, nor a bind mount of the same one."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "photo").write_text("mine")
    (tmp_path / "gone" / "deep" / "mounted").mkdir(parents=True)
    mounted = tmp_path / "gone" / "deep" / "mounted"
    if subprocess.run(["mount", "--bind", tmp_path / "kept", mounted], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount")
    try:
        with pytest.raises(OSError, match="busy"):
            folder.discard("gone")
        assert (tmp_path / "kept" / "photo").read_text() == "mine"
    finally:
        left = next(path for path in tmp_path.rglob("photo") if path.parent.name != "kept").parent
        subprocess.run(["umount", "--lazy", left], check=True)


def test_without_hard_links_files_are_renamed_and_none_replaces_another(
    folder: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file system treats two names as equal, the second one is an error, and nothing is lost."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    folder.link("one", folder, "README")
    with pytest.raises(OSError, match="not permitted"):
        folder.link("two", folder, "README")
    assert files_of(tmp_path) == {"README": b"one", "two": b"two"}
