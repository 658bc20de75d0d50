"""Why a connection ended, and whether to reconnect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from wsgateway.client.errors import GatewayError
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import ProtocolError

__all__ = ["Final", "Lost", "translated"]

RETRY_STATUS = frozenset({408, 425, 429})
"""HTTP statuses below 500 that are worth another attempt."""


class Lost(Exception):
    """The connection ended, or could not be made.

    Args:
        code: The close code, or its equivalent if there was none.
        reason: What the gateway said, or what happened.
        status: The HTTP status that refused the handshake, if one did. Proxies and middleware do
            so; the gateway itself uses close codes.
    """

    def __init__(self, code: int, reason: str, status: int | None = None) -> None:
        super().__init__(code, reason, status)
        self.code = code
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        if self.status is not None:
            return self.reason
        return f"{self.code} {self.reason}".rstrip()


class Final(Lost):
    """The same, and another attempt is pointless."""


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what sockets and `websockets` raise into `Lost` and `Final`."""
    try:
        yield
    except ConnectionClosed as exc:
        if exc.sent is not None and not exc.rcvd_then_sent:  # `websockets` closed first
            option = " (max_size)" if exc.sent.code == 1009 else ""
            raise Lost(exc.sent.code, exc.sent.reason + option) from exc
        code, reason = (exc.rcvd.code, exc.rcvd.reason) if exc.rcvd else (1006, "")
        raise Lost(code, reason) from exc
    except InvalidStatus as exc:
        raise _refused(exc.response.status_code) from exc
    except GatewayError as exc:  # the session ends itself
        raise Final(exc.close_code or CloseCode.BAD_REQUEST, str(exc)) from exc
    except (InvalidURI, ProtocolError) as exc:
        raise Final(CloseCode.BAD_REQUEST, str(exc)) from exc
    except (OSError, TimeoutError, WebSocketException) as exc:
        raise Lost(1006, str(exc) or type(exc).__name__) from exc


def _refused(status: int) -> Lost:
    reason = f"refused with HTTP {status} before the gateway answered"
    if status in (401, 403):
        return Lost(CloseCode.NOT_AUTHENTICATED, reason, status)
    if status >= 500 or status in RETRY_STATUS:
        return Lost(1006, reason, status)
    return Final(CloseCode.BAD_REQUEST, reason, status)
