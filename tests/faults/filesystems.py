"""Real file systems, mounted for the test: `make filesystems`, as root; or a mounted one, such as NFS: `ARGS=FOLDER`.

On each, a checkpoint is converted, verified, replaced and unpadded, and a model with README.md and readme.md is
converted. The usual invariants must hold: the bytes are the same, nothing is left behind, nobody else's file is
replaced, and colliding names are refused. Kinds whose tools are not installed are named. The abilities of each kind
(exchange of folders, hard links, clones, locks, case-sensitive names) are found by trying.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers import files_of, linear, llama, write_checkpoint

from fp8pad.checkpoint.copying import clone
from fp8pad.checkpoint.directory import open_directory
from fp8pad.checkpoint.files import create_file, open_file

# The commands that make an image of each kind, if it needs one, and that mount it.
KINDS: dict[str, tuple[list[str], list[str]]] = {
    "tmpfs": ([], ["mount", "-t", "tmpfs", "none", "{mount}"]),
    "ext4": (["mkfs.ext4", "-q", "-F", "{image}"], ["mount", "-o", "loop", "{image}", "{mount}"]),
    "xfs": (["mkfs.xfs", "-q", "-f", "{image}"], ["mount", "-o", "loop", "{image}", "{mount}"]),
    "btrfs": (["mkfs.btrfs", "-q", "-f", "{image}"], ["mount", "-o", "loop", "{image}", "{mount}"]),
    "overlayfs": ([], ["mount", "-t", "overlay", "-o", "{overlay}", "none", "{mount}"]),
    "NTFS by FUSE, for everybody": (["mkntfs", "-Q", "-F", "{image}"], ["lowntfs-3g", "{image}", "{mount}"]),
    "NTFS by FUSE": (["mkntfs", "-Q", "-F", "{image}"], ["lowntfs-3g", "-o", "umask=077", "{image}", "{mount}"]),
    "NTFS by FUSE, ignoring case": (
        ["mkntfs", "-Q", "-F", "{image}"],
        ["lowntfs-3g", "-o", "ignore_case,umask=077", "{image}", "{mount}"],
    ),
    "bindfs by FUSE": ([], ["bindfs", "{below}/lower", "{mount}"]),
}
IMAGE_BYTES = 400 << 20


@contextmanager
def mounted(kind: str, base: Path) -> Iterator[Path | None]:
    """Yield a new file system of a kind; None if that is not possible here."""
    mount, image, below = base / "mount", base / "image", base / "below"
    shutil.rmtree(below, ignore_errors=True)
    for folder in (mount, below, below / "upper", below / "work", below / "lower"):
        folder.mkdir(exist_ok=True)
    with image.open("wb") as hole:
        hole.truncate(IMAGE_BYTES)
    overlay = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    names = {"image": str(image), "mount": str(mount), "below": str(below), "overlay": overlay}
    for command in filter(None, KINDS[kind]):
        try:
            subprocess.run([word.format(**names) for word in command], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            cause = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else ""
            print(f"{kind}: not tried: {cause or f'{command[0]} is not installed'}")
            yield None
            return
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside an existing one."""
    with tempfile.TemporaryDirectory(prefix="fp8pad-", dir=folder.resolve()) as name:
        yield Path(name)


