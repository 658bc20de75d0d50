"""A process that publishes: ``python -m tests.soak.publisher LEDGER MODE USER|TOPIC...``.

MODE is ``asend`` (idempotent: what failed is sent again with the same id) or ``group``
(``group_send``: what failed has an unknown fate, and the next number follows). SIGTERM ends it
after what it is sending now.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import django

from tests.soak.ledger import Ledger, read

PAUSE = float(os.environ.get("SOAK_PAUSE", "0.02"))
SERVICE = "soak"
LARGE = 20_000
"""Bytes of every 50th message, so that buffers matter."""


def payload(user: str, number: int) -> dict[str, object]:
    """Return what *user*, or a topic, gets as its message *number*."""
    return {"user": user, "n": number, "pad": "x" * (LARGE if number % 50 == 49 else 40)}


async def publish(ledger: Ledger, mode: str, user: str, number: int, stop: asyncio.Event) -> None:
    """Publish to one user or topic, one message after the other, from *number* on."""
    from channels.layers import get_channel_layer

    from wsgateway import asend, asend_topic
    from wsgateway.exceptions import WsGatewayError

    layer = get_channel_layer()
    assert layer is not None
    service, dot, name = user.partition(".")
    to, send = ((service, name), asend_topic) if dot else ((SERVICE, user), asend)
    pause = PAUSE * (4 if dot else 1)  # each message of a topic goes to everybody
    while not stop.is_set():
        text = json.dumps(payload(user, number))
        ledger.note("publishing", user=user, n=number)
        try:
            if mode == "asend":
                receipt = await send(*to, text=text, msg_id=f"{user}.{number}")
                ledger.note("published", user=user, n=number, offset=receipt.offset)
            else:
                await layer.group_send(".".join(to), {"type": "ws.message", "text": text})
                ledger.note("published", user=user, n=number)
        except WsGatewayError as exc:
            ledger.note("refused", user=user, n=number, error=f"{type(exc).__name__}: {exc}"[:200])
            await asyncio.sleep(0.2)
            if mode == "asend":
                continue
        number += 1
        await asyncio.sleep(pause)


async def main(path: Path, mode: str, users: list[str]) -> None:
    """Publish until SIGTERM."""
    following = dict.fromkeys(users, 0)
    for entry in read(path):
        if entry["kind"] == "publishing":
            # Killed while it was being published: the same again; a group's has no id.
            following[entry["user"]] = entry["n"] + (mode == "group")
        elif entry["kind"] == "published":
            following[entry["user"]] = entry["n"] + 1
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ledger = Ledger(path)
    ledger.note("begin", users=users, mode=mode)
    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(publish(ledger, mode, user, following[user], stop))
    ledger.note("end")


if __name__ == "__main__":
    django.setup()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
