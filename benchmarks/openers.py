"""Who opens a bundle: other programs, each in an environment of its own, beside what the bundle itself answers.

    .venv/bin/python benchmarks/openers.py [--only WORD] [--work out/openers]

Each environment is made once from the pins below (pip, and npm for transformers.js), in the folder of --work. Every program
opens a bundle, or what `fmopt pack` makes of it, and is given the same 50 texts: MiniLM for vectors, tiny random networks
(tests/conftest.py) for the other tasks. What is refused at pack time is kept as the line that is said. The largest difference
to the bundle's own outputs is written to benchmarks/results/openers.json with the versions, and as tables into docs/openers.md
and README.md; `--only` runs the programs whose name or task holds one of these words and keeps the other rows. Triton's
settings are read by its own schema (tritonclient); neither Triton nor OpenVINO Model Server run here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

import compact_results
import numpy as np

import fmopt
from benchmarks import chromium
from fmopt.core.errors import ConfigError
from fmopt.exporters.bundles.layouts import pack
from tests.conftest import SENTENCES, write_checkpoint
from tests.fuzzing import made_on

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS, README = ROOT / "benchmarks" / "results", ROOT / "docs" / "openers.md", ROOT / "README.md"
START, END = "<!-- made by benchmarks/openers.py -->", "<!-- end -->"
PARTS = (
    "A man is playing a Guitar", "Größe und Höhe", "今日はいい天気ですね", "مرحبا بالعالم",
    "👩‍👩‍👧 family", "e = mc², naïve café", "tokenizers split un-usual words", "x" * 80, "1,234.56 USD",
    "the quick brown fox jumps over the lazy dog",
)  # fmt: skip
TEXTS = [" ".join([PARTS[i % 10]] * (1 + i // 10) + [str(i)]) for i in range(50)]
SHORT = [f"{sentence} {number}" for number, sentence in enumerate(SENTENCES * 5)]  # for networks that read 64 tokens
MOST = 12  # tokens that a decoder goes on with
PINS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("torch==2.13.0", "sentence-transformers==5.7.0", "optimum-onnx==0.1.0", "onnxruntime==1.32.0",
             "transformers==4.57.6"),
    "openvino": (
        "torch==2.13.0", "sentence-transformers==6.2.0", "optimum-intel[openvino]==2.2.0", "openvino==2026.4.1",
        "transformers==5.5.4",
    ),
    "openvino-genai": ("openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0"),
    "onnxruntime-genai": ("onnxruntime-genai==0.18.0", "tokenizers==0.23.3"),
    "fastembed": ("fastembed==0.9.1", "onnxruntime==1.32.0"),
    "haystack": ("torch==2.13.0", "haystack-ai==3.4.1", "sentence-transformers-haystack==2.0.0",
                 "sentence-transformers==5.7.0", "optimum-onnx==0.1.0", "onnxruntime==1.32.0", "transformers==4.57.6"),
    # the last txtai that goes with transformers 4, which optimum-onnx asks for
    "txtai": ("torch==2.13.0", "txtai==9.10.0", "sentence-transformers==5.7.0", "optimum-onnx==0.1.0",
              "onnxruntime==1.32.0", "transformers==4.57.6"),
    "triton": ("tritonclient[grpc]==2.73.0",),
}  # fmt: skip
TRANSFORMERS_JS = "@huggingface/transformers@4.3.0"

SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
options = {"model_kwargs": {"provider": "CPUExecutionProvider"}} if backend == "onnx" else {}
answers = SentenceTransformer(folder, backend=backend, **options).encode(texts)
"""
HAYSTACK = """
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder
provider = {"provider": "CPUExecutionProvider"}
embedder = SentenceTransformersTextEmbedder(model=folder, backend="onnx", model_kwargs=provider, progress_bar=False)
embedder.warm_up()
answers = [embedder.run(text)["embedding"] for text in texts]
"""
TXTAI = """
from txtai import Embeddings
options = {"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider"}}
answers = Embeddings(path=folder, method="sentence-transformers", vectors=options, gpu=False).batchtransform(texts)
"""
OPTIMUM = """
import torch
from transformers import AutoTokenizer
if backend == "onnx":
    from optimum import onnxruntime as library
else:
    from optimum import intel as library
Model = getattr(library, ("ORT" if backend == "onnx" else "OV") + "ModelFor" + head)
# OpenVINO keeps keys and values in 8 bits unless told otherwise
options = {"ov_config": {"KV_CACHE_PRECISION": "f32"}} if backend == "openvino" and head == "CausalLM" else {}
model, tokenizer = Model.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder)
"""
VECTORS = (
    OPTIMUM
    + """
encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.inference_mode():
    states, mask = model(**encoded).last_hidden_state, encoded["attention_mask"][..., None]
answers = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
"""
)
LOGITS = (
    OPTIMUM
    + """
answers = []
for text in texts:
    found = model(**tokenizer(*text, return_tensors="pt"))
    logits = [found.start_logits, found.end_logits] if head == "QuestionAnswering" else [found.logits]
    answers.append([value for one in logits for value in one.flatten().tolist()])
"""
)
GENERATED = (
    OPTIMUM
    + """
answers = []
for text in texts:
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
    answers.append(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True))
"""
)
OPENVINO_GENAI_TEXT = """
import openvino_genai
pipe = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32")
answers = [pipe.generate(text, max_new_tokens=most, do_sample=False, apply_chat_template=False) for text in texts]
"""
OPENVINO_GENAI_VECTORS = """
import openvino_genai
kind = openvino_genai.TextEmbeddingPipeline
pipe = kind(folder, "CPU", pooling_type=kind.PoolingType.MEAN, normalize=True, INFERENCE_PRECISION_HINT="f32")
answers = [pipe.embed_query(text) for text in texts]
"""
ONNXRUNTIME_GENAI = """
import onnxruntime_genai as og
from tokenizers import Tokenizer
model, tokenizer, answers = og.Model(folder), Tokenizer.from_file(folder + "/tokenizer.json"), []
for text in texts:
    ids = tokenizer.encode(text).ids
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + most, do_sample=False)
    maker = og.Generator(model, settings)
    maker.append_tokens(ids)
    while not maker.is_done():
        maker.generate_next_token()
    answers.append(tokenizer.decode([int(one) for one in maker.get_sequence(0)[len(ids):]]))
"""
FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(model="mine", pooling=PoolingType.MEAN, normalization=True, dim=384, model_file="model.onnx",
                               sources=ModelSource(hf="mine/mine"))
