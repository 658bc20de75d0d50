"""Back a stream up and restore it, as ``nats stream backup`` and ``nats stream restore`` do."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from wsgateway.broker.bus import new_reply_subject
from wsgateway.broker.nats.broker import NatsBroker


class Backup(NamedTuple):
    """What a stream was."""

    config: dict[str, Any]
    state: dict[str, Any]
    chunks: list[bytes]


async def back_up(broker: NatsBroker, stream: str) -> Backup:
    """Return a copy of *stream*. Source: NATS ADR-1, ``$JS.API.STREAM.SNAPSHOT``."""
    chunks: list[bytes] = []
    ended = asyncio.Event()

    def take(_subject: bytes, reply: bytes, data: bytes, _headers: bytes | None) -> None:
        if not data:
            ended.set()
            return
        chunks.append(data)
        broker.connection.publish(reply.decode(), b"")

    subject = new_reply_subject()
    subscription = broker.connection.subscribe(subject, take)
    request = {"deliver_subject": subject, "no_consumers": True}
    answer = await broker.jetstream.api(f"STREAM.SNAPSHOT.{stream}", request)
    async with asyncio.timeout(10):
        await ended.wait()
    subscription.close()
    return Backup(answer["config"], answer["state"], chunks)


async def restore(broker: NatsBroker, stream: str, backup: Backup) -> None:
    """Put *stream* back as it was; what was stored since is gone."""
    await broker.jetstream.api(f"STREAM.DELETE.{stream}")
    request = {"config": backup.config, "state": backup.state}
    answer = await broker.jetstream.api(f"STREAM.RESTORE.{stream}", request)
    for chunk in (*backup.chunks, b""):
        reply = await broker.connection.request(answer["deliver_subject"], chunk)
    assert "error" not in json.loads(reply.data or b"{}"), reply.data
