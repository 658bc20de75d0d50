"""What a client has sent and waits for: confirmations, and replies to its requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wsgateway.client.errors import GatewayError
from wsgateway.client.events import Answered, Confirmed, Event, Failed, Unclaimed
from wsgateway.client.outbox import ClientOutbox
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import Refused, ServerMessage, valid_id

__all__ = ["Sending"]


class Sending:
    """Messages and requests of one client, across all its connections.

    Args:
        queue_limit: Most messages that may wait for confirmation, and most requests for a reply.
        send_window: Most messages on the wire without confirmation.
    """

    __slots__ = ("_ended", "_max_size", "_outbox", "_queue_limit", "_requests")

    def __init__(self, queue_limit: int, send_window: int) -> None:
        self._queue_limit = queue_limit
        self._outbox = ClientOutbox(queue_limit, send_window)
        self._requests: set[str] = set()  # ids that wait for their replies
        self._max_size: int | None = None  # the gateway's limit, bytes; None before a welcome
        self._ended = False

    def __len__(self) -> int:
        """Return how many messages are queued or sent, and not confirmed."""
        return len(self._outbox)

    def is_unconfirmed(self, id: str) -> bool:
        """Say whether the message *id* is queued or sent, and not confirmed."""
        return id in self._outbox

    # -- connections ---------------------------------------------------------------------

    def connecting(self, topics: Iterable[str]) -> None:
        """Start a connection; see `ClientOutbox.connecting`."""
        self._outbox.connecting(topics)

    def block(self, topic: str) -> None:
        """Send nothing to *topic* until `unblock`. Idempotent."""
        self._outbox.block(topic)

    def unblock(self, topic: str) -> None:
        """Send what waits for *topic*. Idempotent."""
        self._outbox.unblock(topic)

    def fail_topic(self, topic: str, error: GatewayError) -> list[Event]:
        """Fail what waits to be sent to *topic*, or to be confirmed."""
        events: list[Event] = []
        for id in self._outbox.sent_to(topic):
            events += self._fail(id, error.about(id))
        self._outbox.unblock(topic)
        return events

    def welcomed(self, max_size: int) -> list[Event]:
        """Take the gateway's limit, in bytes; fail what is larger."""
        self._max_size = max_size
        events: list[Event] = []
        for id, size in self._outbox.larger_than(max_size):
            events += self._fail(id, _too_big(id, size, max_size))
        return events

    def end(self, reason: str, close_code: int | None = None) -> list[Event]:
        """End the session, and fail what waits."""
        self._ended = True

        def closed(id: str) -> GatewayError:
            return GatewayError("closed", reason, True, id=id, close_code=close_code)

        events: list[Event] = [Failed(id, closed(id)) for id in self._outbox]
        events += [Answered(id, closed(id)) for id in self._requests]
        self._outbox.clear()
        self._requests.clear()
        return events

    @property
    def due(self) -> bool:
        """Whether `next_frame` has a frame."""
        return self._outbox.due

    def next_frame(self) -> str | None:
        """Return the next frame to write, and count it as sent; None if none is due."""
        return self._outbox.next_frame()

    # -- from the gateway ----------------------------------------------------------------

    def replied(self, message: ServerMessage, id: str) -> list[Event]:
        """Take the reply to the message *id*."""
        answer: ServerMessage | GatewayError = message
        if message.error is not None:
            text = message.frame.data if message.frame.text else ""
            text = str(text) or "the service refused it"
            answer = GatewayError(message.error, text, False, id=id)
        events = self.confirm(id)  # a request with a reply is stored
        if id not in self._requests:
            return [*events, Unclaimed(answer)]
        self._requests.remove(id)
        return [*events, Answered(id, answer)]

    def confirm(self, id: str) -> list[Event]:
        """Take the word that the message *id* is stored."""
        if id not in self._outbox:
            return []
        self._outbox.remove(id)
        return [Confirmed(id)]

    def refused(self, frame: Refused) -> list[Event]:
        """Take an error."""
        error = GatewayError(frame.code, frame.message, frame.temporary, id=frame.id)
        if frame.id is None or frame.id not in self._outbox:
            return [Unclaimed(error)]
        return self._fail(frame.id, error)

    def _fail(self, id: str, error: GatewayError) -> list[Event]:
        self._outbox.remove(id)
        if id not in self._requests:
            return [Failed(id, error)]
        self._requests.remove(id)
        return [Failed(id, error), Answered(id, error)]

    # -- from the application ------------------------------------------------------------

    def request(
        self,
        id: str,
        frame: Frame,
        *,
        trace: Mapping[str, str] | None = None,
        topic: str | None = None,
    ) -> None:
        """Queue a message and wait for its reply, unless the same request waits already.

        Raises:
            GatewayError: It cannot be queued.
            ValueError: The id cannot be used.
        """
        if id in self._requests:
            return
        if len(self._requests) >= self._queue_limit:
            text = f"{len(self._requests)} requests are already waiting for replies (queue_limit)"
            raise GatewayError("queue_limit", text, True, id=id)
        self.send(id, frame, request=True, trace=trace, topic=topic)
        self._requests.add(id)

    def expect_no_reply(self, id: str) -> None:
        """Report a later reply to *id* as `Unclaimed`. Idempotent."""
        self._requests.discard(id)

    def send(
        self,
        id: str,
        frame: Frame,
        *,
        request: bool = False,
        trace: Mapping[str, str] | None = None,
        topic: str | None = None,
    ) -> None:
        """Queue a message, unless one with the same id waits already.

        Args:
            id: 1 to 64 printable ASCII characters without spaces.
            frame: What to send.
            request: Whether the service is asked to reply.
            trace: The trace context in which it is sent.
            topic: To which topic, sent once the client reads it; None: to the client's service.

        Raises:
            GatewayError: It cannot be queued.
            ValueError: The id cannot be used.
        """
        if not valid_id(id):
            raise ValueError(f"id {id!r} is not 1 to 64 printable ASCII characters, no spaces")
        if id not in self._outbox:
            self._check(id, len(frame.payload))
            self._outbox.add(id, frame, request=request, trace=trace, topic=topic)

    def _check(self, id: str, size: int) -> None:
        """Refuse what cannot be sent, before it is queued."""
        if self._ended:
            raise GatewayError("closed", "the client is already closed", True, id=id)
        if self._max_size is not None and size > self._max_size:
            raise _too_big(id, size, self._max_size)
        if self._outbox.full:
            text = (
                f"{len(self._outbox)} messages are already waiting for confirmation (queue_limit)"
            )
            raise GatewayError("queue_limit", text, True, id=id)

    def give_up(self, id: str) -> None:
        """Do not send *id* again; it may have been stored. Idempotent."""
        self._outbox.remove(id)


def _too_big(id: str, size: int, limit: int) -> GatewayError:
    text = f"message of {size} bytes exceeds the gateway's limit of {limit} bytes"
    return GatewayError("too_big", text, False, id=id)
