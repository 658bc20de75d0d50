"""Says on the bus that sockets come and go; see `protocol.events`.

At most once, and beside everything else: nothing waits for it, and nothing is kept while the
broker is away.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wsgateway.exceptions import BrokerClosed, BrokerUnavailable
from wsgateway.protocol.events import (
    CONNECTED,
    DISCONNECTED,
    JOINED,
    LEFT,
    SocketEvent,
    encode_event,
)

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.gateway.session import Session
    from wsgateway.protocol.subjects import Topic

__all__ = ["SocketEvents"]


class SocketEvents:
    """Publishes the events of one event loop's sockets.

    Args:
        broker: Carries them.
        gateway: This gateway's id.
    """

    def __init__(self, broker: Broker, gateway: str) -> None:
        self._broker = broker
        self._gateway = gateway

    def connected(self, session: Session) -> None:
        """Say that a socket was accepted and welcomed."""
        session.is_announced = True
        self._publish(CONNECTED, session)

    def disconnected(self, session: Session) -> None:
        """Say that it is gone, if anybody was told of it. Idempotent."""
        if session.is_announced:
            session.is_announced = False
            self._publish(DISCONNECTED, session)

    def joined(self, session: Session, topic: Topic) -> None:
        """Say that a socket begins to read a topic."""
        self._publish(JOINED, session, topic)

    def left(self, session: Session, topic: Topic) -> None:
        """Say that it does not read it any more."""
        self._publish(LEFT, session, topic)

    def _publish(self, kind: str, session: Session, topic: Topic | None = None) -> None:
        if not self._broker.bus.is_open:
            return
        identity, is_gone = session.identity, kind == DISCONNECTED
        is_gone = is_gone or (kind == LEFT and session.socket.closed)
        event = SocketEvent(
            event=kind,
            service=identity.service,
            user=identity.user,
            device=identity.device,
            connection=session.connection,
            gateway=self._gateway,
            time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            protocol=session.endpoint.subprotocol or "",
            topic=None if topic is None else str(topic),
            code=session.close_code if is_gone else None,
            reconnect_after=session.reconnect_after if is_gone else None,
        )
        with contextlib.suppress(BrokerUnavailable, BrokerClosed):
            self._broker.bus.publish(
                self._broker.subjects.event(topic or session.inbox), encode_event(event)
            )
