"""Lists who is online over all gateways, as they say themselves."""

from __future__ import annotations

from wsgateway.broker.base import Broker
from wsgateway.presence.overview import find_gateways, list_users
from wsgateway.presence.paging import MAX_PAGE
from wsgateway.protocol.subjects import Inbox

__all__ = ["list_online"]


async def list_online(broker: Broker) -> tuple[set[Inbox], bool]:
    """Return everybody who is online, and whether every gateway has answered.

    Raises:
        BrokerError: It could not be found out.
    """
    gateways = await find_gateways(broker)
    found: set[Inbox] = set()
    complete = not gateways.silent
    for service in {name for gateway in gateways for name in gateway.services}:
        after: str | None = None
        while True:
            page = await list_users(broker, service, after, MAX_PAGE)
            found.update(Inbox(service, user) for user in page.users)
            complete = complete and not page.silent
            after = page.after
            if after is None:
                break
    return found, complete
