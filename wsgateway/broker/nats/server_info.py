"""What a NATS server says about itself in INFO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

__all__ = ["ServerInfo"]


class ServerInfo(NamedTuple):
    """A server, as of its latest INFO.

    Attributes:
        id: Names it; letters and digits.
        name: The name in its configuration.
        version: Zeros before the first connection.
        max_payload: Bytes that it takes in one message, headers included.
        is_clustered: Whether it may be one of several.
        has_jetstream: Whether it runs JetStream.
    """

    id: str = ""
    name: str = ""
    version: tuple[int, int, int] = (0, 0, 0)
    max_payload: int = 1024 * 1024
    is_clustered: bool = False
    has_jetstream: bool = False

    @classmethod
    def parse(cls, info: Mapping[str, object]) -> Self:
        """Return what *info* says; what it lacks is as in the defaults."""
        numbers = str(info.get("version", "")).partition("-")[0].split(".")
        major, minor, patch = [int(n) if n.isdigit() else 0 for n in [*numbers, "0", "0", "0"]][:3]
        limit = info.get("max_payload")
        return cls(
            str(info.get("server_id", "")),
            str(info.get("server_name", "")),
            (major, minor, patch),
            limit if isinstance(limit, int) and limit > 0 else cls().max_payload,
            bool(info.get("cluster")),
            bool(info.get("jetstream")),
        )
