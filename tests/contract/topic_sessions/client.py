"""A client whose socket reads topics, without a network."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Subscribed, Unsubscribed
from wsgateway.protocol.v1.endpoint import V1Endpoint
from wsgateway.protocol.v1.messages import ServerMessage

ANN = Inbox("service1", "ann")
ROOM, LOBBY, SECRET = Topic("room", "42"), Topic("room", "lobby"), Topic("room", "secret")
CURSOR = Topic("cursor", "7")


class Client(Transport):
    """A client that reads while `reads` is set."""

    def __init__(self, hub: Hub, user: str = "ann") -> None:
        super().__init__(self._take)
        self.reads = asyncio.Event()
        self.reads.set()
        self.frames: list[Any] = []
        self.session = Session(hub, Identity("service1", user), Socket(self, V1Endpoint))
        self._asked = 0

    async def _take(self, event: dict[str, Any]) -> None:
        await self.reads.wait()
        if event["type"] == "websocket.send":
            self.frames.append(protocol.parse_server(event["text"]))

    async def subscribe(self, topic: Topic, **options: Any) -> Any:
        """Ask for a topic; return the answer."""
        self._asked += 1
        id = f"s{self._asked}"
        await self.session.receive(protocol.encode_subscribe(id, str(topic), **options))
        return await until(lambda: self._answer(id), what=f"an answer about {topic}")

    def _answer(self, id: str) -> Any:
        kinds = (Subscribed, Unsubscribed)
        return next((f for f in self.frames if isinstance(f, kinds) and f.id == id), None)

    def told(self, kind: type[Any], topic: Topic) -> list[Any]:
        return [f for f in self.frames if isinstance(f, kind) and f.topic == str(topic)]

    def got(self, topic: Topic | None = None) -> list[Any]:
        """The payloads that came of *topic*; None: of the inbox."""
        name = None if topic is None else str(topic)
        messages = [f for f in self.frames if isinstance(f, ServerMessage) and f.topic == name]
        return [f.frame.data for f in messages]

    async def has(self, *expected: str, topic: Topic | None = None) -> None:
        await until(
            lambda: self.got(topic) == [*expected], what=f"{expected}, not {self.got(topic)}"
        )

    async def ack(self, topic: Topic) -> None:
        """Acknowledge everything that came of *topic*."""
        epoch = self.told(Subscribed, topic)[-1].epoch
        offset = max(f.offset for f in self.told(ServerMessage, topic))
        await self.session.receive(protocol.encode_client_ack(offset, epoch, str(topic)))

    async def say(self, id: str, text: str, topic: Topic) -> None:
        frame = protocol.encode_client_message(id, Frame.of(text), topic=str(topic))
        await self.session.receive(frame)

    async def unsubscribe(self, topic: Topic) -> None:
        await self.session.receive(protocol.encode_unsubscribe(str(topic)))


async def publish(broker: Broker, to: Inbox | Topic, *data: str) -> int:
    """Store messages; return the last one's offset."""
    offset = 0
    for text in data:
        offset = (await broker.publish(to, text.encode())).offset
    return offset


async def answer(client: Client, id: str) -> Any:
    """Return what the gateway says about a message of the client."""
    kinds = (protocol.Accepted, protocol.Refused)
    return await until(
        lambda: next((f for f in client.frames if isinstance(f, kinds) and f.id == id), None),
        what=f"an answer about {id}",
    )
