"""The ids of server-sent events: where a reader stands in all that it reads. Pure.

``<epoch>~<mark>.<offset>`` of each inbox or topic. The epoch is the stream's, and the mark says
what is read: all inboxes share one stream and all topics of a service another, so a position of
another one would look plausible. What shares a stream names its epoch once. Opaque to clients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2s
from typing import NamedTuple

from wsgateway.protocol.subjects import Address, Topic, encode_token
from wsgateway.protocol.v1 import MAX_OFFSET, mark_of

__all__ = ["MAX_ID", "At", "Positions", "mark", "parse_id"]

MAX_ID = 4096
"""Characters of an id; web servers take headers of 8,000 bytes and more."""
MARK_SIZE = 6
"""Bytes of a topic's mark, as many as of an inbox's."""

_GROUP = re.compile(r"([0-9A-Za-z_-]{1,64})((?:~[0-9a-f]{12}\.[0-9]{1,16})+)\Z")


class At(NamedTuple):
    """A position.

    Attributes:
        epoch: The stream's.
        offset: Of the last message that the reader has, or where it began.
    """

    epoch: str
    offset: int


class Positions:
    """Where one reader is."""

    __slots__ = ("_at", "_marks")

    def __init__(self) -> None:
        self._at: dict[Address, At] = {}
        self._marks: dict[Address, str] = {}

    def move(self, address: Address, offset: int) -> None:
        """Note that the reader has everything up to *offset*; its epoch stays the same."""
        self._at[address] = At(self._at[address].epoch, offset)

    def begin(self, address: Address, at: At) -> None:
        """Note where reading *address* begins, or begins again."""
        self._marks[address] = mark(address)
        self._at[address] = at

    def get(self, address: Address) -> At | None:
        """Return where the reader is; None if it does not read *address*."""
        return self._at.get(address)

    @property
    def id(self) -> str:
        """All of them; empty if there is none."""
        if len(self._at) == 1:  # the common case
            ((address, (epoch, offset)),) = self._at.items()
            return f"{epoch}~{self._marks[address]}.{offset}"
        groups: dict[str, list[str]] = {}
        for address, (epoch, offset) in self._at.items():
            groups.setdefault(epoch, [epoch]).append(f"{self._marks[address]}.{offset}")
        return ",".join(map("~".join, groups.values()))


def parse_id(text: str) -> Mapping[str, At]:
    """Return the positions that an id holds, by `mark`.

    Raises:
        ValueError: It is not an id.
    """
    found: dict[str, At] = {}
    if len(text) > MAX_ID:
        raise ValueError(f"longer than {MAX_ID} characters")
    for group in text.split(","):
        match = _GROUP.match(group)
        if match is None:
            raise ValueError("not an id that a gateway gave out")
        epoch, positions = match.groups()
        for each in positions[1:].split("~"):
            name, _, offset = each.partition(".")
            if int(offset) > MAX_OFFSET or name in found:
                raise ValueError("not an id that a gateway gave out")
            found[name] = At(epoch, int(offset))
    return found


def mark(address: Address) -> str:
    """Return what stands for *address* in ids. It prevents mistakes; no right depends on it."""
    if not isinstance(address, Topic):
        return mark_of(address)
    name = f".{encode_token(address.service)}.{encode_token(address.name)}"  # no inbox's
    return blake2s(name.encode(), digest_size=MARK_SIZE).hexdigest()
