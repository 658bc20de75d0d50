"""Messages that are too big for one of NATS: stored in parts, and a claim in their place.

Only for what is stored; what is not is split (`wire.split`). The claim has the message's place
in the order, and is all that a mailbox holds of it until somebody receives it. Source: the
"claim check" of Hohpe and Woolf, Enterprise Integration Patterns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.broker.nats.specs import OWNER, StreamSpec
from wsgateway.broker.nats.streams import Streams
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, BrokerUnavailable
from wsgateway.layer import wire

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["HEADERS", "Blobs", "ensure_stream"]

logger = logging.getLogger("wsgateway.layer")

HEADERS = 256
"""Bytes of a stored message that are left for its headers."""
READ_BYTES = 8 * 1024 * 1024
"""Bytes that one read may return."""
GRACE = 60
"""Seconds that parts outlive the claims for them."""
PATIENCE = 2.0
"""Seconds after which parts that are not found are gone; a replica may not have them yet."""
KEPT = 2.0
"""Seconds that parts are kept here for other members of a group who want them too."""
NANO = 1_000_000_000


async def ensure_stream(broker: NatsBroker, wanted: dict[str, Any], limit: str, family: str) -> int:
    """Create a stream, or raise its *limit* to what is wanted; return the limit.

    What is wanted to be allowed is allowed.

    Args:
        broker: Where.
        wanted: The configuration, as in the JetStream API.
        limit: The field that differs between processes with different settings.
        family: Prefix of its settings, as for `StreamSpec`.

    Raises:
        BrokerMisconfigured: The stream belongs to another installation.
    """
    name = wanted["name"]
    jetstream = broker.jetstream.patient
    streams = Streams(jetstream, broker.subjects, ())
    spec = StreamSpec({**wanted, "metadata": {OWNER: broker.subjects.prefix}}, family)
    info = await streams.own_info(name) or await streams.create(spec)
    broker.streams.watched.add(name)
    config = info["config"]
    value = int(config[limit])
    changes: dict[str, Any] = {
        key: True for key in wanted if key.startswith("allow_") and not config.get(key)
    }
    if 0 < value < wanted[limit]:
        value = changes[limit] = wanted[limit]
    if "max_bytes" in spec.differences(config):
        changes["max_bytes"] = await streams.limit_in_bytes(spec, info)
    if changes:
        try:
            await jetstream.api(f"STREAM.UPDATE.{name}", {**config, **changes})
        except BrokerError as exc:
            if limit in changes:
                raise
            logger.info("stream %r stays as it is: %s", name, exc)  # we may not be permitted
    return value


class Blobs:
    """The parts that one connection stores and fetches. Call it in the connection's loop.

    Args:
        broker: The connection.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._stream = broker.subjects.stream("blob")
        self._keeps = 0  # seconds that the stream is known to keep parts
        self._coming: dict[bytes, asyncio.Task[bytes | None]] = {}

    # -- store ---------------------------------------------------------------------------

    async def store(
        self, data: bytes, lifetime: float | None = None, identity: bytes | None = None
    ) -> bytes:
        """Store the envelope *data*; return the envelope that stands for it.

        Args:
            data: Of any size; smaller than `wire.MAX_PARTS` messages of the server.
            lifetime: Seconds that somebody may want it; None: as long as inboxes are kept.
            identity: 16 bytes; storing something again under the same ones changes nothing.

        Raises:
            BrokerError: It is not stored, or nobody knows.
        """
        identity = identity or uuid.uuid4().bytes
        headers = {}
        keep = settings.INBOX_MAX_AGE
        if lifetime is not None:
            lifetime = math.ceil(lifetime) + GRACE
            headers["Nats-TTL"] = f"{lifetime}s"
            keep = max(keep, lifetime)
        try:
            await self._ensure(math.ceil(keep))
            room = self._broker.connection.max_payload - HEADERS
            parts = [data[start : start + room] for start in range(0, len(data), room)]
            for index, part in enumerate(parts):  # one after the other: read in this order
                await self._broker.jetstream.publish(
                    self._subject(identity), part, headers, msg_id=f"{identity.hex()}.{index}"
                )
        except BrokerUnavailable:
            self._keeps = 0  # the stream may have been deleted
            raise
        return wire.claim(data, identity, len(parts))

    def _subject(self, identity: bytes) -> str:
        return f"{self._broker.subjects.prefix}.blob.{identity.hex()}"

    async def _ensure(self, keep: int) -> None:
        if self._keeps >= keep:
            return
        wanted = {
            "name": self._stream,
            "subjects": [f"{self._broker.subjects.prefix}.blob.*"],
            "retention": "limits",
            "discard": "new",  # a claim without its parts would be worth nothing
            "max_age": keep * NANO,
            "max_bytes": settings.BLOB_MAX_BYTES,
            "duplicate_window": int(min(settings.DUPLICATE_WINDOW, keep) * NANO),
            "allow_direct": True,
            "allow_msg_ttl": True,
            "storage": settings.STORAGE,
            "num_replicas": settings.REPLICAS,
        }
        kept = await ensure_stream(self._broker, wanted, "max_age", "BLOB")
        self._keeps = keep if kept == 0 else kept // NANO

    # -- fetch ---------------------------------------------------------------------------

    def fetch(self, claim: bytes) -> Awaitable[bytes | None]:
        """Return the envelope that *claim* stands for; None if it is gone.

        Several at once for the same one share what comes.

        Raises:
            BrokerError: It cannot be read now.
            MalformedMessage: *claim* is none.
        """
        identity, count = wire.claimed(claim)
        task = self._coming.get(identity)
        if task is None:
            task = asyncio.create_task(self._fetch(identity, count), name="wsgateway-layer-blob")
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
            except ApiError as exc:
                if exc.err_code != NOT_FOUND:
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
