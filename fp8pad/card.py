"""The model card of a converted checkpoint: README.md with metadata and a section by fp8pad."""

import importlib.metadata
import re
from collections.abc import Iterator

from fp8pad import __version__
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.folder import read_text
from fp8pad.errors import ConfigError
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import CARD_FILE, by_key

BEGIN, END = "<!-- fp8pad -->", "<!-- /fp8pad -->"


def with_section(card: str, source: Checkpoint, plan: CheckpointPlan) -> str:
    """Return a model card with a section on what was changed, and with metadata for the hub.

    `card` is empty if the source has none. The rest is kept, except that `base_model` becomes the converted model.
    """
    metadata, body = _split(card)
    front, lines = "\n".join(metadata), [*_section(source, plan)]
    if _can_be_edited(metadata):
        front = "\n".join(_edited(metadata, hub_repo(source)))
    else:
        lines.append("\nThe metadata of this card was copied from the original unchanged.")
    text, section = body.strip("\n"), "\n".join(lines)
    return f"---\n{front}\n---\n\n{text}{chr(10) * 2 if text else ''}{BEGIN}\n{section}\n{END}\n"


def hub_repo(source: Checkpoint) -> str | None:
    """Return the model's name on the hub, if it was read from there or from the hub's local cache."""
    if source.name:
        return source.name.partition("@")[0]
    root = source.root.resolve()
    pattern = re.compile(r"models--([\w.-]+)--([\w.-]+)", re.ASCII)
    match = pattern.fullmatch(root.parent.parent.name) if root.parent.name == "snapshots" else None
    return f"{match[1]}/{match[2]}" if match else None


def _split(card: str) -> tuple[list[str], str]:
    """Split a card into the lines of its metadata, which are between two lines of dashes, and the rest."""
    card = card.removeprefix("\ufeff")
    match = re.match(r"---[ \t]*\r?\n(.*?\r?\n)?---[ \t]*(\r?\n|$)", card, re.DOTALL)
    return (re.findall(r"(.*?)\r?\n", match[1] or ""), card[match.end() :]) if match else ([], card)


def _blocks(metadata: list[str]) -> dict[str, list[str]]:
    """Group lines of YAML by their top-level key; lines before the first key have the key "".

    A line that cannot continue the one above begins a block, whatever its key looks like.
    """
    blocks: dict[str, list[str]] = {}
    key = ""
    for line in metadata:
        if match := re.match(r"([\"']?)([\w-]+)\1\s*:", line):
            key = match[2]
        elif not re.match(r"[\s#\]}]|-(\s|$)|$", line):
            key = line
        blocks.setdefault(key, []).append(line)
    return blocks


def _can_be_edited(metadata: list[str]) -> bool:
    """Return whether each key is on its own line, and no value to replace has an anchor that may be referred to."""
    blocks = _blocks(metadata)
    replaced = [*blocks.get("base_model", ()), *blocks.get("base_model_relation", ())]
    is_flow = any(line.lstrip().startswith("{") for line in blocks.get("", ())) or any(
        k.startswith("{") for k in blocks
    )
    return not is_flow and not any(re.search(r"[\s\[{,]&\S", line) for line in replaced)


def _edited(metadata: list[str], repo: str | None) -> list[str]:
    """Return the lines of metadata with the base model, its relation to this one, and the tag of fp8pad."""
    blocks = _blocks(metadata)
    if repo:
        blocks["base_model"] = [f"base_model: {repo}"]
    blocks["base_model_relation"] = ["base_model_relation: quantized"]
    blocks["tags"] = _with_tag(blocks.get("tags", ["tags:"]))
    return [line for block in blocks.values() for line in block]


