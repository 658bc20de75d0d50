"""``manage.py runservice NAME…``: work on what clients send to these services."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import autoreload

from wsgateway.conf import settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.services.process import run_beside_reloader, run_until_signal
from wsgateway.services.runner import Runner, services_to_run


class Command(BaseCommand):
    """Runs workers until SIGINT or SIGTERM."""

    help = "Runs the handlers of services (see wsgateway.service) until it gets a signal."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which services, and how they run."""
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
        """Run until a signal."""
        if options["concurrency"] is not None and options["concurrency"] < 1:
            raise CommandError("--concurrency must be 1 or more")
        try:
            services = services_to_run(options["names"])
        except LookupError as exc:
            raise CommandError(exc.args[0]) from exc
        if settings.BROKER == "memory":
            self.stderr.write(
                "PUBSUB_BROKER is 'memory', so this worker gets only what its own process sends. "
                "Use nats for a worker beside a gateway."
            )
        runner = Runner(services, options["concurrency"], options["ready_file"], self._say)
        try:
            if settings.debug and not options["noreload"]:
                autoreload.run_with_reloader(run_beside_reloader, runner)
            else:
                run_until_signal(runner, self._say)
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
