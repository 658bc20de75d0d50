"""Runs one service: takes messages from its queue, calls the handler, acknowledges.

Order without locks: a message leaves the work-queue stream when it is acknowledged, so it is a
message's turn exactly when it is the oldest of its user that is still in the stream. Every
worker checks that before it calls the handler, so two workers never handle one user at a time,
and a message that is tried again holds back the same user's later ones only. A message that is
delivered again belongs to the worker that got it last.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wsgateway import counters
from wsgateway.broker.work import Job, Retaken, Turn
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerClosed, BrokerError, reason_of
from wsgateway.logs import log_with_stack
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.handling import UNMARK_WITHIN, Handling
from wsgateway.services.policy import Retried
from wsgateway.services.running import Running
from wsgateway.supervision import start, supervise

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.services.registry import Service

__all__ = ["Worker"]

logger = logging.getLogger("wsgateway.services")

IN_HAND = 8
"""Messages in hand for each that may be handled; the others wait for their turn."""
MAX_WAITING = 16 * 1024 * 1024
"""Bytes that may wait behind other messages of the same user without counting as in hand."""
OVERHEAD = 2048
"""Bytes that a waiting message takes besides its payload, its share of its user's task included."""
PATIENCE = 5.0
"""Seconds after which a user's messages wait for one that is tried again, or handled elsewhere."""
BEATS_A_HOLD = 4
"""Heartbeats, a third of ACK_WAIT apart, between two holds of what waits behind other messages."""
FIRST_LOOK = 0.005
LAST_LOOK = 0.25
"""Seconds between two checks whether it is a message's turn; the pause doubles."""
LONG_LOOK = 2.0
"""The same for a user who waits for long already: workers tell each other whose turn has come."""
LOOKS = 500
"""Such checks a second, of all users together: with many of them, each waits longer."""
GIVEN_BACK_AFTER = 0.1
GIVEN_BACK_AFTER_A_BUG = 10.0

Key = tuple[int, int]
"""See `Job.key`."""


class _User:
    """One user's messages in hand."""

    __slots__ = ("counted", "handled", "heap", "jobs", "look", "waits", "waits_since")

    def __init__(self) -> None:
        self.jobs: dict[Key, Job] = {}  # the latest delivery counts
        self.heap: list[Key] = []
        self.counted: set[Key] = set()  # of those, the ones that take another user's place
        self.handled: Key | None = None  # what a handler has now
        self.look = asyncio.Event()  # set when it may be somebody's turn
        self.waits_since: float | None = None  # when the first was found behind one elsewhere
        self.waits = False  # whether that is longer ago than others' acknowledgements take

    def add(self, job: Job) -> bool:
        """Take a job; return False if it was in hand already."""
        new = job.key not in self.jobs
        self.jobs[job.key] = job
        if new:
            heapq.heappush(self.heap, job.key)
        self.look.set()
        return new

    @property
    def first(self) -> Job:
        """The oldest job."""
        return self.jobs[self.heap[0]]

    @property
    def second(self) -> Job | None:
        """The job after the oldest; None if there is only one."""
        following = self.heap[1:3]  # the root's children
        return self.jobs[min(following)] if following else None

    def behind(self) -> Iterator[Job]:
        """Yield the jobs that wait behind the oldest."""
        return (self.jobs[key] for key in self.heap[1:])

    def remove(self, job: Job) -> None:
        """Forget a job."""
        del self.jobs[job.key]
        if self.heap[0] == job.key:
            heapq.heappop(self.heap)
        else:
            self.heap.remove(job.key)
            heapq.heapify(self.heap)


