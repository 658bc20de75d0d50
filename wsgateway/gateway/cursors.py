"""How far each device with a socket here has read its inbox, and writing that to the broker."""

from __future__ import annotations

import asyncio

from wsgateway.broker.base import Broker
from wsgateway.exceptions import BrokerClosed, BrokerUnavailable
from wsgateway.protocol.subjects import Inbox

__all__ = ["Cursor", "Cursors", "Key"]

SAVES_IN_FLIGHT = 8
"""Few, so that messages are not delayed behind a burst of cursors."""

Key = tuple[Inbox, str]
"""An inbox and a device."""


class Cursor:
    """A device's progress: the furthest that any of its sockets confirmed."""

    __slots__ = ("confirmed", "epoch", "lost", "saved", "sockets")

    def __init__(self) -> None:
        self.epoch = ""  # life of the stream that both offsets belong to
        self.confirmed = 0
        self.saved = 0
        self.lost = False  # the broker's cursor means nothing any more, and must go
        self.sockets = 0

    @property
    def due(self) -> bool:
        """Whether the broker does not know yet."""
        return self.lost or self.confirmed > self.saved

    def enter(self, epoch: str) -> None:
        """Forget the offsets of another life."""
        if self.epoch != epoch:
            self.epoch = epoch
            self.confirmed = self.saved = 0

    def lose(self) -> None:
        """Forget the offsets: the stream gives them to other messages now."""
        self.confirmed = self.saved = 0
        self.lost = True


class Cursors:
    """Writes cursors, a few at a time.

    Args:
        broker: Where they are kept.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._dirty: dict[Key, Cursor] = {}

    def note(self, key: Key, cursor: Cursor) -> None:
        """Write *cursor* at the next `flush`."""
        self._dirty[key] = cursor

    def forget(self, key: Key) -> None:
        """Do not write it: its last socket has gone."""
        self._dirty.pop(key, None)

    async def flush(self) -> None:
        """Write what is due. One that cannot be written does not keep the others back.

        Raises:
            BrokerError: Some are not written; they are due again.
        """
        dirty, self._dirty = self._dirty, {}
        todo = list(dirty.items())
        error: BaseException | None = None
        try:
            while todo and not isinstance(error, (BrokerUnavailable, BrokerClosed)):
                part = todo[-SAVES_IN_FLIGHT:]
                saves = [self.save(key, cursor) for key, cursor in part]
                results = await asyncio.gather(*saves, return_exceptions=True)
                del todo[-SAVES_IN_FLIGHT:]
                for (key, cursor), result in zip(part, results, strict=True):
                    if isinstance(result, BaseException):
                        error = result
                        self._dirty.setdefault(key, cursor)  # first, so it is last at its turn
        finally:
            for key, cursor in todo:
                self._dirty.setdefault(key, cursor)
        if error is not None:
            raise error

    async def save(self, key: Key, cursor: Cursor) -> None:
        """Write one cursor now, if it is due.

        Raises:
            BrokerError: It may not be written.
        """
        inbox, device = key
        if cursor.lost:
            await self._broker.drop_cursor(inbox, device)
            cursor.lost = False
        epoch, offset = cursor.epoch, cursor.confirmed
        if offset > cursor.saved:
            await self._broker.save_cursor(inbox, device, offset, epoch=epoch)
            if cursor.epoch == epoch and cursor.confirmed >= offset:  # it is not about others now
                cursor.saved = max(offset, cursor.saved)
