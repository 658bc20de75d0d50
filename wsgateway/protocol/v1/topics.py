"""Which topics one client reads, and what it was told of each last. Pure."""

from __future__ import annotations

from wsgateway.protocol.endpoint import (
    Access,
    Answer,
    Confirm,
    Start,
    Subscribe,
    Unsubscribe,
)
from wsgateway.protocol.subjects import Topic
from wsgateway.protocol.v1.gateway import (
    encode_error,
    encode_subscribed,
    encode_unsubscribed,
)
from wsgateway.protocol.v1.messages import Ack, ErrorCode, Reason, name_epoch

__all__ = ["REASONS", "Topics"]

REASONS = {
    # The same words for both, so that a client that guesses names learns nothing
    ErrorCode.FORBIDDEN: "there is no such topic, or this client may not read it",
    ErrorCode.UNAVAILABLE: "the gateway cannot read this topic now",
    ErrorCode.INTERNAL: "the gateway failed",
}
"""Why a subscription is refused or ends, where `ErrorCode.meaning` speaks of messages."""


class _Reading:
    """A subscription.

    Attributes:
        id: Of the question that waits for its answer; None: it is answered.
        epoch: What the client calls the epoch of its offsets; empty in an ephemeral topic.
        access: What the client may do.
    """

    __slots__ = ("access", "epoch", "id")

    def __init__(self, id: str) -> None:
        self.id: str | None = id
        self.epoch = ""
        self.access: Access = "read"


class Topics:
    """The subscriptions of one client: asked for, then answered, until either side ends them.

    Args:
        limit: How many it may have.
    """

    __slots__ = ("_limit", "_lives", "_readings")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._readings: dict[Topic, _Reading] = {}
        # How often a subscription ended or began again. It is part of an epoch's name, so that a
        # late acknowledgement never confirms what a later subscription delivers, see `name_epoch`.
        self._lives = 0

    # -- from the client -----------------------------------------------------------------

    def ask(self, question: Subscribe) -> Subscribe | Answer:
        """Return what to do about a client's ``subscribe``."""
        topic, id = question.topic, question.id
        known = self._readings.get(topic)
        if known is not None:
            text = "already subscribed to this topic; unsubscribe first"
            if known.id is not None:
                text = "this topic was asked for just now; wait for the answer"
            return Answer(encode_error(id, ErrorCode.BAD_REQUEST, text))
        if len(self._readings) >= self._limit:
            text = f"more than {self._limit} topics (WSGATEWAY_MAX_SUBSCRIPTIONS); leave one first"
            code = ErrorCode.TOO_MANY
            return Answer(encode_unsubscribed(str(topic), code, text, id), code)
        self._readings[topic] = _Reading(id)
        return question

    def leave(self, topic: Topic) -> Unsubscribe | None:
        """Return what to do about a client's ``unsubscribe``; None if it does not read *topic*."""
        if topic not in self._readings:
            return None
        self._forget(topic)
        return Unsubscribe(topic, encode_unsubscribed(str(topic)))

    def _forget(self, topic: Topic) -> None:
        if self._readings.pop(topic).id is None:  # it was delivered
            self._lives += 1

    def confirm(self, ack: Ack) -> Confirm | None:
        """Return what to do about an acknowledgement; None if it is not of this subscription."""
        reading = None if ack.topic is None else self._readings.get(ack.topic)
        if reading is None or reading.id is not None or ack.epoch != reading.epoch:
            return None
        return ack if reading.epoch else None

    def refuse_to_write(self, topic: Topic) -> str | None:
        """Return why the client may not write to *topic*; None if it may."""
        reading = self._readings.get(topic)
        if reading is None or reading.id is not None:
            return "not subscribed to this topic; subscribe, and wait for the answer"
        return None if reading.access == "write" else "this client may read the topic, not write"

    # -- to the client -------------------------------------------------------------------

    def begin(self, topic: Topic, start: Start | None, id: str, access: Access) -> str | None:
        """See `Endpoint.subscribed`."""
        reading = self._readings.get(topic)
        if reading is None or reading.id != id:
            return None
        reading.id, reading.access = None, access
        return self._tell(topic, reading, start, id)

    def change(self, topic: Topic, start: Start | None, access: Access | None) -> str | None:
        """See `Endpoint.subscribed_again`."""
        reading = self._readings.get(topic)
        if reading is None or reading.id is not None:
            return None
        reading.access = access or reading.access
        if start is not None and start.reason in (Reason.EPOCH, Reason.AHEAD):
            self._lives += 1
            return self._tell(topic, reading, start)
        return encode_subscribed(str(topic), reading.access, start, reading.epoch)

    def _tell(
        self, topic: Topic, reading: _Reading, start: Start | None, id: str | None = None
    ) -> str:
        reading.epoch = "" if start is None else name_epoch(start.epoch, self._lives)
        return encode_subscribed(str(topic), reading.access, start, reading.epoch, id)

    def end(self, topic: Topic, code: ErrorCode, reason: str | None, id: str | None) -> str | None:
        """See `Endpoint.unsubscribed`."""
        reading = self._readings.get(topic)
        if reading is None or reading.id != id:
            return None
        self._forget(topic)
        return encode_unsubscribed(str(topic), code, reason or REASONS.get(code), id)
