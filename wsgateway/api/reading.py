"""Questions: what is stored, who is online, who reads a topic, and how much there is."""

from __future__ import annotations

from typing import Annotated

from django.http import HttpRequest
from ninja import Router
from ninja.params.functions import Query

from wsgateway import presence, topics
from wsgateway.api.admission import key_of, needs, require
from wsgateway.api.answers import Connections, Messages, Online, Reader, Readers, Stats
from wsgateway.api.problems import Problem
from wsgateway.api.responses import with_problems
from wsgateway.api.schemas import Name
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import read_sender, write_sender
from wsgateway.exceptions import ServiceUnknown
from wsgateway.history import MAX_OFFSET, MAX_PAGE, History, check_page, read_page
from wsgateway.management.overview import look
from wsgateway.protocol.subjects import Inbox, encode_token

__all__ = ["router"]

router = Router(tags=["read"])

Service = Annotated[Name, Query(description="The service.")]
User = Annotated[Name, Query(description="The user's name.")]
TopicName = Annotated[Name, Query(description="The topic's name, without the service.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many, at most.")]
After = Annotated[
    int | None,
    Query(ge=0, le=MAX_OFFSET, description="Read forward from this offset, exclusive."),
]
Before = Annotated[
    int | None,
    Query(ge=0, le=MAX_OFFSET, description="Read backward from this offset, exclusive."),
]
AfterName = Annotated[str, Query(description="The `after` of the page before; empty: begin.")]


@router.get(
    "history/user",
    **needs("history"),
    summary="Read a user's inbox",
    operation_id="user_history",
    exclude_unset=True,
    response=with_problems({200: Messages}),
)
async def user_history(
    request: HttpRequest,
    service: Service,
    user: User,
    after: After = None,
    before: Before = None,
    limit: Limit = 100,
) -> Messages:
    """Return messages that are stored for a user, whether or not they were delivered.

    Without `after` and `before`, these are the newest. Positions of the user's devices stay as
    they are.
    """
    require(request, "history", service)
    _check(after, before)
    inbox = Inbox(service, user)
    encode_token(user)

    async def read(broker: Broker) -> History:
        if not await broker.service_exists(service):
            is_other = bool(await broker.topics_of(service))
            raise ServiceUnknown(service, broker.service_names, is_other)
        return await read_page(broker, inbox, after, before, limit)

    return Messages.of(await runtime.call(read))


@router.get(
    "history/topic",
    **needs("history"),
    summary="Read a topic",
    operation_id="topic_history",
    exclude_unset=True,
    response=with_problems({200: Messages}),
)
async def topic_history(
    request: HttpRequest,
    service: Service,
    topic: TopicName,
    after: After = None,
    before: Before = None,
    limit: Limit = 100,
) -> Messages:
    """Return messages that a topic holds. Without `after` and `before`, these are the newest."""
    require(request, "history", service)
    _check(after, before)
    try:
        page = await topics.ahistory(service, topic, after=after, before=before, limit=limit)
    except ValueError as exc:  # an ephemeral topic
        raise Problem("invalid", str(exc)) from exc
    return Messages.of(page)


def _check(after: int | None, before: int | None) -> None:
    try:
        check_page(after, before, 1)
    except TypeError as exc:
        raise Problem("invalid", str(exc)) from exc


@router.get(
    "online",
    **needs("presence"),
    summary="List who is online",
    operation_id="online",
    response=with_problems({200: Online}),
)
async def online(
    request: HttpRequest, service: Service, after: AfterName = "", limit: Limit = 100
) -> Online:
    """Return users who have an open socket, in the order of their names.

    To get the next page, pass the `after` of this one. A user who stays connected is on exactly
    one page.
    """
    require(request, "presence", service)
    page = await presence.aonline(service, after=after or None, limit=limit)
    return Online(users=page.users, after=page.after, silent=list(page.silent))


@router.get(
    "connections",
    **needs("presence"),
    summary="Say whether a user is online",
    operation_id="connections",
    response=with_problems({200: Connections}),
)
async def connections(request: HttpRequest, service: Service, user: User) -> Connections:
    """Return a user's open sockets."""
    require(request, "presence", service)
    return Connections.of(await presence.aconnections(service, user))


@router.get(
    "readers",
    **needs("presence"),
    summary="List who reads a topic",
    operation_id="readers",
    response=with_problems({200: Readers}),
)
async def readers(
    request: HttpRequest,
    service: Service,
    topic: TopicName,
    after: AfterName = "",
    limit: Limit = 100,
) -> Readers:
    """Return users who read a topic, in the order of their services and names."""
    require(request, "presence", service)
    start = read_sender(after) if after else None
    if after and start is None:
        raise Problem("invalid", "after is not what a page before this one has returned")
    page = await topics.areaders(service, topic, after=start, limit=limit)
    return Readers(
        readers=[
            Reader(service=inbox.service, user=inbox.user, sockets=sockets)
            for inbox, sockets in page.users.items()
        ],
        sockets=page.sockets,
        after=write_sender(page.after) if page.after else None,
        silent=list(page.silent),
    )


@router.get(
    "stats",
    **needs("stats"),
    summary="Get numbers",
    operation_id="stats",
    response=with_problems({200: Stats}, service=False),
)
async def stats(request: HttpRequest) -> Stats:
    """Return what waits and who is connected, by service, and what the gateways do."""
    return Stats.of(await runtime.call(look), key_of(request))
