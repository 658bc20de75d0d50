"""Where delivery begins, whether that is proved to be complete, and who has to begin again.

Something is *missing* when a limit of the stream removed it before the client had it: too many
messages in the inbox, too old, too many bytes in the stream. What passed its own time to live, or
was deleted by an operator, is not missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Position
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Reason, Resume
from wsgateway.protocol.window import Window

__all__ = ["LIFE", "Reached", "Start", "find_lost", "find_start", "nothing_trimmed"]

DOUBTS = 32
"""Readers whose newest message is gone, after which no further one is asked whether it changed."""

LIFE = "~"
"""Joins an epoch and the number of times that an open socket began again; in no epoch itself."""


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
    elif (claim.epoch or "").partition(LIFE)[0] != epoch:
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


class _Owner(Protocol):
    @property
    def inbox(self) -> Inbox: ...
    @property
    def window(self) -> Window: ...


T = TypeVar("T", bound=_Owner)


class Reached(NamedTuple, Generic[T]):
    """How far a window has come.

    Attributes:
        offset: Of its newest message, or where it began.
        time: When that message was stored; empty where it began.
        owner: Whose window it is.
    """

    offset: int
    time: str
    owner: T

    @classmethod
    def of(cls, owner: T) -> Self:
        """Return where the window of *owner* is, or was when the stream's end came in doubt."""
        window = owner.window
        offset, time = window.suspect or window.reached
        return cls(offset, time, owner)


async def find_lost(
    broker: Broker, reached: Iterable[Reached[T]], position: Position, thorough: bool
) -> list[Reached[T]]:
    """Return those whose newest message is not, or may not be, the stream's any more.

    A server that loses power loses what it had not synced, and gives those offsets out again.

    Args:
        broker: Where the inboxes are.
        reached: Where each window was before *position* was asked for.
        position: Where the stream stands.
        thorough: The stream may be as long again as it was: compare messages. The furthest one
            that is the same proves that nothing before it changed.
    """
    doubtful: list[Reached[T]] = []
    certain = False
    for each in sorted(reached, key=lambda each: each.offset, reverse=True):
        offset, time, owner = each
        if offset > position.last:
            certain = True
        elif not offset or not (thorough or certain):
            break
        elif time:
            batch = await broker.read_after(owner.inbox, offset - 1, limit=1)
            found = next((m.time for m in batch.messages if m.offset == offset), "")
            if found == time:
                break
            certain = certain or bool(found)
        doubtful.append(each)
        if not certain and len(doubtful) >= DOUBTS:
            break
    return doubtful if certain else []
