"""JetStream over a `NatsConnection`: API calls, acknowledged publishing, direct gets.

Raw requests, because nats-py has no batched direct get, parses every header, and drops stream
settings it does not know. Sources: NATS ADR-1 (API), ADR-22 (publish retries), ADR-31 (direct
get), ADR-43 (per-message TTL).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from wsgateway.broker.bus import Reply
from wsgateway.broker.messages import Receipt
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.connection import NatsConnection
from wsgateway.exceptions import (
    BrokerError,
    BrokerMisconfigured,
    BrokerUnavailable,
    MessageRefused,
    MessageTooBig,
    NobodyAnswers,
    QueueFull,
)
from wsgateway.protocol.backoff import Backoff

__all__ = ["ApiError", "DirectBatch", "JetStream", "PeerOffline", "error_of", "receipt_of"]

ATTEMPT_TIMEOUT = 1.5
"""Seconds after which an unanswered publish is tried again, with the same id."""

NOT_FOUND = 10059
WRONG_LAST_SEQUENCE = 10071
STORE_FAILED = 10077
TOO_BIG = 10054
STRANGE = (
    "something that is not JetStream answered; does another program subscribe to the subject "
    "and reply?"
)
NO_ROOM = frozenset({10002, 10023, 10028, 10047})
"""The account's limits, the server's memory or disk: an operator, or time, makes room."""
ITS_OWN_FAULT = frozenset({10097, 10165})
"""Errors that lie in the message: headers above 64 kB, a TTL the server cannot read. Those of
``Nats-…`` headers are missing here because `check_published` keeps them out."""
NOT_ENABLED = (10039, 10076)
"""JetStream is off for the account, or for the server."""
IN_PROCESS = 10158
"""A message with the same id waits for its replicas; another try gets a receipt."""
NO_PEERS = 10005
"""Too few servers can take a stream; the text says why, as far as the server knows."""
SUBJECTS_OVERLAP = 10065
NAME_IN_USE = 10058
NO_MESSAGE = 10037
NOT_DELETED = (10043, 10057)
"""The message is gone already; or, only the second, the server could not delete it."""
WRONG_LAST_SEQUENCE_OF_STREAM = 10070


class ApiError(BrokerError):
    """JetStream refused a request for good.

    Args:
        code: HTTP-like status.
        err_code: NATS' own number of the error.
        description: NATS' text.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(code, err_code, description)
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def lacks_room(self) -> bool:
        """Whether a smaller stream could find a place in the cluster."""
        return self.err_code == NO_PEERS and "insufficient storage" in self.description

    def __str__(self) -> str:
        return f"JetStream refuses: {self.description} (error {self.err_code})"


class PeerOffline(BrokerUnavailable):
    """Too few servers of the cluster are online for the replicas that a stream has.

    A server that starts, or comes back, counts as offline for about a second.
    """


class DirectBatch(NamedTuple):
    """What a direct get returned.

    Attributes:
        replies: The messages; their headers hold subject, sequence and time.
        pending: Messages that matched but did not fit the limits.
    """

    replies: list[Reply]
    pending: int


def error_of(error: Mapping[str, Any], size: int = 0) -> BrokerError:
    """Return the exception for the ``error`` in an answer about *size* bytes."""
    code, err_code = error.get("code", 500), error.get("err_code", 0)
    if not isinstance(code, int) or not isinstance(err_code, int):
        return BrokerUnavailable(STRANGE)
    text = str(error.get("description", "unknown error"))
    if err_code in NO_ROOM or (err_code == STORE_FAILED and "maximum" in text):
        return QueueFull(f"JetStream has no room: {text}; nothing was stored, try again later")
    if err_code == TOO_BIG:
        return MessageTooBig(size, 0, "the stream's max_msg_size")
    if err_code in ITS_OWN_FAULT:
        return MessageRefused(f"JetStream refuses the message: {text} (error {err_code})")
    if err_code in NOT_ENABLED:
        return BrokerMisconfigured(
            f"NATS refuses: {text}; enable JetStream for the account that the gateway connects to"
        )
    if err_code == IN_PROCESS:
        return BrokerUnavailable(f"JetStream has not stored the first try yet: {text}")
    if code == 503 or (code == 500 and err_code in (0, STORE_FAILED)):
        return BrokerUnavailable(f"JetStream is not available now: {text}")
    refusal = ApiError(code, err_code, text)
    if err_code == NO_PEERS and "peer offline" in text and not refusal.lacks_room:
        return PeerOffline(
            f"too few servers of the NATS cluster are online: {text} (error {err_code})"
        )
    return refusal


