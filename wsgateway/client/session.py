"""What a client does at each frame and as time passes. Pure.

`ClientSession` decides, `Transport` does the I/O, and `Client` talks to the application. The
scenarios in ``tests/vectors/client.json`` hold for it and for ``wsgateway.js``.
"""

from __future__ import annotations

import math
from collections import deque

from wsgateway.client.acks import Acks
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import (
    Delivered,
    Event,
    Watched,
    Welcomed,
)
from wsgateway.client.inbox import ClientInbox, Position
from wsgateway.client.monitor import Monitor, Sign
from wsgateway.client.renewal import Renewal
from wsgateway.client.sending import Sending
from wsgateway.client.subscription import Subscription
from wsgateway.client.subscriptions import Subscriptions
from wsgateway.client.watches import ClientWatches
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import (
    Accepted,
    Closing,
    ErrorCode,
    Ping,
    Presence,
    ProtocolError,
    Readers,
    ReadersChanged,
    Refreshed,
    Refused,
    ServerMessage,
    Subscribed,
    TopicUnwatched,
    Unsubscribed,
    Unwatched,
    Welcome,
    encode_ping,
    encode_pong,
    encode_refresh,
    parse_server,
)

__all__ = ["ClientSession", "should_reconnect"]

STABLE = 5.0
"""Seconds that a connection must last to reset the backoff."""
_AFTER_WELCOME = (
    ServerMessage
    | Accepted
    | Refused
    | Subscribed
    | Unsubscribed
    | Presence
    | Readers
    | ReadersChanged
    | Unwatched
    | TopicUnwatched
    | Refreshed
)
_FINAL = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Standard close codes after which the same client would be refused again."""


def should_reconnect(code: int) -> bool:
    """Return whether to reconnect after this close code."""
    if code >= 4000:
        return code < CloseCode.BAD_REQUEST
    return code not in _FINAL


class ClientSession:
    """One client, across all its connections.

    The caller calls `connecting`, then `receive` for each frame, then `lost`, and starts over. It
    writes what `next_frame` returns until that is None, and again at `write_at`. It calls `alive`
    at `beat_at`. *now* is the value of a monotonic clock.

    Args:
        position: Where to resume; None: where the gateway says.
        ack_every: Acknowledge after this many messages at the latest.
        ack_interval: Acknowledge after this many seconds at the latest.
        queue_limit: Most messages that may wait for confirmation, and most requests for a reply.
        send_window: Most messages on the wire without confirmation.
        ping_timeout: Seconds of silence after a due ping before the connection counts as dead.
        backoff: Delays between attempts.
        renewable: Whether the application can provide another token, after a refusal or before
            this one expires.
        prefix: Of the ids of its own questions, so that no message of the application has the same.
    """

    def __init__(
        self,
        *,
        position: Position | None = None,
        ack_every: int = 16,
        ack_interval: float = 0.2,
        queue_limit: int = 1000,
        send_window: int = 64,
        ping_timeout: float = 10.0,
        backoff: Backoff | None = None,
        renewable: bool = False,
        prefix: str = "",
    ) -> None:
        self._acks = Acks(ack_every, ack_interval)
        self._monitor = Monitor(ping_timeout)
        self._backoff = backoff or Backoff()
        self._renewable = renewable
        self.renewal = Renewal(renewable, self._backoff)
        """When to call `refresh`."""
        self._inbox = ClientInbox(position)
        self.sending = Sending(queue_limit, send_window)
        """Messages and requests that wait for the gateway."""
        self._questions: deque[str] = deque()  # what to write about topics and watches
        self.watches = ClientWatches(self._questions, prefix)
        """Whose presence is watched; `watch` and `watch_readers` add."""
        self.subscriptions = Subscriptions(
            self._acks, self.sending, self.watches, self._questions, self._backoff, prefix
        )
        """The topics that are read."""
        self._controls: deque[str] = deque()  # pings and pongs to write
        self._opened_at: float | None = None  # when this connection was welcomed
        self._attempt = 0  # failures in a row
        self._reconnect_after: float | None = None  # the delay that `closing` asked for, seconds
        self._renewed = False  # asked for another token since the last welcome
        self._ended = False
        self.welcome: Welcome | None = None
        """The last one."""
        self.stale = True
        """Whether to ask for the token before the next attempt."""

    @property
    def position(self) -> Position | None:
        """Up to where messages were processed; None before the first welcome."""
        return self._inbox.position

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that the gateway has welcomed."""
        return self._opened_at is not None

    # -- connections ---------------------------------------------------------------------

    def connecting(self) -> Position | None:
        """Start a connection; return the position to ask for."""
        self._forget_questions()
        self.sending.connecting(self.subscriptions)
        return self._inbox.connecting()

    def _forget_questions(self) -> None:
        self._questions.clear()
        self.subscriptions.connecting()
        self.watches.connecting()

    def lost(self, code: int, now: float) -> float | None:
        """Handle the end of a connection, or a failed attempt.

        Returns:
            Seconds until the next attempt; None: do not reconnect.
        """
        opened_at, self._opened_at = self._opened_at, None
        self._acks.clear()
        self._controls.clear()
        self._forget_questions()
        self._monitor.stop()
        self.renewal.stop()
        if opened_at is not None and now - opened_at >= STABLE:
            self._attempt = 0
        # A gateway that refuses before the handshake cannot always say why.
        if opened_at is None or code == CloseCode.CREDENTIALS_CHANGED:
            self.stale = True
        if not should_reconnect(code) and not self._renew(code):
            return None
        if self._reconnect_after is not None:
            delay, self._reconnect_after = self._reconnect_after, None
            return delay
        self._attempt += 1
        return self._backoff.delay(self._attempt - 1)

    def _renew(self, code: int) -> bool:
        """Return whether another token may help."""
        if code != CloseCode.NOT_AUTHENTICATED or self._renewed:
            return False
        self._renewed = self.stale = True
        return self._renewable

    def end(self, reason: str, close_code: int | None = None) -> list[Event]:
        """End the session, and fail what waits."""
        self._ended = True
        events = self.sending.end(reason, close_code)
        for id in self.watches.end():
            closed = GatewayError("closed", reason, True, id=id, close_code=close_code)
            events.append(Watched(id, closed))
        closed = GatewayError("closed", reason, False, close_code=close_code)
        return [*events, *self.subscriptions.end(closed)]

    # -- from the gateway ----------------------------------------------------------------

    def receive(self, text: str | bytes, now: float) -> list[Event]:
        """Take one websocket frame.

        Raises:
            GatewayError: The connection belongs to another user than before; do not reconnect.
            ProtocolError: The other end does not speak this protocol; do not reconnect.
        """
        frame = parse_server(text)
        self._monitor.heard(now)
        if self._opened_at is None and isinstance(frame, _AFTER_WELCOME):
            message = "the gateway did not begin with a welcome"
            raise ProtocolError(ErrorCode.BAD_REQUEST, message, fatal=True)
        match frame:
            case ServerMessage():
                return self._message(frame, now)
            case Welcome():
                return self._welcomed(frame, now)
            case Accepted(id):
                return self.sending.confirm(id)
            case Refused():
                return self._refused(frame, now)
            case Subscribed():
                return self.subscriptions.subscribed(frame, now)
            case Unsubscribed():
                return self.subscriptions.unsubscribed(frame, now)
            case Presence() | Readers() | ReadersChanged() | Unwatched() | TopicUnwatched():
                return self.watches.receive(frame)
            case _:
                self._note(frame, now)
        return []

    def _note(self, frame: object, now: float) -> None:
        """Take a frame that concerns only the connection."""
        if isinstance(frame, Refreshed):
            self.renewal.accepted(frame.expires_in, now)
        elif isinstance(frame, Closing):
            self._reconnect_after = frame.reconnect_after
        elif isinstance(frame, Ping):
            self._controls.append(encode_pong())

    def _welcomed(self, welcome: Welcome, now: float) -> list[Event]:
        if self.welcome is not None and _whose(welcome) != _whose(self.welcome):
            # What waits here must not be sent as another user
            raise _another_user(self.welcome, welcome)
        self._inbox.welcome(Position(welcome.epoch, welcome.offset, welcome.inbox), welcome.reason)
        self.welcome = welcome
        self._acks.window = welcome.window
        events: list[Event] = []
        if not self.is_open:
            self._opened_at = now
            self._renewed = False
            self._monitor.start(welcome.ping, now)
            self.renewal.accepted(welcome.expires_in, now)
            events = self.subscriptions.welcomed(now)
            self.watches.welcomed(welcome.service)
        return [*self.sending.welcomed(welcome.max_message_size), Welcomed(welcome), *events]

    def _message(self, message: ServerMessage, now: float) -> list[Event]:
        if message.topic is not None:
            return self.subscriptions.message(message, now)
        generation = self._inbox.accept(message)
        if generation is None:
            self._ack_soon(now)
            return []
        if message.reply_to is None:
            return [Delivered(message, generation)]
        # A reply overtakes messages that wait for `recv`: do not acknowledge those with it
        self._inbox.mark_newest_processed()
        self._ack_soon(now)
        return self.sending.replied(message, message.reply_to)

    def _refused(self, frame: Refused, now: float) -> list[Event]:
        if frame.id is None and frame.code == ErrorCode.UNAUTHORIZED:
            self.renewal.failed(now)
        events = self.watches.refused(frame)
        if events is None:
            events = self.subscriptions.refused(frame, now)
        return self.sending.refused(frame) if events is None else events

    # -- from the application ------------------------------------------------------------

    def watch(self, service: str | None, user: str) -> str:
        """Watch a user's presence, see `ClientWatches.add`.

        Raises:
            GatewayError: The session has ended.
        """
        self._check_open()
        return self.watches.add(service, user)

    def watch_readers(self, subscription: Subscription) -> str:
        """Watch who reads a topic, see `ClientWatches.add_readers`.

        Raises:
            GatewayError: The subscription or the session has ended.
        """
        self._check_open()
        if subscription.error is not None:
            raise subscription.error
        return self.watches.add_readers(subscription)

    def _check_open(self) -> None:
        if self._ended:
            raise GatewayError("closed", "the client is already closed", True)

    def refresh(self, token: str) -> None:
        """Replace the token of the open connection, because `Renewal.at` has come."""
        self.renewal.stop()
        self._controls.append(encode_refresh(token))

    def processed(self, generation: int, offset: int, now: float) -> None:
        """Record that everything up to *offset* is processed; both are from `Delivered`."""
        self._inbox.mark_processed(generation, offset)
        self._ack_soon(now)

    # -- to the gateway ------------------------------------------------------------------

    def _ack_soon(self, now: float) -> None:
        if self.is_open:
            self._acks.note(self._inbox, now)

    @property
    def write_at(self) -> float:
        """When `next_frame` has a frame; ``-inf``: now, ``inf``: not until something changes."""
        if self._controls:
            return -math.inf
        if not self.is_open:
            return math.inf
        if self.sending.due or self._questions:
            return -math.inf
        return min(self.subscriptions.ask_at, self._acks.write_at)

    def next_frame(self, now: float) -> str | None:
        """Return the next frame to write, and count it as sent; None if none is due."""
        if self._controls:
            return self._controls.popleft()
        if not self.is_open:
            return None
        self.subscriptions.ask(now)
        if self._questions:
            return self._questions.popleft()
        return self._acks.next_frame(now) or self.sending.next_frame()

    def last_acks(self) -> list[str]:
        """Return the acknowledgements of everything that was processed."""
        return self._acks.take() if self.is_open else []

    # -- a gateway that does not answer --------------------------------------------------

    @property
    def beat_at(self) -> float:
        """When to call `alive`."""
        return self._monitor.due

    def alive(self, now: float) -> bool:
        """Return False if the gateway counts as dead; queue a ping when one is due."""
        sign = self._monitor.check(now)
        if sign is Sign.ASK:
            self._controls.append(encode_ping())
        return sign is not Sign.DEAD


def _whose(welcome: Welcome) -> tuple[str, str]:
    return welcome.service, welcome.user


def _another_user(before: Welcome, now: Welcome) -> GatewayError:
    text = (
        f"connected as {now.user!r} of {now.service!r}, but this client belongs to "
        f"{before.user!r} of {before.service!r}; make a new client"
    )
    return GatewayError("closed", text, False, close_code=CloseCode.NOT_AUTHENTICATED)
