"""Texts that are made token by token, as `generate` of transformers makes them, compared with those of a bundle.

The tokens that are read, the tokens that are made and how these are spelled are compared, with the checkpoint's own settings and
without sampling. Where two tokens are equally likely to within rounding, either is right, and what follows is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmopt.core.media.audio import wav_file
from fmopt.core.model import makes_answers
from fmopt.edge import generation, loading, seq2seq, whisper
from fmopt.edge.audio import read_audio, resample
from fmopt.edge.errors import EdgeError
from fmopt.exporters.parity.text_reference import TextReference, short
from fmopt.models.loading import quiet
from fmopt.tasks.base import output_of

ITEMS = 2  # of the data
NEW_TOKENS = 16  # made of each
LONGEST_START = 4  # tokens that an answer to a sound begins with: start, language, task, no times
FEATURES = 1e-2  # of a sound's features, on average, which lie between about -1 and 1
TIE = 1e-3  # of scores or, relative to their size, of larger ones: two that are closer are equally likely
PROMPTS = ("The Quick BROWN fox Jumps", "Crème brûlée: 北京 👍🏽")


def generated_text_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in tokens read, tokens made and their spelling; nothing where transformers cannot generate with the network, or
    makes no tokenizer of its folder."""
    reference = TextReference.of(served.metadata, net)
    if reference is None or not _generates(net):
        return
    for sample in [*samples, *reference.probes(output_of(served.metadata.pipeline))]:
        yield from reference.token_difference(served, sample)
    model = loading.Model({"pipeline": dict(served.metadata.pipeline)}, served.preprocessor, served.runner)
    for sample in [*samples[:ITEMS], *PROMPTS]:
        encoded = reference.encoded(sample)
        if encoded is None or not encoded["input_ids"]:
            continue
        try:
            made = _made(model, sample)
        except (EdgeError, ValueError):  # refused, which is an answer too: a prompt that fills the context
            continue
        problem = _difference(reference, encoded, made, model.pipeline)
        if problem:
            yield f"of {short(sample)} {problem}"


def heard_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in the words that an encoder and a decoder hear in sounds, one of which may be longer than the network's
    window; nothing where transformers cannot generate with the network."""
    import transformers

    if not _generates(net):
        return
    folder = served.metadata.folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    model = loading.Model({"pipeline": dict(served.metadata.pipeline)}, served.preprocessor, served.runner)
    rate = int(model.pipeline["audio"]["rate"])
    half = model.pipeline["audio"]["frames"] * model.pipeline["audio"]["hop"] // 2  # of the window
    tone = np.round(np.sin(np.arange(min(half, 2 * rate)) * 0.3) * 9000).astype(np.int16)
    most = seq2seq.room(model.pipeline, LONGEST_START, generation.usual(model.pipeline, max_new_tokens=NEW_TOKENS))
    asked = False
    for number, sample in enumerate([*samples[:ITEMS], wav_file(tone, {"sample_rate": rate})], start=1):
        (features,) = served.preprocessor.encode([sample]).features
        if whisper.in_windows(model.pipeline, features, whisper.Question()):
            continue  # windows are cut by timestamps, which a token that is equally likely moves
        heard, given = read_audio(sample)
        sound = np.asarray(resample(heard, given, rate), dtype=np.float32)
        inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")["input_features"]
        gap = float(np.abs(inputs[0].numpy() - features).mean())
        if gap > FEATURES:
            yield f"the features of item {number} are off by {gap:.3g} from its own extractor's"
        if asked:  # a network of this kind takes seconds to read a whole window
            continue
        asked = True
        with quiet(transformers.utils.logging):  # of lengths and settings that are asked for here
            ids = net.generate(inputs, do_sample=False, max_new_tokens=most)[0].tolist()
        wanted = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        got = str(model(sample, max_new_tokens=most)["text"])
        words = [token for token in ids if token not in tokenizer.all_special_ids]
        if got != wanted and not _heard_alike(served, net, inputs, features, words):
            yield f"item {number} is heard as {got!r:.80}, by its own generate() as {wanted!r:.80}"


def _heard_alike(served: Any, net: Any, inputs: Any, features: np.ndarray, wanted: Sequence[int]) -> bool:
    """Whether what a bundle hears in the `features` of a sound parts from `wanted` at tokens that are equally likely."""
    import torch

    pipeline = served.metadata.pipeline
    config, question = generation.usual(pipeline, max_new_tokens=NEW_TOKENS), whisper.Question()
    ours = whisper.heard(pipeline, served.runner, [features], config, question)[0]["tokens"]
    cross = seq2seq.encode(served.runner, {"input_features": features[None]})
    start = question.starts(pipeline, served.runner, cross, False)[0].tolist()
    at = next((i for i, (a, b) in enumerate(zip(ours, wanted, strict=False)) if a != b), min(len(ours), len(wanted)))
    with torch.inference_mode():
        logits = net(inputs, decoder_input_ids=torch.tensor([[*start, *ours[:at]]])).logits[0, -1].float()
    ends = list(pipeline["eos_token_id"])
    return ours != wanted and _tied(logits, *(list(ids[at : at + 1]) or ends for ids in (ours, wanted)))


def _generates(net: Any) -> bool:
    import transformers

    return isinstance(net, transformers.PreTrainedModel) and net.can_generate()


@dataclass(frozen=True)
class BundleAnswer:
    """A bundle's answer: the ids that it begins with, those that were made, how many might have been, and its text."""

    begin: list[int]
    tokens: list[int]
    room: int
    text: str


