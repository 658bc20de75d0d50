"""What a gateway answers when others ask who is connected here, and what it does.

See `wsgateway.presence` for those who ask, and ``docs/how-to/presence.md`` for what goes over the
wire.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import wsgateway
from wsgateway import counters
from wsgateway.broker.bus import Closable
from wsgateway.broker.discovery import Endpoint, Shown
from wsgateway.broker.inquiry import Fields, Request, Responder, encode
from wsgateway.exceptions import BrokerError, reason_of
from wsgateway.handshake import header
from wsgateway.presence.overview import DIGEST, MAX_PARTS
from wsgateway.presence.paging import MAX_PAGE, first_of, size_of_name
from wsgateway.presence.readers import size_of_reader
from wsgateway.presence.users import GATEWAY
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.rates import Rates
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.gateway.hub import Hub
    from wsgateway.gateway.session import Session

__all__ = ["Presence"]

logger = logging.getLogger("wsgateway")

LISTED_WITHIN = 1.0
"""Seconds that the first sockets wait until this gateway is in the roster."""
MAX_USER_AGENT = 500
"""Characters of what a client says it is."""


class Presence:
    """Answers for one hub.

    Args:
        hub: Whose sockets they are.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._started = dt.datetime.now(dt.UTC)
        self.rates = Rates(lambda: counters.gateway.totals()._asdict())
        """How much this process does; run it."""
        self._listed = asyncio.Event()  # entered in the roster, or that failed
        self._about_users = Responder(
            hub.broker,
            {
                "connections": self._connections,
                "count": self._count,
                "disconnect": self._disconnect,
            },
        )
        self._about_us = Responder(
            hub.broker,
            {
                "info": self._info,
                "ping": self._ping,
                "counts": self._counts,
                "online": self._online,
                "readers": self._readers,
                "digests": self._digests,
                "drain": self._drain,
            },
        )

    # -- life cycle ----------------------------------------------------------------------

    def open(self) -> asyncio.Task[None]:
        """Answer from now on, and join the roster; return the task that does."""
        hub = self._hub
        self._about_us.listen(hub.broker.subjects.member(GATEWAY, hub.gateway_id))
        hub.broker.show(self._shown())
        return start(self._join(), "wsgateway-presence")

    async def _join(self) -> None:
        """Enter the roster: those who ask must know of us, or they would not notice our silence."""
        details = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": wsgateway.__version__,
            "started": self._started.isoformat(),
        }
        broker = self._hub.broker
        with contextlib.suppress(BrokerError):
            await broker.wait_ready()
        try:
            await broker.roster.join(GATEWAY, self._hub.gateway_id, details)
        except BrokerError as exc:
            level = logging.WARNING if broker.connected else logging.DEBUG  # the log has it then
            log_fields = {"gateway": self._hub.gateway_id}
            text = "this gateway is not in the roster yet: %s"
            logger.log(level, text, reason_of(exc), extra=log_fields)
        finally:
            self._listed.set()

    async def listed(self) -> None:
        """Wait until this gateway is in the roster, for a moment; before its first socket."""
        if not self._listed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LISTED_WITHIN):
                    await self._listed.wait()

    def leave(self) -> None:
        """Leave the roster, without waiting."""
        self._hub.broker.roster.leave(GATEWAY, self._hub.gateway_id)

    def hold(self, inbox: Inbox) -> Closable:
        """Answer for a user who has a socket here, until what this returns is closed."""
        return self._about_users.listen(self._hub.broker.subjects.conn(inbox))

    def _shown(self) -> Shown:
        """Return what NATS' own tools see of this gateway."""
        hub = self._hub
        return Shown(
            name="wsgateway",
            id=hub.gateway_id,
            version=wsgateway.__version__,
            description="Websockets whose messages are stored in JetStream.",
            started=self._started,
            metadata={
                "prefix": hub.broker.subjects.prefix,
                "host": socket.gethostname(),
                "pid": str(os.getpid()),
            },
            endpoints=self._endpoints,
        )

    def _endpoints(self) -> list[Endpoint]:
        subjects, hub = self._hub.broker.subjects, self._hub
        data = {"sockets": hub.sockets, "users": hub.inboxes, "draining": hub.draining}
        where = subjects.member(GATEWAY, hub.gateway_id)
        return [
            self._about_us.endpoint("gateway", where, data | counters.gateway.totals()._asdict()),
            self._about_users.endpoint("users", subjects.all_of("conn")),
        ]

    @property
    def _room(self) -> int:
        """Bytes of names, or of other things that are listed, in one answer."""
        return self._hub.broker.bus.max_payload - 1024

    # -- about a user --------------------------------------------------------------------

    def _asked_about(self, request: Request) -> tuple[Inbox, list[Session]]:
        """Return whom a request is about, and their open sockets."""
        _, inbox = self._hub.broker.subjects.parse(request.subject)
        return inbox, _open(self._hub.sessions_of(inbox))

    def _count(self, request: Request) -> Iterator[Fields]:
        _, sessions = self._asked_about(request)
        yield {"gateway": self._hub.gateway_id, "sockets": len(sessions)}

    def _connections(self, request: Request) -> Iterator[Fields]:
        _, sessions = self._asked_about(request)
        found: list[Fields] = []
        room = most = self._room
        for session in sessions:
            described = describe(session)
            size = len(encode(described)) + 1
            if found and size > room:
                yield {"gateway": self._hub.gateway_id, "connections": found}
                found, room = [], most
            found.append(described)
            room -= size
        yield {"gateway": self._hub.gateway_id, "connections": found}

    def _disconnect(self, request: Request) -> Iterator[Fields]:
        device, connection = request.text("device"), request.text("connection")
        reason, forgets = request.text("reason") or None, request.number("forget", 0, 1)
        inbox, sessions = self._asked_about(request)
        chosen = [
            session
            for session in sessions
            if device in (None, session.identity.device)
            and connection in (None, session.connection)
        ]
        code = CloseCode.DISCONNECTED_BY_OPERATOR
        for session in chosen:
            if forgets:
                self._hub.cursors.abandon(session.inbox_subscription.cursor)
            session.close_soon(code, reason)
        text = "disconnecting %d sockets of %r at the service %r"
        logger.info(text, len(chosen), inbox.user, inbox.service, extra={"code": int(code)})
        yield {"gateway": self._hub.gateway_id, "closed": len(chosen)}

    # -- about this gateway --------------------------------------------------------------

    def _ping(self, request: Request) -> Iterator[Fields]:
        yield {"gateway": self._hub.gateway_id}

    def _info(self, request: Request) -> Iterator[Fields]:
        services = Counter(inbox.service for inbox, held in self._users() for _ in held)
        yield {
            "gateway": self._hub.gateway_id,
            "version": wsgateway.__version__,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started.isoformat(),
            "sockets": services.total(),
            "services": services,
            "memory": resident_memory(),
            "draining": self._hub.draining,
            "rates": self.rates.per_second(),
        }

    def _drain(self, request: Request) -> Iterator[Fields]:
        self._hub.drain()
        yield {"gateway": self._hub.gateway_id, "draining": self._hub.draining}

    def _users(self) -> Iterator[tuple[Inbox, list[Session]]]:
        """Yield those who have an open socket here, with their sockets."""
        for inbox, sessions in self._hub.users():
            if held := _open(sessions):
                yield inbox, held

    def _counts(self, request: Request) -> Iterator[Fields]:
        sockets: Counter[str] = Counter()
        users: Counter[str] = Counter()
        for inbox, held in self._users():
            users[inbox.service] += 1
            sockets[inbox.service] += len(held)
        yield {"gateway": self._hub.gateway_id, "sockets": sockets, "users": users}

    def _online(self, request: Request) -> Iterator[Fields]:
        service, after = request.text("service"), request.text("after") or ""
        limit = request.number("limit", MAX_PAGE, MAX_PAGE)
        found = {
            inbox.user: count
            for inbox, sessions in self._hub.users()
            if inbox.service == service and inbox.user > after and (count := len(_open(sessions)))
        }
        users, more = first_of(found, limit, self._room, size_of_name)
        yield {"gateway": self._hub.gateway_id, "users": users, "more": more}

    def _readers(self, request: Request) -> Iterator[Fields]:
        topic = Topic(request.text("service") or "", request.text("name") or "")
        after = request.text("after_service") or "", request.text("after_user") or ""
        limit = request.number("limit", MAX_PAGE, MAX_PAGE)
        held = Counter(
            each.identity.inbox for each in self._hub.rights.holders_of(topic) if each.is_reading
        )
        later = {inbox: count for inbox, count in held.items() if inbox > after}
        page, more = first_of(later, limit, self._room, size_of_reader)
        yield {
            "gateway": self._hub.gateway_id,
            "readers": [[*inbox, count] for inbox, count in page.items()],
            "sockets": held.total(),
            "more": more,
        }

    def _digests(self, request: Request) -> Iterator[Fields]:
        """Stand-ins for names, so that many fit into an answer, and nobody needs to know them."""
        service = request.text("service")
        parts = max(1, request.number("parts", 1, MAX_PARTS))
        part = request.number("part", 0, MAX_PARTS)
        names = (inbox.user for inbox, _ in self._users() if inbox.service == service)
        digests = (blake2b(name.encode(), digest_size=DIGEST).digest() for name in names)
        chosen = [each for each in digests if int.from_bytes(each[:2]) % parts == part]
        yield {
            "gateway": self._hub.gateway_id,
            "digests": base64.b64encode(b"".join(chosen)).decode(),
        }


def _open(sessions: Iterable[Session]) -> list[Session]:
    return [session for session in sessions if not session.socket.closed]


def describe(session: Session) -> Fields:
    """Return what others may know of a socket."""
    scope = session.scope
    client = scope.get("client") or ("",)
    agents = header(scope, b"user-agent")
    window = session.inbox_subscription.window
    return {
        "id": session.connection,
        "device": session.identity.device,
        "address": str(client[0]),
        "user_agent": agents[0].decode("latin-1")[:MAX_USER_AGENT] if agents else "",
        "since": dt.datetime.fromtimestamp(session.since, dt.UTC).isoformat(),
        "protocol": session.endpoint.subprotocol or "",
        "sent": window.sent,
        "acknowledged": window.confirmed,
        "unacknowledged": window.unconfirmed,
        "bytes_sent": session.socket.traffic.bytes_out,
        "bytes_received": session.socket.traffic.bytes_in,
    }


def resident_memory() -> int:
    """Return the bytes of memory that this process holds; 0 if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
