"""Hostile checkpoints, one of each kind, through the command line: `make malformed`.

Each attempt makes a small folder that tries to cause much work: sizes, texts, names, links, numbers. The command runs
in a process of its own. It must end with the expected exit status, within `SECONDS` of CPU time and `MEBIBYTES`, print
no line longer than `CHARACTERS`, no traceback and no terminal escape, and name the cause of a refusal.
"""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers import INDEX, framed, llama

import fp8pad
from fp8pad.checkpoint.folder import max_text_bytes
from fp8pad.checkpoint.headers import MAX_HEADER_BYTES

# A config.json of two million names takes 30 s to convert, and on a busy machine nearly twice as long. A header of
# 120,000 tensors takes about 2.5 KB for each, with a plan and a record, plus the 50 MiB that any command takes.
SECONDS, MEBIBYTES, CHARACTERS = 120.0, 360, 4000
LARGEST_MEBIBYTES = 2400  # for the largest text that is read, filled with what takes the most memory
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CHANNEL = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
Prepare = Callable[[Path], object]
ATTEMPTS: dict[str, tuple[Prepare, tuple[str, ...], int, str, int]] = {}


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, in a process of its own: seconds of CPU time, peak memory in MiB."""

    status: int
    seconds: float
    mebibytes: int
    line: str
    wrong: str = ""


def attempt(
    name: str, *command: str, status: int, says: str = "", mebibytes: int = MEBIBYTES
) -> Callable[[Prepare], Prepare]:
    """Add a function that prepares a folder; `command` then runs in it and must end with `status`, and print `says`."""

    def add(prepare: Prepare) -> Prepare:
        ATTEMPTS[name] = prepare, command or ("convert", "model", "out"), status, says, mebibytes
        return prepare

    return add


def checkpoint(root: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], quantization: object = CHANNEL) -> Path:
    """Write a checkpoint whose data is a hole."""
    model = root / "model"
    model.mkdir()
    header, end = {}, 0
    sizes = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
    for tensor, (dtype, shape) in tensors.items():
        begin = end
        num_bytes = sizes[dtype]
        for size in shape:
            num_bytes *= size
        end += num_bytes
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    prefix = framed(json.dumps(header).encode())
    with (model / "model.safetensors").open("wb") as shard:
        shard.write(prefix)
        shard.truncate(len(prefix) + end)
    config = {"model_type": "llama", "quantization_config": quantization}
    (model / "config.json").write_text(json.dumps(config))
    return model


def channel(name: str, n: int, k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a Linear with a scale for each output channel."""
    return {f"{name}.weight": ("F8_E4M3", (n, k)), f"{name}.weight_scale": ("F32", (n, 1))}


def converted(root: Path) -> Path:
    """Convert a small checkpoint to `out`, with hashes."""
    fp8pad.convert(llama(root / "model"), root / "out", hash=True)
    return root / "out"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


# Work that grows with a number instead of a file's size.


@attempt("a shape of 0 and 2^50 + 1", status=1, says="a size of 0")
def _(root: Path) -> None:
    huge = {"b.proj.weight": ("F8_E4M3", (2**50 + 1, 0)), "b.proj.weight_scale": ("F32", (2**50 + 1, 0))}
    checkpoint(root, channel("a.proj", 16, 16) | huge)


@attempt("a stack of 2^50 experts of size 0", status=1)
def _(root: Path) -> None:
    stack = {"x.experts.gate_up_proj": ("F8_E4M3", (2**50, 0, 64)), "x.experts.gate_up_proj_scale": ("F32", (2**50, 0))}
    checkpoint(root, channel("a.proj", 16, 16) | stack)


@attempt("such a shape in fp8pad.json", "verify", "out", status=1, says="fp8pad.json")
def _(root: Path) -> None:
    out = converted(root)
    edit(out / "fp8pad.json", lambda d: next(iter(d["tensors"].values())).update(logical_shape=[2**50 + 1, 0]))


@attempt("300,000 segments", "unpad", "out", "restored", status=1, says="at most 4096")
def _(root: Path) -> None:
    def change(document: Any) -> None:
        tensor = next(t for t in document["tensors"].values() if len(t["logical_shape"]) == 2)
        n, k = tensor["logical_shape"]
        tensor.update(logical_shape=[300_000, k], padded_shape=[300_000, k])
        tensor["segments"] = {"logical": [1] * 300_000, "padded": [1] * 300_000}
        assert n

    edit(converted(root) / "fp8pad.json", change)


def _of_three_gigabytes(file: str) -> Prepare:
    def prepare(root: Path) -> None:
        folder = converted(root) if file == "fp8pad.json" else llama(root / "model", num_shards=2)
        with (folder / file).open("ab") as text:
            text.truncate(3 << 30)

    return prepare


