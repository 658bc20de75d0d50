"""What NATS' permissions refuse is a warning that names the subject, and does not fill the log."""

from __future__ import annotations

from typing import Any

import pytest

from tests.troubleshooting import Symptom
from wsgateway.broker.nats.refusals import INTERVAL, REMEMBERED, Refusal, RefusalLog, Vetoes
from wsgateway.exceptions import BrokerForbidden


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def publish(subject: str) -> Refusal:
    return Refusal.parse(f'Permissions Violation for Publish to "{subject}"')


def subscribe(subject: str) -> Refusal:
    return Refusal.parse(f'Permissions Violation for Subscription to "{subject}"')


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    def take() -> list[tuple[str, str]]:
        found = [(r.levelname, r.getMessage()) for r in caplog.records if r.levelname != "DEBUG"]
        caplog.clear()
        return found

    return take


@pytest.mark.troubleshooting(
    "NATS permissions do not allow … Grant what docs/how-to/nats-permissions.md lists for the role"
)
def test_warning_names_subject_and_cure(
    symptom: Symptom, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It was an ERROR, although the gateway goes on without."""
    RefusalLog(Clock()).add(publish("ws.live.orders.ann"))
    symptom.must_show_in(caplog.text)
    assert vars(caplog.records[0])["subject"] == "ws.live.orders.ann"
    assert lines() == [
        (
            "WARNING",
            'NATS permissions do not allow publishing to "ws.live.orders.ann". Grant what '
            "docs/how-to/nats-permissions.md lists for the role",
        )
    ]


def test_similar_refusals_are_one_warning_in_ten_minutes(lines: Any) -> None:
    """A subject holds the user's name, so each user of a gateway cost a line; and each reconnect
    began again."""
    clock = Clock()
    log = RefusalLog(clock)
    for user in range(1000):
        log.add(subscribe(f"ws.live.orders.{user}"))
        log.add(subscribe(f"acme.ws.live.orders.{user}"))
        log.add(subscribe(f"_INBOX.{user}.>"))
    assert len(lines()) == 3
    log.add(publish("ws.live.orders.ann"))
    log.add(subscribe("ws.live.chat.ann"))
    log.add(publish("$JS.API.STREAM.INFO.WS_RECV"))
    log.add(publish("$JS.API.STREAM.CREATE.WS_RECV"))
    assert len(lines()) == 4
    clock.now += INTERVAL
    log.add(subscribe("ws.live.orders.ann"))
    assert len(lines()) == 1


def test_refusals_of_all_kinds_are_bounded(lines: Any) -> None:
    clock = Clock()
    log = RefusalLog(clock)
    for number in range(5000):
        log.add(publish(f"ws.send.service-{number}.ann"))
    assert len(lines()) == REMEMBERED
    clock.now += INTERVAL
    log.add(publish("ws.send.another.ann"))
    assert len(lines()) == 1


def test_what_is_not_about_a_subject_is_an_error(lines: Any) -> None:
    RefusalLog(Clock()).add(Refusal.parse("maximum subscriptions exceeded"))
    [(level, text)] = lines()
    assert level == "ERROR"
    assert "maximum subscriptions exceeded; raise that limit" in text


class TestVetoes:
    def test_each_is_raised_once(self) -> None:
        vetoes = Vetoes()
        vetoes.take()
        for subject in ("ws.recv.a", "ws.recv.b"):
            vetoes.note(subscribe(subject))
        for _ in range(2):
            with pytest.raises(BrokerForbidden, match=r"ws\.recv\."):
                vetoes.take()
        vetoes.take()

    def test_what_is_published_is_not_among_them(self) -> None:
        vetoes = Vetoes()
        vetoes.note(publish("ws.recv.a"))
        vetoes.take()

    def test_optional_ones_are_not_raised_as_long_as_they_last(self) -> None:
        vetoes = Vetoes()
        for _ in range(2):
            vetoes.allow("ws.conn.a")
        vetoes.forget("ws.conn.a")
        vetoes.note(subscribe("ws.conn.a"))
        vetoes.take()
        vetoes.forget("ws.conn.a")
        vetoes.note(subscribe("ws.conn.a"))
        with pytest.raises(BrokerForbidden):
            vetoes.take()

    def test_another_connection_may_have_other_permissions(self) -> None:
        vetoes = Vetoes()
        vetoes.note(subscribe("ws.recv.a"))
        vetoes.clear()
        vetoes.take()
