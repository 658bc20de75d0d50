"""The tests; `SERVICES` are those that exist for them, here and in the processes they start."""

from __future__ import annotations

SERVICES = ["demo", "faults", "orders", "s", "service", "service1"]
