"""Texts as transformers' own tokenizer and the task's own pipeline read them, compared with what a bundle makes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.edge.loading import run_batch
from fmopt.edge.parts import EdgeError
from fmopt.edge.text import postprocess, present
from fmopt.models.checkpoint_files import read_json
from fmopt.models.preprocessors.tokenizer import FILES, NO_LIMIT, own_tokenizer
from fmopt.models.sentence_transformers import is_reranker

# Made for trouble: case, accents, scripts without blanks, vowel signs, joined emoji, blanks, signs.
TEXTS = (
    "The Quick BROWN fox Jumps",
    "Crème brûlée, naïve façade: ÀÉÎÕÜ ß Ǆ ﬁ",
    "我在北京大学工作,天气好。",
    "ภาษาไทยไม่มีเว้นวรรค",
    "السَّلامُ عَلَيْكُمْ يا صديقي",
    "वह दिल्ली में रहता है।",
    "👩‍👩‍👧‍👦 fine 👍🏽 ❤️",
    "  blanks\tand\r\nlines\u00a0 ",
    "don't U.S. e-mail: a.b@c.de, #tag (1,234.5 %)",
    "",
)
PAIRS = (("Who wrote IT?", "The Captain wrote the book."), ("a", "Größe 北京 👍🏽"))
LONGEST = 512  # tokens of a probe whose answer is compared; longer ones are compared by their tokens
MOST_WORDS = 3_000  # of the longest probe, three tokens each or more
MOST_ADDED = 6  # added tokens that are tried inside a text
TOLERANCE = 2e-3  # of shares and, relative to their size, of numbers
COSINE = 0.9999


def text_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in tokens, then in answers; nothing for a task without a reference here, or a folder of whose tokenizer
    transformers makes nothing."""
    answer = ANSWERS.get(served.metadata.task)
    reference = TextReference.of(served.metadata, net)
    if answer is None or reference is None:
        return
    probes = [*samples, *reference.probes(served.metadata.task)]
    for sample in probes:
        if isinstance(sample, list):  # words of a data set: which tokens they are is a matter of training
            continue
        yield from reference.token_difference(served, sample)
    for sample in probes:
        encoded = None if isinstance(sample, list) else reference.encoded(sample)
        if encoded is None or not 0 < len(encoded["input_ids"]) <= LONGEST:
            continue
        batch = _encoded(served.preprocessor, sample)
        if batch is None or len(batch.owner) > 1:  # refused, or read in windows
            continue
        pipeline = served.metadata.pipeline
        outputs = run_batch(pipeline, served.runner, batch, 1)
        (got,) = postprocess(pipeline, outputs, batch, [sample])
        problem = answer(reference, encoded, got, present(pipeline, got, sample, served.preprocessor), sample)
        if problem:
            yield f"of {_short(sample)} {problem}"


class TextReference:
    """A checkpoint as transformers and sentence-transformers read it, from its own files."""

    def __init__(self, folder: Path, home: Path, tokenizer: Any, net: Any, pipeline: Mapping[str, Any]) -> None:
        self.net, self.home, self.pipeline = net, home, pipeline
        self.config: dict[str, Any] = read_json(folder / "config.json", dict) or {}
        sentence = read_json(home / "config_sentence_transformers.json", dict) or {}
        settings: dict[str, Any] = next(
            filter(None, (read_json(f / "sentence_bert_config.json", dict) for f in (folder, home))), {}
        )
        embeds = pipeline["task"] == "sentence-embedding" or is_reranker(home, self.config)
        named = sentence.get("default_prompt_name")
        self.prompt = str((sentence.get("prompts") or {}).get(named) or "") if embeds and named else ""
        self.dimensions = sentence.get("truncate_dim")
        self.tokenizer = _lower_cased(tokenizer) if embeds and settings.get("do_lower_case") else tokenizer
        limit = (settings.get("max_seq_length") if embeds else None) or tokenizer.model_max_length
        # A limit beyond the position table would end in an error, and none at all there too.
        self.limit = int(min(limit if limit < NO_LIMIT else pipeline["max_length"], pipeline["max_length"]))

    @classmethod
    def of(cls, metadata: CheckpointMetadata, net: Any) -> TextReference | None:
        """That of a checkpoint; None where transformers makes no tokenizer of its folder."""
        home = metadata.origin or metadata.folder
        places = (place for place in (home, metadata.folder) if any((place / name).is_file() for name in FILES))
        tokenizer = own_tokenizer(next(places, metadata.folder))
        return None if tokenizer is None else cls(metadata.folder, home, tokenizer, net, metadata.pipeline)

    def probes(self, task: str) -> Iterator[Any]:
        """Samples made for trouble, as the task reads them."""
        rows = self.net.get_input_embeddings().weight.shape[0]
        added = [token.content for number, token in self.tokenizer.added_tokens_decoder.items() if number < rows]
        texts = [
            *TEXTS,
            *(f"a {token} b{token}" for token in added[-MOST_ADDED:]),
            "word Größe 7 " * min(self.limit, MOST_WORDS),
        ]
        if task == "question-answering":
            yield from (("Who wrote IT?", text) for text in texts[:-1] if text.strip())
        elif task == "fill-mask":
            yield from (f"{text} {self.tokenizer.mask_token} x" for text in texts[:-1])
        else:
            yield from texts
        if task in ("text-classification", "text-regression"):
            yield from PAIRS
            yield texts[-1], texts[-1]

    def encoded(self, sample: Any) -> dict[str, list[int]] | None:
        """What the tokenizer gives for a text or a pair; None where it cannot be cut as the tokenizer is asked to."""
        pair = None
        if isinstance(sample, tuple):
            sample, pair = sample
        text = self.prompt + sample
        strategy: Any = "only_second" if self.pipeline["task"] == "question-answering" else True
        try:
            found = self.tokenizer(text, pair, truncation=strategy, max_length=self.limit, return_offsets_mapping=True)
        except Exception:  # a question as long as the limit
            return None
        return {**found, "parts": found.sequence_ids(0)}

    def token_difference(self, served: Any, sample: Any) -> Iterator[str]:
        """The first token that differs, named; or token types that only one side gives."""
        theirs = self.encoded(sample)
        if theirs is None:
            return
        batch = _encoded(served.preprocessor, sample)
        if batch is None or (self.pipeline["task"] == "question-answering" and len(batch.owner) > 1):
            return
        row = -1 if self.tokenizer.truncation_side == "left" else 0
        used = batch.mask[row].astype(bool)
        ours = batch.inputs["input_ids"][row][used].tolist()
        if ours != theirs["input_ids"]:
            yield f"of {_short(sample)} {_first_difference(ours, theirs['input_ids'], self.tokenizer)}"
            return
        types = np.array(theirs.get("token_type_ids") or np.zeros(len(ours), dtype=int))
        given = batch.inputs.get("token_type_ids")
        listens = getattr(self.net.config, "type_vocab_size", 0) > 1
        if listens and not np.array_equal(types, types * 0 if given is None else given[row][used]):
            yield f"of {_short(sample)} the token types are others than the tokenizer's own"

    def outputs(self, encoded: Mapping[str, Any]) -> Any:
        """The network's own outputs for one encoded sample."""
        import inspect

        import torch

        known = inspect.signature(self.net.forward).parameters
        names = [name for name in self.tokenizer.model_input_names if name in encoded and name in known]
        with torch.inference_mode():
            return self.net(**{name: torch.tensor([encoded[name]]) for name in names})


