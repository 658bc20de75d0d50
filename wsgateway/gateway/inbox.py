"""The inbox that a session reads."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import TYPE_CHECKING

from wsgateway.broker.messages import Position, Stored
from wsgateway.broker.recovery import Start, find_since, find_start
from wsgateway.gateway.cursors import Cursor, Key
from wsgateway.gateway.subscription import Subscription
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Reason, Resume

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["InboxSubscription"]


class InboxSubscription(Subscription):
    """Reads the user's messages; moves the device's cursor.

    Args:
        session: Whose.
        inbox: Which one.
    """

    __slots__ = ("cursor", "inbox", "key")

    cursor: Cursor
    """The device's, which its other sockets share; set by the hub."""

    def __init__(self, session: Session, inbox: Inbox) -> None:
        super().__init__(session, inbox)
        self.inbox = inbox
        self.key: Key = inbox, session.identity.device
        """Whose cursor it moves."""

    async def find_start(self, claim: Resume) -> Start:
        """Return where delivery begins.

        Args:
            claim: The client's own position, if it has one; otherwise the device's cursor counts,
                as it does for the position of a client that was another user before.

        Raises:
            BrokerUnavailable: The cursor could not be read.
        """
        if claim.is_of(self.inbox):
            start = await self._find_start(claim, self.key[1])
        else:
            claim = Resume(claim.device, since=claim.since)
            start = await self._find_start(claim, self.key[1])
            start = start._replace(reason=Reason.EPOCH)
        self.epoch = start.epoch
        return start

    async def _find_start(self, claim: Resume, device: str) -> Start:
        broker, cursor, known = self._session.hub.broker, self.cursor, 0
        is_named = claim.since is None or claim.device is not None
        if claim.offset is None and is_named:
            loaded = known = await broker.load_cursor(self.inbox, device)
            if cursor.confirmed > known:  # by another socket, and not saved yet
                position = await self._log.position()
                if cursor.epoch == position.epoch and cursor.confirmed <= position.last:
                    known = cursor.confirmed
            cursor.enter(self._log.epoch)
            cursor.saved = max(loaded, cursor.saved)
            if not self._session.endpoint.resumes:
                return Start(self._log.epoch, known)
        ask = partial(find_start, self._log, self.inbox, claim, known)
        key: Hashable = claim.stream_epoch, claim.offset, known
        if claim.since is not None and claim.offset is None and not known:
            ask = partial(find_since, self._log, self.inbox, claim.since)
            key = claim.since
        starts = self._session.hub.starts
        start = await starts.find(self._log, self.inbox, key, self.window.room, ask)
        if start.reason is Reason.AHEAD:
            await broker.load_cursor(self.inbox, device)  # drops it, should it be ahead as well
        return start

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """See `Subscription.restart`."""
        if reason is Reason.AHEAD:
            self._session.hub.cursors.lose(self.cursor)
        super().restart(position, reason, since)

    def _on_confirmed(self) -> None:
        if self._session.endpoint.moves_cursor:
            self._session.hub.cursors.confirm(self.cursor, self.epoch, self.window.confirmed)

    async def _tell_trimmed(self, start: Start) -> None:
        await self._session.welcome(start)

    async def _tell_restart(self, start: Start) -> None:
        await self._session.welcome_again(start)

    def _encode(self, message: Stored) -> str | bytes | None:
        return self._session.endpoint.message(message)
