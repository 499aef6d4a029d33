"""Run an engine: one process for one model, watched until it has answered or failed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import GoldenError
from fp8pad.golden.document import READER, check_answer
from fp8pad.golden.request import Reply, Request

# Set unless the user has set them. Without a process for the scheduler, vLLM forms the same batches every time
# (vLLM's documentation, "Reproducibility"); the CPU build otherwise claims most of the machine's memory for its cache.
ENGINE_DEFAULTS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONUNBUFFERED": "1"}
# The CPU build needs a NUMA node for each rank, or this.
SEVERAL_RANKS_DEFAULTS = {"VLLM_CPU_SIM_MULTI_NUMA": "1"}

_LOOK_EVERY_SECONDS = 0.5
_NUM_LAST_LINES = 10
_NUM_CAUSES = 5
_LOG_END_BYTES = 65536
_EXCEPTION = re.compile(r"\b[A-Za-z]\w*(Error|Exception): ")
_INSTALL_HINTS = {"vllm": "pip install vllm", "transformers": "pip install torch transformers"}


def run_engine(request: Request, progress: Progress) -> Reply:
    """Start the engine that `request` names, in a process of its own, and return its reply.

    Raises `GoldenError` if the engine is not installed, refuses, fails or returns an invalid answer; if it fails, the
    last lines of its log are the error's notes (PEP 678).
    """
    engine = request.settings.engine
    if importlib.util.find_spec(engine) is None:
        raise GoldenError(f"{engine} is not installed in this environment: {_INSTALL_HINTS[engine]}")
    with TemporaryDirectory(prefix="fp8pad-golden-") as folder:
        request_file, reply_file, log = (Path(folder, name) for name in ("request.json", "reply.json", "log"))
        request_file.write_text(json.dumps(asdict(request)), encoding="utf-8")
        defaults = ENGINE_DEFAULTS | (SEVERAL_RANKS_DEFAULTS if request.settings.tensor_parallel_size > 1 else {})
        command = [sys.executable, "-m", "fp8pad.golden.worker", str(request_file), str(reply_file)]
        with _started(command, {**defaults, **os.environ}, log) as process:
            _watch(process, reply_file, log, progress)
        document = json.loads(reply_file.read_text(encoding="utf-8")) if reply_file.exists() else {}
        if "reply" not in document:
            raise _failure(request, process.returncode, document, _telling_lines(log))
    return _checked(READER.read(Reply, document["reply"], f"{engine}'s reply"), request)


@contextmanager
def _started(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the worker in a process group of its own, and kill the whole group at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watch(process: "subprocess.Popen[bytes]", reply_file: Path, log: Path, progress: Progress) -> None:
    """Wait for the reply, or for the process to end without one; an engine's shutdown is not waited for."""
    while not reply_file.exists() and process.poll() is None:
        for line in _last_lines(log)[-1:]:
            progress.show(line)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_EVERY_SECONDS)


def _last_lines(log: Path) -> list[str]:
    """Return the last lines that are not blank or only carets; a progress bar's carriage returns end a line too."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_END_BYTES))
        text = file.read().decode(errors="replace")
    lines = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    return [line for line in lines if line.strip("^~ ")]


def _telling_lines(log: Path) -> list[str]:
    """Return the log's last lines, after those that name an earlier exception, which may be the cause."""
    lines = _last_lines(log)
    earlier, last = lines[:-_NUM_LAST_LINES], lines[-_NUM_LAST_LINES:]
    named = dict.fromkeys(line for line in earlier if _EXCEPTION.search(line))
    return [*list(named)[-_NUM_CAUSES:], *last]


def _failure(request: Request, status: int, document: dict[str, Any], last_lines: list[str]) -> GoldenError:
    if "refused" in document:
        return GoldenError(document["refused"])
    ended = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    error = GoldenError(f"{request.settings.engine} failed on {request.model}: {document.get('failed', ended)}")
    for line in last_lines:
        error.add_note(line)
    return error


def _checked(reply: Reply, request: Request) -> Reply:
    if [answer.prompt_token_ids for answer in reply.answers] != list(request.prompts):
        raise GoldenError(
            f"{request.settings.engine} did not return one answer for each prompt, in the order of the prompts"
        )
    for number, answer in enumerate(reply.answers, start=1):
        check_answer(answer, request.settings, f"{request.settings.engine}'s answer to prompt {number}")
    return reply
