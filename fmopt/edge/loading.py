"""A bundle as its files and as an opened model: checked, tested on its golden items, answering."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import (
    SHA256,
    damage_of,
    external_files,
    file_bytes,
    hashed,
    is_left,
    is_plain_name,
    leave,
    parsed,
    printable,
    read_inside,
    read_json,
    require_signed,
    strangers,
    tried_apart,
)
from .host import INT8_DOT, available_cores, cache_folder, host_fingerprint, isa_features, package_version
from .parts import EdgeError, Pipeline, Sample, check_pipeline, explained, last_line, part_of, shorten
from .runners import RUNNERS, open_runner
from .text import open_preprocessor, postprocess, present, read_sample

FORMAT = "fmopt-bundle-1"


MANIFEST, GOLDEN, UNFINISHED = "fmopt.json", "golden.json", ".fmopt-writing"


# What may lie beside the files of a manifest: written after it, or by a run of ours.
UNLISTED = frozenset(
    {
        MANIFEST,
        "record.json",
        "report.html",
        "report.md",
        "stages",
        "running",
        "checkpoint",
        "bundle.tmp",
        ".fmopt",
        ".fmopt.lock",
    }
)
SIGNED_WITHOUT = UNLISTED - {MANIFEST}  # what a signature does not cover: it is written after, or by a run of ours
KINDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "digest": str, "title": str, "task": str, "verdict": str, "runtime": str, "options": dict, "model_file": str,
    "needs_isa": list, "pipeline": dict, "recipe": dict, "checkpoint": dict, "versions": dict, "host": dict, "files": dict,
}  # fmt: skip  # of what a manifest says
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

    def predict(self, samples: Sequence[Sample], batch_size: int = 1) -> list[Any]:
        """Predictions as they are judged; see `postprocess`."""
        found: list[Any] = []
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            with explained():
                batch = self.preprocessor.encode(part)
                outputs = run_batch(self.pipeline, self.runner, batch, batch_size)
                found += postprocess(self.pipeline, outputs, batch, part)
        return found

    def soonest(self, samples: Sequence[Sample]) -> Any:
        """What a latency from raw to answer is taken of: the predictions, or the first piece of answers made in pieces."""
        part = part_of(self.pipeline)
        if not hasattr(part, "soonest"):
            return self.predict(samples, len(samples))
        with explained():
            return part.soonest(self, samples)

    def __call__(self, sample: Any, **options: Any) -> Any:
        """What people read, for one sample or, given a list, for each of its samples (so a list of words goes in a list).

        A `pathlib.Path` stands for the bytes of that file. `wishes` are what the task's part takes, such as max_new_tokens.
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
            with explained():
                return list(part.answer(self, samples, **options))
        if options:
            raise EdgeError(f"{self.pipeline['task']} takes no {', '.join(options)}")
        made = Model.predict(self, samples)  # not a subclass's, which may refuse by errors of its own
        return [present(self.pipeline, *pair, self.preprocessor) for pair in zip(made, samples, strict=True)]

    def stream(self, sample: Any, **options: Any) -> Iterator[Any]:
        """The answer to one sample in pieces, as they are made; EdgeError for a task that answers at once."""
        part = part_of(self.pipeline)
        if not hasattr(part, "stream"):
            raise EdgeError(f"{self.pipeline['task']} answers at once; there is nothing to stream")
        with explained():
            yield from part.stream(self, sample, **options)

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


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's fmopt.json, checked against its own digest and for what it must say. EdgeError when it is none, or damaged."""
    path = Path(folder) / MANIFEST
    if os.path.lexists(Path(folder) / UNFINISHED):
        raise EdgeError(f"{folder} is not finished: writing it was interrupted; make the bundle again")
    if not os.path.lexists(path):
        raise EdgeError(f"{folder} is not a bundle: it has no {MANIFEST}")
    try:
        text = read_inside(folder, MANIFEST).decode()
        metadata: dict[str, Any] = parsed(text, MANIFEST)
    except EdgeError as error:
        raise EdgeError(f"{Path(folder) / str(error)}") from error
    except ValueError as error:
        raise EdgeError(f"{path} is damaged: {last_line(error)}") from error
    if metadata.get("format") != FORMAT:
        raise EdgeError(
            f"{path} is of format {shorten(repr(metadata.get('format')))}, this file reads {FORMAT!r}; use the run.py beside it"
        )
    digest = metadata.get("digest")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest) or digest != manifest_digest(text, digest):
        raise EdgeError(f"{path} was changed after it was written; make the bundle again")
    try:
        _check_manifest(metadata)
    except EdgeError as error:
        raise EdgeError(f"{path} is damaged: {error}") from error
    metadata["pipeline"] = with_current_names(metadata["pipeline"])
    return metadata


# What a pipeline called settings of generation before it took the names of generation_config.json.
EARLIER_NAMES = {
    "start": "decoder_start_token_ids",
    "stop_ids": "eos_token_id",
    "beams": "num_beams",
    "suppress": "suppress_tokens",
    "suppress_first": "begin_suppress_tokens",
    "no_repeat": "no_repeat_ngram_size",
    "fewest": "min_new_tokens",
    "early": "early_stopping",
    "first": "forced_bos_token_id",
    "last": "forced_eos_token_id",
}


