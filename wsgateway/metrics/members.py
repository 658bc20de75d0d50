"""The processes that share a port: each answers the others on a Unix socket in a private folder.

Prometheus asks a port, and any of the processes behind it may be the one that answers. That one
asks the others. None of them leads, so nothing has to be taken over when one is killed: the next
who asks finds that nobody listens on its socket, and removes that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import socketserver
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from wsgateway.broker import runtime
from wsgateway.exceptions import reason_of

__all__ = ["Answers", "Member", "private_folder", "serve", "stop"]

logger = logging.getLogger("wsgateway")

ANSWER_WITHIN = 1.0
"""Seconds after which a process counts as silent: it hangs, or its disk does."""
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes that a process may answer with."""
ASKED_AT_ONCE = 16
"""Processes that are asked side by side."""

_serving: set[socketserver.BaseServer] = set()
"""What listens here; a forked child must not keep it open."""


class Answers(NamedTuple):
    """What the other processes said.

    Attributes:
        by_process: Their answers, by process.
        silent: How many gave none.
    """

    by_process: dict[str, bytes]
    silent: int


def serve(server: socketserver.BaseServer, name: str) -> None:
    """Let *server* answer in a thread, until its ``shutdown`` is called or the process ends."""
    _serving.add(server)
    run = server.serve_forever
    threading.Thread(target=run, kwargs={"poll_interval": 0.1}, name=name, daemon=True).start()


def stop(server: socketserver.BaseServer) -> None:
    """Let *server* answer no more; nothing to do in a forked child."""
    if server not in _serving:
        return
    _serving.discard(server)
    server.shutdown()
    server.server_close()


def _after_fork() -> None:
    """Close the child's copies: otherwise they would go on to take what nobody answers."""
    for server in _serving:
        server.server_close()
    _serving.clear()


runtime.on_fork(_after_fork)


class Member:
    """This process among those that share a port. Use it from any thread.

    Args:
        port: What they share, for example ``127.0.0.1:9100``.
        answer: Returns what this process says.
    """

    def __init__(self, port: str, answer: Callable[[], bytes]) -> None:
        self._port = port
        self._answer = answer
        self._folder: Path | None = None  # None: it could not be used, so nobody is asked
        self._path: Path | None = None
        self._server: _Server | None = None
        self._pid = os.getpid()  # a forked child must leave the socket to its parent

    def open(self) -> None:
        """Begin to answer. If that is impossible, the log says why, and the others stay unknown."""
        try:
            try:
                self._listen()
            except FileNotFoundError:  # the last of the others has just removed the folder
                self._listen()
        except OSError as exc:
            logger.warning(
                "metrics of other processes at %s are not shown: %s. Set TMPDIR to a folder where "
                "this user may write, the same for all of them",
                self._port,
                reason_of(exc),
            )

    def _listen(self) -> None:
        folder = private_folder(self._port)
        path = folder / f"{os.getpid()}-{secrets.token_hex(2)}.sock"
        self._server = _Server(str(path), self._answer)
        self._folder, self._path = folder, path
        serve(self._server, "wsgateway-metrics-member")

    def close(self) -> None:
        """Answer no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            stop(server)
        if self._path is not None and self._pid == os.getpid():
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # there are others
                self._path.parent.rmdir()

    def ask_others(self) -> Answers:
        """Return what the others say, within `ANSWER_WITHIN` or so."""
        paths = self._others()
        if not paths:
            return Answers({}, 0)
        with ThreadPoolExecutor(min(len(paths), ASKED_AT_ONCE)) as pool:
            answers = list(pool.map(_ask, paths))
        found: dict[str, bytes] = {}
        for path, answer in zip(paths, answers, strict=True):
            if answer:
                process, _, suffix = path.stem.partition("-")
                if process in (*found, str(os.getpid())):  # of another namespace of processes
                    process = f"{process}-{suffix}"
                found[process] = answer
        return Answers(found, sum(answer is None for answer in answers))

    def _others(self) -> list[Path]:
        if self._folder is None:
            return []
        try:
            return sorted(path for path in self._folder.glob("*.sock") if path != self._path)
        except OSError:
            return []


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, answer: Callable[[], bytes]) -> None:
        self.answer = answer
        super().__init__(path, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        if error is not None:
            logger.debug("a process did not get this one's metrics: %s", reason_of(error))


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    timeout = ANSWER_WITHIN

    def handle(self) -> None:
        self.wfile.write(self.server.answer())


def private_folder(port: str) -> Path:
    """Return the folder of the sockets of *port*, which only this user may enter.

    Raises:
        OSError: It cannot be made, or is somebody else's.
    """
    base = Path(tempfile.gettempdir()) / f"wsgateway-metrics-{os.geteuid()}"
    number = port.rpartition(":")[2]
    digest = hashlib.sha256(port.encode()).hexdigest()[:8]
    folder = base / f"{number if number.isdecimal() else 'port'}-{digest}"
    for each in (base, folder):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
        found = each.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not is_private or found.st_uid != os.geteuid():
            raise PermissionError(f"{each} exists, and is not a folder that only this user enters")
    return folder


def _ask(path: Path) -> bytes | None:
    """Return a process's answer; None if it is silent, b"" if it is gone."""
    try:
        return b"".join(_read(path))
    except ConnectionRefusedError:  # nobody listens: it was killed
        path.unlink(missing_ok=True)
        return b""
    except (FileNotFoundError, ConnectionResetError):  # it has just ended, or been killed
        return b""
    except OSError as exc:
        logger.debug("no metrics from %s: %s", path, reason_of(exc))
        return None


def _read(path: Path) -> Iterator[bytes]:
    deadline = monotonic() + ANSWER_WITHIN
    size = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_WITHIN)
        connection.connect(str(path))
        while True:
            connection.settimeout(max(deadline - monotonic(), 0.001))
            data = connection.recv(1 << 16)
            if not data:
                return
            size += len(data)
            if size > MAX_ANSWER:
                raise OSError(f"an answer exceeds {MAX_ANSWER} bytes")
            yield data
