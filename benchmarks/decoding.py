"""How fast text is generated: fmopt's graphs on ONNX Runtime beside llama.cpp, in turn, on two well-known shapes.

    benchmarks/peers/setup.sh llama_cpp                                once: llama.cpp from source, in its own environment
    .venv/bin/python benchmarks/decoding.py make                       once: random weights, graphs, GGUF (10 minutes)
    .venv/bin/python benchmarks/decoding.py measure [--small]          7 minutes on a quiet machine; --small 1
    .venv/bin/python benchmarks/decoding.py perplexity CHECKPOINT --data DATA      what each rounding loses

Every contestant is a process of its own that waits, without spinning, until it is asked: rounds of a few tokens go round in
random order. Greedy tokens; the time of a token is from the call to the next token's number. Raw samples, and what memory
allows (bytes that one token must read, over the measured GB/s), go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MADE = HERE.parent / "out" / "decoding"
MODELS = {"gpt2": "GPT-2, 124M parameters", "qwen2.5-0.5b": "Qwen2.5-0.5B's shape, 494M parameters"}
LLAMA = "llama.cpp Q4_0"
# bits, weights that share a scale, how the scale is found
OURS = {"fmopt int4": (4, 128, "rtn"), "fmopt int4 32": (4, 32, "rtn"), "fmopt int8": (8, 128, "rtn")}
ROUNDED = OURS | {"fmopt int4 mse": (4, 128, "mse"), "fmopt int4 32 mse": (4, 32, "mse")}  # as fast, and better
CONTEXTS = (128, 512, 2048)
ROOM = 256  # tokens after a context


# ------------------------------------------------------------------------------------------------ what is compared


def make(models: Sequence[str]) -> None:
    """Write everything that is measured below out/decoding; what is there is not made again."""
    for name in models:
        folder = MADE / name
        if not (folder / "checkpoint" / "model.safetensors.index.json").is_file():
            command = [sys.executable, str(HERE / "random_decoders.py"), name, str(folder / "checkpoint")]
            subprocess.run(command, check=True)
        graphs(folder / "checkpoint", folder, OURS)
        gguf(folder / "checkpoint", folder / "q4_0.gguf")


def graphs(checkpoint: Path, out: Path, wanted: Mapping[str, tuple[int, int, Any]]) -> None:
    """The exported graph of a checkpoint, and of it every wanted rounding, by fmopt's own passes."""
    from fmopt.core.model import Graph
    from fmopt.exporters import to_onnx
    from fmopt.measurement.host_probe import load_target
    from fmopt.models import checkpoint as loading
    from fmopt.models.source import resolve
    from fmopt.passes.base import Context
    from fmopt.passes.fuse_decoder import FuseDecoder
    from fmopt.passes.quantize_embeddings import QuantizeEmbeddings
    from fmopt.passes.quantize_weights import QuantizeWeights

    metadata = loading.inspect(resolve(str(checkpoint)), None)
    plain = Graph("onnx", out / "fp32" / "model.onnx", (), ("logits",))
    if not plain.path.is_file():
        to_onnx.export_onnx(loading.load(metadata), {}, out / "fp32.part")
        (out / "fp32.part").replace(out / "fp32")
    context = Context(metadata, load_target("host"), lambda: iter(()))
    for name, (bits, block, method) in wanted.items():
        folder = out / name.replace(" ", "-")
        if folder.is_dir():
            continue
        graph = plain
        for number, step in enumerate(
            (QuantizeWeights(bits=bits, block=block, method=method), QuantizeEmbeddings(), FuseDecoder())
        ):
            graph = step.apply(graph, context, out / f".step-{number}")
        graph.path.parent.replace(folder)
        for number in (0, 1):
            shutil.rmtree(out / f".step-{number}")
        (folder / "pipeline.json").write_text(json.dumps(dict(metadata.pipeline)))


def gguf(checkpoint: Path, out: Path) -> None:
    """The checkpoint for llama.cpp."""
    if not out.is_file():
        beside = out.with_suffix(".part")
        subprocess.run(
            [peer_python(), str(HERE / "peers" / "llama_cpp_gguf.py"), str(checkpoint), str(beside)], check=True
        )
        beside.replace(out)


