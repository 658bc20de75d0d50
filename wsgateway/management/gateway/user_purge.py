"""``manage.py gateway purge --user``: delete everything that is stored about a user."""

from __future__ import annotations

from dataclasses import asdict

from wsgateway import user_data
from wsgateway.management.arguments import require_complete
from wsgateway.management.base import Options
from wsgateway.management.output import Column, Output
from wsgateway.readable import some
from wsgateway.user_data import UserData

__all__ = ["purge_user"]

COLUMNS = [
    Column("Service", whole=False),
    Column("Messages", right=True),
    Column("Cursors", right=True),
    Column("Queued", right=True),
    Column("Dead letters", right=True),
]


def purge_user(out: Output, user: str, options: Options) -> None:
    """Show what is stored about a user, ask, delete it, and print what it was."""
    service, using = options["only_service"], options["database"]
    found = user_data.find(user, service=service, using=using)
    if options["dry_run"]:
        _print(out, found, user, dry_run=True)
        return
    where = f" in {service}" if service else ""
    question = (
        f"Delete everything that is stored about {user}{where} for good "
        f"({some(found.total, 'record')}), and close open sockets?"
    )
    out.confirm(question, interactive=options["interactive"])
    deleted = user_data.delete(user, service=service, using=using)
    _print(out, deleted, user, dry_run=False)
    require_complete(deleted.silent)


def _print(out: Output, data: UserData, user: str, *, dry_run: bool) -> None:
    out.document(
        {
            "user": user,
            "dry_run": dry_run,
            "services": {name: asdict(held) for name, held in data.services.items()},
            "outbox_rows": data.outbox_rows,
            "sockets": data.sockets,
            "silent": data.silent,
        }
    )
    rows = [
        (name, held.messages, held.cursors, held.queued, held.dead_letters)
        for name, held in data.services.items()
    ]
    out.table("", COLUMNS, rows, empty="No service stores anything about this user.")
    if data.outbox_rows:
        out.line(f"{some(data.outbox_rows, 'row')} of the outbox")
    if dry_run:
        out.line(f"{some(data.total, 'record')} would be deleted")
        return
    closed = f", {some(data.sockets, 'socket')} closed" if data.sockets else ""
    out.line(f"{some(data.total, 'record')} deleted{closed}")
