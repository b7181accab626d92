"""Why a variant is not faster, read off its runtime's own profile: one line each, with its share and a remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core.results import Estimate, Finding, Frozen, OpTime
from fmopt.core.target import Target

# The first group with a word in the kind wins; a kind is lower-cased and loses its kernel ("MatMul/brgemm" → "matmul").
# A word that begins with "=" must be the whole kind: torch calls its plain product "mm".
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("quantization and casts", ("quantizelinear", "fakequantize", "cast", "convert", "reorder", "_to_copy")),
    ("matrix products", ("matmul", "gemm", "fullyconnected", "addmm", "bmm", "=mm", "=linear")),
    ("convolutions", ("conv",)),
    ("attention", ("attention",)),
    ("normalization", ("layernorm", "layer_norm", "mvn", "normaliz", "rms")),
    ("softmax", ("softmax",)),
    ("activations", ("gelu", "erf", "tanh", "relu", "sigmoid")),
    ("lookups", ("gather", "embedding", "index_select")),
    ("layout", ("transpose", "reshape", "split", "concat", "slice", "unsqueeze", "squeeze", "copy_", "clone", "view")),
    ("additions and products", ("add", "sum", "mul", "div", "sub", "where", "select", "subgraph", "eltwise")),
)
# Sorts of conversions: the finding, words in the kinds of its operators, what they do, the way out.
CONVERSIONS = (
    ("conversions", ("=quantizelinear", "dequantizelinear", "fakequantize"), "going to 8 bits and back",
     "quantize only the inputs of matrix products, not every operator: a recipe with quantize_static"),
    ("dynamic-quantization", ("dynamicquantizelinear", "=whole number cast"), "quantizing inputs as they come",
     "ranges from calibration data instead: a recipe with quantize_static"),
    ("casts", ("=cast", "convert", "_to_copy"), "casting between number types",
     "one precision throughout: a recipe without cast, or runtime openvino with precision f32 or bf16"),
    ("reformatting", ("reorder", "transpose", "concat", "split", "copy_", "clone"), "laying out data anew",
     "runtime openvino, whose attention takes its operands as they lie, with shape = [batch, tokens] in the recipe"),
)  # fmt: skip
NOTABLE = 0.10  # a share of the time below this is not worth a line
IDLE = 0.25  # a share of the threads' time below this is the usual cost of sharing work
FEW_ROWS = 32  # batch × tokens below which a matrix product is bound by reading its weights and by fixed costs
SHORT_MS = 0.010  # an operator this short is mostly dispatch
QUANTIZE = "8 bits for the linear layers: fmopt optimize, or a recipe with quantize_static or quantize_dynamic"
QUANTIZE_REST = (
    "8 bits for these too: quantize_static without exceptions; mixed_precision leaves only what accuracy needs"
)
SMALLER_NETWORK = "fewer or narrower layers: --effort standard, or drop_layers and prune_structured"
SLOW_KERNELS = ("ref", "jit_gemm", "gemm_any", "acl_ref")


def why_not_faster(
    profile: Sequence[OpTime],
    reference: Sequence[OpTime],
    *,
    graph_path: Path,
    target: Target,
    threads: int,
    shape: tuple[int, int] | None = None,
    free_cores: int | None = None,
) -> list[Finding]:
    """Findings about `profile`, the most telling first; empty when there is nothing to see.

    `reference` is the profile of the variant that won, on the same inputs. `shape` is (batch, tokens) where known,
    `free_cores` the cores that nobody else uses, default all of the target's. A finding's share is of this variant's
    time, but that of a comparison of the difference between both.
    """
    if not profile:
        return []
    total = sum(op.ms for op in profile)
    first = [*_oversubscribed(threads, free_cores or target.cores), *_slower_than(profile, reference)]
    rest = [
        *_left_in_float(profile, total),
        *_conversions(profile, total, graph_path),
        *_missing_isa(profile, total, target),
        *_slow_kernels(profile, total),
        *_small_shapes(profile, total, shape),
        *_lookups(profile, total),
    ]
    return [*first, *sorted(rest, key=lambda finding: -(finding.share or 0))]


class ThreadTime(Frozen):
    """The same inputs at another number of threads, in turn with the number that was asked for."""

    threads: int
    p50_ms: float
    speedup: Estimate  # how many times as fast as the number that was asked for, with its interval


def thread_findings(times: Sequence[ThreadTime], threads: int) -> list[Finding]:
    """What measuring shows of `threads`: that fewer are certainly faster, or that they wait for a good part of the time."""
    fewer = [time for time in times if time.threads < threads]
    asked = next((time for time in times if time.threads == threads), None)
    if asked is None or not fewer:
        return []
    best = max(fewer, key=lambda time: time.speedup.point)
    if best.speedup.low > 1:
        text = f"{threads} threads take {_ms(asked.p50_ms)}, {best.threads} only {_ms(best.p50_ms)}: they are too many here"
        share = 1 - 1 / best.speedup.point
        return [Finding(kind="threads", text=text, share=share, remedy=f"--threads {best.threads}")]
    one = next((time for time in fewer if time.threads == 1), None)
    if one is None or one.speedup.low <= 0 or 1 / one.speedup.low > (1 - IDLE) * threads:
        return []
    gained = 1 / one.speedup.point
    text = (
        f"{threads} threads are {gained:.1f}× as fast as one, so that {1 - gained / threads:.0%} of their time is lost"
    )
    remedy = "--threads 1 and several processes, or several texts at once (--batch 8)"
    return [Finding(kind="thread-imbalance", text=text, share=1 - gained / threads, remedy=remedy)]


def group_of(kind: str) -> str:
    """What an operator is for, by its kind: "matrix products", "softmax", …, "other"."""
    plain = _plain(kind)
    return next((group for group, words in GROUPS if any(_is(plain, word) for word in words)), "other")


def computes_int8(profile: Iterable[OpTime]) -> bool:
    """True when a matrix product or anything else than a conversion runs in 8 bits."""
    return any(op.precision == "int8" and group_of(op.kind) in ("matrix products", "attention") for op in profile)


def _oversubscribed(threads: int, free: int) -> list[Finding]:
    if threads <= free:
        return []
    return [
        Finding(
            kind="threads",
            text=f"{threads} threads share {free} free core{'s' if free != 1 else ''} and wait for one another",
            remedy=f"use --threads {max(1, free)}",
        )
    ]


def _slower_than(profile: Sequence[OpTime], reference: Sequence[OpTime]) -> list[Finding]:
    """The group of operators that costs most more than in the reference."""
    lost = sum(op.ms for op in profile) - sum(op.ms for op in reference)
    if not reference or lost <= 0:
        return []
    ours, theirs = _by_group(profile), _by_group(reference)
    group = max(ours, key=lambda name: ours[name] - theirs.get(name, 0.0))
    excess = ours[group] - theirs.get(group, 0.0)
    if excess / lost < NOTABLE:
        return []
    return [
        Finding(
            kind="slower-group",
            text=f"{group} take {_ms(ours[group])}{_in(profile, group)}, in the fastest variant "
            f"{_ms(theirs.get(group, 0.0))}{_in(reference, group)}",
            share=min(1.0, excess / lost),
            remedy="the fastest variant",
        )
    ]


def _left_in_float(profile: Sequence[OpTime], total: float) -> list[Finding]:
    """Float operators of a quantized graph: products apart from the rest, for their remedies differ."""
    if not computes_int8(profile):
        share = _share((op for op in profile if group_of(op.kind) == "matrix products"), total)
        text = f"nothing computes in 8 bits; float matrix products take {share:.0%} of the time"
        return [Finding(kind="nothing-in-int8", text=text, share=share, remedy=QUANTIZE)] if share > NOTABLE else []
    floats = [op for op in profile if op.precision in ("fp32", "bf16", "fp16")]
    products = [op for op in floats if group_of(op.kind) == "matrix products"]
    float_groups = [op for op in floats if group_of(op.kind) not in ("matrix products", "quantization and casts")]
    found = []
    if (share := _share(products, total)) > NOTABLE:
        text = f"{len(products)} matrix products are left in float, {share:.0%} of the time"
        found.append(Finding(kind="left-in-float", text=text, share=share, remedy=QUANTIZE_REST))
    if (share := _share(float_groups, total)) > NOTABLE:
        worst = ", ".join(f"{group} {ms / total:.0%}" for group, ms in _largest(_by_group(float_groups), 3))
        text = f"operations between the products stay in float, {share:.0%} of the time ({worst})"
        found.append(
            Finding(
                kind="float-operators", text=text, share=share, remedy=f"{SMALLER_NETWORK}; 8 bits do not help these"
            )
        )
    return found


def _conversions(profile: Sequence[OpTime], total: float, graph_path: Path) -> list[Finding]:
    """What changes numbers' form without computing with them: a line for each sort, for their remedies differ."""
    found = []
    for kind, words, what, remedy in CONVERSIONS:
        taken = [op for op in profile if any(_is(_conversion(op), word) for word in words)]
        if (share := _share(taken, total)) <= NOTABLE:
            continue
        counts = ", ".join(f"{count} {name}" for name, count in Counter(_plain(op.kind) for op in taken).most_common(3))
        pairs = _pairs_in_file(graph_path) if kind == "conversions" else 0
        inserted = f" of {pairs} Q/DQ pairs in the graph are not fused" if pairs else ""
        if kind == "casts" and (neighbours := _beside_casts(graph_path)):
            inserted = f", in the graph beside {' and '.join(neighbours)}"
        text = f"{what} takes {share:.0%} of the time ({counts}{inserted})"
        found.append(Finding(kind=kind, text=text, share=share, remedy=remedy))
    return found


