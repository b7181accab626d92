"""Networks that read sounds are pruned and distilled as those that read texts are, whatever became of samples inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmopt.core.progress import Silent
from fmopt.core.stages.store import Store
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint
from fmopt.models.surgery.pruned_modules import prune_layer
from fmopt.passes.distill import Distill
from fmopt.passes.distillation.losses import spelled_loss
from fmopt.passes.pruning.fisher_scores import mask_fisher
from fmopt.passes.pruning.obs_scores import by_importance, collect, sublayers
from fmopt.training.examples import IGNORED
from fmopt.workflow.search.builder import Builder
from tests.audio_models import CLASSIFICATION, RECOGNITION, audio, sound_rows, write_audio
from tests.torch_models import model_of, outputs_of, target

SAID = {"low": "a low", "middle": "middle", "high": "high"}
KINDS = [("wav2vec2", RECOGNITION), ("hubert", CLASSIFICATION), ("audio-spectrogram-transformer", CLASSIFICATION)]


def encoded(model: TorchModel, seconds: tuple[float, ...]) -> dict[str, np.ndarray]:
    samples = [audio(number, length) for number, length in enumerate(seconds)]
    return dict(open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline)).encode(samples).inputs)


def builder_of(model: TorchModel, scratch) -> Builder:
    rows = sound_rows(24, 1)
    if model.metadata.task == RECOGNITION:
        rows = [{"audio": row["audio"], "transcript": SAID[row["label"]]} for row in rows]
        rows = [row if number % 4 else {"audio": row["audio"]} for number, row in enumerate(rows)]
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    return Builder(
        metadata=model.metadata, target=target(), store=Store(scratch), preprocessor=preprocessor, calibration=[],
        calibration_digest="", seed=0, memory_cap_bytes=1 << 30, progress=Silent(), train=rows,
    )  # fmt: skip


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_a_pruned_network_learns_from_the_whole_one(tmp_path, family, task):
    """Sounds of different lengths in one batch, some without a label."""
    folder = write_audio(tmp_path / family, family, task)
    model = model_of(folder)
    inputs = encoded(model, (0.2, 0.4, 0.3))
    wanted = outputs_of(model, inputs)
    for layer in model.family.layers(model.net):
        prune_layer(model.net, layer, (0, 2), range(8))
    again = checkpoint.load(checkpoint.inspect(resolve(str(save_checkpoint(model, tmp_path / "cut")))))
    before = outputs_of(model, inputs)
    np.testing.assert_array_equal(outputs_of(again, inputs), before)
    options = {"epochs": 12.0, "batch_size": 4, "learning_rate": 5e-3, "bf16": False}
    Distill(weights={"task": 0.0}, **options).apply(model, builder_of(model, tmp_path / "s").pass_context())
    after = outputs_of(model, inputs)
    assert np.square(after - wanted).sum() < 0.8 * np.square(before - wanted).sum()
    Distill(**{**options, "epochs": 1.0}).apply(model, builder_of(model, tmp_path / "s").pass_context())  # labels too


def test_what_is_said_teaches_as_torch_s_own_loss_does(tmp_path):
    model = model_of(write_audio(tmp_path / "w", "wav2vec2", RECOGNITION))
    inputs = {name: torch.from_numpy(value) for name, value in encoded(model, (0.3, 0.5)).items()}
    letters = torch.tensor([[5, 6, 7], [8, 5, IGNORED]])
    model.net.config.ctc_loss_reduction = "sum"
    with torch.no_grad():
        found = model.net(**inputs, labels=letters)
        mask = model.net._get_feature_vector_attention_mask(found.logits.shape[1], inputs["attention_mask"])
        blank = model.metadata.pipeline["ctc"]["blank"]
        assert float(spelled_loss(found.logits, letters, mask, blank)) == pytest.approx(float(found.loss) / 5, rel=1e-4)
        letters[1] = IGNORED  # not known: the other counts alone
        alone = spelled_loss(found.logits, letters, mask, blank)
        assert float(alone) == pytest.approx(float(spelled_loss(found.logits[:1], letters[:1], mask[:1], blank)))


def test_units_without_effect_are_missed_least(tmp_path):
    model = model_of(write_audio(tmp_path / "w", "wav2vec2", RECOGNITION))
    parts = sublayers(model.net, model.family)
    with torch.no_grad():
        for part in parts:
            model.net.get_submodule(part.output).weight[:, part.columns([2])] = 0
    items = [encoded(model, (0.2 + 0.05 * number,)) for number in range(4)]
    found = by_importance(mask_fisher(model, parts, items))
    assert all(removal.order[0] == 2 and removal.errors[1] == 0 for removal in found)
    assert all(bool(torch.isfinite(hessian).all()) for hessian, _ in collect(model.net, parts, items))
    assert parity.torch_outputs(model.net, items[0], ["logits"])["logits"].ndim == 3
