"""How many bytes a stream may have, where the settings leave that to us.

A limit is also a reservation: the server keeps that much free for the stream. So it is a share of
what is free when the stream is made, and small disks get small streams instead of an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from wsgateway.broker.nats.jetstream import NAME_IN_USE, NO_PEERS, ApiError, JetStream
from wsgateway.exceptions import QueueFull
from wsgateway.protocol.subjects import Subjects

__all__ = ["AUTOMATIC", "LEAST", "SHARES", "Room", "share_of"]

AUTOMATIC = 0
"""As a setting of bytes: a share of what the server offers."""
SHARES = {
    "INBOX": 0.4,
    "SEND": 0.2,
    "TOPIC": 0.12,
    "BLOB": 0.1,
    "DEAD": 0.05,
    "CHANNEL": 0.05,
    "CURSOR": 0.02,
}
"""By family."""
SHARED = ("SEND", "TOPIC")
"""Families with a stream for each service: together they have the share, each one a quarter of it
at most."""
LEAST = 1024 * 1024
"""Bytes that a stream has at least."""
MOST = 2**44
"""Where the search for what a server offers begins."""
ATTEMPTS = 20


def share_of(family: str, count: int, free: int) -> int:
    """Return the bytes of one of *count* streams of *family*, if *free* are free."""
    share = SHARES[family]
    if family in SHARED:
        share /= max(4, count)
    return max(LEAST, int(free * share))


class Room:
    """What a server, or the account's limits, offers.

    Args:
        jetstream: Where.
        subjects: Names below the installation's prefix.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects) -> None:
        self._jetstream = jetstream
        self._name = subjects.stream("probe")
        self._subject = f"{subjects.prefix}.probe"

    async def free(self, storage: str, replicas: int) -> int:
        """Return how many bytes one stream could have; at least half of what is free."""
        info = await self._jetstream.api("INFO")
        tier = (info.get("tiers") or {}).get(f"R{replicas}")
        kind = "memory" if storage == "memory" else "storage"
        account: dict[str, Any] = tier or info
        limits = account["limits"]
        if limits[f"max_{kind}"] > 0:
            used = max(account.get(f"reserved_{kind}", 0), account[kind])
            copies = 1 if tier else replicas  # of a limit without tiers each copy takes its part
            free = int(max(0, limits[f"max_{kind}"] - used) // copies)
        else:  # only the server itself is a limit, and says so only to its own account
            free = await self._probe(storage, replicas)
        most = limits.get(f"{kind}_max_stream_bytes", -1)
        return min(free, most) if most > 0 else free

    async def _probe(self, storage: str, replicas: int) -> int:
        """Find the largest power of two that the server reserves for a stream."""
        await self._end()  # of a process that was killed while it looked
        size = MOST
        while size > LEAST:
            if await self._fits(size, storage, replicas):
                return size
            size //= 2
        return LEAST

    async def _fits(self, size: int, storage: str, replicas: int) -> bool:
        config = {
            "name": self._name,
            "subjects": [self._subject],
            "max_bytes": size,
            "storage": storage,
            "num_replicas": replicas,
        }
        for _ in range(ATTEMPTS):
            try:
                await self._jetstream.api(f"STREAM.CREATE.{self._name}", config)
            except QueueFull:
                return False
            except ApiError as exc:
                if exc.err_code == NO_PEERS:
                    return False
                if exc.err_code != NAME_IN_USE:
                    raise
                await asyncio.sleep(0.1)  # another process looks, too
                await self._end()
            else:
                await self._end()
                return True
        return False

    async def _end(self) -> None:
        with contextlib.suppress(ApiError):  # another process was faster
            await self._jetstream.api(f"STREAM.DELETE.{self._name}")
