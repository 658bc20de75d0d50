"""``manage.py runoutbox``: relay the outbox into JetStream."""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from wsgateway.exceptions import WsGatewayError

if TYPE_CHECKING:
    from wsgateway.outbox.relay import Relay


class Command(BaseCommand):
    """Relays until SIGINT or SIGTERM."""

    help = "Sends what wsgateway.outbox.enqueue wrote. Several may run side by side on PostgreSQL."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which database, and how often to look."""
        parser.add_argument(
            "--database", help="the outbox's database; default: the router's choice"
        )
        parser.add_argument(
            "--interval", type=float, default=0.2, help="seconds between looks for new rows"
        )
        parser.add_argument("--batch", type=int, default=1000, help="rows per transaction")
        parser.add_argument("--once", action="store_true", help="send what is there, and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        """Relay until a signal, or once."""
        if not apps.is_installed("wsgateway.outbox"):
            raise CommandError("add 'wsgateway.outbox' to INSTALLED_APPS, and migrate")
        from wsgateway.outbox.relay import Relay

        if options["batch"] < 1 or not 0 < options["interval"] <= threading.TIMEOUT_MAX:
            raise CommandError("--batch and --interval must be positive")
        relay = Relay(options["database"], rows=options["batch"])
        end = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: end.set())
        try:
            with relay.alone():
                if options["once"]:
                    self._run_once(relay, end)
                else:
                    self._run(relay, end, options["interval"])
        except (ImproperlyConfigured, WsGatewayError) as exc:
            raise CommandError(str(exc)) from exc

    def _run_once(self, relay: Relay, end: threading.Event) -> None:
        try:
            relay.run_once(end)
        except WsGatewayError as exc:
            raise CommandError(f"{relay.done} relayed, the others wait: {exc}") from exc
        self.stdout.write(f"{relay.done} relayed")

    def _run(self, relay: Relay, end: threading.Event, interval: float) -> None:
        self.stdout.write("outbox: ready")
        self.stdout.flush()
        relay.run(end, interval)
        self.stdout.write(f"outbox: ended ({relay.done} relayed)")
