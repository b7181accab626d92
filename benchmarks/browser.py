"""Two bundles for browsers in headless Chromium: golden predictions, accuracy on test items and latency, by the gate.

    make web                                                                   # once: the pinned files of ONNX Runtime Web
    fmopt export minilm --target browser -o out/web-fp32
    fmopt export minilm --target browser --precision int8 --data ../shared/data/stsb -o out/web-int8
    .venv/bin/python benchmarks/browser.py out/web-fp32 out/web-int8 --data ../shared/data/stsb \\
        -o benchmarks/results/browser-minilm.json

The first is the baseline. Every prediction is made by the bundle's own JavaScript from raw text; latency is one pass
through the graph in WebAssembly, both in turn in one page, by the page's clock, at each number of threads. The machine
should be quiet. Exit codes are those of `fmopt optimize`; 4 where there is no Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chromium
from fmopt.core import plugins
from fmopt.core.errors import ConfigError, FmoptError, UnmeasuredError
from fmopt.core.results import Latency, Scores
from fmopt.data.datasets import load_data
from fmopt.edge import manifest as edge_manifest
from fmopt.edge import parts, text
from fmopt.edge.board import interleaved
from fmopt.edge.page import serve_page
from fmopt.evaluation import bootstrap, gate
from fmopt.evaluation.metrics import METRICS
from fmopt.exporters.bundles import bundle
from fmopt.measurement import host_probe, latency
from fmopt.workflow.deployed import bench_samples

NO_WEBGPU = "UNMEASURED: this browser offers pages no GPU"
UNUSED_WEBGPU = "UNMEASURED: the bundle's page computes by WebAssembly only"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the verdict; returns the exit code."""
    asked = arguments(argv)
    try:
        found = measured(asked)
    except UnmeasuredError as error:
        print(f"UNMEASURED: {error}", file=sys.stderr)
        return 4
    except (FmoptError, parts.EdgeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1))
    for threads, one in found["threads"].items():
        reported = ", ".join(f"{check['name']} {check['outcome']}" for check in one["verdict"]["checks"])
        medians = " → ".join(f"{np.median(one['samples_ms'][name]):.1f}" for name in ("baseline", "candidate"))
        print(f"{threads} threads: {medians} ms, {one['speedup']['point']:.2f}×; {reported}")
    outcomes = {one["verdict"]["outcome"] for one in found["threads"].values()}
    return next((code for code in (1, 4, 3) if code in {gate.EXIT_CODES[one] for one in outcomes}), 0)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", type=Path, help="a bundle for browsers, full precision")
    parser.add_argument("candidate", type=Path, help="another of the same model")
    parser.add_argument("--data", help="labelled; its test split judges. Without: accuracy is UNMEASURED")
    parser.add_argument("--rows", type=int, help="of the test split; all of them")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, default=128, help="tokens of what is timed")
    parser.add_argument("--samples", type=int, default=interleaved.MIN_SAMPLES, help="of each, in turn")
    parser.add_argument("--max-drop", default="1pt")
    parser.add_argument("--min-speedup", default="1x")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", "-o", type=Path, required=True)
    return parser.parse_args(argv)


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that is found, as JSON. UnmeasuredError without a browser, ConfigError for what is no such bundle."""
    folders = {"baseline": asked.baseline, "candidate": asked.candidate}
    for folder in folders.values():
        if not (folder / "web" / "fmopt.mjs").is_file():
            raise ConfigError(f"{folder} is no bundle with a page; make one with --target browser")
    budget = gate.Budget.parse(max_drop=asked.max_drop, min_speedup=asked.min_speedup)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host_probe.host_fingerprint(),
        "versions": host_probe.versions(),
        "bundles": {name: edge_manifest.read_manifest(folder)["recipe"] for name, folder in folders.items()},
        "length": asked.length, "batch": 1, "seed": asked.seed, "warnings": latency.quiet_machine(), "threads": {},
    }  # fmt: skip
    drop: dict[str, Any] = {}
    for threads in dict.fromkeys(asked.threads):
        with tempfile.TemporaryDirectory(prefix="fmopt-web-", ignore_cleanup_errors=True) as scratch:
            root = Path(scratch) / "served"
            root.mkdir()
            (root / "blank.html").write_text("<!doctype html><title>fmopt</title><link rel=icon href='data:,'>")
            for name, folder in folders.items():
                shutil.copytree(folder, root / name)  # no link: the server follows none out of its folder
            with (
                chromium.browser(Path(scratch) / "profile", offline=False) as page,
                serve_page.served(root) as address,
            ):
                opened(page, address, threads)
                found.setdefault("browser", page.value("navigator.userAgent"))
                found.setdefault("onnxruntime-web", page.value("kit.version"))
                if "webgpu" not in found:
                    found["webgpu"] = UNUSED_WEBGPU if page.value("kit.webgpu()") else NO_WEBGPU
                if asked.data and not drop:
                    drop = scored(page, asked)
                found["threads"][str(threads)] = judged(page, folders, asked, budget, drop)
    return found | {"accuracy": {name: one for name, one in drop.items() if name != "judge"}}


def opened(page: chromium.Browser, address: str, threads: int) -> None:
    """Both models in one page, as `models`, run by the same WebAssembly."""
    page.open(f"{address}blank.html")
    page.value(
        f"""(async () => {{
            window.kit = await import('/baseline/web/fmopt.mjs')
            const open = name => kit.load({{ base: `/${{name}}/`, threads: {threads} }})
            window.models = {{ baseline: await open('baseline'), candidate: await open('candidate') }}
        }})()"""
    )


def scored(page: chromium.Browser, asked: argparse.Namespace) -> dict[str, Any]:
    """Scores of both on the test split, every prediction made in the page, and what the gate needs of them."""
    metadata = bundle.bundle_metadata(asked.baseline)
    task = plugins.find("tasks", metadata.task)
    rows = load_data(asked.data, task, metadata, seed=asked.seed).split("test")
    items = task.items(rows[: asked.rows] if asked.rows else rows, metadata)
    got = {name: [predicted(page, name, item.sample) for item in items] for name in ("baseline", "candidate")}
    scores = {name: primary(task.scores(one, items, got["baseline"], metadata)) for name, one in got.items()}
    drop = bootstrap.paired_drop(scores["baseline"], scores["candidate"], seed=asked.seed)
    values = {name: float(METRICS[one.metric].of(one.array())) for name, one in scores.items()}
    changed = int(np.any(scores["baseline"].array() != scores["candidate"].array(), axis=1).sum())
    judge = {
        "drop": drop,
        "baseline_metric": values["baseline"],
        "items_changed": changed,
        "n": len(scores["baseline"].values),
    }
    return {
        "metric": scores["baseline"].name,
        "values": values,
        "items": len(items),
        "drop": drop.model_dump(),
        "judge": judge,
    }


def predicted(page: chromium.Browser, name: str, sample: Any) -> np.ndarray:
    """What the page predicts for a raw text or pair of texts, as it is judged."""
    rows = "one => Array.isArray(one) ? one.map(row => Array.from(row)) : Array.from(one)"
    return np.asarray(page.value(f"models.{name}.predict({json.dumps(sample)}).then({rows})"), dtype=np.float32)


def primary(scores: Sequence[Scores]) -> Scores:
    """The metric that the drop is judged by."""
    return next(score for score in scores if score.primary)


def judged(
    page: chromium.Browser, folders: Mapping[str, Path], asked: argparse.Namespace, budget: gate.Budget,
    accuracy: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Golden predictions and latencies at the page's number of threads, and what the gate says."""
    golden = {name: page.value(f"models.{name}.verify()") for name in folders}
    samples = timed(page, folders, asked)
    threads = int(page.value("models.baseline.threads"))
    latencies = {
        name: Latency(samples_ms=ms, batch=1, length=asked.length, threads=threads) for name, ms in samples.items()
    }
    speedup = bootstrap.speedup(latencies["baseline"], latencies["candidate"], seed=asked.seed)
    nothing = {"drop": None, "baseline_metric": 0.0, "items_changed": 0, "n": 0}
    verdict = gate.judge(
        budget,
        speedup=speedup,
        latency_ms=bootstrap.median_latency(latencies["candidate"], budget.confidence, asked.seed),
        size_mb=bundle.bundle_artifact(folders["candidate"]).size_bytes / 1e6,
        memory_mb=None,
        device_present=True,
        samples=len(samples["candidate"]),
        **accuracy.get("judge", nothing),
    )
    return {
        "threads": threads,
        "golden": golden,
        "samples_ms": samples,
        "speedup": speedup.model_dump(),
        "verdict": verdict.model_dump(mode="json"),
    }


