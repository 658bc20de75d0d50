"""Where a client connects to, and with which token."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from wsgateway.client.callbacks import fetch
from wsgateway.client.errors import GatewayError
from wsgateway.client.inbox import Position
from wsgateway.client.lost import Final, Lost
from wsgateway.exceptions import reason_of
from wsgateway.protocol.codes import CloseCode

__all__ = ["Endpoint", "Token"]

logger = logging.getLogger("wsgateway.client")

Token = str | Callable[[], str | Awaitable[str]]


class Endpoint:
    """The gateway's URL, the device, and the token.

    Args:
        url: ``ws://`` or ``wss://``.
        device: Which of the user's devices this is; None: the gateway's default.
        token: Sent in the query, or a function that returns it; None: no token.
        token_parameter: Name of the token's query parameter.
    """

    def __init__(
        self, url: str, device: str | None, token: Token | None, token_parameter: str
    ) -> None:
        self._url = url
        self._device = device
        self._source = token
        self._token_parameter = token_parameter
        self._token: str | None = None  # the current one

    async def authenticate(self) -> None:
        """Ask for the token.

        Raises:
            Final: The application raised a `GatewayError` that is not temporary.
            Lost: The application raised anything else.
        """
        source = self._source
        try:
            self._token = await fetch(source) if callable(source) else source
        except Exception as exc:
            if isinstance(exc, GatewayError) and not exc.temporary:
                raise Final(CloseCode.NOT_AUTHENTICATED, str(exc)) from exc
            logger.warning("cannot get a token, retrying: %s", reason_of(exc))
            raise Lost(1006, "no token") from exc

    def address(self, position: Position | None) -> str:
        """Return the URL that resumes after *position*."""
        fields = {}
        if self._token:
            fields[self._token_parameter] = self._token
        if self._device:
            fields["device"] = self._device
        if position is not None:
            fields |= {"epoch": position.epoch, "offset": str(position.offset)}
            if position.inbox is not None:
                fields["inbox"] = position.inbox
        parts = urlsplit(self._url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True)) | fields
        return urlunsplit(parts._replace(query=urlencode(query), fragment=""))
