"""``manage.py runservice NAME…``: work on what clients send to these services."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.conf import settings
from wsgateway.management.base import Options, OutputCommand
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.management.running import add_running_arguments, run_long
from wsgateway.services.runner import Runner, services_to_run

__all__ = ["Command"]


class Command(OutputCommand):
    """Runs workers until SIGINT or SIGTERM."""

    help = "Runs the handlers of services (see wsgateway.service) until it gets a signal."
    is_long = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which services, and how they run."""
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="services to run; default: all"
        )
        parser.add_argument(
            "--concurrency", type=int, metavar="N", help="users served at once, per service"
        )
        add_running_arguments(parser, "every service is ready")

    def run(self, out: Output, options: Options) -> None:
        """Run until a signal."""
        if options["concurrency"] is not None and options["concurrency"] < 1:
            raise CommandError("--concurrency must be 1 or more", returncode=Exit.USAGE)
        try:
            services = services_to_run(options["names"])
        except LookupError as exc:
            raise CommandError(exc.args[0], returncode=Exit.UNKNOWN) from exc
        if settings.BROKER == "memory":
            out.note(
                "PUBSUB_BROKER is 'memory', so this worker gets only what its own process sends. "
                "Use nats for a worker beside a gateway."
            )
        runner = Runner(services, options["concurrency"], options["ready_file"], out.tell)
        run_long(runner, out, options)
