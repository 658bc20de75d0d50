"""Run Python programs in forks of one process that has imported Django and wsgateway.

A script for the Python of another environment. It saves each of many short commands its imports.
It reads orders, one JSON object a line, and prints the id of the process that carries it out.
"""

from __future__ import annotations

import atexit
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
    "daphne.server",  # with Twisted's reactor: what uses that must not be run in a fork
    "django.contrib.staticfiles.storage",
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
    "wsgateway.asgi",
    "wsgateway.broker.nats.broker",
    "wsgateway.gateway.session",
    "wsgateway.layer",
    "wsgateway.management.base",
    "wsgateway.presence",
    "wsgateway.services",
)


def run(argv: list[str], cwd: str, env: dict[str, str], log: str, status: str) -> None:
    """Become the program *argv*, whose exit code goes into the file *status*."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    code: Any = 1
    atexit.register(lambda: Path(status).write_text(str(code)))
    try:
        if argv[0] == "-m":
            sys.argv[:], sys.path[0] = argv[1:], cwd
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:], sys.path[0] = argv, str(Path(argv[0]).parent.resolve())
            runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as exc:
        code = exc.code or 0
        raise


def main() -> None:
    """Fork for each order, until nobody can give more."""
    for name in PRELOADED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that have ended
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(**json.loads(line))
            return
        print(pid, flush=True)


if __name__ == "__main__":
    main()
