"""Every error the package raises on purpose, in one tree.

WsGatewayError
├── BrokerError
│   ├── BrokerUnavailable      no answer in time; nothing is known to have changed; retry
│   ├── BrokerMisconfigured    a server or stream is not as the settings want; needs an operator
│   ├── QueueFull              the stream refused the message; retry later
│   ├── MessageTooBig          also ValueError
│   └── BrokerClosed           the broker object is no longer open
├── NameRefused                also ValueError; an identity or group that cannot be a subject
├── MalformedMessage           also ValueError; bytes on a subject that mean nothing here
└── IdentityRefused            a socket that may not connect; carries a close code
"""

from __future__ import annotations

from wsgateway.codes import CloseCode

__all__ = [
    "BrokerClosed",
    "BrokerError",
    "BrokerMisconfigured",
    "BrokerUnavailable",
    "IdentityRefused",
    "MalformedMessage",
    "MessageTooBig",
    "NameRefused",
    "QueueFull",
    "WsGatewayError",
]


class WsGatewayError(Exception):
    """Base of every error this package raises on purpose."""


class BrokerError(WsGatewayError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """No answer in time, or no connection. The operation may be retried with the same id."""


class BrokerMisconfigured(BrokerError):
    """The server or a stream is not what the settings want; an operator must act."""


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


class BrokerClosed(BrokerError):
    """The broker is already closed; open a new one."""


class NameRefused(WsGatewayError, ValueError):
    """A name that cannot be part of a subject."""


class MalformedMessage(WsGatewayError, ValueError):
    """Bytes that do not mean what their subject says."""


class IdentityRefused(WsGatewayError):
    """The socket may not connect.

    Args:
        code: The ``codes.CloseCode`` to refuse with.
        reason: Short text for the client; never holds a secret.
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason
