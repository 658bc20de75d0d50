"""``manage.py gateway ACTION``: see who is connected and what waits, and act on it."""

from __future__ import annotations

from wsgateway.management.base import ActionCommand
from wsgateway.management.gateway.disconnect import Disconnect
from wsgateway.management.gateway.drain import Drain
from wsgateway.management.gateway.inbox import ShowInbox
from wsgateway.management.gateway.init import Init
from wsgateway.management.gateway.key import Key
from wsgateway.management.gateway.purge import Purge
from wsgateway.management.gateway.resume import Resume
from wsgateway.management.gateway.send import Send
from wsgateway.management.gateway.status import Status
from wsgateway.management.gateway.tail import Tail
from wsgateway.management.gateway.who import Who

__all__ = ["Command"]


class Command(ActionCommand):
    """Shows and controls gateways, services and inboxes."""

    help = "Shows and controls gateways, services and inboxes."
    actions = (
        Init(),
        Status(),
        Who(),
        ShowInbox(),
        Send(),
        Tail(),
        Disconnect(),
        Purge(),
        Drain(),
        Resume(),
        Key(),
    )
