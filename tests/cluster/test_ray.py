"""Shards on a Ray cluster: the same bytes as on one machine, and what happens when workers, nodes or the head fail."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Counter, files_of, llama
from ray_work import Dies, Fails, Square

from fp8pad.checkpoint.options import Workers, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import ConvertReport, convert
from fp8pad.errors import CheckpointError, ClusterError, OutputError
from fp8pad.parallel import ray_driver
from fp8pad.parallel.cluster import run_on_cluster
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.unpadding import unpad
from fp8pad.verification import verify

pytestmark = pytest.mark.ray


def on_ray(cluster: Any, **options: Any) -> WriteOptions:
    """Return options that write on the cluster."""
    return WriteOptions(executor="ray", ray_address=cluster.address, **options)


def converted(model: Path, out_dir: Path, options: WriteOptions) -> ConvertReport:
    """Convert a checkpoint."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    return convert(PlanReport(source, plan, card=False), out_dir, options, Progress())


def test_a_cluster_writes_the_bytes_that_one_machine_writes(cluster: Any, tmp_path: Path) -> None:
    """Convert, verify and unpad; progress counts every byte."""
    model = llama(tmp_path / "model", num_shards=7)
    converted(model, tmp_path / "here", WriteOptions())
    converted(model, tmp_path / "there", on_ray(cluster))
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    counter = Counter()
    assert verify(model, tmp_path / "there", counter, workers=Workers(2, "ray", cluster.address)).ok
    assert counter.num_bytes == counter.total_bytes > 0
    unpad(tmp_path / "there", tmp_path / "restored", on_ray(cluster), counter)
    assert files_of(tmp_path / "restored") == files_of(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "model", "restored", "there"]


def test_full_verification_records_the_same_hashes(cluster: Any, tmp_path: Path) -> None:
    """They are computed on the workers and sent back."""
    model = llama(tmp_path / "model", num_shards=3)
    converted(model, tmp_path / "here", WriteOptions(verify="full"))
    converted(model, tmp_path / "there", on_ray(cluster, verify="full"))
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_a_node_that_is_killed_is_no_end(cluster: Any, tmp_path: Path) -> None:
    """Its work runs again elsewhere; no node gets more than its share at a time."""
    node = cluster.add_node(num_cpus=2)
    killer = threading.Timer(3, lambda: cluster.remove_node(node, allow_graceful=False))
    workers = Workers(1, "ray", cluster.address)
    killer.start()
    items = list(range(12))
    assert run_on_cluster(Square(str(tmp_path), 1.0), items, workers, Progress()) == [item * item for item in items]
    killer.join()
    assert len(list(tmp_path.iterdir())) >= len(items)


def test_a_worker_that_is_killed_for_memory_is_replaced(cluster: Any, tmp_path: Path) -> None:
    """Its item is tried again."""
    workers = Workers(1, "ray", cluster.address)
    assert run_on_cluster(Dies(str(tmp_path), times=2), list(range(5)), workers, Progress()) == list(range(5))


def test_an_item_that_is_lost_for_good_ends_the_run(cluster: Any, tmp_path: Path) -> None:
    """After several attempts the node is not to blame."""
    workers = Workers(1, "ray", cluster.address)
    with pytest.raises(ClusterError, match="was lost 4 times"):
        run_on_cluster(Dies(str(tmp_path), times=100), list(range(5)), workers, Progress())


def test_an_error_in_a_worker_is_raised_here_and_stops_the_others(cluster: Any) -> None:
    """The error names the node."""
    began = time.monotonic()
    workers = Workers(2, "ray", cluster.address)
    with pytest.raises(OutputError, match="No space left") as caught:
        run_on_cluster(Fails(), list(range(3)), workers, Progress())
    assert time.monotonic() - began < 50
    assert "of the Ray cluster" in caught.value.__notes__[0]


def test_a_failed_run_can_be_resumed_without_the_cluster(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards are reused wherever they were written."""
    model = llama(tmp_path / "model", num_shards=4)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())

    def touch_and_run(*arguments: Any) -> Any:
        os.utime(model / source.shards[-1].file)
        return run_on_cluster(*arguments)

    monkeypatch.setattr("fp8pad.parallel.run_on_cluster", touch_and_run)
    with pytest.raises(CheckpointError, match="was changed") as caught:
        convert(PlanReport(source, plan, card=False), tmp_path / "out", on_ray(cluster, jobs=1), Progress())
    assert any("to resume" in note for note in caught.value.__notes__)
    report = converted(model, tmp_path / "out", WriteOptions())
    assert report.resumed
    assert verify(model, tmp_path / "out", Progress()).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_another_version_on_a_node_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions may lay out shards differently."""
    monkeypatch.setattr("fp8pad.__version__", "0.0.2")
    assert ray_driver.worker_function()("0.0.1", "", "") == {"unfit": "has fp8pad 0.0.2, and this is 0.0.1"}


def test_a_node_without_fp8pad_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is sent can say so without importing fp8pad."""
    monkeypatch.setitem(sys.modules, "fp8pad", None)
    assert "cannot import fp8pad" in ray_driver.worker_function()("1", "", "")["unfit"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "no-port"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, address: str) -> None:
    """The error comes before anything of the checkpoint is written."""
    pytest.importorskip("ray", reason="needs Ray (make test-ray)")
    model = llama(tmp_path / "model", num_shards=2)
    with pytest.raises(ClusterError, match="no Ray cluster answers there"):
        converted(model, tmp_path / "out", WriteOptions(executor="ray", ray_address=address))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_head_that_goes_away_is_one_line(tmp_path: Path) -> None:
    """It is noticed before Ray ends this process, which is a separate one nevertheless."""
    pytest.importorskip("ray", reason="needs Ray (make test-ray)")
    script = Path(__file__).with_name("lose_head.py")
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == ["ClusterError"], run.stderr
