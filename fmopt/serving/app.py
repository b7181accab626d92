"""The routes of a server: OpenAI's for embeddings and completions, the task's own, health and counts."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fmopt.core.errors import DataError, FmoptError, first_fault
from fmopt.core.model import continues_texts
from fmopt.exporters.bundles.bundle import Bundle
from fmopt.serving.batching import Batcher, OverloadError
from fmopt.serving.limits import Limits, error_body
from fmopt.serving.metrics import CONTENT_TYPE, Metrics
from fmopt.serving.wire import CompletionsRequest, EmbeddingsRequest, PredictRequest

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Wanted = TypeVar("Wanted", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """How a bundle is served."""

    name: str  # of the model, in answers
    workers: int = 1  # calls of the model at once
    most_batch: int = 32  # items in one call
    delay_s: float = 0.0  # how long a batch waits for more
    timeout_s: float = 30.0  # of one request
    most_bytes: int = 4_000_000  # of a body
    most_requests: int = 256  # at once
    most_waiting: int = 4096  # items, of all requests
    hosts: tuple[str, ...] = LOOPBACK  # names that the server answers to; "*" is any


class BadRequestError(FmoptError):
    """A body that is not what the route takes."""


def create_app(model: Bundle, settings: Settings) -> FastAPI:
    """The server of one opened bundle, as an ASGI application."""
    metrics = Metrics()
    server = Server(model, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.stop)

    app = FastAPI(title="fmopt", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Limits, most_bytes=settings.most_bytes, most_requests=settings.most_requests)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))
    for path, serve in server.routes().items():
        app.add_api_route(path, counted(path, serve, metrics), methods=["POST"])
    app.add_exception_handler(
        404, lambda request, error: error_response(404, f"there is no {request.url.path} here; {server.offers}")
    )
    app.add_exception_handler(
        405, lambda request, error: error_response(405, f"{request.method} is not for {request.url.path}")
    )
    app.add_api_route("/v1/models", server.models, methods=["GET"])
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/metrics", lambda: Response(metrics.text(), media_type=CONTENT_TYPE), methods=["GET"])
    return app


def counted(
    route: str, serve: Callable[[bytes], Awaitable[Response]], metrics: Metrics
) -> Callable[[Request], Awaitable[Response]]:
    """A route that is counted, and whose faults are answered in one line with the status that fits."""

    async def answer(request: Request) -> Response:
        begun = time.monotonic()
        try:
            response = await serve(await request.body())
        except (BadRequestError, DataError) as error:
            response = error_response(400, str(error))
        except OverloadError as error:
            response = error_response(503, str(error))
            response.headers["retry-after"] = "1"
        except FmoptError as error:
            response = error_response(500, str(error))
        except TimeoutError:
            response = error_response(504, "it took too long; ask for less at once, or again later")
        metrics.request(route, response.status_code, time.monotonic() - begun)
        return response

    return answer


def error_response(status: int, reason: str) -> JSONResponse:
    """An error as OpenAI's interface has it."""
    return JSONResponse(error_body(reason, status), status)


