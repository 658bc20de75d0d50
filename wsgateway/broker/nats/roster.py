"""The roster, in a JetStream key-value bucket whose entries expire."""

from __future__ import annotations

import json
import logging

from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.roster import Details, Roster
from wsgateway.protocol.subjects import Subjects

__all__ = ["NatsRoster"]

logger = logging.getLogger("wsgateway.broker")

BATCH = 1000
REMOVED = hdrs.encode({"KV-Operation": "DEL"})
"""Marks an entry as deleted, as NATS' own key-value clients do. Source: NATS ADR-8."""


class NatsRoster(Roster):
    """See `Roster`.

    Args:
        jetstream: Where the bucket is.
        subjects: Names it and its keys.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects) -> None:
        super().__init__()
        self._jetstream = jetstream
        self._subjects = subjects
        self._stream = subjects.bucket("roster")

    async def _store(self, kind: str, id: str, details: Details) -> None:
        await self._jetstream.publish(self._subjects.roster_key(kind, id), _encode(details))

    def _touch(self, kind: str, id: str, details: Details) -> None:
        # Nobody waits for the answer: the next refresh follows soon
        subject = self._subjects.roster_key(kind, id)
        self._jetstream.connection.publish(subject, _encode(details))

    def _remove(self, kind: str, id: str) -> None:
        subject = self._subjects.roster_key(kind, id)
        self._jetstream.connection.publish(subject, b"", REMOVED)

    async def _load(self, kind: str) -> dict[str, Details]:
        found: dict[str, Details] = {}
        after, pending = 0, 1
        pattern = self._subjects.roster_key(kind, "*")
        while pending:
            request = {"seq": after + 1, "next_by_subj": pattern, "batch": BATCH}
            batch = await self._jetstream.direct(self._stream, request)
            for reply in batch.replies:
                after = hdrs.find_int(reply.headers, b"Nats-Sequence") or after
                id = (hdrs.find_text(reply.headers, b"Nats-Subject") or "").rpartition(".")[2]
                if reply.data:  # otherwise it has left
                    found[id] = _decode(reply.data)
                else:
                    found.pop(id, None)
            pending = batch.pending if batch.replies else 0
        return found


def _encode(details: Details) -> bytes:
    return json.dumps(details).encode()


def _decode(data: bytes) -> Details:
    """Return an entry's details; none if somebody wrote something else there."""
    try:
        details = json.loads(data)
    except (ValueError, RecursionError):
        details = None
    if isinstance(details, dict):
        return details
    logger.debug("an entry of the roster is not a JSON object")
    return {}
