"""A bundle for browsers, opened by a real one: the same predictions, with one thread and with four, and nothing fetched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fmopt
from benchmarks import chromium
from fmopt.core.errors import BundleError, ConfigError
from fmopt.edge import loading
from fmopt.edge.page import serve_page
from fmopt.exporters import browser_files
from fmopt.exporters.bundles import bundle

needs_files = pytest.mark.skipif(browser_files.absent() is not None, reason=browser_files.absent() or "")
needs_browser = pytest.mark.skipif(chromium.installed() is None, reason="no chromium is installed")
ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "the cat sat on the mat",
    "Paris is a large city, and Berlin is a larger one",
    "who wrote the book about the whale? " * 20,  # longer than the 64 tokens that are read
    "",
]
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def export(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """export(family, task, precision): a bundle for browsers of a tiny checkpoint, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def make(family: str, task: str, precision: str = "fp32") -> Path:
        key = (family, task, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("web")
            data = folder / "texts.txt"
            data.write_text("\n".join([*TEXTS[:3]] * 20))
            options = {} if task == "sentence-embedding" else {"task": task}
            made[key] = fmopt.export(
                tiny_checkpoint(family, task), folder / "bundle", precision=precision, target="browser",
                data=data if task in ("sentence-embedding", "fill-mask") else None, **options,
            )  # fmt: skip
        return made[key]

    return make


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path_factory.mktemp("profile"), offline=False) as started:
        yield started


def loaded(browser: chromium.Browser, address: str, threads: int = 1) -> None:
    browser.open(address)
    browser.value(
        f"import('./web/fmopt.mjs').then(m => m.load({{threads: {threads}}})).then(m => {{window.model = m}})"
    )


def once(browser: chromium.Browser, script: str) -> Any:
    """What an expression is as soon as it is true."""
    looking = f"const look = () => {{ const got = {script}; got ? done(got) : setTimeout(look, 20) }}; look()"
    return browser.value(f"new Promise(done => {{ {looking} }})")


@needs_files
def test_the_folder_is_what_transformers_js_opens_and_run_py_too(export: Export) -> None:
    out = export("bert", "sentence-embedding", "int8")
    names = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and "stages" not in path.parts
    }
    assert {"onnx/model_quantized.onnx", "tokenizer.json", "tokenizer_config.json", "config.json"} <= names
    assert {"index.html", "web/fmopt.mjs", "web/ort-wasm-simd-threaded.wasm", "serve.py"} <= names
    assert "model.onnx" not in names
    assert bundle.verify_bundle(out) == []
    got = subprocess.run(
        [sys.executable, str(out / "run.py"), "verify"], capture_output=True, text=True, check=False, cwd=out
    )
    assert got.returncode == 0, got.stderr
    assert "`dtype` q8" in (out / "README.md").read_text()


@needs_files
def test_a_changed_file_of_the_page_is_found(export: Export) -> None:
    script = export("bert", "sentence-embedding") / "web" / "fmopt.mjs"
    written = script.read_text()
    script.write_text(written + " ")
    assert any("web/fmopt.mjs" in line for line in bundle.verify_bundle(script.parents[1]))
    script.write_text(written)
    assert bundle.verify_bundle(script.parents[1]) == []


@needs_files
@needs_browser
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_golden_predictions_are_met_with_one_thread_and_with_four(
    browser: chromium.Browser, export: Export, precision: str, threads: int
) -> None:
    out = export("bert", "sentence-embedding", precision)
    with serve_page.served(out) as address:
        loaded(browser, address, threads)
        assert browser.value("crossOriginIsolated") is True
        got = browser.value("model.verify()")
        outside = [
            event["request"]["url"]
            for event in browser.reported("Network.requestWillBeSent")
            if not event["request"]["url"].startswith((address, "blob:", "data:"))
        ]
    assert got["threads"] == threads
    assert got["ok"] is True
    assert len(got["differences"]) == len(json.loads((out / "golden.json").read_text())["items"]) >= 3
    assert got["largest"] <= (1e-5 if precision == "fp32" else 0.1)
    assert outside == []


@needs_files
@needs_browser
def test_without_the_headers_there_is_one_thread_and_the_same_answer(browser: chromium.Browser, export: Export) -> None:
    with serve_page.served(export("bert", "sentence-embedding"), isolated=False) as address:
        loaded(browser, address, 4)
        assert browser.value("crossOriginIsolated") is False
        got = browser.value("model.verify()")
    assert (got["ok"], got["threads"]) == (True, 1)