def _conversion(op: OpTime) -> str:
    """Its plain kind; a cast without a float among its inputs takes the sums of an integer product to floats."""
    return "whole number cast" if _plain(op.kind) == "cast" and not op.precision else _plain(op.kind)


def _missing_isa(profile: Sequence[OpTime], total: float, target: Target) -> list[Finding]:
    found = []
    share = _share((op for op in profile if op.precision == "int8" and group_of(op.kind) == "matrix products"), total)
    if share > 0 and target.kind == "cpu" and not target.int8_dot:
        wanted = "dotprod or i8mm" if target.arch == "aarch64" else "VNNI or AMX"
        text = f"the CPU has no 8-bit dot product ({wanted}): INT8 products take several instructions each"
        remedy = f"a CPU with {wanted}, or {SMALLER_NETWORK}"
        found.append(Finding(kind="missing-isa", text=text, share=share, remedy=remedy))
    for precision in ("bf16", "fp16"):
        moving = ("quantization and casts", "layout", "lookups")  # need no arithmetic
        computing = [op for op in profile if op.precision == precision and group_of(op.kind) not in moving]
        share = _share(computing, total)
        if share > 0 and precision not in target.precisions:
            text = f"the device does not compute in {precision}; it is emulated"
            remedy = "precision f32 in the recipe, or quantize_static where the CPU has 8-bit dot products"
            found.append(Finding(kind="emulated", text=text, share=share, remedy=remedy))
    return found


