"""One socket's watches: whether it may, and what it is told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from django.db import InterfaceError, OperationalError
from django.utils.module_loading import import_string

from wsgateway import declared
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError
from wsgateway.gateway.sockets import SocketClosed
from wsgateway.hooks import call_hook
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session
    from wsgateway.gateway.watching import Watching
    from wsgateway.identity import Identity
    from wsgateway.protocol.endpoint import Access
    from wsgateway.protocol.readership import Present

__all__ = ["SocketWatches"]

logger = logging.getLogger("wsgateway")

AT_ONCE = 4
"""Questions of one socket about topics of the same service at the same time, as in `topics`."""


class _Right:
    """The right to see who reads a topic. A client has it as long as it may read the topic.

    Args:
        watches: The socket's.
        session: The socket's.
        topic: Which one.
    """

    is_reading = False

    def __init__(self, watches: SocketWatches, session: Session, topic: Topic) -> None:
        self._watches = watches
        self._session = session
        self.topic = topic

    @property
    def identity(self) -> Identity:
        """Whose it is, as the newest token says."""
        return self._session.identity

    def change_access(self, access: Access | None) -> None:
        """See `wsgateway.topics.rights.Holder`."""
        if access is None:
            self._watches.refuse(self.topic)


class SocketWatches:
    """Carries out what a client's endpoint decides about watches.

    Args:
        session: The socket's.
        watching: The event loop's.
    """

    def __init__(self, session: Session, watching: Watching) -> None:
        self._session = session
        self._watching = watching
        self._watched: set[Address] = set()
        self._asking: dict[Address, asyncio.Task[None]] = {}  # whether it may
        self._turns: dict[str, asyncio.Semaphore] = {}  # by service, as `Hub.starting_of`
        self._rights: dict[Topic, _Right] = {}
        self._news: dict[Address, bool | Present | None] = {}  # not written; only the last counts
        self._telling: asyncio.Task[None] | None = None  # lives while there is news
        watching.join(session.inbox, self)

    def begin(self, target: Address, token: str | None = None) -> None:
        """Ask whether the client may watch *target*; begin if so, and end the watch if not.

        Args:
            target: A user, or a topic.
            token: What may prove it, of a topic.
        """
        if target not in self._asking:
            self._asking[target] = start(self._begin(target, token), "wsgateway-watch")
            self._watching.asking.add(self)

    def recheck(self, inbox: Inbox | None = None) -> None:
        """Ask again about *inbox*; None: about everybody whom the client watches or wants to."""
        for each in self._watched | self._asking.keys():
            if isinstance(each, Inbox) and inbox in (None, each):
                self._stop_asking(each)  # the answer may be from before the right ended
                self.begin(each)

    def _stop_asking(self, target: Address) -> None:
        if task := self._asking.pop(target, None):
            task.cancel()
        if not self._asking:
            self._watching.asking.discard(self)

    async def _begin(self, target: Address, token: str | None) -> None:
        error: Exception | None = None
        right: _Right | None = None
        try:
            if isinstance(target, Topic):
                right = _Right(self, self._session, target)
                allowed = await self._may_see_readers(right, token)
            else:
                allowed = await self._may_watch(target)
        except Exception as exc:
            error, allowed = exc, False
            if right is None:
                logger.exception("WSGATEWAY_MAY_WATCH failed", extra=self._session.log_fields)
            elif not isinstance(exc, (BrokerError, InterfaceError, OperationalError)):
                text = "cannot find out whether a client may watch topic %r"
                logger.exception(text, str(target), extra=self._session.log_fields)
        if self._asking.get(target) is not asyncio.current_task():
            if right is not None:
                self._session.hub.rights.release(right)
            return  # it was cancelled, whatever the project's function made of that
        del self._asking[target]
        self._stop_asking(target)
        if allowed:
            if right is not None:
                self._rights[right.topic] = right
            self._watched.add(target)
            self._watching.add(target, self)
            return
        self.refuse(target, error)

    async def _may_watch(self, inbox: Inbox) -> bool:
        path = settings.MAY_WATCH
        if not path:
            return False
        hook = import_string(path)
        return await call_hook(hook, self._session.identity, *inbox) is True

    async def _may_see_readers(self, right: _Right, token: str | None) -> bool:
        """Say whether the client may read the topic, and its service shows who does.

        Raises:
            BrokerUnavailable: It is not known yet what is revoked.
            InterfaceError, OperationalError: The database cannot be asked; it is logged.
        """
        hub, service = self._session.hub, declared.topics.get(right.topic.service)
        if service is None or not service.presence:
            return False
        if access := self._session.access(right.topic):
            hub.rights.hold(right, access)  # without another query, even if the token has expired
            return True
        turn = self._turns.setdefault(service.name, asyncio.Semaphore(AT_ONCE))
        async with turn, hub.starting_of(service.name):
            return await hub.rights.acquire(right, token) is not None

    def refuse(self, target: Address, error: Exception | None = None) -> None:
        """End a watch, and tell the client why, see `Endpoint.refuse_watch`."""
        self.end(target)
        if answer := self._session.endpoint.refuse_watch(target, error):
            self._session.socket.answer(answer.text)

    def end(self, target: Address) -> None:
        """Watch *target* no longer. Idempotent."""
        self._stop_asking(target)
        self._watched.discard(target)
        self._news.pop(target, None)
        self._watching.remove(target, self)
        if isinstance(target, Topic) and (right := self._rights.pop(target, None)):
            self._session.hub.rights.release(right)

    def close(self) -> None:
        """End all of them. Idempotent."""
        self._watching.leave(self._session.inbox, self)
        for target in (*self._asking, *self._watched):
            self.end(target)
        if self._telling is not None:
            self._telling.cancel()

    # -- to the client -----------------------------------------------------------------------

    def tell(self, target: Address, state: bool | Present | None) -> None:
        """See `wsgateway.gateway.watching.Watcher`."""
        self._news[target] = state
        if self._telling is None or self._telling.done():
            self._telling = start(self._tell(), "wsgateway-presence")

    async def _tell(self) -> None:
        """Write the news; while the client does not read, what is outdated is left out."""
        endpoint, write = self._session.endpoint, self._session.socket.write
        try:
            while self._news:
                target = next(iter(self._news))
                answer = endpoint.presence(target, self._news.pop(target))
                if answer is not None:
                    await write(answer.text)
        except SocketClosed:
            self._news.clear()
