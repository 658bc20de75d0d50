"""``manage.py gateway inbox``: what is stored for a user, and how far their devices are."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import NamedTuple

from django.core.management.base import CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Batch, Stored
from wsgateway.broker.operations import Device, InboxState
from wsgateway.management.arguments import add_inbox, count, inbox_of, page, require_service
from wsgateway.management.base import Action, Options
from wsgateway.management.exits import Exit
from wsgateway.management.messages import content, kind_of, message_fields
from wsgateway.management.output import Column, Output, clock, safe, size
from wsgateway.protocol.subjects import Inbox
from wsgateway.readable import duration, some

__all__ = ["ShowInbox"]

PREVIEW = 200
"""Characters of a message in the table."""


class _Found(NamedTuple):
    """What there is."""

    state: InboxState
    devices: list[Device]
    batch: Batch


class ShowInbox(Action):
    """Look into an inbox."""

    name = "inbox"
    help = "show what is stored for a user, the newest last, and how far each device has read"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define whose, and which part."""
        add_inbox(parser)
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
        inbox = inbox_of(options)
        if options["offset"] is not None:
            stored = runtime.call_sync(lambda broker: _find(broker, inbox, options["offset"]))
            out.document(message_fields(stored))
            _show_one(out, stored)
            return
        last, before = options["last"], options["before"]
        found = runtime.call_sync(lambda broker: _look(broker, inbox, last, before))
        out.document(
            {
                "service": inbox.service,
                "user": inbox.user,
                **asdict(found.state),
                "devices": [asdict(device) for device in found.devices],
                "stored": [message_fields(stored) for stored in found.batch.messages],
            }
        )
        _show(out, inbox, found)


async def _find(broker: Broker, inbox: Inbox, offset: int) -> Stored:
    await require_service(broker, inbox.service)
    batch = (
        await broker.inboxes.read_after(inbox, offset - 1, limit=1) if offset else Batch([], False)
    )
    for stored in batch.messages:
        if stored.offset == offset:
            return stored
    raise CommandError(
        f"the inbox of {inbox.user!r} in {inbox.service!r} has no message at offset {offset}",
        returncode=Exit.UNKNOWN,
    )


async def _look(broker: Broker, inbox: Inbox, last: int, before: int | None) -> _Found:
    await require_service(broker, inbox.service)
    states = await broker.operations.counts([inbox])
    devices = await broker.operations.devices(inbox)
    batch = Batch([], False)
    if last:
        batch = await broker.inboxes.read_last(inbox, last, before=before)
    return _Found(states[inbox], devices, batch)


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


def _show(out: Output, inbox: Inbox, found: _Found) -> None:
    state, now = found.state, datetime.now(UTC)
    offsets = f", offsets {state.first} to {state.last}" if state.messages else ""
    out.line(
        f"{safe(inbox.user)} in {safe(inbox.service)}: "
        f"{some(state.messages, 'message')}{offsets}; {state.waiting} waiting"
    )
    out.line()
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
        for each in found.devices
    )
    out.table("Devices", columns, devices, empty="No device has a cursor.")
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


def _rows(batch: Batch) -> Iterator[tuple[str, ...]]:
    for stored in batch.messages:
        text = content(stored)
        text = text if len(text) <= PREVIEW else f"{text[:PREVIEW]}…"
        size_of = size(len(stored.payload))
        yield str(stored.offset), clock(stored.time), kind_of(stored), size_of, text
