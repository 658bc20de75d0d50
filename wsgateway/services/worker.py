"""Runs one service: takes messages from its queue, calls the handler, acknowledges.

Order without locks: a message leaves the work-queue stream when it is acknowledged, so it is a
message's turn exactly when it is the oldest of its user that is still in the stream. Every
worker checks that before it calls the handler, so two workers never handle one user at a time,
and a message that is tried again holds back the same user's later ones only.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from wsgateway.broker.nats.link import Backoff
from wsgateway.broker.nats.workqueue import Job, WorkQueue
from wsgateway.conf import settings
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    BrokerUnavailable,
    QueueFull,
    WsGatewayError,
)
from wsgateway.services.deadletters import set_aside
from wsgateway.services.errors import Retry
from wsgateway.services.failure import one_line
from wsgateway.services.message import Message, SyncMessage
from wsgateway.services.policy import Again, Dead, Done, Refuse, Verdict, judge
from wsgateway.subjects import Inbox, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.base import Closable
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.services.registry import Service

__all__ = ["Worker"]

logger = logging.getLogger("wsgateway.services")

IN_HAND = 8
"""Messages in hand for each that may be handled; the others wait for their turn."""
MAX_WAITING = 16 * 1024 * 1024
"""Bytes that may wait behind other messages of the same user without counting as in hand."""
FIRST_LOOK = 0.005
LAST_LOOK = 0.25
"""Pauses between two looks whether it is a message's turn, seconds; they double."""
GIVEN_BACK_AFTER = 0.1
GIVEN_BACK_AFTER_A_BUG = 10.0
SETTLE_PAUSES = Backoff(0.1, 2.0, 5.0)
"""Pauses between attempts to store what became of a message."""
WARN_EACH = 20
"""Of so many such attempts, the first is logged."""
COUNTED = {Done: "done", Again: "retried", Refuse: "refused", Dead: "dead"}


class _User:
    """One user's messages in hand."""

    __slots__ = ("heap", "jobs", "look", "uncounted")

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}  # by sequence; the latest delivery counts
        self.heap: list[int] = []
        self.uncounted: set[int] = set()  # of those, the ones that take no other user's place
        self.look = asyncio.Event()  # set when it may be somebody's turn

    def add(self, job: Job) -> bool:
        """Take a job; return False if it was in hand already."""
        new = job.sequence not in self.jobs
        self.jobs[job.sequence] = job
        if new:
            heapq.heappush(self.heap, job.sequence)
        self.look.set()
        return new

    @property
    def first(self) -> Job:
        """The oldest job."""
        return self.jobs[self.heap[0]]

    def remove(self, job: Job) -> None:
        """Forget a job."""
        del self.jobs[job.sequence]
        if self.heap[0] == job.sequence:
            heapq.heappop(self.heap)
        else:
            self.heap.remove(job.sequence)
            heapq.heapify(self.heap)


