"""TLS to a bus: how both clients connect, and what their errors mean."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from wsgateway.exceptions import BusMisconfigured, reason_of

if TYPE_CHECKING:
    from wsgateway.bridges.config import Bridge

__all__ = ["tls_context", "tls_error", "tls_flaw"]

TIME = {9, 10}
"""OpenSSL's codes for a certificate that is not valid yet, or no longer."""
NAME = {62, 64}
"""Its codes for a certificate of another host name, or another IP address."""


def tls_context(bridge: Bridge) -> ssl.SSLContext:
    """Return what *bridge* connects with.

    Raises:
        BusMisconfigured: A certificate cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=bridge.ca or None)
        if bridge.cert:
            context.load_cert_chain(bridge.cert, bridge.key)
    except (OSError, ValueError) as exc:
        files = ", ".join(filter(None, (bridge.ca, bridge.cert, bridge.key)))
        raise BusMisconfigured(
            f"cannot load the certificate files of bridge {bridge.name!r} ({files}): "
            f"{reason_of(exc)}; correct 'ca', 'cert' or 'key', or the files"
        ) from exc
    return context


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS that is behind *error*, if there is one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__
    return found


def tls_flaw(error: ssl.SSLError, where: str, bridge: Bridge) -> BusMisconfigured:
    """Return what an error of TLS means, and what to do.

    Args:
        error: The error.
        where: Which server it came from, such as ``Kafka at localhost:9093``.
        bridge: The bridge's configuration.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in TIME:
            cure = "renew it, or correct this machine's clock"
        elif error.verify_code in NAME:
            cure = f"use a host in 'url' of bridge {bridge.name!r} that the certificate names"
        else:
            cure = (
                f"set 'ca' of bridge {bridge.name!r} to the certificate of the authority that "
                "signed it"
            )
        return BusMisconfigured(
            f"cannot trust the certificate of {where}: {error.verify_message}; {cure}"
        )
    reason = error.reason or reason_of(error)
    cure = f"check that 'url' of bridge {bridge.name!r} names a port for TLS"
    if "CERT" in reason:
        cure = f"set 'cert' and 'key' of bridge {bridge.name!r} to a certificate that it accepts"
    return BusMisconfigured(f"TLS with {where} failed: {reason}; {cure}")
