"""What `python run.py` does: `predict`, `bench` and `verify` a bundle, and what its runtime has besides."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bench import bench
from .errors import EdgeError
from .files import file_bytes, json_line, limit_memory, mend_streams, printable
from .host import isa_features
from .loading import Model, isa_warnings, load, open_model, require_tried, require_trusted, self_test
from .manifest import read_manifest, verify
from .parts import Sample, part_of
from .runners import open_runner, own_module
from .text import read_sample


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> Any:
        raise EdgeError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None, folder: Path) -> int:
    """`predict`, `bench` and `verify` for the bundle in `folder`; returns the exit code."""
    mend_streams()
    try:
        with warnings.catch_warnings():
            # A warning is one line on stderr, not a place in this file.
            warnings.showwarning = lambda message, *rest: print(f"warning: {printable(message)}", file=sys.stderr)
            asked = _parser(folder).parse_args(argv)
            return asked.command(folder, asked)
    except EdgeError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = _Parser(prog="run.py", description="Runs the model in this folder.")
    commands = parser.add_subparsers(required=True, metavar="predict|bench|verify", parser_class=_Parser)
    predict = commands.add_parser("predict", help="what the model makes of texts, or of image or audio files")
    predict.add_argument("texts", nargs="*", metavar="TEXT|FILE")
    predict.add_argument("--file", type=Path, help="UTF-8, one a line; of a pair, the two texts parted by a tab")
    predict.add_argument(
        "--pair", action="store_true", help="take the texts two by two (question context is always so)"
    )
    try:
        metadata = read_manifest(folder)
        part, own = part_of(metadata["pipeline"]), own_module(metadata["runtime"])
    except EdgeError:  # reported when the command runs
        part = own = None
    if hasattr(part, "add_arguments"):
        part.add_arguments(predict)
    predict.set_defaults(command=_predict)
    timed = commands.add_parser("bench", help="how fast it is here")
    timed.add_argument("--batch", type=_count, default=1, help="texts at once (1)")
    timed.add_argument("--length", type=_count, help="tokens; by default those of the golden texts")
    timed.add_argument("--seconds", type=float, default=10.0, help="sample at least so long (10)")
    timed.set_defaults(command=_bench)
    checked = commands.add_parser("verify", help="are the files whole, and does it compute here what it should")
    checked.add_argument(
        "--key", type=Path, help="a public key, or an issuer's certificate (PEM), that must have signed it"
    )
    checked.set_defaults(command=_verify)
    tried = commands.add_parser("self-test")  # without help: `load` runs it, in a process of its own
    tried.add_argument("--memory", type=_count, required=True)
    tried.set_defaults(command=_self_test)
    if hasattr(own, "add_commands"):
        own.add_commands(commands)
    for each in (predict, timed, checked, tried):
        each.add_argument("--threads", type=_count, help="by default as many as it was judged with")
        each.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _predict(folder: Path, asked: argparse.Namespace) -> int:
    pipeline = read_manifest(folder)["pipeline"]
    part = part_of(pipeline)
    samples = list(_raws(asked, pairs=asked.pair or getattr(part, "PAIRS", False)))
    if not samples:
        raise EdgeError("nothing to predict; give them as arguments, or --file with one a line")
    options = part.options_of(asked) if hasattr(part, "options_of") else {}
    model = load(folder, asked.threads)
    if getattr(asked, "stream", False):
        for piece in _one_streamed(model, [read_sample(pipeline, sample) for sample in samples], options):
            print(printable(piece), end="", flush=True)
        print()
        return 0
    shown, problems = model.answers(samples, **options)
    if asked.json:
        print(json_line(shown))
    else:
        print("\n".join(json_line(one) for one in shown if one is not None))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return 2 if problems else 0


def _one_streamed(model: Model, samples: Sequence[Sample], options: Mapping[str, Any]) -> Iterator[str]:
    if len(samples) != 1:
        raise EdgeError(f"one text is streamed at a time; {len(samples)} were given")
    return model.stream(samples[0], **options)


def _raws(asked: argparse.Namespace, *, pairs: bool) -> Iterator[Sample]:
    if pairs and len(asked.texts) % 2:
        raise EdgeError(f"texts come in pairs here, such as question and context; {len(asked.texts)} were given")
    yield from zip(asked.texts[::2], asked.texts[1::2], strict=True) if pairs else asked.texts
    for number, line in enumerate(_lines(asked.file) if asked.file else [], start=1):
        first, tab, second = line.partition("\t")
        if pairs and not tab:
            raise EdgeError(f"{asked.file}, line {number}: no tab parts the two texts")
        yield (first, second) if pairs else line


def _lines(path: Path) -> list[str]:
    try:
        lines = file_bytes(path).decode().split("\n")  # str.splitlines would also cut at characters inside texts
        return [line.removesuffix("\r") for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise EdgeError(f"{path} is not UTF-8: byte {error.start}; convert it first") from error


def _bench(folder: Path, asked: argparse.Namespace) -> int:
    got = bench(folder, batch=asked.batch, length=asked.length, threads=asked.threads, seconds=asked.seconds)
    if asked.json:
        print(json_line(got))
        return 0
    size = f"batch {got['batch']}" + (f" × {got['tokens']} tokens" if got["tokens"] else "")
    print(f"{size}, {got['threads']} threads, {' '.join(map(str, got['runtime']))}")
    titles = ("one more token", "first token") if got["steps"] else ("model alone", "input to answer")
    for name, title in zip(("model", "end_to_end"), titles, strict=True):
        row = got[name]
        print(
            f"{title:>14}  p50 {row['p50_ms']:.2f} ms  p90 {row['p90_ms']:.2f}  p99 {row['p99_ms']:.2f}  "
            f"({len(row['samples_ms'])} samples)"
        )
    if got["steps"]:
        print(f"{got['batch'] * 1e3 / got['model']['p50_ms']:.1f} tokens/s after {got['tokens']} tokens")
    memory = got["peak_memory_mb"]
    print(f"load {got['load_ms']:.0f} ms, peak memory {'unknown' if memory is None else f'{memory:.0f} MB'}")
    return 0


def _self_test(folder: Path, asked: argparse.Namespace) -> int:
    limit_memory(asked.memory)
    self_test(folder, open_model(folder, read_manifest(folder), asked.threads, open_runner))
    return 0


def _verify(folder: Path, asked: argparse.Namespace) -> int:
    if asked.key is not None:
        require_trusted(folder, asked.key)
    problems = verify(folder)
    answer: dict[str, Any] = {"largest_difference": None, "tolerance": None}
    if not problems:
        metadata = read_manifest(folder)
        try:
            require_tried(folder, metadata, asked.threads)
            worst, tolerance = self_test(folder, open_model(folder, metadata, asked.threads, open_runner))
            answer = {"largest_difference": worst, "tolerance": tolerance}
        except EdgeError as error:
            problems.append(str(error))
        for warning in isa_warnings(metadata, isa_features()):
            warnings.warn(warning, stacklevel=1)
    if asked.json:
        print(json_line({"ok": not problems, "problems": problems, **answer}))
    elif problems:
        print("\n".join(f"error: {printable(problem)}" for problem in problems), file=sys.stderr)
    else:
        differ = f"golden predictions differ by {answer['largest_difference']:.2g}, allowed {answer['tolerance']:.2g}"
        print(
            f"whole; {differ if answer['tolerance'] else 'it carries no golden items, so what it computes was not checked'}"
        )
    return 2 if problems else 0
