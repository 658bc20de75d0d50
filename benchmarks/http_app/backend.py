"""The backend of both systems, as an ASGI application: it answers each frame with its data.

wsgateway posts a frame to ``/webhook/``. Pushpin asks it about every connection, with GRIP, and
posts frames as WebSocket-over-HTTP. It checks neither's signature, and stores nothing.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.http_app import TOPIC

__all__ = ["application"]

Answer = tuple[list[tuple[bytes, bytes]], bytes]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer a request."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    kind, user = scope["path"].strip("/").split("/")[:2] if scope["path"] != "/" else ("", "")
    headers, answer = {"sse": _hold, "ws": _frames}.get(kind, _webhook)(user, body)
    length = (b"content-length", b"%d" % len(answer))
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": answer})


def _webhook(_user: str, body: bytes) -> Answer:
    data = json.loads(body)["data"]["text"] if body else ""
    return [(b"content-type", b"application/json")], json.dumps(data).encode()


def _hold(user: str, _body: bytes) -> Answer:
    """Have Pushpin keep a response open, and add what is published to either channel."""
    channels = [(b"grip-channel", name.encode()) for name in (TOPIC, user)]
    headers = [(b"content-type", b"text/event-stream"), (b"grip-hold", b"stream"), *channels]
    return headers, b":\n\n"


def _frames(user: str, body: bytes) -> Answer:
    """Accept a connection, or answer its frames."""
    answer = b""
    for kind, content in _events(body):
        if kind == b"OPEN":
            answer += b"OPEN\r\n"
            for name in (TOPIC, user):
                answer += _text(b'c:{"type":"subscribe","channel":"%b"}' % name.encode())
        elif kind == b"TEXT":
            answer += _text(content)
    extension = b'grip; message-prefix=""'
    return [
        (b"content-type", b"application/websocket-events"),
        (b"sec-websocket-extensions", extension),
    ], answer


def _events(body: bytes) -> list[tuple[bytes, bytes]]:
    found, start = [], 0
    while start < len(body):
        end = body.index(b"\r\n", start)
        kind, _, size = body[start:end].partition(b" ")
        start = end + 2
        content = b""
        if size:
            stop = start + int(size, 16)
            content, start = body[start:stop], stop + 2
        found.append((kind, content))
    return found


def _text(content: bytes) -> bytes:
    return b"TEXT %x\r\n%b\r\n" % (len(content), content)
