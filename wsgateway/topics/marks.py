"""Marks: what was revoked, and since when. Gateways follow them, and new ones read those kept.

A mark is a message in an inbox of our own. So gateways get marks in order and none twice, also
those from while they were not connected, and one that starts later reads what is still kept.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from wsgateway.broker.messages import MIN_TTL
from wsgateway.conf import settings
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.strict_json import loads
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox, Topic

__all__ = ["INBOX", "LEAST_KEPT", "LEEWAY", "Mark", "Marks", "keep_for", "longest_token"]

INBOX = Inbox(GROUP_SERVICE, "wsgateway: topic rights")
"""Where marks are. No group of an application can be stored there: Channels allows no space."""
LEAST_KEPT = 3600.0
"""Seconds that marks are kept at least: a gateway that lost its connection for so long asks about
every subscription when it is back."""
LEEWAY = 5.0
"""Seconds by which the clocks of two servers may differ."""

Key = tuple[str, str | None, str | None, str | None]


def keep_for() -> float:
    """Return the seconds for which a mark is kept: longer than any token is valid."""
    wanted = max(LEAST_KEPT, 2 * settings.TOPIC_TOKEN_MAX_AGE)
    return max(MIN_TTL, min(wanted, settings.INBOX_MAX_AGE))


def longest_token() -> float:
    """Return the seconds for which a token is valid at most."""
    return min(settings.TOPIC_TOKEN_MAX_AGE, keep_for() / 2)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that was revoked.

    Attributes:
        service: The topics' service.
        name: The topic's name; None: every topic of the service.
        user: Whose right; None: everybody's.
        at: The service whose socket the user has; None: any.
        time: When, as a Unix time.
        ask: Whether who holds a right keeps it if Django still allows it.
    """

    service: str
    name: str | None
    user: str | None
    at: str | None
    time: float
    ask: bool

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.service, self.name, self.user, self.at

    def covers(self, topic: Topic, inbox: Inbox) -> bool:
        """Say whether it is about the right of *inbox*'s user to *topic*."""
        return self.key in _keys(topic, inbox)

    def encode(self) -> bytes:
        """Return it as a message's payload."""
        return json.dumps([*self.key, self.time, self.ask]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Mark:
        """Return the mark that a message is.

        Raises:
            MalformedMessage: It is not one.
        """
        try:
            service, *others, time, ask = loads(payload)
            name, user, at = others
        except (ValueError, TypeError, RecursionError) as exc:
            raise MalformedMessage("not a mark of topics' rights") from exc
        texts = all(isinstance(each, (str, type(None))) for each in others)
        if not (isinstance(service, str) and texts and isinstance(time, (int, float))):
            raise MalformedMessage("not a mark of topics' rights")
        return cls(service, name, user, at, float(time), ask is True)


def _keys(topic: Topic, inbox: Inbox) -> list[Key]:
    """Return the keys of all marks that are about *inbox*'s right to *topic*."""
    whose = ((None, None), (inbox.user, None), (inbox.user, inbox.service))
    return [(topic.service, name, *who) for name in (topic.name, None) for who in whose]


class _Entry(NamedTuple):
    time: float  # of the newest mark of the same key
    number: int  # how many marks had come by then


class Marks:
    """The marks that still matter."""

    def __init__(self) -> None:
        self._known: OrderedDict[Mark, None] = OrderedDict()  # in the order in which they came
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # the same by key
        self._number = 0
        self._floor = _Entry(0.0, 0)  # no token from before it counts

    def add(self, mark: Mark) -> bool:
        """Take a mark, and forget those that are no longer needed; say whether it is new."""
        if mark in self._known:
            return False
        self._known[mark] = None
        self._number += 1
        before = self._entries.get(mark.key, self._floor).time  # by a clock that may be ahead
        self._entries[mark.key] = _Entry(max(mark.time, before), self._number)
        self._entries.move_to_end(mark.key)
        oldest = mark.time - keep_for()
        while next(iter(self._known)).time < oldest:
            self._known.popitem(last=False)
        while next(iter(self._entries.values())).time < oldest:
            self._entries.popitem(last=False)
        return True

    def distrust(self, time: float) -> None:
        """Let no token count that was made before *time*: marks may be missing."""
        self._number += 1
        self._floor = _Entry(max(self._floor.time, time), self._number)

    def number(self, topic: Topic, inbox: Inbox) -> int:
        """Return what changes when another mark about *inbox*'s right to *topic* comes."""
        return max(entry.number for entry in self._about(topic, inbox))

    def allow(self, issued: float, topic: Topic, inbox: Inbox) -> bool:
        """Say whether a token that was issued then still counts."""
        return issued > max(entry.time for entry in self._about(topic, inbox)) + LEEWAY

    def _about(self, topic: Topic, inbox: Inbox) -> list[_Entry]:
        entries = map(self._entries.get, _keys(topic, inbox))
        return [self._floor, *(entry for entry in entries if entry is not None)]
