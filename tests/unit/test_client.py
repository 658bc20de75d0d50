"""The Python client against a real websocket server that breaks on purpose."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from tests.support import ROOT, until
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import Backoff, Client, ClientState, GatewayError, Position, connect
from wsgateway.client.lost import Lost, translated
from wsgateway.client.session import ClientSession
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import ErrorCode, Reason

FAST = Backoff(initial=0.02, cap=0.05, jitter=0.5)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().running() as fake:
        yield fake


def client_of(gateway: FakeGateway, **options: Any) -> Client:
    return connect(gateway.url, **{"backoff": FAST, "proxy": None, **options})


async def take(client: Client, number: int) -> list[Any]:
    async with asyncio.timeout(20):
        return [(await client.recv()).data for _ in range(number)]


def test_importing_the_client_pulls_in_no_django() -> None:
    script = (
        "import sys; from wsgateway.client import connect;"
        "print({'django', 'channels', 'nats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


# -- receiving ---------------------------------------------------------------------------


async def test_messages_arrive_in_order_and_are_acknowledged(gateway: FakeGateway) -> None:
    await gateway.store("a", b"\x00\xff", '{"b":1}', gap=3)
    async with client_of(gateway) as client:
        first, second, third = [await client.recv() for _ in range(3)]
        assert (first.data, first.offset, first.time) == ("a", 3, "t3")
        assert second.data == b"\x00\xff"
        assert third.json() == {"b": 1}
        await until(lambda: gateway.acks == [6])
        assert client.position == Position("e1", 6)
    assert gateway.acks == [6]  # the third was handed out, but nobody asked for the next


async def test_loop_ends_when_the_client_is_closed(gateway: FakeGateway) -> None:
    await gateway.store("a", "b")
    async with client_of(gateway) as client:

        async def read() -> list[Any]:
            return [message.data async for message in client]

        reading = asyncio.create_task(read())
        await until(lambda: gateway.acks)
        await client.close()
        assert await reading == ["a", "b"]
    assert client.state is ClientState.CLOSED


async def test_window_is_kept_and_everything_arrives(gateway: FakeGateway) -> None:
    gateway.window = 4
    await gateway.store(*map(str, range(500)))
    async with client_of(gateway) as client:
        assert await take(client, 500) == list(map(str, range(500)))
    assert gateway.most_unacked == 4


async def test_client_that_never_acknowledges_gets_one_window(gateway: FakeGateway) -> None:
    gateway.window = 4
    await gateway.store(*map(str, range(20)))
    async with client_of(gateway, auto_ack=False, ack_interval=0.01) as client:
        messages = [await client.recv() for _ in range(4)]
        waiting = asyncio.create_task(client.recv())
        await gateway.round_trip()
        assert not waiting.done()
        waiting.cancel()
        assert gateway.acks == []
        messages[1].ack()
        messages[0].ack()
        await until(lambda: gateway.acks == [2])
        assert await take(client, 2) == ["4", "5"]


async def test_cancelled_recv_loses_nothing(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        for number in range(50):
            waiting = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            storing = asyncio.create_task(gateway.store(str(number)))
            await asyncio.sleep(0.001 * (number % 3))
            waiting.cancel()
            await asyncio.wait({waiting, storing})
            data = None if waiting.cancelled() else waiting.result().data
            assert data in (None, str(number))
            if data is None:
                assert await take(client, 1) == [str(number)]


# -- reconnecting ------------------------------------------------------------------------


async def test_cut_connection_resumes_after_what_was_processed(gateway: FakeGateway) -> None:
    await gateway.store("a", "b", "c", gap=5)
    states: list[ClientState] = []
    async with client_of(gateway, device="laptop", on_state=states.append) as client:
        assert await take(client, 2) == ["a", "b"]  # a is processed, b is being processed
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
        assert gateway.resumes[1] == protocol.Resume("laptop", "e1", 5)
        await gateway.store("d")
        assert await take(client, 2) == ["c", "d"]
    opening = [ClientState.CONNECTING, ClientState.OPEN]
    assert states == [*opening, ClientState.WAITING, *opening, ClientState.CLOSED]


async def test_nothing_is_lost_or_twice_whatever_is_cut(gateway: FakeGateway) -> None:
    """Both ways at once, while connections end at random: exact counts."""
    seed = random.randrange(10**6)
    print("seed", seed)
    gateway.window = 32
    numbers = random.Random(seed)
    total = 2000
    async with client_of(gateway) as client:
        got: list[str] = []

        async def read() -> None:
            while len(got) < total:
                got.append(str((await client.recv()).data))

        async def publish() -> None:
            for number in range(total):
                await gateway.store(str(number), gap=numbers.randrange(1, 4))
                if number % 20 == 0:
                    await asyncio.sleep(0.002)

        async def send() -> None:
            for start in range(0, total, 50):
                sends = [client.send(str(n), id=f"c{n}") for n in range(start, start + 50)]
                await asyncio.gather(*sends)

        saboteur = asyncio.create_task(gateway.cut_at_random(numbers, 0.05))
        async with asyncio.timeout(40):
            await asyncio.gather(read(), publish(), send())
        saboteur.cancel()
    assert got == [str(n) for n in range(total)]
    assert list(gateway.stored) == [f"c{n}" for n in range(total)]
    assert len(gateway.resumes) > 3
    assert client.pending == 0


async def test_window_that_is_processed_while_reconnecting_is_acknowledged(
    gateway: FakeGateway,
) -> None:
    """It came again, was dropped without an acknowledgement, and nothing else came any more."""
    gateway.window = 4
    await gateway.store(*map(str, range(8)))
    async with client_of(gateway, auto_ack=False) as client:
        messages = [await client.recv() for _ in range(4)]
        gateway.welcoming.clear()
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
        messages[-1].ack()
        gateway.welcoming.set()
        assert await take(client, 4) == ["4", "5", "6", "7"]


async def test_given_position_is_asked_for(gateway: FakeGateway) -> None:
    await gateway.store("a", "b")
    async with client_of(gateway, position=Position("e1", 1)) as client:
        assert await take(client, 1) == ["b"]
    assert gateway.resumes == [protocol.Resume(None, "e1", 1)]


async def test_new_epoch_begins_again_and_says_so(gateway: FakeGateway) -> None:
    await gateway.store("a", "b")
    welcomes: list[tuple[bool, str | None]] = []
    async with client_of(
        gateway, on_welcome=lambda w: welcomes.append((w.recovered, w.reason))
    ) as client:
        assert await take(client, 2) == ["a", "b"]
        gateway.epoch, gateway.inbox = "e2", []
        gateway.cut()
        await gateway.store("new 1", "new 2")
        assert await take(client, 2) == ["new 1", "new 2"]
        assert client.position == Position("e2", 1)
    assert welcomes == [(True, None), (False, "epoch")]


async def test_second_welcome_replaces_the_position(gateway: FakeGateway) -> None:
    await gateway.store("a", "b", gap=10)
    async with client_of(gateway) as client:
        assert await take(client, 2) == ["a", "b"]
        gateway.say(gateway.welcome(12, Reason.AHEAD))
        gateway.say(protocol.encode_message(13, "t13", b"c", True))
        assert await take(client, 1) == ["c"]
        assert client.position == Position("e1", 12)


async def test_welcome_that_only_says_that_messages_are_missing(gateway: FakeGateway) -> None:
    """What had arrived and was not processed was passed over: a crash would have lost it."""
    welcomes: list[tuple[bool, str | None]] = []
    await gateway.store("a", "b", "c")
    async with client_of(
        gateway, on_welcome=lambda w: welcomes.append((w.recovered, w.reason))
    ) as client:
        assert await take(client, 2) == ["a", "b"]
        gateway.say(gateway.welcome(0, Reason.TRIMMED))
        await until(lambda: len(welcomes) == 2)
        assert welcomes[1] == (False, "trimmed")
        assert client.position == Position("e1", 1)
        await gateway.store("d", gap=50)
        assert await take(client, 2) == ["c", "d"]
        assert client.position == Position("e1", 3)
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
        assert gateway.resumes[1].offset == 3


async def test_acknowledgements_say_their_epoch(gateway: FakeGateway) -> None:
    await gateway.store("a")
    async with client_of(gateway, ack_interval=0.01) as client:
        await take(client, 1)
        gateway.epoch = "e2"
        gateway.say(gateway.welcome(0, Reason.EPOCH))
        await until(lambda: client.position == Position("e2", 0))
        gateway.say(protocol.encode_message(1, "other", b"b", True))
        gateway.say(protocol.encode_message(2, "other", b"c", True))
        assert await take(client, 2) == ["b", "c"]
        await until(lambda: gateway.ack_epochs[-1:] == ["e2"])
    assert gateway.acks[-1] == 1


async def test_silent_gateway_is_left(gateway: FakeGateway) -> None:
    gateway.ping = 0.1
    async with client_of(gateway, ping_timeout=0.2):
        gateway.mute = True
        await until(lambda: len(gateway.resumes) >= 2)
        gateway.mute = False


async def test_answering_gateway_is_not_left(gateway: FakeGateway) -> None:
    gateway.ping = 0.05
    async with client_of(gateway, ping_timeout=0.6) as client:
        await until(lambda: gateway.pings >= 2)
        await gateway.round_trip()
        assert client.state is ClientState.OPEN
    assert len(gateway.resumes) == 1


async def test_welcome_need_not_be_the_first_frame(gateway: FakeGateway) -> None:
    """A ping, or a type of a later version, before the welcome closed the client for good."""
    gateway.before_welcome = ['{"type":"weather"}', protocol.encode_ping()]
    async with client_of(gateway) as client:
        await until(lambda: gateway.pongs)
        assert client.state is ClientState.OPEN


async def test_message_instead_of_a_welcome_is_final(gateway: FakeGateway) -> None:
    gateway.before_welcome = [protocol.encode_message(1, "", b"x", True)]
    with pytest.raises(GatewayError, match="did not begin with a welcome"):
        await client_of(gateway).open()


async def test_gateway_without_welcome_is_tried_again(gateway: FakeGateway) -> None:
    gateway.mute = True
    async with asyncio.TaskGroup() as tasks:
        client = client_of(gateway, connect_timeout=0.1)
        opening = tasks.create_task(client.open())
        await until(lambda: len(gateway.resumes) >= 2)
        assert not opening.done()
        gateway.mute = False
        await opening
        await client.close()


async def test_connect_timeout_is_the_only_limit_of_a_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handshake ended after the 10 s of `websockets`, however long *connect_timeout* was."""
    options: dict[str, Any] = {}

    def record(url: str, **given: Any) -> None:
        options.update(given)
        raise OSError

    monkeypatch.setattr("websockets.asyncio.client.connect", record)
    client = connect("ws://127.0.0.1:1/", connect_timeout=60.0)
    opening = asyncio.create_task(client.open())
    await until(lambda: options)
    await client.close()
    with pytest.raises(GatewayError):
        await opening
    assert options["open_timeout"] is None


