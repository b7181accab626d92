"""llama.cpp behind a pipe for benchmarks/decoding.py: one JSON request a line on stdin, one answer a line on stdout.

    python llama_cpp_worker.py MODEL.gguf THREADS

Requests: {"do": "first", "context": C}      milliseconds from a prompt of C tokens to its first new token
          {"do": "fill", "context": C, "rows": R}   C tokens for each of R rows, computed once and copied
          {"do": "tokens", "count": N}       N greedy tokens for every row after what was filled; milliseconds of each
          {"do": "score", "texts": [[id, …], …]}    log-probability of each text's tokens, given those before them
          {"do": "memory"}                   largest memory this process ever held, in MB
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import llama_cpp as lib
import numpy as np

LONGEST, MOST_ROWS = 2048 + 256, 8


class Worker:
    """A model with a context for `rows` texts; everything else at llama.cpp's defaults."""

    def __init__(self, path: str, threads: int):
        lib.llama_log_set(QUIET, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.threads = threads
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        self.words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.context, self.size, self.rows = None, (0, 0), 1

    def open(self, tokens: int, rows: int) -> None:
        """A context with room for so many tokens of so many rows, emptied."""
        if self.size != (tokens, rows):
            if self.context is not None:
                lib.llama_free(self.context)
            params = lib.llama_context_default_params()
            params.n_ctx, params.n_seq_max = tokens * rows, rows
            params.n_batch = max(tokens, rows)
            params.n_threads = params.n_threads_batch = self.threads
            self.context = lib.llama_init_from_model(self.model, params)
            self.size = tokens, rows
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.rows, self.kv_cache = rows, 0

    def decode(self, rows: list[list[int]], all_logits: bool = False) -> np.ndarray:
        """Take tokens in, the same number for each row; logits float32 [rows, words], or of every token of a single row."""
        count = len(rows) * len(rows[0])
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        wanted = []
        for index in range(count):
            row, place = divmod(index, len(rows[0]))
            batch.token[index], batch.pos[index] = rows[row][place], self.kv_cache + place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = all_logits or place == len(rows[0]) - 1
            if batch.logits[index]:
                wanted.append(index)
        code = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        self.kv_cache += len(rows[0])
        views = (np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, one), (self.words,)) for one in wanted)
        return np.stack(list(views)) if all_logits else np.stack([view.argmax() for view in views])

    def prompt(self, context: int) -> list[int]:
        """The same numbers that decoding.py gives to every contestant."""
        return np.random.default_rng(0).integers(1, self.words, context).tolist()

    def do(self, request: dict) -> dict:
        """Answer one request."""
        if request["do"] == "first":
            self.open(LONGEST, 1)
            prompt = self.prompt(request["context"])
            start = time.perf_counter_ns()
            self.decode([prompt])
            return {"ms": (time.perf_counter_ns() - start) / 1e6}
        if request["do"] == "fill":
            self.open(LONGEST, request["rows"])
            token = int(self.decode([self.prompt(request["context"])])[0])
            memory = lib.llama_get_memory(self.context)
            for row in range(1, request["rows"]):
                lib.llama_memory_seq_cp(memory, 0, row, -1, -1)
            self.next = [token] * request["rows"]
            return {}
        if request["do"] == "tokens":
            taken = []
            for _ in range(request["count"]):
                start = time.perf_counter_ns()
                self.next = self.decode([[token] for token in self.next]).tolist()
                taken.append((time.perf_counter_ns() - start) / 1e6)
            return {"ms": taken, "last": self.next}
        if request["do"] == "score":
            return {"logs": [self.score(text) for text in request["texts"]]}
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return {"mb": int(found.group(1)) * 1024 / 1e6 if found else None, "version": version("llama-cpp-python")}

    def score(self, text: list[int]) -> float:
        """Sum of the log-probabilities of all tokens but the first."""
        self.open(512, 1)
        logits = self.decode([text], all_logits=True)[:-1].astype(np.float64)
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return float((logits[np.arange(len(text) - 1), text[1:]] - total).sum())


@lib.llama_log_callback
def QUIET(level: int, text: bytes, data: object) -> None:  # noqa: N802
    """Say nothing."""


def main() -> None:
    """Answer until stdin ends."""
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        print(json.dumps(worker.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
