"""Measure how equal answers are: original, padded and absorbed, eager and compiled, one rank and two.

    python tests/bench/measure_equality.py MODEL... [--ways eager compiled ranks ...] [--json FILE]

Prints the rows of the table in docs/equality.md: the original is recorded, then it and its conversions are checked.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import Fp8padError
from fp8pad.golden.document import GoldenDocument
from fp8pad.golden.request import CheckOptions, RecordOptions
from fp8pad.golden.runs import check, record
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.render.progress import LineProgress

ANY_ATOL = 1e9
POLICIES = {"padded": Policy(), "absorbed": Policy(absorb=True)}


def conversions(model: Path, folder: Path) -> dict[str, Path]:
    """Return the checkpoint itself and its conversions."""
    made = {"original": model}
    for name, policy in POLICIES.items():
        source = read_unconverted(model)
        plan = plan_checkpoint(source.shards, source.configs, policy)
        made[name] = folder / name
        convert(PlanReport(source, plan, card=False), made[name], WriteOptions(), Progress())
    return made


def compared(golden: GoldenDocument, model: Path, options: CheckOptions) -> dict[str, Any]:
    """Return the figures of one check, with ties allowed, so that as much as possible is compared."""
    try:
        result = check(model, golden, replace(options, atol=ANY_ATOL, allow_ties=True), LineProgress())
    except Fp8padError as error:
        return {"error": str(error)}
    return {
        "identical": result.num_identical,
        "answers": len(result.prompts),
        "tokens_compared": sum(prompt.num_compared for prompt in result.prompts),
        "tokens": result.num_tokens,
        "max_abs_difference": result.max_abs_difference,
    }


# How the original is recorded, and how each conversion is then checked; None means as recorded.
PAIRS = {
    "eager": (RecordOptions(), CheckOptions()),
    "compiled": (RecordOptions(mode="compiled"), CheckOptions()),
    "ranks": (RecordOptions(tensor_parallel_size=2), CheckOptions()),
    "eager-compiled": (RecordOptions(), CheckOptions(mode="compiled")),
    "one-two-ranks": (RecordOptions(), CheckOptions(tensor_parallel_size=2)),
}


def measured(model: Path, ways: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each way and each conversion; if settings change, only for the original."""
    with tempfile.TemporaryDirectory() as folder:
        made = conversions(model, Path(folder))
        for way in ways:
            record_options, check_options = PAIRS[way]
            golden = record(model, record_options, LineProgress())
            where = {"model": model.name, "way": way, "device": golden.environment.device}
            where["engine"] = f"{golden.settings.engine} {golden.environment.engine_version}"
            for name, path in made.items() if check_options == CheckOptions() else [("original", model)]:
                yield where | {"checked": name} | compared(golden, path, check_options)


def main() -> None:
    """Print each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ways", nargs="+", choices=PAIRS, default=["eager"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        for row in measured(model.resolve(), arguments.ways):
            rows.append(row)
            print("|".join(str(value) for value in row.values()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
