"""What a bridge says while something is away."""

from __future__ import annotations

import asyncio
import logging

import pytest

from wsgateway.bridges import outage
from wsgateway.bridges.outage import Outage, uncancelled
from wsgateway.exceptions import BusMisconfigured, BusUnavailable


@pytest.fixture
def waiting() -> Outage:
    return Outage("bridge b waits to send", "b")


def test_each_reason_is_logged_once(waiting: Outage, caplog: pytest.LogCaptureFixture) -> None:
    """An error within 30 s of another one was dropped, whatever it said."""
    for _ in range(3):
        waiting.log(BusUnavailable("no answer in 1.5 s"))
        waiting.log(BusUnavailable("no answer in 12 s"))
        waiting.log(BusMisconfigured("topic ws.send.orders is missing"))
        waiting.log(BusMisconfigured("the bridge may not write to ws.send.bills"))
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
        (logging.WARNING, "bridge b waits to send: no answer in 1.5 s"),
        (logging.ERROR, "bridge b waits to send: topic ws.send.orders is missing"),
        (logging.ERROR, "bridge b waits to send: the bridge may not write to ws.send.bills"),
    ]


def test_reason_is_logged_again_after_a_while(
    waiting: Outage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "LOG_EACH", 0.0)
    for _ in range(3):
        waiting.log(BusUnavailable("away"))
    assert len(caplog.records) == 3


def test_many_reasons_fill_no_log(waiting: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for user in "abcdefghijkl":
        waiting.log(BusUnavailable(f"no room for {user}"))
    assert len(caplog.records) == outage.MAX_LINES


def test_bug_is_logged_with_its_traceback(
    waiting: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    waiting.log(KeyError("bug"))
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "Please report it" in record.getMessage()


async def test_reason_is_that_of_a_task_that_still_tries(waiting: Outage) -> None:
    ended, go_on = asyncio.Event(), asyncio.Event()
    ended.set()  # nobody pauses

    async def try_again(reason: str) -> None:
        await waiting.wait(0, BusMisconfigured(reason), ended)
        if reason == "a":
            await go_on.wait()
        waiting.over()

    assert waiting.reason == ""
    async with asyncio.TaskGroup() as group:
        for reason in "ab":
            group.create_task(try_again(reason))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.reason == "a"
        go_on.set()
    assert waiting.reason == ""


async def test_reason_of_a_bug_shows_nothing_of_a_record(waiting: Outage) -> None:
    ended = asyncio.Event()
    ended.set()
    await waiting.wait(0, KeyError("a payload"), ended)
    assert waiting.reason == "a bug in wsgateway; the log has more"


async def test_cancellation_of_what_is_awaited_is_an_outage() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    with pytest.raises(BusUnavailable), uncancelled(BusUnavailable):
        await future


async def test_cancellation_of_the_task_goes_on() -> None:
    async def wait() -> None:
        with uncancelled(BusUnavailable):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
