"""What `wsgateway.broker.bus.Bus` promises, on every implementation."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Bus, Handler, new_reply_subject
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerUnavailable, NobodyAnswers

Message = tuple[bytes, bytes, bytes]


class Listener:
    """Keeps what comes on a subject."""

    def __init__(self, bus: Bus, subject: str, queue: str = "") -> None:
        self.got: list[Message] = []
        self._heard = asyncio.Event()
        self.subscription = bus.subscribe(subject, self._hear, queue)

    def _hear(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        assert headers is None
        self.got.append((subject, reply, payload))
        self._heard.set()

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, _, payload in self.got]

    async def wait(self, count: int) -> list[bytes]:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                self._heard.clear()
                await self._heard.wait()
        return self.payloads


@pytest.fixture
async def bus(broker: Broker) -> Bus:
    broker.take_part()
    return broker.bus


@pytest.fixture
async def others(other: Broker) -> Bus:
    other.take_part()
    return other.bus


@pytest.fixture
def subject(broker: Broker) -> str:
    return f"{broker.subjects.prefix}.proc.one"


class TestDelivery:
    async def test_every_listener_gets_each_message_in_order(
        self, broker: Broker, bus: Bus, others: Bus, subject: str
    ) -> None:
        listeners = [Listener(each, subject) for each in (bus, bus, others)]
        await broker.in_effect()
        await others.confirm()
        for number in range(100):
            bus.publish(subject, b"%d" % number)
        for listener in listeners:
            assert await listener.wait(100) == [b"%d" % number for number in range(100)]
        bus.publish(subject, b"", reply="answers.here")
        await listeners[0].wait(101)
        assert listeners[0].got[-1] == (subject.encode(), b"answers.here", b"")

    async def test_subscription_is_in_effect_wherever_somebody_sends(
        self, broker: Broker, bus: Bus, others: Bus, subject: str
    ) -> None:
        for number in range(20):
            listener = Listener(bus, f"{subject}{number}")
            await broker.in_effect()
            others.publish(f"{subject}{number}", b"x")
            assert await listener.wait(1) == [b"x"]

    async def test_other_subjects_are_not_heard(self, bus: Bus, subject: str) -> None:
        listener = Listener(bus, subject)
        for name in (f"{subject}.more", subject[:-1], f"{subject}x"):
            bus.publish(name, b"no")
        bus.publish(subject, b"yes")
        assert await listener.wait(1) == [b"yes"]

    async def test_each_message_goes_to_one_of_a_queue(
        self, bus: Bus, others: Bus, subject: str
    ) -> None:
        first = [Listener(bus, subject, "a"), Listener(others, subject, "a")]
        second = [Listener(bus, subject, "b"), Listener(others, subject, "b")]
        plain = Listener(bus, subject)
        await others.confirm()
        for number in range(100):
            bus.publish(subject, b"%d" % number)
        await plain.wait(100)
        for queue in (first, second):
            while sum(len(each.got) for each in queue) < 100:
                await asyncio.sleep(0.01)
            assert sorted(queue[0].payloads + queue[1].payloads) == sorted(plain.payloads)
            assert all(listener.got for listener in queue)

    async def test_closed_subscription_hears_nothing_more(self, bus: Bus, subject: str) -> None:
        listener, left = Listener(bus, subject), Listener(bus, subject)
        bus.publish(subject, b"1")
        left.subscription.close()
        left.subscription.close()
        bus.publish(subject, b"2")
        assert await listener.wait(2) == [b"1", b"2"]
        assert left.got == []

    async def test_what_was_sent_has_arrived_once_it_is_confirmed(
        self, bus: Bus, subject: str
    ) -> None:
        listener = Listener(bus, subject)
        for _ in range(10):
            bus.publish(subject, b"x" * 1000)
        bus.send_now()
        await bus.pressure()
        await bus.confirm()
        assert len(listener.got) == 10

    async def test_handler_runs_in_the_loop_that_subscribed(
        self, bus: Bus, subject: str, brokers: Any
    ) -> None:
        heard: Future[int] = Future()
        ready, done = threading.Event(), threading.Event()

        async def listen() -> None:
            broker = brokers.make()
            await broker.open()
            await broker.bus.ready()
            broker.bus.subscribe(subject, lambda *_: heard.set_result(threading.get_ident()))
            await broker.bus.confirm()
            ready.set()
            await asyncio.to_thread(done.wait, 20)
            await broker.close()

        thread = threading.Thread(target=lambda: asyncio.run(listen()))
        thread.start()
        try:
            assert await asyncio.to_thread(ready.wait, 20)
            bus.publish(subject, b"x")
            assert await asyncio.wait_for(asyncio.wrap_future(heard), 20) == thread.ident
        finally:
            done.set()
            await asyncio.to_thread(thread.join)


class TestRequest:
    async def test_first_answer_is_returned(self, bus: Bus, others: Bus, subject: str) -> None:
        def answer(_s: bytes, reply: bytes, payload: bytes, _h: bytes | None) -> None:
            for word in (b"first", b"second"):
                others.publish(reply.decode(), word + payload)

        others.subscribe(subject, answer)
        await others.confirm()
        answers = await asyncio.gather(*(bus.request(subject, b"%d" % n) for n in range(10)))
        assert [answer.data for answer in answers] == [b"first%d" % n for n in range(10)]

    async def test_nobody_answers(self, bus: Bus, subject: str) -> None:
        with pytest.raises(NobodyAnswers, match=subject):
            await bus.request(subject, b"x")

    async def test_silence_ends_with_the_deadline(self, bus: Bus, subject: str) -> None:
        bus.subscribe(subject, lambda *_: None)
        with pytest.raises(BrokerUnavailable, match="no answer"):
            await bus.request(subject, b"x")

    async def test_closing_ends_the_wait_for_an_answer(
        self, broker: Broker, bus: Bus, subject: str
    ) -> None:
        bus.subscribe(subject, lambda *_: None)
        asking = asyncio.create_task(bus.request(subject, b"x"))
        await asyncio.sleep(0)
        await broker.close()
        with pytest.raises(BrokerClosed):
            await asking

    async def test_reply_subjects_are_different(self) -> None:
        assert len({new_reply_subject() for _ in range(1000)}) == 1000


class Answers:
    """What `request_many` hands over."""

    def __init__(self, bus: Bus, subject: str, payload: bytes = b"") -> None:
        self.got: list[bytes] = []
        self.failures: list[BrokerError] = []
        self.question = bus.request_many(subject, payload, self.got.append, self.failures.append)


class TestRequestMany:
    async def test_every_answer_comes_in_order_over_all_requests(
        self, bus: Bus, others: Bus, subject: str
    ) -> None:
        """Presence rests on it: who has answered the last question has answered all before."""

        def answer(_s: bytes, reply: bytes, payload: bytes, _h: bytes | None) -> None:
            for number in range(3):
                others.publish(reply.decode(), b"%s %d" % (payload, number))

        for number in range(10):
            others.subscribe(f"{subject}.{number}", answer)
        await others.confirm()
        order: list[bytes] = []
        for number in range(10):
            bus.request_many(f"{subject}.{number}", b"%d" % number, order.append, print)
        await until(lambda: len(order) == 30, what="all answers")
        assert order == [b"%d %d" % (number, n) for number in range(10) for n in range(3)]

    async def test_whoever_listens_answers(self, bus: Bus, others: Bus, subject: str) -> None:
        def answer(each: Bus, word: bytes) -> Handler:
            return lambda _s, reply, _p, _h: each.publish(reply.decode(), word)

        bus.subscribe(subject, answer(bus, b"one"))
        others.subscribe(subject, answer(others, b"two"))
        await others.confirm()
        answers = Answers(bus, subject)
        await until(lambda: len(answers.got) == 2, what="both answers")
        assert sorted(answers.got) == [b"one", b"two"]
        assert answers.failures == []

    async def test_nobody_listens(self, bus: Bus, subject: str) -> None:
        answers = Answers(bus, subject)
        assert answers.failures == []  # not before the call returns
        await until(lambda: answers.failures, what="the failure")
        assert [type(failure) for failure in answers.failures] == [NobodyAnswers]
        assert answers.got == []

    async def test_nothing_comes_after_it_was_closed(
        self, bus: Bus, others: Bus, subject: str, broker: Broker, brokers: Any
    ) -> None:
        reply: list[str] = []
        others.subscribe(subject, lambda _s, r, _p, _h: reply.append(r.decode()))
        await others.confirm()
        answers, nobody = Answers(bus, subject), Answers(bus, f"{subject}.nobody")
        for each in (answers, nobody):
            each.question.close()
            each.question.close()
        await until(lambda: reply, what="the question")
        others.publish(reply[0], b"late")
        await others.confirm()
        await bus.confirm()
        assert not [*answers.got, *answers.failures, *nobody.failures]
        assert brokers.waiting(broker) == 0

    async def test_closing_the_broker_is_a_failure(
        self, broker: Broker, bus: Bus, subject: str
    ) -> None:
        bus.subscribe(subject, lambda *_: None)
        answers = Answers(bus, subject)
        await broker.close()
        assert [type(failure) for failure in answers.failures] == [BrokerClosed]

    async def test_not_connected(self, brokers: Any, subject: str) -> None:
        with pytest.raises(BrokerUnavailable):
            Answers(brokers.make().bus, subject)


class TestLife:
    async def test_not_open_yet(self, brokers: Any, subject: str) -> None:
        broker = brokers.make()
        opened: list[bool] = []
        assert (broker.bus.is_open, broker.bus.times_connected) == (False, 0)
        hook = broker.bus.on_open(lambda: opened.append(broker.bus.is_open))
        with pytest.raises(BrokerUnavailable):
            broker.bus.publish(subject, b"x")
        await broker.open()
        await broker.bus.ready()
        assert (broker.bus.is_open, broker.bus.times_connected) == (True, 1)
        assert opened == [True]
        hook.close()
        await broker.close()
        assert not broker.bus.is_open
        with pytest.raises(BrokerClosed):
            broker.bus.publish(subject, b"x")
        with pytest.raises(BrokerClosed):
            broker.bus.subscribe(subject, lambda *_: None)
        with pytest.raises(BrokerClosed):
            await broker.bus.ready()

    async def test_closed_broker_hears_nothing(
        self, bus: Bus, others: Bus, other: Broker, subject: str
    ) -> None:
        left, stays = Listener(others, subject), Listener(bus, subject)
        await others.confirm()
        await other.close()
        bus.publish(subject, b"x")
        assert await stays.wait(1) == [b"x"]
        await bus.confirm()
        assert left.got == []