class Worker:
    """One service in this process.

    Args:
        service: What to run.
        broker: Open, in the running loop.
        concurrency: Users served at once; None: as the service says.
        running: The handlers of the process's workers; None: it has no other worker.
    """

    def __init__(
        self,
        service: Service,
        broker: Broker,
        *,
        concurrency: int | None = None,
        running: Running | None = None,
    ) -> None:
        self.service = service
        self._broker = broker
        self.concurrency = concurrency or service.concurrency
        """Users whose messages it handles at once."""
        self._running = running or Running(settings.ACK_WAIT)
        self._queue = broker.work_queue(
            service.name,
            self._on_job,
            self._on_turn,
            settings.ACK_WAIT,
            self._on_pause,
            self._on_retaken,
        )
        self._users: dict[Inbox, _User] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # one for each user
        self._waiting = 0  # bytes of what is not counted as in hand
        self._ending = False
        self._heart: asyncio.Task[None] | None = None
        self._handling = Handling(service, broker, self._queue, self._running, self.concurrency)
        self._handling.on_stuck = self._on_stuck

    # -- life cycle ----------------------------------------------------------------------

    def start(self) -> None:
        """Start to take messages."""
        self._heart = supervise(self._beat, "wsgateway-heartbeat")
        self._queue.open(IN_HAND * self.concurrency)

    async def ready(self) -> None:
        """Wait until messages come, if there are any."""
        await self._queue.ready.wait()

    async def stop(self, timeout: float, *, in_order: bool = True) -> None:
        """Finish running handlers and return the rest to the queue.

        Args:
            timeout: Seconds; what is not finished then is delivered to another worker.
            in_order: False if the process ends for a reason that one of its handlers may be.
        """
        self._ending = True
        self._handling.ending = in_order
        await self._queue.close()
        for user in self._users.values():
            user.look.set()
        tasks = list(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=UNMARK_WITHIN + 0.5)
        if self._heart is not None:
            self._heart.cancel()
        self._handling.close()
        await self.service.close()

    @property
    def ack_wait(self) -> float:
        """Seconds without a heartbeat after which its messages come again."""
        return self._queue.ack_wait

    @property
    def counts(self) -> Counter[str]:
        """Messages by what became of them: done, retried, rejected, dead-lettered."""
        return self._handling.counts

    @property
    def in_hand(self) -> int:
        """Messages taken and not answered yet."""
        return sum(len(user.jobs) for user in self._users.values())

    # -- messages in hand ----------------------------------------------------------------

    def _on_job(self, job: Job) -> None:
        if job.deliveries > 1:
            counters.service(self.service.name).redelivered += 1
        if self._ending:
            self._queue.give_back(job, GIVEN_BACK_AFTER)
            return
        user = self._users.get(job.inbox)
        if user is None:
            user = self._users[job.inbox] = _User()
            start(self._serve(job.inbox, user), "wsgateway-user", tasks=self._tasks)
        is_new = user.add(job)
        if user.waits or job is not user.first:
            self._queue.hold(job)
        if not is_new:
            self._queue.add_room(1)
            return
        user.counted.add(job.key)
        if len(user.jobs) > 1:
            self._discount(user, job)

    def _on_turn(self, inbox: Inbox) -> None:
        """Check at once: a worker has finished a message of this user."""
        user = self._users.get(inbox)
        if user is not None:
            user.look.set()

    def _on_retaken(self, retaken: Retaken) -> None:
        """Leave a message to the worker that has got it since, unless a handler has it.

        Both would find that it is its turn, and handle it at once; and then all behind it.
        """
        user = self._users.get(retaken.inbox)
        if user is None or retaken.key == user.handled:
            return
        job = user.jobs.get(retaken.key)
        if job is None:
            return
        if job.id == retaken.id and job.deliveries < retaken.deliveries:
            user.remove(job)
            self._leave(user, job)
            user.look.set()

    def _on_pause(self) -> None:
        """Return what no handler has begun with: the service is paused."""
        self._handling.pausing.recall()
        for user in self._users.values():
            user.look.set()

    async def _serve(self, inbox: Inbox, user: _User) -> None:
        """Handle one user's messages, one after the other."""
        pause = GIVEN_BACK_AFTER
        try:
            while user.heap:
                job = await self._next(user)
                if job is None:
                    break
                heir, user.handled = user.second, job.key
                outcome = await self._handling.handle(job, lambda: len(user.jobs) > 1)
                user.handled = None
                user.remove(job)
                self._leave(user, job)
                gone = not isinstance(outcome.verdict, Retried)
                if gone and heir is not None and user.heap and user.first is heir:
                    # It was in hand while an older one was in the stream: nobody had begun with it
                    heir.unstarted = heir.unstarted or heir.key[0] == job.key[0]
        except BrokerClosed:
            return
        except Exception:
            logger.exception(
                "service %s failed because of a bug in wsgateway. Please report it.",
                self.service.name,
                extra={"service": self.service.name, "user": inbox.user},
            )
            pause = GIVEN_BACK_AFTER_A_BUG
        finally:
            for job in user.jobs.values():
                self._queue.give_back(job, pause)
                self._leave(user, job)
            del self._users[inbox]

    def _discount(self, user: _User, job: Job) -> bool:
        """Make room for another message although this one stays; return False if it is too much.

        It cannot be handled yet, and a user who waits must not keep others out.
        """
        if self._waiting >= MAX_WAITING:
            return False
        user.counted.remove(job.key)
        self._waiting += OVERHEAD + len(job.payload)
        self._queue.add_room(1)
        return True

    def _on_stuck(self, job: Job) -> None:
        """Keep no other user out while something about a message cannot be stored."""
        user = self._users[job.inbox]
        if job.key in user.counted:
            self._discount(user, job)

    def _leave(self, user: _User, job: Job) -> None:
        """Make room for another message."""
        if job.key in user.counted:
            user.counted.remove(job.key)
            self._queue.add_room(1)
        else:
            self._waiting -= OVERHEAD + len(job.payload)

    async def _step_aside(self, user: _User) -> None:
        """Keep no other user out while the first message waits for one that is not in hand.

        That one may be tried again in an hour. Where too much waits to keep all of it, what is
        counted goes back to the queue for a while.
        """
        now = time.monotonic()
        if user.waits_since is None:
            user.waits_since = now
        if not user.waits and now - user.waits_since >= PATIENCE:
            user.waits = True
            self._queue.hold(user.first)
        for job in [user.jobs[key] for key in user.counted]:
            if job.key not in user.counted:
                continue  # another worker has got it
            if not self._discount(user, job) and user.waits:
                await self._handling.put_back(job)
                if user.jobs.get(job.key) is job:  # it has not come again
                    user.remove(job)
                    self._leave(user, job)

    async def _next(self, user: _User) -> Job | None:
        """Return the user's oldest message once it is its turn; None if none is to be handled.

        A message that has left the stream is dropped: nobody may handle it, and those behind it
        would wait for ever.
        """
        pause = FIRST_LOOK
        while user.heap and not self._ending:
            user.look.clear()
            job = user.first
            if self._handling.pausing.is_recalled(job):
                return None
            if job.problem is not None:
                return job
            try:
                turn = await self._queue.turn(job)
                if job.key not in user.jobs:
                    continue  # another worker has got it
                if turn is Turn.NOW:
                    user.waits_since, user.waits = None, False
                    return user.jobs[job.key]
                if turn is Turn.GONE:
                    user.remove(job)
                    self._leave(user, job)
                    continue
                await self._step_aside(user)
            except BrokerClosed:
                raise
            except BrokerError as exc:
                text = "service %s cannot ask whose turn it is: %s"
                reason = reason_of(exc)
                logger.debug(text, self.service.name, reason, extra=job.log_fields)
            try:
                async with asyncio.timeout(pause):
                    await user.look.wait()
                # The server carries out acknowledgements a moment after it has passed the word on
                pause = FIRST_LOOK
            except TimeoutError:
                longest = LONG_LOOK if user.waits else LAST_LOOK
                pause = min(2 * pause, max(longest, len(self._users) / LOOKS))
        return None

    async def _beat(self) -> None:
        """Tell the server that what is in hand is being worked on, and say what hangs.

        About as few messages as possible: with more than 1,024 in hand, the server looks for
        deliveries that nobody answered only in moments without acknowledgements (`checkPending`
        in nats-server's consumer.go). When each message of a backlog got its heartbeat, there
        were none, and what a killed worker had in hand did not come again.
        """
        await self._queue.ready.wait()  # before, nobody knows what ACK_WAIT the consumer has
        beats = 0
        while True:
            await asyncio.sleep(self._queue.ack_wait / 3)
            beats += 1
            for user in self._users.values():
                if user.heap and not user.waits:
                    self._queue.extend(user.first)
                if beats % BEATS_A_HOLD == 0:
                    for job in user.jobs.values() if user.waits else user.behind():
                        self._queue.hold(job)
            for run in self._running.overdue(settings.ACK_WAIT):
                log_with_stack(
                    logger,
                    logging.WARNING,
                    run.stack(),
                    "the handler of %s has been running for more than %.0f s. If it hangs, give "
                    "the service a timeout",
                    run.name(),
                    settings.ACK_WAIT,
                    extra=run.log_fields,
                )
