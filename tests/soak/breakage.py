"""What breaks during a soak run. Each fault ends by itself and leaves everything running."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.soak.world import World
from tests.support import Gateway, Process, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.exceptions import BrokerError

__all__ = ["CLUSTER", "SINGLE", "Fault"]

Fault = Callable[[World], Awaitable[None]]
KINDS = ("recv", "topic")
"""Streams whose loss clients must hear of, see `World.stream`."""


def _choose(world: World, members: list[Process]) -> Process:
    return world.draw.choice(members)


async def _up_again(world: World, server: EmbeddedServer) -> None:
    await asyncio.to_thread(server.start, 60.0)
    if len(world.servers) > 1:  # or the next fault takes the quorum
        await _healthy(world)


async def _healthy(world: World) -> None:
    """Wait until every replica of the streams of messages is there and up to date."""

    async def current() -> bool:
        replicas: list[dict[str, Any]] = []
        async with world.broker() as broker:
            for kind in KINDS:
                info = await broker.jetstream.api(f"STREAM.INFO.{world.stream(kind)}")
                replicas += info["cluster"].get("replicas") or []
        wanted = len(KINDS) * (len(world.servers) - 1)
        return len(replicas) == wanted and all(r["current"] for r in replicas)

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if await current():
                return
        except BrokerError:
            pass
        await asyncio.sleep(0.3)
    raise AssertionError("the cluster did not become healthy within 60 s")


# -- NATS servers ------------------------------------------------------------------------


async def kill_server(world: World) -> None:
    """SIGKILL a server, and start it again."""
    server = world.draw.choice(world.servers)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(world.draw.uniform(0.2, 3.0))
    await _up_again(world, server)


async def kill_leader(world: World, kind: str = "recv") -> None:
    """SIGKILL the leader of the inbox stream."""
    server = await world.leader(world.stream(kind))
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(world.draw.uniform(0.2, 3.0))
    await _up_again(world, server)


async def freeze_server(world: World) -> None:
    """SIGSTOP a server: its connections stay open, and nothing answers."""
    server = world.draw.choice(world.servers)
    server.pause()
    try:
        await asyncio.sleep(world.draw.uniform(1.0, 6.0))
    finally:
        server.resume()
    if len(world.servers) > 1:
        await _healthy(world)


async def cut_nats(world: World) -> None:
    """Cut every connection to one server."""
    await world.draw.choice(world.proxies).cut()


async def deaf_nats(world: World) -> None:
    """A network that swallows what goes to and from one server, without a word."""
    proxy = world.draw.choice(world.proxies)
    proxy.deaf = True
    await asyncio.sleep(world.draw.uniform(1.0, 8.0))
    proxy.deaf = False


async def slow_nats(world: World) -> None:
    """A slow network to one server."""
    proxy = world.draw.choice(world.proxies)
    proxy.pause = 0.02
    await asyncio.sleep(world.draw.uniform(1.0, 4.0))
    proxy.pause = 0.0


# -- our processes -----------------------------------------------------------------------


async def _restart(process: Process, number: signal.Signals) -> None:
    process.send(number)
    await until(lambda: not process.running, 30, f"the end of {process.log.name}")
    if isinstance(process, Gateway):
        await asyncio.to_thread(process.start)
    else:
        process.spawn()


async def kill_gateway(world: World) -> None:
    """SIGKILL a gateway, and start it again."""
    await _restart(_choose(world, [*world.gateways]), signal.SIGKILL)


async def roll_gateways(world: World) -> None:
    """Restart the gateways one after the other, as a deploy does."""
    for gateway in world.gateways:
        await _restart(gateway, signal.SIGTERM)
        await asyncio.sleep(0.5)


async def kill_worker(world: World) -> None:
    """SIGKILL a worker, and start it again."""
    await _restart(_choose(world, [*world.workers]), signal.SIGKILL)


async def roll_workers(world: World) -> None:
    """Restart the workers one after the other."""
    for worker in world.workers:
        await _restart(worker, signal.SIGTERM)
        await asyncio.sleep(0.5)


async def kill_publisher(world: World) -> None:
    """SIGKILL a publisher; it goes on where its ledger ends."""
    await _restart(_choose(world, [*world.publishers]), signal.SIGKILL)


async def kill_client(world: World) -> None:
    """SIGKILL clients; they resume where the device's cursor says."""
    await _restart(_choose(world, [*world.clients]), signal.SIGKILL)


