"""The model card of a bundle: README.md with the metadata that model hubs read, what was measured, and how it is run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fmopt.core import escaping
from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.evaluation.record import Record, as_displayed, drop_unit, percentile, value_of
from fmopt.exporters.bundles.bundle_readme import readme
from fmopt.reports.html import metrics, text_of
from fmopt.tasks.base import find_task

# As the hub spells them: https://huggingface.co/docs/hub/repositories-licenses. Any other is "other" with a name.
HUB_LICENCES = frozenset([
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "gemma", "unknown",
])  # fmt: skip
LIBRARIES = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "torch": "transformers",
}  # the hub's names; others are theirs
METRIC_TYPES = {
    "spearman": "spearmanr",
    "error_rate": "wer",
}  # the hub's names of formulas that it knows by another one


def model_card(
    metadata: CheckpointMetadata, artifact: Artifact, manifest: Mapping[str, Any], record: Record | None, *,
    licence: str, base_model: str | None, golden: str,
) -> str:  # fmt: skip
    """The text of README.md: metadata in YAML, what the bundle is and how it is run, what was measured and how.

    `record` is that of the bundle, None where nothing was measured. `golden` says where the items of its self-test come from.
    Nothing of a bundle, record or option stands in it as markup.
    """
    stated = metadata.source.licence
    licensed = replace(metadata, source=replace(metadata.source, licence=licence))
    body = readme(
        licensed, artifact, escaping.markdown(manifest["verdict"]), manifest["model_file"],
        page="index.html" in manifest["files"], golden=escaping.markdown(golden),
    ).replace("Licence of the original model", "Licence")  # fmt: skip
    if stated and stated != licence:
        body += f"The model that it was made from is under {escaping.markdown(stated)}.\n"
    told = None if record is None else as_displayed(record)
    winner = told.winning if told else None
    measured = text_of(
        "model_card.md.j2",
        {
            "record": told,
            "winner": winner,
            "reference": told.fastest_full_precision if told else None,
            "metrics": metrics(told.fastest_full_precision, winner) if told else [],
            "drop_unit": drop_unit(record) if record else "pt",
            "percentiles": [percentile(winner.latency, q) for q in (50, 90, 99)] if winner else [],
        },
    )
    return f"---\n{_front_matter(metadata, artifact, manifest, record, licence, base_model)}\n---\n\n{body}{measured}"


def licence_fields(stated: str) -> dict[str, Any]:
    """A licence as the hub's metadata has it: one of its own names, or "other" and a name."""
    plain = re.sub(r"\s+", "-", escaping.one_line(stated)).lower()
    return {"license": plain} if plain in HUB_LICENCES else {"license": "other", "license_name": plain}


def _front_matter(
    metadata: CheckpointMetadata, artifact: Artifact, manifest: Mapping[str, Any], record: Record | None, licence: str,
    base_model: str | None,
) -> str:  # fmt: skip
    from huggingface_hub import ModelCardData

    task = find_task(metadata.task)
    tag = task.name if task.pipeline_tag is None else task.pipeline_tag
    precision = str(manifest["recipe"].get("precision", "fp32"))
    origin: dict[str, Any] = {"base_model": base_model, "base_model_relation": "quantized"} if base_model else {}
    tags = ["fmopt", artifact.runtime, escaping.one_line(precision), escaping.one_line(metadata.model_type)]
    results = [] if record is None else _results(record, tag or task.name)
    data = ModelCardData(
        **licence_fields(licence), **origin, pipeline_tag=tag or None, tags=tags,
        library_name=LIBRARIES.get(artifact.runtime, artifact.runtime),
        model_name=escaping.one_line(metadata.source.title), eval_results=results or None,
    )  # fmt: skip
    return str(data.to_yaml())


def _results(record: Record, task: str) -> list[Any]:
    """What was measured on labels, split by split; likeness to the baseline is no result on a data set."""
    from huggingface_hub import EvalResult

    winner = record.winning
    if winner is None:
        return []
    name = escaping.one_line(record.data.get("name") or "the user's data")
    return [
        EvalResult(
            task_type=task, dataset_type=re.sub(r"[^\w./-]+", "-", name), dataset_name=name, dataset_split=split,
            metric_type=METRIC_TYPES.get(scores.metric, re.sub(r"\W+", "_", scores.name.lower()).strip("_")),
            metric_name=f"{escaping.one_line(scores.name)} of {len(scores.values):,} items",
            metric_value=round(value_of(scores), 6),
        )
        for split, found in (("test", winner.test_scores), ("validation", winner.scores if not winner.test_scores else []))
        for scores in found
        if not scores.against_baseline
    ]  # fmt: skip
