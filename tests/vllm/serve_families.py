"""Serve tiny models of many families with vLLM's CPU build, before and after converting, and compare the answers.

    .venv-vllm/bin/python tests/vllm/serve_families.py FOLDER [--only MODEL_TYPE ...]

Prints the table of docs/support.md. The stock engine serves originals and absorbed forms, the one with fp8pad's plugin
the others. FOLDER keeps models and answers; what is there is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from served_models import MODELS, build
from serving import STANDINS, serve
from test_serving import with_torchvision

import fp8pad
from fp8pad.planning.comparison import compare_sizes
from fp8pad.planning.engines import find_engine
from fp8pad.planning.verdict import Judge

# Converted for two ranks, and served on one, where an original answers too.
FORMS: dict[str, dict[str, Any]] = {
    "padded": {"tensor_parallel_size": 2},
    "absorbed": {"tensor_parallel_size": 2, "absorb": True, "absorb_experts": True},
}
TITLES = "| model type | layout | vLLM 0.33 at TP 1 and 2 (plan) | original | padded | absorbed |"
AT_A_TIME = 12


def main() -> None:
    """Make, serve and compare the models, or, for the processes that this starts, serve the given folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="model types; all, if not given")
    parser.add_argument("--serve", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_each(options.serve)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STANDINS), os.environ.get("PYTHONPATH", "")])
    os.environ.update(with_torchvision())
    names = [name for name in MODELS if not options.only or name[0] in options.only]
    folders = {name: options.folder / f"{name[0]}-{name[1].replace(', ', '-')}" for name in names}
    for (model_type, layout), folder in folders.items():
        make(model_type, layout, folder)
    made = [folder / form for folder in folders.values() for form in ("original", *FORMS)]
    for plugins in ("fp8pad_standins", "fp8pad_standins,fp8pad"):
        needs_plugin = plugins.endswith("fp8pad")
        serve_apart([form for form in made if is_padded(form) == needs_plugin], plugins)
    print(TITLES + "\n" + "|---" * TITLES.count(" | ") + "|---|")
    for (model_type, layout), folder in folders.items():
        print(f"| {' | '.join((f'`{model_type}`', layout, planned(folder), *compared(folder)))} |")


def make(model_type: str, layout: str, folder: Path) -> None:
    """Write a model and its conversions, unless they are there."""
    if (folder / "absorbed").is_dir():
        return
    original = build(model_type, layout, folder / "original")
    for form, options in FORMS.items():
        fp8pad.convert(original, folder / form, force=True, **options)


def is_padded(model: Path) -> bool:
    """Return whether a checkpoint needs the plugin."""
    config = json.loads((model / "config.json").read_text())
    return bool(config["quantization_config"]["quant_method"] == "fp8pad")


def serve_apart(models: Sequence[Path], plugins: str) -> None:
    """Serve models that have no answers yet, several in a process; another one takes over where it fails."""
    env = {**os.environ, "VLLM_PLUGINS": plugins, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_MLA_DISABLE": "1"}
    while left := [model for model in models if not answers_file(model).exists()][:AT_A_TIME]:
        command = [sys.executable, __file__, str(left[0].parent), "--serve", *map(str, left)]
        run = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
        failed = next((model for model in left if not answers_file(model).exists()), None)
        if run.returncode and failed:
            answers_file(failed).write_text(json.dumps({"error": f"exit status {run.returncode}"}))


def serve_each(models: Sequence[Path]) -> None:
    """Serve models in this process, and write down their answers; stop after one that the engine refuses."""
    for model in models:
        try:
            served = asdict(serve(model))
        except Exception as error:
            answers_file(model).write_text(json.dumps({"error": " ".join(str(error).split())[:120]}))
            return
        answers_file(model).write_text(json.dumps(served))


def answers_file(model: Path) -> Path:
    """Return where a model's answers are."""
    return model.with_name(f"{model.name}.answers.json")


def planned(folder: Path) -> str:
    """Return what the plan says about the original."""
    plan = fp8pad.plan(folder / "original").plan
    return ", ".join(at.original.outcome for at in compare_sizes(Judge(plan, find_engine()), (1, 2)))


def compared(folder: Path) -> tuple[str, str, str]:
    """Return the cells for the original, the padded and the absorbed form."""
    original, padded, absorbed = (json.loads(answers_file(folder / form).read_text()) for form in ("original", *FORMS))
    base: dict[str, Any] = next((each for each in (original, absorbed, padded) if "error" not in each), {})
    first = "served" if "error" not in original else f"not served: {original['error']}"
    return first, same(padded, base), same(absorbed, base)


def same(served: dict[str, Any], base: dict[str, Any]) -> str:
    """Return how answers compare with those of the base, and how many layers the plugin padded."""
    if "error" in served:
        return f"not served: {served['error']}"
    layers = f"; {count} layers padded" if (count := len(served["padded_layers"])) else ""
    if served["answers"] == base["answers"]:
        return f"equal{layers}"
    differences = (
        abs(one - other)
        for answer, wanted in zip(served["answers"], base["answers"], strict=True)
        for key in ("logprobs", "prompt_logprobs")
        for one, other in zip(answer[key], wanted[key], strict=True)
    )
    return f"differs by {max(differences):.2g} at most{layers}"


if __name__ == "__main__":
    main()