def with_current_names(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline as this version reads it, also one that an earlier version wrote."""
    found = {EARLIER_NAMES.get(name, name): value for name, value in pipeline.items()}
    if "early" in pipeline:
        found["early_stopping"] = bool(pipeline["early"])
    if "last" in pipeline:
        found["forced_eos_token_id"] = [pipeline["last"]]
    return found


def _check_manifest(metadata: Mapping[str, Any]) -> None:
    """EdgeError for a manifest that lacks something, or says it by another kind of value."""
    for key, kind in KINDS.items():
        if not isinstance(metadata.get(key), kind):
            raise EdgeError(f"it says {shorten(metadata.get(key))} for {key!r}")
    files, name = metadata["files"], metadata["model_file"]
    for listed, entry in files.items():
        entry = entry if isinstance(entry, dict) else {}
        size, digest = entry.get("bytes"), entry.get("sha256")
        if not is_plain_name(listed):
            raise EdgeError(f"it lists {shorten(printable(listed))}, which is not the name of a file inside the folder")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise EdgeError(f"it does not say how many bytes {listed} has, and which sha256")
    if name not in files and not (name == "." and any(one.endswith(".safetensors") for one in files)):
        raise EdgeError(f"the model is in {shorten(printable(name))}, which is none of its files")
    if not all(isinstance(feature, str) for feature in metadata["needs_isa"]):
        raise EdgeError("it says no names of CPU features for 'needs_isa'")
    host = metadata["host"]
    if not isinstance(host.get("cpu"), str) or not isinstance(host.get("isa"), list):
        raise EdgeError("it does not say on which host it was made")
    check_pipeline(metadata["pipeline"])


def manifest_digest(text: str, digest: str) -> str:
    """sha256 of a manifest's text without its own digest, so that it vouches for every other byte of itself."""
    return hashlib.sha256(text.replace(digest, "").encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashed(stream)


def verify(folder: Path) -> list[str]:
    """What is wrong with a bundle's files, one line each naming the file; empty when all is as it was written."""
    folder = Path(folder)
    try:
        metadata = read_manifest(folder)
    except EdgeError as error:
        return [str(error)]
    problems = damaged_files(folder, metadata)
    beside = strangers(folder, metadata["files"], UNLISTED)
    return problems + [f"{printable(name)} does not belong to the bundle" for name in beside]


def damaged_files(folder: Path, metadata: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that a manifest lists, and with those that its graph reads, one line each."""
    problems = [
        found
        for name, entry in metadata["files"].items()
        if (found := damage_of(folder, name, entry)) is not None
    ]  # fmt: skip
    model = metadata["model_file"]
    if problems or not model.endswith(".onnx"):
        return problems
    try:
        read = external_files(memoryview(read_inside(folder, model, metadata["files"][model]["bytes"])))
    except ValueError as error:
        return [f"{model} is no ONNX file: {error}"]
    beside = model.rpartition("/")[0]
    names = [f"{beside}/{name}" if beside else name for name in sorted(read)]
    return [
        f"{model} wants weights from {shorten(printable(name))}, which is none of the bundle's files"
        for name in names
        if name not in metadata["files"]
    ]


def whole_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all as they were written; EdgeError names those that are not."""
    metadata = read_manifest(folder)
    damage = damaged_files(Path(folder), metadata)
    if damage:
        raise EdgeError(f"{folder} is damaged: {'; '.join(damage)}; copy the bundle again, or make it again")
    return metadata


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A raw as JSON that keeps a pair, a list of words and bytes apart."""
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


def read_golden(folder: Path) -> tuple[list[Sample], list[Any], float]:
    """Golden samples, their predictions, and how far others may be from these; EdgeError when they cannot be read."""
    golden = read_json(folder, GOLDEN)
    items, tolerance = golden.get("items"), golden.get("tolerance")
    fit = isinstance(items, list) and all(isinstance(item, dict) and "prediction" in item for item in items)
    if not fit or type(tolerance) not in (int, float) or not 0 <= tolerance < float("inf"):
        raise EdgeError(f"{Path(folder) / GOLDEN} holds no golden items, or no tolerance")
    try:
        samples = [sample_from_json(item.get("raw")) for item in items]
    except EdgeError as error:
        raise EdgeError(f"{Path(folder) / GOLDEN}: {error}") from error
    return samples, [item["prediction"] for item in items], float(tolerance)


def self_test(folder: Path, model: Model) -> tuple[float, float]:
    """(largest difference to the golden predictions, tolerance); EdgeError when it is outside the tolerance."""
    samples, written, tolerance = read_golden(folder)
    gap = getattr(part_of(model.pipeline), "difference", difference)
    made = model.predict(samples)
    with explained(f"{Path(folder) / GOLDEN} holds no predictions of this model; it"):
        worst = float(max(map(gap, written, made), default=0.0))
    if not worst <= tolerance:
        raise EdgeError(
            f"{folder} computes something else here than where it was judged: golden predictions differ by up to "
            f"{worst:.3g}, allowed is {tolerance:.3g}; optimize the model again on this machine"
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

    `threads`: by default every core this process may use. Warns when the CPU lacks a feature that the graph was judged
    with. EdgeError when the bundle is damaged, or its predictions are outside the tolerance here.
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
    """The model of a bundle whose files were verified."""
    with explained(folder):
        preprocessor = open_preprocessor(folder, metadata["pipeline"])
        runner = opener(
            metadata["runtime"], folder / metadata["model_file"], metadata["options"], threads or available_cores()
        )
    return Model(metadata, preprocessor, runner)


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


def _marker(metadata: Mapping[str, Any]) -> Path:
    key = json.dumps([metadata["digest"], circumstances(metadata["runtime"])], sort_keys=True)
    return cache_folder() / "self-tests" / hashlib.sha256(key.encode()).hexdigest()
