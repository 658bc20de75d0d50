"""A site with the server API, a topic and a webhook, for the benchmark `http`; and the backend."""

from __future__ import annotations

TOPIC = "feed.1"
"""What every reader reads, beside its own inbox; with Pushpin, the name of a channel."""
