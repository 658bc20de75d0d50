"""``manage.py runoutbox``: relay the outbox into JetStream."""

from __future__ import annotations

import logging
import signal
import threading
from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError

from wsgateway.exceptions import WsGatewayError, reason_of

logger = logging.getLogger("wsgateway.outbox")

LONGEST_PAUSE = 5.0


class Command(BaseCommand):
    """Relays until SIGINT or SIGTERM."""

    help = "Sends what wsgateway.outbox.enqueue wrote. Several may run side by side on PostgreSQL."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where, and how often."""
        parser.add_argument(
            "--database", help="the outbox's database; default: the router's choice"
        )
        parser.add_argument(
            "--interval", type=float, default=0.2, help="seconds between looks for new rows"
        )
        parser.add_argument("--batch", type=int, default=1000, help="rows per transaction")
        parser.add_argument("--once", action="store_true", help="send what is there, and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        """Relay."""
        if not apps.is_installed("wsgateway.outbox"):
            raise CommandError("add 'wsgateway.outbox' to INSTALLED_APPS, and migrate")
        from wsgateway.outbox.relay import Relay

        if options["batch"] < 1 or not 0 < options["interval"] <= threading.TIMEOUT_MAX:
            raise CommandError("--batch and --interval must be positive")
        relay = Relay(options["database"], rows=options["batch"])
        self._end = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self._end.set())
        try:
            with relay.alone():
                if options["once"]:
                    self._relay_once(relay)
                else:
                    self._relay(relay, options["interval"])
        except (ImproperlyConfigured, WsGatewayError) as exc:
            raise CommandError(str(exc)) from exc

    def _relay_once(self, relay: Any) -> None:
        total = 0
        try:
            while done := relay.step():
                total += done
        except WsGatewayError as exc:
            raise CommandError(f"{total} relayed, the others wait: {exc}") from exc
        self.stdout.write(f"{total} relayed")

    def _relay(self, relay: Any, interval: float) -> None:
        self.stdout.write("outbox: ready")
        self.stdout.flush()
        pause, total = interval, 0
        while not self._end.is_set():
            try:
                done = relay.step()
            except (ImproperlyConfigured, ProgrammingError):  # no time cures these
                raise
            except Exception as exc:  # whatever it is, it may pass
                expected = isinstance(exc, (WsGatewayError, OperationalError, InterfaceError))
                text = "the outbox waits %.1f s: %s"
                logger.warning(text, pause, reason_of(exc), exc_info=None if expected else exc)
                self._end.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, total = interval, total + done
            if not done:
                self._end.wait(interval)
        self.stdout.write(f"outbox: ended ({total} relayed)")
