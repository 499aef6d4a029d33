"""Checkpoints by hub id: what is requested from the hub and what is not, and every way in which it may fail."""

import errno
import hashlib
import json
import os
import pty
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, _Handler, fake_hub, let_client_use
from helpers import INDEX, Counter, files_of, gated, llama, safetensors_bytes, write_checkpoint

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
import huggingface_hub
from huggingface_hub import constants

import fp8pad
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.options import Executor, Link
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.checkpoint.staging import key_of, staging_path
from fp8pad.errors import ConfigError, Fp8padError, HubError, OutputError
from fp8pad.hub import download_folder, opened
from fp8pad.hub.ids import HubId
from fp8pad.hub.repo import FIRST_BYTES, Repo
from fp8pad.library import convert_shards
from fp8pad.render.console import stdout_console
from fp8pad.render.plan import plan_screen
from fp8pad.render.reports import push_screen
from fp8pad.render.terminal import write
from fp8pad.text import size
from fp8pad.upload import push
from fp8pad.verification import NO_HASHES

sys.path.append(str(Path(__file__).parent / "cluster"))
from ray_work import run_sent

NAME = "org/name"
FIRST = "model-00001-of-00002.safetensors"
SINGLE = "model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a hub that huggingface_hub's client takes for the real one, with an empty cache and no waits."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with fake_hub() as running:
        let_client_use(running, tmp_path / "cache", monkeypatch)
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint of two shards of 310 kB."""
    return llama(tmp_path / "model", num_shards=2, n=500, k=600)


def read_from(model: str) -> Checkpoint:
    """Read a checkpoint as `plan` does."""
    with opened(model, read_unconverted) as checkpoint:
        return checkpoint


def fetch(model: str, file: str, hub: FakeHub, work: Path | None = None, faults: Sequence[int | str] = ()) -> bytes:
    """Return the bytes of a file that is fetched with these faults."""
    with opened(model, read_unconverted, work) as checkpoint:
        hub.faults += faults
        with checkpoint.fetched(file):
            return (checkpoint.root / file).read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name", None)),
        ("org/name@main", HubId("org/name", "main")),
        ("org/na.me-1_b@refs/pr/1", HubId("org/na.me-1_b", "refs/pr/1")),
        ("hf://org/name@v1", HubId("org/name", "v1")),
        ("hf:/org/name", HubId("org/name", None)),  # pathlib turns hf:// into this
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("org/na me", None),
    ],
)
def test_ids_are_told_from_folders(text: str, expected: HubId | None) -> None:
    """An id is two names with a slash between them, and does not begin like a path."""
    assert HubId.parse(text) == expected


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the id is written as a URL, a folder of that name is used."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert HubId.parse("org/name") is None
    assert HubId.parse("hf://org/name") == HubId("org/name", None)


def test_a_plan_reads_headers_and_texts_alone(hub: FakeHub, model: Path) -> None:
    """The result equals that of a folder, with a part of its bytes; no files are left."""
    (model / "big.txt").write_bytes(bytes(1_000_000))
    hub.add(NAME, model)
    expected = read_unconverted(model)
    with opened(NAME, read_unconverted) as found:
        assert (found.shards, found.configs) == (expected.shards, expected.configs)
        assert all(found.text(file) == expected.text(file) for file in expected.text_files)
    assert (found.other_files, found.excluded) == (expected.other_files, expected.excluded)
    assert str(found) == NAME
    assert not found.root.exists()
    assert hub.requests == {
        "info": 1,
        "config.json": 1,
        FIRST: 1,
        FIRST.replace("1-of", "2-of"): 1,
        "model.safetensors.index.json": 1,
    }
    assert hub.sent < 300_000


def test_texts_of_adapters_are_fetched_where_sizes_are_absorbed(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in folders of their own too; what else is called config.json there is a file like others."""
    layers = gated("model.layers.0.mlp", 100, 64)
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 100, "hidden_act": "silu"}
    config |= {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": layers}, config)
    (model / "lora").mkdir()
    (model / "lora" / "config.json").write_text("{}")
    (model / "lora" / "adapter_config.json").write_text(json.dumps({"target_modules": ["down_proj"]}))
    hub.add(NAME, model)
    assert not any(note.startswith("lora/: ") for note in fp8pad.plan(NAME).plan.notes)
    assert {"lora/config.json", "lora/adapter_config.json"}.isdisjoint(hub.requests)
    assert any(note.startswith("lora/: ") for note in fp8pad.plan(NAME, absorb=True).plan.notes)
    assert "lora/config.json" not in hub.requests

    def fail(*_: object) -> None:
        raise HubError(f"{NAME}: the hub is down")

    monkeypatch.setattr("fp8pad.hub.fetcher.Fetcher._fetch", fail)
    with pytest.raises(HubError, match="is down"):
        fp8pad.plan(NAME, absorb=True)


def test_a_text_is_stored_chunk_by_chunk(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of them, of 256 MB each, would else be in memory at a time."""
    content = (model / "config.json").read_text().encode() + b" " * 1_000_000
    (model / "config.json").write_bytes(content)
    hub.add(NAME, model)
    chunks, stored = Repo.chunks, list[int]()

    def seen(repo: Repo, file: str, begin: int, end: int) -> Iterator[bytes]:
        for chunk in chunks(repo, file, begin, end):
            yield chunk
            if file == "config.json":
                begin += len(chunk)
                assert (tmp_path / "outline" / file).read_bytes()[:begin] == content[:begin]
                stored.append(begin)

    monkeypatch.setattr(Repo, "chunks", seen)
    Repo.of(HubId(NAME, None)).outline(tmp_path / "outline")
    assert (len(stored) > 2, stored[-1]) == (True, len(content))


def test_a_long_header_takes_a_second_request(hub: FakeHub, tmp_path: Path) -> None:
    """Only a long header needs one."""
    tensors = {f"model.layers.{number}.norm.weight": ("BF16", (1,)) for number in range(3000)}
    hub.add(NAME, write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}))
    assert len(read_from(NAME).shards[0].tensors) == 3000
    assert hub.requests["model.safetensors"] == 2


def test_a_revision_is_read_as_it_was_at_first(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """This holds for a branch that moves meanwhile, a tag and a commit."""
    before = hub.add(NAME, model)
    hub.add(NAME, model, "v1")
    with opened(NAME, read_unconverted, tmp_path / "work") as checkpoint:
        (model / FIRST).write_bytes((model / FIRST).read_bytes()[:-1] + b"\7")
        after = hub.add(NAME, model)
        with checkpoint.fetched(FIRST):
            assert (checkpoint.root / FIRST).read_bytes() == hub.repos[NAME].commits[before][FIRST]
    for revision, commit in (("main", after), ("v1", before), (before, before)):
        with opened(f"{NAME}@{revision}", read_unconverted) as checkpoint, checkpoint.fetched(FIRST):
            assert (checkpoint.root / FIRST).read_bytes() == hub.repos[NAME].commits[commit][FIRST]


def test_files_are_there_while_they_are_needed(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Before and after, they take no space, neither in the temporary folder nor in the download folder."""
    hub.add(NAME, model)
    work = tmp_path / "work"
    with opened(NAME, read_unconverted, work) as checkpoint:
        for file in (FIRST, "tokenizer.json"):
            with checkpoint.fetched(file):
                assert (checkpoint.root / file).read_bytes() == (model / file).read_bytes()
                assert len(files_of(work / "staged")) == 1
            assert (checkpoint.root / file).stat().st_size == (model / file).stat().st_size
            assert (checkpoint.root / file).stat().st_blocks == 0
            assert files_of(work / "staged") == {}
        with checkpoint.fetched("config.json"):
            assert (checkpoint.root / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert not work.exists()


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut", "cut"], [503, 429, "cut"], ["cut", "whole"], [500, 502]])
def test_what_passes_by_is_tried_again(hub: FakeHub, model: Path, faults: list[int | str]) -> None:
    """An interrupted download continues where it stopped, even with a server without ranges."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted) as checkpoint:
        hub.faults += faults
        with checkpoint.fetched(FIRST):
            assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()
    assert hub.faults == []


def test_headers_are_tried_again_too(hub: FakeHub, model: Path) -> None:
    """Each request of a plan may be cut, and is sent again."""
    hub.add(NAME, model)
    hub.faults += ["cut", "cut", "cut", "cut", 503]
    assert read_from(NAME).shards == read_unconverted(model).shards


def test_a_wrong_byte_is_never_passed_on(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """The hub's own hash decides, and wrong data are removed."""
    hub.add(NAME, model)
    with pytest.raises(HubError, match=rf"^{NAME}: {FIRST}: sha256: expected [0-9a-f]{{64}}, got [0-9a-f]{{64}}$"):
        fetch(NAME, FIRST, hub, tmp_path / "work", ["wrong"])
    assert not (tmp_path / "work").exists()
    with pytest.raises(HubError, match=r"tokenizer\.json: sha1: expected"):
        fetch(NAME, "tokenizer.json", hub, None, ["wrong"])


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_what_is_planned_by_is_what_the_hub_has_a_hash_of(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    """Texts and short shards are checked at once, the header of a long shard when the shard is fetched."""
    monkeypatch.setattr("fp8pad.parallel.run_on_cluster", run_sent)
    hub.add(NAME, model)
    send, altered = _Handler._bytes, [(b"quantization_config", b"Quantization_config")]

    def alter(handler: _Handler, content: bytes, headers: dict[str, str]) -> None:
        if altered and altered[0][0] in content:
            content = content.replace(*altered.pop())
        send(handler, content, headers)

    monkeypatch.setattr(_Handler, "_bytes", alter)
    with pytest.raises(HubError, match=rf"^{NAME}: config\.json: sha1: expected [0-9a-f]{{40}}, got [0-9a-f]{{40}}$"):
        read_from(NAME)
    altered.append((b'"BF16"', b'"F16" '))
    with pytest.raises(HubError, match=r"safetensors: its header differs from the first one sent"):
        fp8pad.convert(NAME, tmp_path / "out", executor=executor)
    assert not altered
    assert not (tmp_path / "out").exists()
    fp8pad.convert(NAME, tmp_path / "out", executor=executor)
    assert fp8pad.verify(model, tmp_path / "out").ok


def test_a_slice_that_is_being_written_is_refused(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """The second run gets an error line; the first run succeeds."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted, download_folder(tmp_path / "out", range(1))) as checkpoint:
        for _ in range(2):  # the folder, empty as yet, stays locked
            with pytest.raises(OutputError, match="locked by another fp8pad process"):
                convert_shards(NAME, tmp_path / "out", range(1))
        with checkpoint.fetched(FIRST), pytest.raises(OutputError, match="locked by another fp8pad process"):
            convert_shards(NAME, tmp_path / "out", range(1))
        assert not (tmp_path / "out").exists()
    assert left_beside(tmp_path / "out") == set()


@pytest.mark.parametrize("length", [241, 243, 255])
def test_a_long_name_of_the_output_is_a_name(hub: FakeHub, model: Path, tmp_path: Path, length: int) -> None:
    """The name of the work folder, which is longer, could exceed the limit."""
    hub.add(NAME, model)
    fp8pad.convert(NAME, tmp_path / ("o" * length))
    assert fp8pad.verify(NAME, tmp_path / ("o" * length)).ok


@pytest.mark.parametrize(
    "fault", [("stat", "staged"), ("open", "staged"), ("rmdir", "staged"), ("unlink", "lock"), ("rmdir", "")]
)
def test_a_folder_of_fetched_files_that_cannot_be_removed_is_a_line(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str]
) -> None:
    """It says that the work is done, whichever call fails; the same command removes what stayed."""
    hub.add(NAME, model)
    (call, name), work = fault, download_folder(tmp_path / "out")
    original = getattr(os, call)
    staging = staging_path(tmp_path / "out")

    def fail(path: object, *arguments: Any, **keywords: Any) -> Any:
        if path == (name or work.name) and tmp_path / "out" in tmp_path.iterdir() and not staging.exists():
            raise OSError(errno.EIO, "Input/output error")
        return original(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OutputError, match=r"fp8pad-hub: cannot be removed: .*; what was asked for is complete"):
            fp8pad.convert(NAME, tmp_path / "out")
    assert fp8pad.verify(model, tmp_path / "out").ok
    fp8pad.convert(NAME, tmp_path / "out")
    assert left_beside(tmp_path / "out") == set()


def test_a_slice_whose_fetched_files_cannot_be_removed_does_not_say_that_the_output_is_complete(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none yet; the shards are finished."""
    hub.add(NAME, model)
    work, rmdir = download_folder(tmp_path / "out", range(2)), os.rmdir

    def fail(path: object, *arguments: Any, **keywords: Any) -> Any:
        if str(path).endswith(work.name):
            raise OSError(errno.EIO, "Input/output error")
        return rmdir(path, *arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        with pytest.raises(OutputError, match=r"cannot be removed: .*; what was asked for is complete$"):
            fp8pad.convert_shards(NAME, tmp_path / "out", range(2))
    assert not (tmp_path / "out").exists()
    fp8pad.convert(NAME, tmp_path / "out", finish=True)
    assert fp8pad.verify(model, tmp_path / "out").ok


def test_a_full_temporary_folder_is_a_line(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the folder, and how to choose another."""
    hub.add(NAME, model)

    def fail(*_: object) -> None:
        raise OutputError("x: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fp8pad.hub.repo.make_hole", fail)
        with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
            read_from(NAME)
    monkeypatch.setattr("os.pwrite", no_space)  # while a text of a few bytes is written
    with pytest.raises(OutputError, match=r"json: cannot be written: No space left on device; set TMPDIR"):
        read_from(NAME)


def test_the_next_run_takes_up_what_was_fetched(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """A partial shard after a server failed, and a whole one after its processing failed."""
    hub.add(NAME, model)
    work, size = tmp_path / "work", (model / FIRST).stat().st_size
    with pytest.raises(HubError, match=rf"{FIRST}: ends early|503"):
        fetch(NAME, FIRST, hub, work, ["cut", *[503] * 100])
    hub.faults.clear()
    assert [path.stat().st_size for path in (work / "staged").iterdir()] == [size // 2]

    def fail_while_it_is_there(num_bytes: int) -> None:
        with opened(NAME, read_unconverted, work) as checkpoint:
            sent = hub.sent
            with checkpoint.fetched(FIRST):
                assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()
                assert hub.sent - sent == num_bytes
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_is_there(size - size // 2)
    with pytest.raises(ZeroDivisionError):
        fail_while_it_is_there(0)
    assert fetch(NAME, FIRST, hub, work) == (model / FIRST).read_bytes()
    assert not work.exists()


def test_a_part_that_was_altered_is_noticed(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Existing data are hashed like new ones, and fetched again if wrong; a link is not followed."""
    hub.add(NAME, model)
    work = tmp_path / "work"
    part = work / "staged" / f"{key_of(FIRST, hash_of(model / FIRST))}.unfinished"

    def make_folders() -> None:
        for folder in (work, part.parent):
            folder.mkdir(mode=0o700, exist_ok=True)

    for content in (b"other bytes", bytes((model / FIRST).stat().st_size), bytes((model / FIRST).stat().st_size + 1)):
        make_folders()
        part.write_bytes(content)
        assert fetch(NAME, FIRST, hub, work) == (model / FIRST).read_bytes()
        make_folders()
        part.write_bytes(content)
        with pytest.raises(HubError, match="sha256: expected"):
            fetch(NAME, FIRST, hub, work, ["wrong", "wrong"])
        hub.faults.clear()
    (tmp_path / "precious").write_text("precious")
    make_folders()
    part.symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=f"^{part}: was not put there by fp8pad"):
        fetch(NAME, FIRST, hub, work)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["thesis.tex", "sub", "pipe", "ab" * 32 + "/"])
def test_what_somebody_keeps_in_the_folder_is_not_removed(hub: FakeHub, model: Path, tmp_path: Path, name: str) -> None:
    """A folder of that name may exist for another reason; it would be removed with all its files."""
    hub.add(NAME, model)
    work = tmp_path / "work"
    work.mkdir()
    if name == "pipe":
        os.mkfifo(work / name)
    elif name == "thesis.tex":
        (work / name).write_text("mine")
    else:
        (work / name).mkdir()
    with pytest.raises(OutputError, match="was not put there by fp8pad"), opened(NAME, read_unconverted, work):
        raise AssertionError
    assert [path.name for path in work.iterdir()] == [name.rstrip("/")]


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["link", "file", "shared"])
def test_a_folder_that_others_could_write_to_is_refused(hub: FakeHub, model: Path, tmp_path: Path, kind: str) -> None:
    """Its files could be anyone's."""
    hub.add(NAME, model)
    work = tmp_path / "work"
    match kind:
        case "link":
            (tmp_path / "elsewhere").mkdir()
            work.symlink_to(tmp_path / "elsewhere")
        case "file":
            work.write_text("")
        case _:
            work.mkdir()
            work.chmod(0o777)
    with pytest.raises(OutputError, match="nobody else can write to"), opened(NAME, read_unconverted, work):
        raise AssertionError


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        (
            "org/other",
            r"org/other: no such folder, and no such model on http://\S+; if it is private, run `hf auth login`",
        ),
        ("org/name@v9", r"org/name@v9: there is no revision v9"),
        ("org/na..me", r"org/na\.\.me: no such folder, and on the hub: is not the name of a model: .*"),
        ("org/gated", r"org/gated: is gated; accept its terms on http://\S+ and run `hf auth login`"),
        ("org/private", r"org/private: no such folder, and no such model .*"),
    ],
)
def test_what_is_not_there_for_us_is_a_line(hub: FakeHub, model: Path, model_id: str, message: str) -> None:
    """An unknown model, an unknown revision, and models that need access."""
    hub.add(NAME, model)
    hub.add("org/gated", model, is_gated=True)
    hub.add("org/private", model, is_private=True)
    with pytest.raises(HubError, match=f"^{message}$"):
        read_from(model_id)


@pytest.mark.parametrize("model_id", ["org/gated", "org/private"])
def test_a_token_opens_models(hub: FakeHub, model: Path, model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is the one that huggingface_hub finds."""
    hub.add("org/gated", model, is_gated=True)
    hub.add("org/private", model, is_private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_from(model_id).shards == read_unconverted(model).shards


def test_a_hub_that_fails_or_is_not_there_is_a_line(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permanent error, and a port where nothing listens."""
    hub.add(NAME, model)
    with pytest.raises(HubError, match=f"^{NAME}: .*500"):
        fetch(NAME, FIRST, hub, None, [500] * 100)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=f"^{NAME}: no such folder, and on the hub: http://127.0.0.1:9 cannot be reached: "
    ):
        read_from(NAME)
    with pytest.raises(HubError, match=f"^{NAME}: http://127.0.0.1:9 cannot be reached: "):
        read_from(f"hf://{NAME}")


def test_a_hub_that_goes_away_while_the_cache_is_filled_is_not_offline_mode(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub has one error for both; the user did not request offline mode."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted, use_cache=True) as checkpoint:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        )
        with pytest.raises(HubError, match=f"^{NAME}: http://127.0.0.1:9 cannot be reached"), checkpoint.fetched(FIRST):
            pass


def test_a_broken_checkpoint_is_called_by_its_id(hub: FakeHub, tmp_path: Path) -> None:
    """The temporary folder means nothing to the user."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing here")
    hub.add(NAME, tmp_path / "empty")
    with pytest.raises(ConfigError, match=rf"^{NAME}: config\.json: is missing$"):
        read_from(NAME)


def test_names_that_lead_elsewhere_are_refused(hub: FakeHub, model: Path) -> None:
    """A hub's answer is not trusted."""
    commit = hub.add(NAME, model)
    hub.repos[NAME].commits[commit]["../evil.txt"] = b"evil"
    with pytest.raises(HubError, match=r'lists a file outside the repository: "\.\./evil\.txt"$'):
        read_from(NAME)


FORGED: dict[str, tuple[dict[str, object], str]] = {
    "a file in a file": ({"rfilename": "config.json/x"}, "as a file, and as the folder of"),
    "a file far down in a file": ({"rfilename": "config.json/" + "a/" * 90 + "b"}, "as a file, and as the folder of"),
    "a name that is no UTF-8": ({"rfilename": "\ud800"}, "not UTF-8"),
    "a name of 300 bytes": ({"rfilename": "a" * 300}, "too long"),
    "a name twice": ({"rfilename": "config.json"}, "twice"),
    "a name in other words": ({"rfilename": "./config.json"}, "in two spellings"),
    "a name that huggingface_hub refuses": ({"rfilename": "a\\..\\b"}, "outside"),
    "1,400 folders in each other": ({"rfilename": "a/" * 1400 + "b"}, "too long"),
    "a path of 10,000 bytes": ({"rfilename": "a/" * 5000 + "b"}, "too long"),
    "an absolute name": ({"rfilename": "/etc/passwd"}, "outside"),
    "a name of a zero byte": ({"rfilename": "a\0b"}, "outside"),
    "no name": ({"rfilename": ""}, "outside"),
    "a number for a name": ({"rfilename": 7}, "outside"),
    "a negative size": ({"size": -1}, "no size"),
    "an impossible size": ({"size": 1 << 63}, "no size"),
    "a text for a size": ({"size": "7"}, "no size"),
    "no hash": ({"blobId": None}, "no hash"),
    "a number for a hash": ({"blobId": 7}, "no hash"),
    "a hash that leads elsewhere": ({"blobId": "../" * 14}, "no hash"),
    "a list for the hash's object": ({"lfs": [1]}, "cannot be read"),
    "an object for the name": ({"rfilename": {}}, "outside"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_list_of_files_is_a_line(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whatever a hub answers, nothing is written except a line that names the problem."""
    changes, message = FORGED[what]
    hub.add(NAME, model)
    send = _Handler._json

    def forge(handler: _Handler, document: Any, *args: Any) -> None:
        if "siblings" in document:
            document["siblings"].append({**document["siblings"][0], "rfilename": "forged", **changes})
        send(handler, document, *args)

    monkeypatch.setattr(_Handler, "_json", forge)
    with pytest.raises(HubError, match=message):
        fp8pad.convert(NAME, tmp_path / "out")
    assert left_beside(tmp_path / "out") == set()


@pytest.mark.parametrize("document", [[], "text", 7, None, {"siblings": 7}, {"siblings": [7]}, {"siblings": [{}]}])
def test_an_answer_of_another_kind_is_a_line(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, document: object
) -> None:
    """JSON that does not describe a model is an error of one line."""
    hub.add(NAME, model)
    send = _Handler._json
    monkeypatch.setattr(_Handler, "_json", lambda handler, _, *args: send(handler, document, *args))
    with pytest.raises(Fp8padError):
        read_from(NAME)


@pytest.mark.parametrize("commit", [7, ["main"], None, "", "main", "../../secret", "\x1b[2J", "a" * 100_000])
def test_a_forged_commit_is_a_line(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, commit: object) -> None:
    """It becomes a part of URLs, and of paths in the cache."""
    hub.add(NAME, model)
    send = _Handler._json
    monkeypatch.setattr(_Handler, "_json", lambda handler, document, *_: send(handler, {**document, "sha": commit}))
    with pytest.raises(HubError, match=f"^{NAME}: expected the hub to name a commit, got"):
        read_from(NAME)


def test_a_model_without_files_has_no_config(hub: FakeHub, tmp_path: Path) -> None:
    """It exists nevertheless."""
    (tmp_path / "empty").mkdir()
    hub.add(NAME, tmp_path / "empty")
    with pytest.raises(ConfigError, match=rf"^{NAME}: config\.json: is missing$"):
        read_from(NAME)


def test_bytes_that_were_not_asked_for_are_not_stored(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """A server that keeps sending would fill the disk."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted, tmp_path / "work") as checkpoint:
        hub.faults += ["endless"]
        with checkpoint.fetched(FIRST):
            assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()


def test_what_comes_from_the_hub_has_the_permissions_of_new_files(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Padded or not, files get the umask's permissions, although they are fetched into a private folder."""
    add_plain_shard(model)
    (model / "sub").mkdir()
    (model / "sub" / "more.txt").write_text("more")
    hub.add(NAME, model)
    before = os.umask(0o027)
    try:
        fp8pad.convert(NAME, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert modes.pop("sub") == stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert set(modes.values()) == {0o640}


def test_the_cache_is_used_and_filled(hub: FakeHub, model: Path) -> None:
    """With `use_cache` files go there; existing ones are not fetched again."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted, use_cache=True) as checkpoint, checkpoint.fetched(FIRST):
        assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()
    sent = hub.sent
    with opened(NAME, read_unconverted) as checkpoint:
        outline = hub.sent
        with checkpoint.fetched(FIRST):
            assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()
        assert hub.sent == outline
    assert hub.sent > sent


def test_a_quiet_run_is_quiet_while_the_cache_is_filled(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """On a terminal, huggingface_hub shows bars of its own."""
    hub.add(NAME, model)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "fp8pad", "convert", NAME, str(tmp_path / "out"), "--cache", "--quiet"]
    ours, terminal = pty.openpty()
    subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=terminal, check=True)
    os.write(terminal, b"end")
    shown = os.read(ours, 4096)
    os.close(terminal)
    os.close(ours)
    assert shown == b"end"
    assert fp8pad.verify(model, tmp_path / "out").ok


@pytest.mark.parametrize("file", [FIRST, "tokenizer.json"])
def test_what_comes_into_the_cache_is_compared_with_the_hubs_hash(hub: FakeHub, model: Path, file: str) -> None:
    """Wrong data do not stay there, where the next run would trust them."""
    hub.add(NAME, model)
    with opened(NAME, read_unconverted, use_cache=True) as checkpoint:
        hub.faults += ["wrong"]
        with pytest.raises(HubError, match=f"^{NAME}: {file}: sha.*: expected"), checkpoint.fetched(file):
            pytest.fail("it was taken for right")
        with checkpoint.fetched(file):
            assert (checkpoint.root / file).read_bytes() == (model / file).read_bytes()


def test_a_run_that_is_stopped_stops_while_the_cache_is_compared(hub: FakeHub, model: Path) -> None:
    """A shard takes a while; if not compared completely, it is removed, since the next run would trust it."""
    hub.add(NAME, model)
    told: list[int] = []

    def stop(num_bytes: int) -> None:
        told.append(num_bytes)
        raise KeyboardInterrupt

    with opened(NAME, read_unconverted, use_cache=True) as checkpoint:
        with pytest.raises(KeyboardInterrupt), checkpoint.fetched(FIRST, stop):
            pytest.fail("it went on")
        assert told == [0]
        assert huggingface_hub.try_to_load_from_cache(NAME, FIRST) is None


def test_offline_mode_reads_the_cache_alone(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing snapshot is read like a folder; without one, a line says what is missing."""
    hub.add(NAME, model)
    huggingface_hub.snapshot_download(NAME)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with opened(NAME, read_unconverted) as checkpoint, checkpoint.fetched(FIRST):
        assert (checkpoint.root / FIRST).read_bytes() == (model / FIRST).read_bytes()
        assert str(checkpoint) == NAME
    with pytest.raises(
        HubError,
        match="org/other: no such folder, and on the hub: offline mode is on, and the model is not completely in the",
    ):
        read_from("org/other")
    assert hub.requests == {}


def test_a_full_disk_is_a_line(hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that were fetched so far stay for the next run; a full cache is named."""
    hub.add(NAME, model)
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            fetch(NAME, FIRST, hub, work)
    assert [path.stat().st_size for path in (work / "staged").iterdir()] == [(model / FIRST).stat().st_size]
    hub.sent = 0
    assert fetch(NAME, FIRST, hub, work) == (model / FIRST).read_bytes()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_space)
    line = f"{constants.HF_HUB_CACHE}: cannot be written: No space left on device, while fetching {FIRST}"
    with (
        pytest.raises(OutputError, match=line),
        opened(NAME, read_unconverted, use_cache=True) as checkpoint,
        checkpoint.fetched(FIRST),
    ):
        pytest.fail("it went on")


def no_space(*_: object, **__: object) -> None:
    """Fail as a call does when a disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left_beside(out_dir: Path) -> set[str]:
    """Return what else is in the folder of an output, except the model."""
    return {path.name for path in out_dir.parent.iterdir()} - {out_dir.name, "model", "local", "cache"}


def add_plain_shard(model: Path) -> None:
    """Add a shard in which nothing is padded."""
    plain = {"model.norm.weight": ("BF16", (50_000,))}
    (model / "model-00003-of-00003.safetensors").write_bytes(safetensors_bytes(plain, {"format": "pt"}))
    index = json.loads((model / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(plain, "model-00003-of-00003.safetensors")
    (model / INDEX).write_text(json.dumps(index))


def test_converting_from_the_hub_gives_what_a_folder_gives(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Byte for byte, with every byte fetched once, the hub's hashes recorded, and no other files left."""
    (model / "sub").mkdir()
    (model / "sub" / "more.txt").write_text("more")
    add_plain_shard(model)
    hub.add(NAME, model)
    fp8pad.convert(model, tmp_path / "local", verify="full", card=False)
    hub.sent = 0
    report = fp8pad.convert(NAME, tmp_path / "out", jobs=1, card=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")
    total = sum(len(content) for content in files_of(model).values())
    assert total < hub.sent < total + 3 * FIRST_BYTES + 1000
    record = json.loads((tmp_path / "out" / "fp8pad.json").read_text())
    assert record["files"][FIRST]["source_sha256"] == hash_of(model / FIRST)
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left_beside(tmp_path / "out") == set()
    assert report.to_json()["model"] == NAME
    verified = fp8pad.verify(NAME, tmp_path / "out")
    assert (verified.ok, verified.model, verified.notes) == (True, NAME, ())
    assert verified.files_hashed == len(record["files"])


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV])
def test_a_disk_without_hard_links_gets_copies(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Also of shards that are not padded, which otherwise are only moved."""
    add_plain_shard(model)
    hub.add(NAME, model)
    fp8pad.convert(model, tmp_path / "local", verify="full", card=False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    fp8pad.convert(NAME, tmp_path / "out", card=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")
    assert left_beside(tmp_path / "out") == set()


def test_slices_of_a_model_of_the_hub(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Each fetches its shards to a folder of its own, and together they give the output of one run."""
    add_plain_shard(model)
    hub.add(NAME, model)
    fp8pad.convert(NAME, tmp_path / "local")
    for shards in (range(1, 3), range(1)):
        report = convert_shards(NAME, tmp_path / "out", shards)
        assert left_beside(tmp_path / "out") == {".out.fp8pad"}
    assert len(report.finished) == 3
    assert len(fp8pad.convert(NAME, tmp_path / "out", finish=True).resumed) == 3
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")
    assert left_beside(tmp_path / "out") == set()


def test_a_temporary_folder_that_cannot_be_removed_is_no_fault(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails there, OUT_DIR is complete."""
    hub.add(NAME, model)
    samestat = os.path.samestat

    def fail(one: os.stat_result, other: os.stat_result) -> bool:
        if any(frame.name == "rmtree" for frame in traceback.extract_stack()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return samestat(one, other)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("fp8pad.hub._hold_downloads", lambda _: nullcontext())
    monkeypatch.setattr(os.path, "samestat", fail)
    fp8pad.convert(NAME, tmp_path / "out")
    assert fp8pad.verify(model, tmp_path / "out").ok
    assert len(list((tmp_path / "temporary").iterdir())) == 1


def test_a_temporary_folder_that_is_too_small_is_a_line(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says which file does not fit, and how to choose another folder; none of it is fetched."""
    hub.add(NAME, model)
    fp8pad.convert(model, tmp_path / "out")
    monkeypatch.setattr("fp8pad.hub.fetcher.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    needed = size((model / FIRST).stat().st_size)
    message = f"not enough disk space for {FIRST}: {needed} needed, 100 bytes free; set TMPDIR"
    with pytest.raises(OutputError, match=message):
        fp8pad.verify(NAME, tmp_path / "out", jobs=1)


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_progress_counts_what_is_fetched(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    """Every announced byte is counted: fetched, written, read back; on a cluster too."""
    monkeypatch.setattr("fp8pad.parallel.run_on_cluster", run_sent)
    hub.add(NAME, model)
    counter, size = Counter(), sum(path.stat().st_size for path in model.glob("*.safetensors"))
    fp8pad.convert(NAME, tmp_path / "out", jobs=1, executor=executor, progress=counter)
    assert counter.num_bytes == counter.total_bytes > 3 * size
    verified = fp8pad.verify(NAME, tmp_path / "out", executor=executor, progress=counter)
    assert verified.ok
    assert counter.num_bytes == counter.total_bytes > 2 * size
    assert fp8pad.verify(model, tmp_path / "out").ok
    assert left_beside(tmp_path / "out") == set()


def test_a_disk_has_to_hold_what_is_fetched_too(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs the output and one shard per job, less what an earlier run has fetched of them."""
    hub.add(NAME, model)
    shards = sorted(path.stat().st_size for path in model.glob("*.safetensors"))
    needed: list[int] = []

    def check(_: Path, needed_bytes: int, __: int) -> None:
        needed.append(needed_bytes)

    monkeypatch.setattr("fp8pad.staged.check_space", check)
    fp8pad.convert(model, tmp_path / "local", link="copy")
    for jobs in (1, 2):
        fp8pad.convert(NAME, tmp_path / f"out{jobs}", jobs=jobs)
    assert [found - needed[0] for found in needed] == [0, shards[-1], sum(shards)]


@pytest.mark.parametrize("link", ["auto", "hardlink", "reflink"])
def test_shards_that_are_fetched_take_room_however_they_are_linked(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Link
) -> None:
    """None is on this disk before; here none is padded."""
    hub.add(NAME, llama(tmp_path / "aligned", n=32, k=32))
    needed: list[int] = []
    monkeypatch.setattr("fp8pad.staged.check_space", lambda _, needed_bytes, __: needed.append(needed_bytes))
    modes: tuple[Link, ...] = ("copy", link)
    for mode in modes:
        assert not fp8pad.convert(NAME, tmp_path / mode, link=mode).tensors_padded
    assert needed[0] == needed[1]


def test_files_of_the_same_bytes_do_not_meet(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Each is fetched separately, also when several are fetched at a time."""
    for number in range(20):
        (model / f"copy-{number}.txt").write_bytes(b"the same" * 1000)
    hub.add(NAME, model)
    fp8pad.convert(NAME, tmp_path / "out", jobs=8)
    assert fp8pad.verify(model, tmp_path / "out").ok


def test_verifying_against_the_hub_finds_a_byte(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """A logical byte that differs from the hub's is found."""
    hub.add(NAME, model)
    fp8pad.convert(model, tmp_path / "out")
    shard = tmp_path / "out" / FIRST
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert [mismatch.file for mismatch in fp8pad.verify(NAME, tmp_path / "out").mismatches] == [FIRST]


def test_a_conversion_that_was_cut_off_goes_on(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Finished shards are not fetched again, and a partial shard is continued."""
    hub.add(NAME, model)
    second = FIRST.replace("1-of", "2-of")
    size = (model / second).stat().st_size
    real = hub.next_fault

    def fail_on_the_second() -> int | str | None:
        return ("cut" if hub.requests[second] == 2 else 503) if hub.requests[second] > 1 else real()

    hub.next_fault = fail_on_the_second  # type: ignore[method-assign]
    with pytest.raises(HubError, match=f"{second}: ends early|503"):
        fp8pad.convert(NAME, tmp_path / "out", jobs=1, card=False)
    assert not (tmp_path / "out").exists()
    hub.next_fault = real  # type: ignore[method-assign]
    hub.requests.clear()
    hub.sent = 0
    report = fp8pad.convert(NAME, tmp_path / "out", jobs=1, card=False)
    assert report.resumed == (FIRST,)
    assert hub.requests[FIRST] == 1  # its header
    assert size // 2 < hub.sent < size // 2 + 2 * FIRST_BYTES + 5000
    fp8pad.convert(model, tmp_path / "local", verify="full", card=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")
    assert left_beside(tmp_path / "out") == set()


def test_a_finished_shard_that_was_altered_is_made_again(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """The recorded hash decides, not the size."""
    hub.add(NAME, model)
    second = FIRST.replace("1-of", "2-of")
    real = hub.next_fault
    hub.next_fault = lambda: 503 if hub.requests[second] > 1 else real()  # type: ignore[method-assign]
    with pytest.raises(HubError, match="503"):
        fp8pad.convert(NAME, tmp_path / "out", jobs=1, card=False)
    hub.next_fault = real  # type: ignore[method-assign]
    staged = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 500_000 // 2]
    altered = [path for path in staged if ".out" in str(path) and not str(path).endswith(".note")]
    assert altered
    for path in altered:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    fp8pad.convert(NAME, tmp_path / "out", jobs=1, card=False)
    assert fp8pad.verify(model, tmp_path / "out").ok


def test_no_output_is_proposed_inside_a_cache(hub: FakeHub, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For an id and for a snapshot, a folder with the model's name in the current folder is proposed."""
    hub.add(NAME, model)
    snapshot = Path(huggingface_hub.snapshot_download(NAME))
    for named in (NAME, snapshot):
        report = fp8pad.plan(named)
        write(plan_screen(report), stdout_console())
        assert f"fp8pad convert {named} name-padded" in capsys.readouterr().out


def test_pushing_checks_and_uploads(hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uploaded files equal the local ones, with a card that names the base model."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add(NAME, model)
    fp8pad.convert(NAME, tmp_path / "out")
    report = fp8pad.push(str(tmp_path / "out"), "org/padded")
    assert report.repo == "org/padded"
    pushed = hub.repos["org/padded"]
    assert pushed.commits[pushed.revisions["main"]] == files_of(tmp_path / "out")
    assert b"base_model: org/name\n" in pushed.commits[pushed.revisions["main"]]["README.md"]
    assert report.url.startswith(f"{hub.endpoint}/org/padded/commit/")
    assert report.to_json()["notes"] == []


def test_pushing_uploads_what_the_record_names_alone(
    hub: FakeHub,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Secrets, links and other files are excluded and named; names are not patterns."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out_dir = tmp_path / "out"
    (model / "sub").mkdir()
    (model / "sub" / "[a]*.txt").write_text("a name with the letters of patterns")
    fp8pad.convert(model, out_dir)
    expected = files_of(out_dir)
    (tmp_path / "secret").write_text("secret")
    (out_dir / ".env").write_text("TOKEN=secret")
    (out_dir / "sub" / "a.txt").write_text("would match")
    (out_dir / ".git").mkdir()
    (out_dir / "sub" / "notes.txt").symlink_to(tmp_path / "secret")
    (out_dir / "folder").symlink_to(tmp_path)
    report = fp8pad.push(out_dir, "org/padded")
    assert report.excluded == (".env", ".git", "folder", "sub/a.txt", "sub/notes.txt")
    assert report.to_json()["files_left_out"] == list(report.excluded)
    pushed = hub.repos["org/padded"]
    assert pushed.commits[pushed.revisions["main"]] == expected
    write(push_screen(report), stdout_console())
    shown = capsys.readouterr().out
    assert "  excluded  not named in fp8pad.json: .env, .git, folder, " in shown
    assert NO_HASHES in report.to_json()["notes"]
    assert "fp8pad.json holds no hashes" in shown


def test_other_weights_in_the_repository_are_neither_removed_nor_joined(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single file would be preferred to an index, an old index names files that are gone; all else does no harm."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fp8pad.convert(model, tmp_path / "two-shards")
    fp8pad.convert(llama(tmp_path / "single"), tmp_path / "one-shard")
    before = tmp_path / "before"
    for file in (
        "adapter_model.safetensors",
        "2_Dense/model.safetensors",
        "model.gguf",
        "pytorch_model.bin",
        "LICENSE",
    ):
        (before / file).parent.mkdir(parents=True, exist_ok=True)
        (before / file).write_text("another's")
    hub.add("org/padded", before)

    def pushed() -> dict[str, bytes]:
        return hub.repos["org/padded"].commits[hub.repos["org/padded"].revisions["main"]]

    for _ in range(2):  # again onto its own files
        fp8pad.push(tmp_path / "two-shards", "org/padded")
        assert pushed() == files_of(before) | files_of(tmp_path / "two-shards")
    there = pushed()
    with pytest.raises(HubError, match=rf"has other weights, .*: {FIRST}, .*, {INDEX}; delete them there first"):
        fp8pad.push(tmp_path / "one-shard", "org/padded")
    assert pushed() == there


def test_without_a_login_nothing_is_verified_first(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verifying may take an hour, after which the upload would fail."""
    monkeypatch.setattr("fp8pad.upload.verify", lambda *_: pytest.fail("verified"))
    fp8pad.convert(model, tmp_path / "out")
    for offline, said in (False, "not logged in: run `hf auth login`"), (True, "offline mode"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(HubError, match=said):
            fp8pad.push(tmp_path / "out", "org/padded")
    assert hub.repos == {}


def test_the_hubs_reason_is_said(hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's first line has only the status and the URL."""
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    fp8pad.convert(model, tmp_path / "out")
    with pytest.raises(HubError, match=r"401.*; Invalid username or password\.; run `hf auth login` with a token that"):
        fp8pad.push(tmp_path / "out", "org/padded")
    assert hub.repos == {}


def test_what_was_not_checked_is_said_before_the_upload(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hashes: the hub does not even get a repository before that."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fp8pad.convert(model, tmp_path / "out")
    told: list[tuple[str, int]] = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", lambda note: told.append((note, len(hub.repos))))
    push(tmp_path / "out", "org/padded", private=False, needs_card=True, progress=progress)
    assert (told, list(hub.repos)) == ([(NO_HASHES, 0)], ["org/padded"])


def test_a_folder_without_its_tokenizer_is_not_pushed(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files that the record names must exist."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out_dir = tmp_path / "out"
    fp8pad.convert(model, out_dir)
    (out_dir / "tokenizer.json").unlink()
    with pytest.raises(Fp8padError, match=r"is not pushed: tokenizer\.json is missing"):
        fp8pad.push(out_dir, "org/padded")
    assert hub.repos == {}


@pytest.mark.parametrize("file", ["tokenizer.json", "README.md", "config.json", FIRST])
def test_a_link_out_of_the_folder_is_not_pushed(
    hub: FakeHub, model: Path, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its target, even the same bytes, and even under a recorded name."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out_dir = tmp_path / "out"
    fp8pad.convert(model, out_dir)
    (out_dir / file).rename(tmp_path / "moved")
    (out_dir / file).symlink_to(tmp_path / "moved")
    found = fp8pad.verify(out_dir)
    assert any(file in told for told in (*found.notes, *map(str, found.mismatches)))
    with pytest.raises(Fp8padError, match=rf"is not pushed: {file}: .* a link out of the folder"):
        fp8pad.push(out_dir, "org/padded")
    assert hub.repos == {}


def test_links_that_nobody_wrote_down_are_noted(model: Path, tmp_path: Path) -> None:
    """For links to a file or a folder, `verify` and `inspect` have a note."""
    out_dir = tmp_path / "out"
    fp8pad.convert(model, out_dir)
    (out_dir / "notes.txt").symlink_to("/etc/passwd")
    (out_dir / "folder").symlink_to(tmp_path)
    for report in (fp8pad.verify(out_dir), fp8pad.verify(model, out_dir), fp8pad.inspect(out_dir)):
        noted = [note.partition(":")[0] for note in report.notes if "a link out of the folder" in note]
        assert noted == ["folder", "notes.txt"]
    assert fp8pad.verify(out_dir).ok


def test_without_huggingface_hub_what_to_install_is_named_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read: the folder to push does not exist here."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    install = r"pip install 'huggingface_hub>=1\.0'$"
    with pytest.raises(HubError, match=f"^push needs huggingface_hub: {install}"):
        fp8pad.push(tmp_path / "absent", "org/padded")
    for command in (fp8pad.plan, lambda name: fp8pad.convert(name, tmp_path / "out")):
        with pytest.raises(HubError, match=f"^org/name: no such folder; .* need huggingface_hub: {install}"):
            command("org/name")


def test_what_is_not_fit_is_not_pushed(
    hub: FakeHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged one, one without a card, one that was not converted, and an invalid name."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fp8pad.convert(model, tmp_path / "bare", card=False)
    fp8pad.convert(model, tmp_path / "out", verify="full")
    shard = tmp_path / "out" / FIRST
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    for folder, name, message in (
        (tmp_path / "bare", "org/padded", r"README\.md does not say what fp8pad changed"),
        (tmp_path / "out", "org/padded", rf"is not pushed: {FIRST}: sha256"),
        (model, "org/padded", rf"has no fp8pad\.json, .*; convert it first; an .* `hf upload org/padded {model}`"),
        (tmp_path / "bare", "padded", "expected the name of a model on the hub"),
    ):
        with pytest.raises(Fp8padError, match=message):
            fp8pad.push(folder, name)
    assert hub.repos == {}
