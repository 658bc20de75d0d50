"""The signals that ``manage.py runevents`` sends.

``docs/how-to/presence-events.md`` describes them.

Receivers may be synchronous or ``async def``. All signals have the keyword arguments *service*,
*user* and *time* (an aware `datetime`); those about sockets also have *device*, *connection*,
*gateway* and *protocol*, and the last one *code*.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["socket_connected", "socket_disconnected", "user_offline", "user_online"]

socket_connected = Signal()
"""A socket was accepted."""
socket_disconnected = Signal()
"""A socket is gone; not sent for those of a gateway that was killed."""
user_online = Signal()
"""The user's first socket, on whichever gateway, was accepted."""
user_offline = Signal()
"""The user's last socket is gone, and none came for ``WSGATEWAY_OFFLINE_GRACE`` seconds."""
