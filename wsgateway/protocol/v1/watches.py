"""Whose presence one client watches, and what it was told last. Pure."""

from __future__ import annotations

from wsgateway.protocol.endpoint import Answer, EndWatch, StartWatch
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1.gateway import (
    encode_error,
    encode_presence,
    encode_unwatched,
    encode_watching,
)
from wsgateway.protocol.v1.messages import ErrorCode

__all__ = ["Watches"]


class Watches:
    """The watches of one client: asked for, then answered, until either side ends them.

    Args:
        limit: How many it may have.
    """

    __slots__ = ("_asked", "_limit", "_told")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._asked: dict[Inbox, str] = {}  # ids of those that wait for their answer
        self._told: dict[Inbox, bool | None] = {}  # what the client knows of the others

    def ask(self, id: str, inbox: Inbox) -> StartWatch | Answer:
        """Return what to do about a client's ``watch``."""
        if inbox in self._told:
            return Answer(encode_watching(id, inbox, self._told[inbox]))
        if inbox in self._asked:
            text = "this user's presence was asked for just now; wait for the answer"
            return Answer(encode_error(id, ErrorCode.BAD_REQUEST, text))
        if len(self._asked) + len(self._told) >= self._limit:
            text = f"more than {self._limit} watches (WSGATEWAY_MAX_WATCHES); end one first"
            return Answer(encode_error(id, ErrorCode.TOO_MANY, text))
        self._asked[inbox] = id
        return StartWatch(inbox)

    def end(self, inbox: Inbox) -> EndWatch | None:
        """Return what to do about a client's ``unwatch``; None if it does not watch *inbox*."""
        known = inbox in self._told or inbox in self._asked
        self._told.pop(inbox, None)
        self._asked.pop(inbox, None)
        return EndWatch(inbox) if known else None

    def presence(self, inbox: Inbox, online: bool | None) -> Answer | None:
        """Return what to tell the client; None if it knows, or does not watch *inbox*."""
        if inbox in self._asked:
            self._told[inbox] = online
            return Answer(encode_watching(self._asked.pop(inbox), inbox, online))
        if inbox not in self._told or self._told[inbox] is online:
            return None
        self._told[inbox] = online
        return Answer(encode_presence(inbox, online))

    def refuse(self, inbox: Inbox, code: ErrorCode, reason: str) -> Answer | None:
        """End a watch from the gateway's side; return what to tell the client."""
        if inbox in self._asked:
            return Answer(encode_error(self._asked.pop(inbox), code, reason))
        if inbox in self._told:
            del self._told[inbox]
            return Answer(encode_unwatched(inbox, code, reason))
        return None
