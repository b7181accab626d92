"""The README.md of a bundle: what it is, what it needs, how it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fmopt.core import escaping
from fmopt.core.model import LLAMA_CPP, Artifact, CheckpointMetadata, takes_length
from fmopt.edge import executorch, runners, tensorrt
from fmopt.edge import text as edge_text
from fmopt.edge.recommendation import CATALOGUE
from fmopt.exporters import browser_files
from fmopt.tasks.base import find_task

PROCESSOR = "preprocessor_config.json"  # of images and audio
VOCABULARY = "vocab.json"  # of letters
ENCODER_OF = {"text": "tokenizer.json", "item": CATALOGUE}  # where it is not a processor
# Runtimes with a module of their own: what has to be installed for it, and what its README adds.
OWN: Mapping[str, Any] = {module.NAME: module for module in (tensorrt, executorch)}


def encoder_file(metadata: CheckpointMetadata) -> str:
    """The file without which a bundle could not encode its samples."""
    return VOCABULARY if "speech" in metadata.pipeline else ENCODER_OF.get(metadata.modality, PROCESSOR)


def readers(metadata: CheckpointMetadata) -> tuple[str, ...]:
    """The packages, beside numpy, that a bundle encodes and spells by."""
    encoder = encoder_file(metadata)
    if encoder == "tokenizer.json" or (metadata.modality == "audio" and "decoder_start_token_ids" in metadata.pipeline):
        return ("tokenizers",)
    return ("pillow",) if encoder == PROCESSOR and metadata.modality != "audio" else ()


ALONE = "     # without it: from runpy import run_path; load = run_path('run.py')['load']"


def readme(
    metadata: CheckpointMetadata, artifact: Artifact, verdict: str, model_file: str, *, page: bool, golden: str
) -> str:
    """The text of a bundle's README; nothing of a checkpoint stands in it unescaped."""
    if artifact.runtime == LLAMA_CPP:
        return _of_gguf(metadata, artifact, model_file)
    task = find_task(metadata.task)
    argument = task.usage.argument.format(mask=metadata.pipeline.get("mask", {}).get("token", ""))
    own = OWN.get(artifact.runtime)
    alone = artifact.runtime in runners.RUNNERS or own is not None
    packages = own.PACKAGES if own else artifact.runtime
    encoder = encoder_file(metadata)
    reads = "".join(f" {package}" for package in readers(metadata))
    others = " (and soundfile, for other files than WAV)" if metadata.modality == "audio" else ""
    needs = (
        f"It needs no fmopt, but Python 3.10 or newer: `pip install numpy{reads} {packages}`{others}."
        if alone
        else "It is a PyTorch checkpoint and runs by fmopt: `pip install fmopt`."
        if artifact.runtime == "torch"
        else f"It runs by fmopt and the package that the runtime {artifact.runtime} comes with."
    )
    needs += own.README if own else ""
    predict, bench, verify = (
        f"python run.py {verb}" if alone else f"fmopt {verb} ." for verb in ("predict", "bench", "verify")
    )
    encoder = encoder.replace("tokenizer.json", "tokenizer*.json")
    sample = task.usage.call or argument
    if "{mask}" in task.usage.argument:  # a token is whatever a tokenizer says
        asked = argument.strip('"')
        argument, sample = escaping.shell_word(asked), json.dumps(escaping.one_line(asked))
    if metadata.modality == "item":
        sample = json.dumps([edge_text.read_sample(metadata.pipeline, argument.strip('"'))])
    elif metadata.modality != "text":
        sample = f'open("{argument}", "rb").read()'
    browsers = browser_files.usage(model_file, page=page)
    given = {".onnx": model_file, ".pte": model_file, ".xml": "model.xml, model.bin"}
    weights = given.get(artifact.path.suffix, "*.safetensors")
    read = "read in overlapping windows" if task.reads_windows else "cut"
    most = metadata.pipeline.get("max_length")
    long = f"Texts longer than {most} tokens are {read}.\n" if takes_length(metadata.pipeline) else ""
    return f"""# {escaping.markdown(metadata.source.title)}: {metadata.task}

Made by fmopt for {artifact.runtime}; the gate said **{verdict}**. {needs}

```
{predict} {argument}{" -o out.wav" if encoder == VOCABULARY else ""}     # {task.usage.result}; also --file list.txt, --json
{bench}     # latency here
{verify}     # are the files whole, does it compute here what it should
```
```python
from fmopt import load{ALONE if alone else ""}
model = load(".")
model({sample})     # or a list of them
```
{browsers}
| file | what it is |
|---|---|
| `{weights}` | the model |
| `{encoder}`, `config.json` | of the checkpoint, as transformers and optimum read them |
| `fmopt.json` | what it was made from and how, versions, host, sha256 of every file |
| `golden.json` | inputs with the predictions that were judged ({golden}); run on first load on a new machine |
| `record.json`, `report.html` | every measurement, and the page drawn from it (where it was judged) |

{long}Licence of the original model: {escaping.markdown(metadata.source.licence or "not stated; see its source")}.
"""


def _of_gguf(metadata: CheckpointMetadata, artifact: Artifact, model_file: str) -> str:
    """The README of a bundle that llama.cpp opens."""
    return f"""# {escaping.markdown(metadata.source.title)}: {metadata.task}

Made by fmopt for llama.cpp ({artifact.options["precision"]}); nothing was judged: it was read back, and its weights, tokens
and logits compared with the checkpoint's. llama.cpp and what is built on it (Ollama, LM Studio) open `{model_file}` by itself.

```
llama-server -m {model_file}     # or: llama-cli -m {model_file} -p "Once upon a time"
fmopt verify .     # are the files whole
```

| file | what it is |
|---|---|
| `{model_file}` | the network, its tokenizer and its chat template |
| `tokenizer*.json`, `config.json` | of the checkpoint, as transformers reads them |
| `fmopt.json` | what it was made from and how, versions, host, sha256 of every file |
| `sbom.json` | its parts (CycloneDX) |

Licence of the original model: {escaping.markdown(metadata.source.licence or "not stated; see its source")}.
"""
