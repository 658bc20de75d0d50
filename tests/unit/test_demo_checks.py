"""The check of the demonstration; the names carry the id."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from project.demo.checks import check_demo_users
from project.demo.users import create_demo_users


@pytest.mark.django_db
def test_E001_demo_users_in_the_database() -> None:
    assert check_demo_users(databases=["default"]) == []
    names = create_demo_users()
    bob, ann = get_user_model().objects.get(username="bob"), "ann"
    bob.set_password("another")
    bob.save()
    assert set(names) == {ann, "bob", "admin"}
    (found,) = check_demo_users(databases=["default"])
    assert found.id == "demo.E001"
    assert found.msg == ("The database has demo users whose passwords are their names: admin, ann.")
    assert check_demo_users(databases=["other"]) == []


def test_E001_reads_the_database_only_if_asked_to() -> None:
    """pytest-django refuses queries here."""
    assert check_demo_users(databases=None) == []


@pytest.mark.django_db
def test_E001_is_found_by_check_deploy() -> None:
    create_demo_users()
    with pytest.raises(SystemCheckError, match="admin, ann, bob"):
        call_command("check", deploy=True, databases=["default"])
