"""Group names for inboxes: every user has one, and no two share one."""

from __future__ import annotations

import re

import pytest
from channels.layers import BaseChannelLayer
from hypothesis import given
from hypothesis import strategies as st

import wsgateway
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.group_names import MAX_GROUP_NAME, inbox_group, inbox_of_group
from wsgateway.protocol.subjects import Inbox

NAMES = st.one_of(
    st.text(min_size=1, max_size=12),
    st.text("ab.=_-2E@", min_size=1, max_size=12),
    st.emails(),
)


@pytest.mark.parametrize(
    ("service", "user", "group"),
    [
        ("orders", "ann", "orders.ann"),
        ("my_shop-2", "7", "my_shop-2.7"),
        ("orders", "ann.smith", "orders..ann.2Esmith"),
        ("orders", "ann@example.com", "orders..ann.40example.2Ecom"),
        ("orders", "@ann", "orders...40ann"),
        ("orders", "jürgen", "orders..j.C3.BCrgen"),
        ("a.b", "ann", "a.2Eb..ann"),
        ("orders", "a=40b", "orders..a.3D40b"),
    ],
)
def test_names(service: str, user: str, group: str) -> None:
    assert wsgateway.inbox_group(service, user) == group
    assert inbox_of_group(group) == Inbox(service, user)


@given(service=NAMES, user=NAMES)
def test_every_name_has_a_group_of_its_own_that_channels_accepts(service: str, user: str) -> None:
    try:
        group = inbox_group(service, user)
    except NameRefused:  # surrogates, or too long
        return
    assert BaseChannelLayer().require_valid_group_name(group)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", group)
    assert inbox_of_group(group) == Inbox(service, user)


@given(group=st.text("ab.2E4_-0", min_size=1, max_size=12))
def test_a_group_with_an_escape_is_the_name_of_one_inbox(group: str) -> None:
    inbox = inbox_of_group(group)
    assert inbox is None or inbox_group(*inbox) == group


@pytest.mark.parametrize(
    "group",
    [
        "chat",
        "orders.",
        ".ann",
        "orders..",
        "..ann",
        "orders.ann.smith",
        "orders..ann",
        "orders..a.2e",
        "orders..a.2",
        "orders..a.",
        "orders..a..b",
        "orders..a.41",
        "orders..a.FF",
        "orders....",
        "a.b..c",
        "...",
        "",
    ],
)
def test_what_names_no_inbox(group: str) -> None:
    assert inbox_of_group(group) is None


def test_a_name_too_long_for_channels_names_the_other_way() -> None:
    assert len(inbox_group("orders", "a" * 92)) == MAX_GROUP_NAME
    for user in ("a" * 93, "@" * 40):
        with pytest.raises(NameRefused, match=r"but Channels allows 99; use wsgateway\.send"):
            inbox_group("orders", user)


@pytest.mark.parametrize("name", ["", 7, None, "\ud800", "x" * 256])
def test_names_that_the_gateway_refuses(name: object) -> None:
    for names in ((name, "ann"), ("orders", name)):
        with pytest.raises(NameRefused):
            inbox_group(*names)
