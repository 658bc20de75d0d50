"""``manage.py gateway disconnect``: close a user's sockets."""

from __future__ import annotations

from argparse import ArgumentParser

from wsgateway import presence
from wsgateway.broker import runtime
from wsgateway.management.arguments import add_inbox, require_complete, require_users
from wsgateway.management.base import Action, Options, add_no_input
from wsgateway.management.output import Output

__all__ = ["Disconnect"]


class Disconnect(Action):
    """Close sockets for good."""

    name = "disconnect"
    help = "close the sockets of a user, who are told not to reconnect; their messages stay"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which ones."""
        add_inbox(parser)
        parser.add_argument("--device", metavar="NAME", help="only those of this device")
        parser.add_argument("--connection", metavar="ID", help="only this socket; who lists ids")
        parser.add_argument(
            "--reason", default="", metavar="TEXT", help="the reason that the client gets"
        )
        add_no_input(parser)

    def run(self, out: Output, options: Options) -> None:
        """Close them, and print how many they were."""
        service, user = options["service"], options["user"]
        runtime.call_sync(lambda broker: require_users(broker, service))
        out.confirm(f"Close {_which(options)}?", interactive=options["interactive"])
        closed = presence.disconnect(
            service,
            user,
            device=options["device"],
            connection=options["connection"],
            reason=options["reason"],
        )
        out.document({"sockets": closed.sockets, "silent": closed.silent})
        out.line(f"{closed.sockets} closed")
        require_complete(closed.silent)


def _which(options: Options) -> str:
    device, connection = options["device"], options["connection"]
    what = f"connection {connection}" if connection else "all sockets"
    of = f" of device {device}" if device else ""
    return f"{what}{of} of {options['user']} in {options['service']}"
