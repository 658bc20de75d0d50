"""Follows an inbox or a topic as it grows, for those who only look.

No cursor, no socket, nothing taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from wsgateway.broker.base import Broker
from wsgateway.broker.log import Log
from wsgateway.broker.messages import Stored
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import Address

__all__ = ["follow"]

BATCH = 100
LOOK_EACH = 5.0
"""Seconds between two looks when nothing is announced: an announcement may be lost."""
RETRY_EACH = 1.0
"""Seconds between two attempts while the broker is away, unless it is back sooner."""
LAG = 1.0
"""Seconds that a replica is given to show what its leader has announced."""
LAG_PAUSE = 0.05


async def follow(
    broker: Broker, address: Address, after: int, on_replaced: Callable[[], object]
) -> AsyncGenerator[Stored, None]:
    """Yield the messages of *address*, in order and without holes, for as long as you ask.

    While the broker is away it waits. Messages that are removed before they are read are left out.

    Args:
        broker: Ready.
        address: Whose messages.
        after: Offset behind which to begin.
        on_replaced: Called when the stream was recreated; its messages then come from the first.

    Raises:
        BrokerMisconfigured: For example, the NATS user may not read them.
    """
    log = broker.log(address)
    announced, epoch = _Announced(after), log.epoch
    hooks = [log.watch(address, announced.note), broker.on_ready(announced.event.set)]
    try:
        await broker.in_effect()
        while True:
            announced.event.clear()
            try:
                if announced.doubtful or not epoch:
                    await log.position()
                    announced.doubtful = False
                epoch = epoch or log.epoch
                if log.epoch != epoch:
                    epoch, after = log.epoch, 0
                    on_replaced()
                async for stored in _read(log, address, after, announced):
                    after = stored.offset
                    announced.newest = max(announced.newest, after)
                    yield stored
                await announced.wait(LOOK_EACH)
            except BrokerUnavailable:
                await announced.wait(RETRY_EACH)
    finally:
        for hook in hooks:
            hook.close()


class _Announced:
    """What was announced of an address.

    Args:
        offset: Behind which announcements begin.
    """

    def __init__(self, offset: int) -> None:
        self.newest = offset
        """The offset of the newest message, as far as announced or read."""
        self.event = asyncio.Event()
        """Set by each announcement, and when the broker is ready again."""
        self.doubtful = False
        """Whether the stream may have been recreated, so that the broker must ask."""

    def note(self, stored: Stored) -> None:
        """Take an announcement."""
        self.doubtful |= stored.offset <= self.newest  # offsets rise as long as a stream lives
        self.newest = stored.offset
        self.event.set()

    async def wait(self, timeout: float) -> None:
        """Wait for the next announcement; after *timeout* seconds, look without one."""
        try:
            async with asyncio.timeout(timeout):
                await self.event.wait()
        except TimeoutError:
            self.doubtful = True


async def _read(
    log: Log, address: Address, after: int, announced: _Announced
) -> AsyncGenerator[Stored, None]:
    """Yield what is stored, until what was announced has come or cannot be there any more."""
    loop = asyncio.get_running_loop()
    until = loop.time() + LAG
    while True:
        batch = await log.read_after(address, after, limit=BATCH)
        for stored in batch.messages:
            after, until = stored.offset, loop.time() + LAG
            yield stored
        if not batch.more:
            if after >= announced.newest or loop.time() > until:
                return
            await asyncio.sleep(LAG_PAUSE)
