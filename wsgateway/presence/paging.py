"""Pages of names that several gateways hold: each sends its first ones, to be merged. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from wsgateway.protocol.subjects import Inbox

__all__ = ["MAX_PAGE", "first_of", "merge", "size_of_name"]

MAX_PAGE = 1000
"""Names in a page, at most."""

K = TypeVar("K", str, Inbox)


def size_of_name(name: str) -> int:
    """Return the bytes of JSON that a name and its number take, at most."""
    return 6 * len(name) + 16  # a control character takes six


def first_of(
    held: Mapping[K, int], limit: int, room: int, size_of: Callable[[K], int]
) -> tuple[dict[K, int], bool]:
    """Return the first *limit* of what a gateway holds, and whether that leaves some out.

    Args:
        held: Sockets by name.
        limit: Names, at most.
        room: Bytes, at most.
        size_of: The bytes that a name takes.
    """
    page: dict[K, int] = {}
    for name in heapq.nsmallest(limit, held):
        room -= size_of(name)
        if room < 0:
            break
        page[name] = held[name]
    return page, len(page) < len(held)


def merge(
    parts: Iterable[tuple[Mapping[K, int], bool]], limit: int
) -> tuple[dict[K, int], K | None]:
    """Return a page of names with their sockets, and what the next one begins after.

    Args:
        parts: What each gateway sent, see `first_of`.
        limit: Names, at most.
    """
    held: Counter[K] = Counter()
    known_to: list[K] = []  # a gateway that has more to tell says nothing about later names
    for found, more in parts:
        held.update(found)
        if more and found:
            known_to.append(max(found))
    names = sorted(held)
    if known_to:
        end = min(known_to)
        names = [name for name in names if name <= end]
    page = names[:limit]
    is_last = not known_to and len(names) <= limit
    return {name: held[name] for name in page}, None if is_last or not page else page[-1]
