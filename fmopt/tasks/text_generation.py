"""Text generation: how a text goes on, judged by how likely the model finds real texts (perplexity)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.model import TOKENIZER, CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.generation import TextScores
from fmopt.edge.text import Preprocessor
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column


class TextGeneration(Task):
    """Log-probabilities of a text's tokens, each given those before it: P(w_t | w_1 … w_t-1)."""

    name = "text-generation"
    auto_class = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    columns: Mapping[str, tuple[str, ...]] = {"text": ("text", "sentence", "passage", "content", "document", "code")}
    needed = (("text",),)
    output = Output.NEXT_WORDS
    usage = Usage('"a beginning"', "how it goes on; --max-new-tokens, --temperature, --stream and more: see --help")
    priority = 1  # GPT2LMHeadModel ends like a plain encoder
    label_is_optional = True  # what comes next in a text is its own label

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row; a text is its own label."""
        return [Item(number, row["text"]) for number, row in enumerate(rows)]

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Perplexity over all tokens together; greedy agreement with the baseline and KL divergence from it.

        Agreement is the share of places in a text at which both would go on with the same token. The divergence is that
        of the distributions after a text's last token, in nats.
        """
        reference = [TextScores.of(prediction) for prediction in predictions]
        surprise = [[-float(one.logs.sum(dtype=np.float64)), float(len(one.logs))] for one in reference]
        found = [Scores(name="perplexity", metric="perplexity", values=surprise, primary=True)]
        if baseline is not None:
            pairs = list(zip((TextScores.of(prediction) for prediction in baseline), reference, strict=True))
            same = [float(np.mean(old.greedy == new.greedy)) if len(old.greedy) else 1.0 for old, new in pairs]
            apart = [divergence(old.following, new.following) for old, new in pairs]
            found += [
                Scores(name="greedy agreement", metric="mean", values=column(same), against_baseline=True),
                Scores(name="KL to baseline", metric="lower_mean", values=column(apart), against_baseline=True),
            ]
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Texts that would go on with another token; those that became least likely first."""
        tokenizer = Preprocessor(metadata.folder / TOKENIZER, metadata.pipeline).tokenizer
        found = []
        for index, (new, old) in enumerate(zip(predictions, baseline, strict=True)):
            after, before = TextScores.of(new), TextScores.of(old)
            was, now = (int(one.following.argmax()) for one in (before, after))
            if was != now:
                harm = float(before.logs.mean() - after.logs.mean()) if len(after.logs) else 0.0
                old_word, new_word = (tokenizer.decode([word], skip_special_tokens=False) for word in (was, now))
                found.append(Change(index, old_word, new_word, harm))
        return found


def divergence(before: np.ndarray, after: np.ndarray) -> float:
    """KL(before ‖ after) in nats of two vectors of log-probabilities."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    return float((np.exp(before) * (before - after)).sum())


TASK = TextGeneration()
