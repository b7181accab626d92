"""Tiny random checkpoints that read images, and images to read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "deit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2},
    "swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    "segformer": {
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_encoder_blocks": 2,
        "decoder_hidden_size": 32,
        "num_attention_heads": [1, 2],
        "sr_ratios": [2, 1],
        "patch_sizes": [3, 3],
        "strides": [2, 2],
        "mlp_ratios": [2, 2],
    },
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 40, "width": 40},
             "crop_size": {"height": 32, "width": 32}},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36},
               "crop_size": {"height": 32, "width": 32}},
    "swin": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}},
}  # fmt: skip
PROCESSORS["segformer"] = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 32, "width": 32}}
CLASSIFIERS = tuple(name for name in SIZES if name != "segformer")
NAMES = ["round", "striped", "grey"]


def write_vision(folder: Path, family: str, seed: int = 0) -> Path:
    """A random network of `family` for three classes of images of 32 × 32 (or of their pixels), in Hugging Face format."""
    import torch
    import transformers

    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    # DeiT has two classes for this head: the configuration says which
    named = {"architectures": ["DeiTForImageClassification"]} if family == "deit" else {}
    config = transformers.AutoConfig.for_model(
        family, image_size=32, patch_size=4, initializer_range=0.3, **SIZES[family], **labels, **named
    )
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    head = "AutoModelForSemanticSegmentation" if family == "segformer" else "AutoModelForImageClassification"
    getattr(transformers, head).from_config(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return folder


DETECTORS: dict[str, dict[str, Any]] = {
    "yolos": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
              "image_size": [32, 48], "patch_size": 8, "num_detection_tokens": 8, "use_mid_position_embeddings": False},
    "detr": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 8,
             "backbone_config": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 32, 64],
                                 "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage4"]}},
    "rt_detr": {"d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [32, 32, 64], "encoder_ffn_dim": 64,
                "encoder_attention_heads": 4, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 64,
                "decoder_layers": 2, "decoder_attention_heads": 4, "num_queries": 84, "num_denoising": 4,
                "backbone_config": {"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 32, 64],
                                    "depths": [1, 1, 1, 1], "layer_type": "basic",
                                    "out_features": ["stage2", "stage3", "stage4"]}},
}  # fmt: skip
DETECTOR_PROCESSORS = {"yolos": "YolosImageProcessor", "detr": "DetrImageProcessor", "rt_detr": "RTDetrImageProcessor"}


def write_detector(folder: Path, family: str, seed: int = 0) -> Path:
    """A random network of `family` that finds NAMES in images brought to 32 × 48 (RT-DETR: 64 × 64), as a checkpoint."""
    import torch
    import transformers

    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    torch.manual_seed(seed)
    net = transformers.AutoModelForObjectDetection.from_config(
        transformers.AutoConfig.for_model(family, **DETECTORS[family], **labels)
    )
    with torch.no_grad():  # boxes and scores that differ, as a trained network's do
        for name, value in net.named_parameters():
            heads = any(part in name for part in ("class", "bbox", "query", "tokens", "score"))
            if value.ndim > 1:
                torch.nn.init.normal_(value, 0, 0.3) if heads else torch.nn.init.kaiming_normal_(value)
    folder.mkdir(parents=True, exist_ok=True)
    net.eval().save_pretrained(folder)
    size = {"height": 64, "width": 64} if family == "rt_detr" else {"height": 32, "width": 48}
    reported = {"image_processor_type": DETECTOR_PROCESSORS[family], "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(reported))
    return folder


def box_arrays(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures uint8 [count, 32, 48, 3] with one or two bright rectangles (class 0) or dark ones (class 1) each, as the
    arrays of an npz: images, boxes (shares), box_labels, offsets."""
    draw = np.random.default_rng(seed)
    images = np.clip(draw.normal(120, 10, (count, 32, 48, 3)), 0, 255).astype(np.uint8)
    boxes, classes, offsets = [], [], [0]
    for image in images:
        for place in range(int(draw.integers(1, 3))):
            left, top = int(draw.integers(0, 8)) + 24 * place, int(draw.integers(0, 16))
            width, height = draw.integers(10, 16, 2)
            number = int(draw.integers(0, 2))
            image[top : top + height, left : left + width] = 20 if number else 240
            boxes.append([left / 48, top / 32, (left + width) / 48, (top + height) / 32])
            classes.append(number)
        offsets.append(len(boxes))
    return {"images": images, "boxes": np.array(boxes, dtype=np.float32),
            "box_labels": np.array(classes, dtype=np.uint8), "offsets": np.array(offsets, dtype=np.int32)}  # fmt: skip


