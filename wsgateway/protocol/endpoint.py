"""The gateway's end of one websocket: frames and time in, actions out. Pure.

An endpoint decides what a client's frame means and what the client is told. Its owner carries the
actions out: it publishes, confirms, answers and closes, and tells the endpoint what came of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from wsgateway.exceptions import MessageTooBig, QueueFull
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.limits import Limits, RateLimit, SizeLimit
from wsgateway.protocol.subjects import Address, Inbox, Topic

if TYPE_CHECKING:
    from wsgateway.protocol.readership import Present
    from wsgateway.protocol.v1.messages import ErrorCode

__all__ = [
    "Access",
    "Action",
    "Answer",
    "Client",
    "Close",
    "Confirm",
    "EndWatch",
    "Endpoint",
    "Publish",
    "RawEndpoint",
    "Renew",
    "Since",
    "Start",
    "StartWatch",
    "State",
    "Subscribe",
    "Unsubscribe",
]

Access = Literal["read", "write"]
"""What a client may do with a topic; writing includes reading."""
Since = Literal["new", "all"] | int
"""Where a client without a position begins: with what is new, all that is kept, or so many of the
newest messages."""


class State(Enum):
    """What an endpoint takes from its client."""

    CONNECTING = "connecting"
    """Nothing yet: the client does not know where delivery begins."""
    OPEN = "open"
    CLOSED = "closed"
    """Nothing any more."""


class Publish(NamedTuple):
    """Publish *frame*, and say what came of it with `Endpoint.published`.

    Attributes:
        id: The client's own name for the message; None if it has none.
        request: Whether the client wants a reply.
        trace: The client's trace context, as headers; None if it sent none.
        topic: Where to; the client has subscribed to it and may write. None: its own service.
    """

    frame: Frame
    id: str | None = None
    request: bool = False
    trace: Mapping[str, str] | None = None
    topic: Topic | None = None


@dataclass(slots=True)
class Confirm:
    """The client has everything up to *offset*; if that is news, call `Endpoint.progressed`.

    Attributes:
        offset: It may be more than was sent: clamp it.
        topic: Of which topic; None: of the inbox.
    """

    offset: int
    topic: Topic | None = field(default=None, kw_only=True)


class Answer(NamedTuple):
    """Write *text*, after the answers before it; messages may come in between.

    Attributes:
        refused: Why it refuses a subscription to a topic; None: it does not.
    """

    text: str
    refused: ErrorCode | None = None


class Close(NamedTuple):
    """Close the websocket. The endpoint takes nothing more.

    Attributes:
        reason: What the client is told; None: what the code means.
        cause: What the log says; None: nothing.
    """

    code: CloseCode
    reason: str | None = None
    cause: str | None = None


class StartWatch(NamedTuple):
    """Find out whether the client may watch *target*: a user, or who reads a topic.

    If so, call `Endpoint.presence`, and again at each change; otherwise `Endpoint.refuse_watch`.

    Attributes:
        token: Of a topic: as in `Subscribe`.
    """

    target: Address
    token: str | None = None


class EndWatch(NamedTuple):
    """The client does not watch *target* any more."""

    target: Address


class Subscribe(NamedTuple):
    """Find out whether the client may read *topic*, and where to begin.

    If so, call `Endpoint.subscribed`, and deliver after what it returns is written; otherwise
    `Endpoint.unsubscribed` with the *id*. Frames of other topics do not wait for this one.

    Attributes:
        id: The client's name for the question.
        epoch: The client's own position, with *offset*: both or neither.
        since: Where to begin if the client has no position.
        token: What the client's page was given, to prove that it may; None without.
    """

    topic: Topic
    id: str
    epoch: str | None = None
    offset: int | None = None
    since: Since = "new"
    token: str | None = None


class Unsubscribe(NamedTuple):
    """End the subscription to *topic*, or the question whether it may begin, at once.

    Write *text* when nothing of that subscription can be written any more. The endpoint has
    forgotten the topic already, so the next frame may subscribe to it again.
    """

    topic: Topic
    text: str


class Renew(NamedTuple):
    """The client has a new *token*: call `Endpoint.renewed` or `Endpoint.refuse_renewal`."""

    token: str


Action = (
    Publish | Confirm | Answer | Close | StartWatch | EndWatch | Subscribe | Unsubscribe | Renew
)


class Client(NamedTuple):
    """Who a client is, as its welcome says.

    Attributes:
        connection: Names the socket.
        expires_in: Seconds until its login ends; None: nobody knows of an end.
    """

    connection: str
    service: str
    user: str
    device: str
    expires_in: float | None = None


class Start(Protocol):
    """Where delivery begins."""

    @property
    def epoch(self) -> str:
        """Life of the stream that the offset belongs to."""

    @property
    def offset(self) -> int:
        """The first message has a larger offset."""

    @property
    def reason(self) -> str | None:
        """Why messages may be missing before it; None: nothing is."""


class Message(Protocol):
    """A stored message.

    Attributes:
        offset: 0 if it is not stored, as in an ephemeral topic.
        sender: Who wrote it to a topic, as the gateway says; None if that is not known.
        encoded: Its frame for clients of a topic, once one of them has it.
        event: The same as a server-sent event, without its id.
    """

    encoded: str | None
    event: str | None

    @property
    def offset(self) -> int: ...
    @property
    def time(self) -> str: ...
    @property
    def frame(self) -> Frame: ...
    @property
    def reply_to(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def sender(self) -> Inbox | None: ...


class Endpoint(ABC):
    """One client.

    Args:
        limits: What the client is held to.
        now: The clock's value, seconds; the clock must not jump.
    """

    __slots__ = ("_frame_size", "_rate", "_size", "limits", "state")

    acknowledges = False
    """Whether the client itself confirms offsets."""
    resumes = False
    """Whether it is told where delivery begins, and what may be missing, and so can resume."""
    moves_cursor = True
    """Whether what it confirms, or what the kernel has taken for it, moves its device's cursor."""
    subprotocol: str | None = None

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.state = State.CONNECTING
        self._rate = RateLimit(limits.rate, limits.burst, now)
        self._size = SizeLimit(limits.message, "WSGATEWAY_MAX_MESSAGE_SIZE")
        self._frame_size = self.frame_of(limits.message)

    # -- limits --------------------------------------------------------------------------

    def fit_server(self, size: int) -> None:
        """Promise no more than the web server takes: frames of *size* bytes."""
        self._frame_size = size
        self._fit(self.message_in(size), "what the web server takes")

    def fit_broker(self, size: int) -> None:
        """Promise no more than the broker stores: messages of *size* bytes."""
        self._fit(size, "what NATS' max_payload leaves beside the headers")

    def _fit(self, size: int, setting: str) -> None:
        if size < self._size.limit:
            self._size = SizeLimit(size, setting)

    @property
    def largest_frame(self) -> int:
        """Bytes of a frame that a client may send."""
        return self._frame_size

    @property
    def largest_message(self) -> int:
        """Bytes of a message that a client may send, and be sure that it is taken."""
        return self._size.limit

    @staticmethod
    def frame_of(size: int) -> int:
        """Return the bytes of a frame that holds a message of *size* bytes, at most."""
        return size

    @staticmethod
    def message_in(size: int) -> int:
        """Return the bytes of a message that fits into a frame of *size* bytes for sure."""
        return size

    # -- from the client -----------------------------------------------------------------

    def open(self, now: float) -> None:
        """Take frames from now on, unless it is closed. Idempotent."""
        if self.state is State.CONNECTING:
            self.state = State.OPEN

    def stop(self) -> None:
        """Take nothing more, as after a `Close`. Idempotent."""
        self.state = State.CLOSED

    @abstractmethod
    def receive(self, frame: str | bytes, now: float) -> Action | None:
        """Return what to do about a frame; None: nothing."""

    def hidden_frame(self, now: float) -> Close | None:
        """Count a frame that only the server sees, such as a ping, which it answers itself."""
        self._rate.take(now)
        return None if self.state is State.CLOSED else self._exhausted()

    def progressed(self) -> None:
        """Note that the last `Confirm` was news: what a client must send counts for nothing."""
        self._rate.give_back()

    @abstractmethod
    def published(self, id: str | None, error: BaseException | None) -> Answer | Close | None:
        """Return what to do once the broker has answered.

        Args:
            id: The message's, see `Publish`.
            error: Why it was not stored; None if it was.
        """

    def _exhausted(self) -> Close | None:
        if not self._rate.exhausted:
            return None
        self.stop()
        return Close(CloseCode.RATE_LIMIT)

    # -- to the client -------------------------------------------------------------------

    @abstractmethod
    def welcome(self, client: Client, start: Start) -> str | None:
        """Return the frame that says where delivery begins, the first time or again.

        Args:
            client: Who it is.
            start: Where.
        """

    def restart(self) -> Close | None:
        """Note that the client's offsets mean nothing any more; a welcome follows.

        Returns:
            How to close after that welcome, if the client cannot go on.
        """
        return None

    @abstractmethod
    def message(self, stored: Message, topic: Topic | None = None) -> str | bytes | None:
        """Return the frame for a stored message; None if this client does not get it.

        Args:
            stored: The message.
            topic: Where it is stored, which must be the same for all clients; None: in the inbox.

        Raises:
            MalformedMessage: It cannot be a frame.
        """

    def subscribed(self, topic: Topic, start: Start | None, id: str, access: Access) -> str | None:
        """Begin a subscription; return the frame that says so.

        Args:
            topic: To what.
            start: Where delivery begins; None: the topic is ephemeral.
            id: Of the `Subscribe`.
            access: What the client may do.

        Returns:
            None if the client has ended it since: then deliver nothing.
        """
        return None

    def begins(self, topic: Topic, frame: str) -> str:
        """Return what to write now of *frame*, which `subscribed` has made."""
        return frame

    def subscribed_again(
        self, topic: Topic, start: Start | None, access: Access | None = None
    ) -> str | None:
        """Return the frame that says that the topic's stream, or the client's right, changed.

        Args:
            topic: Which.
            start: Where delivery goes on. With the reason ``epoch`` or ``ahead``, offsets before
                mean nothing any more; otherwise, the client keeps its position.
            access: What the client may do from now on; None: the same as before.

        Returns:
            None if the client has not subscribed to *topic*.
        """
        return None

    def unsubscribed(
        self, topic: Topic, code: ErrorCode, reason: str | None = None, id: str | None = None
    ) -> str | None:
        """Refuse or end a subscription; return the frame that says so.

        Args:
            topic: To what.
            code: Why.
            reason: The same for the client's developer; None: what *code* means.
            id: Of the `Subscribe` that is refused; None: end a subscription.

        Returns:
            None if there is nothing to refuse or to end: the client has ended it.
        """
        return None

    def lost(self, topic: Topic, code: ErrorCode) -> Close | None:
        """Return how to close because a subscription has ended; None: go on without it.

        Args:
            topic: To what.
            code: Why.
        """
        return None

    def presence(self, target: Address, state: bool | Present | None) -> Answer | None:
        """Return what to tell the client of what it watches; None: nothing.

        Args:
            target: A user, or a topic.
            state: Whether the user is online, None: not known now; or who reads the topic.
        """
        return None

    def refuse_watch(self, target: Address, error: Exception | None = None) -> Answer | None:
        """End a watch; return what to tell the client.

        Args:
            target: What it may not watch.
            error: What failed when that was to be found out; None: it may not.
        """
        return None

    def renewed(self, expires_in: float | None) -> Answer | None:
        """Return what to tell a client whose new token was accepted.

        Args:
            expires_in: See `Client`.
        """
        return None

    def refuse_renewal(self, reason: str, *, temporary: bool) -> Answer | None:
        """Return what to tell a client whose new token was not accepted.

        Args:
            reason: Why; never holds the token.
            temporary: Whether the same token may be accepted later.
        """
        return None

    def announces(self, code: CloseCode) -> bool:
        """Say whether a close with *code* is announced, with `closing`."""
        return False

    def closing(self, reconnect_after: float) -> str:
        """Return the frame that announces a close.

        Args:
            reconnect_after: Seconds after which the client is to come back.
        """
        raise NotImplementedError

    def code(self, code: CloseCode) -> int:
        """Return the code that the client gets for *code*."""
        return int(code)

    # -- heartbeat -----------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When to call `check`; None: never."""
        return None

    def check(self, now: float, *, busy: bool) -> Answer | Close | None:
        """Return what to do when `deadline` has come.

        Args:
            now: The clock's value.
            busy: A frame is being taken: until that is done, the client cannot be heard.
        """
        return None


