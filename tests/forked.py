"""The command line in a process of its own that need not be started: a copy of the one that runs the tests.

Most of the time of a short command goes into starting Python and importing modules. What is different in a new process,
and what is not imported there, has to be tested in a new one.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

from fp8pad.__main__ import main


def command(*words: object, cwd: Path | None = None, stdout: int | None = None) -> "CompletedProcess[str]":
    """Run `fp8pad` with these words, in `cwd`; see `run`."""
    return run(partial(run_main, *words), cwd, stdout)


def run_main(*words: object) -> None:
    """Run the command line in this process, until it exits."""
    sys.argv = ["fp8pad", *map(str, words)]
    main()


def run(action: Callable[[], object], cwd: Path | None = None, stdout: int | None = None) -> "CompletedProcess[str]":
    """Run `action` in a copy of this process, in `cwd`, and return its exit status and what it printed.

    Its standard streams are files, or the descriptor `stdout`, opened as Python opens them when it starts. It ends as
    Python does: with the status of `SystemExit`, 1 after a traceback, or 120 if its streams cannot be flushed.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(output.fileno() if stdout is None else stdout, 1)
                os.dup2(errors.fileno(), 2)
                _become_program(cwd)
                status = _status(action)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            finally:
                os._exit(120)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (output, errors):
            file.seek(0)
        return CompletedProcess((), status, output.read().decode(), errors.read().decode())


def _become_program(cwd: Path | None) -> None:
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.modules["__main__"].__package__ = None  # a program is named after `python -m`, if that was used, not argv
    os.chdir(cwd or ".")


def _status(action: Callable[[], object]) -> int:
    try:
        action()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
