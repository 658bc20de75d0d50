"""One message, from its turn until what became of it is stored.

A broker counts deliveries, not tries: a message that a worker returns unstarted, or that waited in
a worker that died, is delivered once more although no handler had it. So a worker records each
failure of a handler, with the number of deliveries at that time. A message that succeeds at its
first delivery needs no record, and costs nothing.

A handler that ends its process cannot record anything. A message that was delivered ``MAX_DELIVER``
times without a record in between is therefore suspect: a mark is stored before its handler starts,
alone in its process, and removed when the handler ends. A worker that finds the mark knows that the
handler did not end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wsgateway import counters
from wsgateway.broker.work import History
from wsgateway.conf import settings
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerUnavailable,
    BusUnavailable,
    MalformedMessage,
    QueueFull,
    WsGatewayError,
)
from wsgateway.protocol.backoff import Backoff
from wsgateway.services.calling import Caller
from wsgateway.services.deadletters import set_aside
from wsgateway.services.errors import Pause, ReplyPending, Retry
from wsgateway.services.failure import Repeats, one_line
from wsgateway.services.message import Message
from wsgateway.services.pausing import Pausing, Recalled
from wsgateway.services.policy import (
    AFTER_A_PAUSE,
    DeadLettered,
    Done,
    Rejected,
    Retried,
    Verdict,
    judge,
)
from wsgateway.services.running import Run, Running
from wsgateway.tracing import find_tracer

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import Job, WorkQueue
    from wsgateway.services.registry import Service

__all__ = ["Handling", "Outcome", "WorkerDied"]

logger = logging.getLogger("wsgateway.services")

T = TypeVar("T")

PAUSES = Backoff(0.1, 2.0, 5.0, jitter=0.5)
"""Pauses between attempts to read or store something about a message."""
WARN_EACH = 20
"""One in so many of these attempts is logged."""
UNMARK_WITHIN = 2.0
"""Seconds that removing a mark may take when the worker ends."""
COUNTED = {Done: "done", Retried: "retried", Rejected: "rejected", DeadLettered: "dead-lettered"}


class Outcome(NamedTuple):
    """What became of a message.

    Attributes:
        verdict: What was done with it.
        error: What its handler raised; None if it returned.
    """

    verdict: Verdict
    error: BaseException | None

    @property
    def word(self) -> str:
        """One of done, retried, rejected, dead-lettered."""
        return COUNTED[type(self.verdict)]


class Handling:
    """Handles messages of one service.

    Args:
        service: The service.
        broker: Open, in the running loop.
        queue: Where the messages come from.
        running: The handlers of this process.
        concurrency: Handlers of this service that run at once; None: see `Caller`.
    """

    def __init__(
        self,
        service: Service,
        broker: Broker,
        queue: WorkQueue,
        running: Running,
        concurrency: int | None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Messages by what became of them: done, retried, rejected, dead-lettered."""
        self.ending = False
        """Whether the worker ends because it was told to; then an interrupted handler is not at
        fault. Not set when the process ends for another reason, which a handler may be."""
        self._counters = counters.service(service.name)
        self._service = service
        self._broker = broker
        self._queue = queue
        self._running = running
        self._slots = asyncio.Semaphore(concurrency or 1)
        self._caller = Caller(service, broker, concurrency)
        self._repeats = Repeats()
        self.on_stuck: Callable[[Job], None] = lambda job: None
        """Called with a message for which something cannot be read or stored at once."""
        self.pausing = Pausing(service.name, broker)
        """Knows what was taken before the service was paused, and is not handled."""

    def close(self) -> None:
        """Start no more handlers."""
        self._caller.close()

    async def handle(self, job: Job, crowded: Callable[[], bool]) -> Outcome:
        """Handle a message whose turn it is; return once what became of it is stored.

        Args:
            job: The message.
            crowded: Says whether other messages of its user wait in this worker.
        """
        tracer = find_tracer()
        if tracer is None:
            return await self._handle(job, crowded)
        with tracer.continuing(job.headers):
            return await self._handle(job, crowded)

    async def _handle(self, job: Job, crowded: Callable[[], bool]) -> Outcome:
        history = History(0, job.deliveries)
        if not job.unstarted:
            history = await self._persist(job, "read", lambda: self._queue.history(job))
        job.attempt = history.tries + 1
        begin = time.perf_counter()
        error = await self._run(job, history)
        verdict: Verdict = Done()
        if isinstance(error, ReplyPending):
            reply = partial(self._reply, job, error.text)
            error = await self._persist(job, "reply", reply)
        if isinstance(error, Recalled):
            verdict = Retried(AFTER_A_PAUSE, counted=False)
            await self._carry_out(job, history, verdict, crowded)
            return Outcome(verdict, None)
        if error is not None:
            verdict = self._judge(job, error)
            self._log(job, verdict, error)
            if isinstance(error, Pause):
                await self._persist(job, "pause", self.pausing.begin(job, error))
        await self._carry_out(job, history, verdict, crowded)
        self.counts[COUNTED[type(verdict)]] += 1
        self._counters.outcomes[COUNTED[type(verdict)]] += 1
        if logger.isEnabledFor(logging.DEBUG):
            took, outcome = time.perf_counter() - begin, COUNTED[type(verdict)]
            log_fields = {**job.log_fields, "outcome": outcome, "duration": took}
            logger.debug("%s: %s, %.4f s", self._name(job), outcome, took, extra=log_fields)
        return Outcome(verdict, error)

    def _name(self, job: Job) -> str:
        return f"message {job.sequence} of service {self._service.name}, try {job.attempt}"

    # -- the handler ---------------------------------------------------------------------

    async def _run(self, job: Job, history: History) -> BaseException | None:
        if history.started:
            # Later deliveries may have reached nobody: a worker that was dead already.
            job.attempt = max(job.attempt, history.deliveries)
            return WorkerDied()
        run = Run(partial(self._name, job), job)
        run.warned = self._service.is_ours  # it ends by itself
        if self._suspect(job, history):
            logger.warning(
                "%s is handled alone because it was delivered %d times without a recorded result",
                self._name(job),
                job.deliveries,
                extra=job.log_fields,
            )
            return await self._persist(job, "mark", lambda: self._run_alone(job, history, run))
        async with self._slots:
            await self._running.begin(run)
            try:
                return await self._call(job, run)
            finally:
                self._running.end(run)

    async def _call(self, job: Job, run: Run) -> BaseException | None:
        """Call the handler, see `Caller.call`; count how long it takes."""
        if self.pausing.is_recalled(job):
            return Recalled()
        begin = time.perf_counter()
        self._counters.running += 1
        try:
            return await self._caller.call(job, run)
        finally:
            self._counters.running -= 1
            if job.problem is None and self._service.refuse(job) is None:  # there was a handler
                self._counters.handler.observe(time.perf_counter() - begin)

    def _suspect(self, job: Job, history: History) -> bool:
        unheard = job.deliveries - history.deliveries
        if self._service.is_ours:
            return False
        return not job.unstarted and unheard >= max(2, settings.MAX_DELIVER)

    async def _run_alone(self, job: Job, history: History, run: Run) -> BaseException | None:
        async with self._running.alone(run):
            try:
                await self._queue.note(job, History(history.tries, job.deliveries, started=True))
                return await self._call(job, run)
            except asyncio.CancelledError:
                if self.ending:
                    await asyncio.shield(self._unmark(job, history))
                raise

    async def _note(self, job: Job, tries: int) -> None:
        """Remember that handlers failed *tries* times, and that none was lost since."""
        await self._queue.note(job, History(tries, job.deliveries))

    async def _unmark(self, job: Job, history: History) -> None:
        try:
            async with asyncio.timeout(UNMARK_WITHIN):
                await self._note(job, history.tries)
        except (WsGatewayError, TimeoutError) as exc:
            logger.error(
                "%s was interrupted, but its mark cannot be removed, so it may become a dead "
                "letter: %s",
                self._name(job),
                one_line(exc),
                extra=job.log_fields,
            )

    # -- what becomes of it --------------------------------------------------------------

    def _judge(self, job: Job, error: BaseException) -> Verdict:
        if isinstance(error, (WorkerDied, MalformedMessage)):
            return DeadLettered(error)  # a next try would find the same
        try:
            return judge(error, job.attempt, self._service.policies, settings.MAX_DELIVER)
        except Exception:  # an exception whose class or attributes are strange
            text = "cannot apply the retry policy to %s"
            logger.exception(text, self._name(job), extra=job.log_fields)
            return judge(_Strange(one_line(error)), job.attempt, {}, settings.MAX_DELIVER)

    def _log(self, job: Job, verdict: Verdict, error: BaseException) -> None:
        """Log what a handler raised: its traceback at the last try, and whenever it is another."""
        name, log_fields = self._name(job), {**job.log_fields, "outcome": COUNTED[type(verdict)]}
        if isinstance(verdict, Rejected):
            logger.info("%s is rejected: %s", name, one_line(error), extra=log_fields)
        elif isinstance(verdict, DeadLettered):
            _log_traceback(logging.ERROR, error, log_fields, "%s becomes a dead letter", name)
        elif isinstance(error, BusUnavailable):
            logger.info("%s returns to its queue: %s", name, one_line(error), extra=log_fields)
        elif isinstance(verdict, Retried) and not isinstance(error, Pause):
            if not isinstance(error, Retry) and self._repeats.is_new(job.id, error):
                text = "%s failed, retrying in %.1f s"
                _log_traceback(logging.WARNING, error, log_fields, text, name, verdict.after)
            else:
                text = "%s failed, retrying in %.1f s: %s"
                logger.warning(text, name, verdict.after, one_line(error), extra=log_fields)

    async def _persist(self, job: Job, what: str, action: Callable[[], Awaitable[T]]) -> T:
        """Repeat *action* until it succeeds: the broker may be away, or a stream full.

        Until it succeeds, the user's other messages wait, and nobody else's.
        """
        attempt = 0
        while True:
            try:
                return await action()
            except BrokerClosed:
                raise
            except Exception as exc:
                self.on_stuck(job)
                if attempt % WARN_EACH == 0:
                    logger.warning(
                        "%s waits for the broker (%s): %s",
                        self._name(job),
                        what,
                        one_line(exc),
                        extra=job.log_fields,
                    )
            await asyncio.sleep(PAUSES.delay(attempt))
            attempt += 1

    async def _carry_out(
        self, job: Job, history: History, verdict: Verdict, crowded: Callable[[], bool]
    ) -> None:
        # Each step until it has succeeded, and none twice: one that takes longer than the
        # duplicate window would store what was stored before it again.
        if isinstance(verdict, Retried):
            tries = history.tries + verdict.counted
            await self._persist(job, "retried", lambda: self._note(job, tries))
            self._queue.give_back(job, verdict.after)
            return
        if self._suspect(job, history):  # before the message is acknowledged: that may get lost
            await self._persist(job, "mark", lambda: self._note(job, history.tries))
        if isinstance(verdict, DeadLettered):
            error = verdict.error
            await self._persist(job, "dead letter", lambda: set_aside(self._broker, job, error))
            text = "the service could not handle the message"
            await self._persist(job, "notice", lambda: self._tell(job, "failed", text))
        elif isinstance(verdict, Rejected):
            code, reason = verdict
            await self._persist(job, "rejected", lambda: self._tell(job, code, reason))
        await self._persist(job, "done", lambda: self._acknowledge(job, crowded))
        if not job.unstarted:
            await self._forget(job)

    async def _acknowledge(self, job: Job, crowded: Callable[[], bool]) -> None:
        if crowded():
            await self._queue.ack_now(job)  # so that the next look sees it
        else:
            self._queue.ack(job)

    async def put_back(self, job: Job) -> None:
        """Let a message that no handler had be delivered again, later, to any worker.

        Raises:
            BrokerError: Its history cannot be read or stored now.
        """
        if not job.unstarted:  # or its deliveries would make it suspect
            history = await self._queue.history(job)
            if not history.started:
                await self._note(job, history.tries)
        self._queue.hold(job)

    async def _forget(self, job: Job) -> None:
        try:
            await self._queue.forget(job)
        except WsGatewayError as exc:  # its age ends it
            text = "cannot remove the record of tries of %s: %s"
            logger.debug(text, self._name(job), one_line(exc), extra=job.log_fields)

    async def _reply(self, job: Job, text: str) -> Exception | None:
        """Store a reply; return why that will never succeed.

        Raises:
            BrokerUnavailable: Not now.
            QueueFull: Not now.
        """
        try:
            await Message(job, self._broker).reply(text=text)
        except (BrokerClosed, BrokerUnavailable, QueueFull):
            raise
        except Exception as exc:
            return exc
        return None

    async def _tell(self, job: Job, code: str, reason: str) -> None:
        """Tell the client, if possible, that its message was rejected or set aside.

        Raises:
            BrokerUnavailable: Not now.
            QueueFull: Not now.
        """
        try:
            await Message(job, self._broker).reject(code, reason)
        except (BrokerClosed, BrokerUnavailable, QueueFull):
            raise
        except Exception as exc:  # no frame, an id that no header can hold, …
            text = "cannot tell the client of %s: %s"
            logger.warning(text, self._name(job), one_line(exc), extra=job.log_fields)


class WorkerDied(WsGatewayError):
    """The process ended while a handler ran alone in it: killed, out of memory, ``os._exit``."""

    def __init__(self) -> None:
        super().__init__(
            "the worker's process ended while it handled this message and no other: out of memory, "
            "killed, or ended by the handler"
        )


class _Strange(WsGatewayError):
    """Replaces an exception that cannot be inspected."""


def _log_traceback(
    level: int, error: BaseException, log_fields: dict[str, object], text: str, *args: object
) -> None:
    """Log *error* with its traceback, for error trackers too, even if it cannot be shown."""
    try:
        logger.log(level, text, *args, exc_info=error, extra=log_fields)
    except BaseException:  # its __str__ may raise anything
        logger.log(level, "%s: %s", text % args, one_line(error), extra=log_fields)
