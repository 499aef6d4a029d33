"""The command line: the table of commands, and the one place where an error becomes text and an exit status."""

import difflib
import gc
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from fp8pad import __version__
from fp8pad.cli import checkpoints, golden
from fp8pad.cli.bench import bench
from fp8pad.cli.interrupts import interruptible
from fp8pad.errors import Fp8padError, HubError, OutputError, UsageError
from fp8pad.text import printable

COMMANDS = (
    (checkpoints.plan, "fp8pad plan Qwen2.5-VL-7B-FP8 -tp 8", "fp8pad plan org/name --absorb --html plan.html"),
    (
        checkpoints.convert,
        "fp8pad convert Qwen2.5-VL-7B-FP8 Qwen2.5-VL-7B-FP8-padded",
        "fp8pad convert org/name OUT_DIR --absorb -tp 8",
    ),
    (
        checkpoints.verify,
        "fp8pad verify Qwen2.5-VL-7B-FP8 Qwen2.5-VL-7B-FP8-padded",
        "fp8pad verify Qwen2.5-VL-7B-FP8-padded",
    ),
    (checkpoints.push, "fp8pad push Qwen2.5-VL-7B-FP8-padded my-org/Qwen2.5-VL-7B-FP8-padded"),
    (checkpoints.unpad, "fp8pad unpad Qwen2.5-VL-7B-FP8-padded Qwen2.5-VL-7B-FP8-restored"),
    (checkpoints.inspect, "fp8pad inspect Qwen2.5-VL-7B-FP8-padded"),
    (bench, "fp8pad bench Qwen2.5-VL-7B-FP8 -tp 4 --tokens 1 --tokens 8192"),
)
GOLDEN_COMMANDS = (
    (golden.record, "fp8pad golden record Qwen2.5-VL-7B-FP8 -o golden.json"),
    (golden.check, "fp8pad golden check Qwen2.5-VL-7B-FP8-padded golden.json --junit golden.xml"),
    (golden.compare, "fp8pad golden compare Qwen2.5-VL-7B-FP8 Qwen2.5-VL-7B-FP8-padded"),
)

app = typer.Typer(
    name="fp8pad",
    help="Pads FP8 checkpoints ahead of time, so that inference engines never have to.",
    epilog="Start with: fp8pad plan MODEL",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain columns: nothing is cropped, and rich need not be loaded
    context_settings={"help_option_names": ["-h", "--help"]},
)
golden_app = typer.Typer(
    help="Check that a converted model produces the same outputs.", no_args_is_help=True, rich_markup_mode=None
)


_MISUSE: type[Exception] = typer.BadParameter.__mro__[1]  # the root of such errors, in typer or in click


