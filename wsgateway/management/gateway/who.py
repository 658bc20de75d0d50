"""``manage.py gateway who``: who is online, a user's connections, and who reads a topic."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

from django.core.management.base import CommandError

from wsgateway import presence, topics
from wsgateway.broker import runtime
from wsgateway.management.arguments import has_topics, require_complete
from wsgateway.management.base import Action, Options
from wsgateway.management.exits import Exit
from wsgateway.management.output import Cell, Column, Output, size
from wsgateway.presence import Connection
from wsgateway.protocol.subjects import Inbox
from wsgateway.readable import duration

__all__ = ["Who"]

PAGE = 1000
NAMES = (
    "Connection",
    "Device",
    "Gateway",
    "Address",
    "Connected for",
    "Protocol",
    "Sent",
    "Acknowledged",
    "Unacknowledged",
    "Bytes sent",
    "Bytes received",
    "User agent",
)


class Who(Action):
    """Who is online."""

    name = "who"
    help = "list who is online in a service or reads a topic, or the connections of one user"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define whom."""
        parser.add_argument("service", metavar="SERVICE", help="a service that exists")
        parser.add_argument(
            "user",
            metavar="NAME",
            nargs="?",
            help="the user whose connections, or the topic whose readers to list",
        )

    def run(self, out: Output, options: Options) -> None:
        """Print them."""
        service, name = options["service"], options["user"]
        if runtime.call_sync(lambda broker: has_topics(broker, service)):
            silent = _readers(out, service, name)
        else:
            silent = _users(out, service) if name is None else _connections(out, service, name)
        require_complete(silent)


def _users(out: Output, service: str) -> Iterable[str]:
    users: dict[str, int] = {}
    silent: set[str] = set()
    after: str | None = None
    with out.progress("asking the gateways") as progress:
        while True:
            page = presence.online(service, after=after, limit=PAGE)
            users.update(page.users)
            silent.update(page.silent)
            progress(len(users))
            after = page.after
            if after is None:
                break
    out.document({"service": service, "users": users, "silent": sorted(silent)})
    columns = [Column("User", whole=False), Column("Sockets", right=True)]
    out.table("", columns, users.items(), empty=f"No one is online in {service}.")
    return silent


def _readers(out: Output, service: str, name: str | None) -> Iterable[str]:
    if name is None:
        text = f"service {service!r} has topics; name one, such as: gateway who {service} 42"
        raise CommandError(text, returncode=Exit.USAGE)
    users: dict[Inbox, int] = {}
    silent: set[str] = set()
    page = topics.readers(service, name)
    with out.progress("asking the gateways") as progress:
        while True:
            users.update(page.users)
            silent.update(page.silent)
            progress(len(users))
            if page.after is None:
                break
            page = topics.readers(service, name, after=page.after)
    rows = [(*inbox, sockets) for inbox, sockets in users.items()]
    listed = [dict(zip(("service", "user", "sockets"), row, strict=True)) for row in rows]
    document = {"service": service, "topic": name, "users": listed, "sockets": page.sockets}
    out.document({**document, "silent": sorted(silent)})
    columns = [Column("User", whole=False), Column("Service"), Column("Sockets", right=True)]
    table = [(user, at, sockets) for at, user, sockets in rows]
    out.table("", columns, table, empty=f"No one reads {service}.{name}.")
    return silent


def _connections(out: Output, service: str, user: str) -> Iterable[str]:
    found = presence.connections(service, user)
    online = True if found else None if found.silent else False
    out.document(
        {
            "service": service,
            "user": user,
            "online": online,
            "connections": [asdict(each) for each in found],
            "silent": found.silent,
        }
    )
    if not found:
        none = "No gateway that answered has a connection of {} in {}."
        out.line((none if found.silent else "{} is not online in {}.").format(user, service))
    elif out.is_terminal:
        for number, each in enumerate(found):
            if number:
                out.line()
            out.block(each.id, zip(NAMES[1:], _row(each)[1:], strict=True))
    else:
        out.table("", [Column(name) for name in NAMES], map(_row, found))
    return found.silent


def _row(each: Connection) -> tuple[Cell, ...]:
    return (
        each.id,
        each.device,
        each.gateway,
        each.address or None,
        duration((datetime.now(UTC) - each.since).total_seconds()),
        each.protocol or "raw",
        str(each.sent),
        str(each.acknowledged),
        each.unacknowledged,
        size(each.bytes_sent),
        size(each.bytes_received),
        each.user_agent or None,
    )
