"""Settings: types, limits, no caching; and the site's environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from project import env
from wsgateway.conf import SETTINGS
from wsgateway.conf import settings as conf
from wsgateway.setting import Setting


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_defaults_are_possible_and_documented(setting: Setting[Any], settings: Any) -> None:
    if hasattr(settings, setting.name):
        delattr(settings, setting.name)
    assert setting.problem() is None
    assert setting.doc[0].isupper()
    assert not setting.doc.endswith(".")


def test_names() -> None:
    others = {"PUBSUB_BROKER", "NATS_BROKER_URL"}
    assert all(name.startswith("WSGATEWAY_") for name in SETTINGS.keys() - others)
    assert others < SETTINGS.keys()


def test_nothing_is_cached() -> None:
    assert conf.WINDOW == 256
    with override_settings(WSGATEWAY_WINDOW=4):
        assert conf.WINDOW == 4
    assert conf.WINDOW == 256


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WSGATEWAY_REPLICAS", 2, "WSGATEWAY_REPLICAS is 2, but must be 1, 3 or 5"),
        ("WSGATEWAY_WINDOW", True, "WSGATEWAY_WINDOW is True, but must be of type int"),
        ("WSGATEWAY_WINDOW", 1.5, "WSGATEWAY_WINDOW is 1.5, but must be of type int"),
        ("WSGATEWAY_ACK_WAIT", 0, "WSGATEWAY_ACK_WAIT is 0, but must be above 0"),
        ("WSGATEWAY_RATE_LIMIT", -1, "WSGATEWAY_RATE_LIMIT is -1, but must be 0 or more"),
        ("WSGATEWAY_ACK_WAIT", float("inf"), "is inf, but must be above 0, at most 9000000000"),
        ("WSGATEWAY_PING_INTERVAL", 86400, "is 86400, but must be above 0 and below 86400"),
        ("WSGATEWAY_ACK_WAIT", float("nan"), "is nan, but must be above 0"),
        ("WSGATEWAY_RATE_LIMIT", float("inf"), "is inf, but must be 0 or more, at most"),
        ("WSGATEWAY_INBOX_MAX_BYTES", 2**63, f"is {2**63}, but must be -1 or more, at most"),
        ("WSGATEWAY_ALLOWED_ORIGINS", [None], "must be a list of origins"),
        ("WSGATEWAY_TOPICS", ["room"], "must be of type dict"),
        ("WSGATEWAY_TOPICS", {"room": 60}, "write {'room': {'max_age': 86400}}, not {'room': 60}"),
        (
            "WSGATEWAY_TOPICS",
            {"room": {"max_mesages": 1}},
            "unknown limit 'max_mesages' of 'room': did you mean 'max_messages'",
        ),
        ("WSGATEWAY_TOPICS", {"room": {"ttl": 1}}, "may be one of max_age, max_messages, max_b"),
        (
            "WSGATEWAY_TOPICS",
            {"room": {"max_messages": 1.5}},
            "'max_messages' of 'room' is 1.5, but must be 1 or more",
        ),
        ("WSGATEWAY_TOPICS", {"room": {"max_age": 0}}, "is 0, but must be 0.1 or more"),
        (
            "WSGATEWAY_ALLOWED_ORIGINS",
            ["*.example.com"],
            r"'\*\.example\.com' holds .* write '.example.com'",
        ),
        (
            "WSGATEWAY_ALLOWED_ORIGINS",
            ["https://ok.example", "localhost:3000"],
            "ORIGINS: 'localhost:3000' has a port, but no scheme; write 'https://localhost:3000'",
        ),
        (
            "WSGATEWAY_ALLOWED_ORIGINS",
            ["https://*"],
            r"holds '\*'; list each origin, or '\*' alone",
        ),
        ("WSGATEWAY_ALLOWED_ORIGINS", ["http://*:3000"], "list each origin"),
        ("WSGATEWAY_ALLOWED_ORIGINS", ["https://*.a.b:1"], r"write '\.a\.b:1' for all subdomains"),
        ("WSGATEWAY_ALLOWED_ORIGINS", "a", "must be a list of origins such as"),
        ("WSGATEWAY_DURABLE_GROUPS", [5], "must be a list of glob patterns"),
        ("WSGATEWAY_SERVICES", "a", r"must be a list of names, for example \['orders'\]"),
        ("WSGATEWAY_SERVICES", ["a", ""], "must be a list of names"),
        ("WSGATEWAY_SERVICES", [1], "must be a list of names"),
    ],
)
def test_impossible_value_is_refused_on_use(name: str, value: object, text: str) -> None:
    attribute = name.removeprefix("WSGATEWAY_")
    with override_settings(**{name: value}), pytest.raises(ImproperlyConfigured, match=text):
        getattr(conf, attribute)


@pytest.mark.parametrize("origins", [None, [], ["*"], (".example.com", "https://example.com:8000")])
def test_origins_that_are_possible(origins: Any) -> None:
    with override_settings(WSGATEWAY_ALLOWED_ORIGINS=origins):
        assert origins == conf.ALLOWED_ORIGINS


@pytest.mark.parametrize(
    "name", ["NATS_BROKER_URL", "WSGATEWAY_NATS_PASSWORD", "WSGATEWAY_NATS_TOKEN"]
)
def test_value_that_may_hold_a_password_is_not_shown(name: str) -> None:
    """A list of URLs was refused with the password in the text."""
    with override_settings(**{name: ["nats://u:hunter2@h"]}):
        text = f"{name} is of type list, but must be of type str"
        assert SETTINGS[name].problem() == text


def test_whole_number_will_do_for_seconds() -> None:
    with override_settings(WSGATEWAY_ACK_WAIT=5):
        assert conf.ACK_WAIT == 5


@pytest.mark.parametrize(
    ("store", "base", "expected"),
    [
        ("", Path("/srv/site"), Path("/srv/site/.nats")),
        ("/data", Path("/srv/site"), Path("/data")),
        ("", None, Path.cwd() / ".nats"),
    ],
)
def test_embedded_store_is_beside_manage_py(store: str, base: Path | None, expected: Path) -> None:
    with override_settings(WSGATEWAY_EMBEDDED_STORE=store, BASE_DIR=base):
        assert conf.embedded_store == expected


class TestEnvironment:
    def test_each_value_becomes_its_settings_type(self) -> None:
        found = env.gateway_settings(
            {
                "PUBSUB_BROKER": "memory",
                "NATS_BROKER_URL": "nats://a,nats://b",
                "WSGATEWAY_REPLICAS": "3",
                "WSGATEWAY_ACK_WAIT": "1.5",
                "WSGATEWAY_SERVICES": "orders, chat",
                "WSGATEWAY_IDENTITY": "a.B",
                "WSGATEWAY_TOPICS": '{"room": {"max_age": 60}}',
                "WSGATEWAY_TYPO": "for wsgateway.E001 to find",
                "NATS_BROKER_URLS": "for wsgateway.W013 to find",
                "OTHER": "x",
            }
        )
        assert found == {
            "PUBSUB_BROKER": "memory",
            "NATS_BROKER_URL": "nats://a,nats://b",
            "WSGATEWAY_REPLICAS": 3,
            "WSGATEWAY_ACK_WAIT": 1.5,
            "WSGATEWAY_SERVICES": ["orders", "chat"],
            "WSGATEWAY_IDENTITY": ["a.B"],
            "WSGATEWAY_TOPICS": {"room": {"max_age": 60}},
            "WSGATEWAY_TYPO": "for wsgateway.E001 to find",
            "NATS_BROKER_URLS": "for wsgateway.W013 to find",
        }

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("WSGATEWAY_REPLICAS", "three", "must be of type int"),
            ("WSGATEWAY_REPLICAS", "", "must be of type int"),
            ("WSGATEWAY_ACK_WAIT", "1s", "must be of type float"),
        ],
    )
    def test_bad_value_is_named(self, name: str, value: str, text: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=f"{name} is '{value}' .*{text}"):
            env.gateway_settings({name: value})

    @pytest.mark.parametrize(
        ("value", "expected"), [("1", True), ("on", True), ("0", False), ("", False)]
    )
    def test_flag(self, value: str, expected: bool) -> None:
        assert env.flag({"DEBUG": value}, "DEBUG", not expected) is expected
        assert env.flag({}, "DEBUG", expected) is expected

    def test_flag_that_is_none(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="use 1 or 0"):
            env.flag({"DEBUG": "maybe"}, "DEBUG", False)

    def test_dict_that_is_not_json_is_not_shown(self) -> None:
        """It may hold a secret."""
        with pytest.raises(ImproperlyConfigured, match=r"WEBHOOKS .* is not JSON") as caught:
            env.gateway_settings({"WSGATEWAY_WEBHOOKS": "{'orders': 'hunter2'}"})
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("/chat", "/chat"), ("chat/", "/chat"), ("/a/b/", "/a/b"), ("/", None), ("", None)],
    )
    def test_site_path(self, value: str, expected: str | None) -> None:
        assert env.site_path({"FORCE_SCRIPT_NAME": value}, "FORCE_SCRIPT_NAME") == expected
        assert env.site_path({}, "FORCE_SCRIPT_NAME") is None

    def test_required(self) -> None:
        assert env.required({"KEY": "x"}, "KEY", "set it") == "x"
        with pytest.raises(ImproperlyConfigured, match=r"KEY is not set.*set it"):
            env.required({"KEY": ""}, "KEY", "set it")
