"""What the server API answers to questions, as the OpenAPI document shows it."""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any, Self

from pydantic import BaseModel, Field

from wsgateway import presence
from wsgateway.api.schemas import absent
from wsgateway.history import History, HistoryMessage
from wsgateway.management.overview import Overview
from wsgateway.models import ApiKey
from wsgateway.protocol.subjects import Inbox

__all__ = [
    "Connection",
    "Connections",
    "Disconnected",
    "Gateway",
    "Messages",
    "Online",
    "Readers",
    "Service",
    "Stats",
]


class User(BaseModel):
    """A user of a service."""

    service: str = Field(description="The service.")
    user: str = Field(description="The user's name.")

    @classmethod
    def of(cls, inbox: Inbox) -> Self:
        """Return the user whose inbox this is."""
        return cls(service=inbox.service, user=inbox.user)


class Message(BaseModel):
    """A message that is stored: either `text` or `base64` is there."""

    offset: int = Field(description="Its position.")
    time: dt.datetime = Field(description="When it was stored.")
    text: str = Field(default_factory=absent, description="The content of a text frame.")
    base64: str = Field(
        default_factory=absent, description="The content of a binary frame, as base64."
    )
    sender: User = Field(
        default_factory=absent,
        description="The client that sent it to the topic; missing if a program published it.",
    )

    @classmethod
    def of(cls, message: HistoryMessage) -> Self:
        """Return what JSON says of *message*."""
        fields: dict[str, Any] = {"offset": message.offset, "time": message.time}
        if isinstance(message.data, str):
            fields["text"] = message.data
        else:
            fields["base64"] = base64.b64encode(message.data).decode()
        if message.sender:
            fields["sender"] = User.of(message.sender)
        return cls(**fields)


class Position(BaseModel):
    """Where a client goes on after this page."""

    epoch: str = Field(description="Names the life of the stream.")
    offset: int = Field(description="The last message of the page, or where it would be.")


class Messages(BaseModel):
    """One page of messages, oldest first."""

    messages: list[Message] = Field(description="The messages.")
    more: bool = Field(description="Whether there are more in the direction in which you read.")
    first: int | None = Field(description="What to pass as `before` for the page before this one.")
    last: int | None = Field(description="What to pass as `after` for the page after this one.")
    position: Position = Field(
        description="What the clients' `topic()` takes as `position`, to go on live from here."
    )

    @classmethod
    def of(cls, page: History) -> Self:
        """Return what JSON says of *page*."""
        return cls(
            messages=[Message.of(each) for each in page.messages],
            more=page.more,
            first=page.first,
            last=page.last,
            position=Position(**page.position),
        )


class Answered(BaseModel):
    """What the gateways answered."""

    silent: list[str] = Field(
        description="Ids of gateways that did not answer; what they hold is missing."
    )


class Online(Answered):
    """Users who have an open socket, in the order of their names."""

    users: dict[str, int] = Field(description="How many sockets each of them has.")
    after: str | None = Field(description="What to pass as `after` for the next page; null: none.")


class Connection(BaseModel):
    """One open socket."""

    id: str = Field(description="Names it.")
    gateway: str = Field(description="The id of the gateway that holds it.")
    device: str = Field(description="Which of the user's devices.")
    address: str = Field(description="The client's IP address.")
    user_agent: str = Field(description="What the client says it is.")
    since: dt.datetime = Field(description="When it was opened.")
    protocol: str = Field(description="`wsgateway.v1`, `sse`, or empty for a raw socket.")
    sent: int = Field(description="Offset of the last message that was written to it.")
    acknowledged: int = Field(description="Offset up to which the client has everything.")
    unacknowledged: int = Field(description="Messages between these two.")


class Connections(Answered):
    """A user's open sockets, the oldest first."""

    online: bool | None = Field(
        description="Whether there is one; null: unknown, because a gateway is silent."
    )
    connections: list[Connection] = Field(description="The sockets.")

    @classmethod
    def of(cls, found: presence.Connections) -> Self:
        """Return what JSON says of *found*."""
        online = True if found else None if found.silent else False
        fields = Connection.model_fields
        return cls(
            online=online,
            connections=[Connection(**{f: getattr(each, f) for f in fields}) for each in found],
            silent=list(found.silent),
        )


class Reader(User):
    """A user who reads a topic."""

    sockets: int = Field(description="How many of the user's sockets read it.")


class Readers(Answered):
    """Users who read a topic."""

    readers: list[Reader] = Field(description="The users, by service and name.")
    sockets: int = Field(description="How many sockets read it: all users', not only this page's.")
    after: str | None = Field(description="What to pass as `after` for the next page; null: none.")


class Disconnected(Answered):
    """What was closed."""

    sockets: int = Field(description="How many sockets.")


class Service(BaseModel):
    """A service in numbers."""

    service: str = Field(description="Its name.")
    users: int = Field(description="Users online.")
    sockets: int = Field(description="Their open sockets.")
    waiting: int = Field(description="Messages of clients that no worker has acknowledged.")
    in_flight: int = Field(description="Of those, how many workers have taken.")
    oldest: dt.datetime | None = Field(description="When the oldest of them was sent.")
    dead: int = Field(description="Dead letters.")
    workers: int = Field(description="Processes that handle its messages.")


class Gateway(BaseModel):
    """A gateway in numbers."""

    id: str = Field(description="Names it.")
    version: str = Field(description="Of wsgateway.")
    started: dt.datetime = Field(description="When it began.")
    sockets: int = Field(description="Open sockets.")
    memory: int = Field(description="Bytes of memory that the process holds.")
    draining: bool = Field(description="Whether it is letting its sockets go.")
    rates: dict[str, float] = Field(
        description="Per second, over the last minute: `messages_in`, `messages_out`, `connects`."
    )


class Stats(Answered):
    """Services and gateways in numbers."""

    services: list[Service] = Field(description="Those that the key has a right in.")
    gateways: list[Gateway] = Field(description="Those that answer.")

    @classmethod
    def of(cls, found: Overview, key: ApiKey) -> Self:
        """Return what JSON says of *found* to those who have *key*."""
        services = [
            Service(
                service=each.queue.service,
                users=each.users,
                sockets=each.sockets,
                waiting=each.queue.waiting,
                in_flight=each.queue.in_flight,
                oldest=each.queue.oldest,
                dead=each.queue.dead,
                workers=each.workers,
            )
            for each in found.services
            if key.may("stats", each.queue.service)
        ]
        fields = Gateway.model_fields
        gateways = [Gateway(**{f: getattr(each, f) for f in fields}) for each in found.gateways]
        return cls(services=services, gateways=gateways, silent=found.silent)
