"""Django users and the names that their inboxes have: those that the session resolver gives."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet

from wsgateway.exceptions import NameRefused
from wsgateway.hooks import call_hook_in_thread
from wsgateway.protocol.subjects import encode_token
from wsgateway.services.users import UserNotFound, find_user, naming_path, naming_resolver

__all__ = ["account_named", "name_of", "users_named"]

logger = logging.getLogger("wsgateway")


def name_of(user: Any) -> str | None:
    """Return the name that *user*'s inboxes have; None if no inbox can belong to them.

    Asks the database if the resolver's ``user_name`` does.
    """
    user_name = getattr(naming_resolver(), "user_name", None)
    try:
        name = user.get_username() if user_name is None else call_hook_in_thread(user_name, user)
        encode_token(name)
    except (ObjectDoesNotExist, NameRefused):
        return None
    except Exception:  # the project's code: one user's must not cost the page
        logger.warning("%r failed", user_name, exc_info=True)
        return None
    return str(name)


def users_named(users: QuerySet[Any], names: Collection[str]) -> QuerySet[Any]:
    """Return those of *users* whose inboxes have one of *names*, with a query or two."""
    resolver = naming_resolver()
    if not hasattr(resolver, "user_name"):
        return users.filter(**{f"{users.model.USERNAME_FIELD}__in": names})
    find = getattr(resolver, "users_named", None)
    if find is None or _rank(resolver, "user_name") < _rank(resolver, "users_named"):
        return users.filter(pk__in=[user.pk for user in users if name_of(user) in names])
    found: QuerySet[Any] = find(users, names)
    return found


def _rank(resolver: object, method: str) -> int:
    """Say how far up *resolver*'s line of classes the one is that has *method*."""
    line: Sequence[type] = type(resolver).__mro__
    return next((n for n, each in enumerate(line) if method in vars(each)), len(line))


def account_named(name: str) -> Any:
    """Return the Django user whose inboxes are called *name*; None if there is none."""
    try:
        return find_user(name, naming_path())
    except (ObjectDoesNotExist, UserNotFound):
        return None
    except Exception:
        logger.warning("cannot find the user named %r", name, exc_info=True, extra={"user": name})
        return None
