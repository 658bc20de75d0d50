"""Run Python programs in forks of one process that has imported Django and wsgateway.

A script for the Python of another environment. It saves each of many short commands its imports.
It reads orders, one JSON object a line, and prints the number of each, and the id of the process
that carries it out.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PRELOADED = (
    "cryptography.fernet",
    "daphne.endpoints",
    "daphne.http_protocol",  # without Twisted's reactor, which survives no fork
    "daphne.ws_protocol",
    "django.contrib.admin.options",
    "django.contrib.staticfiles.storage",
    "django.core.management.commands.check",
    "django.core.management.commands.migrate",
    "django.db.backends.sqlite3.base",
    "django.db.models",
    "django.forms",
    "django.middleware.csrf",
    "django.template.defaulttags",
    "django.test.client",
    "django.views.debug",
    "nats.aio.client",
    "rich.progress",
    "twisted.internet.asyncioreactor",
    "uvicorn.lifespan.on",
    "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.protocols.websockets.wsproto_impl",
    "uvloop",
    "whitenoise.middleware",
    "wsgateway.asgi",
    "wsgateway.broker.nats.broker",
    "wsgateway.consumers",
    "wsgateway.gateway.session",
    "wsgateway.layer",
    "wsgateway.management.base",
    "wsgateway.metrics.collector",
    "wsgateway.presence",
    "wsgateway.routing",
    "wsgateway.services",
    "wsgateway.services.process",
    "wsgateway.topics.rights",
    "wsgateway.webhooks.sender",
)


class Children:
    """The processes that run, each with the file for its exit code."""

    def __init__(self) -> None:
        self._files: dict[int, Path] = {}

    def fork(self, status: Path) -> int:
        """Fork; return the process's id, and 0 in it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # or it could end unknown
        pid = os.fork()
        if pid:
            self._files[pid] = status
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return pid

    def bury(self, *args: Any) -> None:
        """Write down how those ended that have ended; handles SIGCHLD."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                file = self._files.pop(ended[0])
                draft = file.with_suffix(".draft")
                draft.write_text(str(os.waitstatus_to_exitcode(ended[1])))
                draft.rename(file)


def become(argv: list[str], cwd: str, env: dict[str, str], files: tuple[str, str, str]) -> None:
    """Run the program *argv* in this process.

    Args:
        argv: A script, or ``-m`` and a module, and arguments.
        cwd: Where it runs.
        env: Its environment.
        files: Its standard input, output and error.
    """
    os.setsid()
    os.dup2(os.open(files[0], os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(files[number], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if argv[0] == "-m":
        sys.argv[:], sys.path[0] = argv[1:], cwd
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:], sys.path[0] = argv, str(Path(argv[0]).parent.resolve())
        runpy.run_path(argv[0], run_name="__main__")


def main() -> None:
    """Fork for each order, until nobody can give more."""
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # not every environment has them all
            import_module(name)
    assert "twisted.internet.reactor" not in sys.modules
    gc.freeze()  # or each collection in a fork would copy all that was imported
    children = Children()
    signal.signal(signal.SIGCHLD, children.bury)
    for line in sys.stdin:
        order = json.loads(line)
        number = order.pop("number")
        pid = children.fork(Path(order.pop("status")))
        if pid == 0:
            become(**order)
            return
        print(number, pid, flush=True)


if __name__ == "__main__":
    main()
