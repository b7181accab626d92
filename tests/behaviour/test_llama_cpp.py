"""llama.cpp itself opens what `fmopt export --format gguf` makes, and goes on with texts as transformers does."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import BundleError
from fmopt.edge.host import cache_folder
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from tests.conftest import SENTENCES, TinyCheckpoint

llama_cpp = pytest.importorskip(
    "xllamacpp", reason="xllamacpp, a wheel with llama.cpp in it (extra `dev`), is not installed"
)
pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")
NEW = 12
PROBES = (
    "It's 3.14159 or 12,345?  Two  blanks,\n\n\ttabs",
    "naïve café, Ünïcödé, 日本語, 🙂",
    "def f(x): return x**2 # ok\r\n",
)
REAL = cache_folder() / "real-models" / "smollm2-135m-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"


class LlamaCpp:
    """An opened GGUF file, asked over its own HTTP API. Keys and values stay in float32, as transformers has them."""

    def __init__(self, file: Path):
        options = llama_cpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel, options.n_gpu_layers, options.verbosity = 256, 1, 0, -1
        options.cpuparams.n_threads, options.warmup = 1, False
        options.cache_type_k = options.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        options.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = llama_cpp.Server(options)

    def ask(self, what: str, **body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.listening_address}/{what}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        return self.ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def greedy(self, ids: list[int]) -> list[int]:
        return self.ask("completion", prompt=ids, n_predict=NEW, temperature=0, top_k=1, return_tokens=True)["tokens"]

    def likeliest(self, ids: list[int]) -> dict[int, float]:
        """Log-probabilities of the three likeliest next tokens."""
        got = self.ask("completion", prompt=ids, n_predict=1, temperature=0, top_k=1, n_probs=3)
        return {one["id"]: one["logprob"] for one in got["completion_probabilities"][0]["top_logprobs"]}


@contextmanager
def opened(file: Path) -> Iterator[LlamaCpp]:
    made = LlamaCpp(file)
    yield made
    del made.server


def greedy(net: Any, ids: list[int]) -> list[int]:
    """The tokens of transformers' own generation."""
    return net.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()


def log_probabilities(net: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return net(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_same_tokens_in_float32(tiny_checkpoint: TinyCheckpoint, tmp_path, family, capsys):
    source = tiny_checkpoint(family, "text-generation")
    assert main(["export", str(source), "--format", "gguf", "-o", str(tmp_path / "out")]) == 0
    assert "model.gguf; try: llama-server -m" in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    net = transformers.AutoModelForCausalLM.from_pretrained(source)
    with opened(tmp_path / "out" / "model.gguf") as llama:
        for text in (*SENTENCES[:4], *PROBES):
            ids = tokenizer(text)["input_ids"]
            assert llama.tokens(text) == ids
        for text in SENTENCES[:4]:
            ids = tokenizer(text)["input_ids"]
            assert llama.greedy(ids) == greedy(net, ids)


@pytest.mark.parametrize(("precision", "apart"), [("fp16", 0.01), ("bf16", 0.1), ("int8", 0.2), ("int4", 0.3)])
def test_the_same_probabilities_of_narrow_weights(tiny_checkpoint: TinyCheckpoint, tmp_path, precision, apart):
    """Up to what llama.cpp rounds while it computes: with narrow weights it rounds activations too."""
    source = tiny_checkpoint("llama", "text-generation")
    out = fmopt.export(source, tmp_path / "out", format="gguf", precision=precision)
    read = checkpoint.load(checkpoint.inspect(resolve(str(out / "model.gguf")))).net
    ids = transformers.AutoTokenizer.from_pretrained(source)("the cat")["input_ids"]
    with opened(out / "model.gguf") as llama:
        got = llama.likeliest(ids)
    expected = log_probabilities(read, ids)
    assert len(got) == 3
    assert max(abs(float(expected[token]) - value) for token, value in got.items()) < apart


def test_a_bundle_is_whole_and_opened_by_llama_cpp_alone(tiny_checkpoint: TinyCheckpoint, tmp_path, capsys):
    out = fmopt.export(tiny_checkpoint("llama", "text-generation"), tmp_path / "out", format="gguf", precision="int8")
    assert {path.name for path in out.iterdir()} >= {
        "model.gguf",
        "fmopt.json",
        "sbom.json",
        "README.md",
        "config.json",
    }
    assert json.loads((out / "fmopt.json").read_text())["runtime"] == "llama.cpp"
    assert fmopt.verify(out) == []
    with pytest.raises(
        BundleError, match=r"llama\.cpp opens and fmopt does not; run it: llama-server -m .*model\.gguf"
    ):
        fmopt.load(out)
    for verb in (["predict", str(out), "a cat"], ["bench", str(out)], ["eval", str(out), "--data", "builtin:pydoc"]):
        assert main(verb) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert "llama-server -m" in lines[-1]
    with (out / "model.gguf").open("ab") as stream:
        stream.write(b"\0")
    assert len(fmopt.verify(out)) == 1


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_file(), reason="the real SmolLM2 in GGUF is not in the cache folder")
def test_a_real_file_is_read_as_llama_cpp_reads_it(tmp_path):
    source = resolve(str(REAL))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder)
    net = checkpoint.load(checkpoint.inspect(source)).net
    prompts = ("The capital of France is", "Water boils at 100 degrees and", *PROBES)
    with opened(REAL) as llama:
        for text in prompts:
            assert llama.tokens(text) == tokenizer(text)["input_ids"]
    out = fmopt.export(
        source.folder, tmp_path / "out", format="gguf", precision="fp16"
    )  # no more rounding than of its scales
    with opened(out / "model.gguf") as llama:
        for text in prompts[:2]:
            ids = tokenizer(text)["input_ids"]
            assert llama.tokens(text) == ids
            assert llama.greedy(ids) == greedy(net, ids)
