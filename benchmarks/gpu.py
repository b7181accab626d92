"""What an NVIDIA GPU can show without TensorRT: PyTorch and ONNX Runtime on it, variants in turn, against measured ceilings.

    .venv/bin/python benchmarks/gpu.py -o benchmarks/results/gpu-NAME.json     # mostly compiling; the same again goes on
    .venv/bin/python benchmarks/gpu.py --device cpu --tiny -o /tmp/self-check.json   # the same code, small, on a CPU

Networks have the shapes of MiniLM, BERT-base, ViT-base and GPT-2 (one step of decoding after 128 or 384 tokens) and random
weights: speed does not depend on their values. Every input is full, nothing is padding. Latency is the wall clock of one call
with the data on the device, until the device is done. TFLOP/s count the products of the plain network; GB/s count the weights
and what the network is given once: below what is truly moved. Exit code 4 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmopt.core.results import Latency
from fmopt.edge.board import interleaved
from fmopt.edge.runners import CACHE_PREFIX
from fmopt.evaluation import bootstrap
from fmopt.measurement import host_probe
from fmopt.runtimes.torch import CudaGraphs, compiled, eager, on_device

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
REFERENCE = "compile-fp16"  # what people use; our speedups are against it
PLAIN = "eager-fp32"  # what outputs are compared with and products are counted on
BATCHES, LENGTHS = (1, 8, 32, 128), (128, 384)


@dataclass(frozen=True)
class Variant:
    """One way to run a network; `fused` computes query, key and value by one product."""

    name: str
    dtype: str
    mode: str  # eager, compile, compile-graphs, cuda_graph or onnxruntime
    fused: bool = False
    quantize: str | None = None


def variants() -> tuple[Variant, ...]:
    """All that are tried; what cannot run says so in the result."""
    halves = ("fp16", "bf16")
    return (
        *(Variant(f"eager-{dtype}", dtype, "eager") for dtype in DTYPES),
        *(Variant(f"compile-{dtype}", dtype, "compile") for dtype in halves),
        *(Variant(f"compile-graphs-{dtype}", dtype, "compile-graphs") for dtype in halves),
        *(Variant(f"cuda-graph-{dtype}", dtype, "cuda_graph") for dtype in halves),
        *(Variant(f"cuda-graph-fused-{dtype}", dtype, "cuda_graph", fused=True) for dtype in halves),
        Variant("eager-fused-fp32", "fp32", "eager", fused=True),
        *(Variant(f"compile-{kind}", "bf16", "compile", quantize=kind) for kind in ("int8", "fp8")),
        *(Variant(f"onnxruntime-{dtype}", dtype, "onnxruntime") for dtype in ("fp32", "fp16")),
    )


@dataclass(frozen=True)
class Subject:
    """A network's shape with what one call of it is given at a batch and a length."""

    name: str
    make: Callable[[], Any]
    feed: Callable[[Any, int, int, str], dict[str, torch.Tensor]]
    lengths: tuple[int, ...]


