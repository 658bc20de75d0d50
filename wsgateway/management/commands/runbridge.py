"""``manage.py runbridge NAME…``: carry messages to and from services on Kafka or RabbitMQ."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError

from wsgateway.bridges.runner import bridges_to_run, make_runner
from wsgateway.conf import settings
from wsgateway.management.base import Options, OutputCommand
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.management.running import add_running_arguments, run_long

__all__ = ["Command"]


class Command(OutputCommand):
    """Runs bridges until SIGINT or SIGTERM."""

    help = (
        "Carries messages between clients and services on Kafka or RabbitMQ (see "
        "WSGATEWAY_BRIDGES) until it gets a signal. Several processes share the work."
    )
    is_long = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which bridges, and how they run."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="bridges to run; default: all")
        add_running_arguments(parser, "every bridge is connected")

    def run(self, out: Output, options: Options) -> None:
        """Run until a signal."""
        try:
            bridges = bridges_to_run(options["names"])
            runner = make_runner(bridges, options["ready_file"], out.tell)
        except LookupError as exc:
            raise CommandError(exc.args[0], returncode=Exit.UNKNOWN) from exc
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc), returncode=Exit.FAILED) from exc
        if settings.BROKER == "memory":
            out.note(
                "PUBSUB_BROKER is 'memory', so this bridge gets only what its own process sends. "
                "Use nats for a bridge beside a gateway."
            )
        run_long(runner, out, options)
