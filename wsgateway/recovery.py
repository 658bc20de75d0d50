"""Where delivery to a ``wsgateway.v1`` socket begins, and whether that can be proved complete."""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.broker.base import Broker
from wsgateway.protocol import Reason, Resume
from wsgateway.subjects import Inbox

__all__ = ["Start", "find_start"]


class Start(NamedTuple):
    """Where delivery begins.

    Attributes:
        offset: The first message has a larger offset.
        reason: Why messages may be missing before it; None: nothing is.
    """

    offset: int
    reason: Reason | None = None


async def find_start(
    broker: Broker, inbox: Inbox, claim: Resume, cursor: int, max_messages: int
) -> Start:
    """Return where to go on; a recovery is claimed only if it is proved.

    The proof is either the message at the position itself (the oldest goes first, so what came
    after it is there too), or a stream that still holds every offset after the position and an
    inbox that has not reached its limit.

    Args:
        broker: Where the inbox is.
        inbox: Whose.
        claim: The client's own position, if it has one.
        cursor: The device's cursor; 0 if it has none.
        max_messages: Messages that an inbox keeps.

    Raises:
        BrokerUnavailable: Not known now.
    """
    offset = claim.offset
    if offset is None:
        if not cursor:
            return await _new(broker, inbox)
        offset = cursor
    elif claim.epoch != broker.epoch and claim.epoch != (await broker.position()).epoch:
        return Start(0, Reason.EPOCH)
    if offset and await _holds(broker, inbox, offset):
        return Start(offset)
    position = await broker.position()
    if offset > position.last:
        return Start(0, Reason.AHEAD)
    if position.first <= offset + 1 and await broker.count(inbox) < max_messages:
        return Start(offset)
    return Start(offset, Reason.TRIMMED)


async def _new(broker: Broker, inbox: Inbox) -> Start:
    """Begin with everything; an empty inbox begins at the stream's end, which proves more later.

    Both answers come from the leader and in this order, so an inbox that is empty after the end
    was asked for holds nothing up to that end.
    """
    last = (await broker.position()).last
    empty = await broker.count(inbox) == 0
    return Start(last if empty else 0, Reason.NEW)


async def _holds(broker: Broker, inbox: Inbox, offset: int) -> bool:
    batch = await broker.read_after(inbox, offset - 1, limit=1)
    return bool(batch.messages) and batch.messages[0].offset == offset
