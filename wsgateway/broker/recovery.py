"""Where delivery begins, and whether that is proved to be complete.

Something is *missing* when a limit of the stream removed it before the client had it: too many
messages in the inbox, too old, too many bytes in the stream. What passed its own time to live, or
was deleted by an operator, is not missing.
"""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.broker.base import Broker
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Reason, Resume

__all__ = ["Start", "find_start", "nothing_trimmed"]


class Start(NamedTuple):
    """Where delivery begins.

    Attributes:
        epoch: Life of the stream that the offset belongs to.
        offset: The first message has a larger offset.
        reason: Why messages may be missing before it; None: nothing is.
    """

    epoch: str
    offset: int
    reason: Reason | None = None


async def find_start(broker: Broker, inbox: Inbox, claim: Resume, cursor: int) -> Start:
    """Return where to go on; a recovery is claimed only if it is proved.

    Args:
        broker: Where the inbox is.
        inbox: Whose.
        claim: The client's own position, if it has one.
        cursor: The device's cursor, which the stream reaches; 0 if it has none.

    Raises:
        BrokerUnavailable: Not known now.
    """
    position = await broker.position()
    epoch, offset = position.epoch, claim.offset
    if offset is None:
        if not cursor:
            # Asked in this order, an empty inbox holds nothing up to the stream's end: to begin
            # there proves more later.
            empty = await broker.count(inbox) == 0
            return Start(epoch, position.last if empty else 0, Reason.NEW)
        offset = cursor
    elif claim.stream_epoch != epoch:
        return Start(epoch, 0, Reason.EPOCH)
    elif offset > position.last:
        return Start(epoch, 0, Reason.AHEAD)
    batch = await broker.read_after(inbox, offset, limit=1, anchor=True)
    if batch.anchored or await nothing_trimmed(broker, inbox, offset):
        return Start(epoch, offset)
    return Start(epoch, offset, Reason.TRIMMED)


async def nothing_trimmed(broker: Broker, inbox: Inbox, offset: int) -> bool:
    """Say whether it is proved that no limit has removed a message of *inbox* after *offset*.

    For when the message at *offset* itself is gone, which would be proof enough. Two things are
    to be shown: that no limit of the whole stream, its age limit included, has come beyond
    *offset*; and that the inbox's own limit has not.

    Raises:
        BrokerUnavailable: Not known now.
    """
    position = await broker.position()
    if position.last < offset:
        return False
    whole = position.first <= offset + 1
    oldest = (await broker.read_after(inbox, 0, limit=1)).messages
    if oldest and oldest[0].offset <= offset:
        # The inbox's limit removes the oldest first, so it has not come that far.
        before = oldest[0].offset
        return whole or (await broker.read_after(inbox, before, limit=1, anchor=True)).anchored
    if not whole:
        return False
    if not position.max_messages or position.last - offset <= position.max_messages:
        return True  # too few messages came since, whosever they are
    count = await broker.count(inbox)
    position = await broker.position()
    return position.first <= offset + 1 and count + position.gaps <= position.max_messages
