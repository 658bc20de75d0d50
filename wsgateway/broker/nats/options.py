"""How to connect. Files are read for each attempt, so that renewed ones are used."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import RawCredentials

from wsgateway.broker.addresses import Address
from wsgateway.protocol.backoff import Backoff

__all__ = ["ConnectionOptions"]

_BACKOFF = Backoff(0.05, 2.0, 2.0, jitter=0.5)

_CREDENTIALS = re.compile(
    rb"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+"
    rb".*?-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+",
    re.DOTALL,
)


@dataclass(frozen=True)
class ConnectionOptions:
    """Where and how to connect. Times in seconds, files as paths.

    Attributes:
        unreachable_cure: What else helps when nobody answers, beginning with "or"; may be empty.
    """

    servers: tuple[str, ...]
    name: str = "wsgateway"
    user: str = ""
    password: str = ""
    token: str = ""
    credentials: str = ""
    nkey_seed: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_hostname: str = ""
    discover: bool = True
    connect_timeout: float = 2.0
    timeout: float = 5.0
    publish_timeout: float = 25.0
    ping_interval: float = 5.0
    backoff: Backoff = _BACKOFF
    unreachable_cure: str = field(default="", compare=False)

    def insists_on_tls(self, address: Address) -> bool:
        """Say whether *address* may only be used with TLS."""
        return address.tls or bool(self.tls_ca or self.tls_cert)

    def for_nats(self, address: Address) -> dict[str, Any]:
        """Return the options that nats-py's ``connect`` takes for *address*; reads files.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is not what it should be.
        """
        # A login in the URL wins over the settings
        user, password, token = self.user, self.password, self.token
        if address.has_login:
            user, password, token = address.user, address.password, address.token
        wanted: dict[str, Any] = {
            "user": user or None,
            "password": password if user else None,
            "token": token or None,
            "tls": self._context() if self.insists_on_tls(address) else None,
            "tls_hostname": self.tls_hostname or address.tls_name or None,
        }
        if self.credentials:
            wanted["user_credentials"] = _credentials(self.credentials)
        elif self.nkey_seed:
            seed = Path(self.nkey_seed).read_bytes().strip()
            _key(seed, self.nkey_seed).wipe()
            wanted["nkeys_seed_str"] = seed.decode()
        return {key: value for key, value in wanted.items() if value is not None}

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.tls_ca or None)
        except ssl.SSLError as exc:
            raise ValueError(f"{self.tls_ca!r} holds no CA certificate") from exc
        if self.tls_cert:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key or None)
            except ssl.SSLError as exc:
                raise ValueError(
                    f"{self.tls_cert!r} and {self.tls_key or self.tls_cert!r} are not a "
                    "certificate and its key"
                ) from exc
        return context


def _key(seed: bytes, path: str) -> Any:
    """Return the key pair of *seed*; the error never shows it."""
    try:
        return nkeys.from_seed(bytearray(seed))
    except Exception:  # nkeys raises half a dozen kinds
        raise ValueError(f"{path!r} holds no nkey seed; is it being written?") from None


def _credentials(path: str) -> RawCredentials:
    """Return what a ``.creds`` file holds.

    Checked here, because nats-py loops for ever over a file without a JWT.
    """
    found = _CREDENTIALS.search(Path(path).read_bytes())
    if found is None:
        raise ValueError(f"{path!r} holds no user JWT and nkey seed; is it being written?")
    jwt, seed = found.groups()
    _key(seed, path).wipe()
    return RawCredentials(
        f"-----BEGIN NATS USER JWT-----\n{jwt.decode()}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
