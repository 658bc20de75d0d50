"""What `publish` and `gateway send` share."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from wsgateway.broker import runtime
from wsgateway.management.arguments import address_of
from wsgateway.management.base import Options
from wsgateway.management.exits import command_error
from wsgateway.management.output import Output
from wsgateway.protocol.subjects import Topic
from wsgateway.publish import send, send_topic

__all__ = ["add_options", "send_and_tell"]


def add_options(parser: ArgumentParser) -> None:
    """Define how the message is stored."""
    parser.add_argument("--id", help="message id: the same id is stored only once")
    parser.add_argument(
        "--ttl", type=float, metavar="SECONDS", help="time until the message is removed"
    )


def send_and_tell(out: Output, options: Options, data: dict[str, Any]) -> None:
    """Store *data*, as `send` takes it, for the user or topic in *options*; print where it is."""
    to = options["service"], options["user"]
    try:
        address = runtime.call_sync(lambda broker: address_of(broker, *to))
        store = send_topic if isinstance(address, Topic) else send
        receipt = store(*to, **data, msg_id=options["id"], ttl=options["ttl"])
    except ValueError as exc:  # also some of the package's own errors
        raise command_error(exc) from exc
    out.document({"offset": receipt.offset, "duplicate": receipt.duplicate})
    if not receipt.offset:
        out.line("sent to those who read the topic now; it is ephemeral, so nothing is stored")
        return
    note = " (was stored before)" if receipt.duplicate else ""
    out.line(f"stored at offset {receipt.offset}{note}")
