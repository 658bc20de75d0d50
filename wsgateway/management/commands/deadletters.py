"""``manage.py deadletters list|show|retry|purge``: what no handler could process."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser
from collections.abc import Coroutine
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from wsgateway.broker import runtime
from wsgateway.exceptions import WsGatewayError
from wsgateway.services import deadletters
from wsgateway.services.deadletters import DeadLetter, DeadLetterShortened


class Command(BaseCommand):
    """Shows and moves dead letters."""

    help = "Lists, shows, retries or purges messages that were set aside."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which of the four."""
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
        """Do it."""
        action: Coroutine[Any, Any, None] = getattr(self, f"_{options['action']}")(options)
        try:
            asyncio.run(self._with_broker(action))
        except WsGatewayError as exc:
            raise CommandError(str(exc)) from exc

    async def _with_broker(self, action: Coroutine[Any, Any, None]) -> None:
        self.broker = runtime.current().broker
        await self.broker.open()
        try:
            await self.broker.wait_ready()
            await action
        finally:
            action.close()
            await runtime.close(self.broker)

    async def _list(self, options: dict[str, Any]) -> None:
        async for letter in deadletters.letters(self.broker, options["service"]):
            service, user = letter.inbox
            self.stdout.write(
                f"{letter.offset}\t{letter.time}\t{service}\t{user}\t"
                f"{letter.attempts} attempts\t{letter.error}"
            )

    async def _show(self, options: dict[str, Any]) -> None:
        letter = await deadletters.find(self.broker, options["offset"])
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

    async def _chosen(self, options: dict[str, Any]) -> list[DeadLetter]:
        if options["all"] == bool(options["offsets"]):
            raise CommandError("give offsets, or --all")
        if options["all"]:
            found = deadletters.letters(self.broker, options["service"])
            return [letter async for letter in found]
        return [await deadletters.find(self.broker, offset) for offset in options["offsets"]]

    async def _retry(self, options: dict[str, Any]) -> None:
        chosen = await self._chosen(options)
        refused = []
        for letter in chosen:
            try:
                await deadletters.retry(self.broker, letter)
            except DeadLetterShortened as exc:
                refused.append(str(exc))
        self.stdout.write(f"{len(chosen) - len(refused)} put back")
        if refused:
            raise CommandError("\n".join(refused))

    async def _purge(self, options: dict[str, Any]) -> None:
        chosen = await self._chosen(options)
        for letter in chosen:
            await deadletters.purge(self.broker, letter)
        self.stdout.write(f"{len(chosen)} purged")
