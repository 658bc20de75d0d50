"""A new token on an open socket: it replaces the login behind the socket, or is refused."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from wsgateway.exceptions import BrokerError, IdentityRefused
from wsgateway.identity import renew_identity, require_valid_token
from wsgateway.protocol.codes import CloseCode

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["renew"]

logger = logging.getLogger("wsgateway")


async def renew(session: Session, token: str) -> None:
    """Let *token* decide how long the socket lives, and tell the client.

    The session takes no other frame until that is done, so a client has one question at a time.
    """
    try:
        identity = await renew_identity(session.scope, session.identity, token)
        await require_valid_token(session.hub.broker, identity)
    except BrokerError:
        code = CloseCode.BROKER_UNAVAILABLE
        answer = session.endpoint.refuse_renewal(code.reason, temporary=True)
    except IdentityRefused as exc:
        failed = exc.code is CloseCode.INTERNAL_ERROR
        logger.log(
            logging.ERROR if failed else logging.INFO,
            "refused a new token of %s: %s",
            session.socket.transport.where,
            exc.explanation,
            exc_info=exc.__cause__ if failed else None,
            extra=session.log_fields,
        )
        answer = session.endpoint.refuse_renewal(exc.reason, temporary=exc.code.reconnect)
    else:
        session.hub.renew(session, identity)
        answer = session.endpoint.renewed(identity.expires_in)
    if answer is not None:
        session.socket.answer(answer.text)
