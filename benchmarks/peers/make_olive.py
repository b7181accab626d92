"""Olive's command line: capture the graph, `olive quantize`."""

from __future__ import annotations

from harness import Shell, Variant, main

CAPTURE = "{bin}/olive capture-onnx-graph -m {model} -t feature-extraction -o {out}/captured --disable_telemetry"
QUANTIZE = "{bin}/olive quantize -m {out}/captured/model.onnx --precision int8 --implementation ort --disable_telemetry"
CALIBRATED = " -d json --data_files {calibration} --split train --input_cols text --max_samples 300"
OPTIMIZE = (
    "{bin}/olive optimize -m {model} -t feature-extraction --precision int8 --exporter dynamo_exporter -o {out}/made"
    " --disable_telemetry"
)

VARIANTS = {
    "fp32": Variant(Shell((CAPTURE,)), "onnxruntime", "*.onnx", full_precision=True),
    "quantize_dynamic": Variant(Shell((CAPTURE, QUANTIZE + " -o {out}/made")), "onnxruntime", "made/**/*.onnx"),
    "quantize_static": Variant(
        Shell((CAPTURE, QUANTIZE + " -o {out}/made" + CALIBRATED)), "onnxruntime", "made/**/*.onnx"
    ),
    "optimize": Variant(Shell((OPTIMIZE,)), "onnxruntime", "made/**/*.onnx"),
}

if __name__ == "__main__":
    raise SystemExit(main("olive", VARIANTS))
