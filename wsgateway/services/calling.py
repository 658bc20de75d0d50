"""Calls a handler, as Django calls a view, and returns what it raised, whatever that is."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import threading
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async

from wsgateway import database
from wsgateway.exceptions import WsGatewayError
from wsgateway.services.message import Message, SyncMessage
from wsgateway.services.traces import trace_handler
from wsgateway.supervision import is_cancelled
from wsgateway.tracing import find_tracer

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import Job
    from wsgateway.services.registry import Service
    from wsgateway.services.running import Run

__all__ = ["Caller", "HandlerTimeout"]


class HandlerTimeout(WsGatewayError, TimeoutError):
    """A handler took longer than its service's ``timeout``."""


class Caller:
    """Calls the handler of one service.

    Args:
        service: The service whose handler it calls.
        broker: Open, in the running loop.
        concurrency: Synchronous handlers that run at once, each in a thread; None: they run one
            after the other in the thread in which Django runs synchronous code, as tests need it.
    """

    def __init__(self, service: Service, broker: Broker, concurrency: int | None) -> None:
        self._service = service
        self._broker = broker
        self._threads = None
        if concurrency is not None:
            self._threads = ThreadPoolExecutor(
                concurrency, thread_name_prefix=f"service-{service.name}"
            )

    def close(self) -> None:
        """Start no more calls in threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, job: Job, run: Run) -> BaseException | None:
        """Call the handler; return what it raised, SystemExit and the like included.

        Raises:
            CancelledError: The task was cancelled, not the handler by itself.
        """
        if problem := job.problem or self._service.refuse(job):
            return problem
        tracer = find_tracer()
        if tracer is None:
            return await self._call(job, run)
        return await trace_handler(tracer, self._broker, job, lambda: self._call(job, run))

    async def _call(self, job: Job, run: Run) -> BaseException | None:
        try:
            if self._service.is_async:
                await self._call_async(job, run)
                return None
            return await self._call_sync(job, run)
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            return exc  # the handler's own: an error like any other
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and asyncio._get_running_loop() is None:
                raise  # nobody will ever go on here
            return exc

    async def _call_async(self, job: Job, run: Run) -> None:
        message = Message(job, self._broker)
        async with database.UsableConnections():
            run.coroutine = self._service.handler(message)
            if self._service.timeout is None:
                await run.coroutine
            else:
                await self._in_time(run.coroutine, self._service.timeout)

    async def _in_time(self, handler: Awaitable[object], limit: float) -> None:
        deadline = asyncio.timeout(limit)
        try:
            async with deadline:
                await handler
        except TimeoutError as exc:
            if deadline.expired():
                raise self._too_late() from exc
            raise

    def _too_late(self) -> HandlerTimeout:
        return HandlerTimeout(
            f"the handler took longer than its timeout, {self._service.timeout} s"
        )

    async def _call_sync(self, job: Job, run: Run) -> BaseException | None:
        loop = asyncio.get_running_loop()
        thread = _Thread(self._service, SyncMessage(job, self._broker, loop), run)
        call = sync_to_async(
            thread.call, thread_sensitive=self._threads is None, executor=self._threads
        )
        if self._service.timeout is None:
            return await call()
        timer = loop.call_later(self._service.timeout, thread.interrupt)
        try:
            error = await call()
        finally:
            timer.cancel()
        if not isinstance(error, _Interrupted):
            return error
        late = self._too_late()
        late.__cause__ = error  # says where it was
        return late


class _Interrupted(BaseException):
    """Ends a synchronous handler that takes too long."""


class _Thread:
    """One synchronous handler's call in a thread."""

    def __init__(self, service: Service, message: Message, run: Run) -> None:
        self._service = service
        self._message = message
        self._run = run
        self._lock = threading.Lock()  # held while the handler is interrupted, or ends
        self._interrupted = False

    def call(self) -> BaseException | None:
        """Call the handler as Django calls a view: with usable database connections.

        Returns what it raised, because a StopIteration cannot pass through a future.
        """
        try:
            database.close_old()
            try:
                self._handle()
            finally:
                database.close_old()
        except BaseException as exc:
            return exc
        return None

    def _handle(self) -> None:
        self._run.thread = threading.get_ident()
        try:
            returned = self._service.handler(self._message)
            if inspect.iscoroutine(returned):
                returned.close()  # or Python warns that nobody awaited it
            if inspect.isawaitable(returned):
                raise TypeError("the handler returned an awaitable; declare it with async def")
            if inspect.isgenerator(returned) or inspect.isasyncgen(returned):
                raise TypeError("the handler returned a generator, which nobody would run")
        finally:
            self._leave()

    def interrupt(self) -> None:
        """Raise in the handler, as soon as it runs Python code again."""
        with self._lock:
            if self._run.thread is not None:
                self._interrupted = True
                _interrupt(self._run.thread)

    def _leave(self) -> None:
        """Let an interruption that was not raised yet arrive here, not in other code.

        It cannot be taken back: until Python 3.13, an exception that was set and removed leaves the
        interpreter looking for one at each call. Python 3.11 then never gets on in a debugger.
        """
        try:
            with self._lock:
                self._run.thread = None
            if self._interrupted:
                _interrupt(threading.get_ident())  # instead of the one that may not be raised yet
                while True:
                    time.sleep(0)
        except _Interrupted:
            self._run.thread = None


def _interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(_Interrupted)
    )