class Worker:
    """One service in this process.

    Args:
        service: What to run.
        broker: Open, in the running loop.
        concurrency: Users served at once; None: as the service says.
    """

    def __init__(
        self, service: Service, broker: NatsBroker, *, concurrency: int | None = None
    ) -> None:
        self.service = service
        self.counts: Counter[str] = Counter()
        """Messages by what became of them: done, retried, refused, dead."""
        self._broker = broker
        self._concurrency = concurrency or service.concurrency
        self._slots = asyncio.Semaphore(self._concurrency)
        self._queue = WorkQueue(broker, service.name, self._on_job, settings.ACK_WAIT)
        self._users: dict[Inbox, _User] = {}
        self._tasks: dict[Inbox, asyncio.Task[None]] = {}
        self._waiting = 0  # bytes of what is not counted as in hand
        self._ending = False
        self._cancelled = False  # handlers that were not done in time are cancelled
        self._turns: Closable | None = None
        self._turn = f"{broker.subjects.prefix}.turn.{encode_token(service.name)}"
        self._heart: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(
            self._concurrency, thread_name_prefix=f"service-{service.name}"
        )

    # -- life cycle ----------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take messages."""
        self._turns = self._broker.link.subscribe(self._turn, self._on_turn)
        self._heart = asyncio.create_task(self._beat(), name="wsgateway-heartbeat")
        self._queue.open(IN_HAND * self._concurrency)

    async def ready(self) -> None:
        """Wait until messages come, if there are any."""
        await self._queue.ready.wait()

    async def stop(self, timeout: float) -> None:
        """Finish what is being handled, give back the rest.

        Args:
            timeout: Seconds; what is not finished then is delivered again, to whomever.
        """
        self._ending = True
        await self._queue.close()
        for user in self._users.values():
            user.look.set()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout)
        self._cancelled = True
        for task in list(self._tasks.values()):
            task.cancel()
        if self._heart is not None:
            self._heart.cancel()
        if self._turns is not None:
            self._turns.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def in_hand(self) -> int:
        """Messages taken and not answered yet."""
        return sum(len(user.jobs) for user in self._users.values())

    # -- messages in hand ----------------------------------------------------------------

    def _on_job(self, job: Job) -> None:
        if self._ending:
            self._queue.give_back(job, GIVEN_BACK_AFTER)
            return
        user = self._users.get(job.inbox)
        if user is None:
            user = self._users[job.inbox] = _User()
        if not user.add(job):
            self._queue.add_room(1)
        elif len(user.jobs) > 1 and self._waiting < MAX_WAITING:
            # It cannot be handled yet: a user who sends much must not keep others out
            user.uncounted.add(job.sequence)
            self._waiting += len(job.payload)
            self._queue.add_room(1)
        if job.inbox not in self._tasks:
            task = asyncio.create_task(self._serve(job.inbox, user), name="wsgateway-user")
            self._tasks[job.inbox] = task

    def _on_turn(self, _subject: bytes, _reply: bytes, data: bytes, _raw: bytes | None) -> None:
        """Look at once: another worker has finished a message of this user."""
        user = self._users.get(Inbox(self.service.name, data.decode("utf-8", "replace")))
        if user is not None:
            user.look.set()

    async def _serve(self, inbox: Inbox, user: _User) -> None:
        """Handle one user's messages, one after the other."""
        pause = GIVEN_BACK_AFTER
        try:
            while user.heap:
                job = await self._next(user)
                if job is None:
                    break
                await self._handle(job)
                user.remove(job)
                self._leave(user, job)
        except BrokerClosed:
            return
        except Exception:
            logger.exception("service %s: a bug in wsgateway; please report it", inbox.service)
            pause = GIVEN_BACK_AFTER_A_BUG
        finally:
            for job in user.jobs.values():
                self._queue.give_back(job, pause)
                self._leave(user, job)
            del self._users[inbox], self._tasks[inbox]

    def _leave(self, user: _User, job: Job) -> None:
        """Make room for another message."""
        if job.sequence in user.uncounted:
            user.uncounted.remove(job.sequence)
            self._waiting -= len(job.payload)
        else:
            self._queue.add_room(1)

    async def _next(self, user: _User) -> Job | None:
        """Return the user's oldest message once it is its turn; None if the worker ends."""
        pause = FIRST_LOOK
        while not self._ending:
            user.look.clear()
            job = user.first
            if job.problem is not None:
                return job
            try:
                if await self._queue.is_oldest(job):
                    return user.jobs[job.sequence]
            except BrokerClosed:
                raise
            except BrokerError as exc:
                logger.debug("service %s cannot look now: %s", self.service.name, exc)
            try:
                async with asyncio.timeout(pause):
                    await user.look.wait()
                # The server carries out acknowledgements a moment after it has passed the word on
                pause = FIRST_LOOK
            except TimeoutError:
                pause = min(2 * pause, LAST_LOOK)
        return None

    async def _beat(self) -> None:
        """Tell the server that what is in hand is being worked on."""
        while True:
            await asyncio.sleep(settings.ACK_WAIT / 3)
            for user in self._users.values():
                for job in user.jobs.values():
                    self._queue.extend(job)

    # -- one message ---------------------------------------------------------------------

    async def _handle(self, job: Job) -> None:
        async with self._slots:
            begin = time.perf_counter()
            error = await self._call(job)
        verdict = self._judge(job, error)
        if error is not None:
            self._log(job, verdict, error)
        await self._settle(job, verdict)
        self.counts[COUNTED[type(verdict)]] += 1
        took = time.perf_counter() - begin
        logger.debug("%s: %s, %.4f s", self._name(job), COUNTED[type(verdict)], took)

    def _name(self, job: Job) -> str:
        return f"message {job.sequence} of service {self.service.name}, try {job.attempt}"

    async def _call(self, job: Job) -> BaseException | None:
        """Call the handler; return what it raised, SystemExit and the like included."""
        if job.problem is not None:
            return job.problem
        try:
            if self.service.is_async:
                await self.service.handler(Message(job, self._broker))
                return None
            message = SyncMessage(job, self._broker, asyncio.get_running_loop())
            call = sync_to_async(_in_thread, thread_sensitive=False, executor=self._threads)
            return await call(self.service.handler, message)
        except asyncio.CancelledError as exc:
            if self._cancelled:
                raise
            return exc  # the handler's own: an error like any other
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and asyncio._get_running_loop() is None:
                raise  # nobody will ever go on here
            return exc

    def _judge(self, job: Job, error: BaseException | None) -> Verdict:
        if job.problem is not None:
            return Dead(job.problem)
        try:
            return judge(error, job.attempt, self.service.policies, settings.MAX_DELIVER)
        except Exception:  # an exception whose class or attributes are strange
            logger.exception("%s: the retry policy cannot be applied", self._name(job))
            assert error is not None
            return judge(_Strange(one_line(error)), job.attempt, {}, settings.MAX_DELIVER)

    def _log(self, job: Job, verdict: Verdict, error: BaseException) -> None:
        """Log what a handler raised: its traceback at the first try and the last."""
        if isinstance(verdict, Refuse):
            logger.info("%s is refused: %s", self._name(job), one_line(error))
        elif isinstance(verdict, Dead):
            _log_traceback(logging.ERROR, error, f"{self._name(job)} is set aside")
        elif isinstance(verdict, Again):
            text = f"{self._name(job)} failed, again in {verdict.after:.1f} s"
            if job.attempt == 1 and not isinstance(error, Retry):
                _log_traceback(logging.WARNING, error, text)
            else:
                logger.warning("%s: %s", text, one_line(error))

    async def _settle(self, job: Job, verdict: Verdict) -> None:
        """Carry *verdict* out, as often as it takes: the broker may be away, or a stream full.

        Meanwhile the user's other messages wait, and nobody else's.
        """
        attempt = 0
        while True:
            try:
                await self._carry_out(job, verdict)
                return
            except BrokerClosed:
                raise
            except Exception as exc:
                if attempt % WARN_EACH == 0:
                    logger.warning(
                        "%s ended (%s), which cannot be stored yet; trying on: %s",
                        self._name(job),
                        COUNTED[type(verdict)],
                        one_line(exc),
                    )
            await asyncio.sleep(SETTLE_PAUSES.delay(attempt))
            attempt += 1

    async def _carry_out(self, job: Job, verdict: Verdict) -> None:
        if isinstance(verdict, Again):
            self._queue.give_back(job, verdict.after)
            return
        if isinstance(verdict, Dead):
            await set_aside(self._broker, job, verdict.error)
            await self._tell(job, "failed", "the service could not handle the message")
        elif isinstance(verdict, Refuse):
            await self._tell(job, verdict.code, verdict.reason)
        if len(self._users[job.inbox].jobs) > 1:
            await self._queue.ack_now(job)  # so that the next look sees it
        else:
            self._queue.ack(job)
        self._broker.link.publish(self._turn, job.inbox.user.encode())

    async def _tell(self, job: Job, code: str, reason: str) -> None:
        """Tell the client, if that is possible, that its message was refused or set aside.

        Raises:
            BrokerUnavailable: Not now.
            QueueFull: Not now.
        """
        try:
            await Message(job, self._broker).refuse(code, reason)
        except (BrokerClosed, BrokerUnavailable, QueueFull):
            raise
        except Exception as exc:  # no frame, an id that no header can hold, …
            logger.warning("%s: its client cannot be told: %s", self._name(job), one_line(exc))


class _Strange(WsGatewayError):
    """Stands for an exception that cannot be looked at."""


def _log_traceback(level: int, error: BaseException, text: str) -> None:
    """Log *error* with its traceback, for error trackers too, even if it cannot be shown."""
    try:
        logger.log(level, "%s", text, exc_info=error)
    except BaseException:  # its __str__ may raise anything
        logger.log(level, "%s: %s", text, one_line(error))


def _in_thread(handler: Callable[[Message], object], message: Message) -> BaseException | None:
    """Call a synchronous handler as Django calls a view: with usable database connections.

    Returns what it raised, because a StopIteration cannot pass through a future.
    """
    try:
        close_old_connections()
        try:
            if inspect.isawaitable(handler(message)):
                raise TypeError("the handler returned an awaitable; declare it with async def")
        finally:
            close_old_connections()
    except BaseException as exc:
        return exc
    return None