async def test_unreachable_gateway_is_tried_until_it_is_there(free_port: int) -> None:
    client = connect(f"ws://127.0.0.1:{free_port}/", backoff=FAST, proxy=None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), client:
            pass
    assert client.state is ClientState.CLOSED


@pytest.mark.parametrize("code", [1001, 1011, 1013, *(c for c in CloseCode if c.reconnect)])
async def test_close_codes_that_come_back(gateway: FakeGateway, code: int) -> None:
    gateway.close_with = [int(code)]
    async with client_of(gateway) as client:
        assert client.state is ClientState.OPEN


async def test_a_gateway_that_stops_says_when_to_come_back(gateway: FakeGateway) -> None:
    async with client_of(gateway, backoff=Backoff(60.0, jitter=0.0)) as client:
        (connection,) = gateway.connections
        await connection.send(protocol.encode_closing(0.25))
        began = time.monotonic()
        await gateway.close_all(4001)
        await until(lambda: len(gateway.resumes) == 2)
        assert time.monotonic() - began >= 0.25
        await until(lambda: client.state is ClientState.OPEN)


@pytest.mark.parametrize(
    "code", [1002, 1007, 1008, 1009, *(c for c in CloseCode if not c.reconnect)]
)
async def test_close_codes_that_are_final(gateway: FakeGateway, code: int) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        sending = asyncio.create_task(client.send("x"))
        await until(lambda: gateway.arrivals)
        await gateway.close_all(int(code), "so it is")
        with pytest.raises(GatewayError, match=f"closed the connection: {int(code)} so it is"):
            await client.recv()
        with pytest.raises(GatewayError) as caught:
            await sending
        assert (caught.value.code, caught.value.close_code) == ("closed", code)
        with pytest.raises(GatewayError) as caught:
            await client.send("y")
        assert caught.value.code == "closed"
        with pytest.raises(GatewayError):
            await anext(aiter(client))
    assert len(gateway.resumes) == 1


