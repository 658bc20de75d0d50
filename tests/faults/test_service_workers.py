"""Workers killed with SIGKILL: nothing lost, each user's first deliveries in order."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Process, site_env, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.management.exits import Exit
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

USERS, EACH = 12, 25


class WorkerProcess(Process):
    """``manage.py runservice`` with the tests' services."""

    def __init__(self, folder: Path, name: str, service: str, env: dict[str, str]) -> None:
        self.ready_file = folder / f"{name}.ready"
        command = [sys.executable, "manage.py", "runservice", service, "--noreload"]
        command += ["--ready-file", str(self.ready_file)]
        super().__init__(command, folder / f"{name}.log", env)

    async def start(self) -> WorkerProcess:
        self.ready_file.unlink(missing_ok=True)
        await asyncio.to_thread(self.spawn)
        await until(lambda: self.ready_file.exists() or self._ended(), 30, "ready")
        return self


@pytest.fixture(autouse=True)
def services(nats_settings: Any) -> None:
    """Declare what the workers do."""
    nats_settings.WSGATEWAY_SERVICES = ["counted", "deadly", "threaded"]


@pytest.fixture
def worker(
    tmp_path: Path, nats_server: EmbeddedServer, prefix: str
) -> Iterator[Callable[..., WorkerProcess]]:
    workers: list[WorkerProcess] = []

    def make(service: str = "counted", **env: str) -> WorkerProcess:
        values = {
            "DEBUG": "1",
            "SECRET_KEY": "tests",
            "DJANGO_SETTINGS_MODULE": "tests.service_app.settings",
            "NATS_BROKER_URL": nats_server.url,
            "WSGATEWAY_PREFIX": prefix,
            "WSGATEWAY_ACK_WAIT": "1",
            "SERVICE_LOG": str(tmp_path / "service.log"),
            "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
            **env,
        }
        process = WorkerProcess(tmp_path, f"worker{len(workers)}", service, site_env(**values))
        workers.append(process)
        return process

    yield make
    for process in workers:
        process.kill()


async def send(broker: NatsBroker, service: str, numbers: range) -> None:
    for number in numbers:
        await asyncio.gather(
            *(
                broker.offer(Inbox(service, f"u{user}"), Frame.of(str(number)), f"{user}.{number}")
                for user in range(USERS)
            )
        )


def lines(folder: Path, kind: str) -> list[list[str]]:
    """Return process id, user, text and attempt of each line of *kind*."""
    log = folder / "service.log"
    found = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in found if line.startswith(f"{kind} ")]


def handled(folder: Path) -> set[tuple[str, str]]:
    return {(user, text) for _, user, text, _ in lines(folder, "end")}


async def test_workers_killed_one_after_the_other(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    one, two = await asyncio.gather(worker().start(), worker().start())
    await send(broker, "counted", range(EACH))
    await until(lambda: len(handled(tmp_path)) > 40, 30, "first third")
    one.kill()
    await until(lambda: len(handled(tmp_path)) > 120, 30, "second third")
    two.kill()
    three = await worker().start()
    every = {(f"u{user}", str(number)) for user in range(USERS) for number in range(EACH)}
    await until(lambda: handled(tmp_path) == every, 40, "every message handled")
    three.stop()
    first: dict[str, list[int]] = {}
    for _, user, text, _ in lines(tmp_path, "begin"):
        if int(text) not in first.setdefault(user, []):
            first[user].append(int(text))
    assert first == {f"u{user}": list(range(EACH)) for user in range(USERS)}
    twice = len(lines(tmp_path, "end")) - len(every)
    assert twice <= 2 * 16  # at most what two killed workers had finished, but not acknowledged
    info = await broker.jetstream.api(f"STREAM.INFO.{broker.subjects.queue('counted')}")
    assert info["state"]["messages"] == 0


async def test_no_user_is_handled_twice_at_a_time(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    env = {"WSGATEWAY_ACK_WAIT": "30"}  # nobody dies, so nothing may come twice
    await asyncio.gather(worker(**env).start(), worker(**env).start())
    await send(broker, "counted", range(10))
    await until(lambda: len(lines(tmp_path, "end")) == USERS * 10, 30, "every message handled")
    active: set[str] = set()
    log = (tmp_path / "service.log").read_text().splitlines()
    for kind, _, user, _, _ in map(str.split, log):
        if kind == "begin":
            assert user not in active
            active.add(user)
        else:
            active.remove(user)
    assert len({pid for pid, *_ in lines(tmp_path, "end")}) == 2


async def test_graceful_end_and_broker_restart(
    worker: Callable[..., WorkerProcess],
    own_server: EmbeddedServer,
    nats_settings: Any,
    tmp_path: Path,
) -> None:
    nats_settings.NATS_BROKER_URL = own_server.url
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        process = await worker("threaded", NATS_BROKER_URL=own_server.url).start()
        await send(broker, "threaded", range(3))
        await until(lambda: len(handled(tmp_path)) == 3 * USERS, 30, "before the restart")
        await asyncio.to_thread(own_server.kill)
        await own_server.astart()
        await broker.wait_ready(20)
        await send(broker, "threaded", range(3, 6))
        await until(lambda: len(handled(tmp_path)) == 6 * USERS, 30, "after the restart")
        process.stop()
        assert "threaded: ended (" in process.output
        assert not process.ready_file.exists()
        assert "Traceback" not in process.output
    finally:
        await broker.close()


def test_worker_that_never_became_ready_ends_when_it_is_told(
    worker: Callable[..., WorkerProcess], free_port: int
) -> None:
    """It waited for its workers to be ready, and heard SIGTERM only then."""
    process = worker("counted", NATS_BROKER_URL=f"nats://127.0.0.1:{free_port}")
    process.spawn()
    process.wait_for_line("cannot reach NATS", 30)
    process.stop()
    assert "counted: ended (no messages)" in process.output
    assert "Traceback" not in process.output


def test_unknown_service_is_named(worker: Callable[..., WorkerProcess]) -> None:
    process = worker("nonsense")
    process.spawn()
    assert process.wait(30) == Exit.UNKNOWN
    assert "no service 'nonsense'; known: " in process.output
    assert "counted, deadly, demo" in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("service", ["hangs", "async_hangs"])
async def test_worker_whose_handler_hangs_ends_in_time(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path, service: str
) -> None:
    """Python waits for threads at its end: the process stayed until it was killed."""
    process = await worker(service, WSGATEWAY_CLOSE_TIMEOUT="0.5").start()
    await broker.offer(Inbox(service, "ann"), Frame.of("x"), "hangs")
    await until(lambda: lines(tmp_path, "begin"), 20)
    await asyncio.to_thread(process.stop)
    assert process.popen is not None
    assert process.popen.returncode == 0
    assert "handlers that still run in threads" in process.output


async def test_second_signal_ends_a_worker_at_once(
    broker: NatsBroker, worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    process = await worker("hangs", WSGATEWAY_CLOSE_TIMEOUT="60").start()
    await broker.offer(Inbox("hangs", "ann"), Frame.of("x"), "hangs")
    await until(lambda: lines(tmp_path, "begin"), 20)
    process.send(signal.SIGTERM)
    await asyncio.sleep(0.2)  # two signals at once would be one
    process.send(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 128 + signal.SIGTERM
