"""Fill mask: the word that belongs where a text holds the mask token, as in pretraining (Devlin et al., 2018)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import TOKENIZER, CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.text import Preprocessor
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

EDGE_TOKENS = 2  # at the end of what is read: a mask may shift by a token, and must not fall off


class FillMask(Task):
    """Log-probabilities over the vocabulary at every mask.

    A passage gives one item: one of its words is masked, chosen by the passage's own text, so that every variant and
    every run is asked for the same one.
    """

    name = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM", "ForPreTraining")
    columns: Mapping[str, tuple[str, ...]] = {"text": ("text", "sentence", "passage", "content", "document")}
    needed = (("text",),)
    output = Output.MASKED_WORDS
    usage = Usage('"a {mask} in a text"', "the likeliest tokens there")
    in_browser = True
    priority = -1  # a pretrained encoder is asked for its vectors far more often than for words
    learns_labels = False  # other tokens are masked in every epoch

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row, its label the id of the token that was masked.

        Masked are whole words that are one token, so that the label is one; a row without any gives no item. Rows that
        hold the mask themselves are taken as they are, without a label. DataError when only some do, or none has a word.
        """
        mask = metadata.pipeline["mask"]["token"]
        holding = [mask in row["text"] for row in rows]
        if all(holding):
            return [Item(number, row["text"]) for number, row in enumerate(rows)]
        if any(holding):
            raise DataError(
                f"row {holding.index(True) + 1} holds {mask} itself while others do not; mask a word in every row, or none"
            )
        tokenizer = _tokenizer(metadata)
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        items = []
        for number, row in enumerate(rows):
            text = row["text"]
            words = _words(_encoded(tokenizer, text, number), text, int(metadata.pipeline["max_length"]), special)
            if words:
                token, start, end = words[_draw(text) % len(words)]
                items.append(Item(number, text[:start] + mask + text[end:], token))
        if rows and not items:
            raise DataError(f"none of {len(rows)} texts has a word that is one token of this vocabulary to be masked")
        return items

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Pseudo-perplexity and accuracy of the masked words; agreement with the baseline and KL divergence from it.

        Pseudo-perplexity is that of Salazar et al. (2020), here over one masked word of each passage instead of over
        all of its tokens, one after the other.
        """
        found = []
        if labelled(items):
            surprise = [[-float(got[0, item.label]), 1.0] for got, item in zip(predictions, items, strict=True)]
            right = [got[0].argmax() == item.label for got, item in zip(predictions, items, strict=True)]
            found = [
                Scores(name="pseudo-perplexity", metric="perplexity", values=surprise, primary=True),
                Scores(name="accuracy@1", metric="mean", values=column(right)),
            ]
        if baseline is not None:
            pairs = list(zip(baseline, predictions, strict=True))
            same = [np.array_equal(old.argmax(axis=1), new.argmax(axis=1)) for old, new in pairs]
            found += [
                Scores(
                    name="agreement with baseline", metric="mean", values=column(same),
                    against_baseline=True, primary=not found,
                ),
                Scores(
                    name="KL to baseline", metric="lower_mean", values=column(_divergence(*pair) for pair in pairs),
                    against_baseline=True,
                ),
            ]  # fmt: skip
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts with another likeliest word at a mask; those that lost most of the right word's probability first."""
        decode, found = _tokenizer(metadata).decode, []
        for index, (item, new, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            before, after = ([int(token) for token in part.argmax(axis=1)] for part in (old, new))
            if before != after:
                known = item.label is not None
                harm = float(np.exp(old[0, item.label]) - np.exp(new[0, item.label])) if known else 0.0
                reference = decode([item.label]).strip() if known else None
                old_words, new_words = (" / ".join(decode([t]).strip() for t in part) for part in (before, after))
                found.append(Change(index, old_words, new_words, harm, reference))
        return found


def _tokenizer(metadata: CheckpointMetadata) -> Tokenizer:
    """The tokenizer as served, reading texts to their end."""
    made = Preprocessor(metadata.folder / TOKENIZER, metadata.pipeline).tokenizer
    made.no_truncation()
    return made


def _encoded(tokenizer: Tokenizer, text: str, row: int) -> Encoding:
    try:
        return tokenizer.encode(text)
    except (TypeError, ValueError, UnicodeError) as error:  # half of a surrogate pair, as JSON can write one
        raise DataError(f"row {row + 1} has a text that cannot be encoded: {text[:40]!r}; remove or mend it") from error


def _words(encoding: Encoding, text: str, limit: int, special: set[int]) -> list[tuple[int, int, int]]:
    """Tokens among the first `limit` that are a whole word of letters: id, and where the word is in the text."""
    found = []
    for token, (start, end) in zip(encoding.ids[: limit - EDGE_TOKENS], encoding.offsets, strict=False):
        word = text[start:end].lstrip()  # byte-level tokens may carry the space before
        begin = end - len(word)
        part = _in_a_word(text[begin - 1 : begin]) or _in_a_word(text[end : end + 1])
        if word.isalpha() and not part and token not in special:
            found.append((token, begin, end))
    return found


def _in_a_word(character: str) -> bool:
    return character.isalnum() or character in ("'", "’", "_")


def _draw(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf8", "surrogatepass")).digest()[:8], "big")


def _divergence(before: np.ndarray, after: np.ndarray) -> float:
    """KL(baseline ‖ candidate) in nats, the mean over the masks of an item."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    return float((np.exp(before) * (before - after)).sum(axis=1).mean())


TASK = FillMask()
