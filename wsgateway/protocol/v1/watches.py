"""Which users and topics one client watches, and what it was told last of each. Pure."""

from __future__ import annotations

from wsgateway.protocol.endpoint import Answer, EndWatch, StartWatch
from wsgateway.protocol.readership import Present
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1.gateway import (
    encode_error,
    encode_presence,
    encode_unwatched,
    encode_watching,
)
from wsgateway.protocol.v1.messages import ErrorCode
from wsgateway.protocol.v1.presence import (
    encode_readers,
    encode_readers_changed,
    encode_topic_unwatched,
)

__all__ = ["Seen", "Watches"]

Seen = bool | Present | None
"""Whether a user is online, None if that is not known; or who reads a topic."""


class Watches:
    """The watches of one client: asked for, then answered, until either side ends them.

    Args:
        limit: How many it may have.
    """

    __slots__ = ("_asked", "_limit", "_told")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._asked: dict[Address, str] = {}  # ids of those that wait for their answer
        self._told: dict[Address, Seen] = {}  # what the client knows of the others

    def ask(self, id: str, target: Address, token: str | None = None) -> StartWatch | Answer:
        """Return what to do about a client's ``watch``."""
        if target in self._told:
            return Answer(_encode_watching(id, target, self._told[target]))
        if target in self._asked:
            what = "topic" if isinstance(target, Topic) else "user"
            text = f"this {what}'s presence was asked for just now; wait for the answer"
            return Answer(encode_error(id, ErrorCode.BAD_REQUEST, text))
        if len(self._asked) + len(self._told) >= self._limit:
            text = f"more than {self._limit} watches (WSGATEWAY_MAX_WATCHES); end one first"
            return Answer(encode_error(id, ErrorCode.TOO_MANY, text))
        self._asked[target] = id
        return StartWatch(target, token)

    def end(self, target: Address) -> EndWatch | None:
        """Return what to do about a client's ``unwatch``; None if it does not watch *target*."""
        known = target in self._told or target in self._asked
        self._told.pop(target, None)
        self._asked.pop(target, None)
        return EndWatch(target) if known else None

    def presence(self, target: Address, state: Seen) -> Answer | None:
        """Return what to tell the client; None if it knows, or does not watch *target*."""
        if target in self._asked:
            self._told[target] = state
            return Answer(_encode_watching(self._asked.pop(target), target, state))
        if target not in self._told:
            return None
        told, self._told[target] = self._told[target], state
        if isinstance(target, Inbox):
            return None if state is told else Answer(encode_presence(target, _online(state)))
        now, before = _present(state), _present(told)
        if not now.differs_from(before):
            return None
        return Answer(encode_readers_changed(target, before, now))

    def refuse(self, target: Address, code: ErrorCode, reason: str) -> Answer | None:
        """End a watch from the gateway's side; return what to tell the client."""
        if target in self._asked:
            return Answer(encode_error(self._asked.pop(target), code, reason))
        if target in self._told:
            del self._told[target]
            if isinstance(target, Topic):
                return Answer(encode_topic_unwatched(target, code, reason))
            return Answer(encode_unwatched(target, code, reason))
        return None


def _encode_watching(id: str, target: Address, state: Seen) -> str:
    if isinstance(target, Topic):
        return encode_readers(id, target, _present(state))
    return encode_watching(id, target, _online(state))


def _online(state: Seen) -> bool | None:
    return state if isinstance(state, bool) else None


def _present(state: Seen) -> Present:
    return state if isinstance(state, Present) else Present(frozenset(), 0, complete=False)
