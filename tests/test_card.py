"""The model card: metadata in any style, fp8pad's section, and restoring the old card."""

import importlib.metadata
import json
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest
from helpers import files_of, llama

import fp8pad
from fp8pad.card import BEGIN, with_section
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import CheckpointError
from fp8pad.render.console import stdout_console
from fp8pad.render.reports import conversion_screen, restoration_screen
from fp8pad.render.terminal import write
from fp8pad.runtime.contract import FIRST_VERSION

ODD_KEYS = ['"my key": precious', "model.name: x", "co2 emissions: 5"]
RELATION = "base_model_relation: quantized\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint that needs padding."""
    return llama(tmp_path / "model")


def section_on(card: str, source: Checkpoint) -> tuple[str, str]:
    """Return the metadata and the rest of a card with fp8pad's section."""
    text = with_section(card, source, fp8pad.plan(source.root).plan)
    _, metadata, body = text.split("---\n", 2)
    return metadata, body


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("", f"{RELATION}tags:\n- fp8pad\n"),
        ("license: mit\ntags:\n  - fp8\n", f"license: mit\ntags:\n  - fp8\n  - fp8pad\n{RELATION}"),
        ("tags: [fp8, vllm]\n", f"tags: [fp8, vllm, fp8pad]\n{RELATION}"),
        ("tags: fp8\n", f"tags:\n- fp8\n- fp8pad\n{RELATION}"),
        ("tags:\n- fp8pad\n", f"tags:\n- fp8pad\n{RELATION}"),
        ("library_name: x\nbase_model:\n- a/b\n", f"library_name: x\nbase_model:\n- a/b\n{RELATION}tags:\n- fp8pad\n"),
        ("# words\nbase_model_relation: finetune\n", f"# words\n{RELATION}tags:\n- fp8pad\n"),
        ("tags: # mine\n- fp8 # his\n# hers\n", f"tags: # mine\n- fp8 # his\n# hers\n- fp8pad\n{RELATION}"),
        ("tags: []\n", f"tags: [fp8pad]\n{RELATION}"),
        ("tags: [a]\n\n# next\nlicense: mit\n", f"tags: [a, fp8pad]\n\n# next\nlicense: mit\n{RELATION}"),
        ("'base_model_relation': finetune\n", f"{RELATION}tags:\n- fp8pad\n"),
        ("title: a\u2028b\x0cc\x85d\n", f"title: a\u2028b\x0cc\x85d\n{RELATION}tags:\n- fp8pad\n"),
        # Unknown styles are not changed.
        ("tags: [fp8,\n  vllm]\n", f"tags: [fp8,\n  vllm]\n{RELATION}"),
        ("tags: [fp8] # mine\n", f"tags: [fp8] # mine\n{RELATION}"),
        ("tags: [[a]]\n", f"tags: [[a]]\n{RELATION}"),
        ("tags: {a: 1}\n", f"tags: {{a: 1}}\n{RELATION}"),
        ("tags: &all\n- fp8\n", f"tags: &all\n- fp8\n{RELATION}"),
        ("tags: *all\n", f"tags: *all\n{RELATION}"),
        ("tags: |\n  - fp8\n", f"tags: |\n  - fp8\n{RELATION}"),
        ("tags:\n- >\n  fp8\n", f"tags:\n- >\n  fp8\n{RELATION}"),
        *((f"base_model_relation: x\n{odd}\n", f"{RELATION}{odd}\ntags:\n- fp8pad\n") for odd in ODD_KEYS),
        ('"tags": [fp8]\n', f'"tags": [fp8]\n{RELATION}'),
        ("tags: [a]\ntags: [b]\n", f"tags: [a]\ntags: [b]\n{RELATION}"),
    ],
)  # fmt: skip
def test_metadata_is_added_in_the_style_of_the_card(model: Path, metadata: str, expected: str) -> None:
    """Existing metadata stays, in its order."""
    source = read_unconverted(model)
    found, body = section_on(f"---\n{metadata}---\n# A model\n\nText.\n", source)
    assert found == expected
    assert body.startswith(f"\n# A model\n\nText.\n\n{BEGIN}\n## Padded by fp8pad ")


@pytest.mark.parametrize(
    "metadata", ["{license: mit, tags: [x]}\n", "# a\n{license: mit}\n", "base_model: &b a/b\nname: *b\n"]
)
def test_metadata_that_would_break_stays_as_it_is(model: Path, metadata: str) -> None:
    """Metadata that cannot be extended safely is left unchanged, and the section says so."""
    source = replace(read_unconverted(model), name="org/name")
    found, body = section_on(f"---\n{metadata}---\nText.\n", source)
    assert found == metadata
    assert "\nThe metadata of this card was copied from the original unchanged.\n" in body


