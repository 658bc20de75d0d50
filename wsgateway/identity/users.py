"""How Django users are named: the name of a user's inbox, and who has a name."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist

from wsgateway.exceptions import IdentityRefused
from wsgateway.hooks import call_hook_in_thread
from wsgateway.identity.base import shown
from wsgateway.protocol.codes import CloseCode

if TYPE_CHECKING:
    from django.db.models import QuerySet

__all__ = ["NamesUsers"]

NO_NAME = "this login has no usable name"
"""The reason that a client gets if its resolver finds no name."""


class NamesUsers:
    """A resolver whose identities are Django users."""

    def user_name(self, user: Any) -> str | Awaitable[str]:
        """Return the name that *user*'s inbox has; override it, and `get_user`, for another field.

        A name must belong to one user only, and should never pass to another one.

        Raises:
            ObjectDoesNotExist: The user has no name, so that the socket is refused.
        """
        return str(user.get_username())

    def get_user(self, name: str) -> Any:
        """Return the user whom `user_name` calls *name*.

        Raises:
            ObjectDoesNotExist: There is no such user.
        """
        return get_user_model()._default_manager.get_by_natural_key(name)

    def users_named(self, users: QuerySet[Any], names: Collection[str]) -> QuerySet[Any]:
        """Return those of *users* whom `user_name` calls one of *names*, with one query.

        For the admin's filter "online now". If you override `user_name` and not this, the admin
        asks `user_name` about each user.
        """
        return users.filter(**{f"{get_user_model().USERNAME_FIELD}__in": names})

    def require_name(self, user: Any) -> str:
        """Return what `user_name` says; call it in a thread.

        Raises:
            IdentityRefused: The user has no usable name.
        """
        try:
            return self.usable_name(call_hook_in_thread(self.user_name, user))
        except ObjectDoesNotExist as exc:
            raise self.no_name(exc) from exc

    def usable_name(self, name: object) -> str:
        """Return *name*, which `user_name` has returned, if it is a string.

        Raises:
            IdentityRefused: It is not.
        """
        if isinstance(name, str):
            return name
        raise self._refusal(f"returned {shown(name)}, not a string", "return str(…) there")

    def no_name(self, error: ObjectDoesNotExist) -> IdentityRefused:
        """Return the refusal of a user for whom `user_name` raises *error*."""
        return self._refusal(
            f"raised {type(error).__qualname__}: {str(error).rstrip('.')}",
            "create the row that names this user, or name users by a field that all have",
        )

    def _refusal(self, cause: str, cure: str) -> IdentityRefused:
        method = f"{type(self).__module__}.{type(self).__qualname__}.user_name"
        return IdentityRefused(CloseCode.FORBIDDEN, NO_NAME, cure, f"{method} {cause}")
