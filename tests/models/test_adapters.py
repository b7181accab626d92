"""A LoRA adapter merged into its base computes what the two compute together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.cli.app import main
from fmopt.core.errors import CheckpointError, StoreError
from fmopt.models import checkpoint
from fmopt.models.adapters import CLASSES, merge
from fmopt.models.source import resolve
from tests.conftest import LABELS, TinyCheckpoint
from tests.torch_models import items_of, model_of, outputs_of

KINDS = {
    "sentence-embedding": "FEATURE_EXTRACTION",
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
TARGETS = {"bert": ["query", "value", "dense"], "distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}


def adapted(base: Path, folder: Path, family: str, task: str, **options: Any) -> Any:
    """A network of `base` with a LoRA adapter that changes it, saved to `folder`."""
    import peft
    import torch
    import transformers

    kind = KINDS[task]
    labels = {"num_labels": len(LABELS[task])} if task in LABELS else {}
    torch.manual_seed(1)
    net = getattr(transformers, CLASSES[kind]).from_pretrained(base, **labels)
    config = peft.LoraConfig(r=4, target_modules=TARGETS[family], task_type=kind, **options)
    net = peft.get_peft_model(net, config).eval()
    for name, value in net.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    net.save_pretrained(str(folder))
    return net


def first_output(net: Any, inputs: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return net(**{name: torch.from_numpy(value) for name, value in inputs.items()})[0].numpy()


@pytest.mark.parametrize(
    ("family", "task", "options"),
    [
        ("bert", "sentence-embedding", {}),
        ("bert", "sentence-embedding", {"use_dora": True}),
        ("bert", "sentence-embedding", {"use_rslora": True, "lora_alpha": 8}),
        ("distilbert", "token-classification", {}),
        ("modernbert", "text-classification", {"modules_to_save": ["head", "classifier"]}),
    ],
)
def test_merged_is_base_and_adapter_together(tiny_checkpoint: TinyCheckpoint, tmp_path, family, task, options):
    # the adapter was trained with a head of its own on a base without one
    base = tiny_checkpoint(family, "sentence-embedding")
    net = adapted(base, tmp_path / "adapter", family, task, **options)
    plain = model_of(base)
    merged = model_of(merge(str(tmp_path / "adapter"), str(tmp_path / "merged")))
    assert merged.metadata.task == task
    assert len(merged.metadata.pipeline["labels"]) == len(LABELS.get(task, ()))
    for inputs in items_of(merged):
        ours = outputs_of(merged, inputs)
        np.testing.assert_allclose(ours, first_output(net, inputs), atol=1e-5)
        assert task in LABELS or not np.allclose(ours, outputs_of(plain, inputs), atol=1e-2)


def test_the_command_and_a_base_that_moved(tiny_checkpoint: TinyCheckpoint, tmp_path, capsys):
    base = shutil.copytree(tiny_checkpoint("bert", "text-classification"), tmp_path / "base")
    adapted(base, tmp_path / "adapter", "bert", "text-classification")
    base = base.rename(tmp_path / "moved")
    out = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "adapter"), "-o", str(out)]) == 2
    assert not out.exists()
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "adapter"), "--base", str(base), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoint": str(out)}
    assert list(model_of(out).metadata.pipeline["labels"]) == LABELS["text-classification"]
    with pytest.raises(StoreError, match="not empty"):
        merge(tmp_path / "adapter", out, base=str(base))


def test_a_head_that_nobody_saved_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path):
    adapted(
        tiny_checkpoint("modernbert", "sentence-embedding"), tmp_path / "adapter", "modernbert", "text-classification"
    )
    with pytest.raises(CheckpointError, match=r"weights for head\.dense\.weight.*modules_to_save for 'head'"):
        merge(tmp_path / "adapter", tmp_path / "out")


def test_what_cannot_be_merged_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path):
    base, folder = tiny_checkpoint("bert", "sentence-embedding"), tmp_path / "adapter"
    with pytest.raises(CheckpointError, match="no folder"):
        merge(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no PEFT adapter"):
        merge(base, tmp_path / "out")
    adapted(base, folder, "bert", "sentence-embedding")
    with pytest.raises(CheckpointError, match="fmopt merge"):
        checkpoint.inspect(resolve(str(folder)))
    with pytest.raises(CheckpointError, match="does not fit"):
        merge(folder, tmp_path / "out", base=str(tiny_checkpoint("distilbert", "sentence-embedding")))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "SINGING"}))
    with pytest.raises(CheckpointError, match="SINGING"):
        merge(folder, tmp_path / "out")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="--base"):
        merge(folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        merge(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
