"""A bundle as its files and as an opened model: checked, tested on its golden items, answering."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, last_line, shorten
from .files import (
    file_bytes,
    is_left,
    leave,
    marker_of,
    printable,
    read_json,
    require_signed,
    tried_apart,
)
from .host import INT8_DOT, available_cores, host_fingerprint, isa_features, package_version, too_old
from .manifest import (
    GOLDEN,
    SIGNED_WITHOUT,
    whole_manifest,
)
from .parts import Pipeline, Sample, distance_of, explained, like_lengths, part_of
from .runners import RUNNERS, mixes_rows, open_runner, takes_batches
from .text import open_preprocessor, postprocess, present, read_sample

# Texts that are answered together, token by token: tokens at most, and how many of them may be padding.
DECODED_TOKENS, DECODED_PADDING = 1024, 0.5
# A graph that was never opened on this machine is tried in a process of its own first: so long, and with so much memory.
TRY_SECONDS, TRY_SECONDS_PER_MB = 20.0, 0.5
TRY_MEMORY_MB, TRY_MEMORY_PER_CORE_MB, TRY_MEMORY_TIMES = 1600, 64, 8


class Model:
    """An opened bundle: samples in, predictions out."""

    def __init__(self, metadata: Mapping[str, Any], preprocessor: Any, runner: Any):
        self.metadata = metadata
        self.pipeline: Pipeline = metadata["pipeline"]
        self.preprocessor = preprocessor
        self.runner = runner
        self.between_calls: dict[str, Any] = {}  # what the task's part keeps, by names of its own

    def predict(self, samples: Sequence[Sample], batch_size: int = 1) -> list[Any]:
        """Predictions as they are judged; see `postprocess`. EdgeError says which item cannot be read.

        Warns when several are asked for at once of a network that gives an item another answer beside others.
        """
        if batch_size > 1 and len(samples) > 1 and self.mixes_rows:
            warnings.warn(self._mixing(), stacklevel=2)
        found: list[Any] = []
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            with numbered(range(start, start + len(part))):
                batch = self.preprocessor.encode(part)
            found += self._answered(range(start, start + len(part)), batch, samples, batch_size)
        return found

    def predict_all(self, samples: Sequence[Sample]) -> list[Any]:
        """Predictions of many samples, those of like length at once, where that changes none of them; else one by one."""
        if not hasattr(self.preprocessor, "batches") or self.mixes_rows or not takes_batches(self.runner):
            return Model.predict(self, samples)
        found: list[Any] = [None] * len(samples)
        for indices, batch in self.preprocessor.batches(samples):
            for index, one in zip(indices, self._answered(indices, batch, samples, len(batch.owner)), strict=True):
                found[index] = one
        return found

    def _answered(self, indices: Sequence[int], batch: Any, samples: Sequence[Sample], most: int) -> list[Any]:
        """Predictions of one batch of samples."""
        part = [samples[index] for index in indices]
        outputs = run_batch(self.pipeline, self.runner, batch, most)
        try:
            return list(postprocess(self.pipeline, outputs, batch, part))
        except EdgeError:
            if len(part) == 1 < len(samples):
                with numbered(indices):
                    raise
            if len(part) > 1:
                for index in indices:  # which of them it is
                    with numbered([index]):
                        Model.predict(self, [samples[index]])
            raise

    @property
    def mixes_rows(self) -> bool:
        """Whether an answer depends on what is beside it in a batch: scales of a whole batch, or padding that leaks in."""
        return mixes_rows(self.runner) or bool(self.pipeline.get("no_padding"))

    def _mixing(self) -> str:
        measured = self.metadata.get("invariance") or {}
        by = f", by up to {measured['batched']:.2g} ({measured['distance']}) when it was made" if measured else ""
        return (
            f"in a batch of this model an item's answer depends on what is beside it{by}; "
            "batch_size=1, and model([…]), keep them apart"
        )

    def soonest(self, samples: Sequence[Sample]) -> Any:
        """What a latency from input to answer is taken of: the predictions, or the first piece of answers made in pieces."""
        part = part_of(self.pipeline)
        if not hasattr(part, "soonest"):
            return self.predict(samples, len(samples))
        with explained():
            return part.soonest(self, samples)

    def __call__(self, sample: Any, **options: Any) -> Any:
        """What people read, for one sample or, given a list, for each of its samples (so a list of words goes in a list).

        A `pathlib.Path` stands for the bytes of that file. `options` are what the task's part takes, such as max_new_tokens.
        Several threads may call one model at once.
        """
        samples = [
            file_bytes(one) if isinstance(one, Path) else one
            for one in (sample if isinstance(sample, list) else [sample])
        ]
        shown = self._shown(samples, options)
        return shown if isinstance(sample, list) else shown[0]

    def _shown(self, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[Any]:
        part = part_of(self.pipeline)
        if not samples:
            return []
        if hasattr(part, "answer"):
            return self._written(part, samples, options)
        if options:
            raise EdgeError(f"{self.pipeline['task']} takes no {', '.join(options)}")
        made = self.predict_all(samples)
        return [present(self.pipeline, *pair, self.preprocessor) for pair in zip(made, samples, strict=True)]

    def _written(self, part: Any, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[Any]:
        """Answers that a part makes itself: to texts of like length together where that changes none, else one by one."""
        together = hasattr(self.preprocessor, "rows") and takes_batches(self.runner) and not self.mixes_rows
        indices = [[index] for index in range(len(samples))]
        if together and len(samples) > 1:
            lengths = [sum(map(len, windows)) for windows in self.preprocessor.rows(samples)]
            # A step of decoding reads all weights, whatever the rows, so that more padding pays off.
            indices = like_lengths(lengths, DECODED_TOKENS, DECODED_PADDING)
        found: list[Any] = [None] * len(samples)
        for group in indices:
            with numbered(group if len(samples) > 1 else ()), explained():
                made = list(part.answer(self, [samples[index] for index in group], **options))
            for index, one in zip(group, made, strict=True):
                found[index] = one
        return found

    def stream(self, sample: Any, **options: Any) -> Generator[Any, None, Any]:
        """The answer to one sample in pieces, as they are made; EdgeError for a task that answers at once. Returns how the answer
        ended ("stop" or "length"), where the part says it."""
        part = part_of(self.pipeline)
        if not hasattr(part, "stream"):
            raise EdgeError(f"{self.pipeline['task']} answers at once; there is nothing to stream")
        with explained():
            return (yield from part.stream(self, sample, **options))

    def answers(self, arguments: Sequence[Any], **options: Any) -> tuple[list[Any], list[str]]:
        """What people read for each argument of a command, None for one that cannot be read; and a line for each of those."""
        shown, problems = [], []
        for number, argument in enumerate(arguments, start=1):
            try:
                sample = read_sample(self.pipeline, argument)
                shown += self._shown([sample], options)
            except EdgeError as error:
                shown.append(None)
                problems.append(f"item {number}: {str(error).removeprefix('item 1: ')}")
        return shown, problems

    def close(self) -> None:
        """Give back memory and threads."""
        self.runner.close()


@contextmanager
def numbered(indices: Sequence[int]) -> Iterator[None]:
    """An EdgeError about one of some samples says its number among all of a call, of which these are the indices."""
    try:
        yield
    except EdgeError as error:
        found = re.match(r"item (\d+): ", str(error))
        place = int(found[1]) - 1 if found else 0
        if place >= len(indices) or (found is None and len(indices) > 1):
            raise
        text = str(error)[found.end() :] if found else str(error)
        raise EdgeError(f"item {indices[place] + 1}: {text}") from error


def run_batch(pipeline: Pipeline, runner: Any, batch: Any, most: int) -> Mapping[str, Any]:
    """The outputs `postprocess` reads, of at most `most` rows at once."""
    run = getattr(part_of(pipeline), "run", None)
    if run is None:
        return run_rows(runner, batch.inputs, most)
    with explained():
        return dict(run(pipeline, runner, batch, most))


def timed_inputs(pipeline: Pipeline, runner: Any, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Inputs of the call whose latency matters, made of those of whole samples: for text generation one step of decoding."""
    part = part_of(pipeline)
    return part.timed(runner, inputs) if hasattr(part, "timed") else inputs


