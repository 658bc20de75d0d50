"""The socket on daphne, with autobahn's protocol and Twisted's transport faked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor

from wsgateway.gateway.daphne import (
    CLOSED,
    CLOSING,
    CONNECTING,
    OPEN,
    READ_BYTES,
    READ_FRAMES,
    DaphneTransport,
)


class Descriptor(FileDescriptor):
    """Holds what is written until `flush`."""

    connected = 1

    def __init__(self) -> None:
        super().__init__(reactor=object())  # type: ignore[arg-type]
        self.reading = True
        self.half_closed = False

    def startWriting(self) -> None: ...
    def stopWriting(self) -> None: ...

    def _closeWriteConnection(self) -> None:
        self.half_closed = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def writeSomeData(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        while self.dataBuffer or self._tempDataBuffer:
            self.doWrite()  # type: ignore[no-untyped-call]


class Protocol:
    """What `DaphneTransport` uses of daphne's protocol."""

    def __init__(self) -> None:
        self.state = OPEN
        self.maxMessagePayloadSize = self.maxFramePayloadSize = 1000
        self.transport = Descriptor()
        self.application_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.registerProducer = self.transport.registerProducer
        self.unregisterProducer = self.transport.unregisterProducer
        self.pongs: list[bytes] = []
        self.data = b"what came behind the broken frame"

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.application_queue.put_nowait(payload)

    def onMessageFrame(self, payload: list[bytes]) -> None: ...

    def _closeConnection(self, abort: bool = False) -> None: ...

    def _fail_connection(self, code: int, reason: str) -> None:
        raise AssertionError("it is replaced")

    def fail(self, code: int, reason: str) -> None:
        """Do what autobahn does about a broken frame."""
        self._fail_connection(code, reason)

    def _dataReceived(self, data: bytes) -> None: ...

    def sendCloseFrame(self, code: int, reasonUtf8: bytes, isReply: bool) -> None:
        self.transport.write(code.to_bytes(2) + reasonUtf8)
        self.state = CLOSING
        later = asyncio.get_running_loop().call_later
        self.closeHandshakeTimeoutCall: Any = later(60, self.onCloseHandshakeTimeout)

    def onCloseHandshakeTimeout(self) -> None: ...

    def onPing(self, payload: bytes) -> None:
        raise AssertionError("it is replaced")

    def onClose(self, *args: Any) -> None: ...

    def sendPong(self, payload: bytes) -> None:
        self.pongs.append(payload)


Made = tuple[DaphneTransport, Protocol]


@pytest.fixture
def made() -> Made:
    protocol = Protocol()

    async def send(event: Any) -> None:
        protocol.transport.write(event.get("bytes") or b"")

    return DaphneTransport(protocol, send), protocol


def message(size: int) -> dict[str, Any]:
    return {"type": "websocket.send", "bytes": bytes(size)}


async def test_limit_for_what_comes_is_raised_for_what_the_gateway_takes(made: Made) -> None:
    transport, protocol = made
    assert transport.take_frames(5000) == 5000
    assert (protocol.maxMessagePayloadSize, protocol.maxFramePayloadSize) == (5000, 5000)
    assert transport.take_frames(2000) == 2000
    assert (protocol.maxMessagePayloadSize, protocol.maxFramePayloadSize) == (5000, 5000)
    protocol.maxFramePayloadSize = 0  # no limit
    transport.take_frames(6000)
    assert (protocol.maxMessagePayloadSize, protocol.maxFramePayloadSize) == (6000, 0)


async def test_send_waits_until_the_kernel_has_what_was_sent_before(made: Made) -> None:
    transport, protocol = made
    assert await transport.send(message(1000))
    assert transport.pending == 1000
    assert not await transport.send(message(100_000))
    third = asyncio.create_task(transport.send(message(1)))
    await asyncio.sleep(0.01)
    assert not third.done()
    protocol.transport.flush()
    assert await third
    assert transport.pending == 1


async def test_drained_waits_for_a_few_bytes_too(made: Made) -> None:
    transport, protocol = made
    await transport.send(message(1))
    waiting = asyncio.create_task(transport.drained())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    protocol.transport.flush()
    await waiting


async def test_sender_that_waits_is_told_when_the_connection_is_lost(made: Made) -> None:
    transport, protocol = made
    await transport.send(message(100_000))
    waiting = asyncio.create_task(transport.send(message(1)))
    await asyncio.sleep(0)
    protocol.unregisterProducer()  # as autobahn does
    protocol.state = CLOSED
    protocol.onClose()
    with pytest.raises(ConnectionResetError):
        await waiting
    assert transport.pending, "what the kernel did not take is not forgotten"


async def test_accepting_a_socket_that_is_gone_is_no_error(made: Made) -> None:
    """Daphne ignores it; the event that tells of the end waits in its queue."""
    transport, protocol = made
    protocol.state = CLOSED
    assert await transport.send({"type": "websocket.accept"})
    await transport.close(1001, 4001, "")


async def test_only_the_last_ping_is_answered_while_the_client_does_not_read(made: Made) -> None:
    transport, protocol = made
    protocol.onPing(b"1")
    await transport.send(message(100_000))
    for payload in (b"2", b"3", b"4"):
        protocol.onPing(payload)
    assert protocol.pongs == [b"1"]
    protocol.transport.flush()
    assert protocol.pongs == [b"1", b"4"]


@pytest.mark.parametrize(("size", "count"), [(0, READ_FRAMES), (READ_BYTES // 4, 4)])
async def test_reading_pauses_until_all_that_came_is_taken(
    made: Made, size: int, count: int
) -> None:
    transport, protocol = made
    for number in range(count):
        assert protocol.transport.reading, number
        protocol.onMessage(bytes(size), True)
    assert not protocol.transport.reading
    for _ in range(count):
        assert not protocol.transport.reading
        protocol.application_queue.get_nowait()
        await transport.taken()
    assert protocol.transport.reading


async def test_nothing_is_queued_after_closing(made: Made) -> None:
    transport, protocol = made
    for _ in range(READ_FRAMES):
        protocol.onMessage(b"x", True)
    protocol.state = CLOSED
    await transport.close(1001, 4001, "")
    protocol.onMessage(b"y", True)
    assert protocol.application_queue.qsize() == READ_FRAMES
    assert protocol.transport.reading, "for the answer to the close frame"


async def test_closing_before_the_handshake_has_ended_refuses_it() -> None:
    """Nothing happened: the handshake went on, and the client had a socket that nobody served."""
    protocol, sent = Protocol(), []
    protocol.state = CONNECTING

    async def send(event: Any) -> None:
        sent.append(event)

    await DaphneTransport(protocol, send).close(4501, 4501, "revoked")
    assert sent == [{"type": "websocket.close"}]


async def test_broken_protocol_is_told_after_what_waits_for_the_client(made: Made) -> None:
    """Twisted half-closes only after a producer has nothing more to give, which never came."""
    transport, protocol = made
    for _ in range(READ_FRAMES):
        protocol.onMessage(b"x", True)
    await transport.send(message(100_000))
    waiting = asyncio.create_task(transport.send(message(1)))
    await asyncio.sleep(0)
    protocol.fail(1002, "reserved opcode 3")
    protocol.fail(1007, "what follows is not looked at")
    with pytest.raises(ConnectionResetError):
        await waiting
    assert protocol.transport.reading, "or the rest would be unread, and reset the connection"
    assert transport.pending == 100_000 + 2 + len("reserved opcode 3")
    protocol.transport.flush()
    assert protocol.transport.half_closed
    assert protocol.data == b""
