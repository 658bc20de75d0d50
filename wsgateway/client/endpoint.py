"""Where a client connects to, and with which token."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.typing import Subprotocol

from wsgateway.client.callbacks import fetch
from wsgateway.client.errors import GatewayError
from wsgateway.client.inbox import Position
from wsgateway.client.lost import Final, Lost
from wsgateway.exceptions import reason_of
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import encode_token_protocol
from wsgateway.protocol.v1 import SUBPROTOCOL

__all__ = ["Endpoint", "Token"]

logger = logging.getLogger("wsgateway.client")

Token = str | Callable[[], str | Awaitable[str]]


class Endpoint:
    """The gateway's URL, the device, and the token.

    Args:
        url: ``ws://`` or ``wss://``.
        device: Which of the user's devices this is; None: the gateway's default.
        token: The token, or a function that returns it; None: no token.
        token_parameter: Name of the query parameter for the token; None: it goes into the list of
            subprotocols, which access logs do not keep.
    """

    def __init__(
        self, url: str, device: str | None, token: Token | None, token_parameter: str | None
    ) -> None:
        self._url = url
        self._device = device
        self._source = token
        self._token_parameter = token_parameter
        self._token: str | None = None  # the current one

    async def authenticate(self) -> str | None:
        """Ask for the token, also for later connections; return it.

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
        return self._token

    def subprotocols(self) -> list[Subprotocol]:
        """Return what to offer, the token included."""
        offered = [SUBPROTOCOL]
        if self._token and self._token_parameter is None:
            offered.append(encode_token_protocol(self._token))
        return [Subprotocol(name) for name in offered]

    def address(self, position: Position | None) -> str:
        """Return the URL that resumes after *position*."""
        fields = {}
        if self._token and self._token_parameter is not None:
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