async def test_frame_beyond_max_size_is_final(gateway: FakeGateway) -> None:
    await gateway.store("x" * 10_000)
    async with client_of(gateway) as client:
        assert len((await take(client, 1))[0]) == 10_000
    async with client_of(gateway, max_size=1000) as client:
        with pytest.raises(GatewayError, match="max_size") as caught:
            await client.recv()
        assert caught.value.close_code == 1009
    assert len(gateway.resumes) == 2


def test_only_a_frame_that_is_too_large_names_max_size() -> None:
    """Whatever made `websockets` close first, for example its own ping, was put down to it."""
    for code, reason, text in [
        (1009, "frame too large", "1009 frame too large (max_size)"),
        (1011, "keepalive ping timeout", "1011 keepalive ping timeout"),
    ]:
        with pytest.raises(Lost) as caught, translated():
            raise ConnectionClosedError(None, Close(code, reason), None)
        assert str(caught.value) == text


async def test_refusal_at_the_handshake_is_final(gateway: FakeGateway) -> None:
    gateway.status = [403]
    with pytest.raises(GatewayError, match=r"^refused with HTTP 403 before the gateway answered$"):
        await client_of(gateway).open()
    gateway.status = [404]
    with pytest.raises(GatewayError, match=r"^refused with HTTP 404 before the gateway answered$"):
        await client_of(gateway).open()
    gateway.status = [503, 429]
    async with client_of(gateway):
        assert gateway.status == []


