"""What daphne does not offer through ASGI: its end, and close codes below 3000 with a reason.

``tests/integration/test_daphne.py`` fails when a new version of daphne changes one of the details
that this leans on. With another server nothing here does anything.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["at_shutdown", "close", "gone", "quieten"]

CLOSED = 0
"""autobahn's ``STATE_CLOSED``."""


def at_shutdown(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Let daphne wait for *work* before it ends: it does not speak ASGI's lifespan.

    Args:
        work: Called once, in the running loop.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if getattr(reactor, "_asyncioEventloop", None) is not asyncio.get_running_loop():
        return
    from twisted.internet.defer import Deferred

    def begin() -> Deferred[None]:
        return Deferred.fromFuture(asyncio.ensure_future(work()))

    reactor.addSystemEventTrigger("before", "shutdown", begin)


def quieten() -> None:
    """Stop autobahn from formatting debug messages that nobody reads.

    It pretty-prints all options of each new connection before it finds out that debug messages
    are off: a fourth of what a connection costs (``benchmarks sockets``: 630-790 connections a
    second before, 790-1,100 after, in the same run).
    """
    module: Any = sys.modules.get("autobahn.websocket.protocol")
    for name in ("pformat", "hltype"):
        if hasattr(module, name):
            setattr(module, name, _nothing)


def _nothing(value: object) -> str:
    return ""


def _protocol(send: Any) -> Any:
    found = getattr(send, "args", None)
    return found[0] if found else None


def gone(send: Any) -> bool:
    """Say whether the socket is closed already; False if *send* is not daphne's.

    ASGI tells by an event that waits in a queue, and daphne's send raises autobahn's own error.
    """
    return getattr(_protocol(send), "state", None) == CLOSED


def close(send: Any, code: int, reason: str) -> bool:
    """Close a websocket with any code and a reason; return False if *send* is not daphne's.

    Daphne's own way raises an exception for every code but 1000 and 3000-4999, and drops the
    reason.

    Args:
        send: The ASGI server's send: with daphne, a partial whose first argument is the socket.
        code: Close code.
        reason: Up to 123 bytes of UTF-8.
    """
    protocol = _protocol(send)
    if not hasattr(protocol, "sendCloseFrame"):
        return False
    protocol.sendCloseFrame(code=code, reasonUtf8=reason.encode(), isReply=False)
    return True
