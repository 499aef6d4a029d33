"""Process shards on a Ray cluster whose nodes see the same files, through a separate process (ray_driver.py).

Ray ends a process whose cluster goes away; here that is only an error message, and finished shards stay. The plan is
made once, in this process; Ray transports work and results, never a checkpoint's bytes.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TypeVar

from fp8pad.checkpoint.files import BUFFER_BYTES, Advance
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import ClusterError
from fp8pad.parallel.orders import result_of, to_text, work_to_text

T = TypeVar("T")
R = TypeVar("R")

# The longest delay until a signal is handled: one that comes just before a thread sleeps does not wake it.
SIGNAL_SECONDS = 1.0
HEAD_SECONDS = 20  # after which Ray gives up on a head node that does not answer


def run_on_cluster(
    work: Callable[[T, Advance], R], items: Sequence[T], workers: Workers, progress: Progress
) -> list[R]:
    """Return `work(item, advance)` for each item, in order; work and items are sent as JSON (see orders.py).

    An item whose worker is lost is retried. The first error of `work` stops the others. Raises `ClusterError` if there
    is no cluster, if it goes away, if its nodes cannot be used or if an item is lost repeatedly.
    """
    order = {"address": workers.ray_address, "jobs": workers.jobs, "work": work_to_text(work)}
    lost = ClusterError(f"{workers.ray_address}: the Ray cluster was lost during the run")
    results: dict[int, R] = {}
    with _driver() as (requests, answers):
        lines = _lines(answers)
        try:
            requests.write(to_text({**order, "items": [to_text(item) for item in items]}) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise lost from None
        while len(results) < len(items):
            answer = json.loads(next(lines, "{}"))
            if not answer:
                raise lost
            results[answer.get("number")] = result_of(work, answer)
            progress.advance(answer["num_bytes"])
            progress.finish_file()
    return [results[number] for number in range(len(items))]


def _lines(answers: IO[str]) -> Iterator[str]:
    """Yield lines as they arrive; the thread wakes up every `SIGNAL_SECONDS`."""
    begun, descriptor, poll = b"", answers.fileno(), select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        while not poll.poll(SIGNAL_SECONDS * 1000):
            pass
        if not (some := os.read(descriptor, BUFFER_BYTES)):
            return
        *lines, begun = (begun + some).split(b"\n")
        yield from (line.decode() for line in lines)


@contextmanager
def _driver() -> Iterator[tuple[IO[str], IO[str]]]:
    """Start the process that talks to Ray; it is killed at the end of the block, which ends its work on the cluster."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_SECONDS),
    }
    driver = subprocess.Popen(
        [sys.executable, "-c", "from fp8pad.parallel.ray_driver import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("FP8PAD_DEBUG") == "1" else subprocess.DEVNULL,
        env=environment,
        text=True,
        start_new_session=True,  # Ctrl-C is sent only to this process, which then kills it
    )
    with driver:
        if driver.stdin is None or driver.stdout is None:
            raise ClusterError("the process that talks to Ray has no pipes")
        try:
            yield driver.stdin, driver.stdout
        finally:
            driver.kill()
