"""Everything that leans on a private detail of nats-py. ``tests/integration/test_quirks.py``
is the canary: it fails, and says what to do, when a new version changes one of them.

`DirectClient` replaces what is slow or unsafe in nats-py 2.16 for a gateway:

* Messages go from the parser straight to a plain function: no queue and task per subscription
  (which also reorders across subscriptions), no header dict, no silent drop at a pending limit.
* Publishing is a plain function, so there is nothing in it to cancel (nats-py swallows
  cancellation in ``_flush_pending``).
* A PONG for a ping nobody waits for any more is ignored; nats-py's read loop dies of it.
* A read loop that ends for any reason is noticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nats.aio.client import Client

__all__ = ["DirectClient", "Handler"]

logger = logging.getLogger("wsgateway.broker")

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply subject (b"" without), payload, raw headers (None without)."""


class DirectClient(Client):
    """A nats-py client that hands messages to plain functions.

    Args:
        handlers: Subscription id to its handler; shared with the owner, read per message.
    """

    def __init__(self, handlers: dict[int, Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self.subscribed: set[int] = set()
        """Ids that were sent to the server while the connection was restored."""

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            handler(subject, reply, data, headers)
        except Exception:  # the read loop must survive whatever a handler does
            logger.exception("a handler failed for a message on %s", subject.decode())

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    def write(self, command: bytes) -> None:
        """Queue *command* for the socket; returns at once."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def server_info(self) -> dict[str, object]:
        """What the server said in its INFO."""
        return dict(self._server_info)

    @property
    def buffered(self) -> int:
        """Bytes that wait for the socket in nats-py's own buffer."""
        return int(self._pending_data_size)

    async def ping(self, timeout: float) -> bool:
        """Return whether the server answered a PING within *timeout* seconds.

        The answer also proves that everything written before has been processed.
        """
        pong = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        await asyncio.wait({pong}, timeout=timeout)
        return pong.done()

    def on_read_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* once the read loop has ended, whatever the reason."""
        task = self._reading_task
        assert task is not None, "not connected"
        task.add_done_callback(lambda _: callback())

    def close_inherited(self) -> None:
        """Close the socket without a word to server, transport or loop, which are another's."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            shared = writer.transport.get_extra_info("socket")
            sock = getattr(shared, "_sock", shared)  # asyncio hides the real one
            if sock is not None:
                sock.close()

    def abandon(self) -> None:
        """Drop the connection at once, without waiting for anything.

        ``Client.close`` waits for the socket to drain, for ever if the server is stopped.
        """
        self._status = Client.CLOSED
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
