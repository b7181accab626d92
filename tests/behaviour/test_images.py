"""Networks that read images end to end: loaded, trained, exported, quantized, bundled, asked without torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fmopt
from fmopt.core.errors import CheckpointError, ConfigError, DataError
from fmopt.core.model import axes_of, static_shape, takes_length
from fmopt.data.datasets import Dataset, load_data
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.measurement.host_probe import load_target
from fmopt.models import checkpoint
from fmopt.models.families.base import find_family, parts
from fmopt.models.source import resolve
from fmopt.passes.calibration.statistics import collect
from fmopt.passes.pruning.obs_scores import collect as collect_products
from fmopt.passes.pruning.obs_scores import sublayers
from fmopt.runtimes.onnxruntime import RUNTIME
from fmopt.tasks.image_classification import TASK
from fmopt.training.finetune import Settings, finetune
from fmopt.workflow import export
from fmopt.workflow import finetune as workflow_finetune
from fmopt.workflow.search.plan import make_plan
from tests.torch_models import model_of
from tests.vision_models import CLASSIFIERS, NAMES, image, picture_rows, write_pictures, write_squares, write_vision
from tests.without_torch import run_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            made[family] = write_vision(tmp_path_factory.mktemp(family) / f"tiny-{family}", family)
        return made[family]

    return make


def inputs_of(metadata, samples):
    return dict(open_preprocessor(metadata.folder, dict(metadata.pipeline)).encode(samples).inputs)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_each_architecture_works_end_to_end(tiny, tmp_path, family):
    """Exported and compared with torch, quantized, bundled; what run.py says without torch is what the network says."""
    folder = tiny(family)
    metadata = checkpoint.inspect(resolve(str(folder)))
    assert (metadata.task, metadata.modality, metadata.pipeline["labels"]) == ("image-classification", "image", NAMES)
    data = write_pictures(tmp_path / "data", train=12, validation=6, test=6)
    made = {p: export.export(folder, tmp_path / p, precision=p, data=data) for p in ("fp32", "int8")}
    shown = image(7)
    (tmp_path / "seen.png").write_bytes(shown)
    net = checkpoint.load(metadata).net
    wanted = exporters_parity.torch_outputs(net, inputs_of(metadata, [shown]), ["logits"])["logits"][0]
    shares = np.exp(wanted - wanted.max()) / np.exp(wanted - wanted.max()).sum()
    for precision, tolerance in (("fp32", 1e-4), ("int8", 0.1)):
        got = run_bundle(made[precision], "predict", "--json", str(tmp_path / "seen.png"))
        assert got.returncode == 0, got.stderr
        (answer,) = json.loads(got.stdout)
        assert list(answer["scores"]) == NAMES
        assert np.abs(np.array(list(answer["scores"].values())) - shares).max() < tolerance
    opened = fmopt.load(made["fp32"])
    assert opened(tmp_path / "seen.png") == opened(shown)
    assert (made["int8"] / "model.onnx").stat().st_size < (made["fp32"] / "model.onnx").stat().st_size


def test_segmentation_works_end_to_end_from_random_weights(tiny, tmp_path):
    """Trained on arrays of images and masks, exported, quantized; the bundle's map is the network's, in the image's size."""
    write_squares(tmp_path / "data")
    record = workflow_finetune.finetune(
        tiny("segformer"), tmp_path / "data", tmp_path / "ckpt", task="image-segmentation", epochs=6, batch=4,
        learning_rate=3e-3, augment=["mirror", "shift"],
    )  # fmt: skip
    assert record["metric"] == "Dice"
    assert record["value"] > 0.8
    metadata = checkpoint.inspect(resolve(str(tmp_path / "ckpt")))
    assert metadata.pipeline["labels"] == ["LABEL_0", "LABEL_1"]
    shown = image(3, size=(50, 40))
    net = checkpoint.load(metadata).net
    logits = exporters_parity.torch_outputs(net, inputs_of(metadata, [shown]), ["logits"])["logits"]
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=(40, 50), mode="bilinear", align_corners=False
    )
    for precision, allowed in (("fp32", 0.001), ("int8", 0.1)):
        out = export.export(tmp_path / "ckpt", tmp_path / precision, precision=precision, data=tmp_path / "data")
        (got,) = fmopt.load(out).predict([shown])
        assert got.shape == (40, 50)
        assert (got != wanted[0].argmax(0).numpy()).mean() <= allowed


def test_an_image_has_no_tokens_and_always_one_size(tiny):
    metadata = checkpoint.inspect(resolve(str(tiny("vit"))))
    assert axes_of(metadata.pipeline) == {"pixel_values": ("batch", 3, 32, 32)}
    assert not takes_length(metadata.pipeline)
    assert static_shape(metadata.pipeline, 2, 128) == (2, 3, 32, 32)
    text = {"inputs": ["input_ids", "attention_mask"]}
    assert takes_length(text)
    assert (static_shape(text, 2, 128), static_shape(text, 2, None)) == ((2, 128), None)


def test_the_exported_batch_is_dynamic(tiny, tmp_path):
    model = model_of(tiny("vit"))
    graph = to_onnx.export_onnx(model, inputs_of(model.metadata, [image(1)]), tmp_path)
    runner = RUNTIME.open(RUNTIME.build(graph, {}, tmp_path / "built"), 1)
    for count in (1, 3):
        batch = inputs_of(model.metadata, [image(seed) for seed in range(count)])
        parity = exporters_parity.check_parity(runner, model.net, [batch], 1e-4, outputs=["logits"])
        assert parity.passed
        assert runner.run(batch)["logits"].shape == (count, 3)


