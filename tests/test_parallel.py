"""Working on several shards at once: results are in order, and the first error stops the others."""

import errno
import fcntl
import io
import json
import os
import signal
import sys
import termios
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import pytest
from helpers import Counter, files_of, llama

from fp8pad.checkpoint.options import Workers, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import ClusterError, OutputError
from fp8pad.parallel import orders, run_on_threads
from fp8pad.parallel.cluster import run_on_cluster
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.unpadding import unpad
from fp8pad.verification import verify

sys.path.append(str(Path(__file__).parent / "cluster"))
from ray_work import Fails, Square, run_sent

WORKERS = Workers(1, "ray", "auto")


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_results_are_in_the_order_of_the_items(jobs: int) -> None:
    """Whichever is done first; progress counts all."""
    counter = Counter()

    def work(item: int, advance: Callable[[int], None]) -> int:
        time.sleep(0.002 * (5 - item))
        advance(item)
        return item * item

    assert run_on_threads(work, range(5), jobs, counter) == [0, 1, 4, 9, 16]
    assert counter.num_bytes == 10


class UntilStopped:
    """Works until it is stopped; an item that is never stopped is in `ended`."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def __call__(self, item: int, advance: Callable[[int], None]) -> None:
        """Work."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.001)
            advance(0)
        self.ended.append(item)


@pytest.mark.parametrize("error", [OutputError("full"), KeyboardInterrupt()])
def test_an_error_stops_what_is_still_running(error: BaseException) -> None:
    """The others stop the next time they report progress, and items that have not begun never do."""
    begun: list[int] = []
    others = UntilStopped()

    def work(item: int, advance: Callable[[int], None]) -> None:
        begun.append(item)
        if item == 1:
            raise error
        others(item, advance)

    with pytest.raises(type(error)):
        run_on_threads(work, range(50), 2, Progress())
    assert len(begun) < 10
    assert not others.ended


def test_of_several_errors_that_of_the_first_item_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the results are collected."""

    def late(futures: set[Future[None]], **_: object) -> tuple[set[Future[None]], set[Future[None]]]:
        return wait(futures)

    def work(item: int, advance: Callable[[int], None]) -> None:
        raise OutputError(f"item {item}")

    monkeypatch.setattr("fp8pad.parallel.wait", late)
    with pytest.raises(OutputError, match=r"^item 0$"):
        run_on_threads(work, range(50), 1, Progress())


def test_a_limit_of_threads_is_a_line_and_stops_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example in a container with limits on processes or memory."""
    work, start = UntilStopped(), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.active_count() > num_threads + 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    num_threads = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OutputError, match=r"use fewer --jobs$"):
        run_on_threads(work, range(9), 9, Progress())
    assert not work.ended


def test_a_signal_while_work_is_handed_out_stops_what_runs() -> None:
    """The signal may come before the last item is given to a thread."""
    work = UntilStopped()

    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_threads(work, items(), 1, Progress())
    assert not work.ended


def test_no_items_are_no_work() -> None:
    """A checkpoint may have no files besides its shards."""
    assert run_on_threads(lambda item, _: item, [], 2, Progress()) == []


def test_work_and_items_travel_as_json(tmp_path: Path) -> None:
    """Work is sent by name and fields; results are parsed by the type that the work returns."""
    work = Square(str(tmp_path), 0.0)
    text = orders.work_to_text(work)
    assert json.loads(text) == {"name": "ray_work:Square", "fields": {"folder": str(tmp_path), "seconds": 0.0}}
    answer = orders.perform(text, "7")
    assert answer == {"value": 49, "num_bytes": 7}
    assert orders.result_of(work, answer) == 49


def test_errors_travel_by_name() -> None:
    """With the node on which they occurred; those that are not fp8pad's are the cluster's."""
    answer = orders.perform(orders.work_to_text(Fails()), "1")
    with pytest.raises(OutputError, match=r"^item 1: No space left on device") as caught:
        orders.result_of(Fails(), {**answer, "host": "10.0.0.1"})
    assert caught.value.__notes__ == ["on node 10.0.0.1 of the Ray cluster"]
    plain = orders.error_to_json(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ClusterError, match="Input/output error"):
        orders.result_of(Fails(), plain)


