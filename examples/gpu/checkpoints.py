"""The three forms of a model that are compared: original, padded and absorbed."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from synthetic import MODELS

KINDS = ("stock", "runtime", "absorbed")


def make_checkpoints(model: str, folder: Path, *, tiny: bool = False, num_ranks: int = 1) -> dict[str, Path]:
    """Make the forms of `model`, a checkpoint or a name in `synthetic.MODELS`, and return their paths.

    `num_ranks` is the tensor-parallel size of the converted ones.
    """
    name = Path(model).name + ("-tiny" if tiny and model in MODELS else "")
    paths = {kind: folder / f"{name}-{kind}" for kind in KINDS}
    if model not in MODELS:
        paths["stock"] = Path(model)
    elif not paths["stock"].exists():
        unfinished = folder / f"{name}-unfinished"
        script = Path(__file__).with_name("synthetic.py")
        _run(str(script), model, str(unfinished), *(["--tiny"] if tiny else []))
        unfinished.rename(paths["stock"])
    for kind, options in (("runtime", []), ("absorbed", ["--absorb"])):
        size = ["--overwrite", "--force", "-tp", str(num_ranks)]
        _run("-m", "fp8pad", "convert", str(paths["stock"]), str(paths[kind]), *size, *options)
    return paths


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the options shared by the scripts that serve `models`, and parse; exit if two models have the same name."""
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, help="ranks that share each layer")
    parser.add_argument("--pipeline-parallel-size", "-pp", type=int, default=1, help="ranks that share the layers out")
    parser.add_argument("--share-gpu", action="store_true", help="more ranks than GPUs: to compare, not to time")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/fp8pad-models"), help="where checkpoints are kept")  # noqa: S108
    parser.add_argument("--tiny", action="store_true", help="make synthetic models tiny, to try this on a CPU")
    arguments = parser.parse_args()
    names = [Path(model).name for model in arguments.models]
    if len(set(names)) < len(names):
        parser.error(f"expected models of different names, got {', '.join(names)}")
    return arguments


def served_by(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return how the models were served, for the results."""
    names = ("tensor_parallel_size", "pipeline_parallel_size", "share_gpu", "tiny")
    return {name: getattr(arguments, name) for name in names}


def needs_plugin(model: Path) -> bool:
    """Return whether only fp8pad's plugin can serve a checkpoint."""
    config = json.loads((model / "config.json").read_text())
    places = (config, config.get("text_config", {}))
    found = [place.get(key) or {} for place in places for key in ("quantization_config", "compression_config")]
    return any(quantization.get("quant_method") == "fp8pad" for quantization in found)


def _run(*arguments: str) -> None:
    # Its output goes to the log: standard output is for results.
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)
