"""`python -m fp8pad.golden.worker REQUEST REPLY`: the process that runs one engine on one request, then exits.

It is a separate process because an engine keeps its device until its process ends, may crash the process, and writes
to stdout and stderr as it likes.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from fp8pad.errors import GoldenError
from fp8pad.golden import transformers_engine, vllm_engine
from fp8pad.golden.document import READER
from fp8pad.golden.request import Reply, Request, differences

_LOOK_EVERY_SECONDS = 1.0
_LONGEST_CAUSE = 300  # characters
_ENGINES = {"vllm": vllm_engine, "transformers": transformers_engine}


def main(request_file: str, reply_file: str) -> int:
    """Write a reply, what the engine refused, or the cause of its failure; the traceback goes to stderr."""
    # Not `parse_json`, which golden files are read with: the name of the model's folder need not be UTF-8.
    request = READER.read(Request, json.loads(Path(request_file).read_text(encoding="utf-8")), "request")
    try:
        document: dict[str, Any] = {"reply": asdict(_reply(request))}
    except GoldenError as error:
        document = {"refused": str(error)}
    except Exception as error:  # whatever an engine may raise becomes one line
        traceback.print_exc()
        cause = shorten(str(error), _LONGEST_CAUSE, placeholder=" ...")
        document = {"failed": f"{type(error).__name__}: {cause}" if cause else type(error).__name__}
    # The whole file is written before it gets its name: the parent process reads it as soon as it exists.
    unfinished = Path(reply_file).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(document), encoding="utf-8")
    unfinished.rename(reply_file)
    return 0 if "reply" in document else 1


def _reply(request: Request) -> Reply:
    engine = _ENGINES[request.settings.engine]
    environment = engine.environment()
    if request.required and (others := differences(request.required, environment)):
        raise GoldenError("; ".join(others))
    dtype, answers = engine.answer(request)
    return Reply(environment, dtype, answers)


def _end_with(parent: int) -> None:
    """Kill the whole process group when the parent process is gone, for whatever reason."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(main(*sys.argv[1:]))