answers = list(TextEmbedding(model_name="mine", specific_model_path=folder).embed(texts))
"""
TRITON = """
from pathlib import Path
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
(path,) = Path(folder).glob("*/config.pbtxt")
read = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
assert read.name == path.parent.name and len(read.input) == 3 and read.output[0].dims[-1] == 384
"""
NODE = """
import { readFileSync, writeFileSync } from 'node:fs'
import { pipeline, env } from '@huggingface/transformers'
const [, , folder, textsFile, out] = process.argv
Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '' })
const embed = await pipeline('feature-extraction', folder, { dtype: 'fp32' })
const vectors = []
for (const text of JSON.parse(readFileSync(textsFile, 'utf8'))) {
  vectors.push(Array.from((await embed(text, { pooling: 'mean', normalize: true })).data))
}
writeFileSync(out, JSON.stringify(vectors))
"""
PAGE = """<!doctype html><meta charset="utf-8"><script type="importmap">
{"imports": {"onnxruntime-common": "./packages/onnxruntime-common/dist/esm/index.js",
             "onnxruntime-web/webgpu": "./packages/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs"}}
</script><script type="module">
import { pipeline, env } from './packages/@huggingface/transformers/dist/transformers.web.min.js'
Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: './', useBrowserCache: false })
env.backends.onnx.wasm.wasmPaths = new URL('./packages/onnxruntime-web/dist/', location).href
env.backends.onnx.wasm.numThreads = 1
window.answers = (async () => {
  const embed = await pipeline('feature-extraction', 'model', { dtype: 'fp32', device: 'wasm' })
  const vectors = []
  for (const text of await (await fetch('texts.json')).json()) {
    vectors.push(Array.from((await embed(text, { pooling: 'mean', normalize: true })).data))
  }
  return JSON.stringify(vectors)
})()
</script>"""
PYTHON = """import json, sys
folder, backend, wanted, out, head, most = sys.argv[1:]
texts, most = json.load(open(wanted)), int(most)
"""
WRITTEN = """
kept = [one if isinstance(one, str) else [float(value) for value in one] for one in answers]
json.dump(kept, open(out, 'w'))
"""


class Opener(NamedTuple):
    """One program: what it opens, where it is installed, and the few lines that a user of it writes."""

    name: str
    environment: str
    format: Literal["onnx", "openvino"]  # of the bundle
    layout: str | None  # of `fmopt pack`; None: the bundle as it is
    code: str
    task: str = "sentence-embedding"
    head: str = "FeatureExtraction"  # of optimum's classes


FAMILIES = {"text-generation": "llama", "translation": "t5"}  # of the tiny networks; bert for the other tasks
GENAI = "openvino-genai"  # a layout, and the environment of its own
ORT, OV = "optimum-onnx, `ORTModelFor{}`", "optimum-intel, `OVModelFor{}`"
HEADS = (
    ("text-classification", "SequenceClassification", LOGITS),
    ("token-classification", "TokenClassification", LOGITS),
    ("question-answering", "QuestionAnswering", LOGITS),
    ("text-generation", "CausalLM", GENERATED),
    ("translation", "Seq2SeqLM", GENERATED),
)
OPENERS = (
    Opener('sentence-transformers, `backend="onnx"`', "onnx", "onnx", None, SENTENCE_TRANSFORMERS),
    Opener(ORT.format("FeatureExtraction"), "onnx", "onnx", None, VECTORS),
    Opener('sentence-transformers, `backend="openvino"`', "openvino", "openvino", "optimum", SENTENCE_TRANSFORMERS),
    Opener(OV.format("FeatureExtraction"), "openvino", "openvino", "optimum", VECTORS),
    Opener("Haystack, `SentenceTransformersTextEmbedder`", "haystack", "onnx", None, HAYSTACK),
    Opener("txtai, `Embeddings`", "txtai", "onnx", None, TXTAI),
    Opener("fastembed, `add_custom_model`", "fastembed", "onnx", None, FASTEMBED),
    Opener("transformers.js in Node", "node", "onnx", "transformers.js", NODE),
    Opener("transformers.js in Chromium", "chromium", "onnx", "transformers.js", PAGE),
    *(Opener(ORT.format(head), "onnx", "onnx", "optimum", code, task, head) for task, head, code in HEADS),
    *(Opener(OV.format(head), "openvino", "openvino", "optimum", code, task, head) for task, head, code in HEADS),
    Opener("OpenVINO GenAI, `TextEmbeddingPipeline`", GENAI, "openvino", GENAI, OPENVINO_GENAI_VECTORS),
    Opener("OpenVINO GenAI, `LLMPipeline`", GENAI, "openvino", GENAI, OPENVINO_GENAI_TEXT, "text-generation"),
    Opener("OpenVINO GenAI", GENAI, "openvino", GENAI, "", "translation"),
    Opener("ONNX Runtime GenAI", "onnxruntime-genai", "onnx", "onnxruntime-genai", ONNXRUNTIME_GENAI, "text-generation"),
    Opener("Triton's model configuration (schema)", "triton", "onnx", "triton", TRITON),
)  # fmt: skip


def main() -> None:
    """Make, open, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "openers")
    parser.add_argument("--only", nargs="*", default=[""], help="words of the programs' names or tasks, in this order")
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for word in asked.only:
        for opener in OPENERS:
            if word in f"{opener.name} {opener.task}":
                keep(opened(opener, work))


