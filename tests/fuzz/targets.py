"""The fuzz targets, and what each execution must do besides ending in time with a result or one of fp8pad's errors."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edits import Choices, edited, spelt
from helpers import case_names, copy_case, fast_folder
from safetensors import SafetensorError, deserialize

from fp8pad.checkpoint.headers import LENGTH_BYTES, parse_header
from fp8pad.checkpoint.json_text import parse_object
from fp8pad.checkpoint.options import VerifyDepth, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import Fp8padError
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.quantization_config import parse_quantization_config
from fp8pad.record import Policy, parse_record, parse_shard_metadata
from fp8pad.unpadding import unpad
from fp8pad.verification import verify

FOLDER = tempfile.TemporaryDirectory(prefix="fp8pad-fuzz-", dir=os.environ.get("FUZZ_FOLDER") or fast_folder())
AREA = Path(FOLDER.name, "area")
MAX_DATA_BYTES = 1 << 20
MAX_BYTES = 1_200_000
DEPTHS: tuple[VerifyDepth, VerifyDepth] = ("padded", "full")
POLICIES = [
    Policy(),
    Policy(absorb=True),
    Policy(absorb=True, absorb_experts=True, tensor_parallel_size=8),
    Policy(alignment=64, tensor_parallel_size=3),
]
# Where fp8pad is stricter than the safetensors library, according to docs/format.md.
STRICTER = re.compile(
    r"occurs twice|expected dtype, shape and data_offsets|surrogate|nest|recursion|too deep|levels|expected one of"
    r"|expected a list of sizes|expected \[begin, end\]|expected an object of strings|digit|NaN|Infinity|duplicate"
    r"|fewer lists and objects"
)


def _models() -> list[Path]:
    """Write every small case that converts to a separate folder."""
    names = case_names("good", "variants")[: int(os.environ.get("FUZZ_CASES", "1000"))]
    copies = [copy_case(path, Path(FOLDER.name, "cases", str(number))) for number, path in enumerate(names)]
    return [
        copy for copy in copies if sum(file.stat().st_size for file in copy.rglob("*") if file.is_file()) < MAX_BYTES
    ]


MODELS = _models()


def _header_of(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(content[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")])


SHARDS = [path for model in MODELS for path in sorted(model.glob("*.safetensors"))]
HEADERS = [_header_of(path) for path in SHARDS]


def _records() -> list[tuple[Any, Any]]:
    """Return fp8pad.json and config.json of converted cases."""
    found = []
    for number, model in enumerate(MODELS):
        try:
            source = read_unconverted(model)
            plan = plan_checkpoint(source.shards, source.configs, POLICIES[number % 2])
            convert(PlanReport(source, plan, card=False), AREA / "records", WriteOptions(), Progress())
        except Fp8padError:
            continue
        if (AREA / "records" / "fp8pad.json").exists():
            found.append(
                tuple(json.loads((AREA / "records" / name).read_text()) for name in ("fp8pad.json", "config.json"))
            )
        shutil.rmtree(AREA / "records")
    return found


RECORDS = _records()


def header(choices: Choices) -> str:
    """The safetensors library accepts all that fp8pad accepts; the reverse holds except for documented rules."""
    if choices.ConsumeIntInRange(0, 3):
        text = spelt(choices, edited(choices, HEADERS[choices.ConsumeIntInRange(0, len(HEADERS) - 1)]))
    else:
        text = choices.ConsumeBytes(4096)
    data_bytes = max(map(int, re.findall(rb"(\d{1,9})\s*\]", text)), default=0)
    content = len(text).to_bytes(LENGTH_BYTES, "little") + text + bytes(min(data_bytes, MAX_DATA_BYTES))
    try:
        deserialize(content)  # type: ignore[no-untyped-call]
        is_accepted = True
    except SafetensorError:
        is_accepted = False
    try:
        parse_header(content[: LENGTH_BYTES + len(text)], len(content), "x")
    except Fp8padError as error:
        if is_accepted and not STRICTER.search(str(error)):
            raise AssertionError(f"the library accepts what is refused: {error}") from error
        _check_message(error)
        return "refused by us alone" if is_accepted else "refused by both"
    if not is_accepted:
        raise AssertionError("the library refuses what is accepted")
    return "accepted by both"


def record(choices: Choices) -> str:
    """fp8pad.json, the quantization config that the runtime reads too, and the metadata of a shard."""
    kept, config = RECORDS[choices.ConsumeIntInRange(0, len(RECORDS) - 1)]
    kind = choices.ConsumeIntInRange(0, 2)
    try:
        if kind == 0:
            "".join(parse_record(spelt(choices, edited(choices, kept)).decode(errors="surrogateescape")).text_parts())
        elif kind == 1:
            text = spelt(choices, edited(choices, config)).decode(errors="surrogateescape")
            parse_quantization_config(parse_object("config.json", text).get("quantization_config"))
        else:
            metadata = {"format_version": 1, "tensors": {"a": {"logical_shape": [21, 24]}}}
            parse_shard_metadata(spelt(choices, edited(choices, metadata)).decode(errors="surrogateescape"), "x")
    except Fp8padError as error:
        _check_message(error)
        return f"refused: {type(error).__name__}"
    return "accepted"


def config(choices: Choices) -> str:
    """A plan from any config and any headers, and its JSON document."""
    number = choices.ConsumeIntInRange(0, len(MODELS) - 1)
    model = MODELS[number]
    try:
        source = read_unconverted(model)
        document = edited(choices, dict(source.configs["config.json"]))
        configs = {**source.configs, "config.json": document if isinstance(document, dict) else {}}
        policy = POLICIES[choices.ConsumeIntInRange(0, len(POLICIES) - 1)]
        plan = plan_checkpoint(_edited_shards(choices, source.shards), configs, policy)
        json.dumps(PlanReport(source, plan).to_json())
    except Fp8padError as error:
        _check_message(error)
        return f"refused: {type(error).__name__}"
    return "planned"


def _edited_shards(choices: Choices, shards: Any) -> Any:
    if choices.ConsumeIntInRange(0, 1):
        return shards
    headers = []
    for shard in shards:
        document = edited(choices, _header_of_shard(shard), 2)
        text = json.dumps(document).encode()
        end = max((entry["data_offsets"][1] for entry in document.values() if _has_offsets(entry)), default=0)
        prefix = len(text).to_bytes(LENGTH_BYTES, "little") + text
        headers.append(parse_header(prefix, len(prefix) + end, shard.file))
    return tuple(headers)


def _has_offsets(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int


def _header_of_shard(shard: Any) -> Any:
    entries = {
        tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.begin, tensor.end]}
        for tensor in shard.tensors
    }
    return entries | ({"__metadata__": dict(shard.metadata)} if shard.metadata else {})


def folder(choices: Choices) -> str:
    """A whole folder: planned, converted, verified, unpadded, or refused; the source is kept, and nothing else appears.

    The output verifies, and unpadding restores the files that were copied.
    """
    shutil.rmtree(AREA, ignore_errors=True)
    AREA.mkdir()
    model, out_dir, restored = (AREA / name for name in ("model", "out", "restored"))
    shutil.copytree(MODELS[choices.ConsumeIntInRange(0, len(MODELS) - 1)], model)
    for _ in range(choices.ConsumeIntInRange(1, 3)):
        _mutate(choices, model)
    before = _files_of(model)
    policy = POLICIES[choices.ConsumeIntInRange(0, len(POLICIES) - 1)]
    options = WriteOptions(jobs=1, verify=DEPTHS[choices.ConsumeIntInRange(0, 1)])
    outcome = "refused"
    try:
        source = read_unconverted(model)
        plan = plan_checkpoint(source.shards, source.configs, policy)
        json.dumps(PlanReport(source, plan).to_json())
        convert(PlanReport(source, plan, card=False), out_dir, options, Progress())
        report = verify(model, out_dir, Progress())
        if not report.ok:
            raise AssertionError(f"converted, but not verified: {report.mismatches[0]}")
        outcome = "converted"
        if (out_dir / "fp8pad.json").exists():
            unpad(out_dir, restored, options, Progress())
            outcome = "restored"
            links = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_symlink()}
            found = {name: content for name, content in _files_of(restored).items() if name not in links}
            if found != {name: before[name] for name in before if name not in source.excluded}:
                raise AssertionError("what was restored is not what was converted")
    except Fp8padError as error:
        if outcome != "refused":
            raise AssertionError(f"{outcome}, then: {error}") from error
        _check_message(error)
        outcome = f"refused: {type(error).__name__}"
    if _files_of(model) != before:
        raise AssertionError("the source was changed")
    if extra := {path.name for path in AREA.iterdir()} - {"model", "out", "restored"}:
        raise AssertionError(f"left behind: {extra}")
    return outcome


def _mutate(choices: Choices, model: Path) -> None:
    files = sorted(path for path in model.rglob("*") if path.is_file() and not path.is_symlink())
    path = files[choices.ConsumeIntInRange(0, len(files) - 1)]
    content = path.read_bytes()
    match choices.ConsumeIntInRange(0, 9):
        case 0:
            path.write_bytes(content[: choices.ConsumeIntInRange(0, len(content))])
        case 1:
            at = choices.ConsumeIntInRange(0, max(0, len(content) - 1))
            path.write_bytes(content[:at] + choices.ConsumeBytes(4) + content[at + 4 :])
        case 2:
            path.unlink()
        case 3:
            shutil.copy(path, model / f"{path.stem}{choices.ConsumeIntInRange(0, 9)}{path.suffix}")
        case 4:
            _add_name(choices, model)
        case 5:
            _add_link(choices, model)
        case _:
            _edit(choices, path, content)


def _add_name(choices: Choices, model: Path) -> None:
    name = re.sub(r"[/\0]", "_", choices.ConsumeUnicode(20)) or "_"
    (model / "sub").mkdir(exist_ok=True)
    with open(os.fsencode(model / "sub") + b"/_" + name.encode(errors="surrogatepass")[:250], "wb") as file:
        file.write(b"x")


def _add_link(choices: Choices, model: Path) -> None:
    link = model / f"link{choices.ConsumeIntInRange(0, 9)}"
    targets = [".", "..", "nowhere", "config.json", "/etc/hostname", link.name]
    if not link.is_symlink():
        link.symlink_to(targets[choices.ConsumeIntInRange(0, len(targets) - 1)])


def _edit(choices: Choices, path: Path, content: bytes) -> None:
    """Edit a JSON file, or the header of a shard."""
    is_shard = path.suffix == ".safetensors"
    data_start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little") if is_shard else len(content)
    try:
        document = json.loads(content[LENGTH_BYTES if is_shard else 0 : data_start])
    except (ValueError, RecursionError):
        path.write_bytes(content + choices.ConsumeBytes(8))
        return
    text = spelt(choices, edited(choices, document, 2))
    path.write_bytes((len(text).to_bytes(LENGTH_BYTES, "little") if is_shard else b"") + text + content[data_start:])


def _files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _check_message(error: Fp8padError) -> None:
    """Check that a message fits a terminal: one line once it is printed, and not megabytes."""
    if len(str(error)) > 20_000:
        raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:200]}") from error


TARGETS: list[tuple[str, Callable[[Choices], str]]] = [
    *[("header", header)] * 3,
    *[("record", record)] * 3,
    *[("config", config)] * 4,
    *[("folder", folder)] * 2,
]
