"""JetStream's habits: time-outs, retries, limits, forged headers, servers that cannot do it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.test_life import CALLS
from tests.faults.traffic import stored
from tests.support import Gateway, hears, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import Stored
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable, MessageTooBig
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")


@asynccontextmanager
async def connected(settings: Any, url: str, timeout: float = 20.0) -> AsyncIterator[NatsBroker]:
    settings.NATS_BROKER_URL = url
    settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = timeout
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


# -- servers that cannot do it -----------------------------------------------------------


@asynccontextmanager
async def pretender(**info: Any) -> AsyncIterator[str]:
    """A socket that says INFO and answers pings, as a NATS server of another kind would."""
    said = {"server_id": "x", "version": "2.15.0", "max_payload": 1048576, "headers": True, **info}
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            writer.write(b"INFO " + json.dumps(said).encode() + b"\r\n")
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"version": "2.9.25", "jetstream": True}, r"NATS 2\.9\.25 at .* is too old"),
        ({"version": "2.10.29-RC.1", "jetstream": True}, r"2\.11 or later; upgrade the server"),
        ({"version": "nonsense", "jetstream": True}, r"NATS 0\.0\.0 at .* is too old"),
        ({"version": "2.11.0"}, r"runs without JetStream; start it with -js"),
    ],
)
async def test_server_that_cannot_do_it_is_refused(
    settings: Any, caplog: pytest.LogCaptureFixture, info: dict[str, Any], text: str
) -> None:
    async with pretender(**info) as url, connected(settings, url, 5.0) as broker:
        for _ in range(2):
            with pytest.raises(BrokerMisconfigured, match=text):
                await broker.wait_ready()
        with pytest.raises(BrokerMisconfigured, match=text):
            await broker.set_up()
        with pytest.raises(BrokerMisconfigured, match=text):
            await broker.publish(ANN, b"x")
        assert not broker.ready
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


async def test_gateway_refuses_sockets_and_says_why(
    gateway_factory: Callable[..., Gateway],
) -> None:
    async with pretender(version="2.9.25", jetstream=True) as url:
        gateway = gateway_factory(NATS_BROKER_URL=url)
        async with gateway.connect(*ANN) as socket:
            await asyncio.wait_for(socket.wait_closed(), 20)
            assert socket.close_code == 1013
        assert "NATS 2.9.25" in gateway.output
        assert "Traceback" not in gateway.output


# -- silence and loss --------------------------------------------------------------------


async def test_silence_ends_every_call_with_one_clear_error(
    settings: Any, own_server: EmbeddedServer, prefix: str
) -> None:
    settings.WSGATEWAY_PREFIX = prefix
    async with connected(settings, own_server.url, 20.0) as broker:
        await broker.wait_ready()
        await broker.save_cursor(ANN, "tablet", 1)  # so that the next one writes at once
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.5
    async with connected(settings, own_server.url, 0.5) as broker:
        await broker.wait_ready(20)
        own_server.pause()
        await until(lambda: stopped(own_server.pid), what="every thread of the server stands")
        try:
            calls = {name: call for name, call in CALLS.items() if name not in ("open",)}
            del calls["wait_ready"]  # it is ready until a ping shows otherwise
            results = await asyncio.gather(
                *(call(broker) for call in calls.values()), return_exceptions=True
            )
            got = {n: type(r) for n, r in zip(calls, results, strict=True)}
            assert got == dict.fromkeys(calls, BrokerUnavailable)
            assert not broker.connection.requests_waiting
        finally:
            own_server.resume()


async def test_publish_outlives_a_restart(
    settings: Any, own_server: EmbeddedServer, prefix: str
) -> None:
    settings.WSGATEWAY_PREFIX = prefix
    async with connected(settings, own_server.url) as broker:
        await broker.wait_ready()
        await broker.publish(ANN, b"before")
        async with hears(broker.on_lost):
            await asyncio.to_thread(own_server.kill)
        publish = asyncio.create_task(broker.publish(ANN, b"meanwhile", msg_id="m"))
        await asyncio.sleep(0.2)
        assert not publish.done()
        await own_server.astart()
        await publish
        assert (await broker.publish(ANN, b"again", msg_id="m")).duplicate
        assert await stored(broker, "recv", ANN) == [b"before", b"meanwhile"]


def stopped(pid: int) -> bool:
    """Say whether SIGSTOP has reached every thread; on a busy machine that takes a moment."""
    states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


async def test_unanswered_publish_is_stored_once(
    settings: Any, own_server: EmbeddedServer, prefix: str
) -> None:
    """The server took the message, and was too slow to say so; then the caller tries again."""
    settings.WSGATEWAY_PREFIX = prefix
    async with connected(settings, own_server.url, 0.5) as broker:
        await broker.wait_ready(20)
        own_server.pause()
        await until(lambda: stopped(own_server.pid), what="every thread of the server stands")
        with pytest.raises(BrokerUnavailable):
            await broker.publish(ANN, b"x", msg_id="m")
        offered = broker.offer(ANN, Frame.of("y"), "o")
        own_server.resume()
        async with asyncio.timeout(20):
            while True:
                try:
                    await broker.publish(ANN, b"x", msg_id="m")
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)
        await asyncio.wait({offered}, timeout=20)
        if offered.exception() is not None:
            await broker.offer(ANN, Frame.of("y"), "o")
    async with connected(settings, own_server.url) as patient:
        await patient.wait_ready()
        assert await stored(patient, "recv", ANN) == [b"x"]
        assert await stored(patient, "send", ANN) == [b"y"]


async def test_offers_fail_with_the_connection(
    settings: Any, own_server: EmbeddedServer, prefix: str
) -> None:
    settings.WSGATEWAY_PREFIX = prefix
    async with connected(settings, own_server.url) as broker:
        await broker.wait_ready()
        own_server.pause()
        offers = [broker.offer(ANN, Frame.of("x"), f"{n}") for n in range(10)]
        await asyncio.to_thread(own_server.kill)
        done, _ = await asyncio.wait(offers, timeout=20)
        assert {type(offer.exception()) for offer in done} == {BrokerUnavailable}
        assert len(done) == 10


# -- limits and headers ------------------------------------------------------------------


async def test_too_big_for_the_server_does_not_cost_the_connection(
    settings: Any, tmp_path: Path, prefix: str
) -> None:
    """The server disconnects a client that exceeds max_payload, and a retry does it again."""
    settings.WSGATEWAY_PREFIX = prefix
    with EmbeddedServer(tmp_path, sync_interval="10s", max_payload=65536) as server:
        async with connected(settings, server.url) as broker:
            await broker.wait_ready()
            for size in (65536, 70000):  # the first one fits without its headers
                with pytest.raises(MessageTooBig, match="max_payload"):
                    await broker.publish(ANN, bytes(size))
                with pytest.raises(MessageTooBig, match="max_payload"):
                    await broker.offer(ANN, Frame(bytes(size), False), f"{size}")
            await broker.publish(ANN, bytes(65000))
            await broker.offer(ANN, Frame(bytes(65000), False), "fits")
            assert broker.connection.times_connected == 1


async def test_lookups_of_many_inboxes_fit_a_small_max_payload(
    settings: Any, tmp_path: Path, prefix: str
) -> None:
    """A lookup above max_payload ended the connection, with every sweep again."""
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_SERVICES = ["*"]
    with EmbeddedServer(tmp_path, sync_interval="10s", max_payload=4096) as server:
        async with connected(settings, server.url) as broker:
            await broker.wait_ready()
            inboxes = [Inbox("orders", f"{n}" + "*" * 250) for n in range(200)]
            for inbox in inboxes[::2]:
                await broker.publish(inbox, b"x")
            assert len(await broker.inboxes.last_offsets(inboxes)) == 100
            assert await broker.inboxes.count(inboxes[0]) == 1
            with pytest.raises(MessageTooBig, match="max_payload"):
                await broker.jetstream.api("STREAM.NAMES", {"subject": "x" * 5000})
            with pytest.raises(MessageTooBig, match="max_payload"):
                await broker.jetstream.direct("X", {"last_by_subj": "x" * 5000})
            assert broker.connection.times_connected == 1


async def test_forged_headers_move_no_offset(
    settings: Any, nats_server: EmbeddedServer, prefix: str
) -> None:
    settings.WSGATEWAY_PREFIX = prefix
    forged = {"Nats-Sequence": "999", "Nats-Last-Sequence": "998", "Nats-Subject": "x.y"}
    async with connected(settings, nats_server.url) as broker:
        await broker.wait_ready()
        seen: list[Stored] = []
        broker.inboxes.watch(ANN, seen.append)
        publish, subject = broker.jetstream.publish, broker.subjects.recv(ANN)
        offsets = [(await publish(subject, b"x", forged)).offset for _ in range(3)]
        await until(lambda: len(seen) == 3, what="three")
        assert [m.offset for m in seen] == offsets
        assert [m.previous for m in seen] == [0, *offsets[:-1]]
        batch = await broker.inboxes.read_after(ANN, 0, limit=10)
        assert [m.offset for m in batch.messages] == offsets
        assert await broker.inboxes.last_offsets([ANN]) == {ANN: offsets[-1]}


names = st.text(alphabet="ABab-", min_size=1, max_size=6)
values = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(names, values, max_size=5))
def test_headers_both_ways(pairs: dict[str, str]) -> None:
    raw = hdrs.encode(pairs)
    assert bool(raw) is bool(pairs)
    expected = {name: value.encode().strip().decode() for name, value in pairs.items()}
    assert hdrs.decode(raw or None) == expected
    for name, value in expected.items():
        assert hdrs.find(raw, name.encode()) == value.encode()
    assert hdrs.find(raw, b"Other") is None


@given(st.one_of(st.none(), st.binary(max_size=60), st.binary().map(lambda b: b"NATS/1.0" + b)))
def test_headers_that_are_none_harm_nothing(raw: bytes | None) -> None:
    assert isinstance(hdrs.decode(raw), dict)
    hdrs.find(raw, b"Nats-Sequence")
    assert isinstance(hdrs.find_int(raw, b"Nats-Sequence"), int | None)
    assert isinstance(hdrs.status(raw), int | None)


def test_last_of_repeated_headers_counts() -> None:
    raw = b"NATS/1.0\r\nNats-Sequence: 9\r\nX: y\r\nNats-Sequence:12\r\n\r\n"
    assert hdrs.find_int(raw, b"Nats-Sequence") == 12
    assert hdrs.decode(raw) == {"Nats-Sequence": "12", "X": "y"}
    assert hdrs.status(raw) is None
    assert hdrs.status(b"NATS/1.0 404 Message Not Found\r\n\r\n") == 404
