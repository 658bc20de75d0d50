"""The one task that writes a session's messages, whatever they are of."""

from __future__ import annotations

import asyncio
from typing import Protocol

from wsgateway.conf import settings
from wsgateway.gateway.sockets import Socket, SocketClosed

__all__ = ["Source", "Writer"]


class Source(Protocol):
    """Something of which there is something to write."""

    async def write(self) -> None:
        """Write what there is.

        Raises:
            SocketClosed: Nothing can be written any more.
            BrokerClosed: Nothing will come any more.
        """


class Writer:
    """Writes what its sources have, one after the other. A socket may have many, most of them idle.

    Args:
        socket: Where to.
    """

    __slots__ = ("_due", "_progress", "_socket", "_wake", "frames")

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._due: list[Source | str] = []
        self._wake: asyncio.Future[None] | None = None  # set while `run` sleeps
        self.frames = 0
        """How many of what is to be written are frames: no window bounds them."""
        self._progress: asyncio.Future[None] | None = None  # set while somebody waits for them

    def add(self, due: Source | str) -> None:
        """Write what *due* has, or the frame that it is, after what is being written."""
        self._due.append(due)
        if isinstance(due, str):
            self.frames += 1
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def frames_written(self, limit: int) -> bool:
        """Wait until fewer than *limit* frames are to be written, or nothing can be any more.

        Returns:
            False if none was written for as long as the client may take to answer a ping.
        """
        loop = asyncio.get_running_loop()
        while self.frames >= limit:
            before, self._progress = self.frames, loop.create_future()
            await asyncio.wait({self._progress}, timeout=settings.PING_TIMEOUT)
            if self.frames >= before:
                return False
        return True

    def _note_written(self, frames: int) -> None:
        self.frames -= frames
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    async def run(self) -> None:
        """Write until the socket is closed.

        Raises:
            BrokerClosed: See `Source`.
        """
        loop, due = asyncio.get_running_loop(), self._due
        try:
            while True:
                while due:
                    each = due.pop(0)
                    if isinstance(each, str):
                        await self._socket.write(each)
                        self._socket.traffic.others_out += 1
                        self._note_written(1)
                    else:
                        await each.write()
                self._wake = loop.create_future()
                await self._wake
        except SocketClosed:
            due.clear()
            self._note_written(self.frames)
