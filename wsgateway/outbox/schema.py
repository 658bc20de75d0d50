"""Errors of a database whose outbox is not migrated, with the cure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, OperationalError, ProgrammingError

from wsgateway.outbox.models import OutboxMessage

__all__ = ["naming_the_cure"]

UNDEFINED = ("42P01", "42703")
"""PostgreSQL's codes for a table and a column that do not exist; its texts are translated."""
_MISSING = re.compile("no such|doesn't exist|has no column|unknown column", re.IGNORECASE)
"""How SQLite and MySQL say so."""


@contextlib.contextmanager
def naming_the_cure(using: str) -> Iterator[None]:
    """Translate the error of a table that is missing or too old.

    SQLite raises `OperationalError`, as for what may pass.

    Args:
        using: The database.

    Raises:
        ImproperlyConfigured: In its place.
    """
    try:
        yield
    except (OperationalError, ProgrammingError) as exc:
        code = getattr(exc.__cause__, "sqlstate", None) or getattr(exc.__cause__, "pgcode", None)
        text = str(exc)
        if OutboxMessage._meta.db_table not in text or not (
            code in UNDEFINED or _MISSING.search(text)
        ):
            raise
        command = "manage.py migrate"
        if using != DEFAULT_DB_ALIAS:
            command += f" --database={using}"
        raise ImproperlyConfigured(
            f'the outbox\'s table in database {using!r} is missing or out of date; run "{command}"'
        ) from exc
