"""The process that talks to Ray: it places items on nodes, and retries those whose worker is lost."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fp8pad import __version__
from fp8pad.errors import ClusterError, Fp8padError
from fp8pad.parallel.orders import error_to_json

MAX_ATTEMPTS = 4  # per item; when a node is lost, so is every item that runs on it
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0
NODE_SECONDS = 60.0  # to wait for a node that can work


@dataclass(slots=True)
class _Task:
    number: int
    attempts: int = 0
    node: str = ""
    host: str = ""


def main() -> None:
    """Read an order from stdin, a line of JSON; write a line for each finished item, or the error that ended it."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for what Ray prints
    order = json.loads(sys.stdin.readline())
    try:
        with ray_cluster(order["address"]) as ray:
            for answer in RayCluster(ray, order["work"], order["items"], order["jobs"]).work():
                print(json.dumps(answer), file=answers, flush=True)
    except (Fp8padError, OSError) as error:
        print(json.dumps(error_to_json(error)), file=answers, flush=True)


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Connect to a running Ray cluster ("auto": the one that this machine belongs to), and yield the module `ray`.

    Raises `ClusterError` if Ray is not installed, or if no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise ClusterError("Ray is not installed; install ray next to fp8pad, here and on every node") from error
    if address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, or name it with --ray-address HOST:PORT"
        raise ClusterError(f"{address}: no Ray cluster answers: {str(error).splitlines()[0]}; {hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()  # this ends running tasks; cancelling them one by one made Ray 2.60 abort sometimes


@dataclass(slots=True)
class RayCluster:
    """A Ray cluster that does work on `items`, all of them JSON, with `jobs` items at a time on each node."""

    ray: Any
    work_text: str
    items: Sequence[str]
    jobs: int
    _running: dict[Any, _Task] = field(default_factory=dict)

    def work(self) -> Iterator[dict[str, Any]]:
        """Yield answers as they arrive, with the number of the item; raises `ClusterError`."""
        work_on, shared = self.ray.remote(worker_function()), self.ray.put(self.work_text)
        waiting = [_Task(number) for number in reversed(range(len(self.items)))]
        worked = time.monotonic()
        while waiting or self._running:
            for task, options in self._placed(waiting):
                arguments = __version__, shared, self.items[task.number]
                self._running[work_on.options(**options).remote(*arguments)] = task
            for task, answer in self._finished():
                if answer is None:
                    waiting.append(task)
                elif "unfit" in answer:
                    raise ClusterError(f"node {task.host} {answer['unfit']}; every node needs the same fp8pad")
                else:
                    yield {"number": task.number, "host": task.host, **answer}
            worked = time.monotonic() if self._running else worked
            if time.monotonic() - worked > NODE_SECONDS:
                raise ClusterError(f"no node of the Ray cluster had a free CPU for {NODE_SECONDS:.0f} seconds")

    def _placed(self, waiting: list[_Task]) -> Iterator[tuple[_Task, dict[str, Any]]]:
        """Take waiting tasks for which a node has room; yield each with the Ray options for that node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in self.ray.nodes() if waiting else ():
            busy = sum(task.node == node["NodeID"] for task in self._running.values())
            has_cpu = node["Alive"] and node["Resources"].get("CPU", 0) >= 1
            for _ in range(min(self.jobs - busy, len(waiting)) if has_cpu else 0):
                task = waiting.pop()
                task.attempts, task.node, task.host = task.attempts + 1, node["NodeID"], node["NodeManagerAddress"]
                strategy = NodeAffinitySchedulingStrategy(task.node, soft=False)
                yield task, {"num_cpus": 1, "max_retries": 0, "scheduling_strategy": strategy}

    def _finished(self) -> Iterator[tuple[_Task, dict[str, Any] | None]]:
        """Yield the tasks that have ended, with their answers; None if the worker was lost."""
        if not self._running:
            time.sleep(POLL_SECONDS)
            return
        references, _ = self.ray.wait(list(self._running), timeout=POLL_SECONDS)
        for reference in references:
            task = self._running.pop(reference)
            try:
                yield task, self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:  # an unexpected error
                raise ClusterError(f"a worker on node {task.host} failed: {error.cause!r}") from error
            except self.ray.exceptions.RayError as error:
                if task.attempts >= MAX_ATTEMPTS:
                    lost = f"a worker was lost {task.attempts} times, last on node {task.host}"
                    raise ClusterError(f"{lost}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
                yield task, None


def worker_function() -> Callable[[str, str, str], Any]:
    """Return the function that a worker runs; nested, so that Ray sends its code, even to a node without fp8pad."""

    def work_on(version: str, work: str, item: str) -> Any:
        try:
            import fp8pad
            from fp8pad.parallel.orders import perform
        except ImportError as error:
            return {"unfit": f"cannot import fp8pad in Ray's Python: {error}"}
        if fp8pad.__version__ != version:
            return {"unfit": f"has fp8pad {fp8pad.__version__}, and this is {version}"}
        return perform(work, item)

    return work_on


def _check_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise ClusterError(f"{address}: no Ray cluster answers there: {error}") from error
