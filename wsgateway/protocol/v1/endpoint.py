"""``wsgateway.v1`` at the gateway's end: what each frame of a client leads to."""

from __future__ import annotations

from wsgateway.exceptions import BrokerError, MessageTooBig, QueueFull
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import (
    Access,
    Action,
    Answer,
    Client,
    Close,
    Confirm,
    Endpoint,
    Message,
    Publish,
    Renew,
    Start,
    StartWatch,
    State,
    Subscribe,
    Unsubscribe,
)
from wsgateway.protocol.heartbeat import Beat, Heartbeat
from wsgateway.protocol.limits import Limits
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1.fields import SUBPROTOCOL
from wsgateway.protocol.v1.gateway import (
    ClientFrame,
    encode_ack,
    encode_closing,
    encode_error,
    encode_message,
    encode_refreshed,
    encode_topic_message,
    encode_unsubscribed,
    encode_welcome,
    largest_frame,
    largest_message,
    parse_client,
)
from wsgateway.protocol.v1.messages import (
    Ack,
    ClientMessage,
    ErrorCode,
    Ping,
    ProtocolError,
    Refresh,
    UnsubscribeFrom,
    Unwatch,
    UnwatchTopic,
    Watch,
    WatchTopic,
    encode_ping,
    encode_pong,
    mark_of,
    name_epoch,
)
from wsgateway.protocol.v1.topics import Topics
from wsgateway.protocol.v1.watches import Seen, Watches

__all__ = ["V1Endpoint"]

COME_BACK_LATER = frozenset((CloseCode.SHUTTING_DOWN, CloseCode.CREDENTIALS_CHANGED))
"""Closes after which a client that came back at once would be refused, or come with all others."""
NO_TOPICS = Topics(0)


