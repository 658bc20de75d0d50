"""Which services exist, while others make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from wsgateway.broker.nats.jetstream import JetStream
from wsgateway.broker.nats.registry import Registry
from wsgateway.declared import NOTHING
from wsgateway.protocol.subjects import Subjects

SUBJECTS = Subjects("ws")


class Streams:
    """JetStream, to which somebody adds a stream as soon as it has answered once."""

    def __init__(self) -> None:
        self.registry = Registry(cast("JetStream", self), SUBJECTS, NOTHING)
        self.names: list[str] = []
        self.asked = 0

    async def api(self, name: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        assert name == "STREAM.NAMES"
        self.asked += 1
        answer = {"streams": self.names, "total": len(self.names)}
        if not self.names:
            self.names = [SUBJECTS.queue("new")]
            self.registry.invalidate()  # the broadcast comes before the answer is looked at
        return answer


async def test_service_that_is_made_while_it_is_asked_about_exists() -> None:
    """It counted as one that does not exist for three seconds more."""
    streams = Streams()
    assert await streams.registry.exists("new")
    assert streams.asked == 4  # two looks, each for users and for topics
