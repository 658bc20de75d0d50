"""What errors of TLS mean to who sets up a bridge."""

from __future__ import annotations

import ssl

import pytest

from wsgateway.bridges.config import Bridge
from wsgateway.bridges.tls import tls_error, tls_flaw

BRIDGE = Bridge("warehouse", "ws", "kafka", (), ("orders",))
WHERE = "Kafka at localhost:9093"


@pytest.mark.parametrize(
    ("code", "message", "cure"),
    [
        (10, "certificate has expired", "renew it, or correct this machine's clock"),
        (
            62,
            "Hostname mismatch",
            "use a host in 'url' of bridge 'warehouse' that the certificate names",
        ),
        (
            19,
            "self-signed certificate in certificate chain",
            "set 'ca' of bridge 'warehouse' to the certificate of the authority that signed it",
        ),
    ],
)
def test_certificate_of_the_server(code: int, message: str, cure: str) -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = code, message
    told = str(tls_flaw(error, WHERE, BRIDGE))
    assert told == f"cannot trust the certificate of {WHERE}: {message}; {cure}"


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        ("WRONG_VERSION_NUMBER", "check that 'url' of bridge 'warehouse' names a port for TLS"),
        (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "set 'cert' and 'key' of bridge 'warehouse' to a certificate that it accepts",
        ),
    ],
)
def test_what_else_fails(reason: str, cure: str) -> None:
    error = ssl.SSLError(1, "x")
    error.reason = reason
    assert str(tls_flaw(error, WHERE, BRIDGE)) == f"TLS with {WHERE} failed: {reason}; {cure}"


def test_error_of_tls_is_found_behind_others() -> None:
    inner, outer = ssl.SSLError(1, "x"), OSError("y")
    outer.__cause__ = inner
    assert tls_error(outer) is inner
    assert tls_error(OSError("z")) is None
