"""What is known of a graph without a network, where it lies, and what is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fmopt.cli.app import main
from fmopt.core.errors import CheckpointError, ConfigError
from fmopt.models import checkpoint
from fmopt.models.graphs.description import describe
from fmopt.models.source import resolve
from tests.onnx_models import arrived, by_torchscript, quantized, renamed_labels

pytestmark = pytest.mark.filterwarnings("ignore:.*(came as an ONNX graph|TorchScript|legacy)")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder as optimum writes it: model.onnx, config.json, tokenizer."""
    return arrived(tiny_checkpoint("bert", "text-classification"), tmp_path_factory.mktemp("optimum") / "reviews")


@pytest.fixture
def folder(classifier, tmp_path) -> Path:
    """The same, to change."""
    return Path(shutil.copytree(classifier, tmp_path / "reviews"))


def inspected(model: Path, task: str | None = None, **options):
    return checkpoint.inspect(resolve(str(model), **options), task)


def refused(model: Path, task: str | None = None, **options) -> str:
    with pytest.raises(CheckpointError) as found:
        inspected(model, task, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def changed(path: Path, change) -> Path:
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))
    return path


# ------------------------------------------------------------------------------------------------ what it is, where it lies


def test_a_folder_as_optimum_writes_it(classifier):
    found = inspected(classifier)
    assert found.graph is not None
    assert (found.task, found.pipeline["labels"]) == ("text-classification", ["negative", "neutral", "positive"])
    assert found.pipeline["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert (found.graph.precision, found.graph.classes, found.layers, found.hidden_size) == ("fp32", 3, 2, 32)
    assert found.pipeline["max_length"] == 64
    assert found.parameters > 20_000


def test_the_file_itself_and_the_folder_are_one_model(classifier):
    assert inspected(classifier / "model.onnx").digest == inspected(classifier).digest


def test_transformers_js_keeps_graphs_one_level_down(classifier, tmp_path):
    home = tmp_path / "js"
    (home / "onnx").mkdir(parents=True)
    for path in classifier.iterdir():
        shutil.copy(path, home / ("onnx/model.onnx" if path.suffix == ".onnx" else path.name))
    shutil.copy(home / "onnx/model.onnx", home / "onnx/model_quantized.onnx")
    for given in (home, home / "onnx/model.onnx", home / "onnx/model_quantized.onnx"):
        found = inspected(given)
        assert (found.task, found.source.folder) == ("text-classification", home)
    assert inspected(home).graph.path.name == "model.onnx"
    (home / "onnx/model.onnx").rename(home / "onnx/model_int8.onnx")
    assert "several ONNX graphs (onnx/model_int8.onnx, onnx/model_quantized.onnx)" in refused(home)


def test_a_folder_with_a_network_is_one(tiny_checkpoint, classifier, tmp_path):
    home = Path(shutil.copytree(tiny_checkpoint("bert", "text-classification"), tmp_path / "both"))
    shutil.copy(classifier / "model.onnx", home / "model.onnx")
    assert inspected(home).graph is None


def test_a_graph_alone_with_task_and_tokenizer(classifier, tmp_path):
    path = Path(shutil.copy(classifier / "model.onnx", tmp_path / "mine.onnx"))
    reader = tmp_path / "reader"
    reader.mkdir()
    shutil.copy(classifier / "tokenizer.json", reader / "tokenizer.json")
    for given in (reader, reader / "tokenizer.json"):
        found = inspected(path, "text-classification", tokenizer=str(given))
        assert (found.source.title, found.model_type, found.graph.classes) == ("mine", "onnx", 3)
        assert found.pipeline["labels"] == []  # the data will say
        assert found.pipeline["max_length"] == 64  # found by trying: the table of positions ends there
        assert found.pipeline["padding"]["token"] == "[PAD]"
    (tmp_path / "labels.json").write_text('["bad", "so-so", "good"]')
    named = inspected(path, "text-classification", tokenizer=str(reader))
    assert named.pipeline["labels"] == ["bad", "so-so", "good"]
    assert json.loads((named.folder / "config.json").read_text())["id2label"]["2"] == "good"


def test_names_of_ports_are_mapped(tiny_checkpoint, tmp_path):
    names = {
        "input_ids": "input_ids:0",
        "attention_mask": "input_mask",
        "token_type_ids": "segment_ids",
        "logits": "output_0",
    }
    home = arrived(tiny_checkpoint("bert", "text-classification"), tmp_path / "renamed", names=names)
    found = inspected(home)
    assert dict(found.graph.inputs) == {
        "input_ids": "input_ids:0", "attention_mask": "input_mask", "token_type_ids": "segment_ids",
    }  # fmt: skip
    assert dict(found.graph.outputs) == {"logits": "output_0"}


def test_a_quantized_graph_says_so(tiny_checkpoint, classifier, tmp_path):
    home = tmp_path / "int8"
    quantized(classifier / "model.onnx", home / "model.onnx", tiny_checkpoint("bert", "text-classification"))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(classifier / name, home / name)
    with pytest.warns(UserWarning, match="no full-precision network was there"):
        found = inspected(home)
    assert (found.graph.precision, found.graph.is_full_precision) == ("int8", False)
    again = inspected(home, dequantize=True)
    assert again.graph.is_full_precision
    assert again.digest != found.digest
    assert "folds Q/DQ pairs, and the quantization" in refused(classifier, dequantize=True)


def test_inspect_says_what_a_file_is_also_where_something_lacks(classifier, tmp_path, capsys):
    path = Path(shutil.copy(classifier / "model.onnx", tmp_path / "alone.onnx"))
    found = describe(resolve(str(path)))
    assert "give --task" in found.lacks
    assert found.data()["inputs"]["input_ids"] == {"type": "int64", "axes": ("batch_size", "sequence_length")}
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["graph"]["opset"], shown["graph"]["precision"]) == (14, "fp32")
    assert main(["inspect", str(classifier)]) == 0
    printed = capsys.readouterr().out
    assert "opset 14" in printed
    assert "negative, neutral, positive" in printed


