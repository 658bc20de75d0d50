"""The queue against a model of a connection that breaks, falls silent and refuses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import until
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import BrokerUnavailable, MessageTooBig, QueueFull
from wsgateway.gateway import publish_queue as queue_module
from wsgateway.gateway.publish_queue import PublishQueue
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Topic

STEPS = ["store", "store", "store", "lose answer", "break", "down", "silent", "late", "wait"]


class Server:
    """Takes offers in the order in which they come, as one connection does; knows ids."""

    def __init__(self, refused: Set[str] = frozenset()) -> None:
        self.stored: dict[str, int] = {}  # id: offset, in the order of storing
        self.tried: Counter[str] = Counter()
        self.down = False
        self._refused = refused
        self._pipe: list[tuple[str, asyncio.Future[Receipt]]] = []

    def offer(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str], topic: Topic | None = None
    ) -> asyncio.Future[Receipt]:
        if self.down:
            raise BrokerUnavailable("not connected")
        self.tried[msg_id] += 1
        answer: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._pipe.append((msg_id, answer))
        return answer

    def store(self, *, answer: bool = True) -> None:
        """Handle the oldest offer."""
        if not self._pipe:
            return
        msg_id, future = self._pipe.pop(0)
        error = QueueFull("full") if msg_id in self._refused else None
        known = msg_id in self.stored
        if error is None:
            self.stored.setdefault(msg_id, len(self.stored) + 1)
        if not answer or future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(Receipt(self.stored[msg_id], known))

    def break_off(self) -> None:
        """End the connection: nothing on it is answered any more."""
        pipe, self._pipe = self._pipe, []
        for _, future in pipe:
            if not future.done():
                future.set_exception(BrokerUnavailable("lost"))

    async def run(self, steps: list[str]) -> None:
        for step in steps:
            if step == "store":
                self.store()
            elif step == "lose answer":  # stored, and then the connection breaks
                self.store(answer=False)
                self.break_off()
            elif step == "break":
                self.break_off()
            elif step == "down":
                self.down = True
                self.break_off()
            elif step == "silent":  # longer than an attempt may take
                await asyncio.sleep(queue_module.ATTEMPT_TIMEOUT * 3)
            elif step == "late":  # all that is under way, repetitions too
                while self._pipe:
                    self.store()
            else:
                await asyncio.sleep(0.001)
            if step != "down":
                self.down = False
            await asyncio.sleep(0)
        self.down = False
        while True:
            self.store()
            await asyncio.sleep(0)


@pytest.fixture(autouse=True, scope="module")
def _fast() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_module, "ATTEMPT_TIMEOUT", 0.01)
        patch.setattr(queue_module, "RETRY_PAUSE", 0.001)
        yield


Results = list[Receipt | BaseException]


def tasks() -> set[str]:
    """Return the names of the tasks that run."""
    return {task.get_name() for task in asyncio.all_tasks()}


async def drive(
    server: Server,
    count: int,
    window: int,
    steps: list[str],
    timeout: float = 30.0,
    strict: bool = False,
) -> Results:
    """Send *count* frames while *server* does *steps*; return what became of each."""
    queue = PublishQueue(server.offer, window, 1_000_000, lambda: timeout, strict=strict)
    work = asyncio.create_task(server.run(steps))
    try:
        async with asyncio.timeout(30):
            futures = []
            for number in range(count):
                futures.append(await queue.put(Frame.of(str(number)), str(number)))
                assert queue.pending <= window
            results: Results = await asyncio.gather(*futures, return_exceptions=True)
        await until(lambda: "wsgateway-publish-queue" not in tasks(), what="the queue rests")
        return results
    finally:
        work.cancel()
        await asyncio.wait({work})


@settings(max_examples=60)
@given(
    count=st.integers(1, 30),
    window=st.integers(1, 8),
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
    refused=st.sets(st.integers(0, 30).map(str), max_size=3),
)
def test_stored_once_in_order_and_answered_once(
    count: int, window: int, steps: list[str], refused: set[str]
) -> None:
    server = Server(refused)
    results = asyncio.run(drive(server, count, window, steps))
    accepted = [str(number) for number in range(count) if str(number) not in refused]
    assert list(server.stored) == accepted
    for number, result in enumerate(results):
        if str(number) in refused:
            assert isinstance(result, QueueFull)
        else:
            assert isinstance(result, Receipt)
            assert result.offset == server.stored[str(number)]


@settings(max_examples=30)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=40), window=st.integers(1, 8))
def test_order_holds_when_some_are_refused_as_too_late(steps: list[str], window: int) -> None:
    server = Server()
    results = asyncio.run(drive(server, 20, window, steps, timeout=0.02))
    order = [int(msg_id) for msg_id in server.stored]
    assert order == sorted(order)
    for number, result in enumerate(results):
        if isinstance(result, Receipt):
            assert server.stored[str(number)] == result.offset
        else:
            assert isinstance(result, BrokerUnavailable)


@settings(max_examples=60)
@given(
    count=st.integers(1, 30),
    window=st.integers(1, 8),
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
    refused=st.integers(0, 29),
)
@example(count=4, window=2, steps=["store", "store", "lose answer"], refused=2)
def test_strict_queue_offers_nothing_after_it_knows_of_a_refusal(
    count: int, window: int, steps: list[str], refused: int
) -> None:
    """A refused raw frame, 2 of 1 to 5, left 3 to 5 stored."""
    server = Server({str(refused)})
    results = asyncio.run(drive(server, count, window, steps, strict=True))
    before = results[:refused]
    assert all(isinstance(result, Receipt) for result in before)
    assert list(server.stored)[: len(before)] == [str(number) for number in range(len(before))]
    if refused < count:
        assert isinstance(results[refused], QueueFull)
        # What was in flight when the refusal was made may be stored
        for result in results[refused + 1 :]:
            assert isinstance(result, asyncio.CancelledError)
        assert len(server.stored) <= refused + window - 1
        assert all(int(msg_id) < refused + window for msg_id in server.tried)


async def test_strict_queue_stores_nothing_behind_a_refusal_it_was_told_of() -> None:
    server = Server({"1"})
    queue = PublishQueue(server.offer, 8, 1_000_000, lambda: 30.0, strict=True)
    futures = [await queue.put(Frame.of("x"), str(number)) for number in range(2)]
    server.store()
    server.store()
    futures += [await queue.put(Frame.of("x"), str(number)) for number in range(2, 5)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[1], QueueFull)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[2:])
    assert server.tried.keys() == {"0", "1"}
    assert (await queue.put(Frame.of("x"), "5")).cancelled()


async def test_strict_window_does_not_move_past_a_refusal_that_was_not_heard() -> None:
    """With each answer that was lost, one more frame behind a refused one was stored."""
    server = Server({"0"})
    queue = PublishQueue(server.offer, 2, 1_000_000, lambda: 30.0, strict=True)
    first = await queue.put(Frame.of("x"), "0")
    server.store(answer=False)
    second = await queue.put(Frame.of("x"), "1")
    server.store()
    third = asyncio.create_task(queue.put(Frame.of("x"), "2"))
    await until(lambda: server.tried["0"] == 2)
    server.store()
    with pytest.raises(QueueFull):
        await first
    assert second.cancelled()
    assert (await third).cancelled()
    assert server.tried.keys() == {"0", "1"}


async def test_put_waits_while_the_window_is_full_of_bytes() -> None:
    """The window counted frames only: 64 frames of 1 MB for each socket."""
    server = Server()
    queue = PublishQueue(server.offer, 64, 1000, lambda: 30.0)
    await queue.put(Frame.of("x" * 5000), "0")  # larger than the window: it goes alone
    second = asyncio.create_task(queue.put(Frame.of("x" * 600), "1"))
    await asyncio.sleep(0.005)
    assert not second.done()
    server.store()
    await second
    third = asyncio.create_task(queue.put(Frame.of("x" * 401), "2"))
    fits = asyncio.create_task(queue.put(Frame.of("x" * 400), "3"))
    await fits
    assert not third.done()
    for _ in range(3):
        server.store()
        await asyncio.sleep(0.001)
    await third
    server.store()
    assert (await third.result()).offset == 4


async def test_put_waits_while_the_window_is_full() -> None:
    server = Server()
    queue = PublishQueue(server.offer, 2, 1_000_000, lambda: 30.0)
    for number in range(2):
        await queue.put(Frame.of("x"), str(number))
    third = asyncio.create_task(queue.put(Frame.of("x"), "2"))
    await asyncio.sleep(0.005)
    assert not third.done()
    assert server.tried.keys() == {"0", "1"}
    server.store()
    await third
    assert "2" in server.tried
    for _ in range(3):
        server.store()
    assert (await third.result()).offset == 3


async def test_put_that_is_cancelled_while_it_waits_sends_nothing() -> None:
    server = Server()
    queue = PublishQueue(server.offer, 1, 1_000_000, lambda: 30.0)
    first = await queue.put(Frame.of("x"), "0")
    second = asyncio.create_task(queue.put(Frame.of("x"), "1"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    server.store()
    await first
    third = await queue.put(Frame.of("x"), "2")
    server.store()
    await third
    assert list(server.stored) == ["0", "2"]


async def test_queue_that_is_given_up_lets_nobody_wait() -> None:
    server = Server()
    queue = PublishQueue(server.offer, 1, 1_000_000, lambda: 30.0)
    first = await queue.put(Frame.of("x"), "0")
    second = asyncio.create_task(queue.put(Frame.of("x"), "1"))
    await asyncio.sleep(0)
    queue.give_up()
    assert (await second).cancelled()
    assert first.cancelled()
    assert server.tried.keys() == {"0"}


async def test_silence_is_given_up_after_the_timeout_and_the_text_says_what_to_do() -> None:
    server = Server()
    queue = PublishQueue(server.offer, 4, 1_000_000, lambda: 0.5)
    futures = [await queue.put(Frame.of("x"), str(number)) for number in range(3)]
    for future in futures:
        with pytest.raises(BrokerUnavailable, match=r"within 0\.5 s; send it again later"):
            await future
    assert all(count > 1 for count in server.tried.values())
    await until(lambda: not queue.pending, what="nothing waits")


async def test_receipt_nobody_waits_for_any_more_harms_nothing() -> None:
    server = Server()
    queue = PublishQueue(server.offer, 4, 1_000_000, lambda: 30.0)
    first = await queue.put(Frame.of("x"), "0")
    second = await queue.put(Frame.of("x"), "1")
    first.cancel()
    server.store()
    server.store()
    assert (await second).offset == 2


async def test_error_of_the_offer_itself_is_the_answer() -> None:
    def offer(*_: Any) -> asyncio.Future[Receipt]:
        raise MessageTooBig(2, 1)

    queue = PublishQueue(offer, 4, 1_000_000, lambda: 30.0)
    with pytest.raises(MessageTooBig):
        await (await queue.put(Frame.of("xx"), "0"))


async def test_patience_is_that_of_the_moment() -> None:
    """A frame may wait for an election; if there is no server at all, its client hears earlier."""
    patience = [30.0]

    def offer(*_: Any) -> asyncio.Future[Receipt]:
        raise BrokerUnavailable("no leader")

    queue = PublishQueue(offer, 4, 1_000_000, lambda: patience[0])
    stored = await queue.put(Frame.of("x"), "x")
    await asyncio.sleep(0.3)
    assert not stored.done()
    patience[0] = 0.2
    with pytest.raises(BrokerUnavailable, match=r"not stored within 0\.2 s"):
        await asyncio.wait_for(stored, 10)
