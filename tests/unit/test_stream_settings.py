"""A stream that differs from the settings: the text names the right setting."""

from __future__ import annotations

from typing import Any

import pytest

import wsgateway
from wsgateway import declared
from wsgateway.broker.nats.specs import StreamSpec, wanted_streams
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Subjects

OTHERS: dict[str, Any] = {
    "WSGATEWAY_REPLICAS": 3,
    "WSGATEWAY_STORAGE": "memory",
    "WSGATEWAY_DUPLICATE_WINDOW": 90.0,
    **{f"WSGATEWAY_{family}_MAX_AGE": 3600.0 for family in ("INBOX", "SEND", "DEAD", "CURSOR")},
    **{f"WSGATEWAY_{family}_MAX_BYTES": 10**7 for family in ("INBOX", "SEND", "DEAD", "CURSOR")},
    **{f"WSGATEWAY_{family}_MAX_BYTES": 10**7 for family in ("CHANNEL", "BLOB")},
    "WSGATEWAY_ROSTER_TTL": 40.0,
    "WSGATEWAY_INBOX_MAX_MESSAGES": 3,
    "WSGATEWAY_SEND_MAX_MESSAGES": 3,
    "WSGATEWAY_SEND_MAX_MESSAGES_PER_USER": 3,
}
"""Every setting of streams, and a value that is not its default."""
SHORT_AGES = [
    pytest.param(f"WSGATEWAY_{family}_MAX_AGE", 60.0, id=f"{family}_MAX_AGE_below_the_window")
    for family in ("INBOX", "SEND", "DEAD", "CURSOR")
]


@pytest.mark.parametrize(
    ("limit", "value"), [("max_age", 60.0), ("max_messages", 3), ("max_bytes", 10**7)]
)
def test_drift_of_a_topic_stream_names_the_limit_of_its_service(
    settings: Any, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    wsgateway.topic("room")(lambda identity, name: None)
    sized = {"max_bytes": 10**6}
    settings.WSGATEWAY_TOPICS = {"room": sized}
    before = wanted()["WS_TOPIC_room"]
    settings.WSGATEWAY_TOPICS = {"room": {**sized, limit: value}, "other": {"max_messages": 7}}
    spec = wanted()["WS_TOPIC_room"]
    texts = [spec.describe(name, before.config) for name in spec.differences(before.config)]
    assert texts
    for text in texts:
        assert text.endswith(f" or change WSGATEWAY_TOPICS['room']['{limit}']"), text


def wanted() -> dict[str, StreamSpec]:
    return {spec.name: spec for spec in wanted_streams(Subjects("ws"), wsgateway_settings)}


@pytest.fixture(params=[["orders"], ["*"]], ids=["isolated", "shared"])
def services(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})  # not the demo's
    settings.WSGATEWAY_SERVICES = request.param
    return settings


@pytest.mark.parametrize(("setting", "value"), [*OTHERS.items(), *SHORT_AGES])
def test_drift_names_the_setting_it_comes_from(services: Any, setting: str, value: Any) -> None:
    """`WSGATEWAY_SEND_MAX_MESSAGES` was named for a change of `…_PER_USER`, and others for what
    no setting says."""
    before = wanted()
    setattr(services, setting, value)
    found = 0
    for name, spec in wanted().items():
        real = before[name].config
        for field in spec.differences(real):
            found += 1
            text = spec.describe(field, real)
            assert text.endswith(f" or change {setting}"), text
    assert found


def test_drift_of_what_no_setting_says_names_none(services: Any) -> None:
    before = wanted()
    for setting, value in OTHERS.items():
        setattr(services, setting, value)
    for name, spec in wanted().items():
        for field in spec.config.keys() - set(spec.differences(before[name].config)):
            text = spec.describe(field, {})
            assert " or change " not in text, text
