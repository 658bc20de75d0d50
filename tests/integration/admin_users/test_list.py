"""The admin's list of users: who is online, and what waits for them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

from tests.integration.admin_users.helpers import (
    LIST,
    STRANGE,
    Open,
    create,
    page_at,
    page_of,
    read,
    row,
    staff,
    standing,
)
from wsgateway import send
from wsgateway.admin import users
from wsgateway.identity import SessionIdentity

pytestmark = pytest.mark.django_db


def test_list_shows_who_is_online_and_what_waits(root: Client, open_socket: Open) -> None:
    ann, bob, strange = create("ann"), create("bob"), create(STRANGE)
    for _ in range(2):
        open_socket("orders", "ann")
    open_socket("demo", STRANGE)
    for number in range(3):
        send("orders", "bob", text=str(number))
    send("demo", "bob", text="4")
    page = root.get(LIST).content.decode()
    assert standing(page, "ann") == "online 2 0 now"
    assert standing(page, "bob") == "offline 0 4 -"
    assert standing(page, STRANGE) == "online 1 0 now"
    for user in (ann, bob, strange):
        assert f'href="{page_of(user)}"' in page


def test_filter_shows_only_those_who_are_online(root: Client, open_socket: Open) -> None:
    for name in ("ann", "bob", "carl", STRANGE):
        create(name)
    open_socket("orders", "ann")
    open_socket("demo", STRANGE)
    open_socket("demo", "no Django user")
    page = read(root, LIST, online="yes")
    assert "2 users" in page
    assert "bob" not in page
    assert "ann" in page
    assert "1 user" in read(root, LIST, online="yes", q="ann")
    assert "2 users" in read(root, LIST, online="yes", _facets="True")


def test_list_asks_the_database_no_more_often_for_more_users(
    root: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(100):
        create(f"user{number}")
    with django_assert_max_num_queries(8):
        root.get(LIST)
    with django_assert_max_num_queries(8):
        root.get(LIST, {"online": "yes"})


def test_list_without_the_permission_is_as_before() -> None:
    create("ann")
    browser = staff("view_user")
    page = browser.get(LIST).content.decode()
    assert "Last seen" not in page
    assert "websockets" not in page
    assert "online" not in page.lower()
    page = browser.get(f"{LIST}{create('bob').pk}/change/").content.decode()
    assert "websockets" not in page.lower()


def test_columns_may_be_placed_by_the_project(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib import admin

    registered = admin.site.get_model_admin(get_user_model())
    assert isinstance(registered, users.GatewayUserMixin)
    monkeypatch.setattr(type(registered), "list_display", ("username", "gateway_waiting", "email"))
    heads = re.findall(r'<th scope="col" class="[^"]*column-(\w+)', root.get(LIST).content.decode())
    assert heads == [
        "username",
        "gateway_online",
        "gateway_sockets",
        "gateway_last_seen",
        "gateway_waiting",
        "email",
    ]


def test_form_of_a_user_leads_to_the_page(root: Client) -> None:
    ann = create("ann")
    page = root.get(f"{LIST}{ann.pk}/change/").content.decode()
    assert f'<a href="{page_of(ann)}">Websockets</a>' in page
    assert "History" in page
    assert "id_username" in page


def test_admin_of_the_project_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib import admin
    from django.contrib.auth.admin import UserAdmin

    class OwnAdmin(UserAdmin):  # type: ignore[type-arg]
        pass

    site, model = admin.AdminSite(), get_user_model()
    monkeypatch.setattr("django.contrib.admin.site", site)
    site.register(model, OwnAdmin)
    users.take_over_stock_admin()
    assert type(site.get_model_admin(model)) is OwnAdmin
    site.unregister(model)
    site.register(model, UserAdmin)
    users.take_over_stock_admin()
    found = site.get_model_admin(model)
    assert isinstance(found, users.GatewayUserMixin)
    assert isinstance(found, UserAdmin)


def test_mixin_behind_the_class_that_it_extends_is_refused() -> None:
    """It did nothing, and nobody said so."""
    from django.contrib.auth.admin import UserAdmin

    with pytest.raises(ImproperlyConfigured, match=r"class Wrong\(GatewayUserMixin, …\)"):

        class Wrong(UserAdmin, users.GatewayUserMixin):  # type: ignore[type-arg]
            pass


class ByEmail(SessionIdentity):
    """Names users by their e-mail address, and leaves the admin to find them."""

    def user_name(self, user: Any) -> str:
        return str(user.email)

    def get_user(self, name: str) -> Any:
        return get_user_model().objects.get(email=name)


class ByEmailAtOnce(ByEmail):
    def users_named(self, users: Any, names: Any) -> Any:
        return users.filter(email__in=names)


@pytest.mark.parametrize("resolver", [ByEmail, ByEmailAtOnce])
def test_users_are_named_as_their_resolver_names_them(
    root: Client, open_socket: Open, settings: Any, resolver: type
) -> None:
    path = f"{__name__}.{resolver.__name__}"
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.TokenIdentity", path]
    ann, _ = create("ann", email="ann@example.com"), create("bob", email="bob@example.com")
    nobody = create("nobody")
    open_socket("orders", "ann@example.com")
    page = root.get(LIST).content.decode()
    assert row(page, "ann").startswith("ann online 1 0 now ")
    assert standing(page, "nobody") == "unknown unknown unknown unknown"
    assert "1 user" in read(root, LIST, online="yes")
    assert "Django user" in read(root, page_at("orders", "ann@example.com"))
    assert "State online" in read(root, page_of(ann))
    assert "has no inbox" in read(root, page_of(nobody))
