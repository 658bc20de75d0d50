"""``manage.py gateway tail``: follow an inbox or a topic as it grows."""

from __future__ import annotations

import asyncio
import signal
import threading
from argparse import ArgumentParser
from contextlib import aclosing, closing
from functools import partial

from django.core.management.base import CommandError
from rich.text import Text

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.follow import follow
from wsgateway.broker.messages import Stored
from wsgateway.management.arguments import add_address, count, page, stored_address_of
from wsgateway.management.base import Action, Options
from wsgateway.management.exits import Exit
from wsgateway.management.messages import content, message_fields
from wsgateway.management.output import Output, clock, safe
from wsgateway.protocol.subjects import Address, Topic
from wsgateway.supervision import share

__all__ = ["Tail"]


class Tail(Action):
    """Show messages as they are stored."""

    name = "tail"
    help = "follow an inbox or topic until Ctrl-C or SIGTERM; takes nothing from anyone else"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define whose inbox, and from where to where."""
        add_address(parser)
        begin = parser.add_mutually_exclusive_group()
        begin.add_argument(
            "--last",
            type=page,
            default=10,
            metavar="N",
            help="begin with the newest N messages, up to 1000; default: 10",
        )
        begin.add_argument(
            "--after", type=count, metavar="OFFSET", help="start after this offset; 0: the oldest"
        )
        parser.add_argument(
            "--count", type=count, metavar="N", help="stop after N messages; default: never"
        )

    def run(self, out: Output, options: Options) -> None:
        """Follow until a signal."""
        asyncio.run(_until_signal(out, options))


async def _until_signal(out: Output, options: Options) -> None:
    connection = runtime.own()
    following = share(_follow(connection, out, options), "wsgateway-tail")
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if is_main else ():
        loop.add_signal_handler(number, following.cancel)
    try:
        await asyncio.wait({following})
        if not following.cancelled():
            following.result()
    finally:
        following.cancel()
        await connection.close()


async def _follow(connection: Connection, out: Output, options: Options) -> None:
    broker, left = connection.broker, options["count"]
    await connection.open()
    await broker.wait_ready()
    address = await stored_address_of(broker, options["service"], options["user"])
    after = await _begin(broker, address, options)
    if left == 0:
        return
    lost, back = "the connection to the broker is lost; waiting for it", "the broker is ready again"
    with (
        closing(broker.on_lost(partial(out.note, lost))),
        closing(broker.on_ready(partial(out.note, back))),
    ):
        await _print(broker, address, after, out, left)


async def _print(
    broker: Broker, address: Address, after: int, out: Output, left: int | None
) -> None:
    on_replaced = partial(out.note, "the stream was recreated; its offsets begin again")
    async with aclosing(follow(broker, address, after, on_replaced)) as messages:
        async for stored in messages:
            _show(out, stored)
            if left is not None:
                left -= 1
                if not left:
                    return


async def _begin(broker: Broker, address: Address, options: Options) -> int:
    """Return the offset behind which to begin."""
    log = broker.log(address)
    after: int | None = options["after"]
    if after is None and options["last"]:
        batch = await log.read_last(address, options["last"])
        return batch.messages[0].offset - 1 if batch.messages else 0
    if after is None:
        return (await log.last_offsets([address])).get(address, 0)
    last = (await log.position()).last
    if after > last:
        kind = f"topics of {address.service!r}" if isinstance(address, Topic) else "inboxes"
        raise CommandError(
            f"offset {after} is not stored yet; the newest of all {kind} is {last}",
            returncode=Exit.UNKNOWN,
        )
    return after


def _show(out: Output, stored: Stored) -> None:
    out.record(message_fields(stored))
    head = f"{stored.offset}  {clock(stored.time)}  "
    if out.is_terminal:
        out.line(Text.assemble((head, "dim"), safe(content(stored))))
    else:
        out.line(head + safe(content(stored)))
