"""A bundle that generates: by fmopt, by its own run.py without torch, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import fmopt
from fmopt.cli.app import app
from fmopt.edge.loading import load as edge_load
from tests.conftest import TinyCheckpoint
from tests.torch_models import model_of

PROMPT, NEW = "the cat sat on", 8


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "lm"
    return fmopt.export(tiny_checkpoint("gpt2", "text-generation"), out)


def run_py(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.py where torch, transformers and fmopt cannot be imported."""
    block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'fmopt')))"
    code = f"{block}; import runpy; sys.exit(runpy.run_path('run.py')['main'](sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=bundle, capture_output=True, text=True, check=False
    )


def test_run_py_goes_on_as_generate_of_transformers_does(bundle: Path, tiny_checkpoint: TinyCheckpoint) -> None:
    model = model_of(tiny_checkpoint("gpt2", "text-generation"))
    loaded = edge_load(bundle, 1)
    ids = torch.tensor([loaded.preprocessor.ids(PROMPT)])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False}
    made = model.net.generate(ids, **options)[0, ids.shape[1] :].tolist()  # type: ignore[operator]
    whole = loaded.preprocessor.tokenizer.decode([*ids[0].tolist(), *made])
    expected = whole.removeprefix(loaded.preprocessor.tokenizer.decode(ids[0].tolist()))
    plain = run_py(bundle, "predict", PROMPT, "--max-new-tokens", str(NEW), "--threads", "1")
    assert plain.returncode == 0, plain.stderr
    assert json.loads(plain.stdout)["text"] == expected
    assert fmopt.load(bundle)(PROMPT, max_new_tokens=NEW)["text"] == expected
    streamed = run_py(bundle, "predict", PROMPT, "--max-new-tokens", str(NEW), "--stream")
    assert streamed.stdout == expected + "\n"


def test_the_bundle_is_whole_and_says_what_a_token_takes(bundle: Path) -> None:
    assert json.loads(run_py(bundle, "verify", "--json").stdout)["ok"]
    reported = run_py(bundle, "bench", "--length", "16", "--seconds", "0.1")
    assert "tokens/s after 16 tokens" in reported.stdout, reported.stderr
    assert "first token" in reported.stdout


def test_options_reach_the_bundle_from_the_command(bundle: Path) -> None:
    runner = CliRunner()

    def text(*arguments: str) -> str:
        got = runner.invoke(app, ["predict", str(bundle), PROMPT, "--max-new-tokens", str(NEW), "--json", *arguments])
        assert got.exit_code == 0, got.output
        return str(json.loads(got.stdout)[0]["text"])

    drawn = {text("--temperature", "1.5", "--seed", str(seed)) for seed in (1, 1, 2)}
    assert len(drawn) == 2
    assert text("--temperature", "1.5", "--top-k", "1") == text()
    streamed = runner.invoke(app, ["predict", str(bundle), PROMPT, "--max-new-tokens", str(NEW), "--stream"])
    assert streamed.stdout == text() + "\n"


def test_what_cannot_be_gone_on_with_is_one_line(bundle: Path) -> None:
    for arguments, said in (
        (("the cat sat " * 40,), "the model reads 64 in all; shorten it"),
        ((PROMPT, "--top-p", "2"), "top_p is 2.0; it is above 0 and at most 1"),
        ((PROMPT, "another", "--stream"), "one text is streamed at a time; 2 were given"),
        ((PROMPT, "--stream", "--beams", "2"), "leave beams out to stream"),
    ):
        got = run_py(bundle, "predict", *arguments)
        assert got.returncode == 2, got.stdout
        assert said in got.stderr
        assert "Traceback" not in got.stderr
        assert got.stderr.count("\n") == 1
