"""Messages that end the worker's process: exactly they are set aside."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.test_service_workers import WorkerProcess, lines, services, worker
from tests.support import until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services import deadletters

__all__ = ["services", "worker"]  # fixtures


async def offer(broker: NatsBroker, user: str, text: str) -> None:
    await broker.offer(Inbox("deadly", user), Frame.of(text), f"{user}-{text}")


async def dead(broker: NatsBroker) -> list[deadletters.DeadLetter]:
    return [letter async for letter in deadletters.letters(broker)]


async def waiting(broker: NatsBroker) -> int:
    info = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.queue('deadly')}")
    return int(info["state"]["messages"])


@asynccontextmanager
async def supervised(process: WorkerProcess) -> AsyncIterator[list[int]]:
    """Start *process* again whenever it ends; yields how it ended each time."""
    codes: list[int] = []
    ending = False

    async def keep() -> None:
        while not ending:
            process.spawn()
            codes.append(await asyncio.to_thread(process.wait, 120))

    task = asyncio.create_task(keep())
    try:
        yield codes
    finally:
        ending = True
        await asyncio.to_thread(process.stop)
        await task


@pytest.mark.timeout(180)
@pytest.mark.parametrize("poison", ["exit", "task-exits"])
async def test_message_that_ends_its_process_is_set_aside_alone(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path, poison: str
) -> None:
    """It ended one worker after the other, and nothing looked at how often it had come."""
    for number in range(100):
        await offer(broker, f"u{number}", "first")
    await offer(broker, "ann", poison)
    await offer(broker, "ann", "after it")
    for number in range(100):
        await offer(broker, f"u{number}", "second")
    async with supervised(worker("deadly", WSGATEWAY_MAX_DELIVER="3")) as codes:
        async with asyncio.timeout(120):
            while await waiting(broker):
                await asyncio.sleep(0.2)
        ended = len(codes)
    (letter,) = await dead(broker)
    assert (letter.inbox.user, letter.payload) == ("ann", poison.encode())
    # The broker also counts a delivery that a worker did not live to handle. Nobody can tell those
    # from the ones that ended a process, so there may be more attempts than ended processes.
    assert 1 <= ended <= letter.attempts
    assert letter.attempts >= 3
    assert "the worker's process ended while it handled this message" in letter.error
    handled = {(user, text) for _, user, text, *_ in lines(tmp_path, "end")}
    assert len(handled) == 201


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_ten_rolling_restarts_set_exactly_the_deadly_one_aside(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """Each restart delivers a backlog once more, which must not use up anybody's tries."""
    users, each = 40, 10
    for number in range(each):
        for user in range(users):
            await offer(broker, f"u{user}", str(number))
    await offer(broker, "ann", "exit")
    env = {"WSGATEWAY_MAX_DELIVER": "3", "SERVICE_PAUSE": "0.5"}
    processes = [worker("deadly", **env), worker("deadly", **env)]
    async with supervised(processes[0]) as one, supervised(processes[1]) as two:
        for number in range(10):
            process, codes = processes[number % 2], (one, two)[number % 2]
            ended = len(codes)
            await until(process.ready_file.exists, 60, "ready")
            process.send(signal.SIGTERM)
            await until(lambda c=codes, n=ended: len(c) > n, 60, "ended")
        async with asyncio.timeout(200):
            while await waiting(broker):
                await asyncio.sleep(0.2)
    assert [(d.inbox.user, d.payload) for d in await dead(broker)] == [("ann", b"exit")]
    handled = {(user, text) for _, user, text, *_ in lines(tmp_path, "end")}
    assert len(handled) == users * each
    assert all(attempt == "1" for *_, attempt in lines(tmp_path, "begin") if attempt.isdigit())