# ------------------------------------------------------------------------------------------------ answers, task by task


def _vector(ref: TextReference, encoded: Mapping[str, Any], got: Any, shown: Any, sample: Any) -> str | None:
    """As sentence-transformers' encode: Pooling by its own file, Normalize, the first dimensions."""
    import torch

    hidden = ref.outputs(encoded).last_hidden_state[0].float()
    modules = read_json(ref.home / "modules.json", list) or []
    places = {str(one.get("type", "")).rpartition(".")[2]: one.get("path", "") for one in modules}
    config = (
        (read_json(ref.home / places.get("Pooling", "") / "config.json", dict) or {}) if "Pooling" in places else {}
    )
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
    theirs = vector[: ref.dimensions].numpy()
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
    own = read_json(ref.home / "config_sentence_transformers.json", dict) or {}
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
    """Each entity told must be what the network says at its first token, and what follows "O" must not be told."""
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
    told = shown["text"].strip()
    ours = [
        start[i] + end[j]
        for i in inside
        for j in inside
        if i <= j < i + 30 and sample[1][offsets[i][0] : offsets[j][1]].strip() == told
    ]
    if not ours or best - max(ours) > TOLERANCE * max(1.0, abs(float(best))):
        return f"the answer {shown['text']!r} is not the likeliest by the network's own logits"
    return None


ANSWERS: Mapping[str, Callable[..., str | None]] = {
    "sentence-embedding": _vector,
    "text-classification": _classes,
    "text-regression": _number,
    "token-classification": _tags,
    "fill-mask": _fills,
    "question-answering": _span,
}


def _lower_cased(tokenizer: Any) -> Any:
    """The tokenizer with a normalizer for lower case before its own, as sentence-transformers puts it there."""
    from tokenizers.normalizers import Lowercase, Sequence

    made = copy.deepcopy(tokenizer)
    own = made.backend_tokenizer.normalizer
    made.backend_tokenizer.normalizer = Sequence([Lowercase(), *([] if own is None else [own])])
    return made


def _encoded(preprocessor: Any, sample: Any) -> Any:
    """The sample as a bundle encodes it; None for one that it refuses, which is an answer too."""
    try:
        return preprocessor.encode([sample])
    except EdgeError:
        return None


def _first_difference(ours: Sequence[int], theirs: Sequence[int], tokenizer: Any) -> str:
    if len(ours) != len(theirs) and (ours[: len(theirs)] == theirs or theirs[: len(ours)] == list(ours)):
        return f"{len(ours)} tokens are read, by its own tokenizer {len(theirs)}"
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    mine, other = (
        tokenizer.convert_ids_to_tokens(side[at]) if at < len(side) else "nothing"
        for side in (list(ours), list(theirs))
    )
    return f"token {at + 1} is {mine!r}, by its own tokenizer {other!r}"


def _short(sample: Any) -> str:
    text = sample if isinstance(sample, str) else " | ".join(sample)
    return repr(text if len(text) <= 40 else text[:39] + "…")