async def test_server_without_the_subprotocol_is_final() -> None:
    fake = FakeGateway()
    fake.subprotocols = None
    async with fake.running():
        with pytest.raises(GatewayError, match=r"does not speak wsgateway\.v1"):
            await client_of(fake).open()


async def test_impossible_url_is_final() -> None:
    with pytest.raises(GatewayError):
        await connect("http://127.0.0.1/").open()


async def test_token_is_asked_for_again_after_a_refusal(gateway: FakeGateway) -> None:
    tokens = iter("abcdef")
    gateway.close_with = [4501]
    async with client_of(gateway, token=lambda: next(tokens)) as client:
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
        await gateway.close_all(4501)
        await until(lambda: len(gateway.resumes) == 3)
        assert client.state is not ClientState.CLOSED
    assert [query.partition("&")[0] for query in gateway.queries] == [
        "token=a",
        "token=b",
        "token=b",
        "token=c",
    ]


async def test_token_goes_into_the_named_parameter(gateway: FakeGateway) -> None:
    async with client_of(gateway, token="t", token_parameter="key", device="phone"):
        assert gateway.queries == ["key=t&device=phone"]


async def test_token_that_has_expired_is_asked_for_again(gateway: FakeGateway) -> None:
    tokens = iter("abc")
    async with client_of(gateway, token=lambda: next(tokens)):
        await gateway.close_all(4016)
        await until(lambda: len(gateway.resumes) == 2)
    assert [query.partition("&")[0] for query in gateway.queries] == ["token=a", "token=b"]


