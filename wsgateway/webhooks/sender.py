"""Posts to one endpoint: within a deadline, to an address that was checked, and not beyond it.

It uses httpx's transport, not its client: so redirects are not followed, no proxy from the
environment comes in between, and no cookies are kept.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import wsgateway
from wsgateway.exceptions import WsGatewayError, reason_of
from wsgateway.webhooks.addresses import Addresses, AddressRefused
from wsgateway.webhooks.config import NO_HTTPX
from wsgateway.webhooks.signing import signed_headers
from wsgateway.webhooks.verdicts import Answer

if TYPE_CHECKING:
    import httpx

    from wsgateway.webhooks.config import Endpoint

__all__ = ["PostFailed", "Sender", "missing_httpx"]

IDLE = 1.0
"""Seconds for which an idle connection is kept. Gunicorn closes it after 2, Node.js after 5."""
CHUNKS = 256
"""Parts of an answer, which may be a byte each, after which others have a turn."""
CONNECT_TIMEOUT = 5.0
"""Longest wait for a connection to one address. All but the last share half of the time."""

FIXED = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",  # a small body could become a very large one
    "user-agent": f"wsgateway/{wsgateway.__version__}",
}


class PostFailed(WsGatewayError):
    """There is no answer: no connection, a broken one, or none in time."""


class Sender:
    """Posts to an endpoint from one event loop. Connections are kept for the next request.

    Args:
        endpoint: Where and how.
        max_size: Bytes of an answer's body that are read.
        addresses: Of the host; None: those that DNS has.
    """

    def __init__(
        self, endpoint: Endpoint, max_size: int, addresses: Addresses | None = None
    ) -> None:
        self._endpoint = endpoint
        self._max_size = max_size
        self._given = addresses
        self._line: _Line | None = None  # made by the first request

    async def post(self, id: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Sign and send *body*; return the answer, whatever its status is.

        Args:
            id: Names what is sent, the same at each try.
            body: JSON.
            headers: More headers.

        Raises:
            PostFailed: There is no answer; the endpoint may have got it.
            AddressRefused: Nothing was sent.
        """
        deadline = asyncio.timeout(self._endpoint.timeout)
        try:
            async with deadline:
                return await self._post(id, body, headers or {})
        except TimeoutError as exc:
            text = f"{self._endpoint.origin} took longer than {self._endpoint.timeout:g} s"
            raise PostFailed(text) from exc
        except AddressRefused:
            raise
        except ImportError as exc:
            raise PostFailed(f"{self._endpoint.origin}: {NO_HTTPX}") from exc
        except Exception as exc:  # of httpx, of the system, or because of what a setting says
            raise PostFailed(f"{self._endpoint.origin}: {_reason_of(exc)}") from exc

    async def _post(self, id: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        import httpx

        line = self._line = self._line or _Line(self._endpoint, self._given)
        signed = signed_headers(id, int(time.time()), body, self._endpoint.keys)
        headers = {**headers, **FIXED, "host": line.url.netloc.decode("ascii"), **signed}
        addresses = await line.addresses.find()
        share = min(CONNECT_TIMEOUT, self._endpoint.timeout / 2 / len(addresses))
        for address in addresses:
            is_last = address == addresses[-1]
            connect = CONNECT_TIMEOUT if is_last else share
            try:
                async with line.posting(address, connect, headers, body) as response:
                    return await self._read(response)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                line.addresses.avoid(address)
                if is_last:
                    line.addresses.forget()
                    raise
            except asyncio.CancelledError:  # the deadline, or the worker ends
                line.addresses.avoid(address)
                raise
        raise AssertionError("there is an address, or AddressRefused is raised")

    async def _read(self, response: httpx.Response) -> Answer:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if headers.get("content-encoding", "identity") != "identity":
            return Answer(response.status_code, headers, b"", "is compressed; send it as it is")
        body, chunks = bytearray(), 0
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_size:
                problem = f"has more than {self._max_size} bytes"
                return Answer(response.status_code, headers, b"", problem)
            chunks += 1
            if not chunks % CHUNKS:
                await asyncio.sleep(0)
        return Answer(response.status_code, headers, bytes(body))

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._line is not None:
            await self._line.close()


def missing_httpx() -> str:
    """Return what to do if httpx is missing; "" if it is there."""
    return NO_HTTPX if find_spec("httpx") is None else ""


def _reason_of(error: BaseException) -> str:
    """Return why there is no answer. httpx only says "All connection attempts failed"."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__ or cause.__context__
    return "connection refused; is it running, on this port?" if cause else reason_of(error)


class _Line:
    """The way to an endpoint: its addresses, and the connections to them."""

    def __init__(self, endpoint: Endpoint, addresses: Addresses | None) -> None:
        import httpx  # an extra

        self.url = httpx.URL(endpoint.url)
        self._host = self.url.raw_host.decode("ascii")  # httpx may be unable to decode "xn--"
        port = self.url.port or (443 if self.url.scheme == "https" else 80)
        # What runs at once is limited by who calls; a request must not wait for a connection
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE
        )
        self._transport = httpx.AsyncHTTPTransport(verify=_trust(endpoint), limits=limits)
        self.addresses = addresses or Addresses(self._host, port, endpoint.allow_private)

    @asynccontextmanager
    async def posting(
        self, address: str, connect: float, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Post to *address*, to which a connection takes *connect* seconds at most."""
        import httpx

        extensions = {
            "sni_hostname": self._host,  # also what the certificate must be for
            "timeout": httpx.Timeout(None, connect=connect).as_dict(),
        }
        url = self.url.copy_with(host=address)
        request = httpx.Request("POST", url, headers=headers, content=body, extensions=extensions)
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        self.addresses.close()
        await self._transport.aclose()


def _trust(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """Return which certificates are accepted, as httpx wants it; True: the usual authorities'."""
    if endpoint.is_plain:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # none: it saves reading all of them
    return ssl.create_default_context(cafile=endpoint.ca) if endpoint.ca else True
