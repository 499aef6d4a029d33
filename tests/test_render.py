"""What the terminal shows: nothing is cut or parsed as markup, and a large model fits one screen."""

import io
import os
import re
import subprocess
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import copy_case
from rich.console import Console
from rich.progress import Progress as Bar

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.padded import AxisActions, Disposition
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import engines, find_engine
from fp8pad.planning.linear import Layer, LayerPlan
from fp8pad.planning.plan import CheckpointPlan, UntouchedTensor
from fp8pad.planning.sharding import Sharding
from fp8pad.planning.tensor_parallel import SharedCount
from fp8pad.record import ConfigEdit, Policy
from fp8pad.render.console import WIDE, shell_command, shortened, stdout_console
from fp8pad.render.plan import how, plan_screen, skipped_facts
from fp8pad.render.progress import BarProgress, LineProgress
from fp8pad.render.screen import Paragraph, Rows
from fp8pad.render.terminal import _joints, _wrapped, write
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
    """Return the next multiple of 16."""
    return (size + 15) // 16 * 16


def layer(name: str, num_n: int, num_k: int) -> Layer:
    """Return a channel-scaled layer, padded to 16."""
    padded = round_up(num_n), round_up(num_k)
    axes = AxisActions("pad" if padded[0] > num_n else "aligned", "pad" if padded[1] > num_k else "aligned")
    reason = "N and K are multiples of 16" if padded == (num_n, num_k) else "not a multiple of 16"
    return Layer(name, LayerPlan(PerChannel(), (num_n, num_k), padded, (16, 16), axes, reason, (num_n, num_k)))


def changed(layer: Layer, **changes: Any) -> Layer:
    """Return a layer with another plan."""
    return Layer(layer.name, replace(layer.plan, **changes))


