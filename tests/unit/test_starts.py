"""Who asks where to begin at the same time as others, and what they share."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tests.support import until
from wsgateway.broker.messages import Batch
from wsgateway.broker.recovery import Start
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.starts import Starts
from wsgateway.protocol.subjects import Topic

ROOM, LOBBY = Topic("room", "42"), Topic("room", "lobby")


class Log:
    """Answers when it is let, with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[int] = []  # how many messages each question is for
        self.answers = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def ask(self, limit: int) -> Start:
        self.asked.append(limit)
        number = len(self.asked)
        await self.answers.acquire()
        if self.error is not None:
            raise self.error
        return Start("e", number, None, Batch([], False))

    async def read_after(self, address: Topic, offset: int, *, limit: int) -> Batch:
        raise BrokerUnavailable("not now")


def begin(starts: Starts, log: Log, room: int = 5, claim: Any = 7, topic: Topic = ROOM) -> Any:
    return asyncio.create_task(starts.find(cast("Any", log), topic, claim, room, log.ask))


async def test_those_who_come_while_a_question_is_asked_share_the_next_one() -> None:
    starts, log = Starts(4), Log()
    first = begin(starts, log)
    await until(lambda: len(log.asked) == 1, what="the question is asked")
    others = [begin(starts, log, room) for room in (3, 9, 1)]
    await asyncio.sleep(0.01)
    assert log.asked == [5], "one at a time"
    log.answers.release()
    assert (await first).offset == 1
    await until(lambda: len(log.asked) == 2, what="the next one is asked")
    log.answers.release()
    assert [start.offset for start in await asyncio.gather(*others)] == [2, 2, 2]
    assert log.asked[1] == 9, "as many messages as any of them can take"


async def test_other_claims_and_topics_are_other_questions_so_many_at_once() -> None:
    starts, log = Starts(2), Log()
    tasks = [begin(starts, log, claim=7), begin(starts, log, claim=8)]
    tasks.append(begin(starts, log, topic=LOBBY))
    await until(lambda: len(log.asked) == 2, what="two are asked")
    await asyncio.sleep(0.01)
    assert len(log.asked) == 2
    for _ in tasks:
        log.answers.release()
    assert [(await task).offset for task in tasks] == [1, 2, 3]


async def test_logs_do_not_wait_for_each_other() -> None:
    starts, stuck, log = Starts(1), Log(), Log()
    waiting = begin(starts, stuck)
    log.answers.release()
    assert (await begin(starts, log)).offset == 1
    waiting.cancel()


async def test_one_that_leaves_takes_nothing_from_the_others() -> None:
    starts, log = Starts(1), Log()
    first, second = begin(starts, log), begin(starts, log)
    await until(lambda: len(log.asked) == 1, what="the question is asked")
    first.cancel()
    log.answers.release()
    assert (await second).offset == 1
    last = begin(starts, log)
    await until(lambda: len(log.asked) == 2, what="it is asked")
    last.cancel()
    await asyncio.wait([last])
    again = begin(starts, log)
    log.answers.release()
    assert (await again).offset == 3, "not the answer that nobody waited for"


async def test_error_is_told_to_all_who_asked() -> None:
    starts, log = Starts(1), Log()
    log.error = BrokerUnavailable("no leader")
    tasks = [begin(starts, log) for _ in range(3)]
    log.answers.release()
    for task in tasks:
        with pytest.raises(BrokerUnavailable, match="no leader"):
            await task
    log.error = None
    log.answers.release()
    assert (await begin(starts, log)).offset == 2


async def test_beginning_is_known_though_nothing_can_be_read_there() -> None:
    async def ask(limit: int) -> Start:
        return Start("e", 3)

    assert await Starts(1).find(cast("Any", Log()), ROOM, None, 5, ask) == Start("e", 3)
