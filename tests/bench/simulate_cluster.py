"""Convert a simulated checkpoint of 1.5 TB, 200 sparse shards, on local Ray clusters of 1, 2, 4 and 8 nodes.

    python tests/bench/simulate_cluster.py [--nodes 1 2 4 8] [--shards 200] [--seconds-per-shard 0]

No bytes are moved, so the result is the overhead of a cluster, which is the fixed part of the model in docs/scale.md.
`--seconds-per-shard` adds that time to each shard, like a disk or a network.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sparse_checkpoint import Tensor, write_sparse_shard

from fp8pad import output
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.checkpoint.writer import Written
from fp8pad.conversion import convert
from fp8pad.output import SentWriter
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (16384, 53240)  # 872 MB, to be padded
PER_SHARD = 9


@dataclass(frozen=True)
class SlowWriter:
    """A writer with a slow disk."""

    writer: SentWriter
    seconds: float

    def __call__(self, layout: ShardLayout, advance: Callable[[int], None]) -> Written:
        """Write a shard."""
        time.sleep(self.seconds)
        return self.writer(layout, advance)


def make_checkpoint(model: Path, num_shards: int) -> int:
    """Write the shards, an index and a config; return the number of bytes."""
    model.mkdir()
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(num_shards):
        file = f"model-{number:05}.safetensors"
        names = [f"model.layers.{number}.mlp.{part}_proj" for part in range(PER_SHARD)]
        tensors: list[Tensor] = [(f"{name}.weight", "F8_E4M3", SHAPE) for name in names]
        tensors += [(f"{name}.weight_scale", "F32", (SHAPE[0], 1)) for name in names]
        total += write_sparse_shard(model / file, tensors)
        weight_map |= {name: file for name, _, _ in tensors}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    quantization = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    return total


def measure(model: Path, num_nodes: int, seconds: float) -> tuple[float, float]:
    """Return the seconds of planning and of converting on `num_nodes` nodes, one shard at a time on each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=1)
    try:
        began = time.perf_counter()
        source = read_unconverted(model)
        plan = plan_checkpoint(source.shards, source.configs, Policy())
        planned = time.perf_counter()
        options = WriteOptions(1, verify="none", executor="ray", ray_address=cluster.address)
        vars(output)["SentWriter"] = lambda *fields: SlowWriter(SentWriter(*fields), seconds)
        convert(PlanReport(source, plan, card=False), model.with_name("out"), options, Progress())
        done = time.perf_counter()
    finally:
        cluster.shutdown()
    shutil.rmtree(model.with_name("out"))
    return planned - began, done - planned


def main() -> None:
    """Print a row for each size of the cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--seconds-per-shard", type=float, default=0.0)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    with TemporaryDirectory() as scratch:
        total = make_checkpoint(Path(scratch, "model"), options.shards)
        print(f"{total / 1e12:.2f} TB in {options.shards} shards, {options.seconds_per_shard} s for each")
        for num_nodes in options.nodes:
            planning, converting = measure(Path(scratch, "model"), num_nodes, options.seconds_per_shard)
            print(f"{num_nodes} nodes: plan {planning:.1f} s, convert {converting:.1f} s", flush=True)


if __name__ == "__main__":
    import simulate_cluster  # under its own name, so that workers find the classes that they are sent

    simulate_cluster.main()