def timed(page: chromium.Browser, folders: Mapping[str, Path], asked: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of every pass, both in turn on the same inputs, by the page's own clock."""
    metadata = bundle.bundle_metadata(folders["baseline"])
    preprocessor = text.open_preprocessor(folders["baseline"], dict(metadata.pipeline))
    inputs = latency.latency_inputs(
        preprocessor, bench_samples(metadata), batch=1, length=asked.length, seed=asked.seed
    )
    lists = json.dumps([{name: array.reshape(-1).tolist() for name, array in one.items()} for one in inputs])
    page.value(
        f"""(() => {{
            const lists = {lists}
            window.feeds = Object.fromEntries(Object.entries(models).map(([name, model]) =>
                [name, lists.map(one => model.tensors(one, [1, {asked.length}]))]))
            window.turns = {{ baseline: 0, candidate: 0 }}
        }})()"""
    )

    def call(name: str) -> Callable[[], float]:
        script = f"models.{name}.time(feeds.{name}[turns.{name}++ % {len(inputs)}])"
        return lambda: float(page.value(script))

    return interleaved.time_in_turn(
        {name: call(name) for name in folders}, min_samples=asked.samples, seed=asked.seed, clock=lambda turn: turn()
    )


if __name__ == "__main__":
    sys.exit(main())
