"""Texts as transformers' own tokenizer and the task's own pipeline read them, compared with what a bundle makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.edge.loading import run_batch
from fmopt.edge.text import postprocess, present
from fmopt.exporters.parity.text_reference import TextReference, bundle_encoded, short
from fmopt.tasks.base import Output, find_task

LONGEST = 512  # tokens of a probe whose answer is compared; longer ones are compared by their tokens
TOLERANCE = 2e-3  # of shares and, relative to their size, of numbers
COSINE = 0.9999


def text_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in tokens, then in answers; nothing for a task without a reference here, or a folder of whose tokenizer
    transformers makes nothing."""
    task = find_task(served.metadata.task)
    answer = ANSWERS.get(task.output) if task.modality == "text" and task.edge_part is None else None
    reference = TextReference.of(served.metadata, net)
    if answer is None or reference is None:
        return
    probes = [*samples, *reference.probes(task.output)]
    for sample in probes:
        if isinstance(sample, list):  # words of a data set: which tokens they are is a matter of training
            continue
        yield from reference.token_difference(served, sample)
    for sample in probes:
        encoded = None if isinstance(sample, list) else reference.encoded(sample)
        if encoded is None or not 0 < len(encoded["input_ids"]) <= LONGEST:
            continue
        batch = bundle_encoded(served.preprocessor, sample)
        if batch is None or len(batch.owner) > 1:  # refused, or read in windows
            continue
        pipeline = served.metadata.pipeline
        outputs = run_batch(pipeline, served.runner, batch, 1)
        (got,) = postprocess(pipeline, outputs, batch, [sample])
        problem = answer(reference, encoded, got, present(pipeline, got, sample, served.preprocessor), sample)
        if problem:
            yield f"of {short(sample)} {problem}"


# ------------------------------------------------------------------------------------------------ answers, task by task