def _slow_kernels(profile: Sequence[OpTime], total: float) -> list[Finding]:
    slow = [op for op in profile if _kernel(op.kind).startswith(SLOW_KERNELS)]
    share = _share(slow, total)
    if share <= NOTABLE:
        return []
    worst = max(slow, key=lambda op: op.ms)
    text = f"{len(slow)} operators run fallback kernels, {share:.0%} of the time (mostly {worst.kind})"
    return [Finding(kind="fallback-kernels", text=text, share=share, remedy="runtime onnxruntime in the recipe")]


def _small_shapes(profile: Sequence[OpTime], total: float, shape: tuple[int, int] | None) -> list[Finding]:
    short = _share((op for op in profile if op.ms < SHORT_MS), total)
    rows = shape[0] * shape[1] if shape else None
    if rows is not None and rows <= FEW_ROWS and computes_int8(profile):
        share = 1 - _share((op for op in profile if group_of(op.kind) == "matrix products"), total)
        text = f"only {rows} tokens enter each matrix product; {share:.0%} of the time is spent around the products"
        remedy = "several texts at once (--batch 8); INT8 gains less on so few tokens, compare --precision fp32"
        return [Finding(kind="small-shapes", text=text, share=share, remedy=remedy)]
    if short > NOTABLE:
        text = f"operators shorter than {SHORT_MS * 1000:.0f} µs take {short:.0%} of the time: shapes are too small"
        return [Finding(kind="small-shapes", text=text, share=short, remedy="several texts at once (--batch 8)")]
    return []


