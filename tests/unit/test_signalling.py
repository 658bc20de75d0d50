"""Signals: one user's in order, several users' at once, whatever receivers do."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import django
import pytest
from django.dispatch import Signal

from tests.support import until
from wsgateway.events import signalling as module
from wsgateway.events.signalling import Signalling
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")


class Right:
    """The right to send signals, as the test says."""

    def __init__(self) -> None:
        self.possible = True
        self.term = 1
        self.known = asyncio.Event()
        self.known.set()

    async def settled(self, term: int) -> bool:
        await self.known.wait()
        return self.possible and term == self.term


@pytest.fixture
async def signalling() -> AsyncIterator[Signalling]:
    made = Signalling(Right())
    made.start()
    yield made
    await made.stop(1.0)


async def test_receivers_of_both_kinds_get_the_arguments(signalling: Signalling) -> None:
    signal, got = Signal(), []

    def receive(**kwargs: Any) -> None:
        got.append((threading.current_thread() is threading.main_thread(), kwargs["user"]))

    async def receive_async(**kwargs: Any) -> None:
        got.append((threading.current_thread() is threading.main_thread(), kwargs["service"]))

    signal.connect(receive)
    signal.connect(receive_async)
    signalling.send(signal, ANN, time=1)
    await until(lambda: len(got) == 2)
    assert sorted(got) == [(False, "ann"), (True, "orders")]


async def test_one_users_signals_wait_for_each_other_and_another_users_do_not(
    signalling: Signalling,
) -> None:
    signal, got, go = Signal(), [], asyncio.Event()

    async def receive(user: str, number: int, **kwargs: Any) -> None:
        if user == "ann" and number == 1:
            await go.wait()
        got.append((user, number))

    signal.connect(receive)
    other = next(
        inbox
        for inbox in (Inbox("orders", f"u{number}") for number in range(1000))
        if hash(inbox) % module.LANES != hash(ANN) % module.LANES
    )
    for number in (1, 2, 3):
        signalling.send(signal, ANN, number=number)
    signalling.send(signal, other, number=9)
    await until(lambda: got == [(other.user, 9)])
    go.set()
    await until(lambda: len(got) == 4)
    assert got[1:] == [("ann", 1), ("ann", 2), ("ann", 3)]


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError])
async def test_a_receiver_that_raises_is_logged_and_stops_nothing(
    signalling: Signalling, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    signal, got = Signal(), []

    async def broken(**kwargs: Any) -> None:
        if kwargs["number"] == 1:
            raise error

    async def receive(number: int, **kwargs: Any) -> None:
        got.append(number)

    signal.connect(broken)
    signal.connect(receive)
    signalling.send(signal, ANN, number=1)
    signalling.send(signal, ANN, number=2)
    await until(lambda: 2 in got)
    if error is asyncio.CancelledError and django.VERSION >= (6, 1):
        # Django's task group takes it for the end of the receiver's task, and tells nobody
        assert signalling.counts["failed"] == 0
        return
    assert error.__name__ in caplog.text
    assert signalling.counts["failed"] == 1
    ours = [vars(each) for each in caplog.records if each.name == "wsgateway.events"]
    assert all((each["service"], each["user"]) == ("orders", "ann") for each in ours)
    assert len(ours) == (error is asyncio.CancelledError)  # Django logs the other


async def test_a_synchronous_receiver_that_raises_is_logged_too(
    signalling: Signalling, caplog: pytest.LogCaptureFixture
) -> None:
    signal, got = Signal(), []

    def broken(**kwargs: Any) -> None:
        raise ZeroDivisionError

    def receive(number: int, **kwargs: Any) -> None:
        got.append(number)

    signal.connect(broken)
    signal.connect(receive)
    signalling.send(signal, ANN, number=1)
    await until(lambda: got == [1])
    assert "ZeroDivisionError" in caplog.text


async def test_what_receivers_cannot_keep_up_with_is_dropped_and_logged_once(
    signalling: Signalling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    signal, got, go = Signal(), [], asyncio.Event()

    async def receive(number: int, **kwargs: Any) -> None:
        await go.wait()
        got.append(number)

    signal.connect(receive)
    for number in range(6):
        signalling.send(signal, ANN, number=number)
    go.set()
    await until(lambda: got == [0, 1, 2])
    assert signalling.counts["dropped"] == 3
    assert [r.levelno for r in caplog.records if "too slow" in r.getMessage()] == [logging.ERROR]


async def test_who_loses_the_right_sends_nothing_that_waits() -> None:
    right, signal, got = Right(), Signal(), []
    signalling = Signalling(right)
    signalling.start()

    async def receive(number: int, **kwargs: Any) -> None:
        got.append(number)

    signal.connect(receive)
    right.known.clear()  # the connection is lost
    signalling.send(signal, ANN, number=1)
    await asyncio.sleep(0)
    right.possible = False  # another has it
    signalling.send(signal, ANN, number=2)
    right.known.set()
    await signalling.stop(5.0)
    assert got == []


async def test_a_signal_waits_until_it_is_known_who_may_send_it() -> None:
    """After each reconnect, what came until the next renewal of the lease was dropped."""
    right, signal, got = Right(), Signal(), []
    signalling = Signalling(right)
    signalling.start()

    async def receive(number: int, **kwargs: Any) -> None:
        got.append(number)

    signal.connect(receive)
    right.known.clear()
    signalling.send(signal, ANN, number=1)
    await asyncio.sleep(0.05)
    assert got == []
    right.known.set()
    await until(lambda: got == [1])
    right.known.clear()
    signalling.send(signal, ANN, number=2)
    right.term += 1  # it is ours again, but another may have had it
    right.known.set()
    signalling.send(signal, ANN, number=3)
    await until(lambda: got == [1, 3])
    await signalling.stop(5.0)


async def test_the_end_waits_for_receivers_but_not_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    signal, got, never = Signal(), [], asyncio.Event()
    signalling = Signalling(Right())
    signalling.start()

    async def receive(number: int, **kwargs: Any) -> None:
        if number == 2:
            await never.wait()
        await asyncio.sleep(0.05)
        got.append(number)

    signal.connect(receive)
    signalling.send(signal, ANN, number=1)
    await signalling.stop(5.0)
    assert got == [1]
    stuck = Signalling(Right())
    stuck.start()
    stuck.send(signal, ANN, number=2)
    await stuck.stop(0.05)
    assert got == [1]
    assert "1 signals were not sent" in caplog.text