def _vector(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """As sentence-transformers' encode: Pooling by its own file, Normalize, the first dimensions."""
    import torch

    outputs = ref.outputs(encoded)
    pooled = getattr(outputs, "sentence_embedding", None)
    if pooled is not None:  # of a received graph
        return _same_vector(pooled[0].float().numpy(), got)
    hidden = outputs.last_hidden_state[0].float()
    home = ref.files.home
    modules = ref.files.read(home / "modules.json", list) or []
    places = {str(one.get("type", "")).rpartition(".")[2]: one.get("path", "") for one in modules}
    config = (ref.files.read(home / places["Pooling"] / "config.json") or {}) if "Pooling" in places else {}
    causal = str((ref.config.get("architectures") or [""])[0]).endswith("ForCausalLM") and not modules
    modes = (
        config.get("pooling_mode")
        or [key for key in _LEGACY if config.get(key)]
        or (["lasttoken"] if causal else ["mean"])
    )
    kept = hidden
    if config.get("include_prompt") is False and ref.prompt:
        ids = ref.tokenizer(ref.prompt)["input_ids"]
        kept = hidden[len(ids) - (ids[-1] in ref.tokenizer.all_special_ids) :]
    weights = torch.arange(len(hidden) - len(kept) + 1, len(hidden) + 1).float()[:, None]
    made = {
        "cls": lambda: kept[0], "max": lambda: kept.amax(0), "mean": lambda: kept.mean(0),
        "mean_sqrt_len_tokens": lambda: kept.sum(0) / len(kept) ** 0.5,
        "weightedmean": lambda: (kept * weights).sum(0) / weights.sum(), "lasttoken": lambda: kept[-1],
    }  # fmt: skip
    vector = torch.cat([made[_LEGACY.get(mode, mode)]() for mode in ([modes] if isinstance(modes, str) else modes)])
    if "Normalize" in places:
        vector = vector / vector.norm()
    return _same_vector(vector[: ref.dimensions].numpy(), got)


def _same_vector(theirs: np.ndarray, got: np.ndarray) -> str | None:
    if theirs.shape != got.shape:
        return f"the vector has {got.size} numbers, by encode() {theirs.size}"
    cosine = float(theirs @ got / max(np.linalg.norm(theirs) * np.linalg.norm(got), 1e-12))
    if cosine < COSINE or abs(np.linalg.norm(got) - np.linalg.norm(theirs)) > TOLERANCE * np.linalg.norm(theirs):
        lengths = f"{np.linalg.norm(got):.4g} and {np.linalg.norm(theirs):.4g}"
        return f"the vector has a cosine of {cosine:.5f} to that of encode(), their lengths are {lengths}"
    return None


_LEGACY = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def _classes(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """As transformers' text-classification pipeline: a sigmoid for each label of several, else a softmax."""
    logits = ref.outputs(encoded).logits[0].float()
    kind = ref.config.get("problem_type")
    made = {"multi_label_classification": logits.sigmoid(), "regression": logits}
    theirs = made.get(str(kind), logits.softmax(-1)).numpy()
    gap = float(np.abs(np.array(list(shown["scores"].values())) - theirs).max())
    return None if gap <= TOLERANCE else f"a score is off by {gap:.3g} from the pipeline's own"


def _number(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """As CrossEncoder.predict where it wrote the folder, else as transformers' pipeline: one output is a share, unless it was
    trained to be a number."""
    logit = float(ref.outputs(encoded).logits.float().ravel()[0])
    own = ref.files.read(ref.files.home / "config_sentence_transformers.json") or {}
    named = (ref.config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or ref.config.get("sbert_ce_default_activation_function") or own.get("activation_fn")
    share = str(named).endswith("Sigmoid") if named else ref.config.get("problem_type") is None
    theirs = 1 / (1 + np.exp(-logit)) if share else logit
    gap = abs(theirs - float(shown))
    return (
        None
        if gap <= TOLERANCE * max(1.0, abs(theirs))
        else f"the number is {shown:.4g}, by its own pipeline {theirs:.4g}"
    )


def _tags(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """Each entity given must be what the network says at its first token, and what follows "O" must not be given."""
    logits = ref.outputs(encoded).logits[0].float().numpy()
    labels = {int(number): str(name) for number, name in ref.net.config.id2label.items()}
    for entity in shown:
        first = (i for i, (start, end) in enumerate(encoded["offset_mapping"]) if start <= entity["start"] < end)
        at = next(first, None)
        if at is None:  # a word whose first character is no part of a token
            continue
        theirs = labels[int(logits[at].argmax())]
        if theirs[2:] != entity["entity"] and theirs != entity["entity"]:
            return f"{entity['text']!r} is said to be {entity['entity']!r}, by the network {theirs!r}"
    return None


def _fills(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """As transformers' fill-mask pipeline: the likeliest tokens at a mask."""
    places = [place for place, number in enumerate(encoded["input_ids"]) if number == ref.tokenizer.mask_token_id]
    if not places:
        return None
    theirs = ref.outputs(encoded).logits[0, places].float().log_softmax(-1).numpy()
    gap = float(np.abs(np.exp(theirs) - np.exp(got)).max()) if theirs.shape == got.shape else float("inf")
    return None if gap <= TOLERANCE else f"a token's share at a mask is off by {gap:.3g} from the pipeline's own"


def _span(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """The best start and end in the context, at most so many tokens apart; each where the text itself has it."""
    if shown["text"] != sample[1][shown["start"] : shown["end"]]:
        return f"the answer {shown['text']!r} is not what the context has at its offsets"
    outputs = ref.outputs(encoded)
    start, end = (side[0].float().numpy() for side in (outputs.start_logits, outputs.end_logits))
    inside = [place for place, part in enumerate(encoded["parts"]) if part == 1]
    if not inside or not shown["text"]:
        return None
    offsets = encoded["offset_mapping"]
    best = max(start[i] + end[j] for i in inside for j in inside if i <= j < i + 30)
    given = shown["text"].strip()
    ours = [
        start[i] + end[j]
        for i in inside
        for j in inside
        if i <= j < i + 30 and sample[1][offsets[i][0] : offsets[j][1]].strip() == given
    ]
    if not ours or best - max(ours) > TOLERANCE * max(1.0, abs(float(best))):
        return f"the answer {shown['text']!r} is not the likeliest by the network's own logits"
    return None


ANSWERS: Mapping[Output, Callable[..., str | None]] = {
    Output.VECTOR: _vector,
    Output.CLASSES: _classes,
    Output.NUMBER: _number,
    Output.TAGS: _tags,
    Output.MASKED_WORDS: _fills,
    Output.SPAN: _span,
}
