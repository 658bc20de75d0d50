"""The frames that tell a client who reads a topic that it watches."""

from __future__ import annotations

from collections.abc import Iterable

from wsgateway.protocol.readership import Present
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1.fields import dumps
from wsgateway.protocol.v1.messages import ErrorCode

__all__ = ["encode_readers", "encode_readers_changed", "encode_topic_unwatched"]


def encode_readers(id: str, topic: Topic, present: Present) -> str:
    """Return the answer to a watch: who reads the topic."""
    return dumps({"type": "watching", "id": id, "topic": str(topic), **_state(present)})


def encode_readers_changed(topic: Topic, told: Present, present: Present) -> str:
    """Return the news for a client that was told *told*; made once for all such clients."""
    if present.encoded is None or present.encoded[0] is not told:
        present.encoded = told, _changed(topic, told, present)
        told.encoded = None  # or each would keep those before it alive
    return present.encoded[1]


def _changed(topic: Topic, told: Present, present: Present) -> str:
    fields: dict[str, object] = {"type": "presence", "topic": str(topic)}
    if told.users is None or present.users is None:
        return dumps(fields | _state(present))
    return dumps(
        {
            **fields,
            "joined": _list(present.users - told.users),
            "left": _list(told.users - present.users),
            "complete": present.complete,
        }
    )


def _state(present: Present) -> dict[str, object]:
    if present.users is None:
        return {"users": None, "sockets": present.sockets, "complete": present.complete}
    return {"users": _list(present.users), "complete": present.complete}


def _list(inboxes: Iterable[Inbox]) -> list[dict[str, str]]:
    return [inbox._asdict() for inbox in sorted(inboxes)]


def encode_topic_unwatched(topic: Topic, code: ErrorCode, reason: str) -> str:
    """Return the news that the watch of a topic has ended."""
    return dumps({"type": "unwatched", "topic": str(topic), "code": code.value, "reason": reason})
