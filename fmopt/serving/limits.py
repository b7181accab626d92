"""What a request may be: so large, and so many at once."""

from __future__ import annotations

import json
from typing import Any

DISCARDED = 16  # times what a body may have: after so much the line is cut
UNLIMITED = ("/health", "/metrics")  # asked by what watches a server, above all when it is busy


class Limits:
    """ASGI: refuses bodies over `most_bytes` (413) and more than `most_requests` at once (503)."""

    def __init__(self, app: Any, *, most_bytes: int, most_requests: int):
        self.app, self.most_bytes, self.most_requests = app, most_bytes, most_requests
        self.under_way = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http" or scope["path"] in UNLIMITED:
            await self.app(scope, receive, send)
            return
        if self.under_way >= self.most_requests:
            await refuse(
                send, 503, f"{self.under_way} requests are being answered; try again later", ("retry-after", "1")
            )
            return
        self.under_way += 1
        try:
            body = await self._body(receive)
            if body is None:
                await refuse(send, 413, f"the body is larger than {self.most_bytes:,} bytes", ("connection", "close"))
            else:
                await self.app(scope, _again(body, receive), send)
        finally:
            self.under_way -= 1

    async def _body(self, receive: Any) -> bytes | None:
        """The whole body; None when it is larger than it may be. Some more is read and dropped, so that a client which is still
        sending hears why."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                break
            part = message.get("body", b"")
            size += len(part)
            if size <= self.most_bytes:
                parts.append(part)
            if not message.get("more_body") or size > DISCARDED * self.most_bytes:
                break
        return b"".join(parts) if size <= self.most_bytes else None


def _again(body: bytes, receive: Any) -> Any:
    """What gives a body that was read already, and then what else comes."""
    given = False

    async def give() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


async def refuse(send: Any, status: int, reason: str, *headers: tuple[str, str]) -> None:
    """Answer with an error as OpenAI's interface has it."""
    body = json.dumps(error_body(reason, status)).encode()
    sent = [(b"content-type", b"application/json"), *((name.encode(), value.encode()) for name, value in headers)]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


def error_body(reason: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's interface has it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": reason, "type": kind, "code": status}}