def _with_tag(block: list[str]) -> list[str]:
    """Add fp8pad to a list of tags in the list's own YAML style; in an unknown style the list stays unchanged."""
    if any(re.search(r"(^|[\s\[,\"'-])fp8pad\b", line) for line in block):
        return block
    first, items = block[0], [line for line in block[1:] if not re.fullmatch(r"\s*(#.*)?", line)]
    if not items and (inline := re.fullmatch(r"tags\s*:\s*\[([^#\[\]]*)\]\s*", first)):
        return [f"tags: [{', '.join(filter(None, (inline[1].strip(), 'fp8pad')))}]", *block[1:]]
    if not items and (single := re.fullmatch(r"tags\s*:\s*([\w.-]+)\s*", first)):
        return ["tags:", f"- {single[1]}", "- fp8pad", *block[1:]]
    indents = [match[1] for line in items if (match := re.match(r"(\s*)- ", line))]
    if len(indents) == len(items) and re.fullmatch(r"tags\s*:\s*(#.*)?", first):
        return [*block, f"{indents[-1] if indents else ''}- fp8pad"]
    return block


def _section(source: Checkpoint, plan: CheckpointPlan) -> Iterator[str]:
    yield f"## Padded by fp8pad {__version__}"
    yield ""
    if plan.tensors:
        padded = "1 tensor was" if len(plan.tensors) == 1 else f"{len(plan.tensors)} tensors were"
        yield f"{padded} padded to sizes that FP8 kernels accept (zeros; 1.0 in scales)."
    else:
        yield "No tensor was changed: fp8pad pads each rank's share as vLLM loads it."
    for edit in by_key(plan.config_edits):
        yield f"- `{edit.file}`: `{edit.key}` is {edit.new} instead of {edit.old}."
    yield ""
    if plan.needs_runtime:
        yield "Needs vLLM 0.26 or newer with fp8pad installed: other engines refuse it, or ignore its scales."
    else:
        yield "Any engine that serves the original serves it; no plugin is needed."
    yield from _tensor_parallel_sizes(plan)
    yield ""
    yield "```sh"
    if plan.needs_runtime and (url := _repository()):
        yield f"pip install git+{url}  # into the environment of vLLM"
    yield "vllm serve DIR"
    if repo := hub_repo(source):
        yield f"fp8pad verify {repo} DIR   # compares every byte with the original"
    else:
        yield "fp8pad verify DIR              # checks the padding and the records"
        yield "fp8pad verify ORIGINAL DIR     # compares every byte with the original"
    yield "fp8pad unpad DIR RESTORED_DIR  # gives the original back"
    yield "```"


def _tensor_parallel_sizes(plan: CheckpointPlan) -> Iterator[str]:
    """Yield for which sizes it was padded, and at which others ranks can share it though a layer is unaligned."""
    padded, others, own = list[str](), list[str](), plan.policy.tensor_parallel_size
    left = [alike.plan for alike in plan.alike if plan.layers[alike.places[0]].name not in plan.modules]
    for size in sorted({1, 2, 4, 8, own}):
        if _can_share(plan, size):
            is_padded = own % size == 0 or all(layer.fit_at(size) != "unaligned" for layer in left)
            (padded if is_padded else others).append(str(size))
    if padded:
        yield f"Padded for tensor-parallel sizes: {', '.join(padded)}."
    if others:
        yield f"Ranks can share its layers at these sizes too, where some are not aligned: {', '.join(others)}."


def _can_share(plan: CheckpointPlan, num_ranks: int) -> bool:
    """Return whether `num_ranks` ranks can share every layer that the plan knows, FP8 or not."""
    fits = {alike.plan.fit_at(num_ranks) for alike in plan.alike}
    counts = all(count.is_shared_by(num_ranks, plan.grown) for count in plan.shared_counts)
    return counts and fits.isdisjoint({"indivisible", "inside block"})


def _repository() -> str:
    """Return the repository's URL from the package metadata; empty if it has none."""
    try:
        urls = importlib.metadata.metadata("fp8pad").get_all("Project-URL") or ()
    except importlib.metadata.PackageNotFoundError:
        urls = ()
    return next((url.partition(", ")[2] for url in urls if url.startswith("Repository, ")), "")


def read_card(source: Checkpoint) -> str | None:
    """Return a checkpoint's model card: "" if it has none, None if the file is empty or cannot be read as text."""
    if CARD_FILE not in source.other_files:
        return ""
    try:
        with source.fetched(CARD_FILE):
            return read_text(source.root, CARD_FILE) or None
    except ConfigError:
        return None