# ------------------------------------------------------------------------------------------------ what is refused


def test_without_a_task(folder):
    (folder / "config.json").unlink()
    assert refused(folder).endswith("says what it is for (config.json with architectures); give --task")


def test_without_a_tokenizer(folder, tmp_path):
    for path in folder.glob("*token*"):
        path.unlink()
    assert f"there is no tokenizer in {folder}" in refused(folder)
    assert "name its folder with --tokenizer" in refused(folder)
    assert "there is no tokenizer" in refused(folder, tokenizer=str(tmp_path / "nowhere"))


def test_a_tokenizer_of_other_words(folder):
    written = json.loads((folder / "tokenizer.json").read_text())
    written["model"]["vocab"]["further"] = 5_000
    (folder / "tokenizer.json").write_text(json.dumps(written))
    assert "ids up to 5000" in refused(folder)


def test_options_of_graphs_alone(tiny_checkpoint):
    plain = str(tiny_checkpoint("bert", "text-classification"))
    with pytest.raises(CheckpointError, match="--tokenizer goes with a model that is an ONNX graph"):
        resolve(plain, tokenizer=plain)
    with pytest.raises(CheckpointError, match="--dequantize goes with"):
        resolve(plain, dequantize=True)


def test_labels_that_are_not_the_graphs(folder):
    renamed_labels(folder)
    (folder / "labels.json").write_text('["good", "bad"]')
    assert "names 2 labels" in refused(folder)
    assert "gives 3 classes" in refused(folder)


@pytest.mark.parametrize("size", [0, 7, 1000, 60_000])
def test_a_file_that_was_cut_off(folder, size):
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[:size])
    said = refused(folder)
    assert "get the file again" in said
    assert "BufferError" not in said


def test_what_is_no_graph(folder):
    (folder / "model.onnx").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 8)
    assert "get the file again" in refused(folder)


def test_a_custom_operator(folder):
    def change(model):
        model.graph.node[-1].domain = "com.example"
        model.graph.node[-1].op_type = "Secret"
        model.opset_import.append(helper.make_opsetid("com.example", 1))

    changed(folder / "model.onnx", change)
    assert "custom operator Secret of the domain com.example" in refused(folder)


def test_a_loop(folder):
    def change(model):
        body = helper.make_graph(
            [helper.make_node("Identity", ["cond"], ["again"])], "body",
            [helper.make_tensor_value_info("turn", TensorProto.INT64, []),
             helper.make_tensor_value_info("cond", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
        )  # fmt: skip
        model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))

    changed(folder / "model.onnx", change)
    assert "has a Loop, whose number of turns" in refused(folder)
    function = helper.make_function("", "Own", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [])
    changed(folder / "model.onnx", lambda model: model.functions.append(function))
    assert "has a Loop, whose number of turns" in refused(folder)  # a function of ONNX's own domain hides none


@pytest.mark.parametrize("dims", [[1 << 62, 1 << 62], [1 << 62] * 300, [-5, 7], [1 << 24]])
def test_a_shape_that_its_bytes_do_not_hold(folder, dims):
    tensor = TensorProto(name="large", data_type=TensorProto.FLOAT, dims=dims)
    changed(folder / "model.onnx", lambda model: model.graph.initializer.append(tensor))
    assert "says that large has the shape" in refused(folder)


@pytest.mark.parametrize("operator", ["Constant", "Identity"])
def test_a_node_that_gives_nothing(folder, operator):
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    node = helper.make_node("Identity", ["logits"], [])
    if operator == "Constant":
        node = helper.make_node("Constant", [], [], value=value)
    changed(folder / "model.onnx", lambda model: model.graph.node.append(node))
    assert "model.onnx cannot be used" in refused(folder)


