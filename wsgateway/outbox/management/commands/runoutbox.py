"""``manage.py runoutbox``: relay the outbox into JetStream."""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.exceptions import WsGatewayError
from wsgateway.management.arguments import database
from wsgateway.management.base import Options, OutputCommand, add_json
from wsgateway.management.exits import Exit, command_error
from wsgateway.management.output import Output
from wsgateway.metrics.server import add_metrics_arguments, metrics_served
from wsgateway.outbox.relay import Relay

__all__ = ["Command"]


class Command(OutputCommand):
    """Relays until SIGINT or SIGTERM."""

    help = "Sends what wsgateway.outbox.enqueue wrote. Several may run side by side on PostgreSQL."
    is_long = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which database, and how often to look."""
        parser.add_argument(
            "--database",
            metavar="ALIAS",
            type=database,
            help="the outbox's database; default: the router's choice",
        )
        parser.add_argument(
            "--interval",
            type=float,
            default=0.2,
            metavar="SECONDS",
            help="time between looks for new rows; default: 0.2",
        )
        parser.add_argument(
            "--batch",
            type=int,
            default=1000,
            metavar="ROWS",
            help="rows per transaction; default: 1000",
        )
        parser.add_argument("--once", action="store_true", help="send what is there, and exit")
        add_metrics_arguments(parser)
        add_json(parser)

    def run(self, out: Output, options: Options) -> None:
        """Relay until a signal, or once."""
        if options["batch"] < 1 or not 0 < options["interval"] <= threading.TIMEOUT_MAX:
            raise CommandError("--batch and --interval must be positive", returncode=Exit.USAGE)
        relay = Relay(options["database"], rows=options["batch"])
        end = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: end.set())
        with relay.alone():
            if options["once"]:
                self._run_once(out, relay, end)
            else:
                with metrics_served(options, out, asks_broker=False):
                    out.tell("outbox: ready", event="ready")
                    relay.run(end, options["interval"])
                out.tell(f"outbox: ended ({relay.done} relayed)", event="ended", relayed=relay.done)

    def _run_once(self, out: Output, relay: Relay, end: threading.Event) -> None:
        try:
            with out.progress("relaying") as progress:
                total = relay.waiting() if out.is_watched else 0
                relay.run_once(end, lambda done: progress(done, total))
        except WsGatewayError as exc:
            code = command_error(exc).returncode
            text = f"{relay.done} relayed, the others wait: {exc}"
            raise CommandError(text, returncode=code) from exc
        out.document({"relayed": relay.done})
        out.line(f"{relay.done} relayed")
