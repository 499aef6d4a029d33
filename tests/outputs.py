"""The outputs of converting the cases, as hashes: recorded with one version of fp8pad, compared with another.

Record again, with the fp8pad of an older checkout, after cases were added or changed:

    PYTHONPATH=OLDER_CHECKOUT python tests/outputs.py
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import INDEX, case_names, copy_case, files_of

RECORDED = Path(__file__).parent / "data" / "outputs.json"

OPTIONS = {
    "default": (),
    "absorb": ("--absorb",),
    "experts": ("--absorb", "--absorb-experts", "-tp", "2"),
    "alignment": ("--alignment", "32"),
}


def source_digest(model: Path) -> str:
    """Return a hash of every file of a checkpoint: recorded outputs are valid only for these files."""
    digest = hashlib.sha256()
    for name, content in sorted(files_of(model).items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def output_digests(out_dir: Path) -> dict[str, str]:
    """Return a short hash of each shard and the index, byte for byte, and of config.json and fp8pad.json."""
    contents = {path.name: path.read_bytes() for path in out_dir.glob("*.safetensors")}
    for name in (INDEX, "config.json", "fp8pad.json"):
        if (out_dir / name).exists():
            text = (out_dir / name).read_text()
            contents[name] = (text if name == INDEX else _normalised(text)).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in sorted(contents.items())}


def _normalised(text: str) -> str:
    """Remove from a JSON file what may differ between versions: the version, optional fields, other files' sizes."""
    document = json.loads(text)
    _without_what_may_differ(document)
    return json.dumps(document)


def _without_what_may_differ(value: Any) -> None:
    if isinstance(value, list):
        for inner in value:
            _without_what_may_differ(inner)
    if isinstance(value, dict):
        for key in ("fp8pad_version", "inner", "skip", "sha256", "source_sha256"):
            value.pop(key, None)
        if "originals" in value and "files" in value:
            # config.json's size depends on the version's name; which other files are copied is tested elsewhere.
            kept = {name: sizes for name, sizes in value["files"].items() if name == INDEX or "safetensors" in name}
            value["files"] = {name: sizes for name, sizes in kept.items() if "/" not in name}
        for inner in value.values():
            _without_what_may_differ(inner)


def digests_of(case: str, folder: Path, convert: Callable[[Path, Path, tuple[str, ...]], None]) -> dict[str, Any]:
    """Convert a copy of `case` in each way, into `folder`, and return the hashes of source and outputs."""
    model = copy_case(case, folder)
    outputs = {}
    for number, (name, options) in enumerate(OPTIONS.items()):
        out_dir = folder / f"out{number}"
        convert(model, out_dir, options)
        outputs[name] = output_digests(out_dir)
    return {"source": source_digest(model), "outputs": outputs}


def _convert_in_a_process(model: Path, out_dir: Path, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "fp8pad", "convert", str(model), str(out_dir), *options]
    # Python searches the current folder for modules first, which may contain another version.
    subprocess.run(command, check=True, capture_output=True, cwd=out_dir.parent)


def main() -> None:
    """Record what the installed fp8pad writes."""
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for case in case_names("good", "variants"):
        with tempfile.TemporaryDirectory() as folder:
            found = digests_of(case, Path(folder), _convert_in_a_process)
        recorded.setdefault(case, {})[found["source"]] = found["outputs"]
    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