def _made(model: loading.Model, sample: str) -> BundleAnswer:
    pipeline, config = model.pipeline, generation.usual(model.pipeline, max_new_tokens=NEW_TOKENS)
    text = str(model(sample, max_new_tokens=NEW_TOKENS)["text"])
    if makes_answers(pipeline):
        inputs = seq2seq.encoded(model, [sample])
        ((start, ours),) = seq2seq.with_starts(pipeline, model.runner, inputs, config)
        return BundleAnswer(start, ours, seq2seq.room(pipeline, len(start), config), text)
    prompt = generation.prompt_ids(model, sample)
    if config.beams > 1:
        ours = generation.likeliest(model.runner, prompt, pipeline, config)
    else:
        steps = generation.continuations(model.runner, [prompt], pipeline, config)
        ours = [token for (token,) in steps if token is not None]
    return BundleAnswer(prompt, ours, generation.room_of(prompt, pipeline, config), text)


def _difference(
    reference: TextReference, encoded: Mapping[str, Any], made: BundleAnswer, pipeline: Mapping[str, Any]
) -> str | None:
    """What tells the answer of a bundle from that of the network's own `generate`; None for nothing."""
    import transformers

    beams, tokenizer = int(pipeline.get("num_beams", 1)), reference.tokenizer
    asked = {"do_sample": False, "max_new_tokens": made.room, "num_return_sequences": beams}
    with quiet(transformers.utils.logging):  # of lengths and settings that are asked for here
        theirs = reference.net.generate(
            **reference.inputs(encoded), **asked, return_dict_in_generate=True, output_scores=True
        )
    rows = [_without_end(row[len(made.begin) :], pipeline) for row in theirs.sequences.tolist()]
    ours, wanted = made.tokens, rows[0]
    if ours == wanted:
        prompt = [] if makes_answers(pipeline) else made.begin
        before = len(tokenizer.decode(prompt, skip_special_tokens=True))
        text = tokenizer.decode([*prompt, *wanted], skip_special_tokens=True)[before:].strip()
        return None if text == made.text.strip() else f"{made.text!r:.60} is said, by its own tokenizer {text!r:.60}"
    at = next((i for i, (a, b) in enumerate(zip(ours, wanted, strict=False)) if a != b), min(len(ours), len(wanted)))
    if beams > 1:
        best = theirs.sequences_scores[0]
        tied = ours in [row for row, score in zip(rows, theirs.sequences_scores, strict=True) if best - score <= TIE]
    else:
        step = len(made.begin) + at - (theirs.sequences.shape[1] - len(theirs.scores))
        ends = list(pipeline["eos_token_id"])
        tied = _tied(theirs.scores[step][0], *(ids[at : at + 1] or ends for ids in (ours, wanted)))
    if tied:
        return None
    mine, other = (tokenizer.convert_ids_to_tokens(ids[at]) if at < len(ids) else "the end" for ids in (ours, wanted))
    return f"token {at + 1} of the answer is {mine!r}, by its own generate() {other!r}"


def _tied(scores: Any, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the best of some tokens is as likely as the best of others, by scores [vocabulary]."""
    first, second = (float(scores[list(ids)].max()) for ids in (one, other))
    return abs(first - second) <= TIE * max(1.0, abs(first), abs(second))


def _without_end(ids: Sequence[int], pipeline: Mapping[str, Any]) -> list[int]:
    """The ids of an answer up to the token that ends it."""
    ends, words = pipeline["eos_token_id"], pipeline.get("kept_eos_token_id", ())
    at = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: at + (at < len(ids) and ids[at] in words)])
