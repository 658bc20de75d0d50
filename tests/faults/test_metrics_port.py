"""Several workers on one ``--metrics-port``: killed, frozen, stopped."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scrape import TOKEN, Samples, ask, scrape
from tests.support import (
    ROOT,
    Process,
    listening,
    process_alive,
    running,
    site_env,
    wait_for,
)
from wsgateway.broker.embedded import EmbeddedServer

Start = Callable[..., Process]
WORKER = "runservice", "counted", "--noreload"


@pytest.fixture
def start(tmp_path: Path, nats_server: EmbeddedServer, prefix: str) -> Iterator[Start]:
    """Start a command with these arguments, and wait until it is ready and serves metrics."""
    processes: list[Process] = []

    def begin(
        *arguments: str, command: tuple[str, ...] = WORKER, ready: str = "ready", **env: str
    ) -> Process:
        values = {
            "DEBUG": "1",
            "SECRET_KEY": "tests",
            "DJANGO_SETTINGS_MODULE": "tests.service_app.settings",
            "NATS_BROKER_URL": nats_server.url,
            "WSGATEWAY_PREFIX": prefix,
            "WSGATEWAY_SERVICES": "counted",
            "SERVICE_LOG": str(tmp_path / "log"),
            **env,
        }
        line = [sys.executable, "manage.py", *command, *arguments]
        process = Process(line, tmp_path / f"{len(processes)}.log", site_env(**values))
        processes.append(process)
        process.spawn()
        process.wait_for_line("metrics: http")
        process.wait_for_line(ready)
        return process

    yield begin
    for process in processes:
        process.kill()


def processes_of(samples: Samples) -> set[int]:
    return {int(labels["process"]) for labels, _ in samples.find("wsgateway_info")}


def seen(port: int) -> set[int]:
    """Return the processes that a port answers for."""
    return processes_of(scrape(port))


def test_port_answers_for_all_workers_and_goes_on_when_one_is_killed(
    start: Start, free_port: int
) -> None:
    workers = [start("--metrics-port", str(free_port)) for _ in range(3)]
    pids = {worker.pid for worker in workers}
    for _ in range(20):  # whichever of them the kernel chooses
        assert seen(free_port) == pids
    workers[0].kill()
    killed = time.monotonic()
    left = pids - {workers[0].pid}
    refused = 0
    while time.monotonic() - killed < 1.0:
        try:
            found = seen(free_port)
        except (OSError, http.client.HTTPException):  # it had the connection when it died
            refused += 1
            continue
        assert found == left
    assert refused <= 1
    samples = scrape(free_port)
    assert samples.get("wsgateway_metrics_processes", state="answered") == 2
    assert samples.get("wsgateway_metrics_processes", state="silent") == 0
    workers[1].stop()
    assert seen(free_port) == {workers[2].pid}
    for worker in (workers[0], workers[1]):
        worker.spawn()
    wait_for(lambda: len(seen(free_port)) == 3, 30, "those that began again")


def test_worker_that_stands_still_is_reported_by_the_others(start: Start, free_port: int) -> None:
    workers = [start("--metrics-port", str(free_port)) for _ in range(2)]
    frozen, other = workers
    frozen.send(signal.SIGSTOP)
    try:

        def answer() -> Samples | None:
            try:
                return scrape(free_port, timeout=4.0)
            except (OSError, http.client.HTTPException):  # the frozen one has this connection
                return None

        samples = wait_for(answer, 50, "an answer of the other")
        assert processes_of(samples) == {other.pid}
        assert samples.get("wsgateway_metrics_processes", state="silent") == 1
    finally:
        frozen.send(signal.SIGCONT)
    wait_for(lambda: len(seen(free_port)) == 2, 30, "both")


def test_token_holds_on_the_port_too(start: Start, free_port: int) -> None:
    start("--metrics-port", str(free_port), WSGATEWAY_METRICS_TOKEN=TOKEN)
    assert ask(free_port)[0] == 401
    assert ask(free_port, Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(free_port, "/", Authorization=f"Bearer {TOKEN}")[0] == 404
    assert ask(free_port, method="HEAD", Authorization=f"Bearer {TOKEN}")[::2] == (200, "")


def test_port_that_everybody_reaches_is_said_to_be_open(start: Start, free_port: int) -> None:
    process = start("--metrics-port", str(free_port), "--metrics-host", "0.0.0.0")
    assert "Everybody who can reach 0.0.0.0" in process.output
    assert ask(free_port)[0] == 200


def test_other_commands_serve_metrics_and_do_not_ask_the_broker(
    start: Start, tmp_path: Path
) -> None:
    """Their roles may not read streams, and each try would be a warning in the log."""
    database = f"sqlite:///{tmp_path / 'own.sqlite3'}"
    settings = {"DATABASE_URL": database, "DJANGO_SETTINGS_MODULE": "project.settings"}
    env = site_env(DEBUG="1", SECRET_KEY="tests", PUBSUB_BROKER="memory", **settings)
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], env=env, check=True)
    port = ("--metrics-port", "0")
    relay = start(*port, command=("runoutbox",), **settings)
    samples = scrape(port_of(relay))
    assert samples.get("wsgateway_outbox_rows", state="waiting") == 0
    assert samples.get("wsgateway_cluster_up", source="outbox") == 1
    assert not samples.find("wsgateway_cluster_up", source="broker")
    events = start(*port, command=("runevents", "--noreload"))
    samples = scrape(port_of(events))
    assert samples.get("wsgateway_events_signals_total") == 0
    assert not samples.find("wsgateway_cluster_up", source="broker")


FORKS = """
import os, sys, time, django
django.setup()
from wsgateway.metrics.server import MetricsServer
MetricsServer("127.0.0.1", int(sys.argv[1])).open()
child = os.fork()
if child:
    print(f"child {child} ", flush=True)
time.sleep(60)
"""


def test_child_of_a_killed_process_does_not_keep_the_port(tmp_path: Path, free_port: int) -> None:
    """It inherits the socket, and would be handed requests that it never answers."""
    env = site_env(DJANGO_SETTINGS_MODULE="tests.settings", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(free_port)]
    process = Process(command, tmp_path / "log", env)
    with running(process):
        process.spawn()
        process.wait_for_line("child ")
        child = int(process.output.partition("child ")[2].split()[0])
        try:
            assert listening(free_port)
            process.kill()
            assert process_alive(child)
            wait_for(lambda: not listening(free_port), 10, "nobody listens")
        finally:
            os.kill(child, signal.SIGKILL)


def port_of(process: Process) -> int:
    return int(process.output.partition("metrics: http://127.0.0.1:")[2].partition("/")[0])
