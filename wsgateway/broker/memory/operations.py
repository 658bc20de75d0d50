"""What operators see of the memory broker, and do to it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wsgateway.broker.memory.pull_consumer import taking
from wsgateway.broker.operations import Device, Held, InboxState, Operations, Queue, Stream
from wsgateway.protocol.subjects import GROUP_SERVICE, Address, Inbox, encode_token

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker

__all__ = ["MemoryOperations"]


class MemoryOperations(Operations):
    """See `Operations`.

    Args:
        broker: Whose store it is about.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._store = broker.store

    # -- inboxes -------------------------------------------------------------------------

    async def counts(self, inboxes: Iterable[Inbox]) -> dict[Inbox, InboxState]:
        await self._broker.wait_ready()
        with taking:
            devices = self._devices({*(wanted := list(inboxes))})
            return {inbox: self._state(inbox, devices.get(inbox, [])) for inbox in wanted}

    def _state(self, inbox: Inbox, devices: list[Device]) -> InboxState:
        offsets = self._offsets(inbox)
        return InboxState(
            messages=len(offsets),
            first=offsets[0] if offsets else 0,
            last=offsets[-1] if offsets else 0,
            waiting=min((device.waiting for device in devices), default=len(offsets)),
            last_seen=max((device.saved for device in devices), default=None),
        )

    async def devices(self, inbox: Inbox) -> list[Device]:
        await self._broker.wait_ready()
        with taking:
            return self._devices({inbox}).get(inbox, [])[::-1]

    def _devices(self, inboxes: set[Inbox]) -> dict[Inbox, list[Device]]:
        store, log = self._store, self._store.inboxes
        found: dict[Inbox, list[Device]] = {}
        for (inbox, name), cursor in store.cursors.items():
            if inbox in inboxes:
                valid = cursor.epoch == log.epoch and cursor.offset <= log.received.last
                read_to = cursor.offset if valid else 0
                waiting = sum(offset > read_to for offset in self._offsets(inbox))
                device = Device(name, cursor.offset, cursor.epoch, cursor.saved, waiting)
                found.setdefault(inbox, []).append(device)
        return found

    def _addresses(self) -> list[Inbox]:
        """Return the inboxes that have held something."""
        return [each for each in list(self._store.inboxes.messages) if isinstance(each, Inbox)]

    def _offsets(self, inbox: Inbox) -> list[int]:
        if inbox not in self._store.inboxes.messages:  # a look must not make one
            return []
        return [kept.stored.offset for kept in self._store.inboxes.kept(inbox)]

    async def delete(self, address: Address, offset: int) -> bool:
        await self._broker.wait_ready()
        messages = self._store.log(address).messages
        with taking:
            kept = messages.get(address, [])
            messages[address] = [each for each in kept if each.stored.offset != offset]
            return len(messages[address]) < len(kept)

    async def purge(self, address: Address) -> int:
        await self._broker.wait_ready()
        log = self._store.log(address)
        with taking:
            count = len(log.kept(address))
            log.messages.pop(address, None)
            return count

    async def held(self, user: str, service: str | None = None) -> dict[str, Held]:
        for name in (user, *([] if service is None else [service])):
            encode_token(name)  # refuses what nobody can be called
        await self._broker.wait_ready()
        store = self._store
        with taking:
            inboxes = {
                *self._addresses(),
                *(inbox for inbox, _ in store.cursors),
                *(sent.inbox for queue in store.queues.values() for sent in queue),
                *(entry.inbox for entry in store.dead.values()),
            }
            wanted = {
                inbox
                for inbox in inboxes
                if inbox.user == user and inbox.service is not GROUP_SERVICE
            }
            found = {inbox.service: self._held(inbox) for inbox in wanted}
        return {
            name: held
            for name, held in sorted(found.items())
            if held.total and service in (None, name)
        }

    def _held(self, inbox: Inbox) -> Held:
        store = self._store
        sent = [sent for queue in store.queues.values() for sent in queue]
        return Held(
            messages=len(self._offsets(inbox)),
            cursors=sum(key[0] == inbox for key in store.cursors),
            queued=sum(each.inbox == inbox for each in sent),
            dead_letters=sum(entry.inbox == inbox for entry in store.dead.values()),
        )

    async def erase(self, inbox: Inbox) -> Held:
        await self._broker.wait_ready()
        store = self._store
        with taking:
            held = self._held(inbox)
            store.inboxes.messages.pop(inbox, None)
            for key in [key for key in store.cursors if key[0] == inbox]:
                del store.cursors[key]
            for offset in [offset for offset, e in store.dead.items() if e.inbox == inbox]:
                del store.dead[offset]
            changed = [
                service
                for service, queue in store.queues.items()
                if any(sent.inbox == inbox for sent in queue)
            ]
            for service in changed:  # its own, and those of topics
                queue = store.queues[service]
                queue[:] = [sent for sent in queue if sent.inbox != inbox]
        for service in changed:
            store.wake_workers(service, inbox)
        return held

    async def names(
        self, service: str, *, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> list[str]:
        await self._broker.wait_ready()
        with taking:
            inboxes = {inbox for inbox in self._addresses() if self._offsets(inbox)}
            inboxes |= {inbox for inbox, _ in self._store.cursors}
        names = (inbox.user for inbox in inboxes if inbox.service == service)
        wanted = (name for name in names if name.startswith(prefix) and name > (after or ""))
        return heapq.nsmallest(limit, wanted)

    # -- streams and queues --------------------------------------------------------------

    async def streams(self) -> list[Stream]:
        await self._broker.wait_ready()
        subjects, store, log = self._broker.subjects, self._store, self._store.inboxes
        with taking:
            inboxes = [kept for inbox in self._addresses() if (kept := log.kept(inbox))]
            messages = [each.stored.payload for kept in inboxes for each in kept]
            dead = [entry.payload for entry in store.dead.values()]
        found = [
            Stream(
                subjects.stream("recv"),
                "inboxes",
                messages=len(messages),
                bytes=sum(map(len, messages)),
                subjects=len(inboxes),
                max_per_subject=log.max_messages,
                max_age=log.max_age,
            ),
            Stream(
                subjects.stream("dead"),
                "dead letters",
                messages=len(dead),
                bytes=sum(map(len, dead)),
            ),
        ]
        found += [self._topics(service) for service in sorted(self._broker.declared.topics)]
        for queue in await self.queues():
            name = subjects.queue(queue.service)
            purpose = f"messages to the service {queue.service}"
            found.append(
                Stream(
                    name,
                    purpose,
                    queue.service,
                    messages=queue.waiting,
                    bytes=queue.bytes,
                    max_messages=queue.max_messages,
                    max_per_subject=queue.max_per_user,
                )
            )
        return found

    def _topics(self, service: str) -> Stream:
        log = self._store.topics[service]
        with taking:
            topics = [kept for topic in list(log.messages) if (kept := log.kept(topic))]
            messages = [each.stored.payload for kept in topics for each in kept]
        return Stream(
            self._broker.subjects.topic_stream(service),
            f"topics of the service {service}",
            messages=len(messages),
            bytes=sum(map(len, messages)),
            subjects=len(topics),
            max_per_subject=log.max_messages,
            max_age=log.max_age,
        )

    async def queues(self) -> list[Queue]:
        await self._broker.wait_ready()
        with taking:
            used = {service for service in self._store.queues if service is not GROUP_SERVICE}
            return [self._queue(name) for name in sorted(used | self._broker.service_names)]

    def _queue(self, service: str) -> Queue:
        store, now = self._store, time.monotonic()
        waiting = list(store.queues[service]) if service in store.queues else []
        ids = {f"{store.inboxes.epoch}.{service}.{each.sequence}" for each in waiting}
        return Queue(
            service,
            waiting=len(waiting),
            in_flight=sum(each.deliveries > 0 and each.due > now for each in waiting),
            oldest=min((each.sent for each in waiting), default=None),
            failed=sum(store.histories[each].tries > 0 for each in ids & store.histories.keys()),
            dead=sum(entry.service == service for entry in store.dead.values()),
            bytes=sum(len(each.payload) for each in waiting),
            max_messages=store.max_waiting,
            max_per_user=store.max_waiting_per_user,
            pulls=len(store.workers[service]) if service in store.workers else 0,
            paused=service in store.paused,
        )

    async def pause(self, service: str, age: float = 0.0) -> bool:
        await self._broker.wait_ready()
        store = self._store
        resumed = store.resumed.get(service)
        if resumed is not None and time.monotonic() - resumed < age:
            return service in store.paused
        store.paused.add(service)
        store.wake_workers(service)
        return True

    async def resume(self, service: str) -> bool:
        await self._broker.wait_ready()
        was_paused = service in self._store.paused
        self._store.paused.discard(service)
        if was_paused:
            self._store.resumed[service] = time.monotonic()
        self._store.wake_workers(service)
        return was_paused