def abilities(folder: Path) -> dict[str, bool]:
    """Find out what a file system can do."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    with create_file(folder / "file", "file") as file:
        file.write(0, b"x")
    found = {"tells letters of either case apart": not (folder / "FILE").exists()}
    with open_directory(folder) as held:
        found["exchanges folders"] = held.exchange("a", held, "b")
    found["hard links"] = _works(lambda: os.link(folder / "file", folder / "link"))
    with open_file(folder / "file", "file") as source, create_file(folder / "clone", "clone") as target:
        found["clones"] = clone(source, target)
    with (folder / "file").open("rb") as first, (folder / "file").open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        found["locks"] = not _works(lambda: fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB))
    (folder / "own").mkdir(0o700)
    found["folders for one user"] = (folder / "own").stat().st_mode & 0o022 == 0
    (folder / "own").rmdir()
    for name in ("file", "link", "clone"):
        (folder / name).unlink(missing_ok=True)
    for name in ("a", "b"):
        (folder / name).rmdir()
    return found


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def fp8pad(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process, with that folder as HOME."""
    command = [sys.executable, "-m", "fp8pad", *arguments]
    environment = os.environ | {"HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def named(files: dict[str, bytes], can: dict[str, bool]) -> dict[str, bytes]:
    """Return files by name, in lower case if the file system may change case."""
    return files if can["tells letters of either case apart"] else {name.lower(): files[name] for name in files}


def wrong_on(folder: Path, expected: dict[str, bytes], can: dict[str, bool]) -> Iterator[str]:
    """Yield what is wrong on a file system that holds `model` and nothing else."""
    source = files_of(folder / "model")
    if not can["folders for one user"]:
        ended = fp8pad("convert", "model", "out", cwd=folder)
        if ended.returncode != 1 or "anyone can write" not in ended.stderr or (folder / "out").exists():
            yield f"what everybody may write to is not refused: {ended.returncode}: {ended.stderr}"
        return
    steps: list[tuple[tuple[str, ...], str, dict[str, bytes] | None]] = [
        (("convert", "model", "out"), "out", expected),
        (("convert", "model", "out"), "out", expected),
        (("verify", "model", "out"), "out", expected),
        (("convert", "model", "out", "--alignment", "64", "--overwrite"), "out", None),
        (("convert", "model", "out", "--overwrite"), "out", expected),
        (("verify", "out"), "out", expected),
        (("unpad", "out", "restored"), "restored", source),
    ]
    if not can["tells letters of either case apart"]:  # such as NTFS, which then shows names in lower case
        steps = [(("convert", "model", "out"), "out", expected), (("verify", "out"), "out", expected)]
    for arguments, name, content in steps:
        ended = fp8pad(*arguments, cwd=folder)
        if ended.returncode:
            yield f"{' '.join(arguments)}: {ended.returncode}: {ended.stderr}"
            return
        elif content is not None and named(files_of(folder / name), can) != named(content, can):
            yield f"{' '.join(arguments)}: other bytes"
    expected_names = sorted({"model", *(name for _, name, _ in steps)})
    if sorted(path.name for path in folder.iterdir() if path.name != "lost+found") != expected_names:
        yield f"something is left: {sorted(os.listdir(folder))}"
    if files_of(folder / "model") != source:
        yield "the source was changed"
    (folder / "out" / "thesis.tex").write_text("mine")
    ended = fp8pad("convert", "model", "out", "--overwrite", cwd=folder)
    if ended.returncode != 1 or not (folder / "out" / "thesis.tex").exists():
        yield f"a file of somebody else's was replaced: {ended.returncode}: {ended.stderr}"
    yield from _wrong_names(folder, can["tells letters of either case apart"])


def _wrong_names(folder: Path, tells_case: bool) -> Iterator[str]:
    """Convert a model in memory, with names that differ only in case, to `folder`."""
    with tempfile.TemporaryDirectory(prefix="fp8pad-names-", dir="/dev/shm") as elsewhere:
        model = llama(Path(elsewhere, "model"))
        (model / "readme.md").write_text("one")
        (model / "README.md").write_text("other")
        ended = fp8pad("convert", str(model), "names", cwd=folder)
        if ended.returncode != (0 if tells_case else 1):
            yield f"README.md and readme.md: {ended.returncode}: {ended.stderr}"
        if not tells_case and ((folder / "names").exists() or "error: " not in ended.stderr):
            yield f"names that collide: {ended.stderr}"
        print(f"    README.md and readme.md: {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}")


def main() -> int:
    """Try every kind whose name contains the argument, or the file system of the folder that it names.

    Print the results, and write build/faults/filesystems.json.
    """
    wanted = " ".join(sys.argv[1:])
    is_there = bool(wanted) and Path(wanted).is_dir()
    if os.geteuid() and not is_there:
        print("filesystems: needs root, to mount")
        return 1
    report: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="fp8pad-filesystems-") as name:
        base = Path(name)
        shards = {"a.safetensors": linear("a.down_proj", 21, 32), "b.safetensors": linear("b.down_proj", 32, 32)}
        write_checkpoint(base / "model", shards)
        (base / "model" / "sub").mkdir()
        (base / "model" / "sub" / "notes.txt").write_text("notes")
        fp8pad("convert", "model", "out", cwd=base)
        expected = files_of(base / "out")
        for kind in [wanted] if is_there else [kind for kind in KINDS if wanted in kind]:
            with inside(Path(wanted)) if is_there else mounted(kind, base) as folder:
                if folder is None:
                    continue
                can = abilities(folder)
                print(f"{kind}: {', '.join(ability for ability, is_there in can.items() if is_there)}")
                shutil.copytree(base / "model", folder / "model", copy_function=shutil.copyfile)
                wrong = list(wrong_on(folder, expected, can))
                for line in wrong:
                    print(f"    wrong: {line}")
                report[kind] = {"can": can, "wrong": wrong}
    path = Path("build/faults/filesystems.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(found["wrong"] for found in report.values()) else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
