"""Build the documentation site: `make docs`. Warnings are errors, and so is a link that leads nowhere.

The pages are those of docs/, with CONTRIBUTING, CHANGELOG and the guide to model families from where they lie, and two
that are generated: every command's help, and the library's functions.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fp8pad
from fp8pad.cli.main import COMMANDS, GOLDEN_COMMANDS
from fp8pad.errors import Fp8padError, UsageError

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs"
# Pages that lie elsewhere in the repository, and how other pages link to them.
MOVED = {
    "contributing.md": ("CONTRIBUTING.md", "../CONTRIBUTING.md"),
    "changelog.md": ("CHANGELOG.md", "../CHANGELOG.md"),
    "families.md": ("fp8pad/planning/families/README.md", "../fp8pad/planning/families/README.md"),
    "ci.md": ("examples/ci/README.md", "../examples/ci/README.md"),
}
LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def main() -> None:
    """Write the pages and build the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".svg", ".png", ".css"):
            write(path, Path(path.relative_to(ROOT / "docs")))
    for name, (source, _) in MOVED.items():
        write(ROOT / source, Path(name))
    (PAGES / "commands.md").write_text(commands(), encoding="utf-8")
    (PAGES / "library.md").write_text(library(), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(ROOT / "build" / "site")]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})


def write(source: Path, name: Path) -> None:
    """Copy a page; links to what is no page become text."""
    target = PAGES / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".md":
        target.write_bytes(source.read_bytes())
        return
    homes = {(ROOT / path).resolve(): page for page, (path, _) in MOVED.items()}

    def moved(link: re.Match[str]) -> str:
        text, path, anchor = link.groups()
        file = (source.parent / path).resolve()
        page = homes.get(file)
        if page is None and file.is_relative_to(ROOT / "docs") and file.suffix != ".json":
            page = file.relative_to(ROOT / "docs").as_posix()
        return f"{text}({page}{anchor or ''})" if page else text.strip("![]")

    target.write_text(LINK.sub(moved, source.read_text("utf-8")), encoding="utf-8")


def commands() -> str:
    """Return the page of commands: the help of each, as it is printed."""
    names = ["", *(command.__name__ for command, *_ in COMMANDS), "golden"]
    names += [f"golden {command.__name__}" for command, *_ in GOLDEN_COMMANDS]
    pages = [f"## {f'fp8pad {name}'.strip()}\n\n```text\n{help_of(name)}```\n" for name in names]
    text = (
        "Every command and option, as `--help` prints them. Errors are one line on stderr, `error: ...`, sometimes with"
        f" a hint below it; the exit status is then {Fp8padError.exit_status}, after wrong usage"
        f" {UsageError.exit_status}, and after a signal 128 plus its number."
    )
    return f"# Commands\n\n{text}\n\n" + "\n".join(pages)


def help_of(name: str) -> str:
    """Return what `fp8pad NAME --help` prints; without a name, `fp8pad --help`."""
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'fp8pad'; from fp8pad.cli.main import main; main()"]
    run = [*command, *name.split(), "--help"]
    return subprocess.run(run, env=os.environ | {"COLUMNS": "88"}, capture_output=True, text=True, check=True).stdout


def library() -> str:
    """Return the page of the library: functions, then what they return, then what they raise, as `fp8pad` has them."""
    offered = [getattr(fp8pad, name) for name in dir(fp8pad) if not name.startswith("_")]
    errors = [found for found in offered if inspect.isclass(found) and issubclass(found, Exception)]
    others = sorted((found for found in offered if found not in errors), key=inspect.isclass)
    rows = (
        f"| `{error.__name__}` | `{error.__base__.__name__}` | {' '.join(str(error.__doc__).split())} |\n"
        for error in errors
    )
    return "\n".join(
        [
            f"# Library\n\n{inspect.getdoc(fp8pad)}\n",
            *map(entry, others),
            f"## Errors\n\n| error | kind of | when |\n|---|---|---|\n{''.join(rows)}",
        ]
    )


def entry(found: Any) -> str:
    """Return what the page of the library has of a function or class."""
    kind = "class " if inspect.isclass(found) else ""
    signature = f"{kind}fp8pad.{found.__name__}{parameters(inspect.signature(found))}"
    return f"## {found.__name__}\n\n```python\n{signature}\n```\n\n{inspect.getdoc(found)}\n"


def parameters(signature: inspect.Signature) -> str:
    """Return a signature, with a line for each parameter if it is long."""
    if len(str(signature)) < 60:
        return str(signature)
    lines = [str(parameter) for parameter in signature.parameters.values()]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    end = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    return "(\n" + "".join(f"    {line},\n" for line in lines) + ")" + end


if __name__ == "__main__":
    main()
