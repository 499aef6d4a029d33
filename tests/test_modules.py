"""Each module has a test file of its name, or is listed here with the file in which to look for its tests."""

import ast
from pathlib import Path

import fp8pad

ROOT = Path(fp8pad.__file__).parent
TESTS = Path(__file__).parent

# A module that is one step of a command, or one part of a room, is tested where the whole is. Under gpu, cluster and
# vllm are modules that run only with a GPU, on a Ray cluster or inside vLLM.
TESTED_IN = {
    "test_absorption": [
        f"planning/absorb/{name}" for name in ("assessment", "config_size", "governed", "growth", "matching")
    ],
    "test_bench": ["bench/report", "bench/shapes", "bench/timing"],
    "test_cli": [
        "__main__",
        *(f"cli/{name}" for name in ("checkpoints", "interrupts", "main", "options", "signatures")),
    ],
    "test_convert": [
        *("conversion", "converted", "output", "staged"),
        *(f"checkpoint/{name}" for name in ("contents", "copying", "options", "writer")),
    ],
    "test_families": ["planning/families/family"],
    "test_golden_compare": ["golden/junit"],
    "test_golden_runs": [
        *("cli/golden", "render/golden"),
        *(f"golden/{name}" for name in ("engines", "request", "vllm_engine", "worker")),
    ],
    "test_hub": ["hub/fetcher", "hub/ids", "hub/repo", "upload"],
    "test_inspect": ["inspection", "render/inspection", "verification/disagreements"],
    "test_kernels": ["runtime/triton_kernels"],
    "test_layout": ["checkpoint/compare", "checkpoint/grid", "checkpoint/moving"],
    "test_library": ["__init__", "errors", "checkpoint/progress", "integrations/tqdm"],
    "test_overwrite": ["checkpoint/destination"],
    "test_pad_converter": ["integrations/compressed_tensors"],
    "test_parallel": ["parallel/cluster", "parallel/orders"],
    "test_planning": [f"planning/{name}" for name in ("alignment", "config", "padding", "plan", "reasons")],
    "test_planning_layers": [f"planning/{name}" for name in ("left_alone", "linear", "linear_names", "scale_layouts")],
    "test_planning_quantization": ["planning/weight_formats"],
    "test_render": [
        "text",
        *(f"render/{name}" for name in ("console", "plan", "progress", "reports", "screen", "terminal")),
    ],
    "test_runtime_contract": ["runtime/__init__"],
    "test_runtime_names": ["runtime/parts"],
    "test_staging": ["checkpoint/directory", "checkpoint/lock"],
    "test_tensor_parallel": ["planning/sharding"],
    "test_unpad": ["unpadding", "verification/original"],
    "test_verdict": ["render/advice", "planning/comparison", "planning/engines/__init__"],
    "test_verify": ["verification/__init__", "verification/changed_files", "verification/checks"],
    "cluster/test_ray": ["parallel/ray_driver"],
    "gpu/test_kernels_gpu": ["bench/candidates", "bench/run"],
    "vllm/test_config": ["runtime/config", "runtime/layer"],
    "vllm/test_golden": ["golden/transformers_engine"],
    "vllm/test_loading": ["runtime/linear", "runtime/loading"],
    "vllm/test_misnamed": ["runtime/patches"],
}


def has_behaviour(path: Path) -> bool:
    """Return whether a module has more than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


MODULES = [
    path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted(ROOT.rglob("*.py")) if has_behaviour(path)
]


def own_files(module: str) -> list[str]:
    """Return the test files of a module's name, with that of its folder or without."""
    *folders, name = module.removesuffix("/__init__").split("/")
    names = [f"test_{name}", *(f"test_{folder}_{name}" for folder in folders[-1:])]
    return [name for name in names if (TESTS / f"{name}.py").exists()]


def test_a_module_has_a_file_of_tests() -> None:
    """Of its own name or, if there is none, the one of the table."""
    found = {
        module: [bool(own_files(module)), *(module in listed for listed in TESTED_IN.values())] for module in MODULES
    }
    assert len(found) > 100
    assert {module: sum(files) for module, files in found.items() if sum(files) != 1} == {}


def test_the_table_names_what_there_is() -> None:
    """Every file of tests, and every module, exists."""
    assert all((TESTS / f"{file}.py").exists() for file in TESTED_IN)
    assert {module for modules in TESTED_IN.values() for module in modules} <= set(MODULES)
