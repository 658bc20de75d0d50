"""What a client does when its connection ends."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from tests.support import until
from tests.unit.clients import FAST, client_of, gateway, take
from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import Backoff, ClientState, GatewayError, Position, connect
from wsgateway.client.lost import Lost, translated
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import Reason

__all__ = ["gateway"]  # a fixture


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
    assert gateway.tokens == ["a", "b", "b", "c"]
    assert "token" not in "".join(gateway.queries)  # access logs keep those


async def test_token_goes_into_the_named_parameter(gateway: FakeGateway) -> None:
    async with client_of(gateway, token="t", token_parameter="key", device="phone"):
        assert (gateway.queries, gateway.tokens) == (["key=t&device=phone"], [None])


async def test_token_that_has_expired_is_asked_for_again(gateway: FakeGateway) -> None:
    tokens = iter("abc")
    async with client_of(gateway, token=lambda: next(tokens)):
        await gateway.close_all(4016)
        await until(lambda: len(gateway.resumes) == 2)
    assert gateway.tokens == ["a", "b"]


async def test_token_is_replaced_before_it_expires_and_the_connection_stays(
    gateway: FakeGateway,
) -> None:
    answers: list[Any] = ["a", OSError("no network"), "b", "c", "d"]
    errors: list[str] = []
    gateway.expires_in, gateway.unauthorized = 0.1, 1

    async def token() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    async with client_of(
        gateway, token=token, on_error=lambda error: errors.append(error.code)
    ) as client:
        gateway.expires_in = None
        await until(lambda: gateway.refreshes == ["b", "c"])
        await client.send("x")
        gateway.cut()
        await until(lambda: len(gateway.resumes) == 2)
    assert errors == ["unauthorized"]
    assert (gateway.tokens, answers) == (["a", "c"], ["d"])


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
        assert gateway.tokens == ["t"]