class V1Endpoint(Endpoint):
    """A client that speaks ``wsgateway.v1``; see ``docs/reference/protocol.md``."""

    __slots__ = ("_epoch", "_heartbeat", "_lives", "_service", "_topics", "_unnamed", "_watches")

    acknowledges = resumes = True
    subprotocol = SUBPROTOCOL
    frame_of = staticmethod(largest_frame)
    message_in = staticmethod(largest_message)

    def __init__(self, limits: Limits, now: float) -> None:
        super().__init__(limits, now)
        self._heartbeat: Heartbeat | None = None  # set by `open`
        self._epoch = ""  # what the client calls the epoch of its offsets, see `name_epoch`
        self._lives = 0  # how often delivery began again
        self._unnamed = False  # the client sent an acknowledgement without an epoch
        self._service = ""  # the client's own; set by `welcome`
        # Made at the first one: most clients have none
        self._watches: Watches | None = None
        self._topics: Topics | None = None

    # -- from the client -----------------------------------------------------------------

    def open(self, now: float) -> None:
        """See `Endpoint.open`; the heartbeat starts."""
        super().open(now)
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self.limits.ping_interval, self.limits.ping_timeout, now)

    def receive(self, frame: str | bytes, now: float) -> Action | None:
        """See `Endpoint.receive`. What is refused is answered, if it can be ``wsgateway.v1``."""
        if self.state is not State.OPEN or self._heartbeat is None:
            return None
        self._heartbeat.heard()
        within_limit = self._rate.take(now)
        if not within_limit and (close := self._exhausted()):
            return close
        if len(frame) > self._frame_size:
            self.stop()
            return Close(CloseCode.MESSAGE_TOO_BIG)
        try:
            message = parse_client(frame)
        except ProtocolError as exc:
            return self._refuse(exc, within_limit)
        if isinstance(message, Ack):
            return self._acknowledge(message)
        if isinstance(message, ClientMessage):
            return self._publish(message, within_limit)
        return self._take_other(message, within_limit)

    def _take_other(self, message: ClientFrame, within_limit: bool) -> Action | None:
        """Return what to do about a frame of a kind that is rare."""
        if isinstance(message, Subscribe):
            return self._subscribe(message, within_limit)
        if isinstance(message, UnsubscribeFrom):
            return self._unsubscribe(message.topic, within_limit)
        if isinstance(message, Watch | WatchTopic):
            return self._watch(message, within_limit)
        if isinstance(message, Unwatch | UnwatchTopic):
            return None if self._watches is None else self._watches.end(self._target(message))
        if isinstance(message, Refresh):
            return self._refresh(message, within_limit)
        return Answer(encode_pong()) if isinstance(message, Ping) and within_limit else None

    def _refuse(self, error: ProtocolError, within_limit: bool) -> Answer | Close | None:
        if error.fatal:
            self.stop()
            return Close(CloseCode.BAD_REQUEST, error.message)
        if within_limit:
            return Answer(encode_error(error.id, error.code, error.message))
        return None

    def _acknowledge(self, ack: Ack) -> Confirm | Close | None:
        if ack.topic is not None:
            return None if self._topics is None else self._topics.confirm(ack)
        if ack.epoch is None:
            self._unnamed = True
            if self._lives:  # is it about the stream before?
                self.stop()
                return Close(CloseCode.STREAM_REPLACED)
        elif ack.epoch != self._epoch:
            return None
        return ack

    def _publish(self, message: ClientMessage, within_limit: bool) -> Publish | Answer:
        if problem := self._size.exceeded_by(len(message.frame.payload)):
            return Answer(encode_error(message.id, ErrorCode.TOO_BIG, str(problem)))
        if not within_limit:
            return self._too_fast(message.id)
        topic = message.topic
        if topic is not None and (refusal := (self._topics or NO_TOPICS).refuse_to_write(topic)):
            return Answer(encode_error(message.id, ErrorCode.FORBIDDEN, refusal))
        return Publish(message.frame, message.id, message.request, message.trace, topic)

    def _too_fast(self, id: str) -> Answer:
        return Answer(encode_error(id, ErrorCode.RATE_LIMIT, self._too_fast_text))

    @property
    def _too_fast_text(self) -> str:
        return f"more than {self.limits.rate:g} frames per second; slow down"

    def _subscribe(self, message: Subscribe, within_limit: bool) -> Subscribe | Answer:
        if not within_limit:
            code, text = ErrorCode.RATE_LIMIT, self._too_fast_text
            return Answer(encode_unsubscribed(str(message.topic), code, text, message.id), code)
        if self._topics is None:
            self._topics = Topics(self.limits.subscriptions)
        return self._topics.ask(message)

    def _unsubscribe(self, topic: Topic, within_limit: bool) -> Unsubscribe | Answer | None:
        known = None if self._topics is None else self._topics.leave(topic)
        if known is None and within_limit:
            return Answer(encode_unsubscribed(str(topic)))
        return known

    def _watch(self, message: Watch | WatchTopic, within_limit: bool) -> StartWatch | Answer:
        if not within_limit:
            return self._too_fast(message.id)
        if self._watches is None:
            self._watches = Watches(self.limits.watches)
        token = message.token if isinstance(message, WatchTopic) else None
        return self._watches.ask(message.id, self._target(message), token)

    def _refresh(self, message: Refresh, within_limit: bool) -> Renew | Answer | None:
        if within_limit:
            return Renew(message.token)
        return self.refuse_renewal(self._too_fast_text, temporary=True)

    def _target(self, message: Watch | WatchTopic | Unwatch | UnwatchTopic) -> Address:
        if isinstance(message, WatchTopic | UnwatchTopic):
            return message.topic
        return Inbox(message.service or self._service, message.user)

    def published(self, id: str | None, error: BaseException | None) -> Answer | None:
        """See `Endpoint.published`."""
        if id is None:
            return None
        if error is None:
            return Answer(encode_ack(id))
        code = ErrorCode.INTERNAL
        if isinstance(error, QueueFull):
            code = ErrorCode.QUEUE_FULL
        elif isinstance(error, MessageTooBig):
            code = ErrorCode.TOO_BIG
        elif isinstance(error, BrokerError):
            code = ErrorCode.UNAVAILABLE
        return Answer(encode_error(id, code, code.meaning))

    # -- to the client -------------------------------------------------------------------

    def welcome(self, client: Client, start: Start) -> str:
        """See `Endpoint.welcome`."""
        self._service = client.service
        self._epoch = name_epoch(start.epoch, self._lives)
        return encode_welcome(
            **client._asdict(),
            epoch=self._epoch,
            offset=start.offset,
            recovered=start.reason is None,
            reason=start.reason,
            ping=self.limits.ping_interval,
            window=self.limits.window,
            max_message_size=self.largest_message,
            inbox=mark_of(Inbox(client.service, client.user)),
        )

    def restart(self) -> Close | None:
        """See `Endpoint.restart`."""
        self._lives += 1
        # Acknowledgements without an epoch may come too late to be told apart
        return Close(CloseCode.STREAM_REPLACED) if self._unnamed else None

    def message(self, stored: Message, topic: Topic | None = None) -> str:
        """See `Endpoint.message`; a topic's is encoded once for all clients."""
        if topic is not None:
            if stored.encoded is None:
                name, frame, sender = str(topic), stored.frame, stored.sender
                stored.encoded = encode_topic_message(
                    name, stored.offset, stored.time, *frame, sender
                )
            return stored.encoded
        payload, text = stored.frame
        return encode_message(
            stored.offset, stored.time, payload, text, stored.reply_to, stored.error
        )

    def subscribed(self, topic: Topic, start: Start | None, id: str, access: Access) -> str | None:
        """See `Endpoint.subscribed`."""
        return None if self._topics is None else self._topics.begin(topic, start, id, access)

    def subscribed_again(
        self, topic: Topic, start: Start | None, access: Access | None = None
    ) -> str | None:
        """See `Endpoint.subscribed_again`."""
        return None if self._topics is None else self._topics.change(topic, start, access)

    def unsubscribed(
        self, topic: Topic, code: ErrorCode, reason: str | None = None, id: str | None = None
    ) -> str | None:
        """See `Endpoint.unsubscribed`."""
        return None if self._topics is None else self._topics.end(topic, code, reason, id)

    def presence(self, target: Address, state: Seen) -> Answer | None:
        """See `Endpoint.presence`."""
        return None if self._watches is None else self._watches.presence(target, state)

    def refuse_watch(self, target: Address, error: Exception | None = None) -> Answer | None:
        """See `Endpoint.refuse_watch`."""
        if self._watches is None:
            return None
        if error is None:
            text = "not allowed to watch this user"
            if isinstance(target, Topic):
                text = "there is no such topic, or this client may not see who reads it"
            return self._watches.refuse(target, ErrorCode.FORBIDDEN, text)
        text = "the gateway could not find out whether that is allowed"
        return self._watches.refuse(target, ErrorCode.INTERNAL, text)

    def renewed(self, expires_in: float | None) -> Answer:
        """See `Endpoint.renewed`."""
        return Answer(encode_refreshed(expires_in))

    def refuse_renewal(self, reason: str, *, temporary: bool) -> Answer:
        """See `Endpoint.refuse_renewal`."""
        return Answer(encode_error(None, ErrorCode.UNAUTHORIZED, reason, temporary))

    def announces(self, code: CloseCode) -> bool:
        """See `Endpoint.announces`."""
        return code in COME_BACK_LATER and self._heartbeat is not None

    def closing(self, reconnect_after: float) -> str:
        """See `Endpoint.closing`."""
        return encode_closing(reconnect_after)

    # -- heartbeat -----------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """See `Endpoint.deadline`."""
        if self._heartbeat is None or self.state is State.CLOSED:
            return None
        return self._heartbeat.deadline

    def check(self, now: float, *, busy: bool) -> Answer | Close | None:
        """See `Endpoint.check`: ping the client, or give it up."""
        if self._heartbeat is None or self.state is State.CLOSED:
            return None
        if busy:
            self._heartbeat.heard()
        beat = self._heartbeat.check(now)
        if beat is Beat.DEAD:
            self.stop()
            return Close(CloseCode.NO_PONG)
        return Answer(encode_ping()) if beat is Beat.PING else None