class RawEndpoint(Endpoint):
    """Without a subprotocol: one frame is one payload, both ways."""

    __slots__ = ()

    def receive(self, frame: str | bytes, now: float) -> Action | None:
        """See `Endpoint.receive`. There is no way to answer: what is refused closes the socket."""
        if self.state is not State.OPEN:
            return None
        if not self._rate.take(now):
            self.stop()
            return Close(CloseCode.RATE_LIMIT)
        payload = Frame.of(frame)
        if problem := self._size.exceeded_by(len(payload.payload)):
            self.stop()
            return Close(CloseCode.MESSAGE_TOO_BIG, cause=str(problem))
        return Publish(payload)

    def published(self, id: str | None, error: BaseException | None) -> Answer | Close | None:
        """See `Endpoint.published`."""
        if error is None or self.state is State.CLOSED:
            return None
        code = CloseCode.BROKER_UNAVAILABLE
        if isinstance(error, QueueFull):
            code = CloseCode.QUEUE_FULL
        elif isinstance(error, MessageTooBig):
            code = CloseCode.MESSAGE_TOO_BIG
        self.stop()
        return Close(code, cause=str(error))

    def welcome(self, client: Client, start: Start) -> None:
        """Say nothing: there is no way to."""

    def message(self, stored: Message, topic: Topic | None = None) -> str | bytes | None:
        """See `Endpoint.message`; no answers to requests, which a raw client cannot have made."""
        return stored.frame.data if stored.reply_to is None else None

    def code(self, code: CloseCode) -> int:
        """See `Endpoint.code`."""
        return code.raw
