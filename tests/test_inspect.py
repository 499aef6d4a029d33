"""Inspecting: what the records say, and where they disagree."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import FBGEMM, copy_case, files_of, gated, llama, safetensors_bytes, stored, write_checkpoint
from test_verify import convert_to, edit_json

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import Fp8padError, RecordError
from fp8pad.inspection import inspect_checkpoint
from fp8pad.padded import AxisActions, PaddedTensor
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.render.console import stdout_console
from fp8pad.render.inspection import inspection_screen
from fp8pad.render.terminal import write

NAME = "model.layers.0.mlp.down_proj"
PADDED_BADLY = {"quant_method": "fp8pad", "format_version": 1, "modules": "garbage"}


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """Write a padded checkpoint."""
    return convert_to(llama(tmp_path / "model"), tmp_path / "out", Policy(alignment=32))


def test_the_records_are_read(out_dir: Path) -> None:
    """All three are read, and they agree."""
    found = inspect_checkpoint(out_dir)
    assert found.disagreements == ()
    assert found.record is not None
    assert found.record.policy == Policy(alignment=32)
    assert found.record.tensors[f"{NAME}.weight"] == PaddedTensor((21, 24), (32, 32), 0, AxisActions("pad", "pad"))
    assert found.quantization is not None
    assert found.quantization.modules[NAME].padded_shape == (32, 32)


def test_layers_and_tensors_are_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some layers have no tensor that is larger: they are padded as they are loaded."""
    models = {"1 layer (2 tensors, scales included)": (21, 24, 1), "2 layers (as they are loaded)": (32, 48, 2)}
    for said, (n, k, ranks) in models.items():
        model = llama(tmp_path / f"model{ranks}", n=n, k=k)
        out_dir = convert_to(model, tmp_path / f"out{ranks}", Policy(tensor_parallel_size=ranks))
        write(inspection_screen(inspect_checkpoint(out_dir)), stdout_console())
        assert f"\n  padded  {said}\n" in capsys.readouterr().out


META = f"model.safetensors: __metadata__.fp8pad: {NAME}.weight: logical_shape"


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        (
            "fp8pad.json",
            lambda d: d["tensors"].pop(f"{NAME}.weight"),
            f"{META}: expected no entry, as in fp8pad.json, got [21, 24]",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"][f"{NAME}.weight"].update(logical_shape=[20, 24]),
            f"{META}: expected [20, 24], as in fp8pad.json, got [21, 24]",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"][f"{NAME}.weight"].update(padded_shape=[48, 32]),
            f"fp8pad.json: {NAME}.weight: padded_shape: expected [32, 32], as on disk, got [48, 32]",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"].update({"x": d["tensors"][f"{NAME}.weight"]}),
            "fp8pad.json: x: padded_shape: expected a tensor of the shards, got [32, 32]",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"][f"{NAME}.weight"].update(fill=1),
            (
                "fp8pad.json: record: expected one that fits the checkpoint, got model.safetensors:"
                f" {NAME}.weight: F8_E4M3 cannot be filled with 1.0"
            ),
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(padded_shape=[48, 32]),
            f"config.json: modules: {NAME}: padded_shape: expected [32, 32], as on disk, got [48, 32]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(logical_shape=[20, 24]),
            f"config.json: modules: {NAME}: logical_shape: expected [21, 24], by fp8pad.json, got [20, 24]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(alignment=[32, 48]),
            f"config.json: modules: {NAME}: alignment: expected divisors of [32, 32], got [32, 48]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"].pop(NAME),
            f"config.json: modules: expected one for {NAME}.weight, which is padded, got none",
        ),
        (
            "config.json",
            lambda d: d.pop("quantization_config"),
            (
                f"config.json: quantization_config: expected one of fp8pad, since {NAME}.weight is padded,"
                " got another or none"
            ),
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["base"].clear(),
            "config.json: quantization_config.base.quant_method: expected a key, got no key",
        ),
        ("config.json", lambda d: d.update(torch_dtype="x"), 'config.json: torch_dtype: expected no key, got "x"'),
        (
            "config.json",
            lambda d: d["quantization_config"].update(fp8pad_version="9"),
            'config.json: quantization_config.fp8pad_version: expected "0.1.0", got "9"',
        ),
        (
            "fp8pad.json",
            lambda d: d["config_edits"].append({"file": "config.json", "key": "model_type", "old": 1, "new": 2}),
            "fp8pad.json: config_edits: model_type: old: expected llama, as in originals, got 1",
        ),
        (
            "fp8pad.json",
            lambda d: d["files"]["model.safetensors"].update(size=1),
            "fp8pad.json: files: model.safetensors: size: expected 3160 bytes, got 1",
        ),
        (
            "fp8pad.json",
            lambda d: d["files"].pop("config.json"),
            "fp8pad.json: files: config.json: expected its sizes, got no entry",
        ),
        (
            "fp8pad.json",
            lambda d: d["files"].update({"m.py": {"source_size": 1, "size": 1}}),
            "m.py is missing (1 bytes)",
        ),
    ],
)
def test_disagreements_are_told(out_dir: Path, file: str, edit: Callable[[Any], None], expected: str) -> None:
    """Each record is compared with the others, and with the files on disk."""
    edit_json(out_dir / file, edit)
    assert expected in inspect_checkpoint(out_dir).disagreements


