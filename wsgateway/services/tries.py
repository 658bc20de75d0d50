"""How often handlers have had a message, remembered where every worker finds it.

NATS counts deliveries, not tries: a message that a worker gives back unstarted, or that waited in
the hands of one that died, was delivered once more although no handler had it. So a worker notes
when a handler failed, with the count of deliveries at that time. A message that is delivered for
the first time has no history, and one that succeeds then leaves none: both cost nothing.

A handler that ends its process notes nothing. A message that was delivered ``MAX_DELIVER`` times
without a note in between is therefore suspect: a mark is stored before its handler starts, alone in
its process, and removed when the handler ends. Who finds the mark knows that the handler did not.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, NamedTuple

from wsgateway.broker.nats.jetstream import NO_MESSAGE, ApiError
from wsgateway.exceptions import WsGatewayError

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.broker.nats.workqueue import Job

__all__ = ["History", "Tries", "WorkerDied"]


class WorkerDied(WsGatewayError):
    """The process ended while a handler ran alone in it: killed, out of memory, ``os._exit``."""

    def __init__(self) -> None:
        super().__init__(
            "the worker's process ended while it handled this message and no other: out of memory, "
            "killed, or ended by the handler"
        )


class History(NamedTuple):
    """What is known of a message when it is delivered.

    Attributes:
        tries: Handlers that have failed.
        deliveries: How often it had been delivered when that was noted.
        started: Whether a handler began, alone in its process, and was not heard of since.
    """

    tries: int = 0
    deliveries: int = 0
    started: bool = False


class Tries:
    """The histories of messages, in a key-value bucket; each is forgotten with its message.

    Args:
        broker: Open, in the running loop.
        service: Whose messages.
    """

    def __init__(self, broker: NatsBroker, service: str) -> None:
        self._broker = broker
        self._service = service

    def _subject(self, job: Job) -> str:
        return self._broker.subjects.tries_key(self._service, job.id)

    async def load(self, job: Job) -> History:
        """Return what is known of *job*, as the bucket's leader knows it.

        Raises:
            BrokerError: It cannot be read now.
        """
        name = f"STREAM.MSG.GET.{self._broker.subjects.bucket('tries')}"
        try:
            answer = await self._broker.jetstream.api(name, {"last_by_subj": self._subject(job)})
        except ApiError as exc:
            if exc.err_code == NO_MESSAGE:
                return History()
            raise
        return _parse(base64.b64decode(answer["message"].get("data", "")))

    async def save(self, job: Job, history: History) -> None:
        """Remember *history*.

        Raises:
            BrokerError: It cannot be stored now.
        """
        text = f"{history.tries} {history.deliveries} {int(history.started)}"
        await self._broker.jetstream.publish(self._subject(job), text.encode())

    async def forget(self, job: Job) -> None:
        """Forget what was remembered. Idempotent.

        Raises:
            BrokerError: It cannot be removed now.
        """
        name = f"STREAM.PURGE.{self._broker.subjects.bucket('tries')}"
        await self._broker.jetstream.api(name, {"filter": self._subject(job)})


def _parse(data: bytes) -> History:
    try:
        tries, deliveries, started = map(int, data.split())
    except ValueError:  # not ours
        return History()
    return History(tries, deliveries, bool(started))
