"""What workers say of themselves, on every broker. Killed and frozen ones are in `tests.faults`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import wsgateway
from tests.contract.conftest import Brokers
from tests.integration.workers import no_services, offer
from wsgateway import Message, Reject, Retry, declared
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.services import registry, status
from wsgateway.services.runner import Runner

__all__ = ["no_services"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_services", "brokers")


def quiet(text: str, /, **fields: object) -> None:
    """Print nothing."""


@asynccontextmanager
async def running() -> AsyncIterator[Broker]:
    """Run the registered services in this process, as ``runservice`` does; yield its broker."""
    runner = Runner(list(declared.registered.values()), None, None, quiet)
    task = asyncio.create_task(runner.run())
    broker = runtime.own().broker
    await broker.open()
    await broker.wait_ready()
    try:
        yield broker
    finally:
        runner.end()
        await task


async def one(condition: Callable[[status.Worker], Any] = lambda worker: True) -> status.Worker:
    """Return the only worker once it is as wanted."""
    async with asyncio.timeout(20):
        while True:
            found = await status.aworkers()
            if len(found) == 1 and condition(found[0]):
                assert found.complete
                return found[0]
            await asyncio.sleep(0.02)


async def test_says_who_it_is_and_what_it_has(brokers: Brokers) -> None:
    go_on = asyncio.Event()

    @registry.service("orders", concurrency=7)
    async def handle(message: Message) -> None:
        await go_on.wait()
        if message.text == "bad":
            raise Reject("it is wrong")
        if message.text == "again" and message.attempt == 1:
            raise Retry(after=0.01)

    async with running() as broker:
        idle = await one()
        assert (idle.version, idle.pid) == (wsgateway.__version__, os.getpid())
        assert idle.host == socket.gethostname()
        assert (idle.running, idle.busy, idle.concurrency) == ((), 0, 7)
        for user in ("ann", "bob"):
            await offer(broker, "good", user=user)
        busy = await one(lambda worker: worker.busy == 2)
        assert [each.user for each in busy.running] == ["ann", "bob"]
        assert busy.services["orders"].in_hand == 2
        go_on.set()
        await offer(broker, "bad", user="carol")
        await offer(broker, "again", user="dave")
        done = await one(lambda worker: worker.handled == 3)
        assert (done.rejected, done.retried, done.failed, done.busy) == (1, 1, 0, 0)
        assert done.services["orders"].handled == 3
        assert done.rates["handled"] > 0.0
        assert (done.id, done.started) == (idle.id, idle.started)
    later = await brokers.open()
    assert await status.ask_workers(later) == ()


async def test_many_running_handlers_are_cut_short(brokers: Brokers) -> None:
    go_on = asyncio.Event()

    @registry.service("orders", concurrency=150)
    async def handle(message: Message) -> None:
        await go_on.wait()

    async with running() as broker:
        for number in range(120):
            await offer(broker, "x", user=f"user-{number}")
        worker = await one(lambda worker: worker.busy == 120)
        assert len(worker.running) == 100
        assert [each.since for each in worker.running] == sorted(
            each.since for each in worker.running
        )
        go_on.set()


async def test_synchronous_code_asks_too(brokers: Brokers) -> None:
    with pytest.raises(RuntimeError, match="await aworkers"):
        status.workers()
    assert await asyncio.to_thread(status.workers) == ()
