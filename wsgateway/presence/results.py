"""What presence finds out, and how it reads that from the gateways' answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from wsgateway.broker.inquiry import Fields
from wsgateway.protocol.subjects import Inbox

__all__ = [
    "Answered",
    "Connection",
    "Connections",
    "Counts",
    "Disconnected",
    "Found",
    "Gateway",
    "Gateways",
    "Page",
    "Readers",
    "number_of",
    "numbers_of",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """One open socket.

    Attributes:
        id: Names it; what a ``wsgateway.v1`` client knows as ``connection``.
        gateway: The id of the gateway that holds it.
        service: The service.
        user: The user's name.
        device: Which of the user's devices.
        address: The client's IP address, as the ASGI server knows it; "" if it does not.
        user_agent: What the client says it is; "" if it says nothing.
        since: When it was opened.
        protocol: ``wsgateway.v1``, or "" for a raw socket.
        sent: Offset of the last message that was written to it, or where delivery began.
        acknowledged: Offset up to which the client has everything; of a raw socket, the kernel.
        unacknowledged: Messages that were written to it and are not acknowledged.
        bytes_sent: Payload bytes of the frames that were written to it.
        bytes_received: Payload bytes of the frames that came from it.
    """

    id: str
    gateway: str
    service: str
    user: str
    device: str
    address: str
    user_agent: str
    since: dt.datetime
    protocol: str
    sent: int
    acknowledged: int
    unacknowledged: int
    bytes_sent: int
    bytes_received: int

    @classmethod
    def parse(cls, inbox: Inbox, gateway: str, fields: Fields) -> Self:
        """Return what a gateway says of a socket.

        Raises:
            ValueError: It is not what a gateway of this version says.
        """
        texts = ("id", "device", "address", "user_agent", "protocol")
        numbers = ("sent", "acknowledged", "unacknowledged", "bytes_sent", "bytes_received")
        said: dict[str, Any] = {
            **{name: _text_of(fields.get(name)) for name in texts},
            **{name: number_of(fields.get(name)) for name in numbers},
            "since": _time_of(fields.get("since")),
        }
        return cls(gateway=gateway, service=inbox.service, user=inbox.user, **said)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway.

    Attributes:
        id: Names it, until it ends.
        version: Of wsgateway.
        host: The machine's name.
        pid: The process's id.
        started: When it began.
        sockets: Open sockets.
        services: Open sockets by service.
        memory: Bytes of memory that the process holds.
        draining: Whether it is letting its sockets go, and takes no more.
        rates: What happens per second, over the last minute: ``messages_in``, ``messages_out``,
            ``connects``. Of the whole process, if that has several event loops.
    """

    id: str
    version: str
    host: str
    pid: int
    started: dt.datetime
    sockets: int
    services: dict[str, int]
    memory: int
    draining: bool
    rates: dict[str, float]

    @classmethod
    def parse(cls, id: str, fields: Fields) -> Self:
        """Return what a gateway says of itself.

        Raises:
            ValueError: It is not what a gateway of this version says.
        """
        rates = fields.get("rates")
        if not isinstance(rates, dict):
            raise ValueError(f"{rates!r:.40} is not an object")
        return cls(
            id=id,
            version=_text_of(fields.get("version")),
            host=_text_of(fields.get("host")),
            pid=number_of(fields.get("pid")),
            started=_time_of(fields.get("started")),
            sockets=number_of(fields.get("sockets")),
            services=numbers_of(fields.get("services")),
            memory=number_of(fields.get("memory")),
            draining=fields.get("draining") is True,
            rates={name: float(rate) for name, rate in rates.items()},
        )


class Answered:
    """What the gateways answered."""

    __slots__ = ()

    silent: tuple[str, ...]
    """Ids of the gateways that should have answered and did not."""

    @property
    def complete(self) -> bool:
        """Whether every gateway has answered."""
        return not self.silent


class Found(Answered, tuple[T, ...]):
    """Several of the same kind, as far as the gateways answered."""

    def __new__(cls, items: Iterable[T] = (), silent: Iterable[str] = ()) -> Self:
        made = super().__new__(cls, items)
        made.silent = tuple(silent)
        return made


class Connections(Found[Connection]):
    """A user's open sockets, the oldest first."""


class Gateways(Found[Gateway]):
    """The gateways that answered, by id."""


@dataclass(frozen=True, slots=True)
class Page(Answered):
    """Some of the users who are online.

    Attributes:
        users: Their open sockets, by name, in the order of names.
        after: Pass it to `online` for the next page; None: there is none.
        silent: Ids of the gateways that did not answer: their users are missing.
    """

    users: dict[str, int]
    after: str | None
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Readers(Answered):
    """Some of the users who read a topic.

    Attributes:
        users: How many of their sockets read it, by pairs of service and user, in that order.
        sockets: How many sockets read it: all users', not only this page's.
        after: Pass it to `wsgateway.topics.readers` for the next page; None: there is none.
        silent: Ids of the gateways that did not answer: their users are missing.
    """

    users: dict[Inbox, int]
    sockets: int
    after: Inbox | None
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts(Answered):
    """How much is open.

    Attributes:
        sockets: Open sockets by service.
        users: Users with an open socket by service; one with several counts once.
        gateways: How many gateways answered.
        silent: Ids of those that did not: what they hold is missing.
    """

    sockets: dict[str, int]
    users: dict[str, int]
    gateways: int
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnected(Answered):
    """What `disconnect` did.

    Attributes:
        sockets: How many it closed.
        silent: Ids of the gateways that did not answer. One that wakes up closes what it holds
            then, if it gets the request at all.
    """

    sockets: int
    silent: tuple[str, ...] = ()


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not text")
    return value


def number_of(value: Any) -> int:
    """Return *value*, which must be a whole number, not below zero.

    Raises:
        ValueError: It is something else.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a number")
    return value


def numbers_of(value: Any) -> dict[str, int]:
    """Return *value*, which must be an object of such numbers.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is not an object")
    return {name: number_of(number) for name, number in value.items()}


def _time_of(value: Any) -> dt.datetime:
    time = dt.datetime.fromisoformat(_text_of(value))
    if time.tzinfo is None:
        raise ValueError(f"{value!r:.40} has no time zone")
    return time
