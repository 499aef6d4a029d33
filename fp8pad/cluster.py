"""Working on shards on a Ray cluster whose nodes see the same files, through a process of its own (ray_driver.py).

Ray ends a process whose cluster goes away: here that is one line, and what is finished stays. The plan is made once, in
this process; Ray carries the work and what was found out, never a checkpoint's bytes.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from fp8pad.checkpoint.files import Advance
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import ClusterError

T = TypeVar("T")
R = TypeVar("R")

HEAD_SECONDS = 20  # after which Ray gives up a head that does not answer


@dataclass(frozen=True, slots=True)
class Order:
    """What the driver is asked to do: `items`, each pickled, with `work`, pickled, `jobs` at a time on each node."""

    address: str
    jobs: int
    work: bytes
    items: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """An item that is worked on: its position, the result, and how many bytes that were."""

    number: int
    value: Any
    num_bytes: int


def run_on_cluster(
    work: Callable[[T, Advance], R], items: Sequence[T], workers: Workers, progress: Progress
) -> list[R]:
    """Return `work(item, advance)` of each item, in order; work and items travel to the workers as pickles.

    An item whose worker is lost is worked on again. The first error of `work` stops the others. Raises `ClusterError`
    if there is no cluster, if it goes away, if its nodes cannot work or if an item is lost time and again.
    """
    order = Order(workers.ray_address, workers.jobs, pickle.dumps(work), tuple(map(pickle.dumps, items)))
    results: dict[int, R] = {}
    with _driver() as (requests, answers):
        pickle.dump(order, requests)
        requests.flush()
        while len(results) < len(items):
            answer = _answer(answers, workers.ray_address)
            if isinstance(answer, BaseException):
                raise answer
            results[answer.number] = answer.value
            progress.advance(answer.num_bytes)
            progress.finish_file()
    return [results[number] for number in range(len(items))]


@contextmanager
def _driver() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Start the process that talks to Ray; it ends with the block, and with it all its work on the cluster."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_SECONDS),
    }
    driver = subprocess.Popen(
        [sys.executable, "-c", "from fp8pad.ray_driver import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("FP8PAD_DEBUG") == "1" else subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for us, who then end it
    )
    with driver:
        if driver.stdin is None or driver.stdout is None:
            raise ClusterError("the process that talks to Ray has no pipes")
        try:
            yield driver.stdin, driver.stdout
        finally:
            driver.kill()


def _answer(answers: IO[bytes], address: str) -> Any:
    try:
        return pickle.load(answers)  # noqa: S301  from the process that we started
    except (EOFError, pickle.UnpicklingError) as error:
        raise ClusterError(f"{address}: the Ray cluster went away in the middle of the work") from error
