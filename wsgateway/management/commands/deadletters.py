"""``manage.py deadletters list|show|retry|purge``: what no handler could process."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError
from wsgateway.services import deadletters


class Command(BaseCommand):
    """Shows and moves dead letters."""

    help = "Lists, shows, retries or purges messages that were set aside."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the four actions."""
        actions = parser.add_subparsers(dest="action", required=True)
        listing = actions.add_parser("list", help="one line each, the oldest first")
        listing.add_argument("--service", help="only of this service")
        show = actions.add_parser("show", help="everything about one, with its traceback")
        show.add_argument("offset", type=int)
        for name, text in (
            ("retry", "put back into the service's queue"),
            ("purge", "delete for good"),
        ):
            action = actions.add_parser(name, help=text)
            action.add_argument("offsets", type=int, nargs="*", metavar="OFFSET")
            action.add_argument("--all", action="store_true", help="all dead letters")
            action.add_argument("--service", help="with --all: only of this service")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action."""
        if "offsets" in options and options["all"] == bool(options["offsets"]):
            raise CommandError("give offsets, or --all")
        action = getattr(self, f"_{options['action']}")
        try:
            runtime.call_sync(lambda broker: action(broker, options))
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc

    async def _list(self, broker: Broker, options: dict[str, Any]) -> None:
        async for letter in deadletters.letters(broker, options["service"]):
            service, user = letter.inbox
            self.stdout.write(
                f"{letter.offset}\t{letter.time}\t{service}\t{user}\t"
                f"{letter.attempts} attempts\t{letter.error}"
            )

    async def _show(self, broker: Broker, options: dict[str, Any]) -> None:
        letter = await deadletters.find(broker, options["offset"])
        service, user = letter.inbox
        lines = [
            f"offset    {letter.offset}",
            f"time      {letter.time}",
            f"service   {service}",
            f"user      {user}",
            f"attempts  {letter.attempts}",
            *([f"shortened {', '.join(letter.shortened)}"] if letter.shortened else []),
            *(f"header    {name}: {value}" for name, value in letter.headers.items()),
            f"payload   {letter.payload!r}",
            "",
            letter.traceback,
        ]
        self.stdout.write("\n".join(lines))

    async def _retry(self, broker: Broker, options: dict[str, Any]) -> None:
        await self._act(broker, options, deadletters.retry, "put back")

    async def _purge(self, broker: Broker, options: dict[str, Any]) -> None:
        await self._act(broker, options, deadletters.purge, "purged")

    async def _act(self, broker: Broker, options: dict[str, Any], action: Any, what: str) -> None:
        offsets = None if options["all"] else options["offsets"]
        done, problems = await deadletters.act_on(broker, action, offsets, options["service"])
        self.stdout.write(f"{done} {what}")
        if problems:
            raise CommandError("\n".join(problems))
