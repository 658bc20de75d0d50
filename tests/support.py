"""What tests start and talk to: gateway processes and websocket clients."""

from __future__ import annotations

import asyncio
import atexit
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import websockets.asyncio.client
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tests import LIMITS, SERVICES
from tests.forking import Forked, Forker, can_fork
from wsgateway.broker.embedded import free_port

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ("-p", "no:wsgateway", "-p", "wsgateway.testing.plugin")
"""Loads our fixtures in a pytest of its own, once, whether the package is installed or not."""
PAGE = os.sysconf("SC_PAGE_SIZE")
SERVERS = ["daphne", "uvicorn --loop uvloop", "uvicorn --loop asyncio"]
# Uvicorn's other implementations. Without wsproto, uvicorn cannot choose that.
SERVERS += [f"uvicorn --ws {name}" for name in ("websockets", "wsproto") if find_spec(name)]
"""ASGI servers, as `Gateway` takes them: each that the product knows, in all its ways."""


def wait_for(
    condition: Callable[..., Any], timeout: float = 30.0, what: str | Callable[[], str] = ""
) -> Any:
    """Return the first true result of *condition*; fail after *timeout* seconds. Blocking.

    *condition* is called without arguments; a lambda in a loop keeps its variables as defaults.
    *what* may be a function that returns the text, such as one with a log.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout} s: {text or condition}")
        time.sleep(0.02)


async def until(condition: Callable[..., Any], timeout: float = 30.0, what: str = "") -> Any:
    """Do the same without blocking."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        await asyncio.sleep(0.01)


async def close_soon(close: Callable[[], Awaitable[object]], timeout: float = 20.0) -> None:
    """Close a client, or fail: its server may be stopped, and the test's own time-out over."""
    try:
        async with asyncio.timeout(timeout):
            await close()
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s: {close}") from None


async def within(limit: float, attempt: Callable[[], Awaitable[float]]) -> None:
    """Assert that something takes at most *limit* seconds, at least once in three attempts.

    A busy machine delays some attempts; what waits for a timer that is too long fails all of them.

    Args:
        limit: In seconds.
        attempt: Does it, each time with something new, and returns how long it took.
    """
    took: list[float] = []
    while not took or min(took) > limit:
        assert len(took) < 3, f"not within {limit} s: {took}"
        took.append(await attempt())


@asynccontextmanager
async def hears(
    register: Callable[[Callable[[], None]], Any], timeout: float = 20.0
) -> AsyncIterator[None]:
    """Do what is inside, then wait until a callback is called, for example of ``bus.on_lost``.

    Args:
        register: Takes the callback and returns what ends it with ``close()``.
        timeout: Seconds.
    """
    heard = asyncio.Event()
    hook = register(heard.set)
    try:
        yield
        async with asyncio.timeout(timeout):
            await heard.wait()
    finally:
        hook.close()


def listening(port: int) -> bool:
    """Say whether something accepts connections on *port* of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def forget_connections() -> None:
    """Close this thread's database connections."""
    for connection in connections.all(initialized_only=True):
        BaseDatabaseWrapper.close(connection)  # SQLite's own keeps what is in memory


def process_alive(pid: int) -> bool:
    """Say whether a process with this id exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def site_env(**values: str) -> dict[str, str]:
    """Return an environment for a child process: this one's without its site settings."""
    ours = ("WSGATEWAY_", "NATS_", "PUBSUB_", "DJANGO_", "SECURE_", "COV_", "PYTEST_")
    names = {"DEBUG", "SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "PORT", "HTTPS"}
    names |= {"STATIC_ROOT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in names}
    return {**kept, "PYTHONUNBUFFERED": "1", **values}


@cache
def forker() -> Forker:
    """Return what starts servers, workers and commands, for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="wsgateway-forker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Forker(Path(sys.executable), folder, site_env(PYTHONPATH=str(ROOT)))
    atexit.register(made.close)
    return made


class Process:
    """A child process with its output in a file.

    A server or a worker starts in a fork of a process that has imported what it needs, which saves
    most of the time; see `can_fork`. What users run (``make run``, the Procfile, a new project)
    starts as they start it.

    Args:
        command: Program and arguments.
        log: Where its output goes, appended.
        env: Its whole environment.
        cwd: Where it runs.
    """

    def __init__(
        self, command: list[str], log: Path, env: dict[str, str], cwd: Path = ROOT
    ) -> None:
        self.command = command
        self.log = log
        self.env = env
        self.cwd = cwd
        self.popen: subprocess.Popen[bytes] | Forked | None = None

    forks = True
    """Whether that may be a fork. Benchmarks say no: they measure what users run."""

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def spawn(self) -> None:
        if self.forks and self.cwd == ROOT and can_fork(self.command, self.env, site_env()):
            self.popen = forker().fork(self.command[1:], self.cwd, self.env, self.log)
            return
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_line(self, text: str, timeout: float = 30.0) -> None:
        wait_for(lambda: text in self.output or self._ended(), timeout, f"{text!r} in {self.log}")

    def _ended(self) -> bool:
        if self.running:
            return False
        raise AssertionError(f"{self.command} has ended:\n{self.output}")

    def send(self, number: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        assert self.popen is not None
        return self.popen.wait(timeout)

    @property
    def memory(self) -> int:
        """Bytes of memory that the process holds now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def stop(self, timeout: float = 20.0) -> None:
        """End it with SIGTERM; fail if that takes longer than *timeout* seconds."""
        if self.running:
            self.send(signal.SIGTERM)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.command} ignored SIGTERM:\n{self.output}") from None

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(20.0)


class PostgresServer:
    """A PostgreSQL.

    Args:
        folder: Where its data and its log are; *user* can write there.
        initdb: The program; ``postgres`` is beside it.
        user: Who runs it; None: who runs this.
    """

    def __init__(self, folder: Path, initdb: Path, user: str | None) -> None:
        self._folder = folder
        self._program = initdb.with_name("postgres")
        self._user = user
        self._port = free_port()
        self.url = f"postgresql://tests@127.0.0.1:{self._port}"
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "tests", "-A", "trust", "--no-sync"],
            user=user,
            cwd=folder,
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        ready = "database system is ready to accept connections"
        path = self._folder / "log"
        before = path.read_text().count(ready) if path.exists() else 0
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", "", "-F"]
        with path.open("ab") as log:
            self._popen = subprocess.Popen(
                [self._program, "-D", self._folder / "data", *options],
                user=self._user,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: path.read_text().count(ready) > before, 30, ready)

    def stop(self) -> None:
        """Stop it; it ends its connections."""
        self._popen.send_signal(signal.SIGINT)
        self._popen.wait(20)


