"""A site with topics that every client may read, for the benchmark `topics`."""

from __future__ import annotations

SUBJECT = "bench.floor"
"""What `floor` writes to every socket."""