def subjects(tiny: bool) -> tuple[Subject, ...]:
    """MiniLM, BERT-base, ViT-base and GPT-2; with `tiny`, their kinds in miniature."""
    import transformers

    def bert(**shape: int) -> Callable[[], Any]:
        config = transformers.BertConfig(**(shape | TINY if tiny else shape))
        return lambda: transformers.BertModel(config, add_pooling_layer=False)

    vit = transformers.ViTConfig(**(TINY | {"image_size": 32} if tiny else {}))
    gpt2 = transformers.GPT2Config(**({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100} if tiny else {}))
    lengths = (16,) if tiny else LENGTHS
    small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    images = (vit.image_size // vit.patch_size) ** 2 + 1
    return (
        Subject("minilm", bert(**small), texts, lengths),
        Subject("bert-base", bert(), texts, lengths),
        Subject("vit-base", lambda: transformers.ViTModel(vit, add_pooling_layer=False), images, (images,)),
        Subject("gpt2-decode", lambda: transformers.GPT2LMHeadModel(gpt2), one_step, lengths),
    )  # fmt: skip


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def texts(net: Any, batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Random tokens; no mask, because nothing is padding."""
    return {"input_ids": torch.randint(1, net.config.vocab_size, (batch, length), device=device)}


def images(net: Any, batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Random images of the network's one size, drawn in fp32 so that every precision is given the same."""
    side = net.config.image_size
    return {"pixel_values": torch.randn(batch, 3, side, side, device=device).to(net.dtype)}


def one_step(net: Any, batch: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """One new token after `length` earlier ones, whose keys and values are given."""
    config = net.config
    shape = (batch, config.n_head, length, config.n_embd // config.n_head)
    kv_cache = {
        f"{CACHE_PREFIX}{layer}.{kind}": torch.randn(shape, device=device).to(net.dtype)
        for layer in range(config.n_layer)
        for kind in ("key", "value")
    }
    return {"input_ids": torch.randint(1, config.vocab_size, (batch, 1), device=device), **kv_cache}


# ------------------------------------------------------------------------------ variants of a network


class Fused(torch.nn.Module):
    """Query, key and value of one attention by one product; hands out the three parts to the modules it replaces."""

    def __init__(self, linears: Sequence[torch.nn.Linear]) -> None:
        super().__init__()
        with torch.no_grad():
            self.weight = torch.nn.Parameter(torch.cat([linear.weight for linear in linears]))
            self.bias = torch.nn.Parameter(torch.cat([linear.bias for linear in linears]))
        self.given: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()

    def part(self, number: int, given: torch.Tensor) -> torch.Tensor:
        """One part of the product with `given`, made when the first of the three asks."""
        if self.given is not given:
            self.given = given
            self.parts = torch.nn.functional.linear(given, self.weight, self.bias).chunk(3, dim=-1)
        return self.parts[number]


class Part(torch.nn.Module):
    """Stands where one of the three Linears stood."""

    def __init__(self, fused: Fused, number: int) -> None:
        super().__init__()
        self.fused, self.number = fused, number

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """The Linear's output."""
        return self.fused.part(self.number, given)


def fuse_attention(net: Any) -> int:
    """Fuse every trio of query, key and value Linears in place; returns how many there were."""
    known = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
    found = 0
    for module in list(net.modules()):
        for names in known:
            linears = [getattr(module, name, None) for name in names]
            if all(isinstance(linear, torch.nn.Linear) for linear in linears):
                fused = Fused(linears)
                for number, name in enumerate(names):
                    setattr(module, name, Part(fused, number))
                found += 1
    return found


def prepared(variant: Variant, subject: Subject, state: Mapping[str, Any], asked: argparse.Namespace) -> Any:
    """(network, call) of a variant; ValueError with the reason why it cannot run here."""
    cuda = asked.device == "cuda"
    if not cuda and (variant.mode in ("cuda_graph", "compile-graphs") or variant.quantize):
        raise ValueError("needs a GPU")
    if variant.quantize and not find_spec("torchao"):
        raise ValueError("torchao is not installed")
    net = subject.make().eval()
    net.load_state_dict(state)
    if variant.fused and not fuse_attention(net):
        raise ValueError("its query, key and value are one product already")
    net = on_device(net.to(DTYPES[variant.dtype]), asked.device, variant.quantize)
    backend = {"backend": "aot_eager"} if asked.tiny else {}
    kinds = {
        "eager": eager,
        "compile": partial(compiled, **backend),
        "compile-graphs": partial(compiled, mode="reduce-overhead"),
        "cuda_graph": CudaGraphs,
        "onnxruntime": partial(OnnxGraph, subject=subject, device=asked.device),
    }
    return net, kinds[variant.mode](net)


class OnnxGraph:
    """A network exported to ONNX for each shape, run on the device by ONNX Runtime without copies to the host."""

    def __init__(self, net: Any, subject: Subject, device: str) -> None:
        import onnxruntime as ort

        self.provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if self.provider not in ort.get_available_providers():
            raise ValueError(f"the ONNX Runtime installed here has no {self.provider}: pip install onnxruntime-gpu")
        if subject.feed is one_step:
            raise ValueError("its cache is not exported here; see benchmarks/peers and docs/generation.md")
        self.net, self.device, self.opened = net, device, {}

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """Outputs stay on the device, in buffers that the next call of the shape writes again."""
        key = tuple((tuple(tensor.shape), tensor.data_ptr()) for tensor in tensors.values())  # bound where they lie
        if key not in self.opened:
            self.opened[key] = self._open(tensors)
        session, binding, output = self.opened[key]
        session.run_with_iobinding(binding)
        return {"last_hidden_state": output}

    def _open(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        import onnxruntime as ort

        with torch.inference_mode():
            output = eager(self.net)(tensors)["last_hidden_state"].clone()
        # Exporting traces with autograd's bookkeeping, which tensors of inference mode lack.
        with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(False), torch.no_grad():
            path = Path(scratch) / "model.onnx"
            torch.onnx.export(
                self.net,
                (),
                str(path),
                kwargs=dict(tensors),
                output_names=["last_hidden_state"],
                dynamo=True,
                verbose=False,
            )
            session = ort.InferenceSession(str(path), providers=[self.provider])
        binding = session.io_binding()
        for name, tensor in tensors.items():
            binding.bind_input(name, self.device, 0, numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
        wanted = session.get_outputs()[0].name
        binding.bind_output(wanted, self.device, 0, numpy_type(output), tuple(output.shape), output.data_ptr())
        return session, binding, output


def numpy_type(tensor: torch.Tensor) -> Any:
    """The numpy type of a tensor's numbers."""
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


# ------------------------------------------------------------------------------ ceilings


def ceilings(device: str, tiny: bool) -> dict[str, Any]:
    """Best TFLOP/s of a large matrix product in each precision and GB/s of a copy, as this device reaches them."""
    side, numbers = (256, 1 << 20) if tiny else (8192, 1 << 28)
    found: dict[str, Any] = {}
    for name, product in products(side, device).items():
        try:
            found[name] = 2 * side**3 / best_seconds(product, device) / 1e12
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            found[name] = f"UNMEASURED: {first_line(error)}"
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)
    found["bandwidth_gbs"] = 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device) / 1e9
    return found


def products(side: int, device: str) -> dict[str, Callable[[], Any]]:
    """A matrix product of each precision that tensor cores have."""
    wide = torch.randn(side, side, device=device)
    made: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        one = wide.to(dtype)
        made[f"{name}_tflops"] = partial(torch.matmul, one, one)
    whole = torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8)
    by_columns = whole.t().contiguous().t()
    made["int8_tflops"] = partial(torch._int_mm, whole, by_columns)
    one, scale = wide.clamp(-4, 4), torch.ones((), device=device)

    def fp8() -> Any:
        left, right = eights()
        return torch._scaled_mm(left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    kept: list[torch.Tensor] = []

    def eights() -> list[torch.Tensor]:
        if not kept:
            kept.extend([one.to(torch.float8_e4m3fn), one.to(torch.float8_e4m3fn).t()])
        return kept

    made["fp8_tflops"] = fp8
    return made


def best_seconds(call: Callable[[], Any], device: str, times: int = 20) -> float:
    """The shortest of some calls until the device is done: a ceiling is what is possible."""
    timed = finished(call, device)
    timed()
    with torch.inference_mode():
        return min(interleaved.call_ms(timed) for _ in range(times)) / 1e3


def finished(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """A call that ends when the device has done it."""

    def until_done() -> Any:
        got = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return got

    return until_done


# ------------------------------------------------------------------------------ cells


def products_of(net: Any, feed: Mapping[str, torch.Tensor]) -> int:
    """Operations of one call's products, a multiply-add as two (attention counted as its plain products)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        eager(net)(feed)
    return int(counter.get_total_flops())


def bytes_of(net: Any, feed: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the weights and of what the network is given; of embedding tables only what could be looked up is more."""
    tables = {id(module.weight) for module in net.modules() if isinstance(module, torch.nn.Embedding)}
    tied = getattr(net, "lm_head", None)
    tables -= {id(tied.weight)} if tied is not None else set()
    weights = sum(one.nbytes for one in net.parameters() if id(one) not in tables)
    return weights + sum(one.nbytes for one in feed.values())


def measured(subject: Subject, asked: argparse.Namespace, found: dict[str, Any], save: Callable[[], object]) -> None:
    """Every variant of a network at every shape that `found` lacks, saved as they come."""
    kept = found.setdefault(subject.name, {"refused": {}, "cells": []})
    finished_cells = {(cell["batch"], cell["length"]) for cell in kept["cells"]}
    wanted = [(batch, length) for length in subject.lengths for batch in ((1, 2) if asked.tiny else BATCHES)]
    if set(wanted) <= finished_cells:
        return
    torch.manual_seed(asked.seed)
    state = subject.make().state_dict()
    ready: dict[str, tuple[Any, Any]] = {}
    for variant in variants():
        if asked.variants and variant.name != PLAIN and not variant.name.startswith(tuple(asked.variants)):
            continue
        try:
            ready[variant.name] = prepared(variant, subject, state, asked)
        except (ValueError, TypeError, RuntimeError, ImportError, AssertionError) as error:
            kept["refused"][variant.name] = first_line(error)
    for batch, length in wanted:
        if (batch, length) not in finished_cells:
            print(f"{subject.name}: batch {batch} × {length}", file=sys.stderr)
            kept["cells"].append(one_cell(subject, ready, batch, length, asked))
            save()


def one_cell(
    subject: Subject, ready: Mapping[str, Any], batch: int, length: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """All variants in turn at one shape, with what each reaches and how far its output is from fp32's."""
    calls: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    moved: dict[str, int] = {}
    outputs: dict[str, torch.Tensor] = {}
    plain = ready[PLAIN][0]
    operations = products_of(plain, subject.feed(plain, batch, length, asked.device))
    for name, (net, call) in ready.items():
        torch.manual_seed(asked.seed)  # the same inputs for all
        feed = subject.feed(net, batch, length, asked.device)
        try:
            with torch.inference_mode():
                outputs[name] = first_output(call(feed))
            calls[name], moved[name] = finished(partial(call, feed), asked.device), bytes_of(net, feed)
        except Exception as error:  # one variant's failure, whatever its library raises, is a result
            failed[name] = first_line(error)
    with torch.inference_mode():
        samples = interleaved.time_in_turn(
            calls, min_samples=asked.samples, min_seconds=asked.seconds, warm_seconds=1.0, seed=asked.seed
        )
    found = {}
    for name, ms in samples.items():
        seconds = float(np.median(ms)) / 1e3
        found[name] = {
            "samples_ms": ms, "tflops": operations / seconds / 1e12, "gbs": moved[name] / seconds / 1e9,
            "cosine_to_fp32": cosine(outputs[PLAIN], outputs[name]),
        }  # fmt: skip
        if REFERENCE in samples:
            ratio = bootstrap.speedup(latency(samples[REFERENCE], batch, length), latency(ms, batch, length))
            found[name][f"speedup_over_{REFERENCE}"] = ratio.model_dump()
    return {"batch": batch, "length": length, "variants": found, "failed": failed}


def latency(ms: list[float], batch: int, length: int) -> Latency:
    """Samples as the gate takes them."""
    return Latency(samples_ms=ms, batch=batch, length=length, threads=1)


def first_output(outputs: Any) -> torch.Tensor:
    """The tensor that matters, copied: what a graph returns is written over."""
    return next(outputs[name] for name in ("last_hidden_state", "logits") if name in outputs).float().clone()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """The smallest cosine over the last axis."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).min())


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def best_of(found: Mapping[str, Any]) -> list[str]:
    """A line for each shape: the fastest variant against the reference."""
    lines = []
    for name, subject in found["subjects"].items():
        for cell in subject["cells"]:
            medians = {variant: float(np.median(one["samples_ms"])) for variant, one in cell["variants"].items()}
            best = min(medians, key=lambda variant: medians[variant])
            ratio = f", {medians[REFERENCE] / medians[best]:.2f}× over {REFERENCE}" if REFERENCE in medians else ""
            reported = f"{cell['variants'][best]['tflops']:.3g} TFLOP/s"
            lines.append(f"{name} {cell['batch']} × {cell['length']}: {best} {medians[best]:.3f} ms, {reported}{ratio}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything, writing the JSON after each shape; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks in miniature: is the script whole?")
    parser.add_argument("--subjects", nargs="+", help="names; all of them")
    parser.add_argument("--variants", nargs="+", help="beginnings of names; all of them")
    parser.add_argument("--samples", type=int, default=interleaved.MIN_SAMPLES)
    parser.add_argument("--seconds", type=float, default=4.0, help="a slow variant has enough samples after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", "-o", type=Path, required=True)
    asked = parser.parse_args(argv)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(
            "UNMEASURED: PyTorch finds no NVIDIA GPU here; --device cpu --tiny checks the script itself",
            file=sys.stderr,
        )
        return 4
    if asked.device == "cpu" and not asked.tiny:
        print("error: figures of a CPU are those of `fmopt bench`; --device cpu goes with --tiny", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is fp32
    torch._dynamo.config.cache_size_limit = 64  # one compilation for each shape
    metadata = {
        "device": device_facts(asked.device), "tiny": asked.tiny, "seed": asked.seed,
        "versions": host_probe.versions() | {"cuda": torch.version.cuda or ""},
        "variants": [asdict(variant) for variant in variants()],
    }  # fmt: skip
    found = earlier(asked.output, metadata) or {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "host": host_probe.host_fingerprint(), **metadata,
        "ceilings": ceilings(asked.device, asked.tiny), "subjects": {},
    }  # fmt: skip
    asked.output.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:  # what is measured is there to read, whatever comes
        asked.output.write_text(json.dumps(found, indent=1))

    for subject in subjects(asked.tiny):
        if not asked.subjects or subject.name in asked.subjects:
            measured(subject, asked, found["subjects"], save)
    print("\n".join(best_of(found)))
    return 0


def earlier(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run in the same circumstances left in `path`, to go on from; None when there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = all(found.get(name) == json.loads(json.dumps(value)) for name, value in metadata.items())
    return found if same and "subjects" in found else None


def device_facts(device: str) -> dict[str, Any]:
    """Which GPU, or that it is none."""
    if device == "cpu":
        return {"name": "CPU: a self-check, no measurement"}
    metadata = torch.cuda.get_device_properties(0)
    return {
        "name": metadata.name, "capability": [metadata.major, metadata.minor], "memory_gb": metadata.total_memory / 1e9,
        "multiprocessors": metadata.multi_processor_count,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
