"""The tests. These settings hold for them and for the processes that they start."""

from __future__ import annotations

SERVICES = ["demo", "faults", "orders", "s", "service", "service1"]
"""The services that exist."""
LIMITS = {
    f"WSGATEWAY_{family}_MAX_BYTES": -1
    for family in ("INBOX", "TOPIC", "SEND", "DEAD", "CURSOR", "CHANNEL", "BLOB")
}
"""No limits in bytes, which reserve room: hundreds of installations share one server."""
