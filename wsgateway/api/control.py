"""Acts: close a user's sockets, end rights to topics."""

from __future__ import annotations

from django.http import HttpRequest
from ninja import Router
from ninja.responses import Status
from pydantic import Field

from wsgateway import presence, topics
from wsgateway.api.admission import needs, require
from wsgateway.api.answers import Disconnected
from wsgateway.api.responses import with_problems
from wsgateway.api.schemas import Name, Strict, absent

__all__ = ["router"]

router = Router(tags=["control"])
NO_CONTENT = with_problems({204: None}, body=True)


class Whom(Strict):
    """Whose sockets to close."""

    service: Name = Field(description="The service.")
    user: Name = Field(description="The user's name.")
    device: str | None = Field(None, description="Only sockets of this device.")
    connection: str | None = Field(None, description="Only the socket with this id.")
    reason: str = Field("", max_length=123, description="What the clients are told.")


class Right(Strict):
    """Whose right, to which topic."""

    service: Name = Field(description="The service of the topic.")
    topic: Name | None = Field(
        description="The topic's name, without the service; null: every topic of the service."
    )
    user: Name = Field(
        default_factory=absent,
        description="Only the right of this user, whichever service their sockets belong to.",
    )


@router.post(
    "disconnect",
    **needs("disconnect"),
    summary="Close a user's sockets",
    operation_id="disconnect",
    response=with_problems({200: Disconnected}, body=True),
)
async def disconnect(request: HttpRequest, whom: Whom) -> Disconnected:
    """Close a user's open sockets and event streams. Our clients and browsers stay away.

    It does not end a right. A client that opens a socket again is let in, so log the user out
    first.
    """
    require(request, "disconnect", whom.service)
    closed = await presence.adisconnect(
        whom.service,
        whom.user,
        device=whom.device,
        connection=whom.connection,
        reason=whom.reason,
    )
    return Disconnected(sockets=closed.sockets, silent=list(closed.silent))


@router.post(
    "revoke",
    **needs("revoke"),
    summary="End rights to a topic",
    operation_id="revoke",
    response=NO_CONTENT,
)
async def revoke(request: HttpRequest, right: Right) -> Status[None]:
    """End subscriptions on every gateway, and void the tokens made so far.

    A client that subscribes again is let in if `allow` says so, so change what `allow` looks at
    first.
    """
    require(request, "revoke", right.service)
    await topics.arevoke(right.service, right.topic, user=right.user)
    return Status(204, None)


@router.post(
    "recheck",
    **needs("revoke"),
    summary="Check rights to a topic again",
    operation_id="recheck",
    response=NO_CONTENT,
)
async def recheck(request: HttpRequest, right: Right) -> Status[None]:
    """Ask `allow` again about each subscription, on every gateway. What it refuses ends."""
    require(request, "revoke", right.service)
    await topics.arecheck(right.service, right.topic, user=right.user)
    return Status(204, None)
