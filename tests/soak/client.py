"""A process of v1 clients: ``python -m tests.soak.client LEDGER URL DEVICE USER|TOPIC...``.

Each user receives, and sends numbered messages; each reads all topics too, and writes to the one
that has its name. What was received is noted before it is acknowledged; what was sent is noted
once it is accepted. SOAK_SLOW gives seconds that each message takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path

from tests.soak.ledger import Ledger, read
from wsgateway.client import Backoff, Client, GatewayError, Message, Subscribed
from wsgateway.protocol.v1 import Welcome

SLOW = float(os.environ.get("SOAK_SLOW", "0"))
SEND_PAUSE = 0.05
SERVICE = "soak"
TOPICS = "lounge"
"""The service of the topics."""


class User:
    """One user's client."""

    def __init__(
        self, ledger: Ledger, url: str, device: str, name: str, number: int, written: int
    ) -> None:
        self.ledger = ledger
        self.name = name
        self.device = device
        self.number = number  # of the next message to send
        self.written = written  # of the next one for the user's own topic
        self.epoch = ""
        self.client = Client(
            f"{url}/ws/{SERVICE}/{name}/",
            device=device,
            backoff=Backoff(0.05, cap=1.0),
            ping_timeout=4.0,
            connect_timeout=8.0,
            on_welcome=self.welcomed,
            additional_headers={"Cookie": f"service={SERVICE}; user={name}"},
            proxy=None,
        )

    def note(self, kind: str, **fields: object) -> None:
        """Append to the ledger."""
        self.ledger.note(kind, user=self.name, device=self.device, **fields)

    def welcomed(self, welcome: Welcome) -> None:
        """Note where delivery begins."""
        self.epoch = welcome.epoch
        self.note(
            "welcome",
            epoch=welcome.epoch,
            offset=welcome.offset,
            recovered=welcome.recovered,
            reason=welcome.reason,
        )

    async def receive(self) -> None:
        """Note each message; asking for the next one acknowledges it."""
        async for message in self.client:
            fields = json.loads(message.data)
            if "n" in fields:
                self.note("got", **_place(message), epoch=self.epoch)
            if SLOW:
                await asyncio.sleep(SLOW)

    async def read(self, topic: str) -> None:
        """Note each message of a topic, as one that *topic* got on a device of this user's."""
        device, epoch = f"{self.name}.{self.device}", ""

        def subscribed(answer: Subscribed) -> None:
            nonlocal epoch
            epoch = answer.epoch
            fields = {"offset": answer.offset, "recovered": answer.recovered}
            self.ledger.note("welcome", user=topic, device=device, epoch=epoch, **fields)

        self.ledger.note("begin", users=[topic], device=device)
        async for message in self.client.topic(topic, since="all", on_subscribed=subscribed):
            self.ledger.note("got", user=topic, device=device, **_place(message), epoch=epoch)
            if SLOW:
                await asyncio.sleep(SLOW)

    async def write(self, topic: str, stop: asyncio.Event) -> None:
        """Write to a topic, one message after the other; what is accepted was published to it."""
        while not stop.is_set():
            fields = {"user": topic, "n": self.written}
            self.ledger.note("publishing", **fields)
            try:
                text = json.dumps({"n": self.written})
                await self.client.topic(topic).send(text, id=f"{topic}.{self.written}")
            except GatewayError as exc:
                self.ledger.note("refused", **fields, code=exc.code, temporary=exc.temporary)
                if not exc.temporary or exc.code == "closed":
                    return
                await asyncio.sleep(0.2)
                continue
            self.ledger.note("published", **fields)
            self.written += 1
            await asyncio.sleep(4 * SEND_PAUSE)

    async def send(self, stop: asyncio.Event) -> None:
        """Send one message after the other; one that was refused for now again, with its id."""
        while not stop.is_set():
            name = f"{self.name}.{self.device}.{self.number}"
            self.note("sending", n=self.number)
            try:
                await self.client.send({"n": self.number, "device": self.device}, id=name)
            except GatewayError as exc:
                self.note("refused", n=self.number, code=exc.code, temporary=exc.temporary)
                if not exc.temporary or exc.code == "closed":
                    return
                await asyncio.sleep(0.2)
                continue
            self.note("accepted", n=self.number)
            self.number += 1
            await asyncio.sleep(SEND_PAUSE)


def _place(message: Message) -> dict[str, float]:
    """Return which message it is, and where and when it was stored."""
    stored = datetime.fromisoformat(str(message.time)).timestamp()
    return {"n": json.loads(message.data)["n"], "offset": message.offset, "stored": stored}


async def main(path: Path, url: str, device: str, names: list[str]) -> None:
    """Run until SIGTERM ends sending, and SIGINT everything."""
    following = dict.fromkeys(names, 0)
    topics = [name for name in names if "." in name]
    for entry in read(path):
        if entry["kind"] in ("sending", "accepted", "publishing"):
            following[entry["user"]] = entry["n"] + 1
    ledger = Ledger(path)
    stop, end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, end.set)
    written = {f"{TOPICS}.{name}": following.get(f"{TOPICS}.{name}", 0) for name in names}
    users = [
        User(ledger, url, device, name, following[name], written[f"{TOPICS}.{name}"])
        for name in names
        if name not in topics
    ]
    ledger.note("begin", users=[user.name for user in users], device=device)
    await asyncio.gather(*(user.client.open() for user in users))
    receiving = [asyncio.create_task(user.receive()) for user in users]
    receiving += [asyncio.create_task(user.read(topic)) for user in users for topic in topics]
    own = {f"{TOPICS}.{user.name}": user for user in users if not SLOW}
    sending = asyncio.gather(
        *(user.send(stop) for user in users),
        *(own[topic].write(topic, stop) for topic in topics if topic in own),
    )
    await sending
    ledger.note("sent")
    await end.wait()
    await asyncio.gather(*(user.client.close() for user in users))
    await asyncio.gather(*receiving)
    ledger.note("end")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
