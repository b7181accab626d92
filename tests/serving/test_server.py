"""The server of a bundle: what OpenAI's clients send, what the task is, limits, and a stop that loses nothing."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import fmopt
from fmopt.core.errors import ConfigError
from fmopt.serving.server import bound_socket
from tests.conftest import SENTENCES as WORDS
from tests.conftest import TinyCheckpoint
from tests.vision_models import write_pictures, write_vision

SENTENCES = list(WORDS)


class Served:
    """A server process and a client of it."""

    def __init__(self, bundle: Path, *options: str) -> None:
        self.bundle = bundle
        command = [sys.executable, "-m", "fmopt", "serve", str(bundle), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, (line, self.process.communicate()[1] if not line else "")
        self.address = found[0]
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def embeddings(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    served = Served(
        fmopt.export(tiny_checkpoint("bert", "sentence-embedding"), folder / "vectors"), "--max-body", "100kB"
    )
    yield served
    served.stop()


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    served = Served(fmopt.export(tiny_checkpoint("gpt2", "text-generation"), folder / "decoder"))
    yield served
    served.stop()


def test_embeddings_are_those_of_the_bundle(embeddings: Served) -> None:
    wanted = np.array(fmopt.load(embeddings.bundle)(SENTENCES[:5]))
    got = embeddings.post("/v1/embeddings", {"model": "any", "input": SENTENCES[:5]}).json()
    assert [one["index"] for one in got["data"]] == list(range(5))
    np.testing.assert_allclose([one["embedding"] for one in got["data"]], wanted, atol=1e-5)
    assert got["usage"]["prompt_tokens"] > 10
    one = embeddings.post("/v1/embeddings", {"input": SENTENCES[0], "encoding_format": "base64"}).json()["data"][0]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), wanted[0], atol=1e-5)
    own = embeddings.post("/predict", {"inputs": SENTENCES[:2]}).json()["outputs"]
    np.testing.assert_allclose(own, wanted[:2], atol=1e-5)


def test_sixteen_callers_get_each_their_own(embeddings: Served) -> None:
    texts = [f"{a} {b}" for a in SENTENCES[:12] for b in SENTENCES[:12]]
    wanted = np.array(fmopt.load(embeddings.bundle)(texts))

    def ask(number: int) -> float:
        place = number % len(texts)
        got = embeddings.post("/v1/embeddings", {"input": texts[place]}).json()["data"][0]["embedding"]
        return float(np.abs(np.array(got) - wanted[place]).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(600))) < 1e-5


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/embeddings", b'{"input": []}', 400, "input: List should have at least 1 item"),
        ("/v1/embeddings", b'{"input": [[1, 2]]}', 400, "input.0: Input should be a valid string"),
        ("/v1/embeddings", b'{"input": "a", "dimensions": 3}', 400, "this model's vectors have"),
        ("/v1/embeddings", b"{", 400, "Invalid JSON"),
        ("/v1/embeddings", b'{"input": ' + b"[" * 50_000, 400, "Invalid JSON"),
        ("/v1/embeddings", b'{"input": "' + b"a" * 200_000 + b'"}', 413, "larger than 100,000 bytes"),
        ("/v1/completions", b"{}", 404, "there is no /v1/completions here; this bundle answers to /predict"),
        ("/predict", b'{"inputs": [{"base64": "?"}]}', 400, "item 1: it is not base64"),
        ("/predict", b'{"inputs": ["a", {"base64": "YQ=="}]}', 400, "item 2: "),
    ],
)
def test_bad_bodies_are_reported_in_one_line(
    embeddings: Served, path: str, body: bytes, status: int, said: str
) -> None:
    got = embeddings.client.post(path, content=body)
    assert got.status_code == status
    assert said in got.json()["error"]["message"]
    assert embeddings.client.get("/health").json()["status"] == "ok"


def test_other_names_of_the_host_are_refused(embeddings: Served) -> None:
    assert embeddings.client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_counts_for_prometheus(embeddings: Served) -> None:
    embeddings.post("/v1/embeddings", {"input": "a"})
    told = embeddings.client.get("/metrics").text
    assert re.search(r'fmopt_requests_total\{route="/v1/embeddings",status="200"\} [1-9]', told)
    assert re.search(r"fmopt_items_total [1-9]", told)
    assert "fmopt_waiting_items 0.0" in told


def test_completions_whole_and_in_pieces(decoder: Served) -> None:
    asked = {"prompt": SENTENCES[0], "max_tokens": 8, "temperature": 0}
    wanted = fmopt.load(decoder.bundle)(SENTENCES[0], max_new_tokens=8)
    got = decoder.post("/v1/completions", asked).json()
    assert got["choices"][0]["text"] == wanted["text"]
    assert got["usage"]["completion_tokens"] == wanted["tokens"]
    with decoder.client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == wanted["text"]
    assert pieces[-1]["finish_reason"] == wanted["ended"] == "length"
    assert got["choices"][0]["finish_reason"] == "length"
    two = decoder.post("/v1/completions", {**asked, "prompt": SENTENCES[:2]}).json()["choices"]
    assert [one["text"] for one in two] == [
        one["text"] for one in fmopt.load(decoder.bundle)(SENTENCES[:2], max_new_tokens=8)
    ]
    bad = decoder.post("/v1/completions", {**asked, "prompt": SENTENCES[:2], "stream": True})
    assert (bad.status_code, bad.json()["error"]["message"]) == (400, "stream: give one prompt")


def test_images_come_as_base64(tmp_path: Path) -> None:
    write_vision(tmp_path / "vit", "vit")
    served = Served(fmopt.export(tmp_path / "vit", tmp_path / "bundle"))
    (path, *_) = sorted(write_pictures(tmp_path, test=2).rglob("*.png"))
    got = served.post("/predict", {"inputs": [{"base64": base64.b64encode(path.read_bytes()).decode()}]}).json()
    assert got["outputs"][0]["label"] == fmopt.load(served.bundle)(path.read_bytes())["label"]
    assert served.stop() == (0, "")


def test_a_stop_answers_what_is_under_way(embeddings: Served) -> None:
    served, got = Served(embeddings.bundle), []
    texts = [" ".join(SENTENCES)] * 600
    asking = threading.Thread(target=lambda: got.append(served.post("/v1/embeddings", {"input": texts})))
    asking.start()
    while "fmopt_waiting_items 0.0" in served.client.get("/metrics").text:
        pass
    code, errors = served.stop()
    asking.join()
    assert (code, errors) == (0, "")
    assert len(got[0].json()["data"]) == 600


def test_a_port_that_is_taken_is_said_in_one_line(embeddings: Served) -> None:
    with bound_socket("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "fmopt", "serve", str(embeddings.bundle), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"fmopt: port {port} of 127.0.0.1 is taken; choose another with --port, or 0 for any\n"
    with pytest.raises(ConfigError, match="is no address of this machine"):
        bound_socket("no.such.host.invalid", 0)
