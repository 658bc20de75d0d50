"""The one embedded nats-server that all processes of a project share during development.

It ends with the process that started it; if others use it, or if it dies alone, it is started
again. Production sets NATS_BROKER_URL instead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wsgateway.broker.embedded import (
    DEFAULT_MAX_PAYLOAD,
    FIRST_PORT,
    HOST,
    LAST_PORT,
    EmbeddedServer,
    find_server,
    probe,
)
from wsgateway.broker.ending import is_ending, note_end, reloader
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable, reason_of
from wsgateway.protocol.backoff import Backoff

__all__ = [
    "can_embed",
    "embedded_is_running",
    "embedded_url",
    "embedded_url_from_settings",
    "look_inside",
    "require_embedded",
    "stop_embedded",
]

logger = logging.getLogger("wsgateway.broker")

OURS = {"jetstream", "lock", "nats-server.json", "nats-server.log", "server.json"}
"""What a store contains."""
HEADER_ROOM = 64 * 1024
USUAL_PORT = 4222
"""NATS' own: programs that are told nothing else connect to it."""
BACKOFF = Backoff(initial=0.5, factor=2.0, cap=30.0, jitter=0.0)
"""Pauses between two checks that the shared server still listens."""

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
        port: 0 means the port of the last time, or else `USUAL_PORT`, or else one that follows
            from *store*; any free one if they are taken.
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
        _hide_from_git(store)
        record = _read_record(store)
        if record is not None and probe(record["port"]) == record["name"]:
            return f"nats://{HOST}:{record['port']}"
        owner = reloader()
        server = _start(
            (port,) if port else _ports(store, record),
            lambda port: EmbeddedServer(
                store,
                port=port,
                sync_interval=sync_interval,
                max_payload=max_payload,
                bound_to=owner,
            ),
        )
        if owner is None:
            _shared[store] = (os.getpid(), server)
        record = {"port": server.port, "name": server.name, "pid": server.pid}
        (store / "server.json").write_text(json.dumps(record))
        return server.url


def _ports(store: Path, record: dict[str, Any] | None) -> list[int]:
    """Return where a server on *store* may listen, the best first; 0: anywhere.

    The port of the last time comes first, because a process that shared the last server may still
    wait for it there.
    """
    last = [record["port"]] if record is not None else []
    return [*filter(_is_free, (*last, USUAL_PORT, _port_of(store))), 0]


def _start(ports: Sequence[int], make: Callable[[int], EmbeddedServer]) -> EmbeddedServer:
    """Start a server on the first of *ports* that nobody takes in between."""
    for port in ports[:-1]:
        try:
            return make(port).start()
        except BrokerUnavailable:
            if _is_free(port):  # then something else is wrong
                raise
    return make(ports[-1]).start()


def _hide_from_git(store: Path) -> None:
    """Make git ignore the store, as pytest and ruff do with theirs, unless it is somebody's folder.

    A store that is a folder of the project must not hide what else is in it.
    """
    found = {path.name for path in store.iterdir()}
    if found <= OURS:
        with contextlib.suppress(OSError), (store / ".gitignore").open("x") as file:
            file.write("# Made by wsgateway\n*\n")


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
        """Stop watching; waits for a start that has begun."""
        self._end.set()
        with self._starting:
            pass

    def _run(self) -> None:
        attempt = 0  # failures in a row
        while not self._end.wait(BACKOFF.delay(attempt)):
            if is_ending():  # nobody would end the server that is started now
                return
            if not _is_free(self._port):
                attempt = 0
                continue
            with self._starting:
                if self._end.is_set():
                    return
                attempt = 0 if self._start(BACKOFF.delay(attempt + 1)) else attempt + 1

    def _start(self, pause: float) -> bool:
        """Start the server again; say if it runs."""
        try:
            self._join(self._port)
        except Exception as exc:  # the next try may go well: a full disk, for example
            logger.error(
                "the embedded nats-server has ended, cannot be started, and is tried again in "
                "%.0f s: %s",
                pause,
                reason_of(exc),
            )
            return False
        logger.warning(
            "restarted the embedded nats-server, which had ended, on port %s", self._port
        )
        return True


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
            "the embedded nats-server listens on %s and keeps its data in %s. To look inside: %s",
            url,
            store,
            look_inside(url),
        )
    return url


def look_inside(url: str) -> str:
    """Return the command that shows what goes through the server at *url*."""
    return f"nats --server {url} subscribe '{settings.PREFIX}.>'"


def embedded_is_running() -> bool:
    """Say whether the project's embedded server runs. Starts nothing."""
    record = _read_record(settings.embedded_store)
    return record is not None and probe(record["port"]) == record["name"]


@atexit.register
def _end_with_process() -> None:
    note_end()
    stop_embedded()


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
