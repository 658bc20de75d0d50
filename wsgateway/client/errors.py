"""What the client raises."""

from __future__ import annotations

from wsgateway.exceptions import WsGatewayError

__all__ = ["GatewayError"]


class GatewayError(WsGatewayError):
    """A message was refused, or the client is closed.

    Args:
        code: One of ``protocol.ErrorCode``, or ``closed``, ``queue_limit``, ``too_big``.
        message: What happened.
        temporary: Whether it makes sense to send the same message again, with the same id.
        id: The message's id; None if the error is not about a message.
        close_code: The close code that ended the connection, if one did.
    """

    def __init__(
        self,
        code: str,
        message: str,
        temporary: bool,
        *,
        id: str | None = None,
        close_code: int | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.temporary = temporary
        self.id = id
        self.close_code = close_code

    def __str__(self) -> str:
        return self.message

    def about(self, id: str) -> GatewayError:
        """Return the same error for the message *id*."""
        return GatewayError(
            self.code, self.message, self.temporary, id=id, close_code=self.close_code
        )
