"""How far each device with a socket here has read its inbox, and writing that to the broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol

from wsgateway import counters
from wsgateway.broker.base import Broker
from wsgateway.broker.subscriptions import wait_usable
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerUnavailable, reason_of
from wsgateway.protocol.subjects import Inbox
from wsgateway.supervision import start

__all__ = ["Cursor", "Cursors", "Key"]

logger = logging.getLogger("wsgateway")

SAVES_IN_FLIGHT = 8
"""Few, so that messages are not delayed behind a burst of cursors."""

Key = tuple[Inbox, str]
"""An inbox and a device."""


class Cursor:
    """A device's progress: the furthest that any of its sockets confirmed.

    Args:
        key: Whose.
    """

    __slots__ = ("abandoned", "confirmed", "epoch", "key", "lost", "saved", "sockets")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.epoch = ""  # life of the stream that both offsets belong to
        self.confirmed = 0
        self.saved = 0
        self.lost = False  # the broker's cursor means nothing any more, and must go
        self.abandoned = False  # it must not be written, because the user's data is deleted
        self.sockets = 0

    @property
    def due(self) -> bool:
        """Whether the broker does not know yet."""
        return not self.abandoned and (self.lost or self.confirmed > self.saved)

    @property
    def log_fields(self) -> dict[str, object]:
        """Names it in the log."""
        (service, user), device = self.key
        return {"service": service, "user": user, "device": device, "offset": self.confirmed}

    def enter(self, epoch: str) -> None:
        """Forget the offsets of another life."""
        if self.epoch != epoch:
            self.epoch = epoch
            self.confirmed = self.saved = 0


class Undrained(Protocol):
    """What was written to a socket, and may not have left this process yet."""

    def confirm_drained(self) -> None:
        """Confirm what has left it."""


class Cursors:
    """The cursors of the devices that read here; writes them, a few at a time.

    Args:
        broker: Where they are kept.
    """

    def __init__(self, broker: Broker) -> None:
        self.undrained: set[Undrained] = set()
        """Asked to confirm what they can before cursors are written."""
        self._broker = broker
        self._cursors: dict[Key, Cursor] = {}  # of those with a socket, or still to be written
        self._moved: dict[Cursor, None] = {}  # to be written, in this order
        self._early = asyncio.Event()  # set when that must not wait for its interval
        self._last_saves: set[asyncio.Task[Any]] = set()

    def acquire(self, key: Key) -> Cursor:
        """Return the cursor of a device that has one more socket."""
        cursor = self._cursors.get(key)
        if cursor is None or cursor.abandoned:
            cursor = self._cursors[key] = Cursor(key)
        cursor.sockets += 1
        return cursor

    def release(self, cursor: Cursor) -> asyncio.Task[None] | None:
        """Let a socket go; return the task that writes the last one's cursor, if that is due."""
        cursor.sockets -= 1
        if cursor.sockets == 0 and cursor.due:
            work = self._save_last(cursor)
            return start(work, "wsgateway-cursor", tasks=self._last_saves)
        self._forget(cursor)
        return None

    async def _save_last(self, cursor: Cursor) -> None:
        """Write a cursor without sockets; until then a new socket finds it here."""
        try:
            await self.save(cursor)
        except BrokerError as exc:
            logger.warning(
                "did not save a cursor, so the device's next socket may get messages twice: %s",
                reason_of(exc),
                extra=cursor.log_fields,
            )
        finally:
            self._forget(cursor)

    def _forget(self, cursor: Cursor) -> None:
        if cursor.sockets == 0 and self._cursors.get(cursor.key) is cursor:
            del self._cursors[cursor.key]
            self._moved.pop(cursor, None)

    def confirm(self, cursor: Cursor, epoch: str, offset: int) -> None:
        """Move a cursor; it is written within ``WSGATEWAY_CURSOR_INTERVAL``."""
        cursor.enter(epoch)
        if offset > cursor.confirmed:
            cursor.confirmed = offset
            self._moved[cursor] = None

    def lose(self, cursor: Cursor) -> None:
        """Forget a cursor's offsets, soon: the stream gives them to other messages now."""
        cursor.confirmed = cursor.saved = 0
        cursor.lost = True
        self._moved[cursor] = None
        self._early.set()

    def abandon(self, cursor: Cursor) -> None:
        """Write no more of a cursor; the device's next socket gets another one."""
        cursor.abandoned = True

    async def run(self) -> None:
        """Write what has moved, every ``WSGATEWAY_CURSOR_INTERVAL``, until the broker closes."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.CURSOR_INTERVAL):
                    await self._early.wait()
            self._early.clear()
            try:
                await self.flush()
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("cannot save cursors now: %s", reason_of(exc))
                await wait_usable(self._broker)

    async def close(self) -> None:
        """Write what is left.

        Raises:
            BrokerError: Some are not written.
        """
        if self._last_saves:
            await asyncio.wait(self._last_saves)
        await self.flush()

    async def flush(self) -> None:
        """Write what has moved. One that cannot be written does not keep the others back.

        Raises:
            BrokerError: Some are not written; they are due again.
        """
        for each in list(self.undrained):
            each.confirm_drained()
        todo, self._moved = list(self._moved), {}
        error: BaseException | None = None
        try:
            while todo and not isinstance(error, (BrokerUnavailable, BrokerClosed)):
                part = todo[-SAVES_IN_FLIGHT:]
                saves = [self.save(cursor) for cursor in part]
                results = await asyncio.gather(*saves, return_exceptions=True)
                del todo[-SAVES_IN_FLIGHT:]
                for cursor, result in zip(part, results, strict=True):
                    if isinstance(result, BaseException):
                        error = result
                        self._moved.setdefault(cursor)  # first, so it is last at its turn
        finally:
            for cursor in todo:
                self._moved.setdefault(cursor)
        if error is not None:
            raise error

    async def save(self, cursor: Cursor) -> None:
        """Write one cursor now, if it is due.

        Raises:
            BrokerError: It may not be written.
        """
        if cursor.abandoned:
            return
        inbox, device = cursor.key
        if cursor.lost:
            await self._broker.drop_cursor(inbox, device)
            cursor.lost = False
        epoch, offset = cursor.epoch, cursor.confirmed
        if offset > cursor.saved:
            try:
                await self._broker.save_cursor(inbox, device, offset, epoch=epoch)
            except BrokerError:
                counters.gateway.cursor_failures += 1
                raise
            counters.gateway.cursor_writes += 1
            if cursor.epoch == epoch and cursor.confirmed >= offset:  # it is not about others now
                cursor.saved = max(offset, cursor.saved)
