"""optimum-onnx: its export, its O2 graph optimization, and its ORTQuantizer presets, dynamic and static."""

from __future__ import annotations

from harness import Task, Variant, main


def fp32(model: str, task: Task, calibration: str, out: str) -> None:
    """The export as it is."""
    model_class = task.ort_class()
    model_class.from_pretrained(model, export=True).save_pretrained(out)


def o2(model: str, task: Task, calibration: str, out: str) -> None:
    """Graph optimization O2: basic and extended fusions, transformer-specific ones too."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    exported = task.ort_class().from_pretrained(model, export=True)
    ORTOptimizer.from_pretrained(exported).optimize(AutoOptimizationConfig.O2(), save_dir=out)


def dynamic_avx2(model: str, task: Task, calibration: str, out: str) -> None:
    """Dynamic INT8, the preset for AVX2."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    exported = task.ort_class().from_pretrained(model, export=True)
    ORTQuantizer.from_pretrained(exported).quantize(AutoQuantizationConfig.avx2(is_static=False), save_dir=out)


def dynamic_avx512_vnni(model: str, task: Task, calibration: str, out: str) -> None:
    """Dynamic INT8, the preset for AVX-512 VNNI."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    exported = task.ort_class().from_pretrained(model, export=True)
    ORTQuantizer.from_pretrained(exported).quantize(AutoQuantizationConfig.avx512_vnni(is_static=False), save_dir=out)


def static_avx2(model: str, task: Task, calibration: str, out: str) -> None:
    """Static INT8, the preset for AVX2, min-max calibration, as in the documentation's example."""
    from datasets import load_dataset
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = load_dataset("json", data_files=calibration, split="train")
    rows = texts.map(lambda row: tokenizer(**row, truncation=True, max_length=256), remove_columns=texts.column_names)
    config = AutoQuantizationConfig.avx2(is_static=True, per_channel=False)
    exported = task.ort_class().from_pretrained(model, export=True)
    quantizer = ORTQuantizer.from_pretrained(exported)
    ranges = quantizer.fit(rows, AutoCalibrationConfig.minmax(rows), operators_to_quantize=config.operators_to_quantize)
    quantizer.quantize(config, save_dir=out, calibration_tensors_range=ranges)


VARIANTS = {
    "fp32": Variant(fp32, "onnxruntime", "model.onnx", full_precision=True),
    "O2": Variant(o2, "onnxruntime", "model_optimized.onnx", full_precision=True),
    "dynamic_avx2": Variant(dynamic_avx2, "onnxruntime", "model_quantized.onnx"),
    "dynamic_avx512_vnni": Variant(dynamic_avx512_vnni, "onnxruntime", "model_quantized.onnx"),
    "static_avx2": Variant(static_avx2, "onnxruntime", "model_quantized.onnx"),
}

if __name__ == "__main__":
    raise SystemExit(main("optimum_onnx", VARIANTS))