async def test_token_that_the_application_refuses_for_good_is_final(gateway: FakeGateway) -> None:
    def token() -> str:
        raise GatewayError("logged_out", "the user logged out", False)

    with pytest.raises(GatewayError, match="the user logged out") as caught:
        await client_of(gateway, token=token).open()
    assert caught.value.close_code == CloseCode.NOT_AUTHENTICATED
    assert gateway.queries == []


async def test_token_refused_twice_is_final(gateway: FakeGateway) -> None:
    async def token() -> str:
        return "bad"

    gateway.close_with = [4501, 4501]
    with pytest.raises(GatewayError, match="4501"):
        await client_of(gateway, token=token).open()


async def test_token_source_that_fails_is_asked_again(gateway: FakeGateway) -> None:
    answers: list[Any] = [OSError("no network"), "t"]

    def token() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    async with client_of(gateway, token=token):
        assert gateway.queries == ["token=t"]


# -- sending -----------------------------------------------------------------------------


async def test_send_returns_when_stored(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        first = await client.send("text")
        await client.send(b"\x00\xff", id="c2")
        await client.send({"a": [1, "ü"]}, id="c3")
        assert list(gateway.stored.items()) == [
            (first, Frame(b"text", True)),
            ("c2", Frame(b"\x00\xff", False)),
            ("c3", Frame('{"a":[1,"ü"]}'.encode(), True)),
        ]
        assert client.pending == 0


async def test_unconfirmed_is_sent_again_with_the_same_id_in_order(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send(str(n), id=f"c{n}")) for n in range(5)]
        await until(lambda: len(gateway.arrivals) == 5)
        gateway.confirm = True
        gateway.cut()
        sends.append(asyncio.create_task(client.send("5", id="c5")))
        assert await asyncio.gather(*sends) == [f"c{n}" for n in range(6)]
    assert gateway.arrivals == [f"c{n}" for n in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5)]


async def test_refusal_raises_its_code(gateway: FakeGateway) -> None:
    gateway.refusals = {"c1": ErrorCode.QUEUE_FULL, "c2": ErrorCode.BAD_REQUEST}
    async with client_of(gateway) as client:
        for id, temporary in (("c1", True), ("c2", False)):
            with pytest.raises(GatewayError, match="refused") as caught:
                await client.send("x", id=id)
            error = caught.value
            assert (error.id, error.code, error.temporary) == (id, gateway.refusals[id], temporary)
        assert client.pending == 0


async def test_refusal_that_no_send_waits_for_goes_to_on_error(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """If the message had been given up, nobody learned that it was refused."""
    errors: list[GatewayError] = []
    async with client_of(gateway, on_error=errors.append):
        gateway.say(protocol.encode_error("gone", ErrorCode.QUEUE_FULL, "full"))
        gateway.say(protocol.encode_error(None, ErrorCode.BAD_REQUEST, "not JSON"))
        await until(lambda: len(errors) == 2)
    assert (errors[0].id, errors[0].code, errors[0].temporary) == ("gone", "queue_full", True)
    assert (errors[1].id, errors[1].code, errors[1].temporary) == (None, "bad_request", False)
    assert "the gateway refused a frame: not JSON (bad_request)" in caplog.messages


async def test_same_id_twice_is_one_message(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        first = asyncio.create_task(client.send("x", id="c1"))
        second = asyncio.create_task(client.send("x", id="c1"))
        await until(lambda: gateway.arrivals)
        first.cancel()
        await asyncio.wait({first})
        assert client.pending == 1
        gateway.say(protocol.encode_ack("c1"))
        assert await second == "c1"
    assert gateway.arrivals == ["c1"]


@pytest.mark.parametrize("cancelled", ["send", "request"])
async def test_message_is_kept_while_another_call_waits_for_its_id(
    gateway: FakeGateway, cancelled: str
) -> None:
    gateway.confirm = False
    async with client_of(gateway) as client:
        calls: dict[str, asyncio.Task[Any]] = {
            "request": asyncio.create_task(client.request("x", id="c1")),
            "send": asyncio.create_task(client.send("x", id="c1")),
        }
        await until(lambda: gateway.arrivals == ["c1"])
        calls.pop(cancelled).cancel()
        gateway.cut()
        await until(lambda: gateway.arrivals == ["c1", "c1"])
        await gateway.reply("c1", "done")  # which confirms, too
        (result,) = await asyncio.gather(*calls.values())
        assert result == "c1" if cancelled == "request" else result.data == "done"
        assert client.pending == 0


async def test_cancelled_send_is_given_up(gateway: FakeGateway) -> None:
    async with client_of(gateway) as client:
        gateway.confirm = False
        sending = asyncio.create_task(client.send("x"))
        await until(lambda: gateway.arrivals)
        sending.cancel()
        await asyncio.wait({sending})
        assert client.pending == 0
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
    assert len(gateway.arrivals) == 1


async def test_queue_is_bounded(gateway: FakeGateway) -> None:
    async with client_of(gateway, queue_limit=2) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send("x")) for _ in range(2)]
        await until(lambda: len(gateway.arrivals) == 2)
        with pytest.raises(GatewayError, match="2 messages are already waiting") as caught:
            await client.send("y")
        assert (caught.value.code, caught.value.temporary) == ("queue_limit", True)
    for result in await asyncio.gather(*sends, return_exceptions=True):
        assert isinstance(result, GatewayError)
        assert result.code == "closed"


