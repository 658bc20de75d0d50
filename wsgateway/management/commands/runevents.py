"""``manage.py runevents``: send Django's signals when sockets and users come and go."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.conf import settings
from wsgateway.events.runner import EventRunner
from wsgateway.management.base import Options, OutputCommand
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.management.running import add_running_arguments, run_long
from wsgateway.webhooks.sender import missing_httpx

__all__ = ["Command"]


class Command(OutputCommand):
    """Follows events until SIGINT or SIGTERM."""

    help = (
        "Sends the signals of wsgateway.signals until it gets a signal itself. Of several "
        "processes one is active, and the others stand by."
    )
    is_long = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define how it runs."""
        add_running_arguments(parser, "it knows who is online")

    def run(self, out: Output, options: Options) -> None:
        """Run until a signal."""
        if settings.BROKER == "memory":
            raise CommandError(
                "PUBSUB_BROKER is 'memory', whose events stay in the process of each gateway; use "
                "nats",
                returncode=Exit.FAILED,
            )
        if settings.EVENTS_WEBHOOK and (flaw := missing_httpx()):
            raise CommandError(flaw, returncode=Exit.FAILED)
        runner = EventRunner(options["ready_file"], out.tell)
        run_long(runner, out, options, asks_broker=False)