def keep(row: dict[str, Any]) -> None:
    """Write a row into the results and the pages, in place of the same one of an earlier run."""
    place = RESULTS / "openers.json"
    rows = {(one["name"], one["task"]): one for one in [*json.loads(place.read_text())["rows"], row]}
    ordered = [rows[key] for key in ((opener.name, opener.task) for opener in OPENERS) if key in rows]
    command = "python benchmarks/openers.py"
    result = {"what": "bundles opened by others, 50 texts", "rows": ordered, "command": command, **made_on()}
    compact_results.write(result, place)
    for page, made in ((DOCS, table(ordered)), (README, short_table(ordered))):
        page.write_text(between(page.read_text("utf8"), made), "utf8")


def between(page: str, made: str) -> str:
    """A page with what was made between its markers."""
    head, _, rest = page.partition(START)
    return f"{head}{START}\n{made}{END}{rest.partition(END)[2]}"


def texts_for(task: str) -> list[Any]:
    """What a program is given: texts, or for logits what its tokenizer is called with."""
    if task == "question-answering":
        return [["where is it?", text] for text in SHORT]
    if task in ("text-classification", "token-classification"):
        return [[text] for text in SHORT]
    return TEXTS if task == "sentence-embedding" else SHORT


def bundle_of(task: str, format: Literal["onnx", "openvino"], work: Path) -> Path:
    """The bundle for a task, exported in full precision where it is not there yet."""
    place = work / "bundles" / f"{task}-{format}"
    if not (place / "fmopt.json").exists():
        base: str | Path = "minilm"
        if task != "sentence-embedding":
            family = FAMILIES.get(task, "bert")
            base = write_checkpoint(work / "checkpoints" / task / f"tiny-{family}", family, task)
        fmopt.export(base, place, format=format, task=task)
    return place


