"""``manage.py gateway purge``: delete messages of an inbox or a topic, or everything of a user."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError
from wsgateway.management.arguments import count, database, described, stored_address_of
from wsgateway.management.base import Action, Options, add_no_input
from wsgateway.management.exits import Exit, command_error
from wsgateway.management.gateway.user_purge import purge_user
from wsgateway.management.output import Output
from wsgateway.protocol.subjects import Address, Topic
from wsgateway.readable import some

__all__ = ["Purge"]


class Purge(Action):
    """Delete what is stored."""

    name = "purge"
    help = "delete messages of an inbox or topic for good, or all that is stored about a user"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        parser.add_argument("service", metavar="SERVICE", nargs="?", help="a service that exists")
        parser.add_argument(
            "inbox_user",
            metavar="NAME",
            nargs="?",
            help="the user's name in that service, or the topic's",
        )
        parser.add_argument(
            "offsets", metavar="OFFSET", nargs="*", type=count, help="only these messages"
        )
        parser.add_argument(
            "--user",
            metavar="NAME",
            help="delete everything that is stored about this user, in all services",
        )
        parser.add_argument(
            "--service",
            dest="only_service",
            metavar="NAME",
            help="with --user: only in this service",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="with --user: only show what would be deleted"
        )
        parser.add_argument(
            "--database",
            metavar="ALIAS",
            type=database,
            help="with --user: the outbox's database; default: the router's choice",
        )
        add_no_input(parser)

    def run(self, out: Output, options: Options) -> None:
        """Delete, and print how many there were."""
        named = options["service"], options["inbox_user"]
        if options["user"] is not None:
            if named[0] is not None:
                raise CommandError("give SERVICE and NAME, or --user", returncode=Exit.USAGE)
            purge_user(out, options["user"], options)
        elif None in named:
            raise CommandError("give SERVICE and NAME, or --user NAME", returncode=Exit.USAGE)
        elif options["dry_run"] or {options["only_service"], options["database"]} != {None}:
            text = "--service, --database and --dry-run need --user"
            raise CommandError(text, returncode=Exit.USAGE)
        else:
            _purge(out, *named, options)


def _purge(out: Output, service: str, name: str, options: Options) -> None:
    """Delete the messages of an inbox or a topic, or some of them."""
    offsets = options["offsets"]
    address, there = runtime.call_sync(lambda broker: _count(broker, service, name))
    what = some(len(offsets) or there, "message")
    whose = str(address) if isinstance(address, Topic) else f"{name} in {service}"
    question = f"Delete {what} of {whose} for good?"
    if there:
        out.confirm(question, interactive=options["interactive"])
    if offsets:
        missing = _delete(out, address, offsets)
        deleted = len(offsets) - len(missing)
    else:
        missing = []
        deleted = runtime.call_sync(lambda broker: broker.operations.purge(address))
    out.document({"deleted": deleted, "missing": missing})
    out.line(f"{deleted} deleted")
    if missing:
        listed = ", ".join(map(str, missing))
        text = f"{described(address)} has no message at offset {listed}"
        raise CommandError(text, returncode=Exit.UNKNOWN)


async def _count(broker: Broker, service: str, name: str) -> tuple[Address, int]:
    address = await stored_address_of(broker, service, name)
    return address, await broker.log(address).count(address)


def _delete(out: Output, address: Address, offsets: list[int]) -> list[int]:
    """Delete single messages; return the offsets that have none.

    Raises:
        CommandError: The broker failed; the text says how many are deleted.
    """

    async def delete(broker: Broker) -> list[int]:
        missing: list[int] = []
        for number, offset in enumerate(offsets):
            try:
                deleted = await broker.operations.delete(address, offset)
            except WsGatewayError as exc:
                text = f"{number - len(missing)} deleted; offset {offset}: {exc}"
                raise CommandError(text, returncode=command_error(exc).returncode) from exc
            if not deleted:
                missing.append(offset)
            progress(number + 1, len(offsets))
        return missing

    with out.progress("deleting") as progress:
        return runtime.call_sync(delete)
