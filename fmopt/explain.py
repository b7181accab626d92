"""Why a variant is not faster, read off its runtime's own profile: one line each, with its share and a remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fmopt.results import Finding, OpTime
from fmopt.target import Target

# The first group with a word in the kind wins; a kind is lower-cased and loses its kernel ("MatMul/brgemm" → "matmul").
# A word that begins with "=" must be the whole kind: torch calls its plain product "mm".
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("quantization and casts", ("quantizelinear", "fakequantize", "cast", "convert", "reorder", "_to_copy")),
    ("matrix products", ("matmul", "gemm", "fullyconnected", "addmm", "bmm", "=mm", "=linear")),
    ("attention", ("attention",)),
    ("normalization", ("layernorm", "layer_norm", "mvn", "normaliz", "rms")),
    ("softmax", ("softmax",)),
    ("activations", ("gelu", "erf", "tanh", "relu", "sigmoid")),
    ("lookups", ("gather", "embedding", "index_select")),
    ("layout", ("transpose", "reshape", "split", "concat", "slice", "unsqueeze", "squeeze", "copy_", "clone", "view")),
    ("additions and products", ("add", "sum", "mul", "div", "sub", "where", "select", "subgraph", "eltwise")),
)
NOTABLE = 0.10  # a share of the time below this is not worth a line
FEW_ROWS = 32  # batch × tokens below which a matrix product is bound by reading its weights and by fixed costs
SHORT_MS = 0.010  # an operator this short is mostly dispatch
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
        return [Finding(text=text, share=share, remedy="quantize the linear layers")] if share > NOTABLE else []
    floats = [op for op in profile if op.precision in ("fp32", "bf16", "fp16")]
    products = [op for op in floats if group_of(op.kind) == "matrix products"]
    islands = [op for op in floats if group_of(op.kind) not in ("matrix products", "quantization and casts")]
    found = []
    if (share := _share(products, total)) > NOTABLE:
        text = f"{len(products)} matrix products are left in float, {share:.0%} of the time"
        found.append(Finding(text=text, share=share, remedy="quantize them too, where the accuracy allows it"))
    if (share := _share(islands, total)) > NOTABLE:
        worst = ", ".join(f"{group} {ms / total:.0%}" for group, ms in _largest(_by_group(islands), 3))
        text = f"operations between the products stay in float, {share:.0%} of the time ({worst})"
        found.append(Finding(text=text, share=share, remedy="fewer or narrower layers; 8 bits do not help these"))
    return found


def _conversions(profile: Sequence[OpTime], total: float, graph_path: Path) -> list[Finding]:
    taken = [op for op in profile if group_of(op.kind) == "quantization and casts"]
    share = _share(taken, total)
    if share <= NOTABLE:
        return []
    counts = Counter(_plain(op.kind) for op in taken)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(3))
    pairs = _pairs_in_file(graph_path)
    inserted = f" of {pairs} Q/DQ pairs in the graph" if pairs else ""
    return [
        Finding(
            text=f"conversions take {share:.0%} of the time ({kinds}{inserted} are not fused)",
            share=share,
            remedy="quantize only the inputs of matrix products, not every operator",
        )
    ]


def _missing_isa(profile: Sequence[OpTime], total: float, target: Target) -> list[Finding]:
    found = []
    share = _share((op for op in profile if op.precision == "int8" and group_of(op.kind) == "matrix products"), total)
    if share > 0 and target.kind == "cpu" and not target.int8_dot:
        wanted = "dotprod or i8mm" if target.arch == "aarch64" else "VNNI or AMX"
        text = f"the CPU has no 8-bit dot product ({wanted}): INT8 products take several instructions each"
        found.append(Finding(text=text, share=share, remedy=f"a CPU with {wanted}, or fewer and narrower layers"))
    for precision in ("bf16", "fp16"):
        share = _share((op for op in profile if op.precision == precision), total)
        if share > 0 and precision not in target.precisions:
            text = f"the device does not compute in {precision}; it is emulated"
            found.append(Finding(text=text, share=share, remedy="use fp32 or int8"))
    return found


def _slow_kernels(profile: Sequence[OpTime], total: float) -> list[Finding]:
    slow = [op for op in profile if _kernel(op.kind).startswith(SLOW_KERNELS)]
    share = _share(slow, total)
    if share <= NOTABLE:
        return []
    worst = max(slow, key=lambda op: op.ms)
    text = f"{len(slow)} operators run fallback kernels, {share:.0%} of the time (mostly {worst.kind})"
    return [Finding(text=text, share=share, remedy="another runtime or precision for these operators")]


def _small_shapes(profile: Sequence[OpTime], total: float, shape: tuple[int, int] | None) -> list[Finding]:
    short = _share((op for op in profile if op.ms < SHORT_MS), total)
    rows = shape[0] * shape[1] if shape else None
    if rows is not None and rows <= FEW_ROWS and computes_int8(profile):
        share = 1 - _share((op for op in profile if group_of(op.kind) == "matrix products"), total)
        text = f"only {rows} tokens enter each matrix product; {share:.0%} of the time is spent around the products"
        return [Finding(text=text, share=share, remedy="batch several texts, or expect less of INT8 for short ones")]
    if short > NOTABLE:
        text = f"operators shorter than {SHORT_MS * 1000:.0f} µs take {short:.0%} of the time: shapes are too small"
        return [Finding(text=text, share=short, remedy="batch several texts")]
    return []


def _lookups(profile: Sequence[OpTime], total: float) -> list[Finding]:
    share = _share((op for op in profile if group_of(op.kind) == "lookups"), total)
    if share <= 2 * NOTABLE:
        return []
    text = f"looking up embeddings takes {share:.0%} of the time, which no precision of the products changes"
    return [Finding(text=text, share=share, remedy="quantize the embeddings, or trim the vocabulary")]


def _pairs_in_file(path: Path) -> int:
    """Q/DQ pairs written in an ONNX file; 0 for other files."""
    if path.suffix != ".onnx" or not path.is_file():
        return 0
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return sum(node.op_type == "QuantizeLinear" for node in nodes)


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
