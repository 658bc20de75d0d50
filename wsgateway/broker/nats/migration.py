"""From one stream for what all clients send, as in earlier versions, to one for each service.

Per service: the old stream stops taking its messages, a new stream takes what the old one holds,
under subjects that nobody publishes on, the old one forgets it, and the new one goes live. So one
user's messages keep their order. What clients send in between is refused as unavailable, and
gateways try again. Each step can be seen in the streams, so a run that was killed is finished by
the next one; each copy carries the offset that it had, so nothing is copied twice.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsgateway.broker.messages import Receipt
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import (
    NO_MESSAGE,
    WRONG_LAST_SEQUENCE_OF_STREAM,
    ApiError,
    JetStream,
)
from wsgateway.broker.nats.specs import NANO
from wsgateway.exceptions import BrokerUnavailable, NameRefused
from wsgateway.protocol.subjects import Subjects

if TYPE_CHECKING:
    from wsgateway.broker.base import Progress
    from wsgateway.broker.bus import Reply
    from wsgateway.broker.nats.specs import StreamSpec
    from wsgateway.broker.nats.streams import Streams

__all__ = ["Migration"]

logger = logging.getLogger("wsgateway.broker")

MOVED_HEADER = "Ws-Moved"
"""On a message that was moved: its offset in the old stream."""
AT_ONCE = 256
"""Messages that are copied at once."""
READ_BYTES = 4 * 1024 * 1024
PAUSE = dt.timedelta(hours=1)
"""How long consumers of the old stream stay paused if a run is killed."""
PATIENCE = 60.0
"""Longest wait for workers to finish what they have, seconds."""
SETTLE = 1.0
"""Seconds in which every replica of the old stream has what its leader has."""
ATTEMPTS = 20


class Migration:
    """Empties the shared stream into the services' own ones.

    Args:
        jetstream: Where.
        subjects: Names below the installation's prefix.
        streams: Creates and looks at streams.
        progress: Told how many messages are moved.
    """

    def __init__(
        self, jetstream: JetStream, subjects: Subjects, streams: Streams, progress: Progress
    ) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        self._streams = streams
        self._old = subjects.stream("send")
        self._progress = progress
        self._done, self._total = 0, 0  # messages that are moved, and all that there are
        self._parked = f"{subjects.prefix}.move"  # two tokens: no message comes on it

    async def run(self, specs: Iterable[StreamSpec]) -> list[str]:
        """Move what *specs*, the services' streams, want to have. Idempotent.

        Returns:
            What was done with the old stream; nothing if there is none.
        """
        info = await self._streams.own_info(self._old)
        if info is None:
            return []
        self._total = info["state"]["messages"]
        self._advance(0)
        queues = (spec for spec in specs if spec.family == "SEND")
        services = {spec.service: spec for spec in queues if spec.service}
        consumers = await self._pause()
        await self._wait_for_workers(consumers)
        states = {name: await self._streams.own_info(spec.name) for name, spec in services.items()}
        waiting = [name for name, info in states.items() if info is None]
        moved = 0
        for service, spec in services.items():
            if self._is_live(spec, states[service]):
                moved += await self._append(service)
                continue
            # First the new stream: without it, and without the old one, a gateway could make it
            await self._create(spec, states[service])
            waiting = [name for name in waiting if name != service]
            await self._take_only(waiting)
            moved += await self._move(spec, service)
        await self._take_only([])
        return [await self._end(moved, consumers)]

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress("moving messages", self._done, max(self._done, self._total))

    @staticmethod
    def _is_live(spec: StreamSpec, info: dict[str, Any] | None) -> bool:
        return info is not None and info["config"]["subjects"] == spec.config["subjects"]

    # -- the old stream ------------------------------------------------------------------

    async def _pause(self) -> list[dict[str, Any]]:
        """Stop the old stream's consumers; return them."""
        consumers: list[dict[str, Any]] = []
        while True:
            request = {"offset": len(consumers)}
            answer = await self._jetstream.api(f"CONSUMER.LIST.{self._old}", request)
            if not answer["consumers"]:
                break
            consumers += answer["consumers"]
        until = (dt.datetime.now(dt.UTC) + PAUSE).isoformat()
        for consumer in consumers:
            await self._set_pause(consumer["name"], until)
        return consumers

    async def _set_pause(self, consumer: str, until: str | None) -> None:
        request = {} if until is None else {"pause_until": until}
        await self._jetstream.api(f"CONSUMER.PAUSE.{self._old}.{consumer}", request)

    async def _wait_for_workers(self, consumers: list[dict[str, Any]]) -> None:
        """Wait until workers have finished what they have; one that is gone never does."""
        waits = [consumer["config"].get("ack_wait", 0) / NANO for consumer in consumers]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(PATIENCE, max(waits, default=0.0) + SETTLE)
        for consumer in consumers:
            while True:
                name = f"CONSUMER.INFO.{self._old}.{consumer['name']}"
                pending = (await self._jetstream.api(name))["num_ack_pending"]
                if not pending:
                    break
                if loop.time() > deadline:
                    logger.warning(
                        "consumer %s has not finished %s messages, which are handled again",
                        consumer["name"],
                        pending,
                        extra={"stream": self._old},
                    )
                    break
                await asyncio.sleep(0.1)

    async def _take_only(self, services: list[str]) -> None:
        """Have the old stream take what is sent to *services* only."""
        info = await self._streams.own_info(self._old)
        subjects = [self._subjects.all_of("send", service) for service in services]
        subjects = subjects or [self._parked]
        if info is None or info["config"]["subjects"] == subjects:
            return
        await self._jetstream.api(
            f"STREAM.UPDATE.{self._old}", {**info["config"], "subjects": subjects}
        )
        if info["config"]["num_replicas"] > 1:
            await asyncio.sleep(SETTLE)  # what is on its way between the replicas arrives

    async def _read(self, service: str, after: int) -> list[Reply]:
        """Return the oldest messages behind *after*."""
        subject = self._subjects.all_of("send", service)
        request = {"seq": after + 1, "next_by_subj": subject}
        try:  # the leader knows whether there are any; a replica may not
            await self._jetstream.api(f"STREAM.MSG.GET.{self._old}", request)
        except ApiError as exc:
            if exc.err_code == NO_MESSAGE:
                return []
            raise
        batch = {**request, "batch": AT_ONCE, "max_bytes": READ_BYTES}
        for _ in range(ATTEMPTS):
            found = await self._jetstream.direct(self._old, batch)
            if found.replies:
                return found.replies
            await asyncio.sleep(0.25)
        raise BrokerUnavailable(f"stream {self._old!r} cannot be read now; run this again")

    async def _end(self, moved: int, consumers: list[dict[str, Any]]) -> str:
        """Delete the old stream if it is empty; say what became of it."""
        info = await self._jetstream.api(f"STREAM.INFO.{self._old}", {"subjects_filter": ">"})
        left: Counter[str] = Counter()
        for subject, count in (info["state"].get("subjects") or {}).items():
            left[self._service_of(subject)] += count
        if not info["state"]["messages"]:
            await self._jetstream.api(f"STREAM.DELETE.{self._old}")
            return f"{self._old}: moved {moved} messages into the services' streams; deleted"
        for consumer in consumers:
            await self._set_pause(consumer["name"], None)
        names = ", ".join(f"{name} ({count})" for name, count in sorted(left.items()))
        return (
            f"{self._old}: moved {moved} messages; keeps those of services that do not exist: "
            f"{names}. Declare the services and run this again, or delete the stream"
        )

    def _service_of(self, subject: str) -> str:
        try:
            return self._subjects.parse_sent(subject)[0]
        except NameRefused:
            return subject

    # -- a service's stream --------------------------------------------------------------

    async def _create(self, spec: StreamSpec, info: dict[str, Any] | None) -> None:
        """Make a service's stream, which takes nothing but what is moved into it."""
        if info is not None:  # an earlier run was killed
            return
        move = self._subjects.all_of("move", spec.service)
        stored = self._subjects.all_of("send", spec.service)[:-1] + "{{wildcard(1)}}"
        config = {
            **spec.config,
            "subjects": [move],
            "subject_transform": {"src": move, "dest": stored},
            # The limits come at the end: what was stored is not refused
            "discard_new_per_subject": False,
            "max_msgs_per_subject": -1,
            "max_msgs": -1,
            "max_bytes": -1,
        }
        await self._jetstream.api(f"STREAM.CREATE.{spec.name}", config)

    async def _move(self, spec: StreamSpec, service: str) -> int:
        """Fill a service's stream, then let it take what clients send."""
        moved, without_id = 0, False
        for attempt in range(ATTEMPTS):
            while True:
                last, reached = await self._position(spec.name)
                batch = await self._read(service, reached)
                if not batch:
                    await self._forget(service, reached)
                    await self._streams.update(spec)
                    return moved
                count, error = await self._copy(
                    batch[:1] if without_id else batch, last, without_id
                )
                moved += count
                self._advance(count)
                without_id = isinstance(error, Receipt)
                if isinstance(error, BaseException):
                    break
            if not self._may_pass(error):
                raise error
            await asyncio.sleep(0.1 * attempt)
        raise BrokerUnavailable(f"stream {spec.name!r} cannot be filled now; run this again")

    async def _copy(
        self, batch: list[Reply], last: int, without_id: bool
    ) -> tuple[int, BaseException | Receipt | None]:
        """Append *batch* to a stream whose last offset is *last*, without a gap.

        Returns:
            How many messages were copied, and what became of the next one: an error, or the
            receipt of an earlier message with the same id, from before the duplicate window.
        """
        offers = [
            self._offer(reply, {"Nats-Expected-Last-Sequence": str(last + n)}, without_id)
            for n, reply in enumerate(batch)
        ]
        results = await asyncio.gather(*offers, return_exceptions=True)
        for n, result in enumerate(results):
            if not isinstance(result, Receipt) or result.offset != last + n + 1:
                return n, result
        return len(batch), None

    @staticmethod
    def _may_pass(error: BaseException) -> bool:
        if isinstance(error, ApiError):  # another run of the same command copies, too
            return error.err_code == WRONG_LAST_SEQUENCE_OF_STREAM
        return isinstance(error, BrokerUnavailable)

    def _offer(
        self, reply: Reply, extra: dict[str, str], without_id: bool
    ) -> asyncio.Future[Receipt]:
        headers = hdrs.decode(reply.headers)
        subject, offset = headers["Nats-Subject"], headers["Nats-Sequence"]
        kept = {
            name: value
            for name, value in headers.items()
            if name.strip() and not name.lower().startswith("nats-")
        }
        if "Nats-Msg-Id" in headers and not without_id:
            kept["Nats-Msg-Id"] = headers["Nats-Msg-Id"]
        service, inbox = self._subjects.parse_sent(subject)
        target = self._subjects.move(inbox, service) if extra else subject
        return self._jetstream.offer(target, reply.data, {**kept, **extra, MOVED_HEADER: offset})

    async def _position(self, stream: str) -> tuple[int, int]:
        """Return a new stream's last offset, and the old one's of the message there."""
        last = (await self._jetstream.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"]
        if not last:
            return 0, 0
        message = (await self._jetstream.api(f"STREAM.MSG.GET.{stream}", {"seq": last}))["message"]
        raw = base64.b64decode(message.get("hdrs", ""))
        return last, hdrs.find_int(raw, MOVED_HEADER.encode()) or 0

    async def _forget(self, service: str, up_to: int) -> None:
        """Remove what was copied from the old stream."""
        if up_to:
            subject = self._subjects.all_of("send", service)
            request = {"filter": subject, "seq": up_to + 1}
            await self._jetstream.api(f"STREAM.PURGE.{self._old}", request)

    async def _append(self, service: str) -> int:
        """Move what was left for a service that did not exist, and has a stream by now."""
        moved, reached = 0, 0
        while batch := await self._read(service, reached):
            for reply in batch:
                reached = hdrs.find_int(reply.headers, b"Nats-Sequence") or 0
                await self._offer(reply, {}, False)
                await self._forget(service, reached)
                moved += 1
                self._advance(1)
        return moved
