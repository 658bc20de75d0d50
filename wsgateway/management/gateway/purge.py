"""``manage.py gateway purge``: delete messages of an inbox."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError
from wsgateway.management.arguments import add_inbox, count, inbox_of, require_service
from wsgateway.management.base import Action, Options, add_no_input
from wsgateway.management.exits import Exit, command_error
from wsgateway.management.output import Output
from wsgateway.protocol.subjects import Inbox
from wsgateway.readable import some

__all__ = ["Purge"]


class Purge(Action):
    """Delete what is stored for a user."""

    name = "purge"
    help = "delete all messages of an inbox for good, or single ones; cursors stay"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        add_inbox(parser)
        parser.add_argument(
            "offsets", metavar="OFFSET", nargs="*", type=count, help="only these messages"
        )
        add_no_input(parser)

    def run(self, out: Output, options: Options) -> None:
        """Delete, and print how many there were."""
        inbox, offsets = inbox_of(options), options["offsets"]
        there = runtime.call_sync(lambda broker: _count(broker, inbox))
        what = some(len(offsets) or there, "message")
        question = f"Delete {what} of {inbox.user} in {inbox.service} for good?"
        if there:
            out.confirm(question, interactive=options["interactive"])
        if offsets:
            missing = _delete(out, inbox, offsets)
            deleted = len(offsets) - len(missing)
        else:
            missing = []
            deleted = runtime.call_sync(lambda broker: broker.operations.purge(inbox))
        out.document({"deleted": deleted, "missing": missing})
        out.line(f"{deleted} deleted")
        if missing:
            listed = ", ".join(map(str, missing))
            text = f"the inbox has no message at offset {listed}"
            raise CommandError(text, returncode=Exit.UNKNOWN)


async def _count(broker: Broker, inbox: Inbox) -> int:
    await require_service(broker, inbox.service)
    return await broker.count(inbox)


def _delete(out: Output, inbox: Inbox, offsets: list[int]) -> list[int]:
    """Delete single messages; return the offsets that the inbox does not have.

    Raises:
        CommandError: The broker failed; the text says how many are deleted.
    """

    async def delete(broker: Broker) -> list[int]:
        missing: list[int] = []
        for number, offset in enumerate(offsets):
            try:
                deleted = await broker.operations.delete(inbox, offset)
            except WsGatewayError as exc:
                text = f"{number - len(missing)} deleted; offset {offset}: {exc}"
                raise CommandError(text, returncode=command_error(exc).returncode) from exc
            if not deleted:
                missing.append(offset)
            progress(number + 1, len(offsets))
        return missing

    with out.progress("deleting") as progress:
        return runtime.call_sync(delete)
