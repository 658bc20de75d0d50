"""The processes of a soak run: servers, gateways, workers, publishers, clients.

Clients reach the gateways through a balancer, and gateways and workers reach NATS through a proxy
a server, so that connections can be cut, slowed and made deaf without touching either end.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.acceptance.proxy import Balancer, Proxy, listening, proxy_to
from tests.soak.ledger import Entry, Ledger, read
from tests.support import Gateway, Process, site_env, until
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import ConnectionOptions
from wsgateway.protocol.subjects import Subjects

__all__ = ["World", "running_world"]

SYNC_INTERVAL = "10s"  # no power is lost here
TOPICS = ("lounge.a", "lounge.b", "lounge.u0")
"""Two that publishers write to, as they do to users, and one that the client of its user does."""
INBOX_BYTES = 64 * 1024 * 1024


class Member(Process):
    """A process that notes what it does in a ledger.

    Args:
        ledger: Its file; others may write to it too.
        args: Arguments of Python.
    """

    def __init__(self, ledger: Path, env: dict[str, str], *args: str, log: Path) -> None:
        self.ledger = ledger
        super().__init__([sys.executable, *args], log, env)


class World:
    """Everything that runs, and what can be broken.

    Args:
        folder: For stores, logs and ledgers.
        servers: The NATS servers, running.
        proxies: One a server.
        balancer: In front of the gateways.
        draw: Decides everything that is random.
    """

    def __init__(
        self,
        folder: Path,
        servers: list[EmbeddedServer],
        proxies: list[Proxy],
        balancer: Balancer,
        draw: random.Random,
    ) -> None:
        self.folder = folder
        self.servers = servers
        self.proxies = proxies
        self.balancer = balancer
        self.draw = draw
        self.prefix = f"soak{secrets.token_hex(3)}"
        self.subjects = Subjects(self.prefix)
        self.ledger = Ledger(folder / "world.ledger")
        self.gateways: list[Gateway] = []
        self.workers: list[Member] = []
        self.publishers: list[Member] = []
        self.clients: list[Member] = []
        self.raw_clients: list[Member] = []
        urls = ",".join(f"nats://127.0.0.1:{proxy.port}" for proxy in proxies)
        self.env = {
            "DEBUG": "1",
            "SECRET_KEY": "soak",
            "DJANGO_SETTINGS_MODULE": "tests.soak.settings",
            "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
            "NATS_BROKER_URL": urls,
            "WSGATEWAY_PREFIX": self.prefix,
            "WSGATEWAY_REPLICAS": "3" if len(servers) > 1 else "1",
            "WSGATEWAY_INBOX_MAX_BYTES": str(INBOX_BYTES),
            "WSGATEWAY_ACK_WAIT": "10",
            "WSGATEWAY_SWEEP_INTERVAL": "2",
            "WSGATEWAY_PING_INTERVAL": "3",
            "WSGATEWAY_PING_TIMEOUT": "3",
            "SOAK_SERVICE_LEDGER": str(folder / "service.ledger"),
        }

    # -- processes -----------------------------------------------------------------------

    def _member(self, name: str, *args: str, **env: str) -> Member:
        full = site_env(**{**self.env, **env})
        full |= {key: value for key, value in env.items() if key.startswith("SOAK_")}
        ledger = self.folder / f"{name}.ledger"
        member = Member(ledger, full, *args, log=self.folder / f"{name}.log")
        member.spawn()
        return member

    async def start(self, *, gateways: int, users: int, pause: float) -> None:
        """Start everything, from the servers outwards."""
        for number in range(gateways):
            gateway = Gateway(self.folder, self.env, ["daphne", "uvicorn"][number % 2])
            await asyncio.to_thread(gateway.start)
            self.gateways.append(gateway)
            self.balancer.targets.append(gateway.port)
        names = [f"u{number}" for number in range(users)]
        sent, room, _ = TOPICS
        half = users // 2
        url = f"ws://127.0.0.1:{self.balancer.port}"
        command = ["manage.py", "runservice", "soak", "--noreload"]
        self.workers = [self._member(f"worker{number}", *command) for number in range(2)]

        def module(kind: str, name: str, *args: str, **env: str) -> Member:
            path = self.folder / f"{name}.ledger"
            return self._member(name, "-m", f"tests.soak.{kind}", str(path), *args, **env)

        self.clients = [
            module("client", "client0", url, "laptop", *names, *TOPICS),
            module("client", "client1", url, "slow", *names[::3], *TOPICS, SOAK_SLOW="0.05"),
        ]
        self.raw_clients = [module("raw_client", "raw0", url, "raw", *names[::2])]
        await until(lambda: self._all_welcomed(users), 60, "every client's welcome")
        self.publishers = [
            module("publisher", "publisher0", "asend", *names[:half], sent, SOAK_PAUSE=str(pause)),
            module("publisher", "publisher1", "group", *names[half:], room, SOAK_PAUSE=str(pause)),
        ]
        for member in self.publishers:
            await self._until_noted(member, "published", 60)

    def _all_welcomed(self, users: int) -> bool:
        self.require_alive()
        ledger = self.clients[0].ledger
        return len({e["user"] for e in read(ledger) if e["kind"] == "welcome"}) == users + len(
            TOPICS
        )

    def members(self) -> list[Process]:
        """Return every process but the servers."""
        return [
            *self.gateways,
            *self.workers,
            *self.publishers,
            *self.clients,
            *self.raw_clients,
        ]

    def require_alive(self) -> None:
        """Fail if a process has ended by itself."""
        for member in self.members():
            assert member.running, f"{member.command} has ended:\n{member.output[-2000:]}"

    def note(self, kind: str, **fields: Any) -> None:
        """Append to the run's own ledger."""
        self.ledger.note(kind, **fields)

    # -- NATS ----------------------------------------------------------------------------

    @asynccontextmanager
    async def broker(self, timeout: float = 20.0) -> AsyncIterator[NatsBroker]:
        """A connection past the proxies, as an operator has it."""
        urls = tuple(server.url for server in self.servers)
        broker = NatsBroker(ConnectionOptions(urls, timeout=timeout), self.subjects, [])
        await broker.open()
        try:
            await broker.wait_ready()
            yield broker
        finally:
            await broker.close()

    def stream(self, kind: str) -> str:
        """Return the name of the stream of inboxes, ``recv``, or of topics, ``topic``."""
        return (
            self.subjects.topic_stream("lounge") if kind == "topic" else self.subjects.stream(kind)
        )

    async def leader(self, stream: str) -> EmbeddedServer:
        """Return the server that leads a stream."""
        async with self.broker() as broker:
            info = await broker.jetstream.api(f"STREAM.INFO.{stream}")
        name = (info.get("cluster") or {}).get("leader")
        return next((s for s in self.servers if s.name == name), self.servers[0])

    # -- the end -------------------------------------------------------------------------

    async def settle(self, quiet: float = 30.0) -> None:
        """Stop what is sent, and wait until everything has arrived or nothing moves any more."""
        for member in (*self.publishers, *self.clients):
            await self._until_noted(member, "begin", 60)  # it may have been killed just now
        for member in self.publishers:
            member.send(signal.SIGTERM)
        for member in self.publishers:
            await until(lambda member=member: not member.running, 60, member.log.name)
            assert member.wait() == 0, member.output[-2000:]
        for member in self.clients:
            member.send(signal.SIGTERM)
        for member in self.clients:
            await self._until_noted(member, "sent", 90)
        sizes, since = -1, asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - since < quiet:
            now = sum(path.stat().st_size for path in self.folder.glob("*.ledger"))
            if now != sizes:
                sizes, since = now, asyncio.get_running_loop().time()
            elif self._complete():
                break
            await asyncio.sleep(0.5)
        else:
            await self._write_state()
        for member in (*self.clients, *self.raw_clients):
            member.send(signal.SIGINT)
        for member in (*self.clients, *self.raw_clients):
            await until(lambda member=member: not member.running, 30, member.log.name)

    async def _write_state(self) -> None:
        """Keep what servers and workers say of themselves, for looking into a failure."""
        for worker in self.workers:
            worker.send(signal.SIGUSR1)
        state = []
        async with self.broker() as broker:
            streams = await broker.jetstream.api("STREAM.LIST")
            for info in streams["streams"] or []:
                name = info["config"]["name"]
                consumers = await broker.jetstream.api(f"CONSUMER.LIST.{name}")
                state.append({**info, "consumers": consumers["consumers"]})
        (self.folder / "state.json").write_text(json.dumps(state, indent=1))

    async def _until_noted(self, member: Member, kind: str, timeout: float) -> None:
        """Wait until *member*, as it runs now, has noted something of *kind*."""

        def noted() -> bool:
            assert member.running, f"{member.command} has ended:\n{member.output[-2000:]}"
            return any(e["kind"] == kind and e["pid"] == member.pid for e in read(member.ledger))

        await until(noted, timeout, f"{kind!r} of {member.log.name}")

    def _complete(self) -> bool:
        """Whether nothing is missing: the only early end of waiting."""
        from tests.soak.checker import check

        report = check(self.entries())
        return not report.lost and not report.broken

    def entries(self) -> list[Entry]:
        """Return what all ledgers hold."""
        return [entry for path in self.folder.glob("*.ledger") for entry in read(path)]

    def tracebacks(self) -> list[str]:
        """Return the logs that hold an unexpected traceback, shortened."""
        found = []
        for member in (*self.gateways, *self.workers, *self.clients, *self.publishers):
            text = member.output.replace("the first try fails", "")
            unexpected = [
                part
                for part in text.split("Traceback (most recent call last)")[1:]
                if "RuntimeError: \n" not in part and "tests/soak/ws_services.py" not in part
            ]
            if unexpected:
                found.append(f"{member.log.name}: {unexpected[0][:1500]}")
        return found

    def kill(self) -> None:
        """End everything at once."""
        for member in self.members():
            member.kill()


@asynccontextmanager
async def running_world(folder: Path, *, servers: int, draw: random.Random) -> AsyncIterator[World]:
    """Start the servers and the proxies; end everything at the end."""
    async with AsyncExitStack() as stack:
        nodes: list[EmbeddedServer]
        if servers == 1:
            nodes = [EmbeddedServer(folder / "nats", sync_interval=SYNC_INTERVAL)]
            stack.callback(nodes[0].stop)
            await nodes[0].astart()
        else:
            cluster = Cluster(
                folder / "cluster", servers, sync_interval=SYNC_INTERVAL, advertise=False
            )
            stack.callback(cluster.stop)
            await asyncio.to_thread(cluster.start, 60.0)
            nodes = cluster.nodes
        proxies = [await stack.enter_async_context(proxy_to(node.port)) for node in nodes]
        balancer = await stack.enter_async_context(listening(Balancer([], draw.choice)))
        world = World(folder, nodes, proxies, balancer, draw)
        stack.callback(world.kill)
        yield world
