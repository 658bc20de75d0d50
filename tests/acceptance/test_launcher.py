"""`make run`: one command starts everything, one Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
import websockets.asyncio.client

from tests.support import ROOT, Process, listening, process_alive, running, site_env, wait_for
from tests.troubleshooting import Symptom
from wsgateway.broker import embedded


class Launched(Process):
    """The launcher with a store and a database of the test's own."""

    def __init__(self, folder: Path, port: int, command: list[str] | None = None) -> None:
        self.port = port
        self.store = folder / "nats"
        self.database = folder / "db.sqlite3"
        env = site_env(
            DATABASE_URL=f"sqlite:///{self.database}", WSGATEWAY_EMBEDDED_STORE=str(self.store)
        )
        run = [sys.executable, "manage.py", "rungateway", "--demo", "--port", str(port)]
        super().__init__(command or run, folder / "launcher.log", env)

    def start(self) -> Launched:
        self.log.write_text("")
        self.spawn()
        self.wait_for_line("Ctrl-C ends it", 40)
        return self

    @property
    def nats_port(self) -> int:
        return int(json.loads((self.store / "server.json").read_text())["port"])

    def nats_pids(self) -> list[int]:
        """Return the processes whose command line names this test's store."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if str(self.store) in command and process_alive(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def publish(self, text: str) -> str:
        command = [sys.executable, "manage.py", "publish", "service1", "user001", text]
        env = {**self.env, "DEBUG": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async def first_message(self) -> str | bytes:
        url = f"ws://127.0.0.1:{self.port}/ws/notification/user001/"
        headers = {"Cookie": "user=user001;service=service1"}
        async with websockets.asyncio.client.connect(
            url, additional_headers=headers, proxy=None, open_timeout=30
        ) as socket:
            return await socket.recv()


@pytest.fixture
def launched(tmp_path: Path, free_port: int) -> Iterator[Launched]:
    process = Launched(tmp_path, free_port)
    with running(process):
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_everything(launched: Launched, number: signal.Signals) -> None:
    launched.start()
    assert len(launched.nats_pids()) == 1
    launched.send(number)
    assert launched.wait(30) == 0
    assert launched.nats_pids() == []
    assert "Traceback" not in launched.output


def test_killed_launcher_takes_its_nats_server_along(launched: Launched) -> None:
    launched.start()
    launched.kill()
    wait_for(lambda: not launched.nats_pids(), what="nats-server ends")


async def test_sockets_stay_open_while_the_nats_server_is_started_again(
    launched: Launched,
) -> None:
    """Even if a command that joins at that moment starts it, and stops it when it ends."""
    launched.start()
    url = f"ws://127.0.0.1:{launched.port}/ws/notification/user001/"
    headers = {"Cookie": "user=user001;service=service1"}
    async with websockets.asyncio.client.connect(
        url, additional_headers=headers, proxy=None
    ) as socket:
        for text in ("one", "two"):
            for pid in launched.nats_pids():
                os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(launched.publish, text)
            assert await asyncio.wait_for(socket.recv(), 30) == text
    assert "restarted the embedded nats-server, which had ended" in launched.output
    launched.stop()
    assert launched.nats_pids() == []


@pytest.mark.timeout(120)  # two starts on a machine that may be busy
async def test_second_run_finds_its_data_again(launched: Launched) -> None:
    launched.start()
    assert launched.publish("before") == "stored at offset 1"
    with urllib.request.urlopen(f"http://127.0.0.1:{launched.port}/") as page:
        assert "Durable websockets" in page.read().decode()
    launched.stop(30)
    users = sqlite3.connect(launched.database)
    query = "select username, is_superuser from auth_user order by id"
    expected = [("ann", 0), ("bob", 0), ("admin", 1)]
    assert users.execute(query).fetchall() == expected
    port = launched.nats_port
    launched.start()
    assert launched.nats_port == port
    assert users.execute(query).fetchall() == expected
    users.close()
    assert await launched.first_message() == "before"


def test_without_demo_it_creates_no_users(launched: Launched) -> None:
    """In a project of one's own, the command put admin/admin into the database."""
    launched.command.remove("--demo")
    launched.start()
    with sqlite3.connect(launched.database) as database:
        assert database.execute("select count(*) from auth_user").fetchone() == (0,)
    database.close()
    assert "demo users" not in launched.output


async def run_nats(line: str, launched: Launched) -> None:
    """Run the ``nats`` command if it is there; otherwise do what it would do."""
    _, _, server, verb, subject, text = shlex.split(line)
    assert (server, verb) == (f"nats://127.0.0.1:{launched.nats_port}", "pub")
    path = f"{ROOT / '.cache' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if program := shutil.which("nats", path=path):
        done = [program, *shlex.split(line)[1:]]
        await asyncio.to_thread(subprocess.run, done, check=True, capture_output=True)
        return
    client = await nats.connect(server)
    await client.publish(subject, text.encode())
    await client.close()


def test_hints_are_commands_that_work(launched: Launched) -> None:
    """The printed ``nats pub`` could not reach the server, which listened on a random port."""
    launched.start()
    lines = [line.strip() for line in launched.output.splitlines()]
    assert "demo users  ann/ann, bob/bob, admin/admin" in lines
    assert f"Log in as ann at http://127.0.0.1:{launched.port}/demo/" in launched.output
    publish = next(line for line in lines if "manage.py publish" in line)
    nats_pub = next(line for line in lines if line.startswith("nats --server"))
    listen = next(line for line in lines if "websocat ws://" in line)
    client = subprocess.Popen(
        listen.replace("websocat ", "websocat -n "),
        shell=True,
        cwd=ROOT,
        env=launched.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    done = subprocess.run(
        publish, shell=True, cwd=ROOT, env=launched.env, capture_output=True, text=True
    )
    assert done.stdout == "stored at offset 1\n", done.stderr
    assert client.stdout is not None
    assert client.stdout.readline() == b"hello from Django\n"
    asyncio.run(run_nats(nats_pub, launched))
    assert client.stdout.readline() == b"hello from NATS\n"
    launched.stop()
    client.wait(30)
    client.stdout.close()


@pytest.mark.troubleshooting("cannot listen on … stop the program that uses the port")
def test_taken_port_gives_one_line(symptom: Symptom, launched: Launched) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", launched.port))
        other.listen()
        launched.spawn()
        assert launched.wait(30) == 1
    assert len(launched.output.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{launched.port}" in launched.output
    symptom.must_show_in(launched.output)
    assert not launched.store.exists()
    assert not launched.database.exists()


def test_make_run_is_the_launcher(tmp_path: Path, free_port: int) -> None:
    """The environment that runs this test stands in for .venv."""
    command = ["make", "-o", ".venv/.run", "run", f"BIN={Path(sys.executable).parent}"]
    launched = Launched(tmp_path, free_port, [*command, f"PORT={free_port}"])
    with running(launched):
        launched.start()
        assert listening(free_port)
        assert embedded.probe(launched.nats_port)
        # A terminal sends Ctrl-C to the whole group
        os.killpg(launched.pid, signal.SIGINT)
        launched.wait(30)
    assert launched.nats_pids() == []
    assert not listening(free_port)
