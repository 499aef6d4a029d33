"""`--overwrite`: what it replaces, and that it never destroys files that fp8pad did not write. In temporary folders."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import files_of, llama
from test_convert import converted
from test_unpad import restore

from fp8pad.checkpoint import destination
from fp8pad.checkpoint.directory import Directory
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.errors import OutputError
from fp8pad.hub import download_folder

OVERWRITE = WriteOptions(jobs=1, overwrite=True)

Write = Callable[[Path], object]


@pytest.fixture(params=["convert", "unpad"])
def write(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that converts or unpads to a folder with --overwrite; HOME is a temporary folder."""
    (tmp_path / "home" / "user").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "user"))
    model = llama(tmp_path / "model")
    if request.param == "convert":
        return lambda out_dir: converted(model, out_dir, OVERWRITE)
    converted(model, tmp_path / "padded")
    return lambda out_dir: restore(tmp_path / "padded", out_dir, OVERWRITE)


def untouched(tmp_path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return everything that a refusal must not change: all files and all folders."""
    return files_of(tmp_path), sorted(str(path) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["thesis.tex"], "1 file that fp8pad did not write: thesis.tex;"),
        (["sub/thesis.tex"], "1 file that fp8pad did not write: sub/thesis.tex;"),
        (["a/b/c/.hidden"], "1 file that fp8pad did not write: a/b/c/.hidden;"),
        (["e", "d", "c", "b", "a"], "5 files that fp8pad did not write: a, b, c, ...;"),
        ([".git/config"], "1 file"),
    ],
)
@pytest.mark.parametrize("has_output", [True, False])
def test_a_folder_that_holds_anything_else_is_refused(
    tmp_path: Path, write: Write, files: list[str], named: str, has_output: bool
) -> None:
    """Nothing is touched, and the error names the first three of these files."""
    out_dir = tmp_path / "out"
    if has_output:
        write(out_dir)
    for file in files:
        (out_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (out_dir / file).write_text("mine")
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match=named):
        write(out_dir)
    assert untouched(tmp_path) == before


def test_overwriting_is_offered_only_where_it_is_done(tmp_path: Path) -> None:
    """A folder with files of others is refused in the same words without the option."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"
    converted(model, out_dir)
    (out_dir / "tokenizer.json").write_text("edited")
    with pytest.raises(OutputError, match=r"is not empty; use --overwrite to replace it$"):
        converted(model, out_dir)
    (out_dir / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty: holds 1 file that fp8pad did not write: thesis.tex; choose"):
        converted(model, out_dir)


def test_a_folder_that_cannot_be_moved_is_refused_at_once(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not refused only at the end, with a hint to run the command again."""
    write(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("edited")
    before = untouched(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "out")  # root may do anything
    with pytest.raises(OutputError, match=r"out: is read-only and cannot be replaced; run `chmod u\+w` on it first"):
        write(tmp_path / "out")
    assert untouched(tmp_path) == before


@pytest.mark.parametrize("number", range(1, 8, 2))
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_run_that_ends_while_the_old_folder_is_removed(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, exchanges: bool, number: int
) -> None:
    """The new folder is complete and stays, although the old one had other shards; the same command then succeeds."""
    write(tmp_path / "expected")
    converted(llama(tmp_path / "old", num_shards=4), tmp_path / "out")
    if not exchanges:
        monkeypatch.setattr(Directory, "exchange", lambda *_: False)
    removals = 0

    def unlink(directory: Directory, name: str) -> None:
        nonlocal removals
        removals += "of-00004" in name or name in {"config.json", "fp8pad.json"}
        if removals == number:
            removals += 1
            raise OSError(errno.EIO, "Input/output error") if number > 3 else KeyboardInterrupt
        real(directory, name)

    real = Directory.unlink
    with monkeypatch.context() as patched, suppress(OutputError, KeyboardInterrupt):
        patched.setattr(Directory, "unlink", unlink)
        write(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    write(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["replaced", "kept.0123"])
def test_what_took_the_place_of_the_old_folder_does_not_hide_it(tmp_path: Path, write: Write, name: str) -> None:
    """After a kill between two steps of replacing, the error says where the old folder is; then it is put back."""
    write(tmp_path / "out")
    staging, old = tmp_path / ".out.fp8pad", files_of(tmp_path / "out")
    staging.mkdir(0o700)
    (tmp_path / "out").rename(staging / name)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out: expected a folder") as error:
        write(tmp_path / "out")
    assert error.value.__notes__ == [f"{staging / name} was at {tmp_path / 'out'} before"]
    assert files_of(staging / name) == old
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder", "pipe"])
def test_what_is_no_plain_file_counts_as_a_file(tmp_path: Path, write: Write, kind: str) -> None:
    """A link is not followed: its target is neither checked nor lost."""
    write(tmp_path / "out")
    match kind:
        case "pipe":
            os.mkfifo(tmp_path / "out" / "foreign")
        case "link":
            (tmp_path / "out" / "foreign").symlink_to(tmp_path / "model" / "config.json")
        case "dangling link":
            (tmp_path / "out" / "foreign").symlink_to("nowhere")
        case _:
            (tmp_path / "out" / "foreign").symlink_to(tmp_path / "model")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="did not write: foreign;"):
        write(tmp_path / "out")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("where", ["home/user", "home", "."])
def test_a_home_folder_is_refused_whatever_it_holds(tmp_path: Path, write: Write, where: str, link: bool) -> None:
    """Empty or not, through a link or not; folders that contain it are refused too."""
    out_dir = tmp_path / where
    if link:
        (tmp_path / "link").symlink_to(out_dir)
        out_dir = tmp_path / "link"
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match=r"home folder|model"):
        write(out_dir)
    assert untouched(tmp_path) == before


@pytest.mark.parametrize("above", [0, 1, 2])
@pytest.mark.parametrize("link", [False, True])
def test_the_current_folder_is_refused_and_so_are_those_above_it(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, above: int, link: bool
) -> None:
    """The process would be left in a folder that no longer exists."""
    current = tmp_path / "area" / "a" / "b"
    current.mkdir(parents=True)
    out_dir = (current, *current.parents)[above]
    if link:
        (tmp_path / "link").symlink_to(out_dir)
        out_dir = tmp_path / "link"
    monkeypatch.chdir(current)
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match="is the current folder, or contains it"):
        write(out_dir)
    assert untouched(tmp_path) == before


@pytest.mark.parametrize("alias", ["alias/model", "alias", "alias/home/user", "alias/padded"])
def test_another_path_to_a_folder_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alias: str) -> None:
    """A bind mount, or another case where the file system ignores it, leads to the model or to the home folder."""
    real = tmp_path / "real"
    model = llama(real / "model")
    (real / "home" / "user").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(real / "home" / "user"))
    converted(model, real / "padded")
    (tmp_path / "alias").symlink_to(real)
    before = untouched(real)
    target = tmp_path / alias

    def resolved(path: Path, strict: bool = False) -> Path:  # it does not know that these are the same
        return path

    monkeypatch.setattr(Path, "resolve", resolved)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    source = real / ("padded" if alias == "alias/padded" else "model")
    with pytest.raises(OutputError, match=r"is the model folder itself|contains the model|is the home folder"):
        (restore if source.name == "padded" else converted)(source, target, OVERWRITE)
    assert untouched(real) == before


@pytest.mark.parametrize("way", ["a file", "a folder", "a link to a link"])
def test_nothing_that_the_model_links_to_is_replaced(tmp_path: Path, way: str) -> None:
    """Whether fp8pad follows the link or leaves it out: what it leads to may be the only copy."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"
    (model / "assets").mkdir()
    (model / "assets" / "photo").write_text("the only copy")
    converted(model, out_dir)
    if way == "a file":
        (model / "notes.json").symlink_to(out_dir / "fp8pad.json")
    elif way == "a folder":
        shutil.rmtree(model / "assets")
        (model / "assets").symlink_to(out_dir / "assets")
    else:
        (model / "model.safetensors").rename(tmp_path / "shard")
        (model / "model.safetensors").symlink_to("../out/model.safetensors")
        (out_dir / "model.safetensors").unlink()
        (out_dir / "model.safetensors").symlink_to("../shard")
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match="contains the model, or a file that it links to"):
        converted(model, out_dir, OVERWRITE)
    assert untouched(tmp_path) == before


def test_the_root_is_refused(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is checked before anything could be written."""
    monkeypatch.setattr(destination, "existing_parent", lambda _: pytest.fail("it went on"))
    (tmp_path / "link").symlink_to("/")
    for out_dir in (Path("/"), Path("/.."), tmp_path / "link"):
        with pytest.raises(OutputError):
            write(out_dir)


def test_files_for_the_root_have_a_folder_to_lie_in() -> None:
    """The folder's path is derived before the root is refused; the root has no parent."""
    assert download_folder(Path("/")).parent == Path("/")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system with one file on a folder two levels deep."""
    point = tmp_path / "out" / "sub" / "mounted folder"
    point.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount")
    (point / "config.json").write_text("mine")
    yield point
    subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_mount_point_is_refused_and_so_are_those_above_it(
    tmp_path: Path, write: Write, mounted: Path, above: int
) -> None:
    """Even if its files have names that the new folder also has."""
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match="mount"):
        write((mounted, *mounted.parents)[above])
    assert untouched(tmp_path) == before


def test_an_old_output_of_another_model_is_replaced(tmp_path: Path, write: Write) -> None:
    """Its own record names its files; its subfolders are removed too."""
    other = llama(tmp_path / "other", num_shards=3)
    (other / "sub").mkdir()
    (other / "sub" / "notes.txt").write_text("")
    converted(other, tmp_path / "out")
    write(tmp_path / "fresh")
    write(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


FORGED: dict[str, Callable[[Path], object]] = {
    "no shard that it names": lambda out: (out / "model.safetensors").unlink(),
    "a shard of another size": lambda out: os.truncate(out / "model.safetensors", 7),
    "no shard named": lambda out: edit(out, lambda files: files.pop("model.safetensors")),
    "a shard outside": lambda out: edit(
        out, lambda files: files.update({"../model/x.safetensors": {"source_size": 0, "size": 0}})
    ),
    "a record that is a link": lambda out: link_away(out / "fp8pad.json"),
    "a folder": lambda out: in_its_place(out / "fp8pad.json", Path.mkdir),
    "a pipe": lambda out: in_its_place(out / "fp8pad.json", os.mkfifo),
    "a garbled record": lambda out: (out / "fp8pad.json").write_text("{"),
    "another version": lambda out: edit_record(out, format_version=99),
}


def edit_record(out_dir: Path, **changes: object) -> None:
    """Change keys of fp8pad.json."""
    path = out_dir / "fp8pad.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(out_dir: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change `files` of fp8pad.json."""
    files = json.loads((out_dir / "fp8pad.json").read_text())["files"]
    change(files)
    edit_record(out_dir, files=files)


def link_away(path: Path) -> None:
    """Move a file elsewhere and leave a link to it."""
    path.rename(path.parent.parent / "moved")
    path.symlink_to("../moved")


def in_its_place(path: Path, make: Write) -> None:
    """Replace a file with something else."""
    path.unlink()
    make(path)


@pytest.mark.parametrize("forgery", FORGED)
def test_a_record_that_does_not_fit_its_folder_vouches_for_nothing(tmp_path: Path, write: Write, forgery: str) -> None:
    """A forged record cannot declare the user's files to be fp8pad's."""
    out_dir = tmp_path / "out"
    converted(tmp_path / "model", out_dir)
    (out_dir / "thesis.tex").write_text("mine")
    edit(out_dir, lambda files: files.update({"thesis.tex": {"source_size": 4, "size": 4}}))
    FORGED[forgery](out_dir)
    before = untouched(tmp_path)
    with pytest.raises(OutputError, match=r"did not write: .*thesis\.tex"):
        write(out_dir)
    assert untouched(tmp_path) == before


def test_the_model_must_not_lie_in_the_staging_folder(tmp_path: Path) -> None:
    """It would be removed with the folder; the model's links must not lead there either."""
    staging = tmp_path / ".out.fp8pad"
    staging.mkdir()
    model = llama(staging / "model")
    (tmp_path / "linked").mkdir()
    for path in model.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    for source in (model, tmp_path / "linked"):
        before = untouched(tmp_path)
        with pytest.raises(OutputError, match="in the staging folder"):
            converted(source, tmp_path / "out", OVERWRITE)
        assert untouched(tmp_path) == before
