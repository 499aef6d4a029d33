"""Kill the head of a Ray cluster during work, and print the result."""

import os
import sys
import threading
from pathlib import Path

from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from ray_work import Square  # noqa: E402

from fp8pad.checkpoint.options import Workers  # noqa: E402
from fp8pad.checkpoint.progress import Progress  # noqa: E402
from fp8pad.errors import ClusterError  # noqa: E402
from fp8pad.parallel.cluster import run_on_cluster  # noqa: E402

started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
started.add_node(num_cpus=2)
killer = threading.Timer(30, lambda: started.head_node.kill_all_processes(check_alive=False, allow_graceful=False))
try:
    workers = Workers(1, "ray", started.address)
    killer.start()
    print(run_on_cluster(Square(sys.argv[1], 5.0), list(range(40)), workers, Progress()), flush=True)
except ClusterError as error:
    print(f"ClusterError: {error}", flush=True)
finally:
    started.shutdown()