def expected(bundle: Path, task: str) -> list[Any]:
    """What the bundle itself answers: a vector, a text, or the numbers that its network gives."""
    model, texts = fmopt.load(bundle), texts_for(task)
    if task == "sentence-embedding":
        return [model(text) for text in texts]
    if task in ("text-generation", "translation"):
        return [model(text, max_new_tokens=MOST)["text"] for text in texts]
    samples = [tuple(text) if len(text) > 1 else text[0] for text in texts]
    outputs = [model.runner.run(model.preprocessor.encode([sample]).inputs) for sample in samples]
    return [np.concatenate([np.ravel(one) for one in output.values()]) for output in outputs]


def apart(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """How far answers are from the bundle's: the largest difference of a number, or how many texts differ."""
    if isinstance(theirs[0], str):
        # random networks make bytes that are no text, which libraries spell by one or by several replacement characters
        plain = [[re.sub("\ufffd+", "\ufffd", one).strip() for one in texts] for texts in (ours, theirs)]
        return {"texts_that_differ": sum(one != other for one, other in zip(*plain, strict=True))}
    pairs = zip(ours, theirs, strict=True)
    return {"difference": max(float(np.abs(np.asarray(one) - np.asarray(other)).max()) for one, other in pairs)}


def opened(opener: Opener, work: Path) -> dict[str, Any]:
    """What came of one program."""
    bundle = folder = bundle_of(opener.task, opener.format, work)
    what = f"`fmopt pack --for {opener.layout}`" if opener.layout else "the bundle"
    row: dict[str, Any] = {"name": opener.name, "task": opener.task, "opens": what, "versions": {}}
    if opener.layout is not None:
        folder = work / "packed" / f"{opener.task}-{opener.format}-for-{opener.layout}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            pack(bundle, opener.layout, folder)
        except ConfigError as error:
            row["refused"] = str(error).removeprefix(f"{bundle}: ")
            print(row, flush=True)
            return row
    out, texts = work / "answers.json", work / "texts.json"
    out.unlink(missing_ok=True)
    texts.write_text(json.dumps(texts_for(opener.task)))
    if opener.environment == "chromium":
        row["versions"] = in_chromium(opener, folder, work, out)
        failed = ""
    else:
        make = in_node if opener.environment == "node" else in_python
        command, row["versions"] = make(opener, folder, work, out)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=work / "environments" / opener.environment
        )
        failed = (done.stderr.strip().splitlines() or ["no word"])[-1][:200] if done.returncode else ""
    if failed:
        row["failed"] = failed
    elif out.exists():
        row |= apart(expected(bundle, opener.task), json.loads(out.read_text()))
    print(row, flush=True)
    return row


