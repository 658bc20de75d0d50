"""Where delivery begins, and whether that is proved to be complete.

Something is *missing* when a limit of the stream removed it before the client had it: too many
messages at its address, too old, too many bytes in the stream. What passed its own time to live, or
was deleted by an operator, is not missing.
"""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.broker.log import Log
from wsgateway.broker.messages import Batch
from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.subjects import Address
from wsgateway.protocol.v1 import Reason, Resume

__all__ = ["Start", "find_since", "find_start", "nothing_trimmed"]

MOST = 1000
"""Messages that are read at once, at most."""


class Start(NamedTuple):
    """Where delivery begins.

    Attributes:
        epoch: Life of the stream that the offset belongs to.
        offset: The first message has a larger offset.
        reason: Why messages may be missing before it; None: nothing is.
        batch: The first messages, which no limit has removed any of unless *reason* says so; None:
            not read.
    """

    epoch: str
    offset: int
    reason: Reason | None = None
    batch: Batch | None = None


async def find_start(
    log: Log, address: Address, claim: Resume, cursor: int, limit: int = 1
) -> Start:
    """Return where to go on; a recovery is claimed only if it is proved.

    Args:
        log: What holds *address*.
        address: Whose messages.
        claim: The client's own position, if it has one.
        cursor: The device's cursor, which the stream reaches; 0 if it has none.
        limit: Messages to read behind a position that is to be proved, at most.

    Raises:
        BrokerUnavailable: Not known now.
    """
    position = await log.position()
    epoch, offset = position.epoch, claim.offset
    if offset is None:
        if not cursor:
            # Asked in this order, an empty address holds nothing up to the stream's end: to begin
            # there proves more later.
            empty = await log.count(address) == 0
            return Start(epoch, position.last if empty else 0, Reason.NEW)
        offset = cursor
    elif claim.stream_epoch != epoch:
        return Start(epoch, 0, Reason.EPOCH)
    elif offset > position.last:
        return Start(epoch, 0, Reason.AHEAD)
    batch = await log.read_after(address, offset, limit=limit, anchor=True)
    if batch.anchored or await nothing_trimmed(log, address, offset):
        return Start(epoch, offset, None, batch)
    return Start(epoch, offset, Reason.TRIMMED, batch)


async def find_since(log: Log, address: Address, since: Since, limit: int = 1) -> Start:
    """Return where to begin a reader that has no position.

    Args:
        log: What holds *address*.
        address: Whose messages.
        since: What it wants of those that are stored already.
        limit: As in `find_start`.

    Raises:
        BrokerUnavailable: Not known now.
    """
    if since == "all":
        return await find_start(log, address, Resume(), 0, limit)
    position = await log.position()
    offset, wanted = position.last, 0 if since == "new" else int(since)
    before: int | None = None
    first: Batch | None = None
    while wanted > 0:
        page = await log.read_last(address, min(wanted, MOST), before=before)
        if not page.messages:
            break
        wanted -= len(page.messages)
        first = Batch(page.messages, more=before is not None)  # then there are newer pages
        before = page.messages[0].offset
        if not page.more:
            break
    if before is not None and before <= offset + 1:
        return Start(position.epoch, before - 1, Reason.NEW, first)
    return Start(position.epoch, offset, Reason.NEW)  # all of them were stored since


async def nothing_trimmed(log: Log, address: Address, offset: int) -> bool:
    """Say whether it is proved that no limit has removed a message of *address* after *offset*.

    For when the message at *offset* itself is gone, which would be proof enough. Two things are
    to be shown: that no limit of the whole stream, its age limit included, has come beyond
    *offset*; and that the address' own limit has not.

    Raises:
        BrokerUnavailable: Not known now.
    """
    position = await log.position()
    if position.last < offset:
        return False
    whole = position.first <= offset + 1
    oldest = (await log.read_after(address, 0, limit=1)).messages
    if oldest and oldest[0].offset <= offset:
        # Its own limit removes the oldest first, so it has not come that far.
        before = oldest[0].offset
        return whole or (await log.read_after(address, before, limit=1, anchor=True)).anchored
    if not whole:
        return False
    if not position.max_messages or position.last - offset <= position.max_messages:
        return True  # too few messages came since, whosever they are
    count = await log.count(address)
    position = await log.position()
    return position.first <= offset + 1 and count + position.gaps <= position.max_messages
