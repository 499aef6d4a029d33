"""Completion in real shells: a shell in a terminal, one key press, and the command that results."""

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[1]
READY = "ready> "
# How to start a shell with only the files of HOME, the file that it reads, and a prompt that can be recognised.
SHELLS = {
    "bash": (("bash", "-i"), ".bashrc", f"PS1='{READY}'"),
    "zsh": (("zsh", "-i"), ".zshrc", f"PROMPT='{READY}'; unsetopt PROMPT_SP"),
    "fish": (("fish", "-i"), ".config/fish/config.fish", f"function fish_prompt; echo -n '{READY}'; end"),
}
SHOW_WORDS = "\x01printf '<%s>' \r"  # from the start of the line: the shell prints the words that it would run
SECONDS = 120  # a limit, so that a hanging test ends


class Terminal:
    """A shell in a terminal: its output, and keys sent to it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.printed = ""

    def press(self, keys: str) -> None:
        """Type keys, and forget the output so far."""
        self.printed = ""
        os.write(self._descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text was printed, ignoring colours and other escape sequences."""
        until = time.monotonic() + SECONDS
        while text not in re.sub(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|[()]B|[=>])", "", self.printed):
            if time.monotonic() > until or not select.select([self._descriptor], [], [], 1.0)[0]:
                assert time.monotonic() < until, f"expected {text!r}, got {self.printed!r}"
                continue
            self.printed += os.read(self._descriptor, 65536).decode(errors="replace")


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Start a shell in which `fp8pad --install-completion` has run, with a home of its own."""
    shell: str = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    command, rc, prompt = SHELLS[shell]
    program = tmp_path / "bin" / "fp8pad"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom fp8pad.cli.main import main\nmain()\n")
    program.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert forked.command("--install-completion", shell).returncode == 0
    file = tmp_path / rc
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without this folder, fish first reads every manual page of the machine, for a minute, even after the shell ends.
    (tmp_path / ".local" / "share" / "fish" / "generated_completions").mkdir(parents=True)
    with file.open("a") as opened:
        opened.write(f"\n{prompt}\n")
    with started(command, environment, tmp_path) as terminal:
        terminal.wait_for(READY)
        yield terminal


@contextmanager
def started(command: tuple[str, ...], environment: dict[str, str], folder: Path) -> Iterator[Terminal]:
    """Start a shell in a terminal that we control."""
    shell, ours = pty.fork()
    if shell == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, environment)  # noqa: S606  a shell is started
    try:
        yield Terminal(ours)
    finally:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        os.close(ours)


@pytest.mark.parametrize("terminal", SHELLS, indirect=True)
def test_commands_options_and_engines_are_completed(terminal: Terminal) -> None:
    """`ver` becomes `verify` the first time that TAB is pressed, and `--eng` `--engine`.

    `sg` becomes what the names of SGLang's versions have in common. One shell, whose start takes long, does all.
    """
    terminal.press("fp8pad ver\t")
    terminal.wait_for("ify")
    terminal.press(SHOW_WORDS)
    terminal.wait_for("<fp8pad><verify>")
    terminal.wait_for(READY)
    terminal.press("fp8pad plan x --eng\t")
    terminal.wait_for("ine")
    terminal.press("sg\t")
    terminal.wait_for("lang")
    terminal.press("X" + SHOW_WORDS)
    terminal.wait_for("<fp8pad><plan><x><--engine><sglangX>")