def read(body: bytes, kind: type[Wanted]) -> Wanted:
    """A checked body; BadRequestError names the first fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise BadRequestError(first_fault(error)) from error


class Server:
    """One bundle, and what is asked of it."""

    def __init__(self, model: Bundle, settings: Settings, metrics: Metrics):
        self.model, self.settings, self.metrics = model, settings, metrics
        self.batcher: Batcher | None = None
        self.since = int(time.time())
        self._streams = asyncio.Semaphore(settings.workers)

    def start(self) -> None:
        """Begin to answer."""
        given = self.settings
        self.batcher = Batcher(
            self.model, workers=given.workers, most=given.most_batch, waiting=given.most_waiting,
            delay_s=given.delay_s, seen=self.metrics.batch,
        )  # fmt: skip
        self.metrics.watch(lambda: self.batcher.depth if self.batcher else 0)

    def stop(self) -> None:
        """Answer what waits, and end."""
        if self.batcher is not None:
            self.batcher.close()
        self.model.close()

    def routes(self) -> dict[str, Callable[[bytes], Awaitable[Response]]]:
        """What this bundle's task can be asked for."""
        found: dict[str, Callable[[bytes], Awaitable[Response]]] = {"/predict": self.predict}
        if "pooling" in self.model.pipeline:  # vectors of texts
            found["/v1/embeddings"] = self.embeddings
        if continues_texts(self.model.pipeline):
            found["/v1/completions"] = self.completions
        return found

    @property
    def offers(self) -> str:
        """What can be asked for, in words."""
        return f"this bundle answers to {', '.join(self.routes())}, /v1/models, /health and /metrics"

    async def answered(self, samples: list[Any], **options: Any) -> list[Any]:
        """The answers to the samples of one request."""
        assert self.batcher is not None
        return await self.batcher.answer(samples, options, self.settings.timeout_s)

    async def health(self) -> JSONResponse:
        """That it answers."""
        return JSONResponse({"status": "ok", "model": self.settings.name, "task": self.model.pipeline["task"]})

    async def models(self) -> JSONResponse:
        """The one model."""
        entry = {"id": self.settings.name, "object": "model", "created": self.since, "owned_by": "fmopt"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def predict(self, body: bytes) -> Response:
        """The task's own answers: {"outputs": [...]}."""
        return JSONResponse({"outputs": await self.answered(read(body, PredictRequest).samples)})

    async def embeddings(self, body: bytes) -> Response:
        """OpenAI's embeddings."""
        asked = read(body, EmbeddingsRequest)
        vectors = await self.answered(asked.input)
        size = len(vectors[0])
        if asked.dimensions not in (None, size):
            raise BadRequestError(f"dimensions: this model's vectors have {size}; leave it out")
        tokens = await asyncio.to_thread(self._tokens, asked.input)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": self.settings.name, "data": data, "usage": usage})

    async def completions(self, body: bytes) -> Response:
        """OpenAI's completions; with "stream", in pieces as they are made (server-sent events)."""
        asked = read(body, CompletionsRequest)
        about = {"id": f"cmpl-{time.time_ns():x}", "object": "text_completion", "created": int(time.time()),
                 "model": self.settings.name}  # fmt: skip
        if asked.stream:
            if len(asked.prompt) > 1:
                raise BadRequestError("stream: give one prompt")
            pieces = self.model.stream(asked.prompt[0], **asked.options)
            first = await asyncio.to_thread(_next, pieces)  # what is wrong with the prompt is said by a status
            return StreamingResponse(self._events(about, first, pieces), media_type="text/event-stream")
        made = await self.answered(asked.prompt, **asked.options)
        choices = [
            {"index": index, "text": one["text"], "finish_reason": one["ended"], "logprobs": None}
            for index, one in enumerate(made)
        ]
        read_, written = await asyncio.to_thread(self._tokens, asked.prompt), sum(one["tokens"] for one in made)
        usage = {"prompt_tokens": read_, "completion_tokens": written, "total_tokens": read_ + written}
        return JSONResponse({**about, "choices": choices, "usage": usage})

    async def _events(
        self, about: dict[str, Any], step: tuple[str, str | None], pieces: Generator[str, None, str]
    ) -> AsyncIterator[str]:
        def event(text: str, ended: str | None) -> str:
            choice = {"index": 0, "text": text, "finish_reason": ended, "logprobs": None}
            return f"data: {json.dumps({**about, 'choices': [choice]})}\n\n"

        async with self._streams:
            while step[1] is None:
                yield event(*step)
                step = await asyncio.to_thread(_next, pieces)
        yield event(*step)
        yield "data: [DONE]\n\n"

    def _tokens(self, texts: list[str]) -> int:
        return sum(len(row) for rows in self.model.preprocessor.rows(texts) for row in rows)


def _next(pieces: Generator[str, None, str]) -> tuple[str, str | None]:
    """The next piece and None; at the end nothing, and how it ended."""
    try:
        return next(pieces), None
    except StopIteration as end:
        return "", str(end.value or "stop")


def _encoded(vector: list[float], how: str) -> Any:
    if how == "float":
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
