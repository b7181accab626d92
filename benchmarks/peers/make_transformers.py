"""transformers.exporters with the quantizers they come with, at those quantizers' default options."""

from __future__ import annotations

from harness import Task, Variant, main


def onnx_fp32(model: str, task: Task, calibration: str, out: str) -> None:
    """ONNX as exported."""
    from transformers import AutoTokenizer
    from transformers.exporters import OnnxConfig, OnnxExporter

    example = AutoTokenizer.from_pretrained(model)(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    OnnxExporter().export(net, dict(example), OnnxConfig(dynamic=True)).save_pretrained(out)


def onnx_fused(model: str, task: Task, calibration: str, out: str) -> None:
    """ONNX fused for ONNX Runtime's CPU provider."""
    from transformers import AutoTokenizer
    from transformers.exporters import OnnxConfig, OnnxExporter

    example = AutoTokenizer.from_pretrained(model)(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    OnnxExporter().export(net, dict(example), OnnxConfig(dynamic=True, ort_fusions="cpu")).save_pretrained(out)


def onnx_dynamic(model: str, task: Task, calibration: str, out: str) -> None:
    """ONNX Runtime's dynamic INT8."""
    from transformers import AutoTokenizer
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    example = AutoTokenizer.from_pretrained(model)(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    config = OnnxConfig(dynamic=True, quantizer=OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig()))
    OnnxExporter().export(net, dict(example), config).save_pretrained(out)


def onnx_static(model: str, task: Task, calibration: str, out: str) -> None:
    """ONNX Runtime's static INT8, default options."""
    import json
    from pathlib import Path

    from transformers import AutoTokenizer
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeQuantizer, OnnxRuntimeStaticConfig

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line) for line in Path(calibration).read_text().splitlines()]
    samples = [dict(tokenizer(**text, truncation=True, max_length=256, return_tensors="pt")) for text in texts]
    example = tokenizer(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeStaticConfig(), calibration_dataset=samples)
    OnnxExporter().export(net, dict(example), OnnxConfig(dynamic=True, quantizer=quantizer)).save_pretrained(out)


def onnx_nncf(model: str, task: Task, calibration: str, out: str) -> None:
    """NNCF's post-training INT8 on the ONNX graph."""
    import json
    from pathlib import Path

    from transformers import AutoTokenizer
    from transformers.exporters import NNCFOnnxQuantizer, OnnxConfig, OnnxExporter

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line) for line in Path(calibration).read_text().splitlines()]
    samples = [dict(tokenizer(**text, truncation=True, max_length=256, return_tensors="pt")) for text in texts]
    example = tokenizer(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    config = OnnxConfig(dynamic=True, quantizer=NNCFOnnxQuantizer(calibration_dataset=samples))
    OnnxExporter().export(net, dict(example), config).save_pretrained(out)


def openvino_fp32(model: str, task: Task, calibration: str, out: str) -> None:
    """OpenVINO IR as exported."""
    from transformers import AutoTokenizer
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    example = AutoTokenizer.from_pretrained(model)(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    OpenVINOExporter().export(net, dict(example), OpenVINOConfig(dynamic=True)).save_pretrained(out)


def openvino_nncf(model: str, task: Task, calibration: str, out: str) -> None:
    """NNCF's post-training INT8 on the OpenVINO graph."""
    import json
    from pathlib import Path

    from transformers import AutoTokenizer
    from transformers.exporters import NNCFOpenVINOQuantizer, OpenVINOConfig, OpenVINOExporter

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line) for line in Path(calibration).read_text().splitlines()]
    samples = [dict(tokenizer(**text, truncation=True, max_length=256, return_tensors="pt")) for text in texts]
    example = tokenizer(["an example", "another one"], return_tensors="pt")
    net = task.auto_class().from_pretrained(model).eval()
    config = OpenVINOConfig(dynamic=True, quantizer=NNCFOpenVINOQuantizer(calibration_dataset=samples))
    OpenVINOExporter().export(net, dict(example), config).save_pretrained(out)


VARIANTS = {
    "onnx_fp32": Variant(onnx_fp32, "onnxruntime", "*.onnx", full_precision=True),
    "onnx_fp32_fused": Variant(onnx_fused, "onnxruntime", "*.onnx", full_precision=True),
    "onnx_dynamic": Variant(onnx_dynamic, "onnxruntime", "*.onnx"),
    "onnx_static": Variant(onnx_static, "onnxruntime", "*.onnx"),
    "onnx_nncf": Variant(onnx_nncf, "onnxruntime", "*.onnx"),
    "openvino_fp32": Variant(openvino_fp32, "openvino", "*.xml", full_precision=True),
    "openvino_nncf": Variant(openvino_nncf, "openvino", "*.xml"),
}

if __name__ == "__main__":
    raise SystemExit(main("transformers", VARIANTS))