def timed_call(pipeline: Pipeline, runner: Any, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """What a latency is taken of, made of inputs of whole samples: one call of the runner, or what the task's part says."""
    part = part_of(pipeline)
    if hasattr(part, "work"):
        return lambda: part.work(runner, inputs)
    call = timed_inputs(pipeline, runner, inputs)
    return lambda: runner.run(call)


def run_rows(runner: Any, inputs: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Run at most `most` rows at once: a long text has many windows, and memory is for `most`."""
    rows = len(next(iter(inputs.values())))
    if rows <= most:
        return dict(runner.run(inputs))
    parts = [runner.run({k: v[i : i + most] for k, v in inputs.items()}) for i in range(0, rows, most)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON that keeps a pair, a list of words and bytes apart."""
    if isinstance(sample, str):
        return {"text": sample}
    if isinstance(sample, bytes):
        return {"bytes": base64.b64encode(sample).decode("ascii")}
    return {"pair": list(sample)} if isinstance(sample, tuple) else {"words": list(sample)}


def sample_from_json(written: Any) -> Sample:
    """The inverse of `sample_to_json`; EdgeError for what it never wrote."""
    kind, value = next(iter(written.items())) if isinstance(written, Mapping) and len(written) == 1 else ("", None)
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "bytes" and isinstance(value, str):
        with explained("bytes"):
            return base64.b64decode(value, validate=True)
    if kind in ("pair", "words") and isinstance(value, list) and all(isinstance(one, str) for one in value):
        if kind == "words":
            return value
        if len(value) == 2:
            return value[0], value[1]
    raise EdgeError(f"{shorten(printable(written))} is no text, pair of texts, list of words or file")


def prediction_to_json(prediction: Any) -> Any:
    """A prediction as JSON; arrays keep six decimals, far below any tolerance."""
    if isinstance(prediction, np.ndarray):
        return np.round(prediction.astype(np.float64), 6).tolist()
    return prediction


def difference(written: Any, got: Any) -> float:
    """Largest absolute difference of two predictions; an answer elsewhere in its context counts 1, a NaN infinity."""
    if isinstance(written, Mapping):
        same = all(written[key] == got[key] for key in ("text", "start", "end"))
        return abs(written["score"] - got["score"]) if same else 1.0
    before, now = np.asarray(written, dtype=np.float64), np.asarray(got, dtype=np.float64)
    if before.shape != now.shape:
        return float("inf")
    gap = np.abs(before - now)
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def read_golden(folder: Path) -> tuple[list[Sample], list[Any], float, str | None]:
    """Golden samples, their predictions, how far others may be from these, and by which distance; EdgeError when unreadable."""
    golden = read_json(folder, GOLDEN)
    items, tolerance = golden.get("items"), golden.get("tolerance")
    fit = isinstance(items, list) and all(isinstance(item, dict) and "prediction" in item for item in items)
    if not fit or type(tolerance) not in (int, float) or not 0 <= tolerance < float("inf"):
        raise EdgeError(f"{Path(folder) / GOLDEN} holds no golden items, or no tolerance")
    try:
        samples = [sample_from_json(item.get("raw")) for item in items]
    except EdgeError as error:
        raise EdgeError(f"{Path(folder) / GOLDEN}: {error}") from error
    distance = golden.get("distance")
    return (
        samples,
        [item["prediction"] for item in items],
        float(tolerance),
        None if distance is None else str(distance),
    )


def self_test(folder: Path, model: Model) -> tuple[float, float]:
    """(largest difference to the golden predictions, tolerance); EdgeError when it is outside the tolerance."""
    samples, written, tolerance, distance = read_golden(folder)
    # Bundles made before distances were named hold absolute differences.
    earlier = getattr(part_of(model.pipeline), "difference", difference)
    gap = distance_of(model.pipeline)[1] if distance else earlier
    made = model.predict(samples)
    with explained(f"{Path(folder) / GOLDEN} holds no predictions of this model; it"):
        worst = float(max(map(gap, written, made), default=0.0))
    if not worst <= tolerance:
        unit = f" ({distance})" if distance else ""
        raise EdgeError(
            f"{folder} computes something else here than where it was judged: golden predictions differ by up to "
            f"{worst:.3g}{unit}, allowed is {tolerance:.3g}; optimize the model again on this machine"
        )
    return worst, tolerance


def load(
    folder: str | Path,
    threads: int | None = None,
    opener: Callable[[str, Path, Mapping[str, Any], int], Any] = open_runner,
    *,
    trust: str | Path | None = None,
) -> Model:
    """Open a bundle: hashes are verified, and on a machine it has not run on before its golden items too.

    With `trust`, a public key or an issuer's certificate (PEM), the bundle must be signed by it; see `require_trusted`.

    `threads`: by default as many as it was judged with; where it was not, every core this process may use. Warns when the CPU
    lacks a feature that the graph was judged with. EdgeError when the bundle is damaged, or its predictions are outside the
    tolerance here.
    """
    folder = Path(folder)
    if trust is not None:
        require_trusted(folder, Path(trust))
    metadata = whole_manifest(folder)
    for warning in isa_warnings(metadata, isa_features()):
        warnings.warn(warning, stacklevel=2)
    known = is_known_here(metadata)
    if not known:
        require_tried(folder, metadata, threads)
    model = open_model(folder, metadata, threads, opener)
    if not known:
        self_test(folder, model)
        remember(metadata)
    return model


def require_trusted(folder: Path, trust: Path) -> None:
    """EdgeError unless a bundle is signed by what `trust` holds: a public key, or the certificate of an issuer."""
    by_certificate = b"BEGIN CERTIFICATE" in file_bytes(trust)
    require_signed(folder, SIGNED_WITHOUT, **{"trust" if by_certificate else "key": trust})


def require_tried(folder: Path, metadata: Mapping[str, Any], threads: int | None = None) -> None:
    """Run a bundle's golden items in a process with limits of time and memory; EdgeError with what went wrong there.

    Its graph may never come to an end, may ask for all memory, or make its runtime crash. Only for runtimes that this file
    opens by itself.
    """
    if metadata["runtime"] not in RUNNERS:
        return
    megabytes = sum(entry["bytes"] for entry in metadata["files"].values()) / 1e6
    memory = TRY_MEMORY_MB + TRY_MEMORY_PER_CORE_MB * (os.cpu_count() or 1) + TRY_MEMORY_TIMES * megabytes
    words = ["self-test", "--memory", str(int(memory)), *(["--threads", str(threads)] if threads else [])]
    wrong = tried_apart(_own_command(folder, words), TRY_SECONDS + TRY_SECONDS_PER_MB * megabytes)
    if wrong is not None:
        raise EdgeError(wrong if str(folder) in wrong else f"{folder} cannot be used: {wrong}")


def _own_command(folder: Path, words: Sequence[str]) -> list[str]:
    """A command line that does what run.py does with a bundle, by this very code: that of fmopt, or of the bundle it is in."""
    home, package = Path(__file__).resolve().parents, str(__package__)
    if package.startswith("fmopt_bundle_"):
        root, named = [], f"get('runpy').run_path({str(home[1] / 'run.py')!r})['package']()"
    else:
        root, named = [str(home[package.count(".") + 1])], repr(package)
    code = (
        f"import sys; sys.path[:] = [*{root!r}, *sys.argv.pop(1).split(chr(10))]; from importlib import import_module as get\n"
        f"main = get({named} + '.command').main; sys.exit(main(sys.argv[2:], get('pathlib').Path(sys.argv[1])))"
    )
    return [sys.executable, "-c", code, "\n".join(sys.path), str(Path(folder).absolute()), *words]


def open_model(folder: Path, metadata: Mapping[str, Any], threads: int | None, opener: Callable[..., Any]) -> Model:
    """The model of a bundle, without any check. EdgeError names the version that is needed where an older one is installed."""
    path = folder / metadata["model_file"]
    try:
        preprocessor = open_preprocessor(folder, metadata["pipeline"])
        runner = opener(metadata["runtime"], path, metadata["options"], threads or judged_threads(metadata))
    except Exception as error:  # what is too old lacks functions, takes other arguments, or refuses the graph
        old = too_old(metadata)
        if not old:
            raise
        raise EdgeError(f"{old} ({last_line(error)})") from error
    return Model(metadata, preprocessor, runner)


def judged_threads(metadata: Mapping[str, Any]) -> int:
    """How many threads a bundle was judged with, as far as there are cores; all of those where it was not judged."""
    threads = (metadata.get("judged") or {}).get("threads")
    if not isinstance(threads, int) or threads < 1:
        return available_cores()
    return min(threads, available_cores())


def isa_warnings(metadata: Mapping[str, Any], isa: Sequence[str]) -> list[str]:
    """What may go wrong because this CPU lacks a feature the graph was judged with."""
    needs = set(metadata["needs_isa"])
    missing = needs - set(isa)
    if missing & INT8_DOT and INT8_DOT & set(isa):
        missing -= INT8_DOT  # any of them sums without saturation
    if not missing:
        return []
    names = ", ".join(sorted(missing))
    if not isa:
        return [f"the model was judged on a CPU with {names}; this system does not say whether this CPU has it"]
    risk = "8-bit products may saturate and change its predictions" if missing & INT8_DOT else "it may be slower"
    return [
        f"the model was judged on a CPU with {names}, which this one lacks: {risk}; optimize it again for this target"
    ]


def circumstances(runtime: str) -> dict[str, Any]:
    """What predictions may depend on here: the CPU, its features, the runtime's version."""
    host = host_fingerprint()
    return {"cpu": host["cpu"], "isa": host["isa"], "runtime": [runtime, package_version(runtime)]}


def is_known_here(metadata: Mapping[str, Any]) -> bool:
    """Whether this very bundle passed its self-test here, or was made here."""
    return is_left(_marker(metadata))


def remember(metadata: Mapping[str, Any]) -> None:
    """Leave word that it did."""
    leave(_marker(metadata))


def _marker(metadata: Mapping[str, Any]) -> Path | None:
    key = json.dumps([metadata["digest"], circumstances(metadata["runtime"])], sort_keys=True)
    return marker_of("self-tests", key.encode())
