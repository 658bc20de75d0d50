"""Answers ``nats micro ls``, ``info`` and ``stats``. Source: NATS ADR-32, schemas v1."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsgateway.broker.bus import Bus, Closable, may_answer
from wsgateway.exceptions import BrokerError

if TYPE_CHECKING:
    from wsgateway.broker.discovery import Endpoint, Shown

__all__ = ["Micro"]

_NANO = 1_000_000_000


class Micro:
    """Shows one process as a micro service, until `close`.

    Args:
        bus: Where requests come from.
        prefix: First tokens of our own subjects, to which no answer goes.
        shown: The process.
    """

    def __init__(self, bus: Bus, prefix: str, shown: Shown) -> None:
        self._bus = bus
        self._prefix = prefix
        self._shown = shown
        self._answers: dict[bytes, Callable[[], dict[str, Any]]] = {
            b"PING": self._ping,
            b"INFO": self._info,
            b"STATS": self._stats,
        }
        names = ("$SRV.*", f"$SRV.*.{shown.name}", f"$SRV.*.{shown.name}.{shown.id}")
        self._subscriptions: list[Closable] = [
            bus.subscribe(name, self._on_request, optional=True) for name in names
        ]

    def close(self) -> None:
        """Answer no more. Idempotent."""
        for subscription in self._subscriptions:
            subscription.close()

    def _on_request(
        self, subject: bytes, reply: bytes, _payload: bytes, _headers: bytes | None
    ) -> None:
        answer = self._answers.get(subject.split(b".")[1])
        if answer is None or not may_answer(reply, self._prefix):
            return
        data = json.dumps(answer(), ensure_ascii=False, separators=(",", ":")).encode()
        with contextlib.suppress(BrokerError, UnicodeDecodeError):
            self._bus.publish(reply.decode(), data)
            self._bus.send_now()

    # -- answers -------------------------------------------------------------------------

    def _identity(self, kind: str) -> dict[str, Any]:
        shown = self._shown
        return {
            "type": f"io.nats.micro.v1.{kind}_response",
            "name": shown.name,
            "id": shown.id,
            "version": shown.version,
            "metadata": dict(shown.metadata),
        }

    def _ping(self) -> dict[str, Any]:
        return self._identity("ping")

    def _info(self) -> dict[str, Any]:
        endpoints = [_described(each) | {"metadata": {}} for each in self._shown.endpoints()]
        about = {"description": self._shown.description, "endpoints": endpoints}
        return self._identity("info") | about

    def _stats(self) -> dict[str, Any]:
        started = self._shown.started.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        endpoints = [_counted(each) for each in self._shown.endpoints()]
        return self._identity("stats") | {"started": started, "endpoints": endpoints}


def _described(endpoint: Endpoint) -> dict[str, Any]:
    # Without a queue group: each process answers for itself
    return {"name": endpoint.name, "subject": endpoint.subject, "queue_group": ""}


def _counted(endpoint: Endpoint) -> dict[str, Any]:
    took = int(endpoint.seconds * _NANO)
    data = {"data": dict(endpoint.data)} if endpoint.data else {}
    return (
        _described(endpoint)
        | data
        | {
            "num_requests": endpoint.requests,
            "num_errors": endpoint.errors,
            "last_error": endpoint.last_error,
            "processing_time": took,
            "average_processing_time": took // endpoint.requests if endpoint.requests else 0,
        }
    )