@contextmanager
def pipes(descriptor: int) -> Iterator[tuple[TextIO, TextIO]]:
    """Act as the process that talks to Ray: its answers come from a descriptor."""
    with os.fdopen(descriptor) as answers:
        yield io.StringIO(), answers


def test_a_signal_while_a_cluster_works_is_handled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal wakes no thread, as when it comes just before ours sleeps: here another thread gets it."""
    reading, writing = os.pipe()
    began, ended, in_time = threading.Event(), threading.Event(), []
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)

    class Answers(io.TextIOWrapper):
        def fileno(self) -> int:  # called just before it sleeps, until which most probably no other thread runs
            began.set()
            return super().fileno()

    @contextmanager
    def begin() -> Iterator[tuple[TextIO, TextIO]]:
        with open(reading, "rb") as answers:  # noqa: PTH123  a descriptor, not a path
            yield io.StringIO(), Answers(answers)

    def send() -> None:
        began.wait()
        if not ended.is_set():
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        in_time.append(ended.wait(60))
        os.close(writing)

    monkeypatch.setattr("fp8pad.parallel.cluster._driver", begin)
    monkeypatch.setattr("fp8pad.parallel.cluster.SIGNAL_SECONDS", 0.05)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_on_cluster(Square(""), [1], WORKERS, Progress())
    finally:
        ended.set()
        began.set()  # in case an error came first
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert in_time == [True]


def num_unread(descriptor: int) -> int:
    """Return how many bytes wait in a pipe."""
    count = array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]


def test_answers_of_a_cluster_come_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers in one read, one in two, and an end in the middle of one."""
    answers = [json.dumps({"number": number, "value": number**2, "num_bytes": 1}) + "\n" for number in range(4)]
    text = "".join(answers)
    for num_items, end in ((4, len(text)), (5, len(text)), (4, len(text) - 2)):
        reading, writing = os.pipe()
        monkeypatch.setattr("fp8pad.parallel.cluster._driver", lambda descriptor=reading: pipes(descriptor))
        portions = text[: len(answers[0]) * 2 + 5], text[len(answers[0]) * 2 + 5 : end]

        def send(portions: tuple[str, ...] = portions, ends: tuple[int, int] = (reading, writing)) -> None:
            for portion in portions:
                while num_unread(ends[0]):
                    time.sleep(0.001)
                os.write(ends[1], portion.encode())
            os.close(ends[1])

        sender = threading.Thread(target=send)
        sender.start()
        with (
            nullcontext()
            if (num_items, end) == (4, len(text))
            else pytest.raises(ClusterError, match="was lost during")
        ):
            assert run_on_cluster(Square(""), range(num_items), WORKERS, Progress()) == [0, 1, 4, 9]
        sender.join()


def test_every_command_writes_the_same_through_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert, verify and unpad, with all requests and answers serialized as for a cluster."""
    monkeypatch.setattr("fp8pad.parallel.run_on_cluster", run_sent)
    model = llama(tmp_path / "model", num_shards=3)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    for executor in ("local", "ray"):
        options = WriteOptions(verify="full", executor=executor)
        convert(PlanReport(source, plan, card=False), tmp_path / executor, options, Progress())
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert verify(model, tmp_path / "ray", Progress(), workers=options).ok
    unpad(tmp_path / "ray", tmp_path / "restored", options, Progress())
    assert files_of(tmp_path / "restored") == files_of(model)
    shard = tmp_path / "ray" / source.shards[1].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    (found,) = verify(model, tmp_path / "ray", Progress(), workers=options).mismatches
    assert found.file == source.shards[1].file


def test_what_json_cannot_hold_is_not_sent() -> None:
    """A field of another class is named; nested dataclasses and tuples are JSON."""
    sent = json.loads(orders.to_text({"policy": Policy(skip=("lm_head",))}))
    assert sent["policy"]["skip"] == ["lm_head"]
    with pytest.raises(TypeError, match=r"^a PosixPath cannot be sent to another process$"):
        orders.to_text({"folder": Path("model")})
