"""What a handler raises to say what happens to its message."""

from __future__ import annotations

from wsgateway.exceptions import WsGatewayError
from wsgateway.services.failure import code_word

__all__ = ["Pause", "Reject", "ReplyPending", "Retry"]


class Retry(WsGatewayError):
    """Deliver the message again later; counts as an attempt.

    Args:
        reason: For the log.
        after: Seconds, a day at most; None: as the service's retry policy says.
    """

    at_least = False
    """Whether *after* may be exceeded, where the policy waits longer."""

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.after = after


class Reject(WsGatewayError):
    """The message is wrong and will stay so: the client is told, and it is not tried again.

    Args:
        reason: Shown to the client's developer; never a secret.
        code: One word that the client's code may look at; what no word has becomes ``_``.
    """

    def __init__(self, reason: str, *, code: str = "rejected") -> None:
        super().__init__(reason)
        self.reason = str(reason)
        self.code = code_word(code)


class Pause(WsGatewayError):
    """Nothing of the service can be handled until an operator has mended something.

    Its messages wait until ``manage.py gateway resume``. This one does not use a try.

    Args:
        reason: For the log.
        since: When what shows it began, by the monotonic clock. If the service was resumed after
            that, it is not paused.
    """

    def __init__(self, reason: str, *, since: float) -> None:
        super().__init__(reason)
        self.since = since


class ReplyPending(WsGatewayError):
    """The message is handled, but the broker cannot store the reply now.

    The reply is stored later, without another call of the handler.

    Args:
        text: The reply, a text frame.
        reason: Why it is not stored.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(reason)
        self.text = text
