"""One accepted websocket: its handshake, its answers, its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support import until
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.gateway.transport import Transport
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.v1.endpoint import V1Endpoint

Settings = Any
KINDS = pytest.mark.parametrize("kind", [RawEndpoint, V1Endpoint])


class Server:
    """An ASGI server; its client reads while `reads` is set."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.error: Exception | None = None

    async def send(self, event: Any) -> None:
        await self.reads.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(event)

    def socket(self, kind: type[Endpoint] = V1Endpoint) -> Socket:
        return Socket(Transport(self.send), kind)


@KINDS
async def test_handshake_names_the_subprotocol_once(kind: type[Endpoint]) -> None:
    server = Server()
    socket = server.socket(kind)
    await socket.accept()
    await socket.accept()
    assert server.sent == [{"type": "websocket.accept", "subprotocol": kind.subprotocol}]


@KINDS
async def test_closing_during_the_handshake_accepts_first_and_once(kind: type[Endpoint]) -> None:
    """The client of a raw socket got HTTP 403, and a browser cannot tell that from an outage."""
    server = Server()
    socket = server.socket(kind)
    await socket.close(CloseCode.NOT_AUTHENTICATED)
    await socket.close(CloseCode.FORBIDDEN)
    code = 1008 if kind is RawEndpoint else 4501
    assert [(e["type"], e.get("code"), e.get("reason")) for e in server.sent] == [
        ("websocket.accept", None, None),
        ("websocket.close", code, "not authenticated"),
    ]


async def test_socket_that_is_closed_during_the_handshake_is_not_used() -> None:
    """A logout at that moment closed it, and then it was accepted and served all the same."""
    socket = Server().socket()
    await socket.close(CloseCode.NOT_AUTHENTICATED)
    with pytest.raises(SocketClosed):
        await socket.accept()
    with pytest.raises(SocketClosed):
        await socket.write("x")


@pytest.mark.parametrize("end", ["close", "end"])
async def test_nothing_is_taken_from_a_socket_that_is_closed(end: str) -> None:
    socket = Server().socket(RawEndpoint)
    socket.endpoint.open(0.0)
    if end == "close":
        await socket.close(CloseCode.FORBIDDEN)
    else:
        socket.end()
    assert socket.endpoint.receive("x", 0.0) is None


async def test_text_and_bytes_are_frames_of_their_kind() -> None:
    server = Server()
    socket = server.socket(RawEndpoint)
    await socket.write("x")
    await socket.write(b"")
    assert server.sent == [
        {"type": "websocket.send", "text": "x"},
        {"type": "websocket.send", "bytes": b""},
    ]


async def test_client_that_is_gone_closes_the_socket() -> None:
    server = Server()
    socket = server.socket()
    server.error = ConnectionResetError()
    with pytest.raises(SocketClosed):
        await socket.accept()
    with pytest.raises(SocketClosed):
        await socket.write("x")


async def test_reason_is_cut_to_what_a_close_frame_holds() -> None:
    server = Server()
    await server.socket().close(CloseCode.BAD_REQUEST, "ä" * 100)
    assert server.sent[-1]["reason"] == "ä" * 61


async def test_failure_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.error = ZeroDivisionError()
    await server.socket().close(CloseCode.BAD_REQUEST)
    assert "a socket could not be closed with 4500" in caplog.text


async def test_answers_are_written_in_order() -> None:
    server = Server()
    socket = server.socket()
    for number in range(3):
        socket.answer(f"{number}")
    await until(lambda: len(server.sent) == 3, what="three answers")
    assert [event["text"] for event in server.sent] == ["0", "1", "2"]
    assert socket.unwritten == 0


async def test_answers_that_wait_are_counted(settings: Settings) -> None:
    settings.WSGATEWAY_PING_TIMEOUT = 0.01
    server = Server()
    socket = server.socket()
    server.reads.clear()
    for number in range(3):
        socket.answer(f"{number}")
    assert socket.unwritten == 3
    assert not await socket.answers_written(3)
    assert socket.unwritten == 3  # one of them is under way
    server.reads.set()
    assert await socket.answers_written(1)
    assert socket.unwritten == 0


async def test_answers_end_with_the_socket() -> None:
    server = Server()
    socket = server.socket()
    server.error = ConnectionResetError()
    socket.answer("x")
    await until(lambda: socket.unwritten == 0, what="given up")
    await socket.close(CloseCode.FORBIDDEN)
    socket.answer("y")
    assert socket.unwritten == 0


async def test_answer_that_cannot_be_written_is_logged_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task that writes answers ended, and the client waited for its acknowledgements."""
    server = Server()
    socket = server.socket()
    told: list[BaseException | None] = []
    socket.on_failure = told.append
    server.error = ZeroDivisionError()
    socket.answer("x")
    await until(lambda: told == [server.error], what="it is told")
    assert "task wsgateway-answers failed" in caplog.text
