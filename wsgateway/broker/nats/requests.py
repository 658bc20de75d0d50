"""Requests on a bus and who waits for their answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import partial

from wsgateway.broker.bus import Bus, Closable, Handler, Hook, Reply, new_reply_subject
from wsgateway.broker.nats import headers as hdrs
from wsgateway.deadlines import Deadlines
from wsgateway.exceptions import BrokerError, BrokerForbidden, BrokerUnavailable, NobodyAnswers

__all__ = ["RequestingBus"]

logger = logging.getLogger("wsgateway.broker")

_Waiter = (
    tuple[str, Handler, Callable[[BrokerError], None]] | tuple[str, None, asyncio.Future[Reply]]
)
"""Who waits for answers to what was published on a subject: to all of them, or to the first."""


class RequestingBus(Bus):
    """A bus on which all answers come through one subscription.

    Args:
        timeout: Seconds that `request` waits.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: dict[bytes, _Waiter] = {}  # last token of their reply subject -> who waits
        self.deadlines = Deadlines()
        """Of what waits for answers."""
        self._tokens = itertools.count()
        self._reply_subject = new_reply_subject()
        self._reply_skip = len(self._reply_subject) + 1

    @property
    def requests_waiting(self) -> int:
        """How many requests wait for answers."""
        return len(self._waiting)

    @abstractmethod
    def publish(
        self, subject: str, payload: bytes, headers: bytes = b"", *, reply: str = ""
    ) -> None:
        """See `Bus.publish`; *headers* are as `headers.encode` makes them."""

    def ask(
        self,
        subject: str,
        payload: bytes,
        handler: Handler,
        failed: Callable[[BrokerError], None],
        headers: bytes = b"",
    ) -> Callable[[], None]:
        """Publish with a reply subject and hand every answer to *handler*.

        *failed* is called if the connection is lost first, or NATS' permissions forbid to publish
        there. Returns what ends the wait; call it when enough answers came.
        """
        token = b"%x" % next(self._tokens)
        self._waiting[token] = (subject, handler, failed)
        try:
            reply = f"{self._reply_subject}.{token.decode()}"
            self.publish(subject, payload, headers, reply=reply)
        except BaseException:
            del self._waiting[token]
            raise

        def done() -> None:
            self._waiting.pop(token, None)

        return done

    async def request(
        self, subject: str, payload: bytes, headers: bytes = b"", timeout: float | None = None
    ) -> Reply:
        """Return the first answer.

        Raises:
            BrokerUnavailable: None came in time, nobody listens, or the connection was lost.
            BrokerForbidden: NATS' permissions forbid to publish there.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        limit = self._timeout if timeout is None else timeout
        token = b"%x" % next(self._tokens)
        self._waiting[token] = (subject, None, answer)
        in_time = self.deadlines.add(limit, partial(_give_up, answer, subject, limit))
        try:
            reply = f"{self._reply_subject}.{token.decode()}"
            self.publish(subject, payload, headers, reply=reply)
            if len(self._waiting) == 1:
                self.send_now()  # nothing is gained by waiting for others
            found = await answer
        finally:
            in_time()
            self._waiting.pop(token, None)
        if found.headers is not None and hdrs.status(found.headers) == 503:
            raise NobodyAnswers(f"nobody answers on {subject}")
        return found

    def request_many(
        self,
        subject: str,
        payload: bytes,
        on_answer: Callable[[bytes], None],
        on_failure: Callable[[BrokerError], None],
    ) -> Closable:
        """See `Bus.request_many`."""

        def handle(_subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
            if headers is not None and hdrs.status(headers) == 503:
                done()
                on_failure(NobodyAnswers(f"nobody answers on {subject}"))
            else:
                on_answer(data)

        done = self.ask(subject, payload, handle, on_failure)
        return Hook(done)

    def _on_reply(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        waiter = self._waiting.get(subject[self._reply_skip :])
        if waiter is None:
            return
        if waiter[1] is not None:
            waiter[1](subject, reply, data, headers)
        elif not waiter[2].done():
            waiter[2].set_result(Reply(data, headers))

    def _fail_requests(self, error: BrokerError) -> None:
        """Fail all that wait."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            _fail(waiter, error)

    def _forbid_requests(self, subject: str, error: BrokerForbidden) -> bool:
        """Fail those that were published on *subject*; say if an operator will see the error.

        Who awaits a request raises it. A callback may pass it on to a client only, who cannot
        grant anything.
        """
        concerned = [waiter for waiter in self._waiting.values() if waiter[0] == subject]
        for waiter in concerned:
            _fail(waiter, error)
        return bool(concerned) and all(waiter[1] is None for waiter in concerned)


def _fail(waiter: _Waiter, error: BrokerError) -> None:
    if waiter[1] is None:
        if not waiter[2].done():
            waiter[2].set_exception(error)
        return
    try:
        waiter[2](error)
    except Exception:  # the others must hear of it all the same
        logger.exception("a callback on an error of the connection failed")


def _give_up(answer: asyncio.Future[Reply], subject: str, limit: float) -> None:
    if not answer.done():
        answer.set_exception(BrokerUnavailable(f"no answer on {subject} within {limit:.3g} s"))
