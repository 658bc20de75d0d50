"""Data that is too big for one message: stored in parts, in a stream of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from wsgateway.broker.channels import BlobStore
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.broker.nats.specs import NANO, blob_stream
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable, NobodyAnswers
from wsgateway.supervision import share

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["NatsBlobStore"]

READ_BYTES = 8 * 1024 * 1024
"""Bytes that one read may return."""
GRACE = 60
"""Seconds that parts outlive the claims for them."""
PATIENCE = 2.0
"""Seconds after which parts that are not found are gone; a replica may not have them yet."""
KEPT = 2.0
"""Seconds that parts are kept here for others who want them too: members of a group."""


class NatsBlobStore(BlobStore):
    """See `BlobStore`.

    Args:
        broker: The connection.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._stream = broker.subjects.stream("blob")
        self._keeps = 0  # seconds that the stream is known to keep parts
        self._coming: dict[bytes, asyncio.Task[bytes | None]] = {}

    # -- store ---------------------------------------------------------------------------

    async def store(self, identity: bytes, data: bytes, lifetime: float | None = None) -> int:
        headers = {}
        keep = settings.INBOX_MAX_AGE
        if lifetime is not None:
            lifetime = math.ceil(lifetime) + GRACE
            headers["Nats-TTL"] = f"{lifetime}s"
            keep = max(keep, lifetime)
        try:
            await self._ensure(math.ceil(keep))
            room = self._broker.channels.max_size
            parts = [data[start : start + room] for start in range(0, len(data), room)]
            for index, part in enumerate(parts):  # one after the other: read in this order
                await self._broker.jetstream.publish(
                    self._subject(identity), part, headers, msg_id=f"{identity.hex()}.{index}"
                )
        except BrokerUnavailable:
            self._keeps = 0  # the stream may have been deleted
            raise
        return len(parts)

    def _subject(self, identity: bytes) -> str:
        return f"{self._broker.subjects.prefix}.blob.{identity.hex()}"

    async def _ensure(self, keep: int) -> None:
        if self._keeps >= keep:
            return
        spec = blob_stream(self._broker.subjects, settings, keep)
        info = await self._broker.streams.patient.ensure(spec)
        self._keeps = int(info["config"]["max_age"]) // NANO or keep

    async def remove(self, identity: bytes) -> None:
        request = {"filter": self._subject(identity)}
        try:
            await self._broker.jetstream.api(f"STREAM.PURGE.{self._stream}", request)
        except ApiError as exc:
            if exc.err_code != NOT_FOUND:
                raise

    # -- fetch ---------------------------------------------------------------------------

    def fetch(self, identity: bytes, count: int) -> Awaitable[bytes | None]:
        """See `BlobStore.fetch`. Several at once for the same data share what comes."""
        task = self._coming.get(identity)
        if task is None:
            task = share(self._fetch(identity, count), "wsgateway-blob")
            self._coming[identity] = task
            task.add_done_callback(lambda task: self._fetched(identity, task))
        return asyncio.shield(task)

    def _fetched(self, identity: bytes, task: asyncio.Task[bytes | None]) -> None:
        if task.cancelled() or task.exception() is not None or task.result() is None:
            del self._coming[identity]
        else:
            task.get_loop().call_later(KEPT, self._coming.pop, identity)

    async def _fetch(self, identity: bytes, count: int) -> bytes | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                parts = await self._parts(identity, count)
            except NobodyAnswers:
                if await self._broker.streams.info(self._stream) is not None:
                    raise
                parts = []
            if len(parts) == count:
                return b"".join(parts)
            if loop.time() > deadline:
                return None
            await asyncio.sleep(PATIENCE / 10)

    async def _parts(self, identity: bytes, count: int) -> list[bytes]:
        parts: list[bytes] = []
        request = {"seq": 1, "next_by_subj": self._subject(identity), "max_bytes": READ_BYTES}
        while len(parts) < count:
            request["batch"] = count - len(parts)
            found = await self._broker.jetstream.direct(self._stream, request)
            if not found.replies:
                break
            parts += [reply.data for reply in found.replies]
            last = hdrs.find_int(found.replies[-1].headers, b"Nats-Sequence") or 0
            request["seq"] = last + 1
        return parts
