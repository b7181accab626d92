"""Speech recognition by an encoder and a decoder (Whisper) of a bundle: sounds as audio.py reads them, texts as seq2seq.py
makes them. A sample is the bytes of an audio file; a prediction is {"text", "tokens"}, with the "language" where it was found
and the "chunks" where times are given. The model's tokenizer.json spells.

A sound longer than the window of the network is read in windows, each beginning where the last segment of the one before
ended by the network's own timestamps (Radford et al., 2022, section 3.8), as `generate` of transformers does it.

A pipeline says under "whisper", by the names that generation_config.json has: lang_to_id (ids by codes), task_to_id (ids by
names), language (a code) and task where the checkpoint has its own, no_timestamps_token_id, timestamp_begin (the first
timestamp), max_initial_timestamp_index,
return_timestamps; and language_names (codes by names in English). What the checkpoint lacks is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import audio, decoding, generation, seq2seq

read_sample, work, timed = audio.read_sample, seq2seq.work, seq2seq.timed

FRAMES_A_STEP = 2  # one of the encoder's two convolutions halves the frames; a timestamp counts what is left


class Preprocessor(audio.Preprocessor):
    """Encodes sounds, and spells what is made of them."""

    def __init__(self, folder: Path, pipeline: Mapping[str, Any]):
        super().__init__(folder, pipeline)
        try:
            import tokenizers

            self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        except ImportError as error:
            raise ValueError("tokenizers is not installed here; pip install tokenizers") from error
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{folder} has no tokenizer.json that can be read: {str(error)[:100]}") from error

    def encode(self, samples: Sequence[bytes], length: int | None = None) -> Any:
        """Arrays of the samples, and how an answer is spelled."""
        batch = super().encode(samples, length)
        batch.decode = self.tokenizer.decode
        return batch

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of what is said in a sound."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)


# -------------------------------------------------------------------------------- how a sound is asked about


@dataclass(frozen=True)
class Question:
    """What is asked of a sound beside how long the answer may be; ValueError for what the model does not know."""

    language: str | None = None  # "en" or "english"; None: the checkpoint's own, else found for each sound
    task: str | None = None  # "transcribe" or "translate"; None: the checkpoint's own
    timestamps: bool | None = None  # tell the time of every segment; None: as the checkpoint says, and in long sounds

    def starts(self, pipeline: Mapping[str, Any], runner: Any, cross: Mapping[str, Any], times: bool) -> np.ndarray:
        """Ids int64 [rows, n] that the answers begin with."""
        rows = len(next(iter(cross.values())))
        settings = pipeline.get("whisper", {})
        if self.language is None and self.task is None:
            start = seq2seq.starts(pipeline, runner, cross, rows)
        else:
            start = self._asked(pipeline, settings, runner, cross, rows)
        quiet = settings.get("no_timestamps_token_id")
        if times:
            start = start[:, :-1] if start[0, -1] == quiet else start
        elif quiet is not None and start[0, -1] != quiet:
            start = np.concatenate([start, np.full((rows, 1), quiet)], axis=1)
        return start

    def _asked(
        self, pipeline: Mapping[str, Any], settings: Mapping[str, Any], runner: Any, cross: Mapping[str, Any], rows: int
    ) -> np.ndarray:
        languages, tasks = settings.get("lang_to_id", {}), settings.get("task_to_id", {})
        if not languages:
            raise ValueError("this model knows one language alone; leave language and task out")
        first = np.full((rows, 1), pipeline["decoder_start_token_ids"][0])
        language = settings.get("language") if self.language is None else language_code(self.language, settings)
        if language is None:
            ids = seq2seq.found_languages(list(languages.values()), runner, cross, first)[:, None]
        else:
            ids = np.full((rows, 1), languages[language])
        task = self.task or settings.get("task") or "transcribe"
        if self.task is not None and task not in tasks:
            raise ValueError(f"the task {task!r} is not known to this model; it knows {', '.join(tasks) or 'none'}")
        return np.concatenate([first, ids, *([np.full((rows, 1), tasks[task])] if task in tasks else [])], axis=1)


def language_code(language: str, settings: Mapping[str, Any]) -> str:
    """The code of a language ("en") that is named by it, by its token or in English; ValueError when a model lacks it."""
    asked, known = language.lower().strip("<|>"), settings["lang_to_id"]
    code: str = settings.get("language_names", {}).get(asked, asked)
    if code not in known:
        raise ValueError(f"the language {language!r} is not known to this model; it knows {', '.join(sorted(known))}")
    return code


class TimestampRule:
    """Timestamps come in pairs that do not go back, the first of them soon, and when they are together likelier than any
    word; see `decoding.OwnRule`."""

    def __init__(self, pipeline: Mapping[str, Any]):
        settings = pipeline["whisper"]
        self.quiet = int(settings["no_timestamps_token_id"])
        self.first = int(settings["timestamp_begin"])
        self.latest = settings.get("max_initial_timestamp_index")
        self.end = int(pipeline["eos_token_id"][0])

    def __call__(self, scores: np.ndarray, made: Sequence[int]) -> None:
        """Scores of one row after the tokens of its answer, changed in place."""
        scores[self.quiet] = -np.inf
        after = [token >= self.first for token in made[-2:]]
        last, before = bool(after and after[-1]), len(after) < 2 or after[-2]
        if last and before:
            scores[self.first :] = -np.inf
        elif last:
            scores[: self.end] = -np.inf
        times = [token for token in made if token >= self.first]
        if times:
            scores[self.first : times[-1] + (0 if last and not before else 1)] = -np.inf
        if not made:
            scores[: self.first] = -np.inf
            if self.latest is not None:
                scores[self.first + int(self.latest) + 1 :] = -np.inf
        logs = decoding.log_softmax(scores)
        words, stamps = logs[: self.first], logs[self.first :]
        highest = stamps.max(initial=-np.inf)
        if highest > -np.inf and highest + np.log(np.exp(stamps - highest).sum()) > words.max():
            scores[: self.first] = -np.inf


# -------------------------------------------------------------------------------- sounds → texts


def heard(
    pipeline: Mapping[str, Any], runner: Any, features: Sequence[np.ndarray], config: Any, question: Question
) -> list[dict[str, Any]]:
    """What is said in each of the sounds of `features` [mels, frames]: {"tokens", "segments", "language"}, a segment being
    (begin, end, ids), in seconds; segments and language None where there are none. Sounds of one window are heard together."""
    settings = pipeline.get("whisper", {})
    short = [number for number, one in enumerate(features) if not in_windows(pipeline, one, question)]
    found: dict[int, dict[str, Any]] = {}
    if short:
        cross = seq2seq.encode(runner, {"input_features": np.stack([features[number] for number in short])})
        start = question.starts(pipeline, runner, cross, False)
        made = seq2seq.decoded(pipeline, runner, cross, start, config)
        stamps = settings.get("timestamp_begin", math.inf)  # which are no words, unasked for or not
        for number, ids, begun in zip(short, made, start.tolist(), strict=True):
            words = [token for token in ids if token < stamps]
            found[number] = {"tokens": words, "segments": None, "language": _language(settings, begun)}
    for number in sorted(set(range(len(features))) - set(short)):
        parts = list(windows(pipeline, runner, features[number], config, question))
        found[number] = {
            "tokens": [token for _, _, ids, _ in parts for token in ids],
            "segments": [(begin, end, ids) for begin, end, ids, _ in parts],
            "language": parts[0][3] if parts else None,
        }
    return [found[number] for number in range(len(features))]


def in_windows(pipeline: Mapping[str, Any], features: np.ndarray, question: Question) -> bool:
    """Whether a sound is read window by window, by timestamps; ValueError for a model that has none where it must."""
    settings, audio_steps = pipeline.get("whisper", {}), pipeline["audio"]
    long = features.shape[1] > audio_steps["frames"]
    times = settings.get("return_timestamps") is True if question.timestamps is None else question.timestamps
    if (long or times) and "timestamp_begin" not in settings:
        if times:
            raise ValueError("this model has no timestamps; leave them out")
        taken, most = (n * audio_steps["hop"] / audio_steps["rate"] for n in (features.shape[1], audio_steps["frames"]))
        raise ValueError(
            f"the sound has {taken:.0f} seconds; the model hears {most:g} at once and has no timestamps that tell where to go "
            "on; cut it into shorter ones"
        )
    return long or times


def windows(
    pipeline: Mapping[str, Any], runner: Any, features: np.ndarray, config: Any, question: Question
) -> Iterator[tuple[float, float, list[int], str | None]]:
    """Segments (begin, end, ids, language) of one sound of any length, times in seconds, window by window."""
    width, steps = int(pipeline["audio"]["frames"]), pipeline["audio"]
    second = steps["rate"] / steps["hop"]  # frames of it
    rule, total, at = TimestampRule(pipeline), features.shape[1], 0
    start: np.ndarray | None = None
    while at < total:
        part = features[:, at : at + width]
        left = part.shape[1]
        padded = np.pad(part, ((0, 0), (0, width - left)))
        cross = seq2seq.encode(runner, {"input_features": padded[None]})
        if start is None:  # one language for all of a sound
            start = question.starts(pipeline, runner, cross, True)
        (ids,) = seq2seq.decoded(pipeline, runner, cross, start, config, own=rule)
        found, moved = segments_of(ids, rule.first, left)
        for begin, end, tokens in found:
            words = [token for token in tokens if token < rule.first]
            yield (at + begin) / second, (at + end) / second, words, _language(pipeline["whisper"], start[0].tolist())
        at += moved if moved > 0 else left  # a window without any progress is left behind


def segments_of(ids: list[int], first: int, frames: int) -> tuple[list[tuple[float, float, list[int]]], int]:
    """The segments in the answer to a window of so many frames, (begin, end, ids) in frames of it, and how many frames are
    done with. Two timestamps in a row end one segment and begin the next; what comes after the last pair is heard again."""
    stamps = [token >= first for token in ids]
    ends = [place + 1 for place in range(len(ids) - 1) if stamps[place] and stamps[place + 1]]
    single = stamps[-2:] == [False, True]
    if not ends:
        last = next((token - first for token in reversed(ids) if token >= first), 0)
        return [
            (0.0, last * FRAMES_A_STEP if last else math.floor(frames / FRAMES_A_STEP) * FRAMES_A_STEP, ids)
        ], frames
    if single:
        ends.append(len(ids))
    else:
        ends[-1] += 1
    found, begun = [], 0
    for number, end in enumerate(ends):
        part = ids[begun:end]
        closing = part[-1] if number < len(ends) - 1 or single else part[-2]
        found.append((float((part[0] - first) * FRAMES_A_STEP), float((closing - first) * FRAMES_A_STEP), part))
        begun = end
    return found, frames if single else (ids[begun - 2] - first) * FRAMES_A_STEP


def _language(settings: Mapping[str, Any], start: Sequence[int]) -> str | None:
    """The code of the language that an answer begins with; None where it names none."""
    codes = {number: code for code, number in settings.get("lang_to_id", {}).items()}
    return codes.get(start[1]) if len(start) > 1 else None


def run(pipeline: Mapping[str, Any], runner: Any, batch: Any, most: int) -> dict[str, Any]:
    """What is heard in the sounds of a batch, at most `most` together: see `heard`."""
    config, found = generation.usual(pipeline), []
    for first in range(0, len(batch.owner), most):
        found += heard(pipeline, runner, batch.features[first : first + most], config, Question())
    return {"heard": found}


def postprocess(
    pipeline: Mapping[str, Any], outputs: Mapping[str, Any], batch: Any, samples: Sequence[Any]
) -> list[dict[str, Any]]:
    """What is said in every sound: {"text", "tokens"}, with "language" and "chunks" where there are any."""
    return [_answer(one, batch.decode) for one in outputs["heard"]]


def _answer(found: Mapping[str, Any], decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> dict[str, Any]:
    made: dict[str, Any] = {
        "text": seq2seq.until(decode(found["tokens"]).strip(), stop),
        "tokens": len(found["tokens"]),
    }
    if found["language"] is not None:
        made["language"] = found["language"]
    if found["segments"] is not None:
        made["chunks"] = [
            {"timestamp": [round(begin, 2), round(end, 2)], "text": decode(ids)}
            for begin, end, ids in found["segments"]
        ]
    return made


def difference(written: Mapping[str, Any], got: Mapping[str, Any]) -> float:
    """The share of words that are not the same, place by place."""
    before, now = written["text"].split(), got["text"].split()
    longest = max(len(before), len(now))
    return 1 - sum(map(str.__eq__, before, now)) / longest if longest else 0.0


def present(
    pipeline: Mapping[str, Any], prediction: Mapping[str, Any], sample: Any, preprocessor: Any
) -> dict[str, Any]:
    """A prediction for people."""
    return dict(prediction)


def answer(
    model: Any, samples: Sequence[Any], *, language: str | None = None, task: str | None = None,
    timestamps: bool | None = None, **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """What is said in sounds, for people: as `postprocess` gives it. See `Question`; `options` are fields of
    `generation.GenerationConfig`, max_new_tokens of a window."""
    batch = model.preprocessor.own.encode(samples)
    config, question = generation.usual(model.pipeline, **options), Question(language, task, timestamps)
    found = heard(model.pipeline, model.runner, batch.features, config, question)
    return [_answer(one, batch.decode, config.stop) for one in found]


def stream(
    model: Any, sample: Any, *, language: str | None = None, task: str | None = None,
    timestamps: bool | None = None, **options: Any,
) -> Iterator[str]:  # fmt: skip
    """What is said in one sound, piece by piece; of a sound that is read in windows, segment by segment."""
    pipeline, question, runner = model.pipeline, Question(language, task, timestamps), model.runner
    config = generation.streamed(pipeline, **options)
    (features,) = model.preprocessor.own.encode([sample]).features
    tokens: Iterator[int]
    if in_windows(pipeline, features, question):
        tokens = (token for _, _, ids, _ in windows(pipeline, runner, features, config, question) for token in ids)
    elif config.beams > 1:
        tokens = iter(heard(pipeline, runner, [features], config, question)[0]["tokens"])
    else:
        cross = seq2seq.encode(runner, {"input_features": features[None]})
        steps = seq2seq.steps(pipeline, runner, cross, question.starts(pipeline, runner, cross, False), config)
        stamps = pipeline.get("whisper", {}).get("timestamp_begin", math.inf)
        tokens = (int(token or 0) for (token,) in steps if int(token or 0) < stamps)
    yield from seq2seq.pieces(model, tokens, config.stop)


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside sounds."""
    seq2seq.add_arguments(parser)
    parser.add_argument("--language", help='of the sound, such as "en" or "english"; by default found in the sound')
    parser.add_argument("--task", help='"transcribe", or "translate" into English')
    parser.add_argument("--timestamps", action="store_true", default=None, help="tell the time of every segment")


def options_of(asked: Any) -> dict[str, Any]:
    """The options in parsed arguments that were given."""
    own = {name: getattr(asked, name) for name in ("language", "task", "timestamps")}
    return {**seq2seq.options_of(asked), **{name: value for name, value in own.items() if value is not None}}
