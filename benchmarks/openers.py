"""Who opens a bundle: MiniLM, exported in full precision, by other programs in environments of their own.

    .venv/bin/python benchmarks/openers.py [--work out/openers]

Each environment is made once from the pins below (pip, and npm for transformers.js), in the folder of --work. Every program
opens the bundle, or what `fmopt pack` makes of it, and embeds the same 50 texts; the largest difference to the bundle's own
vectors is written to benchmarks/results/openers.json with the versions, and the table that docs/openers.md shows. Triton's
settings are read by its own schema (tritonclient); neither Triton nor OpenVINO Model Server run here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import compact_results
import numpy as np

import fmopt
from fmopt.exporters.bundles.layouts import pack
from tests.fuzzing import made_on

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs" / "openers.md"
START, END = "<!-- made by benchmarks/openers.py -->", "<!-- end -->"
PARTS = (
    "A man is playing a Guitar", "Größe und Höhe", "今日はいい天気ですね", "مرحبا بالعالم",
    "👩‍👩‍👧 family", "e = mc², naïve café", "tokenizers split un-usual words", "x" * 80, "1,234.56 USD",
    "the quick brown fox jumps over the lazy dog",
)  # fmt: skip
TEXTS = [" ".join([PARTS[i % 10]] * (1 + i // 10) + [str(i)]) for i in range(50)]
PINS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("torch==2.13.0", "sentence-transformers==5.7.0", "optimum-onnx==0.1.0", "onnxruntime==1.32.0",
             "transformers==4.57.6"),
    "openvino": (
        "torch==2.13.0", "sentence-transformers==6.2.0", "optimum-intel[openvino]==2.2.0", "openvino==2026.4.1",
        "transformers==5.5.4",
    ),
    "fastembed": ("fastembed==0.9.1", "onnxruntime==1.32.0"),
    "triton": ("tritonclient[grpc]==2.73.0",),
}  # fmt: skip
TRANSFORMERS_JS = "@huggingface/transformers@4.3.0"

SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
options = {"model_kwargs": {"provider": "CPUExecutionProvider"}} if backend == "onnx" else {}
vectors = SentenceTransformer(folder, backend=backend, **options).encode(texts)
"""
OPTIMUM = """
import torch
from transformers import AutoTokenizer
if backend == "onnx":
    from optimum.onnxruntime import ORTModelForFeatureExtraction as Model
else:
    from optimum.intel import OVModelForFeatureExtraction as Model
model, tokenizer = Model.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.inference_mode():
    states, mask = model(**encoded).last_hidden_state, encoded["attention_mask"][..., None]
vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
"""
FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(model="mine", pooling=PoolingType.MEAN, normalization=True, dim=384, model_file="model.onnx",
                               sources=ModelSource(hf="mine/mine"))
vectors = list(TextEmbedding(model_name="mine", specific_model_path=folder).embed(texts))
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
PYTHON = "import json, sys\nfolder, backend, wanted, out = sys.argv[1:]\ntexts = json.load(open(wanted))\n"
WRITTEN = "\njson.dump([[float(value) for value in vector] for vector in vectors], open(out, 'w'))\n"


class Opener(NamedTuple):
    """One program: what it opens, where it is installed, and the few lines that a user of it writes."""

    name: str
    environment: str
    format: str  # of the bundle
    layout: str | None  # of `fmopt pack`; None: the bundle as it is
    code: str


OPENERS = (
    Opener('sentence-transformers, `backend="onnx"`', "onnx", "onnx", None, SENTENCE_TRANSFORMERS),
    Opener("optimum-onnx, `ORTModelForFeatureExtraction`", "onnx", "onnx", None, OPTIMUM),
    Opener('sentence-transformers, `backend="openvino"`', "openvino", "openvino", "optimum", SENTENCE_TRANSFORMERS),
    Opener("optimum-intel, `OVModelForFeatureExtraction`", "openvino", "openvino", "optimum", OPTIMUM),
    Opener("fastembed, `add_custom_model`", "fastembed", "onnx", None, FASTEMBED),
    Opener("transformers.js in Node", "node", "onnx", "transformers.js", NODE),
    Opener("Triton's model configuration (schema)", "triton", "onnx", "triton", TRITON),
)


def main() -> None:
    """Make, open, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "openers")
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "texts.json").write_text(json.dumps(TEXTS))
    formats: tuple[Literal["onnx", "openvino"], ...] = ("onnx", "openvino")
    for format in formats:
        if not (work / "bundles" / format / "fmopt.json").exists():
            fmopt.export("minilm", work / "bundles" / format, format=format)
    rows = [opened(opener, work) for opener in OPENERS]
    result = {
        "what": "MiniLM opened by others, 50 texts",
        "rows": rows,
        "command": "python benchmarks/openers.py",
        **made_on(),
    }
    compact_results.write(result, RESULTS / "openers.json")
    before, _, rest = DOCS.read_text("utf8").partition(START)
    DOCS.write_text(f"{before}{START}\n{table(rows)}{END}{rest.partition(END)[2]}", "utf8")


def opened(opener: Opener, work: Path) -> dict[str, Any]:
    """What came of one program."""
    bundle = folder = work / "bundles" / opener.format
    if opener.layout is not None:
        folder = work / "packed" / f"{opener.format}-for-{opener.layout}"
        shutil.rmtree(folder, ignore_errors=True)
        pack(bundle, opener.layout, folder)
    out = work / "vectors.json"
    out.unlink(missing_ok=True)
    command, versions = (in_node if opener.environment == "node" else in_python)(opener, folder, work, out)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=work / "environments" / opener.environment
    )
    row = {
        "name": opener.name,
        "opens": f"`fmopt pack --for {opener.layout}`" if opener.layout else "the bundle",
        "versions": versions,
    }
    if done.returncode:
        row["failed"] = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
    elif out.exists():
        ours = np.array(fmopt.load(bundle)(TEXTS))
        row["difference"] = float(np.abs(ours - np.array(json.loads(out.read_text()))).max())
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
    arguments = [str(folder), opener.format, str(work / "texts.json"), str(out)]
    versions = {pin.partition("==")[0].partition("[")[0]: pin.partition("==")[2] for pin in pins}
    return [str(home / "bin/python"), "-c", code, *arguments], versions


def in_node(opener: Opener, folder: Path, work: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    """The same of one in JavaScript."""
    home = work / "environments" / opener.environment
    if not (home / "made").exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--silent", TRANSFORMERS_JS],
            cwd=home,
            check=True,
            env=dict(os.environ),
        )
        (home / "made").touch()
    (home / "opener.mjs").write_text(opener.code)
    name, _, version = TRANSFORMERS_JS.rpartition("@")
    return ["node", "opener.mjs", str(folder), str(work / "texts.json"), str(out)], {name: version}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the rows."""
    lines = [
        "| program | opens | versions | largest difference to the bundle's vectors, 50 texts |",
        "|---|---|---|---|",
    ]
    for row in rows:
        found = row.get("failed") or (f"{row['difference']:.1g}" if "difference" in row else "read without a fault")
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        lines.append(f"| {row['name']} | {row['opens']} | {versions} | {found} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