def peer_python() -> str:
    """The interpreter of llama.cpp's environment, made by peers/setup.sh."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("FMOPT_PEERS") or cache / "fmopt-peers") / "llama_cpp"
    if not (home / ".ready").is_file():
        raise SystemExit("llama.cpp is not installed: benchmarks/peers/setup.sh llama_cpp")
    return str(home / "env" / "bin" / "python")


# ------------------------------------------------------------------------------------------------ our side of the pipe


class Worker:
    """fmopt's graph, answering what peers/llama_cpp_worker.py answers: see there for the requests."""

    def __init__(self, folder: Path, threads: int):
        from fmopt.edge import command as edge_command
        from fmopt.edge import runners

        self.edge = edge_command
        self.runner = runners.open_runner("onnxruntime", folder / "model.onnx", {}, threads)
        self.words = int(self.runner.session.get_outputs()[0].shape[-1])

    def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        from fmopt.edge.generation import Rows

        if request["do"] in ("first", "fill"):
            prompt = np.random.default_rng(0).integers(1, self.words, request["context"]).tolist()
            start = time.perf_counter_ns()
            self.state = Rows(self.runner, [prompt], 0, ROOM)
            self.next = self.state.logits().argmax(axis=1)
            taken = (time.perf_counter_ns() - start) / 1e6
            if request["do"] == "first":
                return {"ms": taken}
            many = np.zeros(request["rows"], dtype=np.int64)
            if len(many) > 1:
                self.state.choose(many)
            self.next = self.next[many]
            return {}
        if request["do"] == "tokens":
            taken = []
            for _ in range(request["count"]):
                start = time.perf_counter_ns()
                self.state.take(self.next)
                self.next = self.state.logits().argmax(axis=1)
                taken.append((time.perf_counter_ns() - start) / 1e6)
            return {"ms": taken, "last": self.next.tolist()}
        if request["do"] == "score":
            return {"logs": [self.score(np.array([text])) for text in request["texts"]]}
        return {"mb": self.edge.peak_memory_mb(), "version": self.edge.package_version("onnxruntime")}

    def score(self, ids: np.ndarray) -> float:
        """Sum of the log-probabilities of all tokens but the first."""
        from fmopt.edge.decoding import log_softmax

        ones = np.ones_like(ids)
        inputs = {"input_ids": ids, "attention_mask": ones, "position_ids": ones.cumsum(axis=1) - 1}
        logs = log_softmax(self.runner.run(inputs)["logits"][0].astype(np.float64))
        return float(logs[np.arange(ids.shape[1] - 1), ids[0, 1:]].sum())