async def test_send_window_is_kept(gateway: FakeGateway) -> None:
    async with client_of(gateway, send_window=2) as client:
        gateway.confirm = False
        sends = [asyncio.create_task(client.send("x", id=f"c{n}")) for n in range(4)]
        await until(lambda: len(gateway.arrivals) == 2)
        await gateway.round_trip()
        assert gateway.arrivals == ["c0", "c1"]
        gateway.say(protocol.encode_ack("c0"))
        await until(lambda: len(gateway.arrivals) == 3)
        gateway.confirm = True
        gateway.cut()
        await asyncio.gather(*sends)


async def test_too_big_is_refused_here_also_if_it_waited(gateway: FakeGateway) -> None:
    gateway.max_message_size = 10
    client = client_of(gateway)
    waiting = asyncio.create_task(client.send("ü" * 6))
    await asyncio.sleep(0)
    async with client:
        for attempt in (waiting, client.send(b"x" * 12)):
            with pytest.raises(
                GatewayError, match="12 bytes exceeds the gateway's limit of 10 bytes"
            ) as caught:
                await attempt
            assert (caught.value.code, caught.value.temporary) == ("too_big", False)
        await client.send("x" * 10)
    assert len(gateway.arrivals) == 1


@pytest.mark.parametrize("id", ["", "a b", "ü", "x" * 65, "a\r\nb"])
async def test_unusable_id_is_refused_here(gateway: FakeGateway, id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        await client_of(gateway).send("x", id=id)


@pytest.mark.parametrize("data", [float("nan"), "\ud800", {"a": "\ud800"}])
async def test_data_that_is_no_text_is_refused_here(gateway: FakeGateway, data: Any) -> None:
    with pytest.raises(ValueError):
        await client_of(gateway).send(data)


async def test_close_is_idempotent_and_leaves_nothing(gateway: FakeGateway) -> None:
    before = asyncio.all_tasks()
    client = client_of(gateway)
    await client.open()
    await client.open()
    await client.close()
    await client.close()
    assert client.state is ClientState.CLOSED
    with pytest.raises(GatewayError, match="already closed"):
        await client.open()
    unused = client_of(gateway)
    await unused.close()
    with pytest.raises(GatewayError, match="already closed"):
        await unused.recv()
    await until(lambda: not gateway.connections)
    ours = [task for task in asyncio.all_tasks() - before if "client" in task.get_name()]
    assert ours == []


def test_backoff_grows_to_its_cap_and_spreads() -> None:
    high = Backoff(initial=1, factor=2, cap=5, random=lambda: 0.0)
    assert [high.delay(n) for n in (0, 1, 2, 3, 10_000)] == [1, 2, 4, 5, 5]
    assert Backoff(random=lambda: 0.999).delay(0) < 0.001
    assert Backoff(jitter=0.5, random=lambda: 1.0).delay(0) == 0.25


# -- asking ------------------------------------------------------------------------------


async def test_request_returns_the_reply_and_overtakes_what_waits(gateway: FakeGateway) -> None:
    await gateway.store("first")
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request({"buy": 3}, id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", '{"ok":true}')
        await gateway.store("second")
        reply = await asyncio.wait_for(asking, 20)
        assert (reply.json(), reply.reply_to, reply.offset) == ({"ok": True}, "q1", 2)
        assert gateway.stored["q1"].payload == b'{"buy":3}'
        assert gateway.acks == []  # "first" was not processed: nothing may be acknowledged
        assert client.position == Position("e1", 0)
        assert await take(client, 2) == ["first", "second"]
        await until(lambda: gateway.acks[-1:] == [2])


async def test_reply_waits_behind_a_window_full_of_messages(gateway: FakeGateway) -> None:
    gateway.window = 2
    await gateway.store("a", "b")
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", "c")
        await gateway.round_trip()
        assert not asking.done()
        assert await take(client, 2) == ["a", "b"]
        assert (await asyncio.wait_for(asking, 20)).data == "c"


async def test_refusal_by_the_service_raises_its_code(gateway: FakeGateway) -> None:
    errors: list[GatewayError] = []
    async with client_of(gateway, on_error=errors.append) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests == ["q1"])
        await gateway.reply("q1", "none left", "sold_out")
        with pytest.raises(GatewayError, match="none left") as caught:
            await asyncio.wait_for(asking, 20)
        assert (caught.value.code, caught.value.id, caught.value.temporary) == (
            "sold_out",
            "q1",
            False,
        )
        await client.send("y", id="m1")  # no request, but refused
        await gateway.reply("m1", "", "rejected")
        await until(lambda: errors)
        assert (errors[0].code, errors[0].id) == ("rejected", "m1")
        assert gateway.requests == ["q1"]


async def test_reply_comes_over_a_later_connection(gateway: FakeGateway) -> None:
    gateway.confirm = False  # the reply proves that it was stored
    async with client_of(gateway) as client:
        asking = asyncio.create_task(client.request("x", id="q1"))
        await until(lambda: gateway.requests)
        gateway.cut()
        await until(lambda: len(gateway.requests) == 2)
        await gateway.reply("q1", "late")
        assert (await asyncio.wait_for(asking, 20)).data == "late"
        assert client.pending == 0


async def test_request_in_vain(gateway: FakeGateway) -> None:
    replies: list[Any] = []
    async with client_of(gateway, on_reply=replies.append, queue_limit=1) as client:
        with pytest.raises(TimeoutError):
            await client.request("x", id="q1", timeout=0.05)
        asking = asyncio.create_task(client.request("y", id="q2"))
        await until(lambda: gateway.requests == ["q1", "q2"])
        with pytest.raises(GatewayError, match="requests are already waiting") as caught:
            await client.request("z")
        assert caught.value.code == "queue_limit"
        asking.cancel()
        await asyncio.wait({asking})
        for id in ("q1", "q2", "of another client"):
            await gateway.reply(id, id)
        await until(lambda: [r.reply_to for r in replies] == ["q1", "q2", "of another client"])
        await until(lambda: gateway.acks[-1:] == [3])
        asking = asyncio.create_task(client.request("z", timeout=None))
        await until(lambda: len(gateway.requests) == 3)
    with pytest.raises(GatewayError, match="closed"):
        await asking


async def test_request_refused_by_the_gateway(gateway: FakeGateway) -> None:
    gateway.refusals["q1"] = ErrorCode.QUEUE_FULL
    async with client_of(gateway) as client:
        with pytest.raises(GatewayError) as caught:
            await client.request("x", id="q1")
        assert caught.value.code == "queue_full"
        one, two, _ = await asyncio.gather(
            client.request("x", id="q2"), client.request("x", id="q2"), _reply_to(gateway, "q2")
        )
        assert one is two
        assert gateway.requests == ["q1", "q2"]


async def _reply_to(gateway: FakeGateway, id: str) -> None:
    await until(lambda: id in gateway.requests)
    await gateway.reply(id, "both")


# -- what fails inside -------------------------------------------------------------------


class Mine(Exception):
    pass


def fails(*args: object) -> None:
    raise Mine("a callback's own")


async def waiters(client: Client) -> list[asyncio.Task[Any]]:
    """Start one of each call that waits for the gateway."""
    calls = (client.open(), client.recv(), client.send("a"), client.request("b", timeout=None))
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)  # each has begun
    return tasks


