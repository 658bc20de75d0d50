"""What a handler raises to say what shall happen to its message."""

from __future__ import annotations

from wsgateway.exceptions import WsGatewayError

__all__ = ["Reject", "Retry"]


class Retry(WsGatewayError):
    """Deliver the message again later; counts as an attempt.

    Args:
        reason: For the log.
        after: Seconds; None: as the service's retry policy says.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.after = after


class Reject(WsGatewayError):
    """The message is wrong and will stay so: the client is told, and it is not tried again.

    Args:
        reason: Shown to the client's developer; never a secret.
        code: One word that the client's code may look at.
    """

    def __init__(self, reason: str, *, code: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
