"""Every error the package raises on purpose, in one tree.

WsGatewayError
├── BrokerError
│   ├── BrokerUnavailable      no answer in time; nothing is known to have changed; retry
│   ├── BrokerMisconfigured    a server or stream is not as the settings want; needs an operator
│   │   └── BrokerForbidden    NATS' permissions do not allow it
│   ├── QueueFull              the stream refused the message; retry later
│   ├── MessageTooBig          also ValueError
│   ├── MessageRefused         also ValueError; the server never stores this message
│   └── BrokerClosed           the broker object is no longer open
├── BusError
│   ├── BusUnavailable         Kafka or RabbitMQ has not confirmed it; retry
│   ├── BusMisconfigured       a topic, exchange or permission is missing; needs an operator
│   └── RecordRefused          also ValueError; the bus never takes this record
├── ServiceUnknown             also LookupError; nobody declares it
│   └── TopicsUnknown          nobody declares topics of it
├── NameRefused                also ValueError; an identity or group that cannot be a subject
├── PartlySent                 an iterable of messages failed in the middle; says what is stored
├── MalformedMessage           also ValueError; bytes on a subject that mean nothing here
└── IdentityRefused            a socket that may not connect; carries a close code
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from wsgateway.protocol.codes import CloseCode

__all__ = [
    "BrokerClosed",
    "BrokerError",
    "BrokerForbidden",
    "BrokerMisconfigured",
    "BrokerUnavailable",
    "BusError",
    "BusMisconfigured",
    "BusUnavailable",
    "IdentityRefused",
    "MalformedMessage",
    "MessageRefused",
    "MessageTooBig",
    "NameRefused",
    "PartlySent",
    "QueueFull",
    "RecordRefused",
    "ServiceUnknown",
    "TopicsUnknown",
    "WsGatewayError",
]


def in_one_line(text: str) -> str:
    """Return *text* without line breaks: in a log, each line would look like another event."""
    return " ".join(text.split())


def reason_of(error: BaseException) -> str:
    """Return the text of *error* in one line, for the log; its type if it has none."""
    return in_one_line(str(error)) or type(error).__name__


class WsGatewayError(Exception):
    """Base of every error this package raises on purpose."""


class BrokerError(WsGatewayError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """No answer in time, or no connection. The operation may be retried with the same id."""


class NobodyAnswers(BrokerUnavailable):
    """Nobody listens where a request was sent."""


class BrokerMisconfigured(BrokerError):
    """The server or a stream is not what the settings want; an operator must act."""


class BrokerForbidden(BrokerMisconfigured):
    """The permissions of the NATS user, or its limits, do not allow it; an operator must act.

    Args:
        said: What the server said.
    """

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    def __str__(self) -> str:
        cure = "raise that limit in the server's configuration"
        if self.said.lower().startswith("permissions"):
            cure = "grant the permissions that docs/how-to/nats-permissions.md lists"
        return f"NATS refuses: {self.said}; {cure}"


class QueueFull(BrokerError):
    """The stream has reached its limit and refused the message. Nothing was stored."""


class MessageTooBig(BrokerError, ValueError):
    """A payload exceeds the limit.

    Args:
        size: Bytes in the payload.
        limit: Bytes allowed.
        setting: Name of the limit that was exceeded.
    """

    def __init__(self, size: int, limit: int, setting: str = "WSGATEWAY_MAX_MESSAGE_SIZE") -> None:
        super().__init__(size, limit, setting)
        self.size = size
        self.limit = limit
        self.setting = setting

    def __str__(self) -> str:
        return f"message of {self.size} bytes exceeds {self.setting} ({self.limit} bytes)"


class MessageRefused(BrokerError, ValueError):
    """The server refuses this message for what it is. Nothing was stored; do not retry."""


class BrokerClosed(BrokerError):
    """The broker is already closed; open a new one."""


class BusError(WsGatewayError):
    """The bus behind a bridge, Kafka or RabbitMQ, could not do what was asked."""

    lines: Sequence[str] = ()
    """If setting it up failed in part: what each step has to say."""


class BusUnavailable(BusError):
    """The bus has not confirmed it. It may be done; try again."""


class BusMisconfigured(BusError):
    """Something on the bus is missing or of another kind, or not allowed; an operator must act."""


class RecordRefused(BusError, ValueError):
    """The bus can never take this record. Nothing was stored; do not retry."""


class PartlySent(WsGatewayError):
    """`send_many` or `asend_many` ended before the last message; the cause says why.

    Args:
        outcomes: For each message that was read, in order, its receipt or why it is not stored.
        stored: How many of them are stored.
        error: What ended it.
    """

    def __init__(self, outcomes: Sequence[object], stored: int, error: Exception) -> None:
        super().__init__(outcomes, stored, error)
        self.outcomes = outcomes
        self.stored = stored
        self.error = error

    def __str__(self) -> str:
        return (
            f"{type(self.error).__name__} after {len(self.outcomes)} messages, of which "
            f"{self.stored} are stored; see its outcomes and __cause__, and send the others again"
        )


class ServiceUnknown(WsGatewayError, LookupError):
    """The service does not exist, so nobody could read what is sent. Nothing was stored.

    Args:
        service: Its name.
        services: The names of those that exist, as far as is known.
        is_other: Whether it exists, but as one of topics.
    """

    def __init__(self, service: str, services: Iterable[str] = (), is_other: bool = False) -> None:
        super().__init__(service)
        self.service = service
        self.is_other = is_other
        self.nearest = difflib.get_close_matches(service, sorted(services), n=1)

    @property
    def reason(self) -> str:
        """What happened."""
        if self.is_other:
            return f"service {self.service!r} has topics, not users"
        return f"service {self.service!r} does not exist"

    @property
    def cure(self) -> str:
        """What to do."""
        if self.is_other:
            return "name one of its topics, in Python with wsgateway.send_topic"
        cure = (
            "declare it with @service or WSGATEWAY_SERVICES, then restart, or run "
            '"manage.py setup_streams"'
        )
        return f"did you mean {self.nearest[0]!r}? Otherwise {cure}" if self.nearest else cure

    def __str__(self) -> str:
        return f"{self.reason}; {self.cure}"


class TopicsUnknown(ServiceUnknown):
    """The service has no topics, so nobody could read what is sent. Nothing was stored.

    Args:
        service: Its name.
        services: The names of those that have topics, as far as is known.
        is_other: Whether it exists, but as one of users.
    """

    @property
    def reason(self) -> str:
        """What happened."""
        has = "has users, not topics" if self.is_other else "has no topics"
        return f"service {self.service!r} {has}"

    @property
    def cure(self) -> str:
        """What to do."""
        if self.is_other:
            return "publish to its users with wsgateway.send"
        cure = "declare them with @topic, then restart the gateways"
        return f"did you mean {self.nearest[0]!r}? Otherwise {cure}" if self.nearest else cure


class NameRefused(WsGatewayError, ValueError):
    """A name that cannot be part of a subject, or that no user can have."""


class MalformedMessage(WsGatewayError, ValueError):
    """Bytes that do not mean what their subject says."""


class IdentityRefused(WsGatewayError):
    """The socket may not connect.

    Args:
        code: The ``codes.CloseCode`` to refuse with.
        reason: Short text for the client; never holds a secret, nor whether another user exists.
        cure: What else the log says: values, and what to do.
        cause: What the log says before that; the client's reason if this is empty.
    """

    def __init__(self, code: CloseCode, reason: str, cure: str = "", cause: str = "") -> None:
        super().__init__(code, reason, cure, cause)
        self.code = code
        self.reason = reason
        self.cure = cure
        self.cause = cause

    @property
    def explanation(self) -> str:
        """The cause and the cure in one line, for the log."""
        cause = self.cause or self.reason
        if not self.cure and not self.cause:
            return in_one_line(cause)
        told = f'The client reads "{self.reason}".' if self.cause else ""
        cure = f"{self.cure[:1].upper()}{self.cure[1:]}." if self.cure else ""
        return in_one_line(f"{cause}. {cure} {told}")

    def __str__(self) -> str:
        return self.reason
