"""``manage.py gateway inbox``: what an inbox or a topic holds."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import NamedTuple

from django.core.management.base import CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.log import Log
from wsgateway.broker.messages import Batch, Stored
from wsgateway.broker.operations import Device, InboxState
from wsgateway.management.arguments import add_address, count, described, page, stored_address_of
from wsgateway.management.base import Action, Options
from wsgateway.management.exits import Exit
from wsgateway.management.messages import content, kind_of, message_fields
from wsgateway.management.output import Column, Output, clock, safe, size
from wsgateway.protocol.subjects import Address, Topic
from wsgateway.readable import duration, some

__all__ = ["ShowInbox"]

PREVIEW = 200
"""Characters of a message in the table."""


class _Found(NamedTuple):
    """What there is."""

    address: Address
    state: InboxState
    devices: list[Device]
    batch: Batch


class ShowInbox(Action):
    """Look into an inbox."""

    name = "inbox"
    help = "show what an inbox or a topic holds, the newest last, and how far devices have read"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define whose, and which part."""
        add_address(parser)
        parser.add_argument(
            "--last",
            type=page,
            default=20,
            metavar="N",
            help="show the newest N messages, up to 1000; default: 20",
        )
        parser.add_argument(
            "--before", type=count, metavar="OFFSET", help="those before this offset"
        )
        parser.add_argument(
            "--offset", type=count, metavar="OFFSET", help="one message, with its whole content"
        )

    def run(self, out: Output, options: Options) -> None:
        """Print it."""
        named = options["service"], options["user"]
        if options["offset"] is not None:
            stored = runtime.call_sync(lambda broker: _find(broker, *named, options["offset"]))
            out.document(message_fields(stored))
            _show_one(out, stored)
            return
        last, before = options["last"], options["before"]
        found = runtime.call_sync(lambda broker: _look(broker, *named, last, before))
        out.document({**_fields(found), "stored": list(map(message_fields, found.batch.messages))})
        _show(out, found)


def _fields(found: _Found) -> dict[str, object]:
    """Return what JSON says of an inbox or a topic."""
    address, state = found.address, found.state
    if isinstance(address, Topic):
        numbers = {"messages": state.messages, "first": state.first, "last": state.last}
        return {"service": address.service, "topic": address.name, **numbers}
    devices = [asdict(device) for device in found.devices]
    names = {"service": address.service, "user": address.user}
    return {**names, **asdict(state), "devices": devices}


async def _find(broker: Broker, service: str, name: str, offset: int) -> Stored:
    address = await stored_address_of(broker, service, name)
    log = broker.log(address)
    batch = await log.read_after(address, offset - 1, limit=1) if offset else Batch([], False)
    for stored in batch.messages:
        if stored.offset == offset:
            return stored
    text = f"{described(address)} has no message at offset {offset}"
    raise CommandError(text, returncode=Exit.UNKNOWN)


async def _look(broker: Broker, service: str, name: str, last: int, before: int | None) -> _Found:
    address = await stored_address_of(broker, service, name)
    batch, devices = Batch([], False), list[Device]()
    if isinstance(address, Topic):
        state = await _state(broker.log(address), address)
    else:
        state = (await broker.operations.counts([address]))[address]
        devices = await broker.operations.devices(address)
    if last:
        batch = await broker.log(address).read_last(address, last, before=before)
    return _Found(address, state, devices, batch)


async def _state(log: Log, topic: Topic) -> InboxState:
    first = (await log.read_after(topic, 0, limit=1)).messages
    if not first:
        return InboxState()
    newest = (await log.last_offsets([topic])).get(topic, first[0].offset)
    return InboxState(await log.count(topic), first[0].offset, newest)


def _show_one(out: Output, stored: Stored) -> None:
    for name, value in (
        ("offset", str(stored.offset)),
        ("time", clock(stored.time)),
        ("kind", kind_of(stored)),
        ("size", size(len(stored.payload))),
        ("reply to", stored.reply_to),
        ("error", stored.error),
    ):
        if value is not None:
            out.line(f"{name:9} {safe(value)}")
    out.line()
    out.line(safe(content(stored, whole=True), lines=True))


def _show(out: Output, found: _Found) -> None:
    address, state = found.address, found.state
    offsets = f", offsets {state.first} to {state.last}" if state.messages else ""
    messages = f"{some(state.messages, 'message')}{offsets}"
    if isinstance(address, Topic):
        out.line(f"{safe(str(address))}: {messages}")
    else:
        out.line(
            f"{safe(address.user)} in {safe(address.service)}: {messages}; {state.waiting} waiting"
        )
        out.line()
        _show_devices(out, found.devices)
    out.line()
    columns = [
        Column("Offset", right=True),
        Column("Stored"),
        Column("Kind", extra=True),
        Column("Size", right=True, extra=True),
        Column("Message", cut=True),
    ]
    out.table("Messages", columns, _rows(found.batch), empty="No messages.")
    if found.batch.more:
        first = found.batch.messages[0].offset
        out.note(f"there are older ones: --before {first}")


def _show_devices(out: Output, found: list[Device]) -> None:
    now = datetime.now(UTC)
    columns = [
        Column("Device", whole=False),
        Column("Offset", right=True),
        Column("Waiting", right=True),
        Column("Last moved", right=True),
    ]
    devices = (
        (
            each.device,
            str(each.offset),
            each.waiting,
            f"{duration((now - each.saved).total_seconds())} ago",
        )
        for each in found
    )
    out.table("Devices", columns, devices, empty="No device has a cursor.")


def _rows(batch: Batch) -> Iterator[tuple[str, ...]]:
    for stored in batch.messages:
        text = content(stored)
        text = text if len(text) <= PREVIEW else f"{text[:PREVIEW]}…"
        size_of = size(len(stored.payload))
        yield str(stored.offset), clock(stored.time), kind_of(stored), size_of, text