class _Command(TyperCommand):
    """A command whose usage has the common form: `fp8pad convert [OPTIONS] MODEL OUT_DIR`.

    typer puts braces around arguments, and dots after one that is a list.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub(r"^\{?(.+?)\}?(\.\.\.)?$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]


def _add(group: typer.Typer, commands: Iterable[tuple[Callable[..., None], *tuple[str, ...]]]) -> None:
    for command, *examples in commands:
        # \b: the lines are not re-wrapped
        epilog = "\n".join(["\b", "Examples:", *(f"  {each}" for each in examples)])
        group.command(cls=_Command, epilog=epilog)(interruptible()(command))


_add(app, COMMANDS)
_add(golden_app, GOLDEN_COMMANDS)
app.add_typer(golden_app, name="golden")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fp8pad {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; only here does an error become one line on stderr and an exit status.

    With FP8PAD_DEBUG=1 in the environment, the traceback is shown instead.
    """
    gc.set_threshold(100_000)  # a large checkpoint is a million objects without cycles, and each collection scans them
    _complete_at_the_first_tab()
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  None if the caller closed it, `2>&-`
    if sys.stdout is None:
        _fail(OutputError("stdout is closed; redirect it to /dev/null if the result is not wanted"))
    if not sys.platform.startswith("linux"):
        _fail(OutputError(f"fp8pad needs Linux, for its file system calls; this is {sys.platform}"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the locale cannot encode
    try:
        try:
            words = [re.sub(r"^-tp(?=\d+$)", "-tp=", word) for word in sys.argv[1:]]  # typer does not parse "-tp2"
            sys.exit(app(words, standalone_mode=False) or 0)
        finally:
            sys.stdout.flush()  # so that a closed pipe is noticed here, not when the interpreter exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.Abort as error:  # Ctrl-C while click parses
        raise KeyboardInterrupt from error
    except _MISUSE as error:
        _fail_to_parse(error)
    except Exception as error:
        if os.environ.get("FP8PAD_DEBUG") == "1":
            raise
        _fail(error)


def _fail_to_parse(error: Any) -> NoReturn:
    """Show an error of typer's parser as all errors are shown, with the usage of the command below it."""
    message = error.format_message()
    if message.startswith("Usage:"):  # no command was given
        typer.echo(message, err=True)
        sys.exit(UsageError.exit_status)
    message = message.replace("Value error, ", "").replace(". Did", "; did").rstrip(".")
    found = UsageError(message[:1].lower() + message[1:])
    if error.ctx:
        usage = " ".join(error.ctx.get_usage().split()).removeprefix("Usage: ")
        found.add_note(f"usage: {usage}; see {error.ctx.command_path} --help")
    _fail(found)


def _complete_at_the_first_tab() -> None:
    """Make typer's zsh script complete at the first TAB, when zsh loads it; by default it only defines itself then."""
    if not any(word.endswith("-completion") for word in sys.argv[1:]):
        return
    from typer import _completion_shared

    scripts = getattr(_completion_shared, "_completion_scripts", {})
    call = '[ "$funcstack[1]" = "_%(prog_name)s" ] && %(complete_func)s "$@"'
    if call not in scripts.get("zsh", call):
        scripts["zsh"] = f"{scripts['zsh'].rstrip()}\n{call}\n"


def _fail(error: Exception) -> NoReturn:
    label = "error:" if os.environ.get("NO_COLOR") else typer.style("error:", fg="red", bold=True)
    message = _message(error)
    typer.echo(f"{label} {_cut(printable(message + _suggestion(error, message)))}", err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(f"  {_cut(printable(note))}", err=True)
    sys.exit(error.exit_status if isinstance(error, Fp8padError) else 1)


def _cut(line: str) -> str:
    """Leave out the middle of a line of more than 4000 characters, for example one that lists a million sizes."""
    return line if len(line) <= 4000 else f"{line[:3000]} ... {line[-500:]}"


def _suggestion(error: Exception, message: str) -> str:
    """Suggest a similar path for one on the command line that does not exist, or that was taken for a hub id.

    For a folder of models, suggest the first model in it.
    """
    for argument in sys.argv[1:]:
        if message == f"{argument}: config.json: is missing":
            models = sorted(str(folder.parent) for folder in Path(argument).glob("*/config.json"))
            return f"; did you mean {models[0]}?" if models else ""
        path, begin = Path(argument), f"{argument}: " if isinstance(error, HubError) else f"{argument}: no such "
        if message.startswith(begin) and not path.exists() and path.parent.is_dir():
            names = [config.parent.name for config in path.parent.glob("*/config.json")]
            if close := difflib.get_close_matches(path.name, names, n=1, cutoff=0.75):
                return f"; did you mean {path.with_name(close[0])}?"
    return ""


def _message(error: Exception) -> str:
    if isinstance(error, Fp8padError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        is_lost = isinstance(error, FileNotFoundError) and not error.filename  # only getcwd(3) gives no file name
        place = "the current folder" if is_lost else error.filename
        return f"{place}: {error.strerror}" if place else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"unexpected {type(error).__name__}: {error}; please report it with what FP8PAD_DEBUG=1 shows"