def _lookups(profile: Sequence[OpTime], total: float) -> list[Finding]:
    share = _share((op for op in profile if group_of(op.kind) == "lookups"), total)
    if share <= 2 * NOTABLE:
        return []
    text = f"looking up embeddings takes {share:.0%} of the time, which no precision of the products changes"
    remedy = "a recipe with quantize_embeddings, or a smaller table: fmopt trim"
    return [Finding(kind="lookups", text=text, share=share, remedy=remedy)]


def _pairs_in_file(path: Path) -> int:
    """Q/DQ pairs written in an ONNX file; 0 for other files."""
    return sum(node.op_type == "QuantizeLinear" for node in _nodes(path))


def _beside_casts(path: Path) -> list[str]:
    """The two kinds of operators of an ONNX file that most often give to casts between floats, or take from them."""
    nodes = _nodes(path)
    makers = {name: node.op_type for node in nodes for name in node.output}
    casted = {name for node in nodes if node.op_type == "Cast" for name in node.output}
    givers = [makers[name] for node in nodes if node.op_type == "Cast" for name in node.input if name in makers]
    takers = [node.op_type for node in nodes for name in node.input if name in casted]
    return [kind for kind, _ in Counter(kind for kind in (*givers, *takers) if kind != "Cast").most_common(2)]


def _nodes(path: Path) -> Sequence[Any]:
    """The nodes of an ONNX file; none of other files."""
    if path.suffix != ".onnx" or not path.is_file():
        return ()
    import onnx

    nodes: Sequence[Any] = onnx.load(str(path), load_external_data=False).graph.node
    return nodes


def _plain(kind: str) -> str:
    return kind.split("/", 1)[0].lower()


def _kernel(kind: str) -> str:
    return kind.split("/", 1)[1] if "/" in kind else ""


def _is(plain: str, word: str) -> bool:
    return plain == word[1:] if word.startswith("=") else word in plain


def _by_group(profile: Iterable[OpTime]) -> dict[str, float]:
    times: dict[str, float] = defaultdict(float)
    for op in profile:
        times[group_of(op.kind)] += op.ms
    return dict(times)


def _largest(times: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(times.items(), key=lambda entry: -entry[1])[:count]


def _share(ops: Iterable[OpTime], total: float) -> float:
    return sum(op.ms for op in ops) / total if total else 0.0


def _in(profile: Sequence[OpTime], group: str) -> str:
    """` in int8 by jit_gemm`: precision and kernel of most of a group's time; empty where the runtime does not say."""
    times: dict[tuple[str, str], float] = defaultdict(float)
    for op in profile:
        if group_of(op.kind) == group:
            times[op.precision, _kernel(op.kind)] += op.ms
    precision, kernel = max(times, key=lambda name: times[name], default=("", ""))
    return (f" in {precision}" if precision else "") + (f" by {kernel}" if kernel else "")


def _ms(ms: float) -> str:
    return f"{ms:.1f} ms" if ms >= 0.95 else f"{ms:.2f} ms"
