"""OpenVINO with NNCF, by their own documented calls: convert, quantize after training, save."""

from __future__ import annotations

from harness import Task, Variant, main


def fp32(model: str, task: Task, calibration: str, out: str) -> None:
    """The converted graph as it is."""
    import openvino as ov
    from transformers import AutoTokenizer

    net = task.auto_class().from_pretrained(model).eval()
    example = AutoTokenizer.from_pretrained(model)("an example", return_tensors="pt")
    ov.save_model(ov.convert_model(net, example_input=dict(example)), f"{out}/model.xml", compress_to_fp16=False)


def int8(model: str, task: Task, calibration: str, out: str) -> None:
    """Post-training INT8, model type TRANSFORMER, everything else at its default."""
    import json
    from pathlib import Path

    import nncf
    import openvino as ov
    from transformers import AutoTokenizer

    net = task.auto_class().from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    example = dict(tokenizer("an example", return_tensors="pt"))
    converted = ov.convert_model(net, example_input=example)
    texts = [json.loads(line) for line in Path(calibration).read_text().splitlines()]
    samples = [dict(tokenizer(**text, truncation=True, max_length=256, return_tensors="np")) for text in texts]
    quantized = nncf.quantize(converted, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantized, f"{out}/model.xml", compress_to_fp16=False)


def weights_int8(model: str, task: Task, calibration: str, out: str) -> None:
    """Weights in INT8, computing in floating point: for size."""
    import nncf
    import openvino as ov
    from transformers import AutoTokenizer

    net = task.auto_class().from_pretrained(model).eval()
    example = AutoTokenizer.from_pretrained(model)("an example", return_tensors="pt")
    compressed = nncf.compress_weights(ov.convert_model(net, example_input=dict(example)))
    ov.save_model(compressed, f"{out}/model.xml", compress_to_fp16=False)


VARIANTS = {
    "openvino_fp32": Variant(fp32, "openvino", "model.xml", full_precision=True),
    "int8": Variant(int8, "openvino", "model.xml"),
    "weights_int8": Variant(weights_int8, "openvino", "model.xml"),
}

if __name__ == "__main__":
    raise SystemExit(main("nncf", VARIANTS))
