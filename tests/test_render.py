"""What the terminal shows: nothing cut, nothing read as markup, one screen for a large model."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from fp8pad.checkpoint.checkpoint import Checkpoint, read_unconverted
from fp8pad.planning.plan import CheckpointPlan, LayerPlan, UntouchedTensor
from fp8pad.planning.tensor_parallel import Sharding
from fp8pad.record import AxisActions, ConfigEdit, Disposition, Policy
from fp8pad.render import plan as plan_view
from fp8pad.render.console import shortened
from fp8pad.render.plan import how, show_plan
from fp8pad.render.progress import BarProgress, LineProgress
from fp8pad.scales import PerBlock, PerChannel
from fp8pad.text import printable

MODULES = (
    ("self_attn.q_proj", 8192, 8192),
    ("self_attn.k_proj", 1024, 8192),
    ("self_attn.o_proj", 8192, 8192),
    ("mlp.gate_proj", 13653, 8192),
    ("mlp.up_proj", 13653, 8192),
    ("mlp.down_proj", 8192, 13653),
)


def round_up(size: int) -> int:
    """The next multiple of 16."""
    return (size + 15) // 16 * 16


def layer(name: str, num_n: int, num_k: int) -> LayerPlan:
    """A channel-scaled layer, padded to 16."""
    padded = round_up(num_n), round_up(num_k)
    axes = AxisActions("pad" if padded[0] > num_n else "aligned", "pad" if padded[1] > num_k else "aligned")
    reason = "N and K are multiples of 16" if padded == (num_n, num_k) else "not a multiple of 16"
    return LayerPlan(name, PerChannel(), (num_n, num_k), padded, (16, 16), axes, reason, (num_n, num_k))


def plan_of(*layers: LayerPlan, notes: tuple[str, ...] = (), edits: tuple[ConfigEdit, ...] = ()) -> CheckpointPlan:
    """A plan that holds `layers`, and just enough else to be shown."""
    return CheckpointPlan(
        policy=Policy(),
        layers=layers,
        untouched=(UntouchedTensor("lm_head.weight", "BF16", (32000, 8192), "BF16, not FP8"),),
        tensors={},
        modules={},
        config_edits=edits,
        base=None,
        base_source=None,
        shards_rewritten=(),
        bytes_before=1_000_000,
        bytes_after=1_010_000,
        notes=notes,
    )


LARGE = plan_of(
    *(layer(f"model.layers.{index}.{module}", *shape) for index in range(100) for module, *shape in MODULES)
)


@pytest.fixture
def source(example: Path) -> Checkpoint:
    """Some checkpoint for a plan to belong to."""
    return read_unconverted(example)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make stdout a terminal of so many columns."""

    def set_width(columns: int) -> None:
        monkeypatch.setattr(plan_view, "stdout_console", lambda: Console(width=columns, markup=False, highlight=False))

    return set_width


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_plan_of_100_layers_fits_one_screen(
    source: Checkpoint, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """Six hundred Linears take a few lines at any usual width, and no name is cut."""
    terminal(columns)
    show_plan(source, LARGE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= columns
    for pattern in ("self_attn.{q_proj,o_proj}", "self_attn.k_proj", "mlp.{gate_proj,up_proj}", "mlp.down_proj"):
        assert any(f"model.layers.{{0-99}}.{pattern}" in line for line in lines)


def test_lines_are_whole_where_nobody_counts_columns(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Piped output has one line for each group of layers, with every column, no colours and no blanks at the end."""
    show_plan(source, LARGE)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "down_proj" in line)
    cells = [cell.strip() for cell in row.split("  ") if cell]
    assert cells == [
        "model.layers.{0-99}.mlp.down_proj",
        "channel",
        "[8192, 13653]",
        "[8192, 13664]",
        "pad K",
        "not a multiple of 16",
    ]
    assert not any("\x1b" in line or line.endswith(" ") for line in lines)


def test_names_are_not_markup(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets, smileys and escape sequences in names and notes are shown as they are, or escaped."""
    show_plan(source, plan_of(layer("[bold]x[/bold]:smile:\x1b[2J", 16, 16), notes=("[red]note[/red]\n",)))
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]:smile:\\x1b[2J" in shown
    assert "[red]note[/red]\\n" in shown


def test_config_edits_are_shown(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """What absorbing would write into config.json stands in the plan, with the old value."""
    show_plan(source, plan_of(edits=(ConfigEdit("config.json", "vision_config.intermediate_size", 3420, 3424),)))
    assert "config.json: vision_config.intermediate_size: 3420 -> 3424" in capsys.readouterr().out


def test_shares_that_begin_inside_a_block_are_told_apart(
    source: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """No padding helps them, so they are not among the layers that also need padding."""
    shape = (8192, 29568)
    aligned = AxisActions("aligned", "aligned")
    inside = LayerPlan("a.down_proj", PerBlock(128, 128), shape, shape, (128, 128), aligned, "", shape, Sharding("row"))
    show_plan(source, plan_of(inside, layer("b.gate_proj", 10944, 8192)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "at TP 2, 4 a rank's share would begin inside a scale block: a.down_proj" in lines
    assert "at TP 8 also unaligned: b.gate_proj; a rank's share would begin inside a scale block: a.down_proj" in lines


def test_a_plan_that_changes_nothing_says_so(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is nothing to convert, no conversion is suggested."""
    show_plan(source, plan_of(layer("a", 16, 16)))
    shown = capsys.readouterr().out
    assert "nothing to convert" in shown
    assert "fp8pad convert" not in shown


@pytest.mark.parametrize(
    ("n", "k", "text"),
    [
        ("pad", "pad", "pad N, K"),
        ("pad", "aligned", "pad N"),
        ("aligned", "absorb", "absorb K"),
        ("pad", "absorb", "pad N, absorb K"),
        ("aligned", "aligned", "aligned"),
        ("skip", "skip", "skip"),
    ],
)
def test_dispositions_are_told_by_axis(n: Disposition, k: Disposition, text: str) -> None:
    """Both axes of a layer in a few words."""
    assert how(AxisActions(n, k)) == text


def test_many_files_are_shortened() -> None:
    """The first eight names, and how many more."""
    names = [f"{index}.safetensors" for index in range(10)]
    assert shortened(names[:8]) == ", ".join(names[:8])
    assert shortened(names) == ", ".join(names[:8]) + " and 2 more"


def test_printable_leaves_words_alone() -> None:
    """Letters of any script stay; line breaks, control characters and lone surrogates are escaped."""
    assert printable("späces 模型 [a]") == "späces 模型 [a]"
    assert printable("a\nb\x1b\ud800") == "a\\nb\\x1b\\ud800"


def test_progress_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line at the start, then one when ten seconds have passed, with speed and time left."""
    now = 0.0
    monkeypatch.setattr("fp8pad.render.progress.time.monotonic", lambda: now)
    progress = LineProgress()
    progress.start("padding", 1_000_000)
    now = 9.0
    progress.advance(100_000)
    now = 10.0
    progress.advance(100_000)
    progress.say("half\nway")
    assert capsys.readouterr().err.splitlines() == [
        "padding: 1.0 MB",
        "padding: 200.0 kB of 1.0 MB (20%), 20.0 kB/s, 40 s left",
        "half\\nway",
    ]


def test_bars_count_bytes() -> None:
    """Each step has a bar of its own, and labels are not markup."""
    bars = Bars(console=Console(file=io.StringIO()))
    progress = BarProgress(bars)
    progress.advance(1)
    progress.start("padding", 100)
    progress.advance(60)
    progress.start("verifying", 10)
    progress.advance(10)
    assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
        ("padding", 60, 100),
        ("verifying", 10, 10),
    ]
