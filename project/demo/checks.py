"""What the demonstration must not leave behind in production."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password
from django.core.checks import CheckMessage, Error
from django.db import DatabaseError, router

from project.demo.users import DEMO_USERS

__all__ = ["check_demo_users"]


def check_demo_users(databases: Collection[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """E001: the users that ``rungateway --demo`` creates, whose passwords are their names.

    Reads the database only if it is asked to: ``check --deploy --database default``.
    """
    model = get_user_model()
    alias = router.db_for_read(model)
    if alias not in (databases or ()):
        return []
    named = {f"{model.USERNAME_FIELD}__in": list(DEMO_USERS)}
    try:
        users = list(model._default_manager.using(alias).filter(**named))
    except DatabaseError:  # the tables do not exist yet
        return []
    found = sorted(u.get_username() for u in users if check_password(u.get_username(), u.password))
    if not found:
        return []
    return [
        Error(
            f"The database has demo users whose passwords are their names: {', '.join(found)}.",
            hint="Delete them, or give them other passwords: manage.py changepassword NAME.",
            id="demo.E001",
        )
    ]
