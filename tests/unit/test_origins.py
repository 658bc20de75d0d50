"""Which web pages may open sockets."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.origins import require_origin
from wsgateway.protocol.codes import CloseCode


def allowed(*sent: str | bytes) -> bool:
    raw = [o if isinstance(o, bytes) else o.encode() for o in sent]
    try:
        require_origin({"type": "websocket", "headers": [(b"origin", o) for o in raw]})
    except IdentityRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("setting", "origin", "expected"),
    [
        (["https://app.example.com"], "https://app.example.com", True),
        (["https://app.example.com"], "https://app.example.com:443", True),
        (["https://app.example.com"], "http://app.example.com", False),
        (["https://app.example.com"], "https://app.example.com:8443", False),
        (["https://app.example.com"], "https://app.example.com.evil.org", False),
        (["https://app.example.com"], "https://evilapp.example.com", False),
        (["https://.example.com"], "https://a.b.example.com", True),
        ([".example.com"], "http://example.com:1234", True),
        (["app.example.com"], "https://APP.example.com", True),
        (["capacitor://localhost"], "capacitor://localhost", True),
        (["https://app.example.com"], "null", False),
        (["https://app.example.com"], "", False),
        (["https://app.example.com"], "http://[", False),
        (["https://app.example.com"], "https://app.example.com:x", False),
        (["https://app.example.com"], b"\xff\xfe", False),
        ([], "https://app.example.com", False),
        (["*"], "null", True),
        (["*"], "https://anything.org", True),
    ],
)
def test_origin_against_the_setting(
    settings: Any, setting: list[str], origin: str | bytes, expected: bool
) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = setting
    assert allowed(origin) is expected


@pytest.mark.parametrize(
    ("debug", "hosts", "origin", "expected"),
    [
        (False, ["example.com"], "https://example.com", True),
        (False, ["example.com"], "https://example.org", False),
        (False, [], "http://localhost:8000", False),
        (True, [], "http://localhost:8000", True),
        (True, [], "http://127.0.0.1:8000", True),
        (True, [], "http://[::1]:8000", True),
        (True, [], "https://example.org", False),
    ],
)
def test_without_the_setting_allowed_hosts_decide(
    settings: Any, debug: bool, hosts: list[str], origin: str, expected: bool
) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = None
    settings.DEBUG = debug
    settings.ALLOWED_HOSTS = hosts
    assert allowed(origin) is expected


def test_no_origin_is_no_browser(settings: Any) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = []
    assert allowed()


def test_two_origins_must_both_be_allowed(settings: Any) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = ["https://a.org"]
    assert not allowed("https://a.org", "https://b.org")


def test_refusal_names_the_origin_and_the_setting(settings: Any) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = ["https://a.org"]
    scope = {"headers": [(b"origin", b"https://evil.org")]}
    with pytest.raises(IdentityRefused) as refused:
        require_origin(scope)
    assert refused.value.code is CloseCode.FORBIDDEN
    assert refused.value.reason == "origin 'https://evil.org' may not connect"
    assert "['https://a.org']" in refused.value.cure
    assert "WSGATEWAY_ALLOWED_ORIGINS" in refused.value.cure


@given(st.one_of(st.text(max_size=40), st.text(max_size=20).map(lambda rest: f"https://{rest}")))
def test_any_origin_is_allowed_or_not(origin: str) -> None:
    allowed = ["https://a.example", ".b.example", "https://c.example:8000"]
    with override_settings(WSGATEWAY_ALLOWED_ORIGINS=allowed), suppress(IdentityRefused):
        require_origin({"headers": [(b"origin", origin.encode())]})


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_any_bytes_are_an_origin_or_none(sent: list[bytes]) -> None:
    assert allowed(*sent) in (True, False)
