"""One opened model for many callers: threads, forked processes, lists, batches; each gets the answer to its own item."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.core import plugins
from fmopt.core.model import Artifact, Graph
from fmopt.edge import host, loading
from fmopt.edge.errors import EdgeError
from fmopt.edge.parts import like_lengths
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import model_of, padded

THREADS, CALLS = 16, 10_000
RUNTIMES = ("onnxruntime", "openvino", "torch")
WORDS = [word for sentence in SENTENCES for word in sentence.split()]
EQUAL = [f"the {word} is here" for word in ("cat", "dog", "rain", "city", "film", "card", "book", "stars")]
MIXED = [" ".join(WORDS[at : at + 1 + at % 9]) for at in range(0, 60, 3)]

Open = Callable[..., loading.Model]


@pytest.fixture(scope="module")
def opened(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """`opened(runtime, task)`: a tiny network as a served model; the graph of a task is made once."""
    graphs: dict[str, Graph] = {}

    def make(runtime: str, task: str = "sentence-embedding", family: str = "bert", dynamic: bool = False) -> Any:
        folder = tiny_checkpoint(family, task)
        found = checkpoint.inspect(resolve(str(folder)), task)
        if task not in graphs:
            model = model_of(folder)
            graphs[task] = to_onnx.export_onnx(model, padded(model), tmp_path_factory.mktemp(task))
        kind = plugins.find("runtimes", runtime)
        place = tmp_path_factory.mktemp(runtime)
        graph = graphs[task]
        if dynamic:
            from types import SimpleNamespace

            context: Any = SimpleNamespace(target=SimpleNamespace(int8_dot=True))
            graph = QuantizeDynamic().apply(graph, context, place / "dynamic")
        artifact: Artifact = kind.build(found if runtime == "torch" else graph, {}, place)
        pipeline = dict(found.pipeline)
        return loading.Model({"pipeline": pipeline}, open_preprocessor(folder, pipeline), kind.open(artifact, 2))

    return make


def answers(model: loading.Model, texts: list[str]) -> dict[str, Any]:
    return {text: np.asarray(model(text)) for text in texts}


@pytest.mark.long
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_thread_gets_the_answers_to_its_own_texts(opened: Open, runtime: str) -> None:
    model, texts = opened(runtime), EQUAL * 2 + MIXED
    wanted = answers(model, texts)
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def serve(number: int) -> None:
        start.wait()
        for call in range(CALLS // THREADS):
            text = texts[(call * 7 + number) % len(texts)]
            if np.abs(np.asarray(model(text)) - wanted[text]).max() > 1e-4:
                wrong.append(text)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(serve, range(THREADS)))
    assert wrong == []


def test_windows_of_different_strides_are_read_by_threads_at_once(tiny_checkpoint: TinyCheckpoint) -> None:
    folder = tiny_checkpoint("bert", "question-answering")
    pipeline = dict(checkpoint.inspect(resolve(str(folder)), "question-answering").pipeline)
    preprocessor = open_preprocessor(folder, pipeline)
    context = " ".join(SENTENCES)
    pairs = [(" ".join(WORDS[at : at + 1 + at % 7]), context[: 40 + 30 * at]) for at in range(12)]

    def read(pair: tuple[str, str]) -> Any:
        return preprocessor.encode([pair]).inputs["input_ids"].tolist()

    wanted = [read(pair) for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, pairs * 20)) == wanted * 20


def test_texts_that_are_decoded_by_threads_and_interleaved_go_on_as_alone(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    import fmopt

    model = fmopt.load(fmopt.export(tiny_checkpoint("gpt2", "text-generation"), tmp_path / "out"), threads=1)
    prompts = ["the cat sat", "a small dog ran over", "Paris is", "my card was charged twice"]
    options = {"max_new_tokens": 12}
    wanted = [model(prompt, **options)["text"] for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda prompt: model(prompt, **options)["text"], prompts * 8))
    assert got == wanted * 8
    streams = [model.stream(prompt, **options) for prompt in prompts]
    pieces = [""] * len(prompts)
    for step in itertools.zip_longest(*streams, fillvalue=""):
        pieces = [before + piece for before, piece in zip(pieces, step, strict=True)]
    assert pieces == wanted
    assert [one["text"] for one in model(prompts, **options)] == wanted
    drawn = {"temperature": 1.0, "seed": 3, **options}
    assert [one["text"] for one in model(prompts, **drawn)] == [model(one, **drawn)["text"] for one in prompts]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_forked_child_answers_as_its_parent(opened: Open, runtime: str) -> None:
    model = opened(runtime)
    texts = EQUAL[:3] + MIXED[:3]
    wanted = answers(model, texts)
    forking = multiprocessing.get_context("fork")
    reader, writer = forking.Pipe(duplex=False)

    def child() -> None:
        writer.send([float(np.abs(np.asarray(model(text)) - wanted[text]).max()) for text in texts])

    with warnings.catch_warnings():  # of forking a process with threads, which is what is tried
        warnings.simplefilter("ignore", DeprecationWarning)
        process = forking.Process(target=child)
        process.start()
    try:
        assert reader.poll(60), "the child does not answer"
        assert max(reader.recv()) < 1e-4
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert np.abs(np.asarray(model(texts[0])) - wanted[texts[0]]).max() < 1e-6


def test_a_lock_that_another_thread_held_at_a_fork_is_free_in_the_child() -> None:
    lock = host.ForkSafeLock()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if not process:
        with lock:
            os._exit(7)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(ended[1]) == 7


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_asyncio_serves_many_at_once(opened: Open, runtime: str) -> None:
    model = opened(runtime)
    texts = EQUAL + MIXED
    wanted = answers(model, texts)

    async def serve() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model, text) for text in texts * 10))

    for text, got in zip(texts * 10, asyncio.run(serve()), strict=True):
        np.testing.assert_allclose(got, wanted[text], atol=1e-5)


# ---- lists


def test_a_list_keeps_its_order_and_every_answer(opened: Open) -> None:
    model = opened("onnxruntime")
    texts = (MIXED + EQUAL) * 3
    calls: list[tuple[int, ...]] = []
    run = model.runner.run
    model.runner.run = lambda inputs: calls.append(inputs["input_ids"].shape) or run(inputs)
    got = model(texts)
    batched = list(calls)
    np.testing.assert_allclose(got, [model(text) for text in texts], atol=1e-5)
    assert len(batched) < len(texts) / 2
    assert max(rows * tokens for rows, tokens in batched) <= 256


def test_batches_are_of_like_length_and_bounded() -> None:
    lengths = [int(one) for one in np.random.default_rng(0).integers(1, 300, size=500)]
    batches = like_lengths(lengths, tokens=256, padding=0.1)
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    for batch in batches:
        longest, used = max(lengths[index] for index in batch), sum(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= 256
        assert longest * len(batch) - used <= 0.1 * longest * len(batch)
    assert like_lengths([]) == []
    assert like_lengths([5, 5, 5]) == [[0, 1, 2]]


@pytest.mark.parametrize("number", [1, 4, 9])
def test_the_bad_item_of_a_list_is_named_by_its_number(opened: Open, number: int) -> None:
    model = opened("onnxruntime")
    texts: list[Any] = [*EQUAL, "one more"]
    texts[number - 1] = 5
    for call in (model, model.predict, lambda given: model.predict(given, batch_size=4)):
        with pytest.raises(EdgeError, match=f"^item {number}: 5 is not a text"):
            call(texts)


def test_a_bad_item_that_shows_only_afterwards_is_named_too(opened: Open) -> None:
    model = opened("onnxruntime", "fill-mask")
    texts = ["the [MASK] sat here"] * 5
    texts[3] = "there is no mask"
    for call in (model, model.predict, lambda given: model.predict(given, batch_size=5)):
        with pytest.raises(EdgeError, match=r"^item 4: .*has no .MASK. among"):
            call(texts)


def test_dynamic_scales_are_never_shared_by_a_list(opened: Open) -> None:
    model = opened("onnxruntime", dynamic=True)
    assert model.runner.mixes_rows
    alone = np.array([model(text) for text in MIXED])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.array(model(MIXED)), alone)
    with pytest.warns(UserWarning, match="in a batch of this model an item.s answer depends on what is beside it"):
        batched = np.array(model.predict(MIXED, batch_size=8))
    assert np.abs(batched - alone).max() > 1e-4, "the network that is tried does not depend on its batch"


# ---- long texts


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize(
    "text",
    [
        " ".join(SENTENCES * 20_000),
        "a" * 10_000_000,
        "ab" * 5_000_000,
        " " * 3_000_000 + " ".join(SENTENCES),
        "\u732b" * 3_000_000,
    ],
    ids=["sentences", "one letter", "two letters", "blanks first", "no blanks"],
)
def test_ten_megabytes_are_truncated_before_they_are_tokenized(
    tiny_checkpoint: TinyCheckpoint, family: str, text: str
) -> None:
    folder = tiny_checkpoint(family)
    pipeline = dict(checkpoint.inspect(resolve(str(folder)), "sentence-embedding").pipeline)
    preprocessor = open_preprocessor(folder, pipeline)
    read = 0

    class Counting:
        def __init__(self, tokenizer: Any):
            self.tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self.tokenizer, name)

        def encode(self, text: str, *rest: Any, **more: Any) -> Any:
            nonlocal read
            read += len(text)
            return self.tokenizer.encode(text, *rest, **more)

    whole = preprocessor.tokenizer
    preprocessor.tokenizer = Counting(whole)
    got = preprocessor.encode([text]).inputs["input_ids"][0]
    if len(whole.encode(text[:20_000]).ids) < 20:  # one unknown word, or blanks: no part of it has tokens enough
        assert read < 2 * len(text)
    else:
        assert read < 20_000
    whole.enable_truncation(pipeline["max_length"])
    np.testing.assert_array_equal(got, whole.encode(text[:400_000] if text[0] != " " else text).ids)
