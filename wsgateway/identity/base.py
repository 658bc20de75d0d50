"""Who is at the other end of a socket, and what a resolver is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from wsgateway.exceptions import IdentityRefused, NameRefused
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import ANONYMOUS, Inbox, encode_token

__all__ = ["ANONYMOUS", "DEFAULT_DEVICE", "Identity", "Resolver", "Scope", "shown"]

Scope = Mapping[str, Any]

DEFAULT_DEVICE = "default"
MAX_SHOWN = 80
"""Characters of a wrong value that are logged."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end of a socket.

    Attributes:
        service: The service that the socket talks to.
        user: The user's name within it.
        device: Which of the user's devices; each has its own cursor.
        session_key: The Django session behind it, whose end ends the socket; None without.
        user_id: Primary key, as text, of the Django user whose deactivation or deletion ends the
            socket; None if it is not a Django user.
        auth_hash: The user's session auth hash: a new password ends the socket. None: it does not.
        backend: Dotted path of the backend that the user logged in with; None: not known.
        credential: Model and primary key, as text, of the row whose deletion ends the socket, such
            as ``("authtoken.Token", "…")``; None: there is none.
        issued_at: Unix time at which the token behind it was issued. One from before the user has
            logged out everywhere is refused. None: there is no token, or it is never refused so.
        expires_at: Unix time at which the socket closes, because the token or signed cookie behind
            it expires; None: never.
        resolver: Dotted path of the resolver that made it, set by `resolve_identity`.

    Raises:
        IdentityRefused: A name is empty, too long, or not valid Unicode.
    """

    service: str
    user: str
    device: str = DEFAULT_DEVICE
    session_key: str | None = field(default=None, compare=False, repr=False)
    user_id: str | None = field(default=None, compare=False, repr=False)
    auth_hash: str | None = field(default=None, compare=False, repr=False)
    backend: str | None = field(default=None, compare=False, repr=False)
    credential: tuple[str, str] | None = field(default=None, compare=False, repr=False)
    issued_at: float | None = field(default=None, compare=False, repr=False)
    expires_at: float | None = field(default=None, compare=False, repr=False)
    resolver: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for part in ("service", "user", "device"):
            try:
                encode_token(getattr(self, part))
            except NameRefused as exc:
                raise IdentityRefused(
                    CloseCode.BAD_REQUEST, f"{part} is not a usable name: {exc}"
                ) from exc

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody is logged in: see `AnonymousIdentity`."""
        return self.user == ANONYMOUS

    @property
    def expires_in(self) -> float | None:
        """Seconds until the socket closes, 0 if that is over; None: it does not expire."""
        return None if self.expires_at is None else max(0.0, self.expires_at - time.time())

    @property
    def inbox(self) -> Inbox:
        """The address of the user's messages."""
        return Inbox(self.service, self.user)


class Resolver(Protocol):
    """What WSGATEWAY_IDENTITY lists: classes without arguments that have this method.

    One whose identities are Django users also has ``get_user(name)``, which returns the user whom
    it named, for handlers of services (`Message.user`).

    Methods may use the database: synchronous ones run in a thread, ``async def`` is awaited.
    """

    def resolve(self, scope: Scope) -> Identity | Awaitable[Identity | None] | None:
        """Return whose socket *scope* is; None if this resolver cannot tell.

        Raises:
            IdentityRefused: The socket may not connect; no other resolver is asked.
        """


def shown(value: object) -> str:
    """Return *value* for a log line; of objects, whose text may cost a query, only the type."""
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)[:MAX_SHOWN]
    return f"a value of type {type(value).__qualname__}"