def test_a_name_that_is_no_text(folder):
    path = changed(folder / "model.onnx", lambda model: model.graph.node.append(helper.make_node("Strange", [], ["z"])))
    path.write_bytes(path.read_bytes().replace(b"Strange", b"St\xff\xfenge"))
    assert "a name that is not UTF-8" in refused(folder)


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/passwd", "a/../../b", "missing.bin"])
def test_weights_elsewhere(folder, place):
    def change(model):
        tensor = max(model.graph.initializer, key=lambda one: one.ByteSize())
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)

    (folder.parent / "weights.bin").write_bytes(bytes(1 << 16))
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    assert "says that weights lie elsewhere" in refused(folder)


def test_weights_beside_it(classifier, folder):
    model = onnx.load(str(folder / "model.onnx"))
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx_data", size_threshold=64
    )
    found = inspected(folder)
    assert found.parameters == inspected(classifier).parameters
    assert found.weight_bytes > 50_000
    target = folder / "model.onnx_data"
    target.rename(folder.parent / "moved")
    target.symlink_to(folder.parent / "moved")
    assert "is a link" in refused(folder)


def test_what_is_no_plain_file(folder):
    (folder / "model.onnx").rename(folder.parent / "outside.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "outside.onnx")
    assert "leads out of the folder" in refused(folder)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    assert "no plain file" in refused(folder)


def test_fixed_axes(tiny_checkpoint, tmp_path):
    home = arrived(tiny_checkpoint("bert", "text-classification"), tmp_path / "fixed", fixed=True)
    said = refused(home)
    assert "input_ids is fixed at [3, " in said
    assert "export the model with dynamic axes" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("past_key_values.0.key", "so it is a decoder with a cache"),
        ("decoder_input_ids", "so it is an encoder and a decoder"),
        ("pixel_values", "so it is a network for images"),
        ("bbox", "takes bbox, which nothing makes of a text"),
    ],
)
def test_inputs_of_other_networks(folder, name, said):
    def change(model):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]))

    changed(folder / "model.onnx", change)
    assert said in refused(folder)


def test_a_task_that_it_is_not_for(classifier):
    assert "gives logits as [batch_size, sequence_length]" in refused(classifier, "token-classification")
    assert "needs start_logits and end_logits" in refused(classifier, "question-answering")
    assert "--task text-generation is not done from ONNX" in refused(classifier, "text-generation")


def test_a_decoder_by_its_configuration(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(folder)
    assert "is for text-generation by its config.json" in said
    assert "give the checkpoint that it was exported from" in said


def test_a_graph_that_takes_one_text_only(tiny_checkpoint, tmp_path):
    """Its axes are called dynamic; inside, it is made for the shape that it was traced with."""
    home = arrived(tiny_checkpoint("bert", "text-classification"), tmp_path / "traced", fixed=True)

    def change(model):
        for value in model.graph.input:
            for number, axis in enumerate(value.type.tensor_type.shape.dim):
                axis.dim_param = ("batch", "tokens")[number]

    changed(home / "model.onnx", change)
    assert "cannot be used" in refused(home)


def test_what_needs_the_network_says_so(classifier):
    for work in (lambda: checkpoint.load(inspected(classifier)), lambda: checkpoint.load_model(classifier)):
        with pytest.raises(CheckpointError, match="without a network; give the checkpoint that it was exported from"):
            work()
    with pytest.raises(CheckpointError, match="training needs the network"):
        checkpoint.inspect(resolve(str(classifier)), fresh_head=True)


def test_the_command_ends_with_2_and_one_line(folder, labelled_csv, capsys):
    (folder / "config.json").unlink()
    assert main(["optimize", str(folder), "--data", str(labelled_csv), "--dry-run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("fmopt: nothing beside")


@pytest.fixture
def labelled_csv(tmp_path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,label\n" + "".join(f"the cat sat {n},{'negative' if n % 2 else 'positive'}\n" for n in range(12))
    )
    return path


def test_an_option_that_there_is_not():
    from fmopt.workflow.job.request import make_request

    with pytest.raises(ConfigError, match="there is no option 'dequantise'"):
        make_request("model.onnx", {"dequantise": True})


def test_an_encoder_whose_vector_is_pooled_in_the_graph(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint("bert", "sentence-embedding")
    path = by_torchscript(folder, tmp_path / "st" / "model.onnx", outputs=("sentence_embedding",))
    shutil.copy(folder / "config.json", path.parent)
    shutil.copy(folder / "tokenizer.json", path.parent)
    found = inspected(path)
    assert (found.task, found.pipeline["pooling"], found.pipeline["outputs"]) == (
        "sentence-embedding", "none", ["sentence_embedding"],
    )  # fmt: skip
