"""Any interleaving of processes that each have several event loops, against a model.

Each process of the model is a layer with two threads that run a loop, so with connections of its
own: nothing but the server orders what two of them do.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import hypothesis
import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.integration.layers import drain, receive
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.layer import NatsChannelLayer, loops

GROUPS = ["one", "two", "service.user", "service.other"]
CAPACITY = 4


@pytest.fixture(autouse=True, scope="module")
def _no_connection_stays() -> Iterator[None]:
    yield
    loops._stop_background()  # what plain threads share stays open otherwise


class Loop:
    """A thread that runs an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Process:
    """A layer and the ways to call it."""

    def __init__(self, url: str, prefix: str) -> None:
        self.layer = NatsChannelLayer(url, prefix=prefix, capacity=CAPACITY)
        self.loops = [Loop(), Loop()]
        self.calls: list[Callable[[Coroutine[Any, Any, Any]], Any]] = [
            self.loops[0].run,
            self.loops[1].run,
            self._from_a_plain_thread,
        ]

    @staticmethod
    def _from_a_plain_thread(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def call() -> Any:
            return await coroutine

        return async_to_sync(call)()

    async def confirm(self) -> None:
        """Wait until the server has what each loop has sent, and this process what came."""
        for node in list(self.layer._nodes.values()):
            await node.call(node.link.confirm)
        await self.layer._home.confirm()

    def close(self) -> None:
        for loop in self.loops:
            loop.run(self.layer.close_pools())
        self.loops[0].run(self.layer.close())
        for loop in self.loops:
            loop.close()


class Model(RuleBasedStateMachine):
    """What each channel must hold; two processes, every call from any of their loops."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        prefix = f"m{secrets.token_hex(6)}"
        self.processes = [Process(self.url, prefix) for _ in range(2)]
        self.number = 0
        self.owners: dict[str, Process] = {}
        self.members: dict[str, dict[str, None]] = {group: {} for group in GROUPS}
        self.held: dict[str, list[int]] = {"work": []}  # durable groups' messages apart
        self.stored: dict[tuple[str, str], list[int]] = {}  # (channel, durable group) -> theirs

    def settle(self) -> None:
        """Wait until whatever was sent has come."""
        for _ in range(2):  # first everybody has sent, then everybody has read
            for process in self.processes:
                process.loops[0].run(process.confirm())

    def message(self) -> dict[str, Any]:
        self.number += 1
        return {"type": "x", "n": self.number}

    @rule(process=st.sampled_from([0, 1]), call=st.sampled_from([0, 1]))
    def new_channel(self, process: int, call: int) -> None:
        owner = self.processes[process]
        channel = owner.calls[call](owner.layer.new_channel())
        assert channel not in self.owners
        self.owners[channel] = owner
        self.held[channel] = []

    @rule(process=st.sampled_from([0, 1]), call=st.sampled_from([0, 1, 2]), data=st.data())
    def send(self, process: int, call: int, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.held)))
        caller = self.processes[process]
        message = self.message()
        if len(self.expected(channel)) > len(self.held[channel]):
            self.read_all(channel)  # how much of what is stored is here already, nobody knows
        full = len(self.held[channel]) >= CAPACITY
        # Another process refuses only once it has heard that the channel is full
        surely = full and (channel == "work" or self.owners[channel] is caller)
        try:
            while True:
                try:
                    caller.calls[call](caller.layer.send(channel, message))
                    break
                except ChannelFull:
                    if channel in self.owners or full:
                        raise
                    self.settle()  # an acknowledgement is still under way
        except ChannelFull:
            assert full
        else:
            assert not surely
            if not full:
                self.held[channel].append(message["n"])
        self.settle()

    @precondition(lambda self: self.owners)
    @rule(
        process=st.sampled_from([0, 1]),
        call=st.sampled_from([0, 1, 2]),
        group=st.sampled_from(GROUPS),
        data=st.data(),
    )
    def join(self, process: int, call: int, group: str, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.owners)))
        caller = self.processes[process]
        caller.calls[call](caller.layer.group_add(group, channel))
        self.members[group][channel] = None
        self.settle()

    @precondition(lambda self: any(self.members.values()))
    @rule(process=st.sampled_from([0, 1]), call=st.sampled_from([0, 1, 2]), data=st.data())
    def leave(self, process: int, call: int, data: Any) -> None:
        pairs = [(group, channel) for group in GROUPS for channel in self.members[group]]
        group, channel = data.draw(st.sampled_from(pairs))
        self.read_all(channel)  # what is stored, and not yet fetched, would not come any more
        caller = self.processes[process]
        caller.calls[call](caller.layer.group_discard(group, channel))
        self.members[group].pop(channel)
        self.settle()

    @rule(
        process=st.sampled_from([0, 1]),
        call=st.sampled_from([0, 1, 2]),
        group=st.sampled_from(GROUPS),
    )
    def group_send(self, process: int, call: int, group: str) -> None:
        for channel in self.members[group]:
            if len(self.expected(channel)) >= CAPACITY and "." not in group:
                self.read_all(channel)
        caller = self.processes[process]
        message = self.message()
        caller.calls[call](caller.layer.group_send(group, message))
        self.settle()
        for channel in self.members[group]:
            if "." in group:
                self.stored.setdefault((channel, group), []).append(message["n"])
            else:
                self.held[channel].append(message["n"])

    def expected(self, channel: str) -> list[int]:
        durable = [v for (name, _), v in self.stored.items() if name == channel]
        return [*self.held[channel], *(number for numbers in durable for number in numbers)]

    @precondition(lambda self: any(map(self.expected, self.held)))
    @rule(call=st.sampled_from([0, 1]), process=st.sampled_from([0, 1]), data=st.data())
    def receive(self, call: int, process: int, data: Any) -> None:
        channel = data.draw(st.sampled_from([c for c in self.held if self.expected(c)]))
        self.read(channel, call, self.owners.get(channel) or self.processes[process])

    def read(self, channel: str, call: int, reader: Process) -> None:
        number = reader.calls[call](receive(reader.layer, channel))["n"]
        queues = [self.held[channel]]
        queues += [v for (name, _), v in self.stored.items() if name == channel]
        [queue] = [queue for queue in queues if number in queue]
        # Several readers of a normal channel have each fetched some
        assert channel == "work" or queue[0] == number, f"{number} before {queue}"
        queue.remove(number)

    def read_all(self, channel: str) -> None:
        while self.expected(channel):
            self.read(channel, 0, self.owners.get(channel) or self.processes[0])

    def teardown(self) -> None:
        try:
            for channel in self.held:
                self.read_all(channel)
            for channel, owner in self.owners.items():  # and there is no more
                box = owner.layer._home.mailboxes.get(channel.encode())
                assert box is None or not box.queue
        finally:
            for process in self.processes:
                process.close()


@pytest.mark.timeout(180)
def test_any_interleaving_from_any_loop(nats_server: EmbeddedServer) -> None:
    Model.url = nats_server.url
    hypothesis.stateful.run_state_machine_as_test(
        Model, settings=hypothesis.settings(max_examples=20, stateful_step_count=30, deadline=None)
    )


@pytest.mark.parametrize("group", ["service.user", "group"])
def test_a_membership_survives_the_loop_that_made_it(
    nats_server: EmbeddedServer, prefix: str, group: str
) -> None:
    """A durable group's messages meanwhile are not lost either."""
    member = NatsChannelLayer(nats_server.url, prefix=prefix)
    sender = NatsChannelLayer(nats_server.url, prefix=prefix)

    async def join() -> str:
        channel = await member.new_channel()
        await member.group_add(group, channel)
        return channel

    async def send(numbers: range) -> None:
        for number in numbers:
            await sender.group_send(group, {"type": "x", "n": number})
        await sender.close()

    async def read(channel: str) -> list[int]:
        await member._home.settle()
        await member._home.confirm()
        await asyncio.to_thread(asyncio.run, send(range(10, 20)))
        return await drain(member, channel, 20 if "." in group else 10)

    channel = asyncio.run(join())
    asyncio.run(send(range(10)))  # nobody is connected
    wanted = list(range(20)) if "." in group else list(range(10, 20))
    assert asyncio.run(read(channel)) == wanted
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(member.close())
