"""How commands run that go on until a signal: beside Django's reloader, and with metrics."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.utils import autoreload

from wsgateway.conf import settings
from wsgateway.management.base import Options, add_json
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.metrics.server import MetricsPortRefused, add_metrics_arguments, metrics_served
from wsgateway.services.process import Runs, run_beside_reloader, run_until_signal

__all__ = ["add_running_arguments", "run_long"]

RELOAD = 3
"""With which code a process ends whose code has changed; Django's."""


def add_running_arguments(parser: ArgumentParser, ready: str) -> None:
    """Add the options of commands that go on until a signal.

    Args:
        parser: The command's.
        ready: When the file of ``--ready-file`` is created: "once …".
    """
    parser.add_argument("--ready-file", metavar="FILE", help=f"file to create once {ready}")
    parser.add_argument(
        "--noreload",
        action="store_true",
        help="do not restart when code changes (only DEBUG does)",
    )
    add_metrics_arguments(parser)
    add_json(parser)


def run_long(runner: Runs, out: Output, options: Options, *, asks_broker: bool = True) -> None:
    """Run until SIGINT or SIGTERM; in development, again whenever code changes.

    Args:
        runner: What to run.
        out: Tells the operator.
        options: With ``--noreload`` and those of `wsgateway.metrics.server.add_metrics_arguments`.
        asks_broker: See `wsgateway.metrics.exporter.Exporter`.
    """

    def run(work: Callable[..., None], *args: Any) -> None:
        # In the process that the reloader starts
        with metrics_served(options, out, asks_broker=asks_broker):
            work(runner, *args)

    def run_reloaded() -> None:
        try:
            run(run_beside_reloader)
        except MetricsPortRefused as exc:
            # No change of the code mends it, and in this thread SystemExit ends nothing
            out.note(f"CommandError: {exc}")
            os._exit(Exit.FAILED)

    if settings.debug and not options["noreload"]:
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            raise SystemExit(_run_children())
        autoreload.run_with_reloader(run_reloaded)
    else:
        run(run_until_signal, out.tell)


def _run_children() -> int:
    """Run this command in a process, and again whenever code changes; return its last code.

    At SIGTERM, Django's `restart_with_reloader` kills that process, with what is in flight.
    """
    ending = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def end(*_: object) -> None:
        ending.set()
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    env = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    code = RELOAD
    while code == RELOAD and not ending.is_set():
        child = subprocess.Popen(autoreload.get_child_arguments(), env=env, close_fds=False)
        children[:] = [child]
        if ending.is_set():
            end()
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal has told the child as well
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(settings.CLOSE_TIMEOUT)
            child.kill()
            return 0
    return 0 if ending.is_set() else code
