"""The topics that one socket reads: whether it may, where it begins, and what it is told."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from wsgateway import declared
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Start, find_start
from wsgateway.exceptions import BrokerError, reason_of
from wsgateway.gateway.subscription import Subscription
from wsgateway.identity import Identity
from wsgateway.protocol.endpoint import Access, Subscribe, Unsubscribe
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1 import ErrorCode, Reason, Resume
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.broker.log import Log
    from wsgateway.gateway.session import Session

__all__ = ["SocketTopics", "TopicSubscription"]

logger = logging.getLogger("wsgateway")

MOST = 1000
"""Messages that are read at once, at most."""


class TopicSubscription(Subscription):
    """Reads a durable topic for one session. Its position is the client's own.

    Args:
        session: Whose.
        topic: Which one.
        topics: The session's.
    """

    __slots__ = ("_access", "_begun", "_topics", "identity", "topic")

    def __init__(self, session: Session, topic: Topic, topics: SocketTopics) -> None:
        super().__init__(session, topic)
        self.topic = topic
        self.identity: Identity = session.identity
        self._topics = topics
        self._access: Access | None = None
        self._begun: str | None = None  # the frame that says where it begins, until it is written

    async def open(self, question: Subscribe) -> bool:
        """Begin to read; return whether the client may.

        Raises:
            BrokerError: It is not known whether, or where to begin.
        """
        hub = self._session.hub
        access = self._access = await hub.rights.acquire(self, question.token)
        if access is None:
            return False
        hub.subscriptions.subscribe(self)
        begin = await _find_start(self._log, question)
        if (access := self._access) is None:  # withdrawn by now
            return False
        endpoint = self._session.endpoint
        self._begun = endpoint.subscribed(self.topic, begin, question.id, access)
        if self._begun is not None:
            self.begin(begin)
        return True

    def close(self) -> None:
        """See `Subscription.close`."""
        if not self.closed:
            super().close()
            self._session.hub.subscriptions.unsubscribe(self)
            self._session.hub.rights.release(self)

    def change_access(self, access: Access | None) -> None:
        """See `wsgateway.topics.rights.Holder`."""
        self._access = access
        if not self.epoch:
            return  # `open` goes on with it
        if access is None:
            self._topics.withdraw(self.topic)
            return
        go_on = Start(self.epoch, self.window.confirmed)
        frame = self._session.endpoint.subscribed_again(self.topic, go_on, access)
        if frame is not None:
            self._session.writer.add(frame)

    # -- to the client -------------------------------------------------------------------

    async def write(self) -> None:
        """See `Subscription.write`."""
        if self._begun is not None and not self.closed:
            begun, self._begun = self._begun, None
            await self._session.write_other(begun)
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


async def _find_start(log: Log, question: Subscribe) -> Start:
    """Return where delivery begins.

    Raises:
        BrokerError: Not known now.
    """
    topic, since = question.topic, question.since
    if question.offset is not None:
        claim = Resume(epoch=question.epoch, offset=question.offset)
        return await find_start(log, topic, claim, 0)
    if since == "all":
        return await find_start(log, topic, Resume(), 0)
    position = await log.position()
    offset, wanted = position.last, 0 if since == "new" else int(since)
    before: int | None = None
    while wanted > 0:
        batch = await log.read_last(topic, min(wanted, MOST), before=before)
        wanted -= len(batch.messages)
        if batch.messages:
            before = batch.messages[0].offset
            offset = min(offset, before - 1)
        if not batch.more or not batch.messages:
            break
    return Start(position.epoch, offset, Reason.NEW)


class SocketTopics:
    """Carries out what a client's endpoint decides about topics.

    Args:
        session: The socket's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._readers: dict[Topic, TopicSubscription] = {}  # asked for, or open
        self._opening: dict[Topic, asyncio.Task[None]] = {}

    def begin(self, question: Subscribe) -> None:
        """Find out whether the client may read a topic, and begin; or say why not."""
        self._opening[question.topic] = start(self._begin(question), "wsgateway-subscribe")

    async def _begin(self, question: Subscribe) -> None:
        """Open a subscription. Cancelled if the client ends it first."""
        topic, hub = question.topic, self._session.hub
        code, reader = ErrorCode.FORBIDDEN, None
        try:
            async with hub.starting_of(topic.service):
                if topic.service in declared.topics:
                    reader = TopicSubscription(self._session, topic, self)
                    self._readers[topic] = reader
                    if await reader.open(question):
                        self._session.subscriptions[topic] = reader
                        return
        except BrokerError as exc:
            code = ErrorCode.UNAVAILABLE
            text = "cannot subscribe %s to topic %r now: %s"
            where = self._session.socket.transport.where
            logger.info(text, where, str(topic), reason_of(exc), extra=self._session.log_fields)
        except Exception:
            code = ErrorCode.INTERNAL
            logger.exception("cannot subscribe to a topic", extra=self._session.log_fields)
        finally:
            if self._opening.get(topic) is asyncio.current_task():
                del self._opening[topic]
        self._drop(topic, reader)
        frame = self._session.endpoint.unsubscribed(topic, code, id=question.id)
        if frame is not None:
            self._session.socket.answer(frame)

    def end(self, action: Unsubscribe) -> None:
        """End a subscription, or the question whether it may begin."""
        task = self._opening.pop(action.topic, None)
        if task is not None:
            task.cancel()
        self._drop(action.topic, self._readers.get(action.topic))
        self._session.writer.add(action.text)

    def withdraw(self, topic: Topic) -> None:
        """End a subscription whose right has ended."""
        self._drop(topic, self._readers.get(topic))
        frame = self._session.endpoint.unsubscribed(topic, ErrorCode.FORBIDDEN)
        if frame is not None:
            self._session.writer.add(frame)

    def _drop(self, topic: Topic, reader: TopicSubscription | None) -> None:
        if reader is None:
            return
        reader.close()
        if self._readers.get(topic) is reader:
            del self._readers[topic]
            self._session.subscriptions.pop(topic, None)

    def close(self) -> None:
        """End all of them, without a word. Idempotent."""
        for task in self._opening.values():
            task.cancel()
        for topic, reader in list(self._readers.items()):
            self._drop(topic, reader)