def test_statistics_are_of_all_patches(tiny):
    model = model_of(tiny("vit"))
    items = [inputs_of(model.metadata, [image(seed)]) for seed in range(8)]
    found = collect(model.net, items)
    first = found.group_of("vit.layers.0.attention.q_proj")
    assert first.names == tuple(f"vit.layers.0.attention.{part}_proj" for part in "qkv")
    assert len(first.rows) == 512  # of 8 × 65 patches and class tokens
    part = sublayers(model.net, find_family("vit"))[1]
    hessian, mean = collect_products(model.net, [part], items)[0]
    assert mean.abs().max() > 0
    seen = []
    hook = model.net.get_submodule(part.output).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for item in items:
        exporters_parity.torch_outputs(model.net, item, ["logits"])
    hook.remove()
    rows = torch.cat(seen).reshape(-1, 64).double()
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    assert torch.allclose(hessian.diagonal(), (rows**2).mean(0) - rows.mean(0) ** 2, rtol=0.05, atol=1e-2)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_layers_of_transformers_for_pictures_are_known(tiny, family):
    model = model_of(tiny(family))
    layers = model.family.layers(model.net)
    assert [(layer.attention.heads, layer.attention.head_dim, layer.ffn.width) for layer in layers] == [(4, 8, 64)] * 2
    assert sum(len(parts(layer)) for layer in model.family.layers(model.net)) == 12
    states = []
    hooks = [
        model.net.get_submodule(layer.name).register_forward_hook(lambda module, given, out: states.append(out))
        for layer in layers
    ]
    with torch.no_grad():
        reported = model.net(
            **{k: torch.from_numpy(v) for k, v in inputs_of(model.metadata, [image()]).items()},
            output_hidden_states=True,
        ).hidden_states
    for hook in hooks:
        hook.remove()
    assert torch.equal(states[0], reported[1])


def test_finetuning_learns_pictures_and_another_run_makes_the_same(tmp_path, tiny):
    data = Dataset("toy", "toy", {"train": picture_rows(60), "validation": picture_rows(12, 1)})
    metadata = checkpoint.inspect(resolve(str(tiny("vit"))), TASK.name, fresh_head=True)
    weights = []
    settings = Settings(epochs=4, batch_size=10, learning_rate=1e-3, bf16=False, augment=("shift", "mirror"))
    for name in ("one", "two"):
        out = finetune(metadata, data, TASK, tmp_path / name, settings)  # fmt: skip
        weights.append(load_file(out / "model.safetensors"))
    record = json.loads((tmp_path / "one" / "finetune.json").read_text())
    assert (record["metric"], record["value"]) == ("accuracy", 1.0)
    assert record["settings"]["augment"] == ["shift", "mirror"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    made = checkpoint.inspect(resolve(str(tmp_path / "one")))
    assert made.pipeline["labels"] == sorted(NAMES)
    assert made.pipeline["image"] == metadata.pipeline["image"]


def test_an_entry_with_a_configuration_is_a_random_checkpoint_with_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path))
    source = resolve("vit-32")
    metadata = checkpoint.inspect(source)
    assert (metadata.model_type, metadata.layers, metadata.hidden_size) == ("vit", 6, 384)
    assert metadata.pipeline["axes"] == {"pixel_values": ["batch", 3, 32, 32]}
    assert source.training["augment"] == ["shift", "mirror"]
    first = (source.folder / "model.safetensors").read_bytes()
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "again"))
    assert (resolve("vit-32").folder / "model.safetensors").read_bytes() == first


def test_bad_checkpoints_and_data_are_reported_in_one_line(tmp_path, tiny):
    folder = write_vision(tmp_path / "changed", "vit")
    reported = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**reported, "size": {"height": 64, "width": 64}}))
    with pytest.raises(CheckpointError, match="makes images of 64 × 64 and the network takes 32 × 32"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "preprocessor_config.json").write_text(json.dumps({**reported, "size": {"shortest_edge": 32}}))
    with pytest.raises(CheckpointError, match="makes images of different sizes"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no image processor \(no preprocessor_config.json\)"):
        checkpoint.inspect(resolve(str(folder)))
    metadata = checkpoint.inspect(resolve(str(tiny("vit"))))
    (tmp_path / "d.csv").write_text("image,label\na.png,round\nb.png,grey\n")
    (tmp_path / "a.png").write_bytes(image())
    with pytest.raises(DataError, match=r"d\.csv, row 2: image 'b\.png' cannot be read: No such file"):
        load_data(str(tmp_path / "d.csv"), TASK, metadata)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"d\.csv, row 2: image is no image that can be read"):
        load_data(str(tmp_path / "d.csv"), TASK, metadata)
    with pytest.raises(ConfigError, match="--augment shif: there is no such change; did you mean 'shift'"):
        workflow_finetune.finetune(tiny("vit"), tmp_path / "d.csv", tmp_path / "out", augment=["shif"])


def test_candidates_that_need_a_table_of_words_are_refused_with_the_reason(tiny):
    metadata = checkpoint.inspect(resolve(str(tiny("vit"))))
    shape = static_shape(metadata.pipeline, 1, None)
    plan = make_plan(metadata, load_target("x86-avx512-vnni"), effort="quick", shape=shape)
    assert {refused.recipe: refused.reason for refused in plan.refused if refused.recipe.endswith("embeddings")} == {
        f"onnxruntime-{kind}-int8-embeddings": "images are not looked up in a table" for kind in ("dynamic", "static")
    }
    compiled = [recipe.options["shape"] for recipe in plan.baselines if recipe.runtime == "openvino"]
    assert compiled == [[1, 3, 32, 32]]