class Gateway(Process):
    """A gateway process: daphne, or uvicorn, with an ASGI application.

    Args:
        folder: Where its log goes.
        env: What it needs besides DEBUG=1: at least NATS_BROKER_URL and WSGATEWAY_PREFIX.
        server: ``daphne`` or ``uvicorn``; options of its command line may follow.
        port: None chooses a free one.
        application: The ASGI application, as servers want it.
    """

    def __init__(
        self,
        folder: Path,
        env: dict[str, str],
        server: str = "daphne",
        port: int | None = None,
        application: str = "project.asgi:application",
    ) -> None:
        self.port = port or free_port()
        python = [sys.executable, "-m"]
        commands = {
            "daphne": [*python, "daphne", "-b", "127.0.0.1", "-p", str(self.port)],
            "uvicorn": [*python, "uvicorn", "--port", str(self.port), "--no-access-log"],
        }
        name, *options = server.split()
        command = [*commands[name], *options, application]
        ours = {"DEBUG": "1", "SECRET_KEY": "tests", "WSGATEWAY_SERVICES": ",".join(SERVICES)}
        limits = {name: str(value) for name, value in LIMITS.items()}
        full = site_env(**{**ours, **limits, **env})
        super().__init__(command, folder / f"gateway-{self.port}.log", full)

    def start(self, timeout: float = 30.0) -> Gateway:
        """Start it and wait until it accepts connections."""
        self.spawn()
        wait_for(lambda: listening(self.port) or self._ended(), timeout, f"{self.command} listens")
        return self

    def restart(self) -> None:
        """Stop it and start it on the same port."""
        self.stop()
        self.start()

    def ws(self, path: str) -> str:
        """Return a websocket URL."""
        return f"ws://127.0.0.1:{self.port}{path}"

    def http(self, path: str) -> str:
        """Return an HTTP URL."""
        return f"http://127.0.0.1:{self.port}{path}"

    def connect(
        self,
        service: str,
        user: str,
        *,
        query: str = "",
        path: str | None = None,
        **options: Any,
    ) -> websockets.asyncio.client.connect:
        """Open a websocket as plain cookies say: ``async with gateway.connect(…) as ws``."""
        headers = {"Cookie": f"service={service}; user={user}"}
        options.setdefault("additional_headers", headers)
        options.setdefault("max_size", None)
        options.setdefault("open_timeout", 30)
        options.setdefault("proxy", None)
        url = self.ws(path or f"/ws/{service}/{user}/") + query
        return websockets.asyncio.client.connect(url, **options)


def masked(frame: str | bytes) -> bytes:
    """Return a small frame as it goes over the wire; "websocket ping" is one of the protocol."""
    if frame == "websocket ping":
        opcode, payload = 9, b"p" * 125
    else:
        opcode, payload = (1, frame.encode()) if isinstance(frame, str) else (2, frame)
    return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def deaf_socket(
    gateway: Gateway,
    service: str,
    user: str,
    *,
    v1: bool = False,
    context: ssl.SSLContext | None = None,
) -> socket.socket:
    """Return an open websocket whose kernel takes little, as a bare TCP or TLS socket."""
    deaf = knock(gateway, service, user, v1=v1, context=context)
    assert b" 101 " in deaf.recv(1024)
    return deaf


def knock(
    gateway: Gateway,
    service: str,
    user: str,
    *,
    v1: bool = False,
    context: ssl.SSLContext | None = None,
) -> socket.socket:
    """Return the same before its handshake is answered."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.settimeout(10)
    deaf.connect(("127.0.0.1", gateway.port))
    if context is not None:
        deaf = context.wrap_socket(deaf, server_hostname="127.0.0.1")
    subprotocol = "Sec-WebSocket-Protocol: wsgateway.v1\r\n" if v1 else ""
    deaf.sendall(
        f"GET /ws/{service}/{user}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Sec-WebSocket-Version: 13\r\n{subprotocol}"
        f"Cookie: service={service}; user={user}\r\n\r\n".encode()
    )
    return deaf


def unread(deaf: socket.socket) -> bool:
    """Say whether something waits to be read."""
    return bool(select.select([deaf], [], [], 0)[0])


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """End *process* whatever happens."""
    try:
        yield process
    finally:
        process.kill()