for _file, _command in (
    ("config.json", ("plan", "model")),
    (INDEX, ("plan", "model")),
    ("hf_quant_config.json", ("plan", "model")),
    ("fp8pad.json", ("verify", "out")),
    ("fp8pad.json", ("unpad", "out", "restored")),
):
    _name = f"3 GiB of {_file}, {_command[0]}"
    attempt(_name, *_command, status=1, says=_file)(_of_three_gigabytes(_file))


@attempt("an indent of a megabyte", status=0)
def _(root: Path) -> None:
    path = llama(root / "model") / "config.json"
    config = json.loads(path.read_text()) | {str(number): number for number in range(300)}
    text = json.dumps(config, indent=1)
    path.write_text(text.replace("\n ", "\n" + " " * 1_000_000, 1))


def _filled(file: str, part: str) -> Prepare:
    """Fill a text up to the largest size that is read, with `part` or with names in which `%x` is a number."""

    def prepare(root: Path) -> None:
        folder = converted(root) if file == "fp8pad.json" else llama(root / "model", num_shards=2)
        text = (folder / file).read_text()
        size = max_text_bytes(file) - len(text) - 1000  # config.json grows with the padded modules
        if "%x" in part:
            numbers = range(1 << 24, (1 << 24) + size // len(part % (1 << 24)))
            filling = "{" + ", ".join(part[:-2] % number for number in numbers) + "}"
        else:
            filling = "[" + part * (size // len(part)) + "0]"
        (folder / file).write_text(text.replace("{", '{"filling":' + filling + ",", 1))

    return prepare


for _file, _of_file in (
    ("config.json", ("convert", "model", "out")),
    (INDEX, ("plan", "model")),
    ("fp8pad.json", ("verify", "out")),
):
    for _what, _part in (("texts", '"ab", '), ("names", '"%x": 0, '), ("lists and texts", '[], "ab", "c", ')):
        _name = f"the largest {_file}, of {_what}, {_of_file[0]}"
        attempt(_name, *_of_file, status=0, mebibytes=LARGEST_MEBIBYTES)(_filled(_file, _part))
    _name = f"the largest {_file}, of empty lists, {_of_file[0]}"
    attempt(_name, *_of_file, status=1, says="fewer lists and objects")(_filled(_file, "[],"))


@attempt("numbers in 90 lists that get an indent of 16", status=1, says="would have more than the 32000000 bytes")
def _(root: Path) -> None:
    path = checkpoint(root, channel("a.proj", 21, 24)) / "config.json"
    nested = "[" * 90 + "1," * 400_000 + "1" + "]" * 90  # a line for each would take 600 MB
    path.write_text(path.read_text().replace("{", '{\n                "nested":' + nested + ",", 1))


def _header_of(part: str) -> Prepare:
    def prepare(root: Path) -> None:
        header = '{"a":[' + part * ((MAX_HEADER_BYTES - 100) // len(part)) + "0]}"
        (llama(root / "model") / "model.safetensors").write_bytes(framed(header.encode()))

    return prepare


for _what, _part, _most in (("texts", '"ab",', LARGEST_MEBIBYTES), ("empty lists", "[],", MEBIBYTES)):
    _name = f"the largest header, of {_what}"
    attempt(_name, "plan", "model", status=1, says="model.safetensors", mebibytes=_most)(_header_of(_part))


# Names and numbers.


@attempt("a name of 5,000 digits", "plan", "model", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel(f"layers.{'7' * 5000}.proj", 21, 24))


@attempt("a name of 3,000 parts", "plan", "model", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel("a." * 3000 + "proj", 21, 24))


@attempt("a name of a megabyte", "plan", "model", "--all", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel("a" * 1_000_000, 21, 24))


@attempt("a name of a megabyte in an error", "plan", "model", status=1)
def _(root: Path) -> None:
    checkpoint(root, {f"{'a' * 1_000_000}.weight_scale": ("F32", (1, 1))})


@attempt("terminal escapes in a name", "plan", "model", "--all", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel("a\x1b[2J\x1b]0;title\x07\u202e\x9b31m", 21, 24))


@attempt("terminal escapes in the folder's name", "plan", "mo\x1b[31mdel", status=1, says="no such folder")
def _(root: Path) -> None:
    llama(root / "model")


@attempt("a number of 400 digits for a block", "plan", "model", status=1, says="weight_block_size")
def _(root: Path) -> None:
    checkpoint(root, channel("a.proj", 21, 24), {"quant_method": "fp8", "weight_block_size": [10**400, 128]})


@attempt("a number of 5,000 digits", "plan", "model", status=1, says="config.json")
def _(root: Path) -> None:
    model = checkpoint(root, channel("a.proj", 21, 24))
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "fp8", "a": ' + "9" * 5000 + "}}")


@attempt("a file name that is not UTF-8", status=1, says="UTF-8")
def _(root: Path) -> None:
    (Path(os.fsdecode(bytes(llama(root / "model")) + b"/\xff\xfe.txt"))).write_text("x")


@attempt("1,500 nested folders", status=0)
def _(root: Path) -> None:
    folder = os.open(llama(root / "model"), os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


@attempt("JSON that nests 100,000 levels", "plan", "model", status=1, says="config.json")
def _(root: Path) -> None:
    (llama(root / "model") / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


@attempt("a list of 5,000,000 numbers in 48 lists of objects", "plan", "model", status=0)
def _(root: Path) -> None:
    path = checkpoint(root, channel("a.proj", 21, 24)) / "config.json"
    nested = '[{"a":' * 48 + "[" + "1," * 5_000_000 + "1]" + "}]" * 48
    path.write_text(path.read_text().replace("{", '{"nested":' + nested + ",", 1))


@attempt("patterns that take exponential time", "plan", "model", status=0)
def _(root: Path) -> None:
    ignore = ["re:(a+)+$", "re:(.*)*x{40}$", "re:(a|a)*b"]
    group = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}, "targets": ["Linear"]}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": ignore}
    checkpoint(root, channel("a" * 5000 + "!", 21, 24), quantization)


@attempt("a name of 255 bytes for OUT_DIR", "convert", "model", "o" * 255, status=0)
def _(root: Path) -> None:
    llama(root / "model")


@attempt("a name of 256 bytes for OUT_DIR", "convert", "model", "o" * 256, status=1, says="too long")
def _(root: Path) -> None:
    llama(root / "model")


@attempt("a shard that is gone", status=1, says="is missing")
def _(root: Path) -> None:
    (llama(root / "model", num_shards=2) / "model-00002-of-00002.safetensors").unlink()


@attempt("no memory", "plan", "model", status=1, says="memory")
def _(root: Path) -> None:
    checkpoint(root, {f"layers.{number}.x": ("BF16", (1,)) for number in range(400_000)})
    (root / "limit").write_text("180")  # MiB


# Very many, or very wide.


@attempt("120,000 padded tensors, convert", status=0)
def _(root: Path) -> None:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number in range(60_000):
        tensors |= channel(f"model.layers.{number}.mlp.down_proj", 9, 24)
    checkpoint(root, tensors)


@attempt("120,000 padded tensors, verify", "verify", "model", "out", status=0)
def _(root: Path) -> None:
    ATTEMPTS["120,000 padded tensors, convert"][0](root)
    run(("convert", "model", "out"), root)


@attempt("60,000 layers of different shapes, plan", "plan", "model", status=0)
def _(root: Path) -> None:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number in range(60_000):
        tensors |= channel(f"x{number}y.proj", 17 + number % 300, 25 + number // 300)
    checkpoint(root, tensors)


@attempt("a row of 2^30 elements, convert", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel("a.down_proj", 1, 2**30 + 1))


@attempt("a row of 2^30 elements, verify", "verify", "model", "out", status=0)
def _(root: Path) -> None:
    checkpoint(root, channel("a.down_proj", 1, 2**30 + 1))
    run(("convert", "model", "out"), root)


@attempt("40,000 shapes whose hashes are equal, plan", "plan", "model", status=0)
def _(root: Path) -> None:
    same = itertools.product((5, 5 + sys.hash_info.modulus), repeat=16)
    tensors = {f"t{number}": ("F32", (0, *sizes)) for number, sizes in enumerate(itertools.islice(same, 40_000))}
    checkpoint(root, channel("a.proj", 21, 24) | tensors)


# What should not be there.


@attempt("a link out of the folder", status=0)
def _(root: Path) -> None:
    (root / "secret.txt").write_text("secret")
    (llama(root / "model") / "notes.txt").symlink_to(root / "secret.txt")


def _added(file: str, content: bytes) -> Prepare:
    return lambda root: (converted(root) / file).write_bytes(content)


for _file in ("modeling_x.py", "chat_template.jinja", "generation_config.json", "params.json", "pytorch_model.bin",
              "weights.pkl", "sub/modeling_x.py"):  # fmt: skip

    def _prepare(root: Path, file: str = _file) -> None:
        path = converted(root) / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")

    attempt(f"{_file} that appeared, verify", "verify", "out", status=1, says=_file)(_prepare)


@attempt("a harmless file that appeared, verify", "verify", "out", status=0)
def _(root: Path) -> None:
    (converted(root) / "notes.txt").write_text("note")


@attempt("all hashes removed, verify", "verify", "out", status=0, says="holds no hashes")
def _(root: Path) -> None:
    def change(document: Any) -> None:
        for entry in document["files"].values():
            entry.pop("sha256"), entry.pop("source_sha256")

    edit(converted(root) / "fp8pad.json", change)


@attempt("some hashes removed, verify", "verify", "out", status=1, says="both hashes")
def _(root: Path) -> None:
    edit(converted(root) / "fp8pad.json", lambda d: d["files"]["model.safetensors"].pop("sha256"))


@attempt("a file that every user may write to, verify", "verify", "out", status=0, says="is writable by every user")
def _(root: Path) -> None:
    (converted(root) / "model.safetensors").chmod(0o666)


@attempt("a shard that became a link, verify", "verify", "out", status=0, says="is a link to")
def _(root: Path) -> None:
    shard = converted(root) / "model.safetensors"
    shutil.move(shard, root / "elsewhere")
    shard.symlink_to(root / "elsewhere")


@attempt("code that became a link, verify", "verify", "out", status=1, says="modeling_x.py")
def _(root: Path) -> None:
    (llama(root / "model") / "modeling_x.py").write_text("x = 1")
    fp8pad.convert(root / "model", root / "out")
    code = root / "out" / "modeling_x.py"
    code.unlink()
    code.symlink_to(root / "model" / "modeling_x.py")


# The kernel's number for a child's memory includes that of the process that it was forked from.
PROGRAM = """
import atexit, pathlib, runpy
status = pathlib.Path("status").absolute()
atexit.register(lambda: status.write_bytes(pathlib.Path("/proc/self/status").read_bytes()))
runpy.run_module("fp8pad", run_name="__main__", alter_sys=True)
"""


def run(command: tuple[str, ...], root: Path) -> Ending:
    """Run the command line in a separate process."""
    limit = root / "limit"
    mebibytes = int(limit.read_text()) if limit.exists() else 0

    def prepare() -> None:
        if mebibytes:
            resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    told = root / "status"
    told.unlink(missing_ok=True)
    with (root / "said").open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            cwd=root,
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare,  # noqa: PLW1509  no threads here
            env=os.environ | {"HOME": str(root), "COLUMNS": "100", "FP8PAD_DEBUG": ""},
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    text = (root / "said").read_bytes().decode(errors="replace")
    lines = text.splitlines() or [""]
    line = next((line for line in lines if line.startswith("error")), lines[-1])
    wrong = "".join(_faults(text))
    peak = used.ru_maxrss  # the only number for a child that a signal has ended
    if told.exists():
        (peak,) = map(int, re.findall(r"VmHWM:\s*(\d+) kB", told.read_text()))
    return Ending(child.returncode, used.ru_utime + used.ru_stime, peak >> 10, line[:150], wrong)


def _faults(text: str) -> Iterator[str]:
    if "Traceback" in text or "unexpected" in text or ": None" in text:
        yield "an exception; "
    if any(character in text for character in "\x1b\x07\x9b\u202e"):
        yield "a control character; "
    if (longest := max(map(len, text.splitlines() or [""]))) > CHARACTERS:
        yield f"a line of {longest} characters; "


def judge(name: str, root: Path) -> Ending:
    """Make one attempt, and return how it ended, with what is wrong about it."""
    prepare, command, status, says, mebibytes = ATTEMPTS[name]
    prepare(root)
    ending = run(command, root)
    wrong = ending.wrong
    if ending.status != status:
        wrong += f"exit status {ending.status}, not {status}; "
    said = " ".join((root / "said").read_text(errors="replace").split())
    if says not in said:
        wrong += f"does not say {says!r}; "
    if ending.seconds > SECONDS or ending.mebibytes > mebibytes:
        wrong += "too long or too large; "
    is_refused = status == 1 and command[0] in {"convert", "unpad"}
    if is_refused and os.path.exists(root / command[2]):
        wrong += "something was published; "
    return Ending(ending.status, ending.seconds, ending.mebibytes, ending.line, wrong)


def main() -> int:
    """Make all attempts whose names contain the argument; print how each ended; write build/fuzz/malformed.json."""
    wanted, endings = " ".join(sys.argv[1:]), {}
    for name in ATTEMPTS:
        if wanted in name:
            with tempfile.TemporaryDirectory(prefix="fp8pad-malformed-") as folder:
                endings[name] = ending = judge(name, Path(folder))
                subprocess.run(["rm", "-rf", f"{folder}/model", f"{folder}/out"], check=True)  # however deep
            row = f"{ending.status}  {ending.seconds:6.1f} s  {ending.mebibytes:4} MiB  {name}: {ending.line}"
            print(row + (f"\n   WRONG: {ending.wrong}" if ending.wrong else ""), flush=True)
    path = Path("build/fuzz/malformed.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: asdict(ending) for name, ending in endings.items()}, indent=2) + "\n")
    return 1 if any(ending.wrong for ending in endings.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