async def outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_callbacks_that_raise_harm_nobody(
    gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in on_state ended the client's task, and everybody waited for ever."""
    gateway.refusals["no"] = ErrorCode.QUEUE_FULL
    client = client_of(
        gateway, on_state=fails, on_welcome=fails, on_reply=fails, on_error=fails, ack_every=1
    )
    async with asyncio.timeout(20), client:
        await client.send("a")
        await gateway.reply("nobody's", "a reply")
        await gateway.reply("nobody's either", "a refusal", "sold_out")
        await gateway.store("b")
        assert (await client.recv()).data == "b"
        with pytest.raises(GatewayError):
            await client.send("c", id="no")
        asking = asyncio.create_task(client.request("d", id="r"))
        await until(lambda: "r" in gateway.requests)
        await gateway.reply("r", "fine")
        assert (await asking).data == "fine"
        gateway.cut()
        await gateway.store("e")
        assert (await client.recv()).data == "e"
    assert client.state is ClientState.CLOSED
    logged = [
        record
        for record in caplog.records
        if record.getMessage() == "a callback of the client failed"
    ]
    assert len(logged) >= 8  # states, welcomes, reply, error
    assert {record.name for record in logged} == {"wsgateway.client"}


async def test_callback_that_raises_at_the_end_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    gateway.mute = True
    client = client_of(gateway, on_state=fails)
    tasks = await waiters(client)
    await client.close()
    for outcome in await outcomes(tasks):
        assert isinstance(outcome, GatewayError)
        assert outcome.code == "closed"


async def test_close_before_the_client_began_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    """A task that is cancelled before its first step runs nothing, its ``finally`` neither."""
    client = client_of(gateway)
    tasks = await waiters(client)
    await client.close()
    assert client.state is ClientState.CLOSED
    assert all(isinstance(outcome, GatewayError) for outcome in await outcomes(tasks))


async def test_whatever_ends_the_client_fails_everybody_who_waits(gateway: FakeGateway) -> None:
    class Broken(Backoff):
        def delay(self, *args: Any, **options: Any) -> float:
            raise Mine("a bug")

    gateway.close_with = [CloseCode.SHUTTING_DOWN]
    client = client_of(gateway, backoff=Broken())
    for outcome in await outcomes(await waiters(client)):
        assert isinstance(outcome, GatewayError)
        assert "the client failed: Mine('a bug')" in str(outcome)
        assert outcome.close_code is None
    with pytest.raises(GatewayError, match="a bug"):
        await client.open()


async def test_cancelling_every_task_leaves_nobody_waiting(gateway: FakeGateway) -> None:
    gateway.mute = True
    client = client_of(gateway)
    tasks = await waiters(client)
    (runner,) = (task for task in asyncio.all_tasks() if task.get_name() == "wsgateway-client")
    runner.cancel()
    assert all(isinstance(outcome, GatewayError) for outcome in await outcomes(tasks))


async def test_writer_that_fails_costs_the_connection_only(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended alone: messages came, and nothing went out any more."""
    failures = [Mine("a bug")]
    next_frame = ClientSession.next_frame

    def fails_once(session: ClientSession, now: float) -> str | None:
        if session.pending and failures:
            raise failures.pop()
        return next_frame(session, now)

    monkeypatch.setattr(ClientSession, "next_frame", fails_once)
    async with asyncio.timeout(20), client_of(gateway) as client:
        await client.send("a")
    assert not failures
