"""The log of refused sockets: each reason at once, and a flood in few lines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import until
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway import refusals
from wsgateway.gateway.refusals import (
    INTERVAL,
    MAX_PATH,
    MAX_PATHS,
    MAX_REASONS,
    RefusalLog,
    refuse,
)
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import RawEndpoint


def refusal(reason: str = "not logged in", cure: str = "log in") -> IdentityRefused:
    return IdentityRefused(CloseCode.NOT_AUTHENTICATED, reason, cure)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """What was logged since the last call."""

    def take() -> list[str]:
        assert all(record.levelname == "WARNING" for record in caplog.records)
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return take


async def test_first_refusal_is_logged_at_once_with_path_code_and_cure(
    clock: Clock, lines: Any
) -> None:
    RefusalLog(clock).add(refusal(), "/ws/orders/")
    assert lines() == ["refused a websocket at '/ws/orders/' with 4501: not logged in. Log in."]


async def test_same_reason_is_counted_and_told_once_a_minute(clock: Clock, lines: Any) -> None:
    log = RefusalLog(clock)
    for _ in range(1000):
        log.add(refusal(), "/ws/orders/")
    assert len(lines()) == 1
    clock.now += INTERVAL
    log.add(refusal(), "/ws/orders/")
    assert lines() == ["refused more websockets with 4501 (999 in 60 s): not logged in. Log in."]
    clock.now += INTERVAL
    log.add(refusal("the token is not valid"), "/ws/orders/")
    assert lines() == [
        "refused more websockets with 4501 (1 in 60 s): not logged in. Log in.",
        "refused a websocket at '/ws/orders/' with 4501: the token is not valid. Log in.",
    ]


async def test_each_failure_is_logged_though_the_client_reads_the_same(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Who started the webhook for identities was not told that its answer was wrong."""
    log, code = RefusalLog(clock), CloseCode.INTERNAL_ERROR
    for cause in ("connection refused", "it answered 500", "connection refused"):
        log.add(IdentityRefused(code, code.reason, cause=cause), "/ws/orders/")
    found = [record.getMessage().partition("4018: ")[2] for record in caplog.records]
    assert found == [
        'connection refused. The client reads "internal error".',
        'it answered 500. The client reads "internal error".',
    ]


async def test_same_mistake_at_another_path_is_logged_at_once(clock: Clock, lines: Any) -> None:
    """It was silent for up to a minute, so the next attempt seemed to have no reason at all."""
    log = RefusalLog(clock)
    log.add(refusal(), "/ws/chat/")
    log.add(refusal(), "/ws/orders/ann/", user="ann", codes="1008 (4501)")
    log.add(refusal(), "/ws/orders/bob/", user="bob", codes="1008 (4501)")
    assert lines() == [
        "refused a websocket at '/ws/chat/' with 4501: not logged in. Log in.",
        "refused a websocket at '/ws/orders/ann/' with 1008 (4501): not logged in. Log in.",
    ]
    for number in range(5000):
        log.add(refusal(), f"/ws/{number}/")
    assert len(lines()) == MAX_PATHS - 2
    log.add(refusal("another reason"), "/ws/chat/")
    assert len(lines()) == 1


async def test_in_development_each_refusal_is_logged(
    clock: Clock, lines: Any, settings: Any
) -> None:
    settings.DEBUG = True
    log = RefusalLog(clock)
    away = IdentityRefused(CloseCode.BROKER_UNAVAILABLE, "broker unavailable")
    for _ in range(3):
        log.add(refusal(), "/ws/orders/")
        log.add(away, "/ws/orders/")  # such clients come again by themselves
    found = lines()
    assert len(found) == 4
    assert sum("not logged in" in line for line in found) == 3


async def test_reason_that_has_ended_is_logged_in_full_when_it_comes_back(
    clock: Clock, lines: Any
) -> None:
    log = RefusalLog(clock)
    for _ in range(2):
        log.add(refusal(), "/ws/orders/")
        clock.now += INTERVAL
    assert lines() == 2 * ["refused a websocket at '/ws/orders/' with 4501: not logged in. Log in."]


async def test_names_that_clients_make_up_cannot_flood_the_log(clock: Clock, lines: Any) -> None:
    log = RefusalLog(clock)
    for number in range(5000):
        log.add(refusal(f"service 's{number}' does not exist"), f"/ws/s{number}/{'x' * 5000}/")
    found = lines()
    assert len(found) == MAX_REASONS
    assert max(map(len, found)) < 2 * MAX_PATH
    clock.now += INTERVAL
    log.add(refusal(), "/ws/orders/")
    assert lines()[0] == f"refused more clients for other reasons ({5000 - MAX_REASONS} in 60 s)"


async def test_count_is_told_when_the_minute_ends_even_if_nobody_comes_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(refusals, "INTERVAL", 0.05)
    log = RefusalLog()
    for _ in range(3):
        log.add(refusal(), "/ws/orders/")
    await until(lambda: "(2 in 0.05 s): not logged in" in caplog.text)
    await until(lambda: not log.reasons, what="nothing is kept")


async def test_gateway_that_ends_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append((event["type"], event.get("code")))

    code = CloseCode.SHUTTING_DOWN
    socket = Socket(Transport(send), RawEndpoint)
    await refuse(socket, IdentityRefused(code, code.reason), {"path": "/ws/orders/"})
    assert sent == [("websocket.accept", None), ("websocket.close", 1012)]
    assert [record.levelname for record in caplog.records] == ["INFO"]
