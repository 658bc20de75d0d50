"""``manage.py gateway resume``: deliver messages again to a service that a webhook has paused."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import TYPE_CHECKING

from wsgateway.broker import runtime
from wsgateway.exceptions import ServiceUnknown
from wsgateway.management.base import Action, Options
from wsgateway.management.output import Output

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker

__all__ = ["Resume"]


class Resume(Action):
    """Deliver again."""

    name = "resume"
    help = "deliver messages again to a service that is paused because its webhook answered 410"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define which one."""
        parser.add_argument("service", metavar="SERVICE", help="a service that exists")

    def run(self, out: Output, options: Options) -> None:
        """Resume it, and say whether it was paused."""
        service = options["service"]
        was_paused = runtime.call_sync(lambda broker: _resume(broker, service))
        out.document({"service": service, "was_paused": was_paused})
        out.line(f"{service} is resumed" if was_paused else f"{service} was not paused")


async def _resume(broker: Broker, service: str) -> bool:
    if not await broker.service_exists(service) and not await broker.topics_of(service):
        raise ServiceUnknown(service, broker.service_names | broker.topic_names)
    return await broker.operations.resume(service)