async def freeze(world: World) -> None:
    """SIGSTOP one of our processes for a while."""
    choices: list[Process] = [*world.gateways, *world.workers, *world.clients, *world.raw_clients]
    process = _choose(world, choices)
    process.send(signal.SIGSTOP)
    await asyncio.sleep(world.draw.uniform(1.0, 8.0))
    process.send(signal.SIGCONT)


# -- between clients and gateways ----------------------------------------------------------


async def cut_clients(world: World) -> None:
    """Cut every client's connection at once."""
    await world.balancer.cut()


async def deaf_clients(world: World) -> None:
    """The clients' network swallows everything for a while."""
    world.balancer.deaf = True
    await asyncio.sleep(world.draw.uniform(1.0, 8.0))
    world.balancer.deaf = False


async def slow_clients(world: World) -> None:
    """The clients' network is slow for a while."""
    world.balancer.pause = 0.05
    await asyncio.sleep(world.draw.uniform(1.0, 4.0))
    world.balancer.pause = 0.0


# -- stores ------------------------------------------------------------------------------


async def full_store(world: World) -> None:
    """Fill the inbox stream up to its limit in bytes; an operator makes room later."""
    subject = f"{world.prefix}.recv.soak.junk"
    async with world.broker() as broker:
        for number in range(200):
            try:
                await broker.jetstream.publish(subject, b"x" * 500_000, msg_id=f"junk{number}")
            except BrokerError:
                break
        await asyncio.sleep(world.draw.uniform(0.5, 3.0))
        stream = world.subjects.stream("recv")
        await broker.jetstream.api(f"STREAM.PURGE.{stream}", {"filter": subject})


async def kill_topic_leader(world: World) -> None:
    """SIGKILL the leader of the topics' stream."""
    await kill_leader(world, "topic")


async def replace_stream(world: World, kind: str = "recv") -> None:
    """Delete the inbox stream: a process that needs it makes another, and every client is told."""
    stream = world.stream(kind)
    told_from = time.time()
    async with world.broker() as broker:
        await broker.jetstream.api(f"STREAM.DELETE.{stream}")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                await broker.jetstream.api(f"STREAM.INFO.{stream}")
                break
            except BrokerError:
                await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"nobody made {stream} again within 60 s")
    world.note("stream lost", stream=kind, since=0.0, told_from=told_from)


async def replace_topic_stream(world: World) -> None:
    """Delete the topics' stream."""
    await replace_stream(world, "topic")


async def lose_tail(world: World, kind: str = "recv") -> None:
    """Put an older copy of the inbox stream back: a restored backup, a disk that lost its end."""
    server = world.servers[0]
    stream = world.stream(kind)
    folder = server.store / "jetstream" / "jetstream" / "$G" / "streams" / stream
    copy = world.folder / "copy"
    await asyncio.to_thread(server.stop)
    since = time.time()
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    await asyncio.to_thread(server.start)
    await asyncio.sleep(world.draw.uniform(3.0, 6.0))
    await asyncio.to_thread(server.stop)
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    told_from = time.time()
    await asyncio.to_thread(server.start)
    world.note("stream lost", stream=kind, since=since, told_from=told_from)


async def lose_topic_tail(world: World) -> None:
    """Put an older copy of the topics' stream back."""
    await lose_tail(world, "topic")


_COMMON: list[Fault] = [
    cut_nats,
    deaf_nats,
    slow_nats,
    kill_gateway,
    roll_gateways,
    kill_worker,
    roll_workers,
    kill_publisher,
    kill_client,
    freeze,
    cut_clients,
    deaf_clients,
    slow_clients,
    full_store,
    freeze_server,
    kill_server,
]
CLUSTER: list[Fault] = [*_COMMON, kill_leader, kill_topic_leader]
"""Faults with three servers."""
SINGLE: list[Fault] = [*_COMMON, replace_stream, lose_tail, replace_topic_stream, lose_topic_tail]
"""Faults with one server, streams lost included."""


def name_of(fault: Fault) -> str:
    """Return a fault's name, for the log."""
    return str(getattr(fault, "__name__", fault))
