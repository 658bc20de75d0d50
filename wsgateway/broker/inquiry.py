"""Asking processes of a kind, and answering for one of them.

Requests and answers are JSON objects. A request has an ``ask``, which says what is wanted; an
answer that has an ``error`` says why there is no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

from wsgateway.broker.base import Broker
from wsgateway.broker.bus import Closable, may_answer
from wsgateway.broker.discovery import Endpoint
from wsgateway.broker.roster import Details
from wsgateway.exceptions import (
    BrokerError,
    BrokerUnavailable,
    MalformedMessage,
    NameRefused,
    NobodyAnswers,
    in_one_line,
    reason_of,
)
from wsgateway.protocol.strict_json import loads

__all__ = [
    "PATIENCE",
    "Answers",
    "Fields",
    "Inquiry",
    "Request",
    "Responder",
    "ask_members",
    "encode",
]

logger = logging.getLogger("wsgateway.broker")

PATIENCE = 0.8
"""Seconds after which a process that has not answered counts as silent."""
COMPLAIN_EACH = 60.0
"""Seconds in which the log warns once of requests that mean nothing."""

Fields = Mapping[str, Any]
"""A JSON object."""


class Answers(NamedTuple):
    """What the processes of a kind answered.

    Attributes:
        by_id: The answer of each that gave one.
        silent: Those that exist, as far as the roster knows, and did not answer.
    """

    by_id: dict[str, Fields]
    silent: tuple[str, ...]


class Request(NamedTuple):
    """What somebody asks.

    Attributes:
        subject: Where.
        fields: What else the request says.
    """

    subject: str
    fields: Fields

    def text(self, name: str) -> str | None:
        """Return a field that is text; None if it is missing or null.

        Raises:
            MalformedMessage: It is something else.
        """
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise MalformedMessage(f"{name!r} is not text")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """Return a field that is a whole number from 0 to *most*; *default* if it is missing.

        Raises:
            MalformedMessage: It is something else.
        """
        value = self.fields.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise MalformedMessage(f"{name!r} is not a number from 0 to {most}")
        return value


class Responder:
    """Answers what others ask, in the broker's read path.

    A request that means nothing is logged, and answered with an error; nothing else happens.

    Args:
        broker: Brings the requests.
        asks: What answers each ``ask``: the answers, of which there may be several or none. The
            first of them answers an empty request, too.
    """

    def __init__(
        self, broker: Broker, asks: Mapping[str, Callable[[Request], Iterable[Fields]]]
    ) -> None:
        self._bus = broker.bus
        self._prefix = broker.subjects.prefix
        self._asks = asks
        self._default = next(iter(asks))
        self._handler = self._on_request  # one object for all subscriptions
        self._complains = -math.inf  # when the log may warn again
        self._requests = 0
        self._refused = 0
        self._last_error = ""
        self._seconds = 0.0  # that answering took

    def listen(self, subject: str) -> Closable:
        """Answer requests on *subject*, too, until what this returns is closed."""
        return self._bus.subscribe(subject, self._handler, optional=True)

    def endpoint(self, name: str, subject: str, data: Fields | None = None) -> Endpoint:
        """Return how much was asked, as others are shown it.

        Args:
            name: What to call it.
            subject: Where it listens.
            data: What else there is to know.
        """
        counts = self._requests, self._refused, self._last_error, self._seconds
        return Endpoint(name, subject, *counts, data or {})

    def _on_request(
        self, subject: bytes, reply: bytes, payload: bytes, _headers: bytes | None
    ) -> None:
        begin = time.perf_counter()
        self._requests += 1
        try:
            answers = list(self._answers(subject.decode(), payload))
        except MalformedMessage as exc:
            self._complain(subject, exc)
            self._refused, self._last_error = self._refused + 1, str(exc)
            answers = [{"error": str(exc)}]
        self._answer(reply, answers)
        self._seconds += time.perf_counter() - begin

    def _answer(self, reply: bytes, answers: Iterable[Fields]) -> None:
        if not may_answer(reply, self._prefix):
            return
        with contextlib.suppress(BrokerError, UnicodeDecodeError):
            where = reply.decode()
            for answer in answers:
                data = encode(answer)
                if len(data) > self._bus.max_payload:  # the server would end the connection
                    data = encode({"error": f"the answer has {len(data)} bytes"})
                self._bus.publish(where, data)
            self._bus.send_now()

    def _answers(self, subject: str, payload: bytes) -> Iterable[Fields]:
        fields = _object(payload) if payload else {}
        ask = fields.get("ask", self._default)
        found = self._asks.get(ask) if isinstance(ask, str) else None
        if found is None:
            raise MalformedMessage(f"nobody knows how to answer {str(ask)[:40]!r}")
        return found(Request(subject, fields))

    def _complain(self, subject: bytes, problem: MalformedMessage) -> None:
        now = time.monotonic()
        level = logging.WARNING if now >= self._complains else logging.DEBUG
        if level == logging.WARNING:
            self._complains = now + COMPLAIN_EACH
        where = subject.decode("utf-8", "replace")
        text = "skipped a request on %s: %s"
        logger.log(level, text, where, reason_of(problem), extra={"subject": where})


class Inquiry:
    """Questions to several processes at once. Make it, `ask`, then `ask_members`.

    It knows when it is complete: a process answers in the order in which it was asked, so one
    that has answered the question to itself has answered all before it. A process that is not
    there any more is known at once, and one that is silent after `PATIENCE`.

    Args:
        broker: What carries the questions.
        kind: Of the processes, see `Roster`.
    """

    def __init__(self, broker: Broker, kind: str) -> None:
        self._broker = broker
        self._kind = kind
        self._deadline = asyncio.get_running_loop().time() + PATIENCE
        self._changed = asyncio.Event()  # set when something came
        self._error: BrokerError | None = None  # why no answer will come
        self._open: list[Closable] = []  # questions
        self._asked: set[str] = set()  # processes
        self._gone: set[str] = set()
        self._answers: dict[str, Fields] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for question in self._open:
            question.close()

    def ask(
        self,
        subject: str,
        request: bytes,
        on_answer: Callable[[Fields], None],
        on_nobody: Callable[[], None],
    ) -> None:
        """Ask those who listen on *subject*.

        Args:
            subject: Where.
            request: A JSON object.
            on_answer: Called with each answer.
            on_nobody: Called instead if nobody listens there.

        Raises:
            BrokerUnavailable: Not connected.
        """
        self._open.append(
            self._broker.bus.request_many(
                subject,
                request,
                partial(self._on_answer, subject, on_answer),
                partial(self._on_failure, on_nobody),
            )
        )

    async def until(self, condition: Callable[[], object], seconds: float = math.inf) -> None:
        """Wait until *condition* is true, for *seconds* or until the deadline at most.

        Raises:
            BrokerError: The connection was lost, or NATS' permissions forbid the question.
        """
        loop = asyncio.get_running_loop()
        deadline = min(self._deadline, loop.time() + seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not condition() and self._error is None:
                    self._changed.clear()
                    await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def ask_members(
        self, request: Fields, enough: Callable[[], bool] = lambda: False
    ) -> Answers:
        """Ask every process of the kind; return once each has answered, is gone, or is silent.

        Args:
            request: What.
            enough: Says whether the other questions are answered as far as they matter; then the
                processes are not awaited.

        Raises:
            BrokerError: The roster could not be read, or the connection was lost.
        """
        payload, roster = encode(request), self._broker.roster
        heard = roster.heard(self._kind)
        # Those known from before at once, so that it takes one round trip, not two
        self._ask_members([*roster.known(self._kind), *heard], payload)
        members = await self._members()
        self._ask_members(members, payload)
        waiting = {*members, *heard}

        def complete() -> bool:
            waiting.difference_update(self._answers, self._gone)
            return not waiting or enough()

        await self.until(complete)
        roster.hear(self._kind, self._answers)
        found = {id: answer for id, answer in self._answers.items() if "error" not in answer}
        waiting.update(self._answers.keys() - found.keys())  # of another version, perhaps
        return Answers(found, () if enough() else tuple(sorted(waiting)))

    async def _members(self) -> Mapping[str, Details]:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._broker.roster.members(self._kind)
        except (TimeoutError, BrokerError) as exc:
            known = self._broker.roster.known(self._kind)
            if known:
                return known
            if isinstance(exc, BrokerError):
                raise
            raise BrokerUnavailable(
                f"which processes of the kind {self._kind!r} exist is not known: the broker does "
                f"not answer within {PATIENCE:g} s"
            ) from exc

    def _ask_members(self, ids: Iterable[str], payload: bytes) -> None:
        for id in [id for id in ids if id not in self._asked]:
            self._asked.add(id)
            try:
                subject = self._broker.subjects.member(self._kind, id)
            except NameRefused:  # somebody else wrote into the roster
                self._gone.add(id)
                continue
            on_answer = partial(self._answers.__setitem__, id)
            self.ask(subject, payload, on_answer, partial(self._gone.add, id))

    def _on_answer(self, subject: str, on_answer: Callable[[Fields], None], data: bytes) -> None:
        try:
            answer = _object(data)
        except MalformedMessage as exc:
            text = "skipped an answer to a request on %s: %s"
            logger.warning(text, subject, reason_of(exc), extra={"subject": subject})
            return
        if "error" in answer:
            reason = in_one_line(str(answer["error"])[:200])
            text = "a request on %s was refused: %s"
            logger.warning(text, subject, reason, extra={"subject": subject})
        on_answer(answer)
        self._changed.set()

    def _on_failure(self, on_nobody: Callable[[], None], error: BrokerError) -> None:
        if isinstance(error, NobodyAnswers):
            on_nobody()
        else:
            self._error = error
        self._changed.set()


def encode(fields: Fields) -> bytes:
    """Return a request or an answer as it is sent."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def ask_members(broker: Broker, kind: str, request: Fields) -> Answers:
    """Ask every process of a kind the same, and return what they answered; a round trip.

    Args:
        broker: What carries the questions.
        kind: See `Roster`.
        request: What.

    Raises:
        BrokerError: The roster could not be read, or the connection was lost.
    """
    with Inquiry(broker, kind) as inquiry:
        return await inquiry.ask_members(request)


def _object(data: bytes) -> dict[str, Any]:
    """Return the JSON object that *data* is.

    Raises:
        MalformedMessage: It is something else.
    """
    try:
        found = loads(data)
    except (ValueError, RecursionError) as exc:
        raise MalformedMessage("it is not JSON") from exc
    if not isinstance(found, dict):
        raise MalformedMessage("it is not a JSON object")
    return found
