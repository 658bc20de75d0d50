"""Any interleaving of what several processes do, against a model: each process is a real one,
has several event loops, and may be killed at any time."""

from __future__ import annotations

import secrets
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.integration.layer_worker import CAPACITY, LASTING, PLACES, WorkerProcess
from tests.support import wait_for
from wsgateway.broker.embedded import EmbeddedServer

GROUPS = ["one", "two..", "service.user", "service.other"]
NORMAL = ["work", "work."]
PROCESSES = st.integers(0, 2)
PLACE = st.sampled_from(PLACES)
LASTING_PLACE = st.sampled_from(LASTING)
STAYING_PLACE = st.sampled_from([*LASTING, "async_to_sync"])  # what is made there stays there
KILLS = 2
"""Processes that are killed in one run at most: starting one again takes a second."""


def is_durable(group: str) -> bool:
    return group.startswith("service.")


class Model(RuleBasedStateMachine):
    """After each step the model knows what each channel must hold, and in which order."""

    url = ""
    workers: list[WorkerProcess] = []  # noqa: RUF012 - outlives the runs

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"m{secrets.token_hex(6)}"
        for worker in self.workers:
            worker.open(self.prefix)
        self.number = 0
        self.kills = 0
        self.owners: dict[str, int] = {}  # process-specific channel -> process
        self.members: dict[str, dict[str, None]] = {group: {} for group in GROUPS}
        self.normal: dict[str, set[int]] = {name: set() for name in NORMAL}
        self.added: dict[tuple[str, str], set[int]] = {}
        """Group and normal channel that is a member -> the processes that have added it."""
        self.queues: dict[str, dict[str, list[int]]] = {}
        """Process-specific channel -> durable group, or "" for all else -> its numbers in order."""

    def call(self, process: int, name: str, place: str, *arguments: Any) -> Any:
        return self.workers[process].call(name, place, *arguments)

    def settle(self) -> None:
        """Wait until whatever was sent has come."""
        for _ in range(2):  # first everybody has sent, then everybody has read
            for worker in self.workers:
                worker.call("confirm", "loop")

    def next_number(self) -> int:
        self.number += 1
        return self.number

    # -- channels

    @rule(process=PROCESSES, place=STAYING_PLACE)
    def new_channel(self, process: int, place: str) -> None:
        channel = self.call(process, "new_channel", place)
        assert channel not in self.owners
        assert self.workers[process].client in channel
        self.owners[channel] = process
        self.queues[channel] = {"": []}

    @precondition(lambda self: self.owners)
    @rule(process=PROCESSES, place=PLACE, data=st.data())
    def send(self, process: int, place: str, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.owners)))
        if self.expected(channel) > len(self.queues[channel][""]):
            self.read_all(channel)  # how much of what is stored is here already, nobody knows
        number = self.next_number()
        is_full = self.expected(channel) >= CAPACITY
        accepted = self.call(process, "send", place, channel, [number])
        if not is_full:
            assert accepted
            self.queues[channel][""].append(number)
        elif self.owners[channel] == process:
            assert not accepted  # another process may not have heard of it: then it is dropped
        self.settle()

    @rule(
        process=PROCESSES,
        place=PLACE,
        channel=st.sampled_from(NORMAL),
        count=st.one_of(st.just(1), st.integers(2, 50)),
    )
    def send_to_normal(self, process: int, place: str, channel: str, count: int) -> None:
        numbers = [self.next_number() for _ in range(count)]
        assert self.call(process, "send", place, channel, numbers)
        self.normal[channel].update(numbers)

    @precondition(lambda self: any(map(self.expected, self.owners)))
    @rule(place=PLACE, data=st.data())
    def receive(self, place: str, data: Any) -> None:
        channel = data.draw(st.sampled_from([c for c in self.owners if self.expected(c)]))
        self.take(channel, self.call(self.owners[channel], "receive", place, channel))

    @precondition(lambda self: any(self.normal.values()))
    @rule(process=PROCESSES, place=LASTING_PLACE, data=st.data())
    def receive_normal(self, process: int, place: str, data: Any) -> None:
        """Several processes have each fetched some, so the order is only each one's."""
        channel = data.draw(st.sampled_from([name for name in NORMAL if self.normal[name]]))
        self.normal[channel].remove(self.call(process, "receive", place, channel))

    @rule(process=PROCESSES, turns=st.integers(0, 6), data=st.data())
    def cancelled_receive(self, process: int, turns: int, data: Any) -> None:
        channel = data.draw(st.sampled_from([*NORMAL, *self.owners]))
        process = self.owners.get(channel, process)
        number = self.call(process, "cancelled_receive", "loop", channel, turns)
        if number is None:
            return
        if channel in self.normal:
            self.normal[channel].remove(number)
        else:
            self.take(channel, number)

    def expected(self, channel: str) -> int:
        return sum(map(len, self.queues[channel].values()))

    def take(self, channel: str, number: int) -> None:
        queues = self.queues[channel].values()
        [queue] = [queue for queue in queues if number in queue]
        assert queue[0] == number, f"{number} before {queue}"
        was_full = self.expected(channel) >= CAPACITY
        queue.pop(0)
        if was_full:
            self.settle()  # the others hear that there is room

    def read_all(self, channel: str) -> None:
        while self.expected(channel):
            self.take(channel, self.call(self.owners[channel], "receive", "loop", channel))

    # -- groups

    @precondition(lambda self: self.owners)
    @rule(process=PROCESSES, place=PLACE, group=st.sampled_from(GROUPS), data=st.data())
    def join(self, process: int, place: str, group: str, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.owners)))
        self.call(process, "group_add", place, group, channel)
        self.members[group][channel] = None
        self.settle()

    @precondition(lambda self: any(self.members.values()))
    @rule(process=PROCESSES, place=PLACE, data=st.data())
    def leave(self, process: int, place: str, data: Any) -> None:
        pairs = [(group, channel) for group in GROUPS for channel in self.members[group]]
        group, channel = data.draw(st.sampled_from(pairs))
        if is_durable(group):
            self.read_all(channel)  # what is not fetched when it leaves does not come any more
        self.call(process, "group_discard", place, group, channel)
        del self.members[group][channel]
        self.settle()

    @rule(
        process=PROCESSES,
        place=LASTING_PLACE,
        group=st.sampled_from(GROUPS),
        channel=st.sampled_from(NORMAL),
    )
    def join_normal(self, process: int, place: str, group: str, channel: str) -> None:
        self.call(process, "group_add", place, group, channel)
        self.added.setdefault((group, channel), set()).add(process)
        self.settle()

    @precondition(lambda self: self.added)
    @rule(process=PROCESSES, place=LASTING_PLACE, data=st.data())
    def leave_normal(self, process: int, place: str, data: Any) -> None:
        group, channel = data.draw(st.sampled_from(list(self.added)))
        self.call(process, "group_discard", place, group, channel)
        del self.added[group, channel]
        self.settle()

    @rule(process=PROCESSES, place=PLACE, group=st.sampled_from(GROUPS))
    def group_send(self, process: int, place: str, group: str) -> None:
        for channel in self.members[group]:
            if self.expected(channel) >= CAPACITY and not is_durable(group):
                self.read_all(channel)
        number = self.next_number()
        self.call(process, "group_send", place, group, number)
        for channel in self.members[group]:
            queue = group if is_durable(group) else ""
            self.queues[channel].setdefault(queue, []).append(number)
        for channel in [name for name in NORMAL if self.added.get((group, name))]:
            self.normal[channel].add(number)
        self.settle()

    # -- everything

    @rule(process=PROCESSES)
    def flush(self, process: int) -> None:
        self.settle()
        for name, numbers in self.normal.items():  # what a group brings it may not be there yet
            if numbers:
                wait_for(lambda: self.call(0, "stored", "loop", name) == len(numbers))  # noqa: B023
        self.call(process, "flush", "loop")
        self.added = {}
        for group in GROUPS:
            self.members[group] = {}
        self.normal = {name: set() for name in NORMAL}
        self.queues = {channel: {"": []} for channel in self.owners}

    @precondition(lambda self: self.kills < KILLS)
    @rule(process=PROCESSES, data=st.data())
    def kill(self, process: int, data: Any) -> None:
        """Its channels are gone, and what it has accepted or fetched for others is not."""
        self.settle()  # one that was not sent does not count
        self.kills += 1
        self.workers[process].kill()
        self.workers[process] = WorkerProcess(self.url)
        self.workers[process].open(self.prefix)
        for processes in self.added.values():
            processes.discard(process)
        for channel in [name for name, owner in self.owners.items() if owner == process]:
            del self.owners[channel]
            del self.queues[channel]
            for members in self.members.values():
                members.pop(channel, None)

    @invariant()
    def names_are_each_processs_own(self) -> None:
        assert len({worker.client for worker in self.workers}) == len(self.workers)

    def teardown(self) -> None:
        for name, numbers in self.normal.items():
            got = {self.call(0, "receive", "loop", name) for _ in range(len(numbers))}
            assert got == numbers
            assert self.call(0, "cancelled_receive", "loop", name, 6) is None
        for channel, process in self.owners.items():
            self.read_all(channel)
            assert self.call(process, "waiting", "loop", channel) == 0
        for worker in self.workers:
            worker.call("close", "loop")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_any_interleaving_does_what_the_specification_allows(nats_server: EmbeddedServer) -> None:
    Model.url = nats_server.url
    Model.workers = [WorkerProcess(nats_server.url) for _ in range(3)]
    try:
        hypothesis.stateful.run_state_machine_as_test(
            Model,
            settings=hypothesis.settings(max_examples=6, stateful_step_count=30, deadline=None),
        )
    finally:
        for worker in Model.workers:
            worker.kill()
