"""Revoked means closed: ends open sockets when what let them in has ended.

Django processes broadcast what Django signals (`wsgateway.receivers`); a gateway closes the sockets
that it concerns. Whatever is not signalled, and whatever a gateway missed while it was not
connected, is found by asking again: every WSGATEWAY_REVALIDATE_INTERVAL seconds, and after each
reconnect.

A broadcast names sessions and users by keyed digests: someone who reads along learns nothing, and
someone who makes one up closes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Protocol

from channels.db import database_sync_to_async
from django.utils.crypto import salted_hmac

from wsgateway.broker.base import Broker
from wsgateway.conf import settings
from wsgateway.exceptions import reason_of
from wsgateway.identity import Identity
from wsgateway.identity.voiding import has_void_token
from wsgateway.logins import reasons_to_close
from wsgateway.protocol.codes import CloseCode

__all__ = [
    "TOPIC",
    "Notice",
    "Revocable",
    "Revocations",
    "areasons_to_close",
    "session_digest",
    "user_digest",
]

logger = logging.getLogger("wsgateway")

TOPIC = "revoked"
BATCH = 500
"""Logins in one question to the database. SQLite takes 999 parameters."""
PAUSE = 0.5
"""Seconds between a broadcast and what follows from it, unless a session has ended for good: Django
says that a password has changed before it rotates the session of the browser that changed it, and
rotates that before the browser gets the new cookie. A new socket waits as long until it is asked
about: it may have been let in just before a logout, and have missed the broadcast."""
UNTIL_COMMITTED = (0.0, 1.0, 3.0, 8.0, 20.0)
"""Seconds after which the database is asked about a change that was not committed yet."""
RETRY = 5.0
"""Seconds until the database is asked again after it has failed."""


class Notice(StrEnum):
    """What a broadcast says; each is followed by one or two digests."""

    ENDED = "ended"
    """A session: it is over."""
    ROTATED = "rotated"
    """A session: its user goes on under another key."""
    REPLACED = "replaced"
    """A session, then a user: the browser goes on as that user under another key."""
    CHANGED = "changed"
    """A user: look whether they may still be logged in."""
    UNCOMMITTED = "uncommitted"
    """A session or a user: look now and again; nobody knows when the change is committed."""
    RETURN = "return"
    """A user: sockets with a session come back, because the gateway cannot tell which has ended."""


def session_digest(session_key: str) -> str:
    """Return what names a session in a broadcast."""
    return _digest(f"session {session_key}")


def user_digest(user_id: str) -> str:
    """Return what names a Django user in a broadcast."""
    return _digest(f"user {user_id}")


def _digest(name: str) -> str:
    return salted_hmac("wsgateway.gateway.revocation", name, algorithm="sha256").hexdigest()


def _digests(identity: Identity) -> Iterator[str]:
    if identity.session_key is not None:
        yield session_digest(identity.session_key)
    if identity.user_id is not None:
        yield user_digest(identity.user_id)


class Revocable(Protocol):
    """An open socket."""

    @property
    def identity(self) -> Identity:
        """Whose it is, and by what right."""

    @property
    def log_fields(self) -> Mapping[str, object]:
        """Names it in the log."""

    def close_soon(self, code: CloseCode) -> None:
        """Close it from a callback. Idempotent."""


class Revocations:
    """Closes the sockets of one event loop. Call everything in that loop; run `run` as a task.

    Args:
        broker: Brings the broadcasts.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._sockets: dict[Revocable, list[str]] = {}  # those that can be revoked; their digests
        self._named: dict[str, set[Revocable]] = {}  # the same by digest
        self._ends: dict[Revocable, asyncio.TimerHandle] = {}  # of those whose login expires
        self._unchecked: set[Revocable] = set()  # to be asked about soon
        self._news = asyncio.Event()  # set while there are unchecked ones

    def listen(self) -> None:
        """Hear broadcasts from now on, and ask about every socket after each reconnect."""
        self._broker.listen(TOPIC, self._on_broadcast)
        self._broker.on_ready(self.check_all)

    def add(self, socket: Revocable) -> None:
        """Watch a socket from now on; its login is checked once more a moment later."""
        digests = list(_digests(socket.identity))
        remaining = socket.identity.expires_in
        if not digests and remaining is None:
            return
        self._sockets[socket] = digests
        if remaining is not None:
            later = asyncio.get_running_loop().call_later
            self._ends[socket] = later(remaining, self._on_end, socket)
        for digest in digests:
            self._named.setdefault(digest, set()).add(socket)
        if digests:
            self._check_soon([socket])

    def discard(self, socket: Revocable) -> None:
        """Forget a socket that is gone. Idempotent."""
        self._unchecked.discard(socket)
        if end := self._ends.pop(socket, None):
            end.cancel()
        for digest in self._sockets.pop(socket, ()):
            named = self._named[digest]
            named.discard(socket)
            if not named:
                del self._named[digest]

    def _on_end(self, socket: Revocable) -> None:
        """Close a socket whose login has expired."""
        _close([socket], CloseCode.NOT_AUTHENTICATED)

    def check_all(self) -> None:
        """Ask soon whether each socket's login still holds."""
        self._check_soon(self._sockets)

    def _check_soon(self, sockets: Iterable[Revocable]) -> None:
        self._unchecked.update(sockets)
        if self._unchecked:
            self._news.set()

    # -- what Django signals -----------------------------------------------------------------

    def _on_broadcast(self, payload: bytes) -> None:
        """Do what each line says; a line that means nothing is skipped."""
        for line in payload.decode("ascii", "replace").splitlines():
            notice, _, digests = line.partition(" ")
            name, _, other = digests.partition(" ")
            self._on_notice(notice, list(self._named.get(name, ())), other)

    def _on_notice(self, notice: str, sockets: list[Revocable], user: str) -> None:
        if notice == Notice.ENDED:
            _close(sockets, CloseCode.NOT_AUTHENTICATED)
        elif notice == Notice.ROTATED:
            _close_later(sockets)
        elif notice == Notice.REPLACED:
            same = self._named.get(user, set())
            _close_later([s for s in sockets if s in same])
            _close([s for s in sockets if s not in same], CloseCode.NOT_AUTHENTICATED)
        elif notice == Notice.RETURN:
            _close_later([s for s in sockets if s.identity.session_key is not None])
        elif notice == Notice.CHANGED:
            self._check_soon(sockets)
        elif notice == Notice.UNCOMMITTED and sockets:
            loop = asyncio.get_running_loop()
            for delay in UNTIL_COMMITTED:
                loop.call_later(delay, self._check_open, sockets)

    def _check_open(self, sockets: Collection[Revocable]) -> None:
        self._check_soon(s for s in sockets if s in self._sockets)

    # -- what nobody signals -----------------------------------------------------------------

    async def run(self) -> None:
        """Ask whether logins still hold, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + _spread(settings.REVALIDATE_INTERVAL)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._news.wait()
            if loop.time() >= due:
                due = loop.time() + _spread(settings.REVALIDATE_INTERVAL)
                # Asked twice: this may be the moment between a new password and a new session
                await self._check(list(self._sockets), self._check_again)
                continue
            await asyncio.sleep(PAUSE)
            sockets, self._unchecked = self._unchecked, set()
            self._news.clear()
            await self._check(sockets, _close)

    def _check_again(self, sockets: Collection[Revocable], code: CloseCode) -> None:
        self._check_soon(sockets)

    async def _check(
        self,
        sockets: Collection[Revocable],
        revoked: Callable[[Collection[Revocable], CloseCode], None],
    ) -> None:
        """Ask about *sockets*, and call *revoked* with those whose right has ended."""
        now = time.time()
        with_login = []
        for socket in sockets:
            expires_at = socket.identity.expires_at
            if expires_at is not None and expires_at <= now:  # the clock was set, or the host slept
                self._on_end(socket)
            elif self._sockets.get(socket):
                with_login.append(socket)
        remaining = iter(with_login)
        while batch := list(islice(remaining, BATCH)):
            try:
                for socket, code in await self._check_batch(batch):
                    revoked([socket], code)
            except Exception as exc:
                logger.warning("cannot check the logins of open sockets now: %s", reason_of(exc))
                self._check_soon(s for s in [*batch, *remaining] if s in self._sockets)
                await asyncio.sleep(RETRY)

    async def _check_batch(self, batch: list[Revocable]) -> list[tuple[Revocable, CloseCode]]:
        codes = await areasons_to_close([socket.identity for socket in batch])
        found: list[tuple[Revocable, CloseCode]] = []
        known: dict[str, float] = {}  # since when tokens count
        for socket, code in zip(batch, codes, strict=True):
            if code is not None:
                found.append((socket, code))
            elif await has_void_token(self._broker, socket.identity, known):
                found.append((socket, CloseCode.NOT_AUTHENTICATED))
        return found


areasons_to_close = database_sync_to_async(reasons_to_close)
"""Asks the database why sockets must close; see `reasons_to_close`."""


def _close(sockets: Collection[Revocable], code: CloseCode) -> None:
    for socket in sockets:
        user, service = socket.identity.user, socket.identity.service
        text = "closing a socket of %r at the service %r with %d: %s"
        log_fields = {**socket.log_fields, "code": int(code)}
        logger.info(text, user, service, code, code.reason, extra=log_fields)
        socket.close_soon(code)


def _close_later(sockets: Collection[Revocable]) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(PAUSE, _close, sockets, CloseCode.CREDENTIALS_CHANGED)


def _spread(seconds: float) -> float:
    """Return a little less than *seconds*, so that gateways do not all ask at once."""
    return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
