"""The demo users, whose passwords are their names."""

from __future__ import annotations

from django.contrib.auth import get_user_model

__all__ = ["DEMO_USERS", "create_demo_users"]

DEMO_USERS = {"ann": False, "bob": False, "admin": True}
"""Names of the demo users, who have them as passwords too, and whether each is a superuser."""


def create_demo_users() -> list[str]:
    """Create the demo users that do not exist yet; return the names of all. Development only."""
    users = get_user_model()._default_manager
    for name, superuser in DEMO_USERS.items():
        if not users.filter(**{get_user_model().USERNAME_FIELD: name}).exists():
            create = users.create_superuser if superuser else users.create_user
            create(name, password=name)
    return list(DEMO_USERS)
