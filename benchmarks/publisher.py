"""A process that publishes to many inboxes; started by the benchmarks."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

import django
from django.conf import settings as django_settings

from benchmarks.load import payload
from project import env
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import ConnectionOptions
from wsgateway.broker.nats.specs import wanted_streams
from wsgateway.conf import settings
from wsgateway.protocol.subjects import Inbox, Subjects

__all__ = ["command", "publish"]


def command(url: str, prefix: str, users: int, count: int, mode: str, rate: float) -> list[str]:
    """Return the command line of a publisher process."""
    return [
        *(sys.executable, "-m", "benchmarks.publisher", url, prefix),
        *(str(users), str(count), mode, str(rate)),
    ]


CONFIRM_EVERY = 1000


async def publish(
    url: str, prefix: str, users: int, count: int, mode: str, rate: float, in_flight: int = 64
) -> dict[str, float]:
    """Publish *count* messages to *users* inboxes in turn.

    Args:
        url: The server.
        prefix: Of subjects.
        users: Inboxes ``bench``/``u0`` ….
        count: Messages altogether; the number of each within its inbox is in it.
        mode: ``acked``: each is confirmed, *in_flight* at a time; ``unacked``: none is, but now and
            then another message, because nats-server drops what it cannot store fast enough.
        rate: Messages per second; 0: as fast as possible.
        in_flight: Unconfirmed messages at most.
    """
    if not django_settings.configured:
        ours = {"WSGATEWAY_SERVICES": ["bench"]}
        django_settings.configure(**ours, **env.gateway_settings(os.environ))
        django.setup()
    subjects = Subjects(prefix)
    specs = wanted_streams(subjects, settings)
    broker = NatsBroker(ConnectionOptions((url,), timeout=30.0), subjects, specs)
    await broker.open()
    await broker.wait_ready()
    inboxes = [Inbox("bench", f"u{number}") for number in range(users)]
    targets = [subjects.recv(inbox) for inbox in inboxes]
    begin = time.perf_counter()

    async def pace(number: int) -> None:
        if rate:
            ahead = begin + number / rate - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)

    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await pace(number)
            await broker.publish(inboxes[number % users], payload(number // users))

    if mode == "acked":
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(lane())
    else:
        for number in numbers:
            await pace(number)
            broker.connection.publish(targets[number % users], payload(number // users))
            if number % CONFIRM_EVERY == 0:
                await broker.publish(Inbox("bench", "nobody"), b"")
    seconds = time.perf_counter() - begin
    await broker.close()
    return {"seconds": seconds, "rate": count / seconds}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("users", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("mode", choices=["acked", "unacked"])
    parser.add_argument("rate", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(publish(**vars(_parse())))))