@needs_files
@needs_browser
@pytest.mark.parametrize(
    ("family", "task", "texts"),
    [
        ("roberta", "text-classification", TEXTS),
        ("xlm-roberta", "sentence-embedding", TEXTS),
        ("bert", "text-regression", [(TEXTS[0], TEXTS[2]), (TEXTS[2], TEXTS[2]), (TEXTS[2], TEXTS[0])]),
        ("bert", "fill-mask", ["the [MASK] sat on the [MASK]", "a small [MASK]"]),
    ],
)
def test_tokens_are_truncated_as_run_py_does_and_each_task_answers(
    browser: chromium.Browser, export: Export, family: str, task: str, texts: list[Any]
) -> None:
    out = export(family, task)
    native = bundle.load(out)
    with serve_page.served(out) as address:
        loaded(browser, address)
        for sample in texts:
            written = json.dumps(sample)
            ids = native.preprocessor.encode([sample]).inputs["input_ids"][0].tolist()
            assert browser.value(f"model.tokens({written}).ids") == ids
            (wanted,) = native.predict([sample])
            got = browser.value(f"model.predict({written}).then(one => [one].flat().map(row => Array.from(row)))")
            assert loading.difference(wanted.reshape(-1).tolist(), [value for row in got for value in row]) < 1e-4
        if task == "text-classification":
            shown = browser.value(f"model.answer({json.dumps(texts[0])})")
            assert shown["label"] == native(texts[0])["label"]
            assert shown["scores"] == pytest.approx(native(texts[0])["scores"], abs=1e-5)


@needs_files
@needs_browser
def test_the_page_answers_a_person(browser: chromium.Browser, export: Export) -> None:
    with serve_page.served(export("roberta", "text-classification")) as address:
        browser.open(address)
        assert "text-classification, fp32, 1 thread" in once(browser, "!verify.disabled && facts.textContent")
        browser.value("run.click()")
        reported = once(browser, "answer.textContent")
        assert json.loads(reported.partition("\n")[2])["label"] in ("negative", "neutral", "positive")
        errors = [entry["entry"] for entry in browser.reported("Log.entryAdded") if entry["entry"]["level"] == "error"]
    assert browser.reported("Runtime.exceptionThrown") + errors == []


@needs_files
@needs_browser
def test_two_bundles_are_timed_in_one_page_and_judged_by_the_gate(export: Export, tmp_path: Path) -> None:
    both = [str(export("bert", "sentence-embedding", precision)) for precision in ("fp32", "int8")]
    out = tmp_path / "found.json"
    more = ["--threads", "1", "--length", "32", "--samples", "20", "-o", str(out)]
    got = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "browser.py"), *both, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode in (1, 4), got.stderr  # accuracy was not measured: FAIL on speed, or UNMEASURED
    assert out.is_file(), got.stderr
    found = json.loads(out.read_text())
    one = found["threads"]["1"]
    assert {name: len(ms) for name, ms in one["samples_ms"].items()} == {"baseline": 20, "candidate": 20}
    assert min(one["samples_ms"]["baseline"]) > 0
    assert [check["outcome"] for check in one["verdict"]["checks"] if check["name"] == "accuracy drop"] == [
        "UNMEASURED"
    ]
    assert one["golden"]["baseline"]["ok"] is True
    assert found["webgpu"].startswith("UNMEASURED")
    assert found["onnxruntime-web"] == "1.30.0"


@needs_files
@needs_browser
def test_eight_bit_products_are_summed_exactly_in_a_browser(browser: chromium.Browser, tmp_path: Path) -> None:
    """Why weights for browsers need not be narrowed to 7 bits: 255 × -128 and 255 × 127, 512 times, do not saturate."""
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 512])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [2, 2])
    weights = np.full((512, 2), -128, dtype=np.int8)
    weights[:, 1] = 127
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "sums", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "sums.onnx"
    )
    browser_files.put_page(tmp_path, "sentence-embedding")
    with serve_page.served(tmp_path) as address:
        browser.open(address)
        got = browser.value(
            """(async () => {
                const ort = await import('/web/ort.wasm.min.mjs')
                ort.env.wasm.wasmPaths = '/web/'
                const session = await ort.InferenceSession.create('/sums.onnx', { executionProviders: ['wasm'] })
                const x = new ort.Tensor('uint8', new Uint8Array(1024).fill(255), [2, 512])
                return Array.from((await session.run({ x })).y.data)
            })()"""
        )
    assert got == [255 * -128 * 512, 255 * 127 * 512] * 2


def test_files_that_were_never_fetched_are_reported_before_any_work(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"onnxruntime-web 1\.30\.0 .*make web"):
        fmopt.export(tiny_checkpoint("bert"), tmp_path / "out", target="browser")
    assert not (tmp_path / "out").exists()


def test_npm_that_brings_other_bytes_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho other > onnxruntime-web-1.30.0.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match="other bytes for onnxruntime-web"):
        browser_files.fetch()
    assert browser_files.absent() is not None


def test_a_graph_that_browsers_have_no_name_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.xml"):
        browser_files.move_graph(tmp_path, "model.xml", "fp32")