def in_python(opener: Opener, folder: Path, work: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """The command of a program in Python, and what is installed there."""
    home, pins = work / "environments" / opener.environment, PINS[opener.environment]
    if not (home / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        first = [pin for pin in pins if pin.startswith("torch==")]  # by itself: others would bring the one with CUDA
        for some in filter(None, (first, list(pins))):
            subprocess.run([home / "bin/pip", "install", "-q", "--no-compile", *some], check=True)
        # A torchvision that came along is built for the torch with CUDA, and stops transformers from importing.
        subprocess.run([home / "bin/pip", "uninstall", "-q", "-y", "torchvision"], check=True)
        (home / "made").touch()
    code = PYTHON + opener.code + ("" if opener.environment == "triton" else WRITTEN)
    arguments = [str(folder), opener.format, str(work / "texts.json"), str(out), opener.head, str(MOST)]
    versions = {pin.partition("==")[0].partition("[")[0]: pin.partition("==")[2] for pin in pins}
    return [str(home / "bin/python"), "-c", code, *arguments], versions


def node_packages(work: Path) -> Path:
    """The folder that transformers.js is installed in."""
    home = work / "environments" / "node"
    if not (home / "made").exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        command = ["npm", "install", "--ignore-scripts", "--silent", TRANSFORMERS_JS]
        subprocess.run(command, cwd=home, check=True, env=dict(os.environ))
        (home / "made").touch()
    return home


def in_node(opener: Opener, folder: Path, work: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """The same of one in JavaScript."""
    (node_packages(work) / "opener.mjs").write_text(opener.code)
    name, _, version = TRANSFORMERS_JS.rpartition("@")
    return ["node", "opener.mjs", str(folder), str(work / "texts.json"), str(out)], {name: version}


def in_chromium(opener: Opener, folder: Path, work: Path, out: Path) -> dict[str, str]:
    """A page that opens it, served on loopback to a headless browser; its answers are written to `out`."""
    site = work / "environments" / "chromium"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    (site / "packages").symlink_to(node_packages(work) / "node_modules")
    (site / "model").symlink_to(folder)
    (site / "page.html").write_text(opener.code)
    shutil.copyfile(work / "texts.json", site / "texts.json")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as profile, chromium.browser(Path(profile), offline=False) as browser:
            browser.open(f"http://127.0.0.1:{server.server_port}/page.html")
            out.write_text(browser.value("window.answers"))
            version = browser.call("Browser.getVersion")["product"]
    finally:
        server.shutdown()
    name, _, packaged = TRANSFORMERS_JS.rpartition("@")
    return {name: packaged, "Chromium": version.rpartition("/")[2]}


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def came(row: dict[str, Any]) -> str:
    """What a table says of a row."""
    if "refused" in row or "failed" in row:
        return f"refused: {row['refused']}" if "refused" in row else f"failed: {row['failed']}"
    if "texts_that_differ" in row:
        return f"{row['texts_that_differ']} of 50 texts"
    return f"{row['difference']:.1g}" if "difference" in row else "read without a fault"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the rows, with versions."""
    lines = ["| program | task | opens | versions | largest difference, 50 texts |", "|---|---|---|---|---|"]
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        lines.append(f"| {row['name']} | {row['task']} | {row['opens']} | {versions} | {came(row)} |")
    return "\n".join(lines) + "\n"


def short_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of what was opened; what was refused is in docs/openers.md."""
    lines = ["| program | task | opens | largest difference, 50 texts |", "|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['task']} | {row['opens']} | {came(row)} |"
        for row in rows
        if not {"refused", "failed"} & set(row)
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
