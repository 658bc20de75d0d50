"""The name that the project's resolvers give a Django user."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction

from wsgateway.conf import settings
from wsgateway.hooks import get_resolver

__all__ = ["name_of"]


def name_of(user: Any) -> str:
    """Return the name of a Django user's inboxes.

    Raises:
        TypeError: *user* is not a Django user, or ``user_name`` is asynchronous.
    """
    if not hasattr(user, "get_username"):
        raise TypeError(
            f"user is {type(user).__name__}; give a name, a Django user, or (service, name)"
        )
    resolvers = map(get_resolver, settings.IDENTITY)
    naming = (getattr(each, "user_name", None) for each in resolvers)
    user_name = next(filter(None, naming), None)
    if iscoroutinefunction(user_name):
        raise TypeError("user_name of your resolver is asynchronous; give the user's name instead")
    return str(user.get_username() if user_name is None else user_name(user))
