"""``runservice`` in development: restarts when code changes."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync

from tests.support import ROOT, Process, running, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

HANDLER = """
from pathlib import Path
from wsgateway import service

@service("changing")
def handle(message):
    Path({log!r}).open("a").write({word!r} + message.text + " ")
"""


@async_to_sync
async def offer(text: str) -> None:
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    await broker.offer(Inbox("changing", "ann"), Frame.of(text), f"reload-{text}")
    await broker.close()


@contextlib.contextmanager
def whole_group(process: Process) -> Iterator[None]:
    """Leave nothing of the reloader and its child, whatever happens."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def change(file: Path, code: str, is_seen: Callable[[], bool]) -> None:
    """Write a file, and touch it until the reloader has noticed.

    It sees changes after its first look only, which is later than "ready".
    """
    file.write_text(code)
    stamps = itertools.count(file.stat().st_mtime + 1)

    def is_noticed() -> bool:
        if not is_seen():
            stamp = next(stamps)
            os.utime(file, (stamp, stamp))
            return False
        return True

    wait_for(is_noticed, 30, "the reloader notices")


def test_new_code_handles_what_comes_after_the_change(
    tmp_path: Path, nats_server: EmbeddedServer, prefix: str, nats_settings: Any
) -> None:
    nats_settings.WSGATEWAY_SERVICES = ["changing"]
    log, app = tmp_path / "handled", tmp_path / "changing"
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "settings.py").write_text(
        "from project.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'changing']\n"
        "WSGATEWAY_SERVICES = None\n"
    )
    handler = app / "ws_services.py"
    handler.write_text(HANDLER.format(log=str(log), word="old"))
    log.touch()
    env = site_env(
        DEBUG="1",
        SECRET_KEY="tests",
        DJANGO_SETTINGS_MODULE="changing.settings",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONWARNINGS="default::ResourceWarning",
        NATS_BROKER_URL=nats_server.url,
        WSGATEWAY_PREFIX=prefix,
        DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}",
    )
    command = [sys.executable, str(ROOT / "manage.py"), "runservice", "changing"]
    with running(Process(command, tmp_path / "log", env)) as process, whole_group(process):
        process.spawn()
        process.wait_for_line("changing: ready", 30)
        offer("1")
        wait_for(lambda: log.read_text() == "old1 ", 20)
        new = HANDLER.format(log=str(log), word="newer")
        change(handler, new, lambda: process.output.count("changing: ready") == 2)
        offer("2")
        wait_for(lambda: log.read_text() == "old1 newer2 ", 20)
        assert "Traceback" not in process.output
        # A mistake once ended the command, when runserver waits until it is corrected
        broken = new.replace('@service("changing")', '@service("changing", nonsense=1)')
        change(handler, broken, lambda: "unexpected keyword argument" in process.output)
        change(handler, new, lambda: process.output.count("changing: ready") == 3)
        offer("3")
        wait_for(lambda: log.read_text() == "old1 newer2 newer3 ", 20)
        process.send(signal.SIGTERM)
        process.wait(20)
        # Django's reloader killed the last one
        assert process.output.count("changing: ended") == process.output.count("changing: ready")
        assert "unclosed event loop" not in process.output  # as `python -X dev` showed it


def test_port_that_is_taken_ends_the_command_in_one_line(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """It printed a traceback and went on, without doing anything, until code changed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = site_env(
            DEBUG="1",
            SECRET_KEY="tests",
            NATS_BROKER_URL=nats_server.url,
            DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}",
        )
        command = [sys.executable, str(ROOT / "manage.py"), "runservice", "--metrics-port"]
        command.append(str(taken.getsockname()[1]))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "CommandError: cannot serve metrics at port" in done.stderr
    assert "Traceback" not in done.stderr