MASKFORMER: dict[str, Any] = {
    "fpn_feature_size": 32, "mask_feature_size": 32,
    "backbone_config": {"model_type": "swin", "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1],
                        "num_heads": [2, 2, 2, 2], "window_size": 4,
                        "out_features": ["stage1", "stage2", "stage3", "stage4"]},
    "decoder_config": {"model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
                       "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
                       "decoder_attention_heads": 2, "num_queries": 6},
}  # fmt: skip


def write_maskformer(folder: Path, seed: int = 0) -> Path:
    """A random MaskFormer that finds NAMES in images of 32 × 32 by masks, in Hugging Face format."""
    import torch
    import transformers

    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    torch.manual_seed(seed)
    net = transformers.AutoModelForUniversalSegmentation.from_config(
        transformers.AutoConfig.for_model("maskformer", **MASKFORMER, **labels)
    )
    with torch.no_grad():  # masks and classes that differ, as a trained network's do
        for name, value in net.named_parameters():
            if value.ndim > 1:
                heads = any(part in name for part in ("class_predictor", "mask", "quer"))
                torch.nn.init.normal_(value, 0, 0.4) if heads else torch.nn.init.xavier_normal_(value)
    net.eval().save_pretrained(folder)
    reported = {"image_processor_type": "MaskFormerImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(reported))
    return folder


MATCHERS: dict[str, dict[str, Any]] = {"clip": {"projection_dim": 24}, "siglip": {}}
MATCHER_PROCESSORS: dict[str, dict[str, Any]] = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36},
             "crop_size": {"height": 32, "width": 32}},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
}  # fmt: skip


def write_matcher(folder: Path, family: str, seed: int = 0) -> Path:
    """A random network of `family` that says which text fits a image of 32 × 32, as a checkpoint that names no labels. Its
    tokenizer has a token for every byte."""
    import torch
    import transformers

    from fmopt.models.initialization import write_untrained

    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    entry = {
        "task": "zero-shot-image-classification",
        "config": {"model_type": family, **MATCHERS[family], "text_config": {**tower, "max_position_embeddings": 64},
                   "vision_config": {**tower, "image_size": 32, "patch_size": 4}},
        "processor": MATCHER_PROCESSORS[family],
        "tokenizer": {"kind": "bytes"},
    }  # fmt: skip
    made = write_untrained(entry, [], folder.parent, folder.name, seed)
    net = transformers.AutoModel.from_pretrained(made)
    torch.manual_seed(seed)
    with torch.no_grad():  # texts and images that differ, as those of a trained network
        for name, value in net.named_parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, 0, 0.5 if "embedding" in name else 0.2)
            elif name in ("logit_scale", "logit_bias"):
                value.fill_(1.5)
    net.eval().save_pretrained(made)
    if family == "siglip":  # whose tokenizer gives no mask
        reported = json.loads((made / "tokenizer_config.json").read_text()) | {"model_input_names": ["input_ids"]}
        (made / "tokenizer_config.json").write_text(json.dumps(reported))
    made.rename(folder)
    return folder


def image(seed: int = 0, size: tuple[int, int] = (48, 36), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """The file of a made image, `size` as (width, height)."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    written = io.BytesIO()
    coarse.convert(mode).save(written, kind)
    return written.getvalue()


def picture_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of images that can be told apart: bright, dark and middling ones."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % len(NAMES)
        pixels = np.clip(draw.normal(40 + 85 * label, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "PNG")
        rows.append({"image": written.getvalue(), "label": NAMES[label]})
    return rows


def write_pictures(folder: Path, **counts: int) -> Path:
    """So many images in each split, as files in folders that are named after their labels."""
    for split, count in counts.items():
        for number, row in enumerate(picture_rows(count, seed=len(split))):
            home = folder / split / row["label"]
            home.mkdir(parents=True, exist_ok=True)
            (home / f"{number}.png").write_bytes(row["image"])
    return folder


def write_squares(folder: Path) -> Path:
    """Pictures of 32 × 32 with a bright square, whose pixels are class 1, as arrays with their maps."""
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        masks = np.zeros((count, 32, 32), dtype=np.uint8)
        for mask in masks:
            top, left = draw.integers(0, 20, 2)
            mask[top : top + 12, left : left + 12] = 1
        images = np.clip(draw.normal(60 + 130 * masks, 15), 0, 255).astype(np.uint8)
        np.savez(folder / f"{split}.npz", images=images, masks=masks)
    return folder