@pytest.mark.parametrize("name", ["models--o: x--m", "models--org\udcff--m"])
def test_a_folder_of_no_models_name_is_no_base_model(model: Path, tmp_path: Path, name: str) -> None:
    """Its name would be invalid YAML, or is not text."""
    snapshot = tmp_path / name / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    fp8pad.convert(snapshot, tmp_path / "out")
    assert "base_model:" not in (tmp_path / "out" / "README.md").read_text()


def test_a_byte_order_mark_is_no_part_of_the_metadata(model: Path, tmp_path: Path) -> None:
    """Editors put one before the dashes; the old card is restored with it."""
    (model / "README.md").write_text("\ufeff---\nlicense: mit\n---\nText.\n", "utf-8")
    fp8pad.convert(model, tmp_path / "out")
    written = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert written.startswith(f"---\nlicense: mit\n{RELATION}tags:\n- fp8pad\n---\n\nText.\n")
    fp8pad.unpad(tmp_path / "out", tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(model)


def test_a_folder_in_the_place_of_a_card_to_restore_is_refused(tmp_path: Path) -> None:
    """It is refused before anything is written."""
    model = llama(tmp_path / "model")
    (model / "README.md").write_text("a card")
    fp8pad.convert(model, tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "README.md").mkdir()
    (tmp_path / "out" / "README.md" / "notes.txt").write_text("text")
    with pytest.raises(CheckpointError, match=r"README\.md is a folder, where fp8pad has to write a file"):
        fp8pad.unpad(tmp_path / "out", tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("name", ["README.md", "fp8pad.json"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(model: Path, tmp_path: Path, name: str) -> None:
    """Otherwise the file to write would collide with it at the very end."""
    (model / name).mkdir()
    (model / name / "notes.txt").write_text("text")
    with pytest.raises(CheckpointError, match=f"{name} is a folder, where fp8pad has to write a file"):
        fp8pad.convert(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


def test_the_base_model_is_known_from_the_hub(model: Path, tmp_path: Path) -> None:
    """It is the hub id, or the model of the cache that holds the snapshot, and replaces an older entry."""
    source = read_unconverted(model)
    assert "base_model:" not in section_on("", source)[0]
    metadata, body = section_on("---\nbase_model:\n- a/b\n---\n", replace(source, name="org/name@main"))
    assert metadata == f"base_model: org/name\n{RELATION}tags:\n- fp8pad\n"
    assert "fp8pad verify org/name DIR" in body
    snapshot = tmp_path / "models--org--na-me" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    assert section_on("", read_unconverted(snapshot))[0].startswith("base_model: org/na-me\n")


def test_the_section_says_how_to_serve(example: Path) -> None:
    """It says whether the plugin is needed, what absorbing changed, and which TP sizes work."""
    source = read_unconverted(example)
    padded = with_section("", source, fp8pad.plan(example).plan)
    oldest = ".".join(map(str, FIRST_VERSION))
    needed = f"\nNeeds vLLM {oldest} or newer with fp8pad installed: other engines refuse it, or ignore its scales.\n"
    assert needed in padded
    assert "\nPadded for tensor-parallel sizes: 1.\n" in padded
    assert "\nvllm serve DIR\n" in padded
    assert "\nfp8pad verify ORIGINAL DIR " in padded  # without it, bytes of layers are not compared
    without_plugin = with_section("", source, replace(fp8pad.plan(example).plan, modules={}))
    assert "no plugin is needed" in without_plugin
    assert "```sh\nvllm serve DIR\n" in without_plugin
    absorbed = with_section("", source, fp8pad.plan(example, absorb=True).plan)
    assert "- `config.json`: `intermediate_size` is 224 instead of 213." in absorbed


def test_the_summary_asks_for_a_base_model_that_is_not_known(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's name on the hub is not known; nothing is asked for where no card is written."""
    for card in (True, False):
        report = fp8pad.convert(model, tmp_path / f"out{card}", card=card)
        write(conversion_screen(report), stdout_console())
        assert ("README.md: before you publish it, set base_model" in capsys.readouterr().out) is card


def test_sizes_are_those_at_which_heads_can_be_shared_too(model: Path) -> None:
    """28 heads can be divided among four ranks but not eight, though the FP8 layers could."""
    assert "too, where some are not aligned: 2, 4, 8.\n" in section_on("", read_unconverted(model))[1]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_attention_heads": 28}))
    assert "too, where some are not aligned: 2, 4.\n" in section_on("", read_unconverted(model))[1]


def test_sizes_that_it_was_not_padded_for_are_told_apart(tmp_path: Path) -> None:
    """Layers of `[32, 16]` are padded at load for four ranks if it was converted for two, but not for one."""
    model = llama(tmp_path / "model", n=1368, k=256)
    for size, padded, others in ((1, "1", "2, 4, 8"), (2, "1, 2, 4, 8", ""), (16, "1, 2, 4, 8, 16", "")):
        card = with_section("", read_unconverted(model), fp8pad.plan(model, tensor_parallel_size=size).plan)
        assert f"\nPadded for tensor-parallel sizes: {padded}.\n" in card
        rest = f"Ranks can share its layers at these sizes too, where some are not aligned: {others}."
        assert (rest in card) == bool(others)


@pytest.mark.parametrize("card", [None, "# A model\n", "---\nlicense: mit\n---\n\n# A model"])
def test_the_old_card_comes_back(model: Path, tmp_path: Path, card: str | None) -> None:
    """Any old card is restored; `verify` and `inspect` accept the new card, and edits of it are a note."""
    if card is not None:
        (model / "README.md").write_text(card)
    fp8pad.convert(model, tmp_path / "out", verify="full")
    written = (tmp_path / "out" / "README.md").read_text()
    assert BEGIN in written
    for report in (fp8pad.verify(model, tmp_path / "out"), fp8pad.verify(tmp_path / "out")):
        assert (report.ok, report.notes) == (True, ())
    (tmp_path / "out" / "README.md").write_text(written + "More.\n")
    report = fp8pad.verify(model, tmp_path / "out")
    assert report.ok
    assert [note.partition(":")[0] for note in report.notes] == ["README.md"]
    told = fp8pad.unpad(tmp_path / "out", tmp_path / "restored").notes
    assert files_of(tmp_path / "restored") == files_of(model)
    edited = "README.md: was edited since it was converted; the card from before converting was restored"
    assert told == (edited,)
    (tmp_path / "out" / "README.md").write_text(written.replace("fp8pad", "FP8PAD"))  # same length as before
    assert fp8pad.unpad(tmp_path / "out", tmp_path / "again").notes == (edited,)
    (tmp_path / "out" / "README.md").write_text(written)
    assert fp8pad.unpad(tmp_path / "out", tmp_path / "unedited").notes == ()


def test_the_summary_says_that_an_edited_card_did_not_come_back(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the edit would be lost silently; with --json it is among the notes."""
    fp8pad.convert(model, tmp_path / "out")
    with (tmp_path / "out" / "README.md").open("a") as card:
        card.write("More.\n")
    report = fp8pad.unpad(tmp_path / "out", tmp_path / "restored")
    write(restoration_screen(report), stdout_console())
    assert "README.md: was edited since" in capsys.readouterr().out
    assert report.to_json()["notes"] == list(report.notes)


def test_no_card_is_written_where_none_is_wanted(model: Path, tmp_path: Path) -> None:
    """Nor if nothing is changed, nor over a card that is not text."""
    fp8pad.convert(model, tmp_path / "out", card=False)
    assert not (tmp_path / "out" / "README.md").exists()
    fp8pad.convert(llama(tmp_path / "aligned", n=32, k=16), tmp_path / "copy")
    assert not (tmp_path / "copy" / "README.md").exists()
    for number, content in enumerate((b"\xff\xfe", b"")):
        (model / "README.md").write_bytes(content)
        fp8pad.convert(model, tmp_path / f"other{number}")
        assert (tmp_path / f"other{number}" / "README.md").read_bytes() == content


def test_a_released_package_names_its_repository(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section has the address in the package's metadata, or no command to install it without one."""
    released, installed = Message(), importlib.metadata.metadata
    released["Project-URL"] = "Changelog, https://forge.example/fp8pad/blob/main/CHANGELOG.md"
    released["Project-URL"] = "Repository, https://forge.example/fp8pad"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: released if name == "fp8pad" else installed(name))
    assert "pip install git+https://forge.example/fp8pad  # into" in section_on("", read_unconverted(model))[1]
    del released["Project-URL"]
    assert "pip install" not in section_on("", read_unconverted(model))[1]
