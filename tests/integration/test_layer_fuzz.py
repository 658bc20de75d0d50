"""Any interleaving, and any cancellation: what the specification allows happens, nothing else."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
from collections import Counter
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.integration.layers import layers, receive
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.layer import NatsChannelLayer

PROCESSES = range(3)
GROUPS = ["one", "two..", "service.user"]
NORMAL = ["work", "work."]
CAPACITY = 1000


class Model(RuleBasedStateMachine):
    """Three processes; after each step the model knows what each channel must hold, in order."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        prefix = f"m{secrets.token_hex(6)}"
        self.layers = [
            NatsChannelLayer(self.url, prefix=prefix, capacity=CAPACITY) for _ in PROCESSES
        ]
        self.numbers = iter(range(10**9))
        self.owned: dict[str, int] = {}  # channel -> process
        self.members: dict[str, list[str]] = {group: [] for group in GROUPS}
        self.held: dict[str, list[int]] = {name: [] for name in NORMAL}

    def do(self, coroutine: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await coroutine

        return self.runner.run(bounded())

    async def arrived(self) -> None:
        """Wait until everything sent so far has come: all share the loop's one connection."""
        for layer in self.layers:
            await layer._normal.settle()
            if layer._home.node is not None:
                await layer._home.node.link.confirm()

    @rule(process=st.sampled_from(PROCESSES))
    def new_channel(self, process: int) -> None:
        channel = self.do(self.layers[process].new_channel())
        assert channel not in self.owned
        self.owned[channel] = process
        self.held[channel] = []

    @rule(process=st.sampled_from(PROCESSES), data=st.data())
    def send(self, process: int, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.held)))
        number = next(self.numbers)
        self.do(self.layers[process].send(channel, {"type": "x", "n": number}))
        self.held[channel].append(number)
        self.do(self.arrived())

    @rule(
        process=st.sampled_from(PROCESSES),
        channel=st.sampled_from(NORMAL),
        size=st.integers(2, 50),
        settles=st.booleans(),
    )
    def burst(self, process: int, channel: str, size: int, settles: bool) -> None:
        """What follows may come while a part is still on its way; only `flush` waits for it."""
        layer = self.layers[process]
        numbers = [next(self.numbers) for _ in range(size)]

        async def send() -> None:
            for number in numbers:
                await layer.send(channel, {"type": "x", "n": number})

        self.do(send())
        self.held[channel] += numbers
        if settles:
            self.do(self.arrived())

    @precondition(lambda self: self.owned)
    @rule(process=st.sampled_from(PROCESSES), group=st.sampled_from(GROUPS), data=st.data())
    def join(self, process: int, group: str, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.owned)))
        self.do(self.layers[process].group_add(group, channel))
        if channel not in self.members[group]:
            self.members[group].append(channel)

    @precondition(lambda self: self.owned)
    @rule(process=st.sampled_from(PROCESSES), group=st.sampled_from(GROUPS), data=st.data())
    def leave(self, process: int, group: str, data: Any) -> None:
        """What a durable group's reader has not fetched when it leaves may or may not come."""
        channel = data.draw(st.sampled_from(list(self.owned)))
        if group == "service.user" and self.held[channel]:
            self.drain(channel)
        self.do(self.layers[process].group_discard(group, channel))
        if channel in self.members[group]:
            self.members[group].remove(channel)

    @rule(process=st.sampled_from(PROCESSES), group=st.sampled_from(GROUPS))
    def group_send(self, process: int, group: str) -> None:
        number = next(self.numbers)
        self.do(self.layers[process].group_send(group, {"type": "x", "n": number}))
        for channel in self.members[group]:
            self.held[channel].append(number)
        self.do(self.arrived())

    @precondition(lambda self: any(self.held.values()))
    @rule(process=st.sampled_from(PROCESSES), data=st.data())
    def receive(self, process: int, data: Any) -> None:
        channel = data.draw(st.sampled_from([n for n, held in self.held.items() if held]))
        message = self.do(self.layers[self.owned.get(channel, process)].receive(channel))
        held = self.held[channel]
        # A durable group's messages keep their own order, and may be behind others'
        assert message["n"] in held, (message, held)
        held.remove(message["n"])

    @rule(process=st.sampled_from(PROCESSES), data=st.data())
    def cancelled_receive(self, process: int, data: Any) -> None:
        channel = data.draw(st.sampled_from(list(self.held)))
        turns = data.draw(st.integers(0, 5))

        async def cancel() -> Any:
            task = asyncio.create_task(
                self.layers[self.owned.get(channel, process)].receive(channel)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            return result

        result = self.do(cancel())
        if isinstance(result, dict):
            self.held[channel].remove(result["n"])
        else:
            assert isinstance(result, asyncio.CancelledError)

    @rule(process=st.sampled_from(PROCESSES))
    def flush(self, process: int) -> None:
        self.do(self.arrived())
        self.do(self.layers[process].flush())
        for group in GROUPS:
            self.members[group] = []
        for held in self.held.values():
            held.clear()

    def drain(self, channel: str) -> None:
        layer = self.layers[self.owned.get(channel, 0)]
        got = [self.do(layer.receive(channel))["n"] for _ in self.held[channel]]
        assert sorted(got) == sorted(self.held[channel])
        self.held[channel].clear()

    @invariant()
    def nothing_is_shared(self) -> None:
        assert len({layer.client_prefix for layer in self.layers}) == len(PROCESSES)

    def teardown(self) -> None:
        try:
            for channel in list(self.held):
                self.drain(channel)
                if channel in self.owned:  # and there is no more
                    box = self.layers[self.owned[channel]]._home.mailboxes.get(channel.encode())
                    assert box is None or not box.queue
        finally:
            for layer in self.layers:
                self.do(layer.close())
            self.runner.close()


@pytest.fixture
def url(nats_server: EmbeddedServer) -> str:
    return nats_server.url


@pytest.mark.timeout(180)
def test_any_interleaving_does_what_the_specification_allows(url: str) -> None:
    Model.url = url
    hypothesis.stateful.run_state_machine_as_test(
        Model,
        settings=hypothesis.settings(max_examples=20, stateful_step_count=30, deadline=None),
    )


@pytest.mark.parametrize("way", ["process", "normal", "group", "service.user"])
async def test_thousands_of_random_cancellations(url: str, prefix: str, way: str) -> None:
    """Readers are cancelled at random moments: every message comes, and nothing stays behind."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    count = 2000
    async with layers(url, prefix, capacity=10 * count) as make:
        sender, receiver = make(), make()
        channel = "work" if way == "normal" else await receiver.new_channel()
        if way in ("group", "service.user"):
            await receiver.group_add(way, channel)
            await receiver._home.confirm()
        got: Counter[int] = Counter()
        cancelled = 0

        async def read() -> None:
            nonlocal cancelled
            while sum(got.values()) < count:
                task = asyncio.create_task(receiver.receive(channel))
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                if chance.random() < 0.7:
                    task.cancel()
                    cancelled += 1
                else:
                    await asyncio.wait({task}, timeout=chance.random() / 50)
                    task.cancel()
                result = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(result, dict):
                    got[result["n"]] += 1

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for number in range(count):
            message = {"type": "x", "n": number}
            if way in ("group", "service.user"):
                await sender.group_send(way, message)
            else:
                await sender.send(channel, message)
        async with asyncio.timeout(50):
            await asyncio.gather(*readers)
        assert got == Counter(range(count)), f"seed {seed}"
        assert cancelled > 100
        box = receiver._home.mailboxes.get(channel.encode())
        assert box is None or (box.reading == 0 and not box._waiters and not box.queue)
        await sender.send(channel, {"type": "the.end"})
        assert await receive(receiver, channel) == {"type": "the.end"}
    gc.collect()
    ours = [t for t in asyncio.all_tasks() if t.get_name().startswith("wsgateway")]
    assert not ours
