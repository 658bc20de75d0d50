"""``manage.py gateway drain``: move a gateway's sockets to the others."""

from __future__ import annotations

import time
from argparse import ArgumentParser

from django.core.management.base import CommandError

from wsgateway import presence
from wsgateway.management.arguments import seconds
from wsgateway.management.base import Action, Options, add_no_input
from wsgateway.management.exits import Exit
from wsgateway.management.output import Output
from wsgateway.presence import Gateway
from wsgateway.readable import some

__all__ = ["Drain"]

LOOK_EACH = 0.5
"""Seconds between two looks at how many sockets are left."""


class Drain(Action):
    """Empty one gateway."""

    name = "drain"
    help = (
        "ask the clients of one gateway to reconnect to others, and let it accept no more; it "
        "stays up, not ready, until you restart it"
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which one."""
        parser.add_argument("gateway", metavar="GATEWAY", help="its id, as status shows it")
        parser.add_argument(
            "--timeout",
            type=seconds,
            default=60.0,
            metavar="SECONDS",
            help="how long to wait until it has no sockets; 0: do not wait; default: 60",
        )
        add_no_input(parser)

    def run(self, out: Output, options: Options) -> None:
        """Drain it, and wait until it is empty."""
        name = options["gateway"]
        found = _find(name)
        question = f"Close {some(found.sockets, 'socket')} of {name}, and let it accept no more?"
        out.confirm(question, interactive=options["interactive"])
        if not presence.drain(name):
            raise CommandError(f"gateway {name!r} does not answer", returncode=Exit.UNKNOWN)
        left = _wait(out, found, options["timeout"])
        out.document({"gateway": name, "draining": True, "sockets": left})
        if left is None:
            out.line(f"{name} is gone")
        elif left == 0:
            out.line(f"{name} is drained: no sockets left")
        elif not options["timeout"]:
            out.line(f"{name} is draining: {some(left, 'socket')} left")
        else:
            raise CommandError(f"{name} still has {some(left, 'socket')}; it goes on draining")


def _find(name: str) -> Gateway:
    """Return a gateway.

    Raises:
        CommandError: There is none, or it does not answer.
    """
    known = presence.gateways()
    for gateway in known:
        if gateway.id == name:
            return gateway
    if name in known.silent:
        raise CommandError(f"gateway {name!r} does not answer", returncode=Exit.INCOMPLETE)
    names = ", ".join(gateway.id for gateway in known) or "none"
    raise CommandError(f"no gateway {name!r}; those that answer: {names}", returncode=Exit.UNKNOWN)


def _wait(out: Output, before: Gateway, timeout: float) -> int | None:
    """Wait until a gateway has no sockets; return how many it has, or None if it is gone.

    Raises:
        CommandError: It does not answer any more.
    """
    until = time.monotonic() + timeout
    with out.progress("sockets closed") as progress:
        while True:
            found = presence.gateways()
            is_over = time.monotonic() >= until
            if before.id not in found.silent:
                left = {gateway.id: gateway.sockets for gateway in found}.get(before.id)
                if not left or is_over:
                    return left
                progress(before.sockets - left, before.sockets)
            elif is_over:
                text = f"gateway {before.id!r} does not answer any more; it may still have sockets"
                raise CommandError(text, returncode=Exit.INCOMPLETE)
            time.sleep(LOOK_EACH)
