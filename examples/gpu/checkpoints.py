"""The three forms of one model that are compared: the original, the padded one, and the absorbed one."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from synthetic import MODELS

KINDS = ("stock", "shim", "absorbed")


def make_checkpoints(model: str, folder: Path, *, tiny: bool = False, num_ranks: int = 1) -> dict[str, Path]:
    """Return where the forms of `model` are: a name of `synthetic.MODELS`, which is written first, or a checkpoint.

    `num_ranks` is the tensor-parallel size that the converted ones are for.
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
    for kind, options in (("shim", []), ("absorbed", ["--absorb"])):
        command = ["convert", str(paths["stock"]), str(paths[kind]), "--overwrite", "-tp", str(num_ranks), *options]
        _run("-m", "fp8pad", *command)
    return paths


def check_names(parser: argparse.ArgumentParser, models: Sequence[str]) -> None:
    """End with a message where two models would be written to one place."""
    names = [Path(model).name for model in models]
    if len(set(names)) < len(names):
        parser.error(f"expected models of different names, got {', '.join(names)}")


def needs_plugin(model: Path) -> bool:
    """Return whether only fp8pad's plugin can serve a checkpoint."""
    config = json.loads((model / "config.json").read_text())
    places = (config, config.get("text_config", {}))
    found = [place.get(key) or {} for place in places for key in ("quantization_config", "compression_config")]
    return any(quantization.get("quant_method") == "fp8pad" for quantization in found)


def _run(*arguments: str) -> None:
    # What it prints belongs to the log: standard output is for the results.
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)
