"""A checkpoint's texts as transformers' own tokenizer reads them, and its network: what a bundle's answers are compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.edge.errors import EdgeError
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.tokenizer import FILES, NO_LIMIT, own_tokenizer
from fmopt.models.sentence_transformers import is_reranker
from fmopt.tasks.base import Output, output_of

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
MOST_WORDS = 3_000  # of the longest probe, three tokens each or more
MOST_ADDED = 6  # added tokens that are tried inside a text


class TextReference:
    """A checkpoint as transformers and sentence-transformers read it, from its own files."""

    def __init__(self, files: CheckpointFiles, tokenizer: Any, net: Any, pipeline: Mapping[str, Any]) -> None:
        self.net, self.files, self.pipeline, self.config = net, files, pipeline, files.config
        places = (files.folder, files.home)
        sentence = files.read(files.home / "config_sentence_transformers.json") or {}
        settings: dict[str, Any] = next(
            filter(None, (files.read(place / "sentence_bert_config.json") for place in places)), {}
        )
        self.asks = output_of(pipeline) is Output.SPAN
        embeds = output_of(pipeline) is Output.VECTOR or is_reranker(files)
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
        files = CheckpointFiles(metadata.folder, home)
        return None if tokenizer is None else cls(files, tokenizer, net, metadata.pipeline)

    def probes(self, output: Output) -> Iterator[Any]:
        """Samples made for trouble, as a task with such outputs reads them."""
        rows = self.net.get_input_embeddings().weight.shape[0]
        added = [token.content for number, token in self.tokenizer.added_tokens_decoder.items() if number < rows]
        texts = [
            *TEXTS,
            *(f"a {token} b{token}" for token in added[-MOST_ADDED:]),
            "word Größe 7 " * min(self.limit, MOST_WORDS),
        ]
        if output is Output.SPAN:
            yield from (("Who wrote IT?", text) for text in texts[:-1] if text.strip())
        elif output is Output.MASKED_WORDS:
            yield from (f"{text} {self.tokenizer.mask_token} x" for text in texts[:-1])
        else:
            yield from texts
        if output in (Output.CLASSES, Output.NUMBER):
            yield from PAIRS
            yield texts[-1], texts[-1]

    def encoded(self, sample: Any) -> dict[str, list[int]] | None:
        """What the tokenizer gives for a text or a pair; None where it cannot be cut as the tokenizer is asked to."""
        pair = None
        if isinstance(sample, tuple):
            sample, pair = sample
        text = self.prompt + sample
        strategy: Any = "only_second" if self.asks else True
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
        batch = bundle_encoded(served.preprocessor, sample)
        if batch is None or (self.asks and len(batch.owner) > 1):
            return
        row = -1 if self.tokenizer.truncation_side == "left" else 0
        used = batch.mask[row].astype(bool)
        ours = batch.inputs["input_ids"][row][used].tolist()
        if ours != theirs["input_ids"]:
            yield f"of {short(sample)} {_first_difference(ours, theirs['input_ids'], self.tokenizer)}"
            return
        types = np.array(theirs.get("token_type_ids") or np.zeros(len(ours), dtype=int))
        given = batch.inputs.get("token_type_ids")
        listens = getattr(self.net.config, "type_vocab_size", 0) > 1
        if listens and not np.array_equal(types, types * 0 if given is None else given[row][used]):
            yield f"of {short(sample)} the token types are others than the tokenizer's own"

    def inputs(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """What the network takes of one encoded sample: tensors [1, tokens] by name."""
        import inspect

        import torch

        known = inspect.signature(self.net.forward).parameters
        names = [name for name in self.tokenizer.model_input_names if name in encoded and name in known]
        return {name: torch.tensor([encoded[name]]) for name in names}

    def outputs(self, encoded: Mapping[str, Any]) -> Any:
        """The network's own outputs for one encoded sample."""
        import torch

        with torch.inference_mode():
            return self.net(**self.inputs(encoded))


def _lower_cased(tokenizer: Any) -> Any:
    """The tokenizer with a normalizer for lower case before its own, as sentence-transformers puts it there."""
    from tokenizers.normalizers import Lowercase, Sequence

    made = copy.deepcopy(tokenizer)
    own = made.backend_tokenizer.normalizer
    made.backend_tokenizer.normalizer = Sequence([Lowercase(), *([] if own is None else [own])])
    return made


def bundle_encoded(preprocessor: Any, sample: Any) -> Any:
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


def short(sample: Any) -> str:
    """A text or a pair as a message names it."""
    text = sample if isinstance(sample, str) else " | ".join(sample)
    return repr(text if len(text) <= 40 else text[:39] + "…")
