"""The gateway with the writes of a topic and nothing behind them: what no topic can beat.

What is published on `SUBJECT` goes to every socket, as the frame that a topic's message makes;
what has come by then, one after the other, as a topic's window does.
Nobody subscribes, nothing is kept, and no window is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from benchmarks.topics_app import SUBJECT
from project.asgi import application as site
from wsgateway.exceptions import BrokerError
from wsgateway.gateway.hub import get_hub
from wsgateway.gateway.sockets import SocketClosed
from wsgateway.protocol.v1.gateway import encode_topic_message

__all__ = ["application"]

AT_ONCE = 256
"""Messages that each socket gets before the next one, as many as a window may hold."""

_tasks: list[asyncio.Task[None]] = []


async def application(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """Serve the site; the first socket starts what writes."""
    if scope["type"] == "websocket" and not _tasks:
        _tasks.append(asyncio.ensure_future(_write()))
    await site(scope, receive, send)


async def _write() -> None:
    hub = get_hub()
    while not hub.broker.ready:
        try:
            await hub.broker.wait_ready()
        except BrokerError:
            await asyncio.sleep(0.1)
    payloads: asyncio.Queue[bytes] = asyncio.Queue()
    hub.broker.bus.subscribe(SUBJECT, lambda _s, _r, data, _h: payloads.put_nowait(bytes(data)))
    number = 0
    while True:
        waiting = [await payloads.get()]
        while not payloads.empty() and len(waiting) < AT_ONCE:
            waiting.append(payloads.get_nowait())
        frames = []
        for payload in waiting:
            number += 1
            frames.append(encode_topic_message("floor.0", number, "", payload, True))
        for _, sessions in list(hub.users()):
            for session in list(sessions):
                try:
                    for frame in frames:
                        await session.socket.write(frame)
                except SocketClosed:
                    continue