@dataclass
class Contestant:
    """A process that answers requests."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, folder: Path, threads: int) -> Contestant:
        """Open a contestant of the model in `folder`."""
        if name == LLAMA:
            script = HERE / "peers" / "llama_cpp_worker.py"
            command = [peer_python(), str(script), str(folder / "q4_0.gguf"), str(threads)]
        else:
            command = [
                sys.executable,
                __file__,
                "worker",
                str(folder / name.replace(" ", "-")),
                "--threads",
                str(threads),
            ]
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended ({self.process.wait()}): {shlex.join(map(str, self.process.args))}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()


# ------------------------------------------------------------------------------------------------ measuring


def measure(models: Sequence[str], names: Sequence[str], contexts: Sequence[int], batches: Sequence[int],
            threads: int, rounds: int, seed: int) -> list[dict[str, Any]]:  # fmt: skip
    """One row for every model, context and batch: milliseconds of every token, of first tokens, memory, what bounds it."""
    from fmopt.measurement.host_probe import load_target

    bandwidth = load_target("host", fresh=True).bandwidth_gbs
    order, rows = random.Random(seed), []
    for model in models:
        for context in contexts:
            for batch in batches:
                row = one_row(model, names, context, batch, threads, rounds, order)
                for name, found in row["contestants"].items():
                    found["bytes_per_token"] = bytes_read(model, name, context, batch)
                    if bandwidth:
                        found["least_ms"] = found["bytes_per_token"] / bandwidth / 1e6
                rows.append(row | {"bandwidth_gbs": bandwidth})
                print(reported(rows[-1]), flush=True)
    return rows


def one_row(model: str, names: Sequence[str], context: int, batch: int, threads: int, rounds: int,
            order: random.Random) -> dict[str, Any]:  # fmt: skip
    """Fresh processes, so that the peak of memory is that of this context and batch."""
    count = 16 if batch == 1 else 6
    with ExitStack() as stack:
        players = {name: Contestant.start(name, MADE / model, threads) for name in names}
        for player in players.values():
            stack.callback(player.close)
        first: dict[str, list[float]] = {name: [] for name in names}
        tokens: dict[str, list[float]] = {name: [] for name in names}
        prompts = 0 if batch > 1 else {128: 4, 512: 2}.get(context, 1)
        for number in range(prompts + 1 if prompts else 0):
            for name in order.sample(list(names), len(names)):
                taken = players[name].ask(do="first", context=context)["ms"]
                if number or prompts == 1:  # the first warms up, where there is time for another
                    first[name].append(taken)
            if prompts == 1:
                break
        for player in players.values():
            player.ask(do="fill", context=context, rows=batch)
            player.ask(do="tokens", count=3)
        for _ in range(rounds):
            for name in order.sample(list(names), len(names)):
                # The token after a pause finds cold caches; it belongs to no run of tokens.
                tokens[name] += players[name].ask(do="tokens", count=count)["ms"][1:]
        memory = {name: player.ask(do="memory") for name, player in players.items()}
    found = {name: {"token_ms": tokens[name], "first_ms": first[name], "peak_mb": memory[name]["mb"],
                    "version": memory[name]["version"],
                    "tokens_per_second": batch * 1e3 / median(tokens[name])} for name in names}  # fmt: skip
    return {"model": model, "context": context, "batch": batch, "threads": threads, "contestants": found}


def bytes_read(model: str, name: str, context: int, batch: int) -> float:
    """Bytes that a step must read: every weight but the table of embeddings, of which it reads rows, and the cache."""
    config = json.loads((MADE / model / "checkpoint" / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["n_head"]
    layers = config.get("num_hidden_layers") or config["n_layer"]
    size = (config.get("hidden_size") or config["n_embd"]) // (config.get("num_attention_heads") or config["n_head"])
    cache = 2.0 * layers * heads * size * context * batch * (2 if name == LLAMA else 4)  # llama.cpp keeps it in fp16
    if name == LLAMA:
        return cache + (MADE / model / "q4_0.gguf").stat().st_size  # its table is its head too, read as a whole
    import onnx

    from fmopt.exporters.onnx_graph import consumers

    graph = onnx.load(MADE / model / name.replace(" ", "-") / "model.onnx").graph
    readers = consumers(graph)
    looked_up = {tensor.name for tensor in graph.initializer
                 if all(node.op_type == "Gather" for node in readers.get(tensor.name, []))}  # fmt: skip
    return cache + sum(tensor.ByteSize() for tensor in graph.initializer if tensor.name not in looked_up)


def reported(row: Mapping[str, Any]) -> str:
    """A row for people."""
    lines = [f"{row['model']}, context {row['context']}, batch {row['batch']}, {row['threads']} thread(s):"]
    base = row["contestants"].get(LLAMA, {}).get("tokens_per_second")
    for name, found in row["contestants"].items():
        first = f", first token {median(found['first_ms']):.0f} ms" if found["first_ms"] else ""
        ratio = f", {found['tokens_per_second'] / base:.2f}x" if base else ""
        least = found.get("least_ms")
        bound = f", memory allows {row['batch'] * 1e3 / least:.0f}" if least else ""
        lines.append(
            f"  {name:16} {found['tokens_per_second']:7.1f} tokens/s{ratio}{bound}{first}, {found['peak_mb']:.0f} MB"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ what rounding loses


def perplexity(checkpoint: Path, data: str, items: int) -> list[dict[str, Any]]:
    """Perplexity of a trained checkpoint on texts of the test split: in fp32, each of ours, and llama.cpp."""
    from fmopt.core import plugins
    from fmopt.data.datasets import load_data
    from fmopt.edge.text import Preprocessor
    from fmopt.models import checkpoint as loading
    from fmopt.models.source import resolve

    out = MADE / f"trained-{checkpoint.name}"
    out.mkdir(parents=True, exist_ok=True)
    graphs(checkpoint, out, ROUNDED)
    gguf(checkpoint, out / "q4_0.gguf")
    metadata = loading.inspect(resolve(str(checkpoint)), None)
    rows = load_data(data, plugins.find("tasks", metadata.task), metadata).split("test")[:items]
    encode = Preprocessor(checkpoint / "tokenizer.json", dict(metadata.pipeline))
    texts = [encode.ids(row["text"])[: int(metadata.pipeline["max_length"])] for row in rows]
    texts = [text for text in texts if len(text) > 1]
    count = sum(len(text) - 1 for text in texts)
    found = []
    for name in ("fp32", *ROUNDED, LLAMA):
        player = Contestant.start(name, out, 2)
        logs = player.ask(do="score", texts=texts)["logs"]
        player.close()
        value = float(np.exp(-sum(logs) / count))
        found.append({"name": name, "perplexity": value, "tokens": count, "texts": len(texts), "logs": logs})
        print(f"{name:16} {value:.4f} ({100 * (value / found[0]['perplexity'] - 1):+.2f} %)", flush=True)
    return found


# ------------------------------------------------------------------------------------------------ the command


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="do", required=True)
    making, timing = commands.add_parser("make"), commands.add_parser("measure")
    for one in (making, timing):
        one.add_argument("--models", default=",".join(MODELS))
    timing.add_argument("--contestants", default=f"fmopt int4,fmopt int8,{LLAMA}")
    timing.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    timing.add_argument("--batches", default="1,8")
    timing.add_argument("--threads", type=int, default=2)
    timing.add_argument("--rounds", type=int, default=6)
    timing.add_argument("--seed", type=int, default=0)
    timing.add_argument("--small", action="store_true", help="context 128, batch 1, three rounds; writes nothing")
    losing = commands.add_parser("perplexity")
    losing.add_argument("checkpoint", type=Path)
    losing.add_argument("--data", required=True)
    losing.add_argument("--items", type=int, default=400)
    working = commands.add_parser("worker")
    working.add_argument("folder", type=Path)
    working.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if asked.do == "worker":
        worker = Worker(asked.folder, asked.threads)
        for line in sys.stdin:
            print(json.dumps(worker.do(json.loads(line))), flush=True)
    elif asked.do == "make":
        make(asked.models.split(","))
    elif asked.do == "perplexity":
        write("decoding-perplexity", {"rows": perplexity(asked.checkpoint, asked.data, asked.items)})
    else:
        contexts = [128] if asked.small else [int(one) for one in asked.contexts.split(",")]
        batches = [1] if asked.small else [int(one) for one in asked.batches.split(",")]
        names, rounds = asked.contestants.split(","), 3 if asked.small else asked.rounds
        from fmopt.measurement.latency import quiet_machine

        warnings = quiet_machine()
        rows = measure(asked.models.split(","), names, contexts, batches, asked.threads, rounds, asked.seed)
        if not asked.small:
            write("decoding", {"seed": asked.seed, "warnings": warnings, "rows": rows})


def write(name: str, metadata: Mapping[str, Any]) -> None:
    """A result with its circumstances."""
    from fmopt.measurement import host_probe

    day = datetime.now(UTC)
    document = {"command": shlex.join(["python", "benchmarks/decoding.py", *sys.argv[1:]]), "host": host_probe.host_fingerprint(),
                "versions": host_probe.versions(), "date": day.isoformat(timespec="seconds"), **metadata}  # fmt: skip
    path = RESULTS / f"{name}-{day:%Y-%m-%d}.json"
    path.write_text(json.dumps(document))
    print(path.name)


if __name__ == "__main__":
    main()
