"""``manage.py gateway key``: make, list and revoke keys of the server API."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from difflib import get_close_matches
from typing import Any

from django.core.management.base import CommandError
from django.db.models import Q

from wsgateway.api import keys
from wsgateway.declared import declared_services
from wsgateway.management.base import Action, ActionGroup, Options, add_no_input
from wsgateway.management.exits import Exit
from wsgateway.management.output import Column, Output, clock, safe
from wsgateway.models import ApiKey

__all__ = ["Key"]

COLUMNS = [
    Column("Name", whole=False),
    Column("Prefix"),
    Column("Services", whole=False),
    Column("Actions", whole=False),
    Column("Rate", right=True, extra=True),
    Column("Created", extra=True),
    Column("Last used"),
    Column("Revoked"),
]


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < float("inf"):
        raise ArgumentTypeError(f"{text[:40]!r} is not a number of 0 or more")
    return rate


class Create(Action):
    """Make a key."""

    name = "create"
    help = "make a key and print it, this once: only its hash is stored"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define what it may do."""
        parser.add_argument("name", metavar="NAME", help="who uses it, for example erp")
        parser.add_argument(
            "--service",
            action="append",
            required=True,
            dest="services",
            metavar="SERVICE",
            help="a service in which it may act; give several, or '*' for all",
        )
        parser.add_argument(
            "--action",
            action="append",
            required=True,
            dest="may",
            choices=tuple(keys.ACTIONS),
            help="what it may do; give several",
        )
        parser.add_argument(
            "--rate",
            type=_rate,
            default=keys.DEFAULT_RATE,
            metavar="N",
            help="requests and messages per second, on average; 0: any number; default: 1000",
        )

    def run(self, out: Output, options: Options) -> None:
        """Make it, and print it."""
        try:
            row, key = keys.create(
                options["name"], options["services"], options["may"], options["rate"]
            )
        except ValueError as exc:
            raise CommandError(str(exc), returncode=Exit.USAGE) from exc
        out.document({**_fields(row), "key": key})
        out.line(key)
        out.note("Store it now: nobody can show it again.")
        _warn_of_unknown(out, row.services)


class List(Action):
    """Show what keys there are."""

    name = "list"
    help = "list the keys, with what they may do and when they were last used"

    def run(self, out: Output, options: Options) -> None:
        """Print them."""
        rows = list(ApiKey.objects.all())
        out.document([_fields(row) for row in rows])
        out.table("", COLUMNS, map(_cells, rows), empty="There are no keys.")


class Revoke(Action):
    """End a key."""

    name = "revoke"
    help = "make a key useless for good, from its next request on"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which one."""
        parser.add_argument("key", metavar="NAME", help="its name, or its prefix")
        add_no_input(parser)

    def run(self, out: Output, options: Options) -> None:
        """Ask, and revoke it."""
        name = options["key"]
        named = Q(name=name) | Q(prefix=name)
        rows = list(ApiKey.objects.filter(named, revoked_at=None))
        if not rows:
            text = f"no key that works is called {name!r}; gateway key list shows them all"
            raise CommandError(text, returncode=Exit.UNKNOWN)
        listed = ", ".join(map(str, rows))
        out.confirm(f"Revoke {listed} for good?", interactive=options["interactive"])
        keys.revoke(rows)
        out.document({"revoked": [row.prefix for row in rows]})
        out.line(f"revoked {safe(listed)}")


class Key(ActionGroup):
    """Keys of the server API."""

    name = "key"
    help = "make, list and revoke keys of the server API"
    asks_broker = False
    actions = (Create(), List(), Revoke())


def _warn_of_unknown(out: Output, services: list[str]) -> None:
    """Tell of names that are probably misspelt. A service may also be declared later."""
    declared = declared_services()
    if declared.is_open:
        return
    known = declared.services | declared.topics | declared.casts
    for service in services:
        if service != keys.ANYWHERE and service not in known:
            near = get_close_matches(service, sorted(known), n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            out.note(f"Service {service!r} does not exist in this project.{guess}")


def _fields(row: ApiKey) -> dict[str, Any]:
    return {
        "name": row.name,
        "prefix": row.prefix,
        "services": row.services,
        "actions": row.actions,
        "rate": row.rate,
        "created": row.created_at,
        "last_used": row.last_used_at,
        "revoked": row.revoked_at,
    }


def _cells(row: ApiKey) -> tuple[str | None, ...]:
    times = (row.created_at, row.last_used_at, row.revoked_at)
    return (
        row.name,
        row.prefix,
        ", ".join(row.services),
        ", ".join(row.actions),
        f"{row.rate:g}" if row.rate else "any",
        *(clock(time) if time else None for time in times),
    )
