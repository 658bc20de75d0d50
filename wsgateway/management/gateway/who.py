"""``manage.py gateway who``: who is online in a service, and a user's connections."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

from wsgateway import presence
from wsgateway.broker import runtime
from wsgateway.management.arguments import require_complete, require_service
from wsgateway.management.base import Action, Options
from wsgateway.management.output import Cell, Column, Output, size
from wsgateway.presence import Connection
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
    help = "list the users of a service who are online, or the connections of one user"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define whom."""
        parser.add_argument("service", metavar="SERVICE", help="a service that exists")
        parser.add_argument("user", metavar="USER", nargs="?", help="one user's connections")

    def run(self, out: Output, options: Options) -> None:
        """Print them."""
        service, user = options["service"], options["user"]
        runtime.call_sync(lambda broker: require_service(broker, service))
        silent = _users(out, service) if user is None else _connections(out, service, user)
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
