"""Fast-ingest batches: stored in order, acknowledged in groups. Source: NATS ADR-50.

A publisher need not wait for each message, and still nothing is stored behind one that is
missing: the server ends the batch at a gap, and at a message that it refuses. So what it has
stored is always the beginning of what was sent. From NATS 2.14, on streams with
``allow_batched``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import error_of
from wsgateway.broker.nats.link import Link, new_inbox
from wsgateway.exceptions import BrokerError, BrokerUnavailable

__all__ = ["FLOW", "SINCE", "FastBatch"]

SINCE = (2, 14, 0)
"""The first server version that has them."""
FLOW = 16
"""Messages that one acknowledgement stands for, at most; two of them may be outstanding."""
_START, _APPEND, _END = 0, 1, 3


class FastBatch:
    """One batch of messages on one subject. Its connection's loss is its end: `close` it then.

    Args:
        link: The connection; open.
        subject: One that a stream binds.
        on_change: Called after each answer of the server.
    """

    def __init__(self, link: Link, subject: str, on_change: Callable[[], None]) -> None:
        self.sent = 0
        """Messages that were sent."""
        self.stored = 0
        """How many of them, from the first one on, are known to be stored."""
        self.is_open = False
        """Whether the server has taken the first message for the beginning of a batch."""
        self.is_ending = False
        """Whether it takes no more messages."""
        self.has_ended = False
        """Whether `stored` is final, and everything after it was refused."""
        self.error: BrokerError | None = None
        """Why it ended, if the server said so."""
        self._link = link
        self._subject = subject
        self._on_change = on_change
        self._flow = FLOW
        inbox = new_inbox()
        self._reply = f"{inbox}.{FLOW}.fail"
        self._interest = link.subscribe(f"{inbox}.>", self._on_answer)

    @property
    def takes_more(self) -> bool:
        """Whether `append` is allowed now."""
        if self.is_ending:
            return False
        return self.is_open and self.sent - self.stored < 2 * self._flow

    def append(self, payload: bytes, headers: Mapping[str, str]) -> None:
        """Send a message; the first one begins the batch, the next waits until it is open.

        Raises:
            BrokerUnavailable: Not connected; nothing was sent.
        """
        number = self.sent + 1
        self._publish(number, _APPEND if self.sent else _START, payload, hdrs.encode(headers))
        self.sent = number

    def end(self) -> None:
        """Ask for the final answer; only once the batch is open."""
        if not self.is_ending:
            self.is_ending = True
            self._publish(self.sent + 1, _END, b"", b"")

    def close(self) -> None:
        """Hear no more answers."""
        self.is_ending = True
        self._interest.close()

    def _publish(self, number: int, operation: int, payload: bytes, headers: bytes) -> None:
        reply = f"{self._reply}.{number}.{operation}.$FI"
        self._link.publish(self._subject, payload, headers, reply)
        self._link.send_now()  # what was sent outlives this process

    def _on_answer(self, _s: bytes, _r: bytes, data: bytes, raw: bytes | None) -> None:
        if self.has_ended:  # the rest of what was under way is refused one by one
            return
        if hdrs.status(raw) == 503:
            self.error = BrokerUnavailable(f"no stream takes {self._subject} now")
            self._finish(0)
        else:
            answer = json.loads(data)
            kind = answer.get("type")
            if kind == "ack":
                self.is_open = True
                self._flow = max(1, answer["msgs"])
                self.stored = max(self.stored, answer["seq"])
            elif kind is not None:  # a gap, or an error; the final answer follows
                self.is_ending = True
                self._note(answer)
            else:
                self._note(answer)  # a server without batches answers as to any message
                self._finish(0 if "error" in answer else answer.get("count", 1))
        self._on_change()

    def _note(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            self.error = self.error or error_of(answer["error"])

    def _finish(self, stored: int) -> None:
        self.stored = max(self.stored, stored)
        self.is_ending = self.has_ended = True
