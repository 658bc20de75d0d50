"""``manage.py rungateway``: the whole site with everything it needs, for a first try."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.exceptions import WsGatewayError


class Command(BaseCommand):
    """See `project.demo.launcher`."""

    help = "Migrates, starts a nats-server if needed, runs the services, and serves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to listen, and whether this is the demo."""
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument(
            "--demo",
            action="store_true",
            help="create demo users, admin/admin among them (with DEBUG), and print a tour",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until a signal comes."""
        from project.demo.launcher import launch

        try:
            launch(
                options["host"],
                options["port"],
                lambda text: print(text, flush=True),
                demo=options["demo"],
            )
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc
        except KeyboardInterrupt:  # before daphne took over the signals
            raise SystemExit(130) from None