def leaves(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path to each value of a JSON document, including objects and lists."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else ())
    )
    for key, value in inside:
        yield (*path, key)
        yield from leaves(value, (*path, key))


FORGED: list[Any] = [
    None,
    True,
    -1,
    2**70,
    0.5,
    "",
    "x",
    "architectures.0.x",
    "model_type.x",
    "a.b",
    [],
    [0],
    ["x"],
    {},
]


def test_any_value_of_a_record_can_be_forged(tmp_path: Path) -> None:
    """Values of every type and invalid keys are tried everywhere: reading ends with one of our errors."""
    config = FBGEMM | {"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 21}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": gated("model.layers.0.mlp", 21, 32)}, config)
    out_dir = convert_to(model, tmp_path / "out", Policy(absorb=True))
    honest = json.loads((out_dir / "fp8pad.json").read_text())
    some = set(list(honest["tensors"])[:2])
    honest_places = [path for path in leaves(honest) if path[0] != "tensors" or len(path) == 1 or path[1] in some]
    assert {"config_edits", "base_source", "originals"} <= {path[0] for path in honest_places}
    for *way, last in honest_places:
        for value in FORGED:
            document = json.loads(json.dumps(honest))
            holder = document
            for key in way:
                holder = holder[key]
            holder[last] = value
            (out_dir / "fp8pad.json").write_text(json.dumps(document))
            with suppress(Fp8padError):
                inspect_checkpoint(out_dir)


def test_an_absorbed_axis_has_its_padded_size_in_the_config(example: Path, tmp_path: Path) -> None:
    """down_proj is absorbed along K and padded along N: config.json has the larger K and the source's N."""
    out_dir = convert_to(example, tmp_path / "absorbed", Policy(absorb=True))
    found = inspect_checkpoint(out_dir)
    assert found.disagreements == ()
    assert found.quantization is not None
    assert found.quantization.modules[NAME].logical_shape == (136, 224)

    def source_shape(config: Any) -> None:
        config["quantization_config"]["modules"][NAME]["logical_shape"] = [136, 213]

    edit_json(out_dir / "config.json", source_shape)
    assert inspect_checkpoint(out_dir).disagreements[0] == (
        f"config.json: modules: {NAME}: logical_shape: expected [136, 224], by fp8pad.json, got [136, 213]"
    )


def test_a_garbled_record_is_a_disagreement(out_dir: Path) -> None:
    """The contents of the other records are still shown."""
    (out_dir / "fp8pad.json").write_text("garbage")
    edit_json(out_dir / "config.json", lambda document: document["quantization_config"].pop("modules"))
    found = inspect_checkpoint(out_dir)
    assert found.record is None
    assert found.quantization is None
    assert [fault.split(":")[0] for fault in found.disagreements] == ["fp8pad.json", "config.json"]


