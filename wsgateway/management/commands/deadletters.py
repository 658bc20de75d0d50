"""``manage.py deadletters list|show|retry|purge``: what no handler could process."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any, ClassVar

from django.core.management.base import CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.management.arguments import count
from wsgateway.management.base import Action, ActionCommand, Options, add_no_input
from wsgateway.management.exits import Exit
from wsgateway.management.messages import bytes_fields
from wsgateway.management.output import Column, Output, clock, safe
from wsgateway.services import deadletters
from wsgateway.services.deadletters import DeadLetter

__all__ = ["Command"]


class List(Action):
    """All of them, or those of a service."""

    name = "list"
    help = "list dead letters, the oldest first"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        parser.add_argument("--service", metavar="NAME", help="only those of this service")
        parser.add_argument("--user", metavar="NAME", help="only those of this user")
        parser.add_argument(
            "--after", type=count, default=0, metavar="OFFSET", help="start after this offset"
        )
        parser.add_argument(
            "--limit", type=count, metavar="N", help="print at most this many; default: all"
        )

    def run(self, out: Output, options: Options) -> None:
        """Print a line each."""

        async def read(broker: Broker) -> list[DeadLetter]:
            found: list[DeadLetter] = []
            with out.progress("reading dead letters") as done:
                chosen = deadletters.letters(
                    broker, options["service"], options["after"], options["user"]
                )
                async for letter in chosen:
                    if len(found) == options["limit"]:
                        break
                    found.append(letter)
                    done(len(found))
            return found

        letters = runtime.call_sync(read)
        out.document([_summary(letter) for letter in letters])
        if not out.is_terminal:  # as it was before there were tables
            for letter in letters:
                service, user = letter.service, letter.inbox.user
                tries = f"{letter.attempts} attempts"
                fields = (str(letter.offset), letter.time, service, user, tries, letter.error)
                out.line("\t".join(map(safe, fields)))
            return
        columns = [
            Column("Offset", right=True),
            Column("Set aside"),
            Column("Service"),
            Column("User", whole=False),
            Column("Tries", right=True),
            Column("Error", whole=False),
        ]
        rows = [
            (str(one.offset), clock(one.time), one.target, one.sender, one.attempts, one.error)
            for one in letters
        ]
        out.table("", columns, rows, empty="There are no dead letters.")


class Show(Action):
    """One of them."""

    name = "show"
    help = "show everything about one dead letter, with its traceback"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which one."""
        parser.add_argument("offset", type=count, metavar="OFFSET", help="as list shows it")

    def run(self, out: Output, options: Options) -> None:
        """Print it."""
        letter = runtime.call_sync(lambda broker: deadletters.find(broker, options["offset"]))
        out.document(
            {
                **_summary(letter),
                "headers": letter.headers,
                **bytes_fields(letter.payload),
                "traceback": letter.traceback,
            }
        )
        for name, value in (
            ("offset", str(letter.offset)),
            ("time", clock(letter.time) if out.is_terminal else letter.time),
            ("service", letter.service),
            *([("topic", str(letter.topic))] if letter.topic else []),
            ("user", letter.sender),
            ("attempts", str(letter.attempts)),
            *([("shortened", ", ".join(letter.shortened))] if letter.shortened else []),
            *(("header", f"{name}: {value}") for name, value in letter.headers.items()),
            ("payload", repr(letter.payload)),
        ):
            out.line(f"{name:9} {safe(value)}")
        out.line()
        out.line(safe(letter.traceback, lines=True))


class _Change(Action):
    """What changes several."""

    act: ClassVar[Callable[[Broker, DeadLetter], Any]]
    done: ClassVar[str]
    """What was done to them, for the output."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        parser.add_argument(
            "offsets", type=count, nargs="*", metavar="OFFSET", help="as list shows them"
        )
        parser.add_argument("--all", action="store_true", help="all dead letters")
        parser.add_argument(
            "--service", metavar="NAME", help="with --all: only those of this service"
        )
        parser.add_argument("--user", metavar="NAME", help="with --all: only those of this user")

    def ask(self, out: Output, options: Options) -> None:
        """Ask for confirmation, if something is lost."""

    def run(self, out: Output, options: Options) -> None:
        """Do it, and print how many were changed."""
        if options["all"] == bool(options["offsets"]):
            raise CommandError("give offsets, or --all", returncode=Exit.USAGE)
        self.ask(out, options)
        offsets = None if options["all"] else options["offsets"]
        act = type(self).act

        async def change(broker: Broker) -> tuple[int, list[str]]:
            with out.progress("dead letters") as progress:
                return await deadletters.act_on(
                    broker,
                    act,
                    offsets,
                    options["service"],
                    user=options["user"],
                    progress=progress,
                )

        done, problems = runtime.call_sync(change)
        out.document({self.done.replace(" ", "_"): done, "problems": problems})
        out.line(f"{done} {self.done}")
        if problems:
            raise CommandError("\n".join(problems))


class Retry(_Change):
    """Back to the service."""

    name = "retry"
    help = "put dead letters back into their service's queue"
    act = deadletters.retry
    done = "put back"


class Purge(_Change):
    """Gone."""

    name = "purge"
    help = "delete dead letters for good"
    act = deadletters.purge
    done = "purged"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        super().add_arguments(parser)
        add_no_input(parser)

    def ask(self, out: Output, options: Options) -> None:
        """Ask, no matter who runs the command."""
        user = f" of {options['user']}" if options["user"] else ""
        service = f" in {options['service']}" if options["service"] else ""
        what = "all dead letters" + user + service if options["all"] else "these dead letters"
        out.confirm(f"Delete {what} for good?", interactive=options["interactive"])


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "offset": letter.offset,
        "time": letter.time,
        "service": letter.service,
        "topic": str(letter.topic) if letter.topic else None,
        "user": letter.inbox.user,
        "user_service": letter.inbox.service,
        "attempts": letter.attempts,
        "error": letter.error,
        "size": len(letter.payload),
        "shortened": letter.shortened,
    }


class Command(ActionCommand):
    """Shows and moves dead letters."""

    help = "Lists, shows, retries or purges messages that were set aside."
    actions = (List(), Show(), Retry(), Purge())
