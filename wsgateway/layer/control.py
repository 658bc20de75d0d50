"""What processes with the same layer ask of each other: memberships of channels, and a flush."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from wsgateway.broker.bus import new_reply_subject
from wsgateway.exceptions import MalformedMessage, NobodyAnswers
from wsgateway.layer import wire

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection

__all__ = ["FLUSHED", "Change", "change_elsewhere", "flush", "flush_subject", "leave_everywhere"]

logger = logging.getLogger("wsgateway.layer")

FLUSH_QUIET = 0.1
"""Seconds without another answer after which every process has flushed."""
FLUSHED = b"flushed"
"""The answer of a process that has."""


class Change(NamedTuple):
    """Asks a channel's owner to change its membership.

    Attributes:
        action: ``add`` or ``discard``.
        group: A group's name.
        channel: The owner's channel.
    """

    action: str
    group: str
    channel: str

    def encode(self) -> bytes:
        """Return the envelope that asks for it."""
        return wire.pack(time.time(), b"", msgpack.packb(list(self)), wire.CONTROL)

    @classmethod
    def parse(cls, data: bytes) -> Change:
        """Return what an envelope asks for.

        Raises:
            MalformedMessage: Nothing.
        """
        try:
            action, group, channel = msgpack.unpackb(wire.body(data, 4096))
        except (ValueError, TypeError) as exc:
            raise MalformedMessage(f"a control message cannot be read: {exc}") from exc
        return cls(action, group, str(channel))


async def change_elsewhere(connection: Connection, subject: str, change: Change) -> None:
    """Ask the channel's owner, who listens on *subject*; if it is gone, so is the channel."""
    try:
        await connection.bus.request(subject, change.encode())
    except NobodyAnswers:
        logger.debug(
            "nobody owns channel %s any more",
            change.channel,
            extra={"channel": change.channel, "group": change.group},
        )


async def leave_everywhere(connection: Connection, group: str, channel: str) -> None:
    """End a normal channel's membership in every process."""
    subject = connection.subjects.leave(group, channel)
    with contextlib.suppress(NobodyAnswers):  # any more: each request tells one of them
        while True:
            await connection.bus.request(subject, b"")


def flush_subject(connection: Connection) -> str:
    """Return where layers are told to forget everything."""
    return f"{connection.subjects.prefix}.all.flush"


async def flush(connection: Connection) -> None:
    """Empty every normal channel, and have every process forget what it holds."""
    await connection.broker.channels.purge()
    heard = asyncio.Event()
    answered = True

    def on_answer(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
        nonlocal answered
        answered = answered or data == FLUSHED
        heard.set()

    bus, answers = connection.bus, new_reply_subject()
    subscription = bus.subscribe(answers, on_answer)
    try:
        bus.publish(flush_subject(connection), b"", reply=answers)
        while answered:
            answered = False
            heard.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_QUIET):
                    await heard.wait()
    finally:
        subscription.close()
