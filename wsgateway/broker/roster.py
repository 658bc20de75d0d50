"""Which processes of a kind exist: gateways, workers, and the like.

An entry is a hint, never the truth: it is there while its process refreshes it, and for
``WSGATEWAY_ROSTER_TTL`` seconds after. It says whom to ask. What a process does, and whether it
is there at all, is asked on its own subject; see `wsgateway.broker.inquiry`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.subjects import MAX_MEMBER_ID
from wsgateway.supervision import supervise

__all__ = ["Details", "Roster", "new_member_id"]

Details = Mapping[str, Any]
"""What an entry says besides who it is; JSON."""
REFRESHES = 5
"""How often an entry is written in the time after which it would be gone. An election of a stream's
leader takes NATS 4 to 9 s, and nothing is written until it is over."""
REFRESH_EACH = 3.0
"""Seconds between two writes at most: `setup_streams` may not have changed the bucket yet."""


def new_member_id() -> str:
    """Return a new id for this process: readable, unique, one plain token of a subject."""
    tail = f"-{os.getpid()}-{secrets.token_hex(2)}"
    host = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname()) or "host"
    return host[: MAX_MEMBER_ID - len(tail)] + tail


class Roster(ABC):
    """The processes that exist. Call everything in the loop that opened its broker."""

    def __init__(self) -> None:
        self._joined: dict[tuple[str, str], Details] = {}  # entries to refresh
        self._known: dict[str, dict[str, Details]] = {}  # by kind, as last read
        self._heard: dict[tuple[str, str], float] = {}  # when each was last heard of, monotonic
        self._due = asyncio.Event()  # set when a refresh must not wait for its interval
        self._refreshing: asyncio.Task[None] | None = None  # while there are entries

    async def join(self, kind: str, id: str, details: Details | None = None) -> None:
        """Enter a process; return once that is stored. It is refreshed until `leave`.

        Args:
            kind: One token, for example ``gateway``.
            id: As `new_member_id` makes it.
            details: What others may want to know even while the process is silent.

        Raises:
            BrokerError: It is not stored. It is tried again with each refresh.
        """
        self._joined[kind, id] = details or {}
        if self._refreshing is None:
            self._refreshing = supervise(self._refresh, "wsgateway-roster")
        await self._store(kind, id, details or {})

    def leave(self, kind: str, id: str) -> None:
        """Take a process out; do not wait. Idempotent."""
        if self._joined.pop((kind, id), None) is not None:
            with contextlib.suppress(BrokerError):
                self._remove(kind, id)

    def renew(self) -> None:
        """Refresh soon, as after a reconnect."""
        self._due.set()

    async def members(self, kind: str) -> dict[str, Details]:
        """Return who exists, by id; it may lag behind, and lists a killed process for a while.

        Raises:
            BrokerError: It could not be read.
        """
        found = self._known[kind] = await self._load(kind)
        return found

    def known(self, kind: str) -> Mapping[str, Details]:
        """Return what `members` returned last; empty before."""
        return self._known.get(kind, {})

    def hear(self, kind: str, ids: Iterable[str]) -> None:
        """Note that processes have answered a question just now."""
        now = monotonic()
        self._heard.update(((kind, id), now) for id in ids)

    def heard(self, kind: str) -> list[str]:
        """Return who answered within ``WSGATEWAY_ROSTER_TTL``, though it may not be listed.

        While JetStream stores nothing, entries go, and their processes are still there.
        """
        since = monotonic() - settings.ROSTER_TTL
        self._heard = {key: at for key, at in self._heard.items() if at > since}
        return [id for each, id in self._heard if each == kind]

    def close(self) -> None:
        """Refresh nothing any more; entries that are left go in time. Idempotent."""
        self._joined.clear()
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None

    async def _refresh(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(settings.ROSTER_TTL / REFRESHES, REFRESH_EACH)):
                    await self._due.wait()
            self._due.clear()
            with contextlib.suppress(BrokerError):  # not connected: `renew` follows
                for (kind, id), details in self._joined.items():
                    self._touch(kind, id, details)

    @abstractmethod
    async def _store(self, kind: str, id: str, details: Details) -> None:
        """Write an entry, and make sure that it is stored."""

    @abstractmethod
    def _touch(self, kind: str, id: str, details: Details) -> None:
        """Write an entry again, without waiting."""

    @abstractmethod
    def _remove(self, kind: str, id: str) -> None:
        """Remove an entry, without waiting."""

    @abstractmethod
    async def _load(self, kind: str) -> dict[str, Details]:
        """Read the entries of a kind."""
