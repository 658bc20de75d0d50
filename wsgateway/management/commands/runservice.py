"""``manage.py runservice NAME…``: work on what clients send to these services."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import threading
from argparse import ArgumentParser
from concurrent.futures import Future
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload

from wsgateway.conf import settings
from wsgateway.declared import declared_services, discover
from wsgateway.exceptions import WsGatewayError
from wsgateway.services.registry import Service, get_service
from wsgateway.services.runner import Runner

THREADS_WITHIN = 1.0
"""Seconds that threads may take to end after the workers have."""


class Command(BaseCommand):
    """Runs workers until SIGINT or SIGTERM."""

    help = "Runs the handlers of services (see wsgateway.service) until it gets a signal."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which services, and how."""
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="services to run; default: all"
        )
        parser.add_argument("--concurrency", type=int, help="users served at once, per service")
        parser.add_argument("--ready-file", help="file to create once every service is ready")
        parser.add_argument(
            "--noreload",
            action="store_true",
            help="do not restart when code changes (only DEBUG does)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run."""
        if options["concurrency"] is not None and options["concurrency"] < 1:
            raise CommandError("--concurrency must be 1 or more")
        services = self._services(options["names"])
        if settings.BROKER == "memory":
            self.stderr.write(
                "PUBSUB_BROKER is 'memory': only what this process itself sends arrives; for a "
                "worker beside a gateway, use nats"
            )
        runner = Runner(services, options["concurrency"], options["ready_file"], self._say)
        try:
            if settings.debug and not options["noreload"]:
                autoreload.run_with_reloader(self._run_in_thread, runner)
            else:
                asyncio.run(self._run(runner))
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()

    def _services(self, names: list[str]) -> list[Service]:
        try:
            declared = declared_services()
            found = [get_service(name) for name in dict.fromkeys(names or discover())]
            unlisted = [s for s in found if not (declared.is_open or s.name in declared.services)]
            if names and unlisted:
                raise CommandError(
                    f"WSGATEWAY_SERVICES does not list {unlisted[0].name!r}, so no client can "
                    "reach it; add it"
                )
            found = [service for service in found if service not in unlisted]
        except LookupError as exc:
            raise CommandError(exc.args[0]) from exc
        if not found:
            raise CommandError(f"no app has a service in its {settings.SERVICES_MODULE}.py")
        return found

    async def _run(self, runner: Runner) -> None:
        """Run until a signal; a second one ends the process at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, runner, number)
        await runner.run()
        # Python would wait for threads in which a handler hangs, however long that takes
        watch = threading.Timer(THREADS_WITHIN, self._leave_threads)
        watch.daemon = True
        watch.start()

    def _on_signal(self, runner: Runner, number: int) -> None:
        if runner.ending:
            self._say("ended by a second signal")
            os._exit(128 + number)
        runner.end()

    def _leave_threads(self) -> None:
        self._say("handlers still run in threads: the process ends without them")
        logging.shutdown()
        os._exit(0)

    def _run_in_thread(self, runner: Runner) -> None:
        """Run beside the reloader, which ends the process from the main thread."""
        ended: Future[None] = Future()
        loop = asyncio.new_event_loop()

        def end() -> None:
            loop.call_soon_threadsafe(runner.end)
            ended.result(settings.CLOSE_TIMEOUT)

        atexit.register(end)
        try:
            loop.run_until_complete(runner.run())
        finally:
            ended.set_result(None)
            atexit.unregister(end)
