"""The two systems of the benchmark `http`: wsgateway with NATS, and Pushpin."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path
from string import Template
from typing import Protocol

from benchmarks.load import resident
from benchmarks.metrics import cpu_seconds
from tests.support import ROOT, Gateway, Process, listening, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port

__all__ = ["Backend", "Ours", "Pushpin", "System", "cpu", "memory", "missing", "site"]

CONFIG = Template(
    """
[global]
include={libdir}/internal.conf
rundir=$run
ipc_prefix=bench-
port_offset=0

[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:$port
logdir=$run
log_level=1
client_buffer_size=8192
client_maxconn=50000
condure_bin=condure
zurl_bin=zurl

[proxy]
routesfile=routes
zurl_out_specs=ipc://{rundir}/{ipc_prefix}zurl-in
zurl_out_stream_specs=ipc://{rundir}/{ipc_prefix}zurl-in-stream
zurl_in_specs=ipc://{rundir}/{ipc_prefix}zurl-out
sig_key=benchmark
updates_check=off

[handler]
push_in_spec=tcp://127.0.0.1:$pull
push_in_sub_specs=tcp://127.0.0.1:$sub
push_in_http_addr=127.0.0.1
push_in_http_port=$control
push_in_http_max_body_size=1000000
command_spec=tcp://127.0.0.1:$command
# The packaged values, 2500 and 25000, limit the rate, and drop what exceeds it
message_rate=0
message_hwm=1000000
"""
)
"""As Debian's package has it, with its own zurl, other ports, and without its limit of the rate."""


def missing() -> str:
    """Return what Pushpin lacks here; "" if it can run."""
    programs = ("pushpin", "pushpin-proxy", "pushpin-handler", "condure", "zurl")
    lacking = [name for name in programs if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)}; try: apt-get install pushpin" if lacking else ""


class System(Protocol):
    """What serves readers, and takes what is published.

    Attributes:
        port: Where readers connect.
        publish: Options that tell the publisher where to publish, see `http_publisher`.
    """

    port: int
    publish: dict[str, str | int]

    def start(self) -> None:
        """Start it and wait until it listens."""

    def kill(self) -> None:
        """End the gateway with SIGKILL; what stores messages goes on."""

    def revive(self) -> None:
        """Start the gateway on the same ports, as a supervisor does."""

    def close(self) -> None:
        """End everything."""

    def pids(self) -> dict[str, int]:
        """Return its processes by name."""


def memory(system: System) -> dict[str, float]:
    """Return the resident memory of each process, MB."""
    return {name: resident(pid) / 2**20 for name, pid in system.pids().items()}


def cpu(system: System) -> float:
    """Return the CPU time of all processes, seconds."""
    return sum(map(cpu_seconds, system.pids().values()))


class Backend(Process):
    """The backend of both: `http_app.backend` on uvicorn."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--port", str(self.port), "--no-access-log"]
        application = "benchmarks.http_app.backend:application"
        super().__init__([*command, application], folder / "backend.log", site_env())

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.spawn()
        wait_for(lambda: listening(self.port), 30, "the backend listens")


class Ours:
    """One gateway, which also serves the server API; NATS; and, if wanted, one worker.

    Args:
        folder: For stores, logs and the database.
        server: ``daphne`` or ``uvicorn``.
        backend: Where its webhook posts.
        key: Of the server API.
        worker: Whether something posts to the webhook.
    """

    def __init__(
        self, folder: Path, server: str, backend: Backend, key: str, *, worker: bool = False
    ) -> None:
        self.nats = EmbeddedServer(folder / f"nats-{secrets.token_hex(4)}", sync_interval="2m")
        self._folder = folder
        self._server = server
        self._backend = backend
        self._has_worker = worker
        self._worker: Process | None = None
        self.port = free_port()
        self.publish: dict[str, str | int] = {"system": "ours", "port": self.port, "key": key}

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.nats.__enter__()
        env = {
            "NATS_BROKER_URL": self.nats.url,
            "WSGATEWAY_PREFIX": "bench",
            **site(self._folder, self._backend),
        }
        self._gateway = Gateway(self._folder, env, self._server, port=self.port).start(60)
        if self._has_worker:
            command = [sys.executable, "manage.py", "runservice", "bench", "--noreload"]
            log = self._folder / f"worker-{self.port}.log"
            self._worker = Process(command, log, self._gateway.env, ROOT)
            self._worker.spawn()
            self._worker.wait_for_line("ready", 60)

    def kill(self) -> None:
        """End the gateway with SIGKILL."""
        self._gateway.kill()

    def revive(self) -> None:
        """Start the gateway again."""
        self._gateway.spawn()

    def close(self) -> None:
        """End everything."""
        if self._worker is not None:
            self._worker.kill()
        self._gateway.kill()
        self.nats.stop()

    def pids(self) -> dict[str, int]:
        """Return its processes by name."""
        found = {self._server: self._gateway.pid, "nats-server": self.nats.pid}
        if self._worker is not None:
            found["runservice"] = self._worker.pid
        return found


def site(folder: Path, backend: Backend) -> dict[str, str]:
    """Return what processes of the benchmark's site share."""
    return {
        "DJANGO_SETTINGS_MODULE": "benchmarks.http_app.settings",
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
        "BENCH_BACKEND": f"http://127.0.0.1:{backend.port}/webhook/bench/",
    }


class Pushpin:
    """Pushpin as its package runs it: five processes.

    Args:
        folder: For its configuration, sockets and logs.
        transport: What its readers use.
        backend: What it asks about connections.
    """

    def __init__(self, folder: Path, backend: Backend) -> None:
        run = folder / f"pushpin-{secrets.token_hex(4)}"
        run.mkdir()
        self.port, control = free_port(), free_port()
        self.publish: dict[str, str | int] = {"system": "pushpin", "port": control}
        ports = {"port": self.port, "control": control}
        ports |= {name: free_port() for name in ("pull", "sub", "command")}
        (run / "pushpin.conf").write_text(CONFIG.substitute(ports, run=run))
        (run / "routes").write_text(f"* 127.0.0.1:{backend.port},over_http\n")
        command = ["pushpin", "--config", str(run / "pushpin.conf")]
        self._process = Process(command, run / "output", site_env(), run)
        self._ports = (self.port, control)

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.revive()
        wait_for(lambda: all(map(listening, self._ports)), 30, "pushpin listens")
        wait_for(lambda: len(self.pids()) == 5, 10, "all of Pushpin's processes run")
        wait_for(self._answers, 30, "pushpin answers")  # some time after it listens

    def _answers(self) -> bool:
        address = ("127.0.0.1", self.port)
        with contextlib.suppress(OSError), socket.create_connection(address, 1) as probe:
            probe.settimeout(1)
            probe.sendall(b"GET /sse/probe/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return b" 200 " in probe.recv(100)
        return False

    def revive(self) -> None:
        """Start all of it again."""
        self._process.spawn()

    def kill(self) -> None:
        """End all of it with SIGKILL. Each of its processes has a group of its own."""
        for pid in self.pids().values():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        # Its children end a moment later; while one of them has a port, it does not start again
        wait_for(lambda: not any(map(listening, self._ports)), 10, "Pushpin's ports are free")

    def close(self) -> None:
        """End everything."""
        if self._process.running:
            self.kill()

    def pids(self) -> dict[str, int]:
        """Return its processes by name."""
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
        return {"pushpin": parent, **{name: pid for pid, name in names.items()}}
