"""Imports point down, without cycles, and nothing heavy loads until it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fmopt

PACKAGE = Path(__file__).resolve().parents[1] / "fmopt"

# top row first; a module may import from its own row or a lower one, never from a higher one
ROWS = (
    {"__main__"},
    {"cli"},
    {"commands"},
    {"api", "benchmarking", "board_bench", "present", "doctor"},
    {
        "story",
        "diagnosis",
        "selection",
        "board_clock",
        "latecomers",
        "report",
        "report_axes",
        "report_lanes",
        "report_layers",
        "report_plots",
        "report_profile",
        "report_roofline",
        "report_waterfall",
        "history_page",
        "bundle",
        "watch",
        "record_tables",
        "bench_matrix",
        "bench_report",
    },
    {
        "plan",
        "recipe",
        "gate",
        "checkpoint",
        "source",
        "data",
        "tables",
        "pydoc",
        "stdlib_source",
        "store",
        "record",
        "side",
        "running",
        "recording",
        "comparison",
        "timeline",
        "build",
        "pricing",
        "trials",
        "clock",
        "finetune",
        "vocabulary",
        "labelled",
        "untrained",
        "interactions",
        "adapters",
        "waterfall",
        "bench_record",
    },
    {
        "passes",
        "families",
        "tasks",
        "runtimes",
        "exporting",
        "executorch_program",
        "generation",
        "seq2seq",
        "speech",
        "speech_processor",
        "predictions",
        "measure",
        "probe",
        "board",
        "board_python",
        "board_probe",
        "board_kernels",
        "board_timer",
        "roofline",
        "efficiency",
        "openvino_work",
        "layer_roofline",
        "executed_work",
        "calibrate",
        "serve_once",
        "calibrators",
        "quantized",
        "quantize_linears",
        "fake_quantize",
        "tables",
        "findings",
        "bootstrap",
        "tidy",
        "onnx_graph",
        "cached_attention",
        "block_rounding",
        "tensorrt_check",
        "tensorrt_qdq",
        "half_precision",
        "half_emulation",
        "openvino_graph",
        "openvino_stateful",
        "tokenizer",
        "image_processor",
        "audio_processor",
        "catalogue",
        "examples",
        "training",
        "distillation",
        "lesson",
        "teacher_outputs",
        "output_distance",
        "own_answers",
        "distillation_losses",
        "structure",
        "zero_shot",
        "image_features",
        "mask_queries",
        "cutting",
        "projections",
        "norm_merging",
        "optimal_brain",
        "fisher_masks",
        "choose_widths",
        "latency_table",
        "scenarios",
    },
    {"model", "target", "results", "metrics", "wording", "weights", "ceilings", "pictures", "sounds", "networks"},
    {
        "errors",
        "board_agent",
        "turns",
        "lookup",
        "progress",
        "edge",
        "edge_image",
        "edge_audio",
        "edge_generation",
        "edge_seq2seq",
        "edge_whisper",
        "edge_recommendation",
        "edge_speech",
        "edge_tensorrt",
        "edge_executorch",
        "edge_web",
        "web",
        "chromium",
        "several",
        "arguments",
    },
)
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "datasets", "sklearn", "plotly"}


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
        for p in PACKAGE.rglob("*.py")
        if p.name != "__init__.py"
    }


def imports(path: Path, known: set[str]) -> set[str]:
    """fmopt modules that a file imports at run time (not those under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text("utf8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {
            name.removeprefix("fmopt.")
            for name in names
            if name.removeprefix("fmopt.") in known and name.startswith("fmopt.")
        }
    return found


def row(module: str) -> int:
    head = module.split(".")[0]
    return next(number for number, names in enumerate(ROWS) if head in names)


def test_every_module_has_a_row():
    assert {m.split(".")[0] for m in modules()} <= set().union(*ROWS)


def test_imports_point_down():
    known = modules()
    up = [
        f"{name} -> {used}"
        for name, path in known.items()
        for used in imports(path, set(known))
        if row(used) < row(name)
    ]
    assert up == []


def test_there_is_no_cycle():
    known = modules()
    order = TopologicalSorter({name: imports(path, set(known)) for name, path in known.items()}).static_order()
    assert len(list(order)) == len(known)


def test_groups_reach_each_other_only_through_their_base():
    known = modules()
    groups = ("passes", "families", "tasks", "runtimes")
    across = [
        f"{name} -> {used}"
        for name, path in known.items()
        for used in imports(path, set(known))
        if name.split(".")[0] in groups
        and used.split(".")[0] in groups
        and name.split(".")[0] != used.split(".")[0]
        and not used.endswith(".base")
    ]
    assert across == []


@pytest.mark.parametrize("statement", ["import fmopt", "import fmopt.cli.app", "import fmopt.edge.command"])
def test_nothing_heavy_loads_on_import(statement):
    code = f"{statement}; import sys; print(sorted(set({sorted(HEAVY)}) & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_loading_a_bundle_never_imports_torch():
    code = "from fmopt import load; import sys; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"


def test_no_module_hides_a_public_name():
    """Importing fmopt.x puts the module x on the package, in place of the function that users call fmopt.x."""
    assert not {name for name in fmopt.__all__ if (PACKAGE / f"{name}.py").exists()}
