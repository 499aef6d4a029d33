"""Coverage-guided fuzzing of everything that fp8pad reads: `make fuzz ARGS="--minutes 60"`.

One process with atheris (libFuzzer). Inputs are real files of the case set with a few edits each, and raw bytes. Every
execution must end in a result or in one of fp8pad's own errors, within `MAX_SECONDS` and `MAX_BYTES`; `targets.py` has
further checks. A finding is written to build/fuzz/findings with its traceback, and the run continues.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from helpers import fast_folder

BUILD = Path("build/fuzz")
MAX_SECONDS = 20
MAX_BYTES = 3 << 30


def main() -> None:
    """Fuzz for some minutes, then add the results to build/fuzz/report.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", help="only this one: header, record, config, folder")
    arguments = parser.parse_args()
    (BUILD / "corpus").mkdir(parents=True, exist_ok=True)
    before = len(list((BUILD / "findings").glob("*.txt")))
    options = [
        f"-max_total_time={round(arguments.minutes * 60)}",
        "-max_len=4096",
        "-len_control=0",
        "-timeout=120",
        "-print_final_stats=1",
    ]
    command = [sys.executable, __file__, "--worker", *options, str(BUILD / "corpus")]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="fp8pad-fuzz-", dir=fast_folder()) as folder:  # libFuzzer ends without us
        environment = os.environ | {"FUZZ_TARGET": arguments.target or "", "FUZZ_FOLDER": folder}
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    (BUILD / "log.txt").write_text(run.stderr)
    _report(arguments.minutes, run.stderr)
    found = len(list((BUILD / "findings").glob("*.txt"))) - before
    print(f"{found} new findings in {BUILD / 'findings'}; figures in {BUILD / 'report.json'}")
    sys.exit(1 if found or run.returncode else 0)


def _report(minutes: float, log: str) -> None:
    path = BUILD / "report.json"
    empty: dict[str, Any] = {"minutes": 0, "executions": 0, "outcomes": {}}
    report = json.loads(path.read_text()) if path.exists() else empty
    report["minutes"] += minutes
    report["executions"] += int((re.findall(r"number_of_executed_units: (\d+)", log) or ["0"])[-1])
    report["coverage"] = int((re.findall(r"cov: (\d+)", log) or ["0"])[-1])
    outcomes: Counter[str] = Counter(report["outcomes"])
    outcomes.update(json.loads((BUILD / "outcomes.json").read_text()))
    report["outcomes"] = dict(sorted(outcomes.items()))
    path.write_text(json.dumps(report, indent=2) + "\n")


def work() -> None:
    """Run libFuzzer in this process."""
    import atheris

    with atheris.instrument_imports(include=["fp8pad"]):
        import targets

    chosen = os.environ.get("FUZZ_TARGET")
    functions = [function for name, function in targets.TARGETS if chosen in ("", name)]
    outcomes: Counter[str] = Counter()
    last_written = time.monotonic()

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {MAX_SECONDS} s")

    def test_one_input(data: bytes) -> None:
        nonlocal last_written
        function = functions[data[0] % len(functions)] if data else functions[0]
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # of this process's time, however busy the machine is
        try:
            outcomes[f"{function.__name__}: {function(atheris.FuzzedDataProvider(data[1:]))}"] += 1
        except Exception as error:
            outcomes[f"{function.__name__}: FINDING"] += 1
            _write_finding(function.__name__, data, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if time.monotonic() - last_written > 5:
            last_written = time.monotonic()
            (BUILD / "outcomes.json").write_text(json.dumps(outcomes))

    signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    (BUILD / "outcomes.json").write_text("{}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], test_one_input)
    atheris.Fuzz()


def _write_finding(target: str, data: bytes, error: Exception) -> None:
    """Write input and traceback, once for each code location."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "fp8pad/" in frame.filename] or list(frames)
    place = f"{Path(own[-1].filename).stem}-{own[-1].lineno}"
    path = BUILD / "findings" / f"{target}-{type(error).__name__}-{place}"
    path.parent.mkdir(exist_ok=True)
    if not path.with_suffix(".txt").exists():
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")
        path.with_suffix(".bin").write_bytes(data)


if __name__ == "__main__":
    work() if sys.argv[1:2] == ["--worker"] else main()
