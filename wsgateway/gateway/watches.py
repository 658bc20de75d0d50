"""One socket's watches: whether it may, and what it is told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from django.utils.module_loading import import_string

from wsgateway.conf import settings
from wsgateway.gateway.sockets import SocketClosed
from wsgateway.hooks import call_hook
from wsgateway.protocol.subjects import Inbox
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session
    from wsgateway.gateway.watching import Watching

__all__ = ["SocketWatches"]

logger = logging.getLogger("wsgateway")


class SocketWatches:
    """Carries out what a client's endpoint decides about watches.

    Args:
        session: The socket's.
        watching: The event loop's.
    """

    def __init__(self, session: Session, watching: Watching) -> None:
        self._session = session
        self._watching = watching
        self._watched: set[Inbox] = set()
        self._asking: dict[Inbox, asyncio.Task[None]] = {}  # whether it may
        self._news: dict[Inbox, bool | None] = {}  # not written yet; only the last state counts
        self._telling: asyncio.Task[None] | None = None  # lives while there is news
        watching.join(session.inbox, self)

    def begin(self, inbox: Inbox) -> None:
        """Ask whether the client may watch *inbox*; begin if so, and end the watch if not."""
        if inbox not in self._asking:
            self._asking[inbox] = start(self._begin(inbox), "wsgateway-watch")
            self._watching.asking.add(self)

    def recheck(self, inbox: Inbox | None = None) -> None:
        """Ask again about *inbox*; None: about everybody whom the client watches or wants to."""
        for each in self._watched | self._asking.keys():
            if inbox in (None, each):
                self._stop_asking(each)  # the answer may be from before the right ended
                self.begin(each)

    def _stop_asking(self, inbox: Inbox) -> None:
        if task := self._asking.pop(inbox, None):
            task.cancel()
        if not self._asking:
            self._watching.asking.discard(self)

    async def _begin(self, inbox: Inbox) -> None:
        error: Exception | None = None
        try:
            allowed = await self._may_watch(inbox)
        except Exception as exc:
            logger.exception("WSGATEWAY_MAY_WATCH failed", extra=self._session.log_fields)
            error, allowed = exc, False
        if self._asking.get(inbox) is not asyncio.current_task():
            return  # it was cancelled, whatever the project's function made of that
        del self._asking[inbox]
        self._stop_asking(inbox)
        if allowed:
            self._watched.add(inbox)
            self._watching.add(inbox, self)
            return
        self.end(inbox)
        if answer := self._session.endpoint.refuse_watch(inbox, error):
            self._session.socket.answer(answer.text)

    async def _may_watch(self, inbox: Inbox) -> bool:
        path = settings.MAY_WATCH
        if not path:
            return False
        hook = import_string(path)
        return await call_hook(hook, self._session.identity, inbox.service, inbox.user) is True

    def end(self, inbox: Inbox) -> None:
        """Watch *inbox* no longer. Idempotent."""
        self._stop_asking(inbox)
        self._watched.discard(inbox)
        self._news.pop(inbox, None)
        self._watching.remove(inbox, self)

    def close(self) -> None:
        """End all of them. Idempotent."""
        self._watching.leave(self._session.inbox, self)
        for inbox in (*self._asking, *self._watched):
            self.end(inbox)
        if self._telling is not None:
            self._telling.cancel()

    # -- to the client -----------------------------------------------------------------------

    def tell(self, inbox: Inbox, online: bool | None) -> None:
        """See `wsgateway.gateway.watching.Watcher`."""
        self._news[inbox] = online
        if self._telling is None or self._telling.done():
            self._telling = start(self._tell(), "wsgateway-presence")

    async def _tell(self) -> None:
        """Write the news; while the client does not read, what is outdated is left out."""
        endpoint, write = self._session.endpoint, self._session.socket.write
        try:
            while self._news:
                inbox = next(iter(self._news))
                answer = endpoint.presence(inbox, self._news.pop(inbox))
                if answer is not None:
                    await write(answer.text)
        except SocketClosed:
            self._news.clear()