def plan_of(*layers: Layer, notes: tuple[str, ...] = (), edits: tuple[ConfigEdit, ...] = ()) -> CheckpointPlan:
    """Return a plan with `layers`, and just enough else to be shown."""
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
    """Return a checkpoint for the plans."""
    return read_unconverted(example)


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_plan_of_100_layers_fits_one_screen(
    source: Checkpoint, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """Six hundred Linears take a few lines at any usual width."""
    write(plan_screen(PlanReport(source, LARGE)), Console(width=columns, markup=False, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 46
    assert max(len(line) for line in lines if not line.startswith("  fp8pad ")) <= columns
    for pattern in ("mlp.{gate_proj,up_proj}", "mlp.down_proj"):
        assert any(f"model.layers.{{0-99}}.{pattern}" in line for line in lines)
    assert any("300 layers, unchanged" in line for line in lines)


def test_lines_are_whole_where_nobody_counts_columns(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Piped output has one line per group of layers, with all columns, no colours and no trailing blanks."""
    write(plan_screen(PlanReport(source, LARGE)), stdout_console())
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "pad K" in line)
    cells = [cell.strip() for cell in row.split("  ") if cell]
    assert cells == [
        "model.layers.{0-99}.mlp.down_proj",
        "per channel",
        "[8192, 13653]",
        "[8192, 13664]",
        "pad K",
        "not a multiple of 16",
    ]
    assert not any("\x1b" in line or line.endswith(" ") for line in lines)


def test_names_are_not_markup(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets, emoji codes and escape sequences in names and notes are printed literally or escaped."""
    plan = plan_of(layer("[bold]x[/bold]:smile:\x1b[2J", 10, 16), notes=("[red]note[/red]\n",))
    write(plan_screen(PlanReport(source, plan)), stdout_console())
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]:smile:\\x1b[2J" in shown
    assert "[red]note[/red]\\n" in shown


def test_config_edits_are_shown(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan shows what absorbing would write into config.json, with the old value."""
    plan = plan_of(edits=(ConfigEdit("config.json", "vision_config.intermediate_size", 3420, 3424),))
    write(plan_screen(PlanReport(source, plan)), stdout_console())
    assert "config.json: vision_config.intermediate_size: 3420 -> 3424" in capsys.readouterr().out


def test_what_is_wrong_comes_first_and_for_whom(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each TP size, and below it the layers that cause problems, with the sizes concerned."""
    shape = (8192, 29568)
    aligned = AxisActions("aligned", "aligned")
    down = LayerPlan(PerBlock(128, 128), shape, shape, (128, 128), aligned, "", shape, Sharding("row"))
    inside = Layer("a.down_proj", down)
    write(plan_screen(PlanReport(source, plan_of(inside, layer("b.gate_proj", 10944, 8192)))), stdout_console())
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:4] == [f"What {find_engine().title} does with it", "as it is padded (plugin) absorbed (--absorb)"]
    assert lines[4] == "TP 1 serves serves no need"
    assert lines[5] == "TP 2 refuses refuses not absorbed"
    assert lines[9] == "padded, absorbed: converted for the size of the row, with -tp TP"
    assert lines[11:13] == ["Why, by TP size", "TP 2, 4"]
    assert re.fullmatch(r"refuses \(as it is, padded\): .*: a\.down_proj", lines[13])
    assert lines[14] == "TP 8, 16"
    assert re.fullmatch(r"pads in every forward \(as it is\): .*: b\.gate_proj", lines[17])


SIX = ("deepseek_v3_block", "qwen2_5_vl_dyn", "qwen3_next_dyn", "llama_mixed_fp8_int8", "phi3_dyn", "qwen3_moe_block")


@pytest.mark.parametrize("name", SIX)
def test_no_text_is_lost_at_any_width(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 60 to 250 columns every word of the widest form is there, no line is too long, and commands are whole.

    Each case has its own width.
    """
    source = read_unconverted(copy_case(f"good/{name}", tmp_path))
    plan = plan_checkpoint(source.shards, source.configs, Policy(tensor_parallel_size=2))
    screen = list(plan_screen(PlanReport(source, plan), show_all=True))

    def shown(columns: int) -> list[str]:
        write(screen, Console(width=columns, color_system=None))
        return capsys.readouterr().out.splitlines()

    widest = shown(WIDE)
    cells = {cell.replace(" ", "") for line in widest for cell in line.split("  ") if cell}
    commands = [line for line in widest if line.startswith("  fp8pad ")]
    long_words = {word for line in widest for word in line.split() if len(word) > 20}
    for columns in range(60 + SIX.index(name), 251, len(SIX)):
        lines = shown(columns)
        assert max(len(line) for line in lines if line not in commands) <= columns
        assert all(command in lines for command in commands)
        text = "".join(line.replace(" ", "") for line in lines)
        assert [cell for cell in cells if cell not in text and cell != "layers"] == []
        pairs = [(line.split()[-1], after.split()[0]) for line, after in pairwise(lines) if line and after]
        broken = [end for end, begin in pairs if any(word.startswith(end + begin) for word in long_words)]
        assert [end for end in broken if end[-1] not in ".,/_-"] == []  # elsewhere, lines end between words
        assert not [pair for pair in pairs if re.search(r"\d \(?([kMGTPE]?B|bytes?)\b|^TP \d", " ".join(pair))]


@pytest.mark.parametrize("name", SIX)
def test_each_outcome_of_the_table_has_its_reason(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the table each TP size is listed once, with a reason for every form that is not simply served."""
    source = read_unconverted(copy_case(f"good/{name}", tmp_path))
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    write(plan_screen(PlanReport(source, plan)), stdout_console())
    table, why = capsys.readouterr().out.partition("What converting")[0].split("Why, by TP size")
    told = {
        size: section
        for sizes, section in re.findall(r"^  TP ([\d, ]+)\n((?:    .*\n)+)", why, re.MULTILINE)
        for size in sizes.split(", ")
    }
    rows = re.findall(r"^  TP (\d+) +(\S.*?)  +(\S.*?)  +(\S.*)$", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    for size, *cells in rows:
        for form, cell in zip(("as it is", "padded", "absorbed"), cells, strict=True):
            outcome = re.split(" with|,", cell)[0]
            if outcome not in ("serves", "no need", "not absorbed") and not outcome.startswith("serves"):
                assert re.search(rf"^    {outcome} \([^)]*{form}[^)]*\): ", told[size], re.MULTILINE)


def test_each_column_has_its_title() -> None:
    """A title or a cell too many would be put above or into another column."""
    for rows, header in (([("a", "b")], ["x"]), ([("a", "b"), ("c",)], [])):
        with pytest.raises(ValueError, match="different lengths"):
            Rows(rows, header)
    assert Rows([], ["x"]).header == ["x"]


def test_a_long_name_is_broken_where_its_parts_meet(capsys: pytest.CaptureFixture[str]) -> None:
    """After a dot or a comma if one fits, else after an underscore, else anywhere; wide letters count twice."""
    text = "in model.layers.{0-1}.self_attn.{kv_a_proj_with_latent,o_proj}, " + "a_" * 8 + " " + "模" * 12
    write([Paragraph(text)], Console(width=20, color_system=None))
    assert capsys.readouterr().out.splitlines() == [
        "in",
        "model.layers.{0-1}.",
        "self_attn.",
        "{kv_a_proj_with_",
        "latent,o_proj},",
        "a_a_a_a_a_a_a_a_",
        "模" * 10,
        "模" * 2,
    ]


@pytest.mark.parametrize(("no_color", "styled"), [("", True), ("1", False)])
def test_colours_are_for_terminals(
    source: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_color: str,
    styled: bool,
) -> None:
    """Actions and outcomes have colours on a terminal, unless NO_COLOR is set."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    write(plan_screen(PlanReport(source, LARGE)), stdout_console())
    assert ("\x1b[" in capsys.readouterr().out) == styled


def test_only_the_outcome_is_bold(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason and the layers after `refuses` are plain text."""
    write(
        plan_screen(PlanReport(source, plan_of(layer("a.gate_proj", 213, 16)))),
        Console(width=200, color_system="standard", force_terminal=True),
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot share evenly" in line]
    outcome = r"\x1b\[1;31mrefuses\x1b\[0m"
    assert re.fullmatch(
        rf"    {outcome} \(as it is, padded\): a size that ranks cannot share evenly: a\.gate_proj", line
    )


def test_only_labels_are_dim(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """If a row is laid out as a paragraph, the text after its labels is plain."""
    write(plan_screen(PlanReport(source, LARGE)), Console(width=60, color_system="standard", force_terminal=True))
    assert "\x1b[2mscales: \x1b[0mper channel  \x1b[2m[N, K]: \x1b[0m[8192, 13653]" in capsys.readouterr().out


def test_what_is_said_of_the_whole_model_names_no_layers(
    source: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """That ranks cannot share heads has nothing to do with the MLPs."""
    plan = replace(plan_of(layer("a.gate_proj", 16, 16)), shared_counts=(SharedCount(12, "attention heads"),))
    write(plan_screen(PlanReport(source, plan)), stdout_console())
    said = "    refuses (as it is, padded): 12 attention heads, which 16 ranks cannot share evenly"
    assert said in capsys.readouterr().out.splitlines()


def test_counts_of_layers_add_up(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """Each layer is counted once: an aligned expert as aligned, one that is padded and absorbed separately."""
    both, skip = AxisActions("absorb", "pad"), AxisActions("skip", "skip")
    expert = changed(layer("experts.0.up", 32, 32), axes=skip)
    unaligned = changed(layer("experts.1.up", 30, 32), axes=skip)
    plan = plan_of(expert, unaligned, changed(layer("x", 10, 10), axes=both), layer("y", 10, 16))
    write(plan_screen(PlanReport(source, plan)), stdout_console())
    counts = "4 FP8 layers: 1 to pad, 1 to absorb and pad, 1 carried unchanged, 1 aligned already"
    assert capsys.readouterr().out.splitlines()[0].endswith(counts)


def test_a_plan_that_changes_nothing_says_so(source: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    """If there is nothing to convert, the suggestion is a plan for a TP size at which converting helps."""
    write(plan_screen(PlanReport(source, plan_of(layer("a", 256, 256)))), stdout_console())
    shown = capsys.readouterr().out
    assert "nothing to convert" in shown
    assert "fp8pad convert" not in shown


def test_layers_are_in_one_row_if_all_its_cells_are_equal(
    source: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else differs; layers of which a cell differs are in different rows, whatever their names."""
    layers = [layer("l.0.up", 10, 16), layer("l.1.up", 20, 16), layer("l.2.up", 10, 16)]
    layers += [
        Layer("l.3.up", replace(layers[0].plan, inner="n")),
        Layer("l.4.up", replace(layers[0].plan, reason="other")),
    ]
    write(plan_screen(PlanReport(source, plan_of(*layers))), stdout_console())
    rows = re.findall(r"^  (l\.\S+) .*  (\S.*)$", capsys.readouterr().out, re.MULTILINE)
    assert rows == [
        ("l.{0,2-3}.up", "not a multiple of 16"),
        ("l.1.up", "not a multiple of 16"),
        ("l.4.up", "other"),
    ]


@pytest.mark.parametrize("engine", sorted(engines()))
def test_only_an_engine_with_a_plugin_has_padded_ones_served_by_it(
    source: Checkpoint, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    """The header of the table names the plugin and the option, each above its own column."""
    report = PlanReport(source, plan_of(layer("a.gate_proj", 213, 16)), find_engine(engine))
    write(plan_screen(report), stdout_console())
    header = re.split("  +", capsys.readouterr().out.splitlines()[3].strip())
    padded = "padded (plugin)" if find_engine(engine).has_runtime else "padded"
    assert header == ["as it is", padded, "absorbed (--absorb)"]


def test_what_is_absorbed_is_not_reported_as_skipped() -> None:
    """An expert with one absorbed axis changes, though its other axis is skipped."""
    absorbed = changed(layer("a", 74, 74), axes=AxisActions("skip", "absorb"), reason="K = 74 becomes 128")
    left = changed(layer("b", 74, 74), axes=AxisActions("skip", "skip"), reason="a routed expert")
    assert list(skipped_facts(plan_of(absorbed, left))) == [("skipped", "a routed expert: b")]


@pytest.mark.parametrize(
    ("n", "k", "text"),
    [
        ("pad", "pad", "pad N, K"),
        ("pad", "aligned", "pad N"),
        ("aligned", "absorb", "absorb K"),
        ("pad", "absorb", "pad N, absorb K"),
        ("aligned", "aligned", "aligned"),
        ("skip", "skip", "unchanged"),
    ],
)
def test_dispositions_are_told_by_axis(n: Disposition, k: Disposition, text: str) -> None:
    """Both axes of a layer are described in a few words."""
    assert how(AxisActions(n, k)) == text


def test_many_files_are_shortened() -> None:
    """The first eight names are listed, with the number of the others."""
    names = [f"{index}.safetensors" for index in range(10)]
    assert shortened(names[:8]) == ", ".join(names[:8])
    assert shortened(names) == ", ".join(names[:8]) + " and 2 more"


def test_long_words_are_cut() -> None:
    """A name of a megabyte would fill the screen; its beginning and end are enough."""
    assert printable("expected " + "a" * 1000) == "expected " + "a" * 1000
    assert printable("a" * 800 + "b" * 800 + " is a name") == "a" * 700 + "..." + "b" * 200 + " is a name"


def test_printable_leaves_words_alone() -> None:
    """Letters of any script are kept; line breaks, control characters and lone surrogates are escaped."""
    assert printable("späces 模型 [a]") == "späces 模型 [a]"
    assert printable("a\nb\x1b\ud800") == "a\\nb\\x1b\\ud800"


def test_progress_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line at the start, then one every ten seconds, with speed and time left."""
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


def test_progress_that_cannot_be_written_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """If stderr is on a full disk, the work continues."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(full, write_through=True))
        with pytest.raises(OSError, match="No space left"):
            full.write(b"no room")
        LineProgress().start("padding", 1_000_000)


def test_a_bar_counts_bytes_and_files() -> None:
    """The bar shows the current step; its label is not markup."""
    bar = Bar(console=Console(file=io.StringIO()))
    progress = BarProgress(bar)
    progress.advance(1)
    progress.start("padding", 100, num_files=3)
    progress.advance(60)
    progress.finish_file()
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [("padding", 60, 100)]
    assert bar.tasks[0].fields["files"] == "1 of 3 files"
    progress.start("verifying", 10)
    progress.advance(10)
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [("verifying", 10, 10)]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 110, 120, 200])
def test_a_bar_takes_one_line(columns: int) -> None:
    """However narrow the terminal is; from 80 columns on, nothing is cut."""
    terminal = io.StringIO()
    bar = Bar(console=Console(file=terminal, width=columns, force_terminal=True, color_system=None), expand=True)
    progress = BarProgress(bar)
    progress.start("padding and reading back", 163_000_000_000, num_files=163)
    progress.advance(120_300_000_000)
    bar.console.print(bar.get_renderable())
    (line,) = terminal.getvalue().splitlines()
    assert len(line) <= columns
    assert "padding" in line
    assert columns < 80 or ("padding and reading back" in line and "120.3/163.0 GB" in line and "\u2026" not in line)


def test_a_step_of_unknown_length_shows_its_last_line() -> None:
    """The output of an engine is shown in one line, not as markup."""
    bar = Bar(console=Console(file=io.StringIO()))
    progress = BarProgress(bar)
    progress.say("16 prompts")
    for line in ("loading", "[bold]loaded\x1b[31m"):
        progress.show(line)
    assert [(task.description, task.total) for task in bar.tasks] == [("[bold]loaded\\x1b[31m", None)]


@pytest.mark.parametrize(
    "name",
    [b"plain", b"two words", "sp\u00e4ces".encode(), b"it's", b"red\x1b[31m", b"line\nfeed", b"by\xffte", b"\x07'\\a"],
)
def test_commands_can_be_pasted_whatever_a_path_holds(name: bytes) -> None:
    """They have no control characters or line breaks, and name the same file."""
    command = shell_command("printf", "%s", os.fsdecode(name))
    assert command.isprintable()
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout == name


def test_wide_letters_are_broken_on_a_screen_of_one_column() -> None:
    """Each needs two columns, so none fits: rich writes a space instead, but wrapping ends."""
    assert list(islice(_joints("汉" * 12, 1), 20)) == list(range(1, 13))
    assert len(_wrapped(Console(width=1), "汉" * 12, 1)) >= 12
    assert [line.plain for line in _wrapped(Console(width=2), "汉" * 12, 2)] == ["汉"] * 12
