"""``daphne project.asgi:application`` in development, without `make run`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support import Gateway, process_alive, running, wait_for
from wsgateway.broker import embedded


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_nats_server_starts_and_ends_with_the_process(
    tmp_path: Path, server: str, number: signal.Signals
) -> None:
    store = tmp_path / "nats"
    gateway = Gateway(tmp_path, {"WSGATEWAY_EMBEDDED_STORE": str(store)}, server)
    with running(gateway):
        gateway.start()
        gateway.wait_for_line("connected to NATS")  # before the first socket
        async with gateway.connect("demo", "ann") as socket:
            await socket.send("hello")
            record = json.loads((store / "server.json").read_text())
            assert embedded.probe(record["port"]) == record["name"]
            pid = int(record["pid"])
        os.kill(gateway.pid, number)
        gateway.wait()
        wait_for(lambda: not process_alive(pid), what="nats-server ends")
        assert "Traceback" not in gateway.output
