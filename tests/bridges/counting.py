"""How tests count what a service gets: what may come again, and how, is what the docs say."""

from __future__ import annotations

from collections.abc import Iterable

from tests.bridges.sides import Enough, Seen
from wsgateway.bridges.headers import ID_HEADER

__all__ = ["Came", "all_of", "came", "in_order"]

Came = tuple[str, int, str]
"""A message that came: whose it is, its number among that user's, and its ``Ws-Id``."""


def came(seen: Iterable[Seen]) -> list[Came]:
    """Return records whose payloads are numbers."""
    return [(each.key, int(each.payload), each.headers[ID_HEADER]) for each in seen]


def all_of(count: int) -> Enough:
    """Return what says whether *count* messages have come, however often; for `Side.sent_until`."""
    ids: set[str] = set()

    def enough(seen: list[Seen]) -> bool:
        ids.update(each.headers[ID_HEADER] for each in seen[-1:])
        return len(ids) == count

    return enough


def in_order(messages: Iterable[Came], *, repeats: int) -> dict[str, list[int]]:
    """Return the numbers of each user's messages, each once, in the order in which they came.

    A message may come again only before its user's next one, and with its ``Ws-Id``.

    Args:
        messages: All that came.
        repeats: How many may have come again, at most: those that nobody had confirmed when the
            bridge or its connection was lost.
    """
    found: dict[str, list[int]] = {}
    ids: dict[tuple[str, int], str] = {}
    again = []
    for user, number, id in messages:
        numbers = found.setdefault(user, [])
        if numbers[-1:] == [number]:
            again.append((user, number))
            assert id == ids[user, number], f"{user}: {number} came again with another id"
            continue
        assert (user, number) not in ids, f"{user}: {number} came again after {numbers[-1]}"
        numbers.append(number)
        ids[user, number] = id
    assert len({*ids.values()}) == len(ids), "messages share an id"
    assert len(again) <= repeats, f"more than {repeats} came again: {again}"
    return found
