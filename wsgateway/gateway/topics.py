"""The topics that one socket reads: whether it may, where it begins, and what it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from django.db import InterfaceError, OperationalError

from wsgateway import counters, declared
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Start, find_since, find_start
from wsgateway.exceptions import BrokerError, IdentityRefused, reason_of
from wsgateway.gateway.casts import CastSubscription
from wsgateway.gateway.subscription import Subscription
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Access, Answer, Subscribe, Unsubscribe
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import ErrorCode, Resume
from wsgateway.protocol.v1.topics import REASONS
from wsgateway.supervision import start
from wsgateway.topics.rights import log_undeclared

if TYPE_CHECKING:
    from wsgateway.broker.log import Log
    from wsgateway.gateway.session import Session

__all__ = ["SocketTopics", "TopicSubscription"]

logger = logging.getLogger("wsgateway")

CLOSE_CODES = {
    ErrorCode.FORBIDDEN: CloseCode.FORBIDDEN,
    ErrorCode.UNAVAILABLE: CloseCode.BROKER_UNAVAILABLE,
    ErrorCode.INTERNAL: CloseCode.INTERNAL_ERROR,
}
"""What a socket is refused with that cannot do without a topic."""
AT_ONCE = 4
"""Topics of one socket and service that begin at the same time: the others' must not wait for all
of them."""


class TopicSubscription(Subscription):
    """Reads a durable topic for one session. Its position is the client's own.

    Args:
        session: Whose.
        topic: Which one.
        topics: The session's.
    """

    __slots__ = ("_begun", "_topics", "access", "topic")

    def __init__(self, session: Session, topic: Topic, topics: SocketTopics) -> None:
        super().__init__(session, topic)
        self._topics = topics
        self.topic = topic
        self.access: Access | None = None
        """What the client may do."""
        self._begun: str | None = None  # the frame that says where it begins, until it is written

    @property
    def identity(self) -> Identity:
        """Whose it is, as the newest token says."""
        return self._session.identity

    @property
    def is_open(self) -> bool:
        """Whether the client has been told that it reads the topic, or is about to be."""
        return bool(self.epoch)

    @property
    def is_reading(self) -> bool:
        """See `wsgateway.topics.rights.Holder`."""
        return self.is_open and not self._session.socket.closed

    async def find_start(self, question: Subscribe) -> Start:
        """Return where delivery begins; live messages are taken from now on.

        Raises:
            BrokerError: Not known now.
        """
        hub, log = self._session.hub, self._log
        hub.subscriptions.subscribe(self)
        claim = question.epoch, question.offset, question.since
        ask = partial(_find_start, log, question)
        return await hub.starts.find(log, self.topic, claim, self.window.room, ask)

    def begin(self, start: Start, frame: str = "") -> None:
        """Deliver what comes after *start*, and before it *frame*, which says so."""
        self._begun = frame
        super().begin(start)

    def close(self) -> None:
        """See `Subscription.close`."""
        super().close()
        hub = self._session.hub
        hub.subscriptions.unsubscribe(self)
        hub.rights.release(self)

    def change_access(self, access: Access | None) -> None:
        """See `wsgateway.topics.rights.Holder`."""
        self._topics.change_access(self, Start(self.epoch, self.window.confirmed), access)

    # -- to the client -------------------------------------------------------------------

    async def write(self) -> None:
        """See `Subscription.write`."""
        if self._begun and not self.closed:
            begun, self._begun = self._begun, None
            await self._session.write_other(self._session.endpoint.begins(self.topic, begun))
        await super().write()

    async def _tell_trimmed(self, start: Start) -> None:
        frame = self._session.endpoint.subscribed_again(self.topic, start)
        if frame is not None:
            await self._session.write_other(frame)

    async def _tell_restart(self, start: Start) -> None:
        await self._tell_trimmed(start)

    def _encode(self, message: Stored) -> str | bytes | None:
        return self._session.endpoint.message(message, self.topic)

    def _on_confirmed(self) -> None:
        pass  # the client keeps its position itself


async def _find_start(log: Log, question: Subscribe, limit: int) -> Start:
    """Return where delivery begins; see `find_start`.

    Raises:
        BrokerError: Not known now.
    """
    if question.offset is None:
        return await find_since(log, question.topic, question.since, limit)
    claim = Resume(epoch=question.epoch, offset=question.offset)
    return await find_start(log, question.topic, claim, 0, limit)


class SocketTopics:
    """Carries out what a client's endpoint decides about topics.

    Args:
        session: The socket's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._readers: dict[Topic, TopicSubscription | CastSubscription] = {}  # asked for, or open
        self._opening: dict[Topic, asyncio.Task[ErrorCode | None]] = {}
        self._asking: dict[str, asyncio.Semaphore] = {}  # by service, as `Hub.starting_of`
        self.waiting_bytes = 0
        """What of ephemeral topics waits for the client."""

    # -- from the client -----------------------------------------------------------------

    def begin(self, question: Subscribe) -> None:
        """Find out whether the client may read a topic, and begin; or say why not."""
        self._opening[question.topic] = start(self._begin(question), "wsgateway-subscribe")

    async def begin_all(self, questions: Iterable[Subscribe]) -> None:
        """Do the same for a socket that is not accepted yet; wait until all of them have begun.

        Raises:
            IdentityRefused: The client may not read one, or that is not known now.
        """
        for question in questions:
            self.begin(question)
        tasks = [*self._opening.values()]
        await asyncio.wait(tasks)
        for code in filter(None, (task.result() for task in tasks)):
            counters.gateway.refused_subscriptions[code] += 1
            raise IdentityRefused(CLOSE_CODES[code], REASONS[code])

    async def _begin(self, question: Subscribe) -> ErrorCode | None:
        """Open a subscription; return why not. Cancelled if the client ends it first."""
        session, topic, code = self._session, question.topic, ErrorCode.FORBIDDEN
        try:
            async with self._turn(topic.service):
                if await self._open(question):
                    return None
        except BrokerError as exc:
            code = ErrorCode.UNAVAILABLE
            where = session.socket.transport.where
            text = "cannot subscribe %s to topic %r now: %s"
            logger.info(text, where, str(topic), reason_of(exc), extra=session.log_fields)
        except (InterfaceError, OperationalError):  # it is logged
            code = ErrorCode.UNAVAILABLE
        except Exception:
            code = ErrorCode.INTERNAL
            logger.exception("cannot subscribe to topic %r", str(topic), extra=session.log_fields)
        finally:
            if self._opening.get(topic) is asyncio.current_task():
                del self._opening[topic]
        self._drop(topic)
        frame = session.endpoint.unsubscribed(topic, code, id=question.id)
        if frame is not None:
            session.do(Answer(frame, code))
        return code

    def _turn(self, service: str) -> asyncio.Semaphore:
        key = service if service in declared.topics else ""
        return self._asking.setdefault(key, asyncio.Semaphore(AT_ONCE))

    async def _open(self, question: Subscribe) -> bool:
        """Begin to read a topic; return whether the client may.

        Raises:
            BrokerError: It is not known whether, or where to begin.
            InterfaceError, OperationalError: The database could not be asked whether it may.
        """
        session, topic = self._session, question.topic
        service = declared.topics.get(topic.service)
        if service is None:
            log_undeclared(topic, session.identity)
            return False
        kind = TopicSubscription if service.durable else CastSubscription
        reader = self._readers[topic] = kind(session, topic, self)
        async with session.hub.starting_of(topic.service):
            reader.access = await session.hub.rights.acquire(reader, question.token)
        if reader.access is None:
            return False
        begin = await reader.find_start(question)
        access = _usable(topic, reader.access)
        if access is None:  # it was withdrawn by now
            return False
        frame = session.endpoint.subscribed(topic, begin, question.id, access)
        if frame is not None:
            counters.gateway.subscriptions += 1
            if isinstance(reader, TopicSubscription):
                session.subscriptions[topic] = reader
            reader.begin(begin, frame)  # type: ignore[arg-type]  # as `find_start` of its kind
            if service.presence:
                session.hub.events.joined(session, topic)
        return True

    def end(self, action: Unsubscribe) -> None:
        """End a subscription, or the question whether it may begin."""
        task = self._opening.pop(action.topic, None)
        if task is not None:
            task.cancel()
        self._drop(action.topic)
        self._session.writer.add(action.text)

    def access(self, topic: Topic) -> Access | None:
        """See `Session.access`."""
        reader = self._readers.get(topic)
        return reader.access if reader is not None and reader.is_open else None

    # -- to the client -------------------------------------------------------------------

    def change_access(
        self,
        reader: TopicSubscription | CastSubscription,
        start: Start | None,
        access: Access | None,
    ) -> None:
        """Go on with another right, after *start*; None: end, it has been withdrawn."""
        topic, endpoint = reader.topic, self._session.endpoint
        reader.access = access
        if not reader.is_open:
            return  # `_open` goes on with it
        if access is None:
            self._end(topic, ErrorCode.FORBIDDEN)
            return
        frame = endpoint.subscribed_again(topic, start, _usable(topic, access))
        if frame is not None:
            self._session.writer.add(frame)

    def end_slowest(self) -> None:
        """End the subscription to that ephemeral topic of which most waits for the client."""
        casts = [each for each in self._readers.values() if isinstance(each, CastSubscription)]
        topic = max(casts, key=attrgetter("waiting_bytes")).topic
        counters.gateway.ended_slow += 1
        self._end(topic, ErrorCode.TOO_SLOW)

    def _end(self, topic: Topic, code: ErrorCode) -> None:
        """End a subscription, and say why."""
        self._drop(topic)
        endpoint = self._session.endpoint
        frame = endpoint.unsubscribed(topic, code)
        if frame is not None:
            self._session.writer.add(frame)
        self._session.do(endpoint.lost(topic, code))

    def _drop(self, topic: Topic) -> None:
        reader = self._readers.pop(topic, None)
        self._session.subscriptions.pop(topic, None)
        if reader is None:
            return
        counters.gateway.subscriptions -= reader.is_open
        reader.close()
        service = declared.topics.get(topic.service)
        if reader.is_open and service is not None and service.presence:
            self._session.hub.events.left(self._session, topic)

    def close(self) -> None:
        """End all of them, without a word. Idempotent."""
        for task in self._opening.values():
            task.cancel()
        for topic in list(self._readers):
            self._drop(topic)


def _usable(topic: Topic, access: Access | None) -> Access | None:
    """Return what a client can make of its right: nobody can write where nothing takes it."""
    service = declared.topics.get(topic.service)
    can_write = service is not None and service.is_writable
    return access if access is None or can_write else "read"