@pytest.mark.parametrize("file", ["fp8pad.json", "config.json"])
def test_nothing_is_promised_from_a_record_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """No engine is named; the screen says which file is wrong and what to do, and has no empty sections."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    edit_json(out_dir / file, lambda document: document.update(format_version="x", quantization_config=PADDED_BADLY))
    found = inspect_checkpoint(out_dir)
    write(inspection_screen(found), stdout_console())
    shown = capsys.readouterr().out
    assert "\nHow it is served\n  not known, since a record cannot be read\n" in shown
    assert f"\n  disagrees  {file if file == 'fp8pad.json' else 'fp8pad.json: record'}" in shown
    assert "\n  Undo these changes, get the files again, or convert the original again.\n" in shown
    assert ("\nFrom the record\n" in shown) == (file == "config.json")
    assert "any engine" not in shown


def test_a_missing_record_is_a_disagreement(out_dir: Path) -> None:
    """The other records show that the checkpoint was padded."""
    (out_dir / "fp8pad.json").unlink()
    found = inspect_checkpoint(out_dir)
    assert found.record is None
    assert any("fp8pad.json: is missing" in fault for fault in found.disagreements)


def test_shards_without_their_record_are_a_disagreement(out_dir: Path) -> None:
    """A tool that saved the tensors again may have lost the metadata."""
    path = out_dir / "model.safetensors"
    path.write_bytes(safetensors_bytes({name: (dtype, shape) for name, (dtype, shape, _) in stored(path).items()}))
    found = inspect_checkpoint(out_dir).disagreements
    assert f"{META}: expected [21, 24], as in fp8pad.json, got no entry" in found


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Policy(), "absorb: no"),
        (Policy(absorb=True), "absorb: MLPs"),
        (Policy(absorb_experts=True), "absorb: routed experts"),
        (Policy(absorb=True, absorb_experts=True), "absorb: MLPs and routed experts"),
    ],
)
def test_what_was_asked_for_is_said(
    policy: Policy, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts can be absorbed without the rest."""
    model = copy_case("good/qwen3_moe_dyn", tmp_path)
    write(inspection_screen(inspect_checkpoint(convert_to(model, tmp_path / "out", policy))), stdout_console())
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line.startswith("policy")).endswith(said)


def test_sizes_are_those_that_converting_tells(tmp_path: Path) -> None:
    """fp8pad.json is counted too."""
    model = llama(tmp_path / "model")
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    report = convert(PlanReport(source, plan, card=False), tmp_path / "out", WriteOptions(), Progress())
    found = inspect_checkpoint(tmp_path / "out")
    assert (found.source_bytes, found.size_bytes) == (report.source_bytes, report.written_bytes)
    assert found.size_bytes == sum(len(content) for content in files_of(tmp_path / "out").values())


def test_files_that_changed_are_told_by_their_danger(out_dir: Path) -> None:
    """New code and an altered tokenizer are faults; a model card and a licence are notes."""
    (out_dir / "README.md").write_text("a card")
    (out_dir / "LICENSE").write_text("free")
    found = inspect_checkpoint(out_dir)
    assert found.disagreements == ()
    assert [note.split(":")[0] for note in found.notes] == ["LICENSE", "README.md"]
    (out_dir / "modeling_llama.py").write_text("import os")
    (out_dir / "tokenizer.json").write_text("{}")
    assert inspect_checkpoint(out_dir).disagreements == (
        "modeling_llama.py: was added (9 bytes)",
        "tokenizer.json: size: expected 18 bytes, got 2 bytes",
    )


def test_what_is_never_copied_is_told_by_its_kind(out_dir: Path) -> None:
    """Weights in another form, a link out of the folder, or no file at all."""
    (out_dir / "consolidated.safetensors").write_bytes((out_dir / "model.safetensors").read_bytes())
    (out_dir / "linked.py").symlink_to(Path(__file__))
    os.mkfifo(out_dir / "pipe.py")
    assert inspect_checkpoint(out_dir).disagreements == (
        "consolidated.safetensors: was added (another form of the weights)",
        "linked.py: was added (a link out of the folder)",
        "pipe.py: was added (not a regular file)",
    )


def test_the_document_of_a_script(out_dir: Path) -> None:
    """The output of --json has a version, and the path as given."""
    document = inspect_checkpoint(out_dir).to_json()
    assert list(document)[:6] == ["format_version", "path", "ok", "disagreements", "notes", "needs_runtime"]
    assert (document["format_version"], document["path"], document["ok"]) == (1, str(out_dir), True)
    assert json.loads(json.dumps(document))["policy"]["alignment"] == 32


def test_any_other_checkpoint_is_refused_with_what_a_plan_says(tmp_path: Path) -> None:
    """One line names the command, even if a plan would refuse the checkpoint."""
    model = llama(tmp_path / "model")
    told = f"{model}: was not padded by fp8pad: converting would"
    with pytest.raises(RecordError) as refused:
        inspect_checkpoint(model)
    assert str(refused.value) == f"{told} find 2 FP8 layers: 1 to pad, 1 aligned already; see `fp8pad plan {model}`"
    edit_json(model / "config.json", lambda document: document.update(quantization_config=[]))
    with pytest.raises(RecordError) as refused:
        inspect_checkpoint(model)
    assert str(refused.value).startswith(f"{told} refuse it: config.json: ")
    assert str(refused.value).endswith(f"; see `fp8pad plan {model}`")