def _fields(data: bytes) -> dict[str, Any]:
    """Parse an answer.

    Raises:
        BrokerUnavailable: It does not come from JetStream.
    """
    try:
        answer = json.loads(data.decode())  # which spares json the search for the encoding
    except (ValueError, RecursionError) as exc:
        raise BrokerUnavailable(STRANGE) from exc
    if not isinstance(answer, dict) or not isinstance(answer.get("error", answer), dict):
        raise BrokerUnavailable(STRANGE)
    return answer


def receipt_of(data: bytes, size: int) -> Receipt:
    answer = _fields(data)
    if "error" in answer:
        raise error_of(answer["error"], size)
    offset = answer.get("seq")
    if not isinstance(offset, int):
        raise BrokerUnavailable(STRANGE)
    return Receipt(offset, answer.get("duplicate") is True)


class JetStream:
    """JetStream requests over *connection*; stateless.

    Args:
        connection: What carries them.
        timeout: Seconds that a call may take, retries included.
        publish_timeout: Seconds that `publish` may take, retries included. An election of a
            stream's leader takes NATS 4 to 9 s, and nothing is stored until it is over.
    """

    def __init__(self, connection: NatsConnection, timeout: float, publish_timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.publish_timeout = publish_timeout
        self.on_missing: Callable[[], None] = _nothing
        """Called when an answer says that a stream may be gone."""
        self._backoff = Backoff(0.05, 2.0, 0.5, jitter=0.5)

    @property
    def patient(self) -> JetStream:
        """The same, with `publish_timeout` for every call, for what precedes a publish."""
        return JetStream(self.connection, self.publish_timeout, self.publish_timeout)

    async def api(self, name: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer of ``$JS.API.<name>``; an idempotent request.

        Asked again when no answer comes: an election swallows requests.

        Raises:
            ApiError: JetStream refused it.
            BrokerUnavailable: No answer in time, or no leader now.
        """
        payload = json.dumps(request).encode() if request is not None else b""
        await self.connection.ready(self.timeout)
        self._check_size(len(payload))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        attempt = 0
        while True:
            limit = min(ATTEMPT_TIMEOUT * 2**attempt, deadline - loop.time())
            try:
                reply = await self.connection.request(f"$JS.API.{name}", payload, timeout=limit)
                answer = _fields(reply.data)
                if "error" in answer:
                    if answer["error"].get("err_code") == NOT_FOUND:
                        self.on_missing()
                    raise error_of(answer["error"])
                return answer
            except BrokerUnavailable:
                pause = self._backoff.delay(attempt)
                if not self.connection.is_open or loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
            attempt += 1

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        msg_id: str | None = None,
        expect_last: int | None = None,
    ) -> Receipt:
        """Store a message; retried with the same id until the deadline, so at most once.

        Args:
            subject: One that a stream binds.
            payload: Bytes.
            headers: Name to value.
            msg_id: Its ``Nats-Msg-Id``; None: a random one.
            expect_last: Refuse unless the subject's newest message has this sequence.

        Raises:
            BrokerUnavailable: Not stored within `publish_timeout`, or not connected for
                `timeout` seconds.
        """
        pairs = {"Nats-Msg-Id": msg_id or secrets.token_hex(12)}
        if headers:
            pairs.update(headers)
        if expect_last is not None:
            pairs["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        return await self._publish(subject, payload, hdrs.encode(pairs))

    async def _publish(self, subject: str, payload: bytes, raw: bytes) -> Receipt:
        connection, size = self.connection, len(raw) + len(payload)
        begin = monotonic()
        attempt = 0
        while True:
            left = self.publish_timeout - (monotonic() - begin)
            if not connection.is_open:
                await connection.ready(min(left, self.timeout))
            self._check_size(size)  # each time: another server may have another limit
            try:
                if connection.is_crowded:
                    await connection.pressure()
                reply = await connection.request(subject, payload, raw, min(ATTEMPT_TIMEOUT, left))
                return receipt_of(reply.data, len(payload))
            except BrokerUnavailable as exc:
                if isinstance(exc, NobodyAnswers):
                    self.on_missing()
                pause = self._backoff.delay(attempt)
                if monotonic() - begin + pause >= self.publish_timeout:
                    raise
            await asyncio.sleep(pause)
            attempt += 1

    def _check_size(self, size: int) -> None:
        """Refuse a message for which the server would close the connection."""
        if size > self.connection.max_payload:
            raise MessageTooBig(size, self.connection.max_payload, "the NATS server's max_payload")

    def offer(
        self, subject: str, payload: bytes, headers: Mapping[str, str]
    ) -> asyncio.Future[Receipt]:
        """Try once to store a message, in the order of calls; see `Broker.offer`."""
        raw = hdrs.encode(headers)
        result: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()

        def on_reply(_subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
            if result.done():
                return
            if hdrs.status(headers) == 503:
                self.on_missing()
                result.set_exception(BrokerUnavailable(f"no stream takes {subject} now"))
                return
            try:
                result.set_result(receipt_of(data, len(payload)))
            except BrokerError as exc:
                result.set_exception(exc)

        def on_lost(error: Exception) -> None:
            if not result.done():
                result.set_exception(error)

        try:
            self._check_size(len(raw) + len(payload))
        except MessageTooBig as exc:
            result.set_exception(exc)
            return result
        done = self.connection.ask(subject, payload, on_reply, on_lost, raw)
        result.add_done_callback(lambda _: done())
        return result

    def cast(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Send a message that nobody confirms.

        Raises:
            MessageTooBig: The server would not take it.
            BrokerUnavailable: Not connected.
        """
        raw = hdrs.encode(headers)
        self._check_size(len(raw) + len(payload))
        self.connection.publish(subject, payload, raw)

    async def direct(self, stream: str, request: Mapping[str, Any]) -> DirectBatch:
        """Return what a direct get finds, a batched one too; nothing found is an empty batch.

        Raises:
            BrokerUnavailable: No answer for `timeout` seconds, or the connection was lost.
            ApiError: The request was refused.
        """
        await self.connection.ready(self.timeout)
        payload = json.dumps(request).encode()
        self._check_size(len(payload))
        subject = f"$JS.API.DIRECT.GET.{stream}"
        try:
            if "batch" in request or "multi_last" in request:
                return await _DirectRead(self.connection, stream, subject, payload).run(
                    self.timeout
                )
            reply = await self.connection.request(subject, payload, timeout=self.timeout)
        except NobodyAnswers:
            self.on_missing()
            raise
        status = hdrs.answer_status(reply.headers)
        if status not in (None, 404):
            raise _refused(stream, status, reply.headers)
        return DirectBatch([reply] if status is None else [], 0)


def _nothing() -> None:
    """Do nothing."""


def _refused(stream: str, status: int, raw: bytes | None) -> ApiError:
    text = (raw or b"")[9:].partition(b"\r\n")[0].decode("utf-8", "replace")
    return ApiError(status, 0, f"direct get from {stream!r}: {text}")


class _DirectRead:
    """A batched direct get: collects answers until the server says that there are no more."""

    def __init__(
        self, connection: NatsConnection, stream: str, subject: str, request: bytes
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[int] = self._loop.create_future()  # the pending count
        self._replies: list[Reply] = []
        self._heard = self._loop.time()  # when the last answer came

    async def run(self, timeout: float) -> DirectBatch:
        self._timeout = timeout
        done = self._connection.ask(self._subject, self._request, self._on_reply, self._fail)
        self._set_deadline(timeout)
        try:
            return DirectBatch(self._replies, await self._end)
        finally:
            done()
            self._in_time()

    def _set_deadline(self, seconds: float) -> None:
        self._in_time = self._connection.deadlines.add(seconds, self._look)

    def _look(self) -> None:
        """Give up if no answer has come for the whole time."""
        left = self._heard + self._timeout - self._loop.time()
        if left > 0:
            self._set_deadline(left)
            return
        text = f"direct get from {self._stream!r}: no answer within {self._timeout} s"
        self._fail(BrokerUnavailable(text))

    def _on_reply(self, _subject: bytes, _reply: bytes, data: bytes, raw: bytes | None) -> None:
        self._heard = self._loop.time()
        status = hdrs.answer_status(raw)
        if status is None:
            self._replies.append(Reply(data, raw))
        elif status == 204:
            self._finish(hdrs.find_int(raw, b"Nats-Num-Pending") or 0)
        elif status == 404:
            self._finish(0)
        elif status == 503:
            self._fail(NobodyAnswers(f"nobody serves direct gets of {self._stream!r}"))
        else:
            self._fail(_refused(self._stream, status, raw))

    def _finish(self, pending: int) -> None:
        if not self._end.done():
            self._end.set_result(pending)

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)
