"""Olive: capture the graph, `olive quantize` on its command line, and static INT8 by a workflow of its Python call."""

from __future__ import annotations

from harness import Shell, Task, Variant, main

CAPTURE = "{bin}/olive capture-onnx-graph -m {model} -t {task} -o {out}/captured --disable_telemetry"
QUANTIZE = (
    "{bin}/olive quantize -m {out}/captured/model.onnx --precision int8 --implementation ort -o {out}/made"
    " --disable_telemetry"
)
CALIBRATED = " -d json --data_files {calibration} --split train --input_cols {columns} --max_samples 300"


def workflow_static(model: str, task: Task, calibration: str, out: str) -> None:
    """Static INT8 at its defaults, as a workflow: the command line finds no tokenizer for its calibration texts."""
    from olive import run

    data = {
        "name": "calibration",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "json", "data_files": calibration, "split": "train"},
        "pre_process_data_config": {
            "type": "tokenizer_pre_process",
            "model_name": model,
            "input_cols": list(task.columns),
            "is_split_into_words": task.words,
            "max_length": 128,
        },
        "dataloader_config": {"batch_size": 1},
    }
    workflow = {
        "input_model": {"type": "HfModel", "model_path": model, "task": task.pipeline},
        "data_configs": [data],
        "passes": {
            "convert": {"type": "OnnxConversion"},
            "quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"},
        },
        "output_dir": f"{out}/made",
        "no_artifacts": True,
    }
    run(workflow)


VARIANTS = {
    "fp32": Variant(Shell((CAPTURE,)), "onnxruntime", "captured/*.onnx", full_precision=True),
    "quantize_dynamic": Variant(Shell((CAPTURE, QUANTIZE)), "onnxruntime", "made/**/*.onnx"),
    "quantize_static": Variant(Shell((CAPTURE, QUANTIZE + CALIBRATED)), "onnxruntime", "made/**/*.onnx"),
    "workflow_static": Variant(workflow_static, "onnxruntime", "made/**/*.onnx"),
}

if __name__ == "__main__":
    raise SystemExit(main("olive", VARIANTS))
